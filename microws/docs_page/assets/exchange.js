// Try a route: the form, the connection, and what goes over it.

import { $, $$, button, chips, field, h, span, toast } from "./dom.js"
import { Log } from "./log.js"
import { testOf } from "./python.js"
import { exampleText, fieldsOf, messagesOf, exampleOf } from "./schema.js"

const PARAMETER = /\{([^:}]+)[^}]*\}/g
const NO_BODY = ["GET", "HEAD"]

export function tryIt(route, base) {
  const isSocket = route.kind === "websocket", isStream = route.kind === "sse"
  const log = new Log(isSocket ? "Frames appear here, with their times and sizes." : isStream ? "Events appear here." : "The request and its response appear here.")
  let exchange, connection
  const input = (name, properties = {}) => h("input", { name, autocomplete: "off", spellcheck: "false", ...properties })
  const parameters = route.parameters.map(({ name, schema }) => field(name, input(name, { "data-in": "path", value: schema ? exampleOf(schema, name) : "" })))
  const query = route.query ? fieldsOf(route.query.schema).map(({ name, schema, required }) => field(name, input(name, { "data-in": "query", value: required ? exampleOf(schema, name) : "", placeholder: required ? "" : "optional" }))) : []
  const credentials = [["bearer", "bearer token"], ...(isSocket ? [["ticket", "ticket"]] : [])].map(([name, label]) => [route.credentials.includes(name), field(label, input(name))])
  const more = h("details", {}, h("summary", {}, "More"), h("div", { class: "fields" },
    field("query", input("query", { placeholder: "name=anna" })), credentials.map(([isRead, each]) => isRead || each),
    isSocket ? field("subprotocols", input("subprotocols", { value: route.subprotocols.join(", ") }))
      : isStream ? field("Last-Event-ID", input("last-event-id")) : field("header", input("header", { placeholder: "X-Name: value" }))))
  const methods = route.methods?.filter(method => method !== "HEAD") ?? []
  const method = methods.length > 1 ? field("method", h("select", { name: "method" }, methods.map(each => h("option", {}, each)))) : null

  const types = messagesOf(isSocket ? route.receives : route.body)
  const note = h("p", { class: "note", role: "alert" })
  const edit = h("textarea", { name: "payload", rows: 7, spellcheck: "false", "aria-label": isSocket ? "Message" : "Body", oninput: () => { note.textContent = "" } })
  const hasBody = isSocket || methods.some(each => !NO_BODY.includes(each))
  const pick = hasBody && types.length ? chips(types.map(each => each.name), index => { edit.value = exampleText(types[index]) }) : null
  const editor = !hasBody ? [] : [types.length > 1 && pick, edit, note]

  const state = h("p", { class: "state", role: "status" })
  const say = (text, kind = "") => state.replaceChildren(span(`dot ${kind}`), text)
  const go = button(isSocket || isStream ? "Connect" : "Send", () => connection ? connection.close() : start(), { id: "go", class: "first" })
  const send = isSocket ? button("Send", () => sendMessage(), { id: "send", disabled: true }) : null

  function setOpen(isOpen) {
    go.textContent = isOpen ? "Close" : "Connect"
    go.classList.toggle("first", !isOpen)
    if (send) {
      send.disabled = !isOpen
      send.classList.toggle("first", isOpen)
    }
  }

  // A parameter of the path may have the name of a field of this form, such as "query".
  const value = name => $(`[name="${name}"]:not([data-in])`, form)?.value ?? ""

  function target() {
    const path = route.pattern.replace(PARAMETER, (whole, name) => {
      const text = $(`[name="${name}"][data-in="path"]`, form).value
      return whole.includes(":path") ? text.split("/").map(encodeURIComponent).join("/") : encodeURIComponent(text)
    })
    const pairs = new URLSearchParams(value("query"))
    for (const each of $$('[data-in="query"]', form)) if (each.value) pairs.set(each.name, each.value)
    if (value("ticket")) pairs.set("ticket", value("ticket"))
    return path + (pairs.size ? `?${pairs}` : "")
  }

  function headers() {
    const found = {}
    if (value("bearer")) found.Authorization = `Bearer ${value("bearer")}`
    if (value("last-event-id")) found["Last-Event-ID"] = value("last-event-id")
    const at = value("header").indexOf(":")
    if (at > 0) found[value("header").slice(0, at).trim()] = value("header").slice(at + 1).trim()
    return found
  }

  function start() {
    note.textContent = ""
    log.clear()
    say("connecting")
    const open = isSocket ? openSocket : isStream ? openStream : request
    open(target())
  }

  function openSocket(path) {
    const offered = value("subprotocols").split(/[\s,]+/).filter(Boolean)
    if (value("bearer")) offered.push("bearer", value("bearer"))
    exchange = { kind: "websocket", target: path, subprotocols: offered }
    const began = performance.now()
    let socket, isOpen = false
    try {
      socket = new WebSocket(new URL(base + path, location.href.replace(/^http/, "ws")), offered)
    } catch (error) {
      return say(error.message, "off")
    }
    socket.binaryType = "arraybuffer"
    const own = connection = { send: data => socket.send(data), close: () => { own.isOurs = true; socket.close(1000) } }
    setOpen(true)
    if (send) send.disabled = true
    socket.onopen = () => {
      isOpen = true
      setOpen(true)
      say(socket.protocol ? `connected, ${socket.protocol}` : "connected", "on")
      log.put("•", `101, accepted in ${Math.round(performance.now() - began)} ms`)
    }
    socket.onmessage = ({ data }) => {
      const isText = typeof data === "string"
      log.put("↓", isText ? data : new Uint8Array(data), isText && /^\{"type":\s*"error"/.test(data))
    }
    socket.onclose = ({ code, reason }) => {
      if (connection === own) connection = null
      setOpen(false)
      if (!own.isOurs && isOpen) exchange.close = { code }
      const text = isOpen ? `closed ${own.isOurs ? "by you" : "by the server"}, ${code}${reason ? ` ${reason}` : ""}` : "refused: the log of the server says why"
      say(text, "off")
      log.put("•", text, !own.isOurs && code !== 1000)
    }
  }

  function sendMessage() {
    const data = payload(route.receives)
    if (data === undefined || !connection) return
    log.put("↑", data)
    connection.send(data)
  }

  // The text of the editor as a frame or body; says what is wrong with it.
  function payload(type) {
    const text = edit.value
    if (type === "bytes") return new TextEncoder().encode(text)
    if (type && (type === "json" || typeof type === "object")) {
      try {
        JSON.parse(text)
      } catch (error) {
        // It may be sent on purpose, to see what the app does.
        note.textContent = `Not JSON, sent as it is: ${error.message}`
      }
    }
    return text
  }

  async function openStream(path) {
    const given = headers(), abort = new AbortController()
    exchange = { kind: "sse", target: path, headers: given }
    const own = connection = { close: () => { own.isOurs = true; abort.abort() } }
    setOpen(true)
    try {
      const response = await fetch(base + path, { headers: { Accept: "text/event-stream", ...given }, signal: abort.signal })
      log.put("•", `${response.status}, ${response.headers.get("content-type") ?? "no content"}`, !response.ok)
      say(response.ok ? "connected" : `refused, ${response.status}`, response.ok ? "on" : "off")
      await readEvents(response, ({ event, data }) => {
        log.put("↓", data)
        log.entries.at(-1).event = event
      })
      own.end = "ended by the server"
    } catch (error) {
      own.end = own.isOurs ? "closed by you" : error.message
    }
    if (connection === own) connection = null
    say(own.end, "off")
    log.put("•", own.end, !own.isOurs)
    setOpen(false)
  }

  async function request(path) {
    const verb = methods.length > 1 ? value("method") : methods[0], given = headers()
    const body = NO_BODY.includes(verb) || !edit.value ? undefined : payload(route.body)
    if (body !== undefined && messagesOf(route.body).every(({ schema, name }) => schema || name === "json")) given["Content-Type"] ??= "application/json"
    exchange = { kind: "http", method: verb, target: path, headers: headers(), body }
    log.put("•", `${verb} ${path}`)
    if (body) log.put("↑", body)
    const began = performance.now()
    try {
      const response = await fetch(base + path, { method: verb, headers: given, body, redirect: "manual" })
      const text = await response.text(), took = Math.round(performance.now() - began)
      if (response.type === "opaqueredirect") {
        say(`redirects, in ${took} ms`, "on")
        return log.put("•", "The response redirects; a browser does not show to where.")
      }
      exchange.answer = { status: response.status, text }
      say(`${response.status} in ${took} ms`, response.ok ? "on" : "off")
      log.put("•", `${response.status} ${response.statusText}, ${took} ms\n${[...response.headers].map(pair => pair.join(": ")).join("\n")}`, !response.ok)
      if (text) log.put("↓", text, !response.ok)
    } catch (error) {
      say(error.message, "off")
      log.put("•", error.message, true)
    }
  }

  async function copy() {
    if (!exchange || (exchange.kind === "http" && !exchange.answer)) return toast("Nothing to copy yet")
    const text = testOf({ ...exchange, entries: log.entries })
    try {
      await navigator.clipboard.writeText(text)
      toast("Copied as a test")
    } catch {
      log.put("•", text)
      toast("The browser allows no copying: the test is in the log")
    }
  }

  const form = h("div", { class: "card" },
    h("div", { class: "fields" }, method, parameters, query, credentials.map(([isRead, each]) => isRead && each)), more,
    h("div", { class: "row" }, state, go), editor, send && h("div", { class: "row end" }, send),
    h("div", { class: "row" }, log.filter, h("span", {}, button("Copy as test", copy, { class: "plain", id: "copy" }), button("Clear", () => log.clear(), { class: "plain" }))),
    log.element)
  say(isSocket || isStream ? "not connected" : "not sent")
  return { element: form, close: () => connection?.close(), enter: () => (connection && send ? sendMessage() : go.click()) }
}

// WHATWG HTML §9.2.6: the events of a stream.
export async function readEvents(response, onEvent) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = "", event = {}
  for (let part; !(part = await reader.read()).done;) {
    const lines = (rest + part.value).split(/\r\n|\n|\r(?!$)/)
    rest = lines.pop()
    for (const line of lines) {
      if (line === "") {
        if (event.data !== undefined) onEvent({ event: event.event || "message", data: event.data, id: event.id })
        event = {}
      } else if (line[0] !== ":") {
        const [, name, text] = /^([^:]*):? ?(.*)$/.exec(line)
        event[name] = name === "data" && event.data !== undefined ? `${event.data}\n${text}` : text
      }
    }
  }
}
