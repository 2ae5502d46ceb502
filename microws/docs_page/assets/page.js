// The page: the routes of an app, one of them shown.

import { $, $$, button, h, number, span } from "./dom.js"
import { tryIt } from "./exchange.js"
import { Live } from "./live.js"
import { documentation, typeText, useSchemas } from "./schema.js"

const GROUPS = [["WebSocket", "websocket"], ["Server-sent events", "sse"], ["HTTP", "http"], ["Other", "mount"]]
const root = document.documentElement, { pattern, token } = root.dataset
// The app may be below a prefix of a proxy.
const base = location.pathname.slice(0, location.pathname.length - pattern.length)
const ask = (path, options = {}) => fetch(new URL(path, import.meta.url), { ...options, headers: { "microws-docs-token": token } })

const app = await (await ask("app.json")).json()
useSchemas(app.schemas)
const labelOf = route => ({ websocket: "WS", sse: "SSE", mount: "APP" })[route.kind] ?? route.methods.find(method => method !== "HEAD") ?? "HEAD"
const idOf = route => `#/${labelOf(route)}${route.pattern}`
const live = token ? new Live(ask, pulse) : null
let shown, tried

function pulse(now) {
  const figure = (value, unit) => span("", h("b", {}, number(value)), ` ${unit}`)
  $("#pulse").replaceChildren(span(now ? "dot on" : "dot off"), ...(now ? [figure(now.connections, "connections"), figure(now.deliveries, "deliveries/s")] : ["not reachable"]))
}

function list() {
  const word = $("#find").value.toLowerCase()
  const link = (href, kind, text, isCurrent) => h("a", { href, "aria-current": isCurrent && "page" }, span(`kind ${kind}`, kind), span("", text))
  const group = (title, links) => links.length ? [h("h3", {}, title), links] : []
  $("#list").replaceChildren(...[
    GROUPS.map(([title, kind]) => group(title, app.routes.filter(route => route.kind === kind && `${route.pattern} ${route.doc ?? ""}`.toLowerCase().includes(word))
      .map(route => link(idOf(route), labelOf(route), route.pattern, route === shown)))),
    live && group("Hub", [link("#/live", "hub", "Live", !shown)]),
    group("Documents", ["asyncapi.json", "openapi.json"].map(name => link(new URL(name, import.meta.url).href, "json", name))),
  ].flat(9).filter(Boolean))
}

const marked = text => text.split(/(\{[^}]*\})/).map(part => part[0] === "{" ? span("type", part) : part)

const CREDENTIALS = { bearer: "bearer token", session: "session cookie", ticket: "ticket" }

function facts(route) {
  const size = bytes => bytes % 1024 ? `${number(bytes)} bytes` : bytes % 1048576 ? `${bytes / 1024} KiB` : `${bytes / 1048576} MiB`
  const invalid = { close: "close with 1003 or 1007, unless the view catches them", skip: "are skipped", error: "are answered with an error message; 100 in a row close with 1008" }
  const rows = route.kind === "websocket" ? [
    ["topics", route.subscribe?.length && route.subscribe.map((topic, index) => [index ? ", " : "", h("code", {}, marked(topic))])],
    ["subprotocols", route.subprotocols?.join(", ")],
    ["invalid messages", invalid[route.on_invalid]],
    ["rate", route.rate && `${route.rate}, then ${route.rate_excess === "close" ? "close with 1008" : "reading pauses"}`],
    ["log in", route.login && "with the first message"],
    ["largest message", size(route.max_size)],
  ] : [
    ["methods", route.methods?.join(", ")],
    ["largest body", route.methods?.some(method => !["GET", "HEAD"].includes(method)) && size(route.max_size)],
  ]
  rows.push(["reads", route.credentials?.map(each => CREDENTIALS[each]).join(", ")])
  return h("dl", {}, rows.filter(([, value]) => value).map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))
}

function describe(route) {
  const part = (title, ...content) => content.flat().some(Boolean) ? [h("h2", {}, title), ...content] : []
  const types = (...values) => documentation(values.filter(value => value != null))
  const rows = route.parameters?.map(({ name, converter, schema }) => h("tr", {}, h("td", { class: "mono" }, name), h("td", { class: "mono type" }, schema ? typeText(schema) : converter), h("td", { class: "soft" }, "path")))
  return h("section", { class: "docs" },
    route.doc?.split(/\n{2,}/).map(text => h("p", {}, text)), facts(route),
    part("Parameters", rows?.length && h("table", {}, rows)),
    part("Query", types(route.query)),
    part("You send", types(route.kind === "websocket" ? route.receives : route.body)),
    part("You get", types(route.kind === "websocket" ? route.sends : route.returns, ...route.delivers)))
}

function show() {
  tried?.close()
  shown = location.hash === "#/live" && live ? null : app.routes.find(route => new URL(idOf(route), location).hash === location.hash) ?? app.routes[0] ?? null
  list()
  root.classList.remove("open")
  $("#menu").setAttribute("aria-expanded", false)
  document.title = `${shown?.pattern ?? "Live"} · ${app.title}`
  tried = null
  if (!shown) return $("#main").replaceChildren(live?.element ?? h("p", {}, "The app has no routes."))
  const place = shown.file && `${shown.file.split(/[\\/]/).at(-1)}:${shown.line}`
  const head = h("div", { class: "head" }, span(`kind ${labelOf(shown)}`, labelOf(shown)), h("h1", {}, marked(shown.pattern)),
    place && span("where", shown.editor ? h("a", { href: shown.editor }, place) : place))
  if (shown.kind === "mount") return $("#main").replaceChildren(head, describe(shown))
  tried = tryIt(shown, base)
  const two = h("div", { class: "two", "data-tab": "docs" }, describe(shown), h("section", { class: "try", "aria-label": "Try it" }, tried.element))
  const tab = (name, text) => button(text, event => {
    two.dataset.tab = name
    for (const each of $$("button", event.currentTarget.parentNode)) each.setAttribute("aria-selected", each === event.currentTarget)
  }, { role: "tab", "aria-selected": name === "docs" })
  $("#main").replaceChildren(head, h("div", { class: "tabs", role: "tablist" }, tab("docs", "Docs"), tab("try", "Try it")), two)
}

function step(by) {
  const places = [...$$("#list a[href^='#']")], at = places.findIndex(link => link.hasAttribute("aria-current"))
  if (places[at + by]) location.hash = places[at + by].hash
}

function useTheme(name) {
  root.dataset.theme = name
  $("#theme").textContent = name === "dark" ? "Light" : "Dark"
}

addEventListener("hashchange", () => {
  show()
  scrollTo(0, 0)
})
addEventListener("keydown", event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault()
    if (tried) tried.enter()
    else live?.publish()
  } else if (event.target.matches("input, textarea, select")) {
    if (event.key === "Escape") event.target.blur()
  } else if (!event.ctrlKey && !event.metaKey && !event.altKey) {
    if (event.key === "/") {
      event.preventDefault()
      $("#find").focus()
    }
    if (event.key === "j" || event.key === "k") step(event.key === "j" ? 1 : -1)
  }
})
$("#find").oninput = list
$("#menu").onclick = () => $("#menu").setAttribute("aria-expanded", root.classList.toggle("open"))
$("#theme").onclick = () => {
  localStorage.microwsTheme = root.dataset.theme === "dark" ? "light" : "dark"
  useTheme(localStorage.microwsTheme)
}
useTheme(localStorage.microwsTheme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"))
show()
live?.run()
