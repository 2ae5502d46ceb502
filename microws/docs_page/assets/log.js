// The frames of an exchange, with time, direction and size.

import { colored, h, number, pretty, span } from "./dom.js"

const MOST = 500
const NAMES = { "↑": "sent", "↓": "received" }

export class Log {
  // `entries` are all that were put, oldest first: {way: "•", "↑" or "↓", data: a string or bytes, at, isWrong}.
  constructor(hint) {
    this.entries = []
    this.hint = hint
    this.filter = h("input", { type: "search", placeholder: "Filter", "aria-label": "Filter the frames", oninput: () => this.draw() })
    this.element = h("div", { class: "log", role: "log", "aria-label": "Frames", tabindex: 0 })
    this.draw()
  }

  put(way, data, isWrong = false) {
    const entry = { way, data, at: new Date(), isWrong }
    this.entries.push(entry)
    // What is older cannot be copied as a test any more.
    if (this.entries.length > 20 * MOST) this.entries.splice(0, MOST)
    if (this.entries.length === 1) this.element.replaceChildren()
    const isAtEnd = this.element.scrollTop + this.element.clientHeight > this.element.scrollHeight - 30
    if (this.matches(entry)) this.element.append(row(entry))
    while (this.element.childElementCount > MOST) this.element.firstChild.remove()
    if (isAtEnd) this.element.scrollTop = this.element.scrollHeight
  }

  clear() {
    this.entries = []
    this.draw()
  }

  matches({ data }) {
    return textOf(data).toLowerCase().includes(this.filter.value.toLowerCase())
  }

  draw() {
    const rows = this.entries.filter(entry => this.matches(entry)).slice(-MOST).map(row)
    this.element.replaceChildren(...(rows.length ? rows : [h("p", { class: "empty" }, this.entries.length ? "No frame matches." : this.hint)]))
    this.element.scrollTop = this.element.scrollHeight
  }
}

export const hex = bytes => [...bytes].map(byte => byte.toString(16).padStart(2, "0")).join(" ")
const textOf = data => typeof data === "string" ? data : hex(data)

function row({ way, data, at, isWrong }) {
  const time = `${at.toTimeString().slice(0, 8)}.${String(at.getMilliseconds()).padStart(3, "0")}`
  const text = textOf(data), size = typeof data === "string" ? new Blob([data]).size : data.length
  const kind = isWrong ? "wrong" : NAMES[way] ?? "event"
  return h("details", { class: kind },
    h("summary", {}, span("dim", time), h("span", { "aria-label": NAMES[way] ?? "event" }, way), span("brief", brief(way === "•" ? text.split("\n")[0] : text)), way === "•" ? "" : span("dim", `${number(size)} B`)),
    h("pre", {}, colored(pretty(text) ?? text)))
}

// The kind of a message first, then its fields.
function brief(text) {
  if (text[0] !== "{") return text
  let value
  try {
    value = JSON.parse(text)
  } catch {
    return text
  }
  const { type, ...rest } = value
  const fields = Object.entries(typeof type === "string" ? rest : value)
  return [typeof type === "string" && h("b", {}, type), fields.map(([key, each]) => [span("soft", ` ${key} `), typeof each === "string" ? each : JSON.stringify(each)])]
}
