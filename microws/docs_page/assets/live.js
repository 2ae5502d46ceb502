// The hub while it works: asked once a second, only while this page is shown.

import { $, button, field, h, number, span, sparkline } from "./dom.js"
import { readEvents } from "./exchange.js"
import { Log } from "./log.js"

const SECONDS = 60
const TILES = [["connections", "connections"], ["deliveries", "deliveries a second"], ["queued", "pending now"], ["dropped", "dropped"]]

export class Live {
  constructor(ask, onPulse) {
    this.ask = ask
    this.onPulse = onPulse
    this.past = {}
    this.rates = new Map()
    this.log = new Log("Messages appear here as they are published.")
    this.tiles = h("div", { class: "tiles" })
    this.topics = h("tbody")
    this.slowest = h("tbody")
    this.watched = h("section")
    this.topic = h("input", { autocomplete: "off", spellcheck: "false", oninput: () => { this.receipt.textContent = "" } })
    this.value = h("textarea", { rows: 6, spellcheck: "false", "aria-label": "Value" }, '{\n  "text": "hello"\n}')
    this.receipt = h("span", { class: "soft", role: "status" }, "JSON, or text as it is")
    this.element = h("div", {},
      h("div", { class: "head" }, h("h1", {}, "Live"), span("where", "asked once a second while this page is open")),
      this.tiles,
      h("h2", {}, "Topics"),
      h("div", { class: "card scroll" }, h("table", {}, head("topic", "#subscribers", "!messages/s", "?last minute", "?overflow", ""), this.topics)),
      this.watched,
      h("div", { class: "two" },
        h("section", {}, h("h2", {}, "Publish"), h("div", { class: "card" }, field("topic", this.topic), this.value,
          h("div", { class: "row" }, this.receipt, button("Publish", () => this.publish(), { class: "first" })))),
        h("section", {}, h("h2", {}, "Slowest connections"), h("div", { class: "card scroll" },
          h("table", {}, head("?id", "path", "open", "#pending"), this.slowest)))))
  }

  // Ask now, and then once a second.
  async run() {
    for (;;) {
      if (!document.hidden) {
        try {
          this.take(await (await this.ask("live.json")).json())
        } catch {
          this.last = null
          this.onPulse(null)
        }
      }
      await new Promise(done => setTimeout(done, 1000))
    }
  }

  take(now) {
    const { last } = this
    this.last = now
    const seconds = last && now.at > last.at ? now.at - last.at : 1
    const values = { ...now, deliveries: last ? Math.max(0, now.delivered - last.delivered) / seconds : 0 }
    for (const [name] of TILES) this.past[name] = [...(this.past[name] ?? Array(SECONDS).fill(values[name])).slice(1), values[name]]
    const before = Object.fromEntries(last?.topics.map(topic => [topic.name, topic.messages]) ?? [])
    const rates = new Map()
    for (const { name, messages } of now.topics) {
      const rate = name in before ? Math.max(0, messages - before[name]) / seconds : 0
      rates.set(name, [...(this.rates.get(name) ?? Array(SECONDS).fill(0)).slice(1), rate])
    }
    this.rates = rates
    this.onPulse(values)
    if (this.element.isConnected) this.draw(values)
  }

  draw(now) {
    this.tiles.replaceChildren(...TILES.map(([name, label]) => h("div", { class: "tile" }, h("b", {}, number(now[name])), span("", label), sparkline(this.past[name]))))
    // Rows are kept, so that a button does not lose the focus.
    const rows = new Map([...this.topics.children].map(row => [row.dataset.topic, row]))
    const shown = now.topics.map(topic => {
      const row = rows.get(topic.name) ?? this.topicRow(topic)
      const rate = this.rates.get(topic.name)
      $(".subscribers", row).textContent = number(topic.subscribers)
      $(".rate", row).textContent = rate.at(-1) < 10 ? +rate.at(-1).toFixed(1) : number(rate.at(-1))
      $(".spark", row).replaceChildren(sparkline(rate, "small"))
      return row
    })
    if (shown.some((row, index) => row !== this.topics.children[index]) || !shown.length || shown.length !== this.topics.childElementCount) this.topics.replaceChildren(...(shown.length ? shown : [note(6, "No topic has subscribers.")]))
    this.slowest.replaceChildren(...(now.slowest.length ? now.slowest.map(each => h("tr", {},
      h("td", { class: "mono wide" }, each.id), h("td", { class: "mono" }, each.path), h("td", { class: "soft" }, age(now.at - each.since)), h("td", { class: "n" }, number(each.queued))))
      : [note(4, "No connection has pending messages.")]))
  }

  topicRow({ name, overflow }) {
    return h("tr", { "data-topic": name }, h("td", { class: "mono" }, name), h("td", { class: "n subscribers" }), h("td", { class: "n wide rate" }),
      h("td", { class: "wide spark" }), h("td", { class: "mono soft wide" }, overflow),
      h("td", { class: "n" }, button("Watch", event => this.watch(name, event.currentTarget), { class: "plain" })))
  }

  async watch(name, pressed) {
    const isSame = this.watching === name
    this.stop?.()
    if (isSame) return
    const abort = new AbortController()
    this.watching = this.topic.value = name
    pressed.textContent = "Stop"
    this.stop = () => {
      abort.abort()
      pressed.textContent = "Watch"
      this.watching = this.stop = null
      this.watched.replaceChildren()
    }
    this.log.clear()
    this.watched.replaceChildren(h("h2", {}, "Messages of ", h("code", {}, name)), this.log.element)
    try {
      const response = await this.ask(`watch?topic=${encodeURIComponent(name)}`, { signal: abort.signal })
      await readEvents(response, ({ data }) => this.log.put("↓", data))
    } catch { /* Stopped, or the server has ended. */ }
    if (!abort.signal.aborted) this.log.put("•", "The server has ended this.", true)
  }

  async publish() {
    try {
      const response = await this.ask("publish", { method: "POST", body: JSON.stringify({ topic: this.topic.value, text: this.value.value }) })
      const answer = await response.json()
      this.receipt.textContent = answer.error ?? `reached ${number(answer.subscribers)} subscriber${answer.subscribers === 1 ? "" : "s"}`
    } catch (error) {
      this.receipt.textContent = error.message
    }
  }
}

// "#": a number; "?": only where there is room; "!": both.
const head = (...names) => h("thead", {}, h("tr", {}, names.map(name => h("th", { class: { "#": "n", "?": "wide", "!": "n wide" }[name[0]] }, name.replace(/^[#?!]/, "")))))
const note = (columns, text) => h("tr", {}, h("td", { colspan: columns, class: "soft" }, text))
const age = seconds => seconds < 100 ? `${Math.round(seconds)} s` : seconds < 6000 ? `${Math.round(seconds / 60)} min` : `${Math.round(seconds / 3600)} h`
