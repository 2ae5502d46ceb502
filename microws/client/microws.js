/**
 * The client of microws.v1: topics over one connection that comes back by itself. docs/live-protocol.md describes the
 * frames, microws.d.ts the types.
 *
 *     const live = connect("/live")
 *     const chat = live.subscribe("chat:1", { since, load })
 *     chat.on("message", (data, { id }) => show(data))
 *     await chat.publish({ text: "hi" })
 */

// Milliseconds.
const CONNECT = 10_000 // until the first frame
const BEAT = 25_000 // between two signs of life, unless the server says otherwise
const GRACE = 5_000 // for a late sign of life; a connection that lasts longer is stable
const LONGEST = 30_000 // between two attempts

// Close codes after which another connection would not help: a broken rule, a message too big, an error of this client.
const FINAL = /^(100[89]|44)/

// Publishes without an answer, and messages that nobody has taken.
const LIMIT = 1_000

const failure = (code, reason = "") => Object.assign(new Error(`${code} ${reason}`), { code, reason })

const toBase64 = bytes => btoa(Array.from(bytes, byte => String.fromCharCode(byte)).join(""))

const encode = data => (data instanceof Uint8Array ? { base64: toBase64(data) } : { data: data ?? null })

const decode = ({ data, base64 }) =>
  base64 === undefined ? data : Uint8Array.from(atob(base64), character => character.charCodeAt(0))

// crypto.randomUUID exists on https only.
const randomKey = () => toBase64(crypto.getRandomValues(new Uint8Array(18)))

function emitter() {
  const listeners = {}
  return {
    on(event, listener) {
      const all = (listeners[event] ??= new Set()).add(listener)
      return () => all.delete(listener)
    },
    emit(event, ...values) {
      // An async function, so that what it raises is reported, and does not end the connection.
      listeners[event]?.forEach(async listener => listener(...values))
    },
  }
}

