// An exchange as a test in Python.

// Text stays as the server wrote it, because JavaScript would round its numbers.
const CONSTANTS = { true: "True", false: "False", null: "None" }
export const literal = text => text.replace(/"(?:[^"\\]|\\.)*"|\b(?:true|false|null)\b|[:,]|\s+/g, part =>
  part[0] === '"' ? quoted(JSON.parse(part)) : CONSTANTS[part] ?? (part === ":" || part === "," ? `${part} ` : "")).trim()
const quoted = text => (/"/.test(text) && !/['\\\p{C}]/u.test(text) ? `'${text}'` : JSON.stringify(text)).replace(/[\u007f-\u009f\ud800-\udfff\u2028\u2029\ufeff]/gu, each => `\\u${each.charCodeAt(0).toString(16).padStart(4, "0")}`)
const bytes = data => `bytes.fromhex("${[...data].map(byte => byte.toString(16).padStart(2, "0")).join("")}")`

function isJSON(text) {
  try {
    return /^\s*[[{]/.test(text) && JSON.parse(text) !== undefined
  } catch {
    return false
  }
}

// How the test client sends or receives a frame; a text frame on a route with JSON is always JSON.
function frame(data) {
  if (typeof data !== "string") return ["bytes", bytes(data)]
  return isJSON(data) ? ["json", literal(data)] : ["text", quoted(data)]
}

const options = (...given) => given.filter(([, value]) => value).map(([name, value]) => `, ${name}=${value}`).join("")
const headersOf = headers => Object.keys(headers).length ? literal(JSON.stringify(headers)) : ""

export function testOf({ kind, method, target, headers = {}, subprotocols = [], body, answer, entries, close }) {
  const name = `test_${target.split("?")[0].replace(/\W+/g, "_").replace(/^_|_$/g, "").toLowerCase() || "page"}`
  const lines = []
  const imports = new Set(["import pytest"])
  if (kind === "websocket") {
    lines.push(`async with microws_client.websocket(${quoted(target)}${options(["subprotocols", subprotocols.length && JSON.stringify(subprotocols)])}) as ws:`)
    const frames = entries.filter(({ way }) => way !== "•").map(({ way, data }) => {
      const [type, value] = frame(data)
      return way === "↑" ? `await ws.send_${type}(${value})` : `assert await ws.receive_${type}() == ${value}`
    })
    if (close) {
      imports.add("from microws import WebSocketDisconnect")
      frames.push("with pytest.raises(WebSocketDisconnect) as closed:", "    await ws.receive()", `assert closed.value.code == ${close.code}`)
    }
    lines.push(...(frames.length ? frames : ["pass"]).map(line => `    ${line}`))
  } else if (kind === "sse") {
    lines.push(`async with microws_client.stream("GET", ${quoted(target)}${options(["headers", headersOf(headers)])}) as response:`, "    events = response.events()")
    for (const { way, data, event } of entries) if (way === "↓") lines.push("    event = await anext(events)", `    assert (event.event, event.data) == (${quoted(event)}, ${quoted(data)})`)
  } else {
    const json = body && isJSON(body)
    lines.push(`response = await microws_client.${method.toLowerCase()}(${quoted(target)}${options(["headers", headersOf(headers)], [json ? "json" : "content", body && (json ? literal(body) : quoted(body))])})`)
    lines.push(`assert response.status == ${answer.status}`)
    if (answer.text) lines.push(isJSON(answer.text) ? `assert response.json() == ${literal(answer.text)}` : `assert response.text == ${quoted(answer.text)}`)
  }
  return [...imports].sort().reverse().join("\n\n") + `\n\n\n@pytest.mark.anyio\nasync def ${name}(microws_client):\n${lines.map(line => `    ${line}\n`).join("")}`
}
