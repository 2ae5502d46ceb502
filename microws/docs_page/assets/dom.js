// Elements from values. No text ever becomes markup, whatever an app or a client sends.

export const $ = (selector, parent = document) => parent.querySelector(selector)
export const $$ = (selector, parent = document) => [...parent.querySelectorAll(selector)]

export function h(tag, properties = {}, ...children) {
  const element = tag === "svg" || tag === "polyline" ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag)
  for (const [name, value] of Object.entries(properties)) {
    if (typeof value === "function") element[name] = value
    else if (value === true) element.setAttribute(name, "")
    else if (value !== false && value != null) element.setAttribute(name, value)
  }
  element.append(...children.flat(9).filter(child => child != null && typeof child !== "boolean"))
  return element
}

export const span = (kind, ...children) => h("span", { class: kind }, ...children)
export const button = (text, onclick, properties = {}) => h("button", { type: "button", onclick, ...properties }, text)
export const field = (label, input) => h("label", {}, label, input)

// One of several chips is pressed.
export function chips(names, pick) {
  const row = h("div", { class: "chips" }, names.map((name, index) => button(name, event => press(event.currentTarget, index), { class: "chip" })))
  const press = (chip, index) => {
    for (const each of row.children) each.setAttribute("aria-pressed", each === chip)
    pick(index)
  }
  if (names.length) press(row.firstChild, 0)
  return row
}

// JSON with colors; any other text as it is.
export function colored(text) {
  const parts = []
  let at = 0
  for (const match of text.matchAll(/("(?:[^"\\]|\\.)*")(\s*:)?|-?\d[\d.eE+-]*|\b(?:true|false|null)\b/g)) {
    parts.push(text.slice(at, match.index), span(match[2] ? "key" : match[1] ? "string" : "value", match[1] ?? match[0]), match[2] ?? "")
    at = match.index + match[0].length
  }
  return [...parts, text.slice(at)]
}

export function pretty(text) {
  try {
    // `JSON.parse` would round large numbers, so only the spaces are set here.
    JSON.parse(text)
  } catch {
    return null
  }
  let depth = 0
  const line = () => "\n" + "  ".repeat(depth)
  return text.replace(/"(?:[^"\\]|\\.)*"|\s+|[{[]\s*[}\]]|[{}[\],:]/g, part => {
    if (/^\s/.test(part)) return ""
    if (part === "{" || part === "[") return depth++, part + line()
    if (part === "}" || part === "]") return depth--, line() + part
    return part === "," ? part + line() : part === ":" ? ": " : part
  })
}

export const number = value => Math.round(value).toLocaleString("en")

let hide
export function toast(text) {
  $("#toast").textContent = text
  clearTimeout(hide)
  hide = setTimeout(() => { $("#toast").textContent = "" }, 2500)
}

export function sparkline(values, size = "") {
  const top = Math.max(...values, 1), step = 100 / (values.length - 1)
  const points = values.map((value, index) => `${(index * step).toFixed(1)},${(19 - value / top * 18).toFixed(1)}`).join(" ")
  return h("svg", { class: size, viewBox: "0 0 100 20", preserveAspectRatio: "none", "aria-hidden": "true" }, h("polyline", { points }))
}