export function connect(url, { token } = {}) {
  const address = new URL(url, globalThis.location?.href)
  const topics = new Map() // by name
  const left = new Set() // names; messages of these may still come
  const publishes = new Map() // by number, in their order; they outlive a connection
  const asked = new Map() // topics by the number of the question, on this connection
  const unload = new AbortController()
  const { on, emit } = emitter()
  let number = 0
  let renewed = 0 // when a token was refused
  let timer // of the next attempt
  let tries = 0 // since a connection was stable
  let failed = 0 // attempts since a connection opened; at odd numbers, a stream is tried
  let hasSocket // a WebSocket has opened before

  // The only connection, also while it opens. What another one does has no effect.
  let connection
  let opened // when
  let beat
  let watchdog
  let isProbed // no sign of life since a ping
  let isPosting

  const setState = (state, details = {}) => emit("state", (live.state = state), details)
  const check = () => {
    if (live.state === "closed") throw failure(1000, "closed")
  }
  const canRenew = error => error === 4401 && token?.call && Date.now() - renewed > LONGEST

  async function open() {
    clearTimeout(timer)
    if (connection || live.state === "closed") return
    const mine = (connection = { close() {} })
    setState("connecting")
    watch(CONNECT)
    try {
      const bearer = await (token?.call ? token() : token)
      if (mine === connection) await (failed % 2 > 0 && topics.size ? openStream : openSocket)(mine, bearer)
    } catch ({ name, message }) {
      // A SyntaxError: the token cannot be a subprotocol.
      cut(mine, name === "SyntaxError" ? 4400 : 1006, message)
    }
  }

  function openSocket(mine, bearer) {
    const ws = new WebSocket(address.href.replace(/^http/, "ws"), ["microws.v1", ...(bearer ? ["bearer", bearer] : [])])
    mine.close = () => ws.close()
    ws.onclose = ({ code, reason }) => cut(mine, code, reason)
    ws.onmessage = ({ data }) => {
      if (mine !== connection) return
      const frame = JSON.parse(data)
      if (frame.hello) {
        hasSocket = true
        mine.send = text => ws.send(text)
        setOpen(frame.hello.ping * 1000)
      }
      watch()
      receive(frame)
    }
  }

  async function openStream(mine, bearer) {
    const abort = new AbortController()
    const options = { headers: bearer ? { authorization: `Bearer ${bearer}` } : {}, signal: abort.signal }
    mine.close = () => abort.abort()
    mine.post = body => fetch(address, { ...options, method: "POST", body })
    const source = new URL(address)
    topics.forEach((_, name) => source.searchParams.append("topic", name))
    source.searchParams.set("since", [...topics.values()].map(topic => topic.since).join("_"))
    const response = await fetch(source, options)
    if (!/event-stream/.test(response.headers.get("content-type"))) {
      const { topic, error = 4000 + response.status, reason } = await response.json().catch(() => ({}))
      if (mine !== connection) return
      if (!topics.has(topic) || error > 4499 || canRenew(error)) {
        // Other routes than that of app.live have no events.
        return cut(mine, /440[13]/.test(error) ? error : 1006, reason)
      }
      topics.get(topic).finish(failure(error, reason))
      return restart()
    }
    setOpen()
    // Only a topic with history tells how it begins.
    topics.forEach(topic => topic.since || topic.begin({}))
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
    for (let text = ""; ; ) {
      const { done, value } = await reader.read()
      if (done || mine !== connection) break
      watch()
      const events = (text + value).split("\n\n")
      text = events.pop()
      for (const event of events) {
        const data = event.replace(/^(?!data: ).*\n?|^data: /gm, "")
        if (data) receive(JSON.parse(data))
      }
    }
    cut(mine, 1006)
  }

  function setOpen(seconds = BEAT) {
    opened = Date.now()
    beat = seconds
    setState("open")
    if (connection?.send) topics.forEach(topic => topic.ask())
    publishes.forEach(transmit)
  }

  function drop() {
    clearTimeout(timer)
    clearTimeout(watchdog)
    asked.clear()
    connection?.close()
    connection = opened = isPosting = undefined
  }

  // A stream with other topics.
  function restart() {
    drop()
    timer = setTimeout(open)
  }

  function cut(mine, code, reason = "") {
    if (mine !== connection) return
    if (!opened) failed++
    else if (hasSocket) failed = -2
    if (Date.now() - opened > GRACE) tries = 0
    drop()
    let delay = 0
    if (canRenew(code)) {
      renewed = Date.now()
    } else if (FINAL.test(code)) {
      return stop(code, reason)
    } else {
      // What the server says is spread over all its clients already.
      const hint = /retry=([\d.]+)/.exec(reason)
      delay = hint ? hint[1] * 1000 : Math.random() * Math.min(LONGEST, 1000 * 2 ** tries++)
    }
    timer = setTimeout(open, delay)
    setState("waiting", { code, reason, delay })
  }

  function stop(code, reason) {
    drop()
    unload.abort()
    setState("closed", { code, reason })
    topics.forEach(topic => topic.finish(failure(code, reason)))
    publishes.forEach(publish => publish.reject(failure(code, reason)))
    publishes.clear()
  }

  // Every wait for the server has a limit. After it, a socket gets a last chance: perhaps only this device was asleep.

  function watch(limit) {
    if (!limit) isProbed = false
    clearTimeout(watchdog)
    watchdog = setTimeout(() => connection.send && !isProbed ? probe() : cut(connection, 1006, "timeout"), limit ?? beat + GRACE)
  }

  function probe() {
    isProbed = true
    connection.send('{"ping":1}')
    watch(GRACE)
  }

  function wake() {
    if (!connection) open()
    else if (connection.send && !isProbed) probe()
  }

  const listen = (event, listener) => globalThis.addEventListener?.(event, listener, { signal: unload.signal })
  listen("online", wake)
  listen("offline", wake)
  listen("visibilitychange", () => document.hidden || wake())
  listen("pageshow", ({ persisted }) => persisted && wake())
  // A page in the back/forward cache has no connection.
  listen("pagehide", ({ persisted }) => {
    if (!persisted) return
    drop()
    setState("waiting")
  })

  // Frames

  function receive(frame) {
    const { n, topic: name, id } = frame
    if (n) return answer(n, frame)
    const topic = topics.get(name)
    if (topic) return topic.receive(frame)
    if (left.has(name)) return
    const data = decode(frame)
    if (data !== undefined) emit("message", data, { topic: name, id })
    else if (frame.gap || frame.recovered === false) emit("gap", { topic: name })
  }

  function answer(n, frame) {
    const { id, error, reason } = frame
    const mine = connection
    const topic = asked.get(n)
    const publish = publishes.get(n)
    if (canRenew(error)) return cut(mine, error, reason)
    asked.delete(n)
    if (error === 4503) {
      return setTimeout(() => mine === connection && (topic ? topic.ask() : transmit(publish)), GRACE * Math.random())
    }
    publishes.delete(n)
    if (error) (topic?.finish ?? publish?.reject)?.(failure(error, reason))
    else if (topic) topic.begin(frame)
    else publish?.resolve({ id })
  }

  function transmit({ text }) {
    if (connection.send) connection.send(text)
    else post(connection)
  }

  // One after the other, so that they keep their order.
  async function post(mine) {
    if (isPosting) return
    isPosting = true
    try {
      for (const [n, { text }] of publishes) {
        const response = await mine.post(text)
        const frame = await response.json().catch(() => ({}))
        if (mine !== connection) return
        if (!response.ok) frame.error ??= 4000 + response.status
        // Of a proxy: the server always says more.
        if (frame.error > 4500 && !frame.reason) throw failure(1006)
        answer(n, frame)
        if (publishes.has(n)) break
      }
      isPosting = false
    } catch ({ message }) {
      cut(mine, 1006, message)
    }
  }

  function makeTopic(name, { since, load } = {}) {
    const { on, emit } = emitter()
    const members = new Map()
    let begunIn // the connection
    let held // messages that are younger than what load() gets
    let end

    // What load() returns has the messages before its call, so those held until now are of no use.
    async function lose() {
      emit("gap")
      if (!load) return
      const isLoading = held
      held = []
      if (isLoading) return
      for (let current; held && held !== current; ) {
        current = held
        try {
          await load()
        } catch (error) {
          emit("error", error)
          current = await new Promise(resolve => setTimeout(resolve, GRACE * Math.random()))
        }
      }
      held?.forEach(([data, id]) => emit("message", data, { id }))
      held = undefined
    }

    // microws.d.ts has what is public of it.
    const topic = {
      name,
      members,
      on,
      since,
      ask() {
        if (end) return
        asked.set(++number, topic)
        connection.send(JSON.stringify({ n: number, subscribe: name, since: topic.since || undefined }))
      },
      begin({ id, recovered = false }) {
        if (end) return
        const isGap = (topic.since || begunIn) && !recovered
        topic.since = id || topic.since
        if (begunIn === connection) return
        begunIn = connection
        emit("subscribed", { recovered })
        if (isGap) lose()
      },
      receive(frame) {
        const { id, members: all, join, leave, count, end, recovered } = frame
        if (end) {
          topic.finish(failure(end, frame.reason))
        } else if (all || join || leave) {
          if (all) members.clear()
          Object.entries(all ?? join ?? {}).forEach(([key, value]) => members.set(key, value))
          leave?.forEach(key => members.delete(key))
          emit("members", members)
        } else if (count !== undefined) {
          emit("count", count)
        } else if (recovered !== undefined) {
          topic.begin(frame)
        } else if (!id || begunIn === connection) {
          topic.since = id || topic.since
          const data = decode(frame)
          if (frame.gap) lose()
          else if (data === undefined) return
          else if (!held) emit("message", data, { id })
          else if (held.push([data, id]) > LIMIT) lose()
        }
      },
      finish(reason) {
        if (end) return
        topics.delete(name)
        held = undefined
        emit("end", (end = reason))
      },
      publish: (data, options) => live.publish(name, data, options),
      unsubscribe() {
        if (end) return
        left.add(name)
        connection?.send?.(JSON.stringify({ unsubscribe: name }))
        topic.finish(failure(1000, "closed"))
      },
      async *[Symbol.asyncIterator]() {
        const queue = []
        let next
        const stops = [
          on("message", (data, { id }) => {
            if (queue.push({ data, id }) > LIMIT) {
              queue.length = 0
              lose()
            }
            next?.()
          }),
          on("end", () => next?.()),
        ]
        try {
          while (queue.length || !end) {
            if (queue.length) yield queue.shift()
            else await new Promise(resolve => (next = resolve))
          }
          if (end.code !== 1000) throw end
        } finally {
          stops.forEach(stop => stop())
        }
      },
    }
    topics.set(name, topic)
    return topic
  }

  const live = {
    state: "connecting",
    on,
    subscribe(name, options) {
      check()
      if (topics.has(name)) return topics.get(name)
      const topic = makeTopic(name, options)
      left.delete(name)
      if (connection?.post) restart()
      else if (connection?.send) topic.ask()
      return topic
    },
    async publish(topic, data, { key = randomKey() } = {}) {
      check()
      if (publishes.size >= LIMIT) throw failure(4429, "queue full")
      const text = JSON.stringify({ n: ++number, publish: topic, ...encode(data), key })
      return new Promise((resolve, reject) => {
        const publish = { text, resolve, reject }
        publishes.set(number, publish)
        if (opened) transmit(publish)
      })
    },
    send(data) {
      connection?.send?.(JSON.stringify(encode(data)))
      return !!connection?.send
    },
    close() {
      if (live.state !== "closed") stop(1000, "closed")
    },
  }
  // What the page subscribes to at once is part of the first request.
  queueMicrotask(open)
  return live
}
