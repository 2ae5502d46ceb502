"""
Whiteboard: pointers and strokes as binary messages, in rooms for eight people.

    microws run examples/whiteboard.py --workers 4

Then open http://127.0.0.1:8000/ in two windows and draw. http://127.0.0.1:8000/rooms/tea is another room.

Those who come late get the drawing, which is the history of a topic: the newest 5,000 strokes, as long as the log of
the hub has them. --hub local:/tmp/whiteboard keeps it when the server stops.
"""

import secrets

import anyio

from microws import App, RedirectResponse

LIMIT = 8  # people in a room
FULL = 4001  # close code

app = App(max_message_size=8192)
app.add_converter("room", r"[\w-]{1,32}")
app.topic("drawing:*", history=5000)
app.topic("people:*", history=100, ttl=20, overflow="latest", key="id")  # the newest message of each person
app.topic("pointers:*", overflow="latest", key=lambda message: message[:4])  # for a slow client, too


# A message from a page is a kind (1 byte) and an ID (8 bytes). A stroke, and the pointer that draws it, go on with a
# color and a width (1 byte each) and points: x and y (2 bytes each). Others get it behind the ID of a person (4 bytes).
POINTER, STROKE, UNDO, CLEAR = range(4)


def is_valid(message):
    if len(message) == 9:
        return message[0] in (UNDO, CLEAR)
    return len(message) >= 15 and len(message) % 4 == 3 and message[0] in (POINTER, STROKE)


@app.websocket_route("/rooms/{room:room}", receive_type="bytes", send_type="json")
async def board(ws, room):
    person = secrets.token_bytes(4)
    name = ws.query.get("name", "").strip()[:24] or "Guest"

    async def announce(here):
        await app.publish(f"people:{room}", {"id": person.hex(), "name": name, "here": here})

    async def stay():
        while True:
            await announce(True)
            await anyio.sleep(5)

    await ws.subscribe(f"people:{room}", since="start")
    async with ws:
        # Subscribe first, then count the people of all workers: so the limit holds even if two come at once.
        statistics = await app.hub.cluster_statistics()
        if statistics.topics.get(f"people:{room}", 0) > LIMIT:
            await ws.close(FULL, "the room is full")
            return
        await ws.subscribe(f"drawing:{room}", f"pointers:{room}", since={f"drawing:{room}": "start"})
        await ws.send({"you": person.hex(), "limit": LIMIT})
        ws.start_soon(stay)
        try:
            async for message in ws:
                if not is_valid(message):
                    await ws.close(1007, "expected a pointer, a stroke, undo or clear")
                elif message[0] == POINTER:
                    await ws.publish(f"pointers:{room}", person + message)
                else:  # a page sends it again when it reconnects, and the key makes sure that it is there once
                    await app.publish(f"drawing:{room}", person + message, key=message[:9].hex())
                await anyio.sleep(0.01)  # a page that sends more than 100 messages in a second waits
        finally:
            await announce(False)


@app.get("/rooms/{room:room}")
async def page(room):
    return PAGE


@app.get("/")
async def lobby(request):
    return RedirectResponse(request.url_for("page", room="lobby"))


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Whiteboard</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --desk: light-dark(#eceff4, #0e1014); --paper: light-dark(#fff, #1b1e25);
          --ink: light-dark(#1a1d24, #f0f1f4); --quiet: light-dark(#565c69, #a6adbb);
          --edge: light-dark(#d5dae2, #323844);
          --good: light-dark(#177a4c, #4fd08f); --bad: light-dark(#b3261e, #ff8a80); }
  body { width: min(100% - 2rem, (100vh - 11rem) * 1.5); min-width: min(100% - 2rem, 30rem); margin: 0 auto;
         padding: .8rem 0; font: 1rem/1.4 system-ui, sans-serif; color: var(--ink); background: var(--desk); }
  header, footer, fieldset, ul, label { display: flex; gap: .5rem; align-items: center; flex-wrap: wrap; }
  h1, p, ul, fieldset { margin: 0; padding: 0; border: 0; }
  h1 { font-size: 1.4rem; overflow-wrap: anywhere; }
  header, footer { gap: .5rem 1.2rem; min-height: 3rem; }
  [role=status]::before { content: "● "; color: var(--bad); }
  .connected [role=status]::before { color: var(--good); }
  ul { margin: .3rem 0 .7rem; list-style: none; }
  li, #count { padding: .1rem .6rem; font-size: .9rem; border-radius: 1rem; }
  li { max-width: 12rem; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; color: #fff;
       background: var(--color); }
  #count { padding-left: 0; color: var(--quiet); }
  input[name=name], button { padding: .35rem .7rem; font: inherit; color: inherit; border: 1px solid var(--edge);
                             border-radius: .6rem; background: var(--paper); }
  input[name=name] { width: 6.5rem; margin-left: auto; }
  button { font-weight: 600; cursor: pointer; }
  button:hover:enabled { border-color: currentcolor; }
  button:disabled { opacity: .5; cursor: default; }
  :focus-visible, label:has(:focus-visible) { outline: 3px solid var(--good); outline-offset: 2px; }
  #board { position: relative; overflow: hidden; aspect-ratio: 3 / 2; touch-action: none; cursor: crosshair;
           border: 1px solid var(--edge); border-radius: .9rem; background: var(--paper);
           background-image: radial-gradient(var(--edge) 1px, #0000 1.5px); background-size: 1.5rem 1.5rem; }
  canvas { position: absolute; inset: 0; width: 100%; height: 100%; }
  .pointer { position: absolute; max-width: 9rem; padding: 0 .4rem; overflow: hidden; font-size: .8rem;
             white-space: nowrap; text-overflow: ellipsis; color: #fff; background: var(--color);
             border-radius: 0 .6rem .6rem; pointer-events: none; transition: left 60ms linear, top 60ms linear; }
  #pen { width: 1rem; height: 1rem; padding: 0; border: 2px solid var(--ink); border-radius: 50%; background: none;
         translate: -50% -50%; }
  #pen.down { background: var(--ink); }
  footer { margin-top: .7rem; }
  footer fieldset { gap: .4rem; }
  footer label { position: relative; justify-content: center; width: 2rem; height: 2rem; border-radius: 50%; }
  footer input { position: absolute; inset: 0; margin: 0; opacity: 0; cursor: pointer; }
  footer i { width: 1.4rem; height: 1.4rem; border-radius: 50%; background: currentcolor; }
  footer label:has(:checked) { box-shadow: 0 0 0 2px var(--desk), 0 0 0 4px var(--ink); }
  footer .eraser i { box-sizing: border-box; border: 2px dashed var(--quiet); background: var(--paper); }
  footer div { display: flex; gap: .5rem; margin-left: auto; }
  [hidden] { display: none; }
  @media (prefers-reduced-motion: reduce) { .pointer { transition: none; } }
</style>

<header>
  <h1>Whiteboard</h1>
  <p role="status">Connecting …</p>
  <input name="name" aria-label="Your name" placeholder="Your name" maxlength="24" autocomplete="nickname">
</header>
<ul aria-label="People"></ul>
<div id="board" tabindex="0" role="application" aria-label="Drawing: the arrow keys move the pen, the space bar draws">
  <canvas></canvas><canvas></canvas>
  <div id="pen" class="pointer" hidden></div>
</div>
<footer>
  <fieldset id="colors" aria-label="Color"></fieldset>
  <fieldset id="widths" aria-label="Width"></fieldset>
  <div>
    <button id="undo" disabled>Undo</button>
    <button id="clear">Clear</button>
  </div>
</footer>

<script type="module">
  const POINTER = 0, STROKE = 1, UNDO = 2, CLEAR = 3, FULL = 4001;
  const COLORS = { Ink: "var(--ink)", Red: "light-dark(#d9342b, #ff6b61)", Orange: "light-dark(#e07b00, #ffab3d)",
                   Green: "light-dark(#1c9456, #45d68b)", Blue: "light-dark(#2563eb, #6ea2ff)",
                   Purple: "light-dark(#8b3fd9, #c08bff)", Eraser: "var(--quiet)" };
  const WIDTHS = { Thin: 3, Medium: 8, Thick: 22 };  // thousandths of the board
  const ERASER = 6, LONGEST = 1500;  // points of one message
  const $ = (selector) => document.querySelector(selector);
  const board = $("#board"), pen = $("#pen"), name = $("[name=name]");
  const [done, live] = document.querySelectorAll("canvas");
  const strokes = new Map();  // those of the drawing, in its order
  const pending = new Map();  // my messages that have not come back yet
  const people = new Map();
  const mine = [], undone = new Set();
  let ws, me, limit = 0, tries = 0, painted = 0, current = null, at = [.5, .5], moved = [];
  let stale = false, whole = true, fresh = true;  // the drawing is that of the last connection; paint all; paint at all

  document.title = $("h1").textContent = decodeURIComponent(location.pathname.split("/").pop());
  name.value = localStorage.getItem("name") ?? "";

  // Messages

  const hexOf = (bytes) => [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  const bytesOf = (hex) => hex.match(/../g).map((byte) => parseInt(byte, 16));
  const newId = () => hexOf(crypto.getRandomValues(new Uint8Array(8)));

  function encode(kind, id, stroke, points = stroke?.points) {
    const head = [kind, ...bytesOf(id), ...(stroke ? [stroke.color, stroke.width] : [])];
    const numbers = (points ?? []).flat().map((part) => Math.round(65535 * part));
    return new Uint8Array([...head, ...numbers.flatMap((number) => [number >> 8, number & 255])]);
  }

  function decode(buffer) {
    const bytes = new Uint8Array(buffer), view = new DataView(buffer), points = [];
    for (let index = 15; index + 3 < bytes.length; index += 4)
      points.push([view.getUint16(index) / 65535, view.getUint16(index + 2) / 65535]);
    const stroke = { color: bytes[13] % (ERASER + 1), width: Math.min(bytes[14], 40), points };
    return { person: hexOf(bytes.slice(0, 4)), kind: bytes[4], id: hexOf(bytes.slice(5, 13)), stroke };
  }

  function receive({ person, kind, id, stroke }) {
    pending.delete(`${kind} ${id}`);
    if (kind === POINTER) point(person, id, stroke);
    else renew();
    if (kind === STROKE && !undone.has(id)) strokes.set(id, stroke);
    if (kind === UNDO) whole = strokes.delete(id) || whole;
    if (kind === CLEAR) strokes.clear(), whole = true;
    fresh = true;
  }

  function send(kind, id, stroke) {
    const message = encode(kind, id, stroke);
    pending.set(`${kind} ${id}`, { message, id, stroke });
    if (me) ws.send(message);
    fresh = true;
  }

  // Connection

  function connect() {
    ws = new WebSocket(`${location.pathname}?name=${encodeURIComponent(name.value)}`);
    ws.binaryType = "arraybuffer";
    ws.onopen = () => (stale = true);
    ws.onmessage = ({ data }) => {
      if (typeof data !== "string") return receive(decode(data));
      const message = JSON.parse(data);
      if (message.you) welcome(message);
      else if (message.here) greet(message);
      else people.delete(message.id);
      showPeople();
    };
    ws.onclose = ({ code, reason }) => {
      me = undefined;
      people.clear();
      showPeople();
      const why = code === FULL ? "The room is full" : `Disconnected: ${reason || "no connection"} (${code})`;
      setConnected(false, `${why}. Trying again …`);
      // With a random part, so that not all pages come back at the same moment.
      const wait = code === FULL ? 3000 : code === 1000 ? 0 : Math.min(10, 2 ** tries++) * 500;
      setTimeout(connect, wait * (.5 + Math.random()));
    };
  }

  // The server sends the whole drawing again.
  function renew() {
    if (!stale) return;
    strokes.clear();
    stale = false;
    whole = fresh = true;
  }

  function welcome(message) {
    ({ you: me, limit } = message);
    tries = 0;
    renew();
    setConnected(true, "Connected");
    for (const { message } of pending.values()) ws.send(message);
  }

  function setConnected(connected, text) {
    document.body.classList.toggle("connected", connected);
    $("[role=status]").textContent = text;
  }

  name.onchange = () => {
    localStorage.setItem("name", name.value);
    ws.close(1000);
  };

  // People and their pointers

  const colorOf = (id) => `hsl(${(210 + 137.5 * people.get(id).place) % 360} 60% 32%)`;

  function greet({ id, name }) {
    const taken = [...people.values()].map(({ place }) => place);
    let place = 0;
    while (taken.includes(place)) place++;
    people.set(id, { place, ...people.get(id), name, heard: Date.now() });
  }

  function showPeople() {
    const count = document.createElement("li");
    count.id = "count";
    count.textContent = limit ? `${people.size} of ${limit} people` : "";
    $("ul").replaceChildren(count, ...[...people].map(([id, person]) => {
      const item = document.createElement("li");
      item.textContent = person.name + (id === me ? " (you)" : "");
      item.style.setProperty("--color", colorOf(id));
      return item;
    }));
    for (const label of document.querySelectorAll(".pointer[data-person]"))
      if (!people.has(label.dataset.person)) label.remove();
    fresh = true;
  }

  function point(id, strokeId, stroke) {
    const person = people.get(id);
    if (!person) return;
    if (!person.label?.isConnected) {
      person.label = document.createElement("div");
      person.label.className = "pointer";
      person.label.dataset.person = id;
      person.label.style.setProperty("--color", colorOf(id));
      board.append(person.label);
    }
    person.label.textContent = person.name;
    const [x, y] = stroke.points.at(-1);
    Object.assign(person.label.style, { left: `${100 * x}%`, top: `${100 * y}%` });
    if (person.stroke?.id === strokeId) person.stroke.points.push(...stroke.points);
    else person.stroke = { id: strokeId, ...stroke };
    if (person.stroke.points.length > 2 * LONGEST) person.stroke.points.splice(0, LONGEST);
  }

  // The server says every 5 seconds who is there. A person of a worker that was killed is not mentioned any more.
  setInterval(() => {
    for (const [id, { heard }] of people) if (Date.now() - heard > 15000) people.delete(id), showPeople();
  }, 1000);

  const NOTHING = "0".repeat(16);
  setInterval(() => {
    if (!me || !moved.length) return;
    const pointer = current ?? { color: 0, width: 0 };
    ws.send(encode(POINTER, current?.id ?? NOTHING, pointer, current ? moved.slice(-LONGEST) : moved.slice(-1)));
    moved = [];
  }, 40);

  // Pen

  const checked = (id) => Number($(`#${id} :checked`).value);

  function begin() {
    current = { id: newId(), color: checked("colors"), width: checked("widths"), points: [at] };
    moved = [at];
    pen.classList.add("down");
    fresh = true;
  }

  function move(point) {
    at = point.map((part) => Math.min(1, Math.max(0, part)));
    Object.assign(pen.style, { left: `${100 * at[0]}%`, top: `${100 * at[1]}%` });
    moved.push(at);
    current?.points.push(at);
    if (current?.points.length >= LONGEST) end(), begin();
    fresh = true;
  }

  function end() {
    if (!current) return;
    send(STROKE, current.id, current);
    mine.push(current.id);
    current = null;
    moved = [at];
    pen.classList.remove("down");
    $("#undo").disabled = false;
  }

  const place = ({ clientX, clientY }) => {
    const { left, top, width, height } = live.getBoundingClientRect();
    return [(clientX - left) / width, (clientY - top) / height];
  };
  board.onpointerdown = (event) => {
    if (event.button !== 0 || !event.isPrimary) return;
    board.setPointerCapture(event.pointerId);
    pen.hidden = true;
    end();
    move(place(event));
    begin();
  };
  board.onpointermove = (event) => {
    if (event.isPrimary) for (const each of event.getCoalescedEvents?.() ?? [event]) move(place(each));
  };
  board.onpointerup = board.onpointercancel = (event) => event.isPrimary && end();
  board.onblur = () => (pen.hidden = true, end());
  board.onkeydown = (event) => {
    const [x, y] = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -3], ArrowDown: [0, 3] }[event.key] ?? [];
    const step = event.shiftKey ? .025 : .005;
    if (x !== undefined) move([at[0] + step * x, at[1] + step * y]);
    else if (event.key === " " && !event.repeat) current ? end() : begin();
    else if (event.key === "Escape") end();
    else return;
    pen.hidden = false;
    move(at);
    event.preventDefault();
  };

  function undo() {
    const id = mine.pop();
    $("#undo").disabled = !mine.length;
    if (!id) return;
    undone.add(id);
    whole = strokes.delete(id) || whole;
    send(UNDO, id);
  }
  $("#undo").onclick = undo;
  $("#clear").onclick = () => confirm("Clear the drawing for everyone?") && send(CLEAR, newId());
  document.onkeydown = (event) => {
    if (event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target === name) return;
    event.preventDefault();
    undo();
  };

  function addChoice(id, label, value, color, size) {
    const choice = document.createElement("label");
    choice.innerHTML = `<input type="radio"><i></i>`;
    Object.assign(choice, { title: label, className: label.toLowerCase() });
    const checked = value === 0 || value === WIDTHS.Medium;
    Object.assign(choice.firstChild, { name: id, value, checked, ariaLabel: label });
    Object.assign(choice.lastChild.style, { color, width: size, height: size });
    $(`#${id}`).append(choice);
  }
  Object.entries(COLORS).forEach(([label, color], index) => addChoice("colors", label, index, color, ""));
  for (const [label, width] of Object.entries(WIDTHS))
    addChoice("widths", label, width, "var(--quiet)", `${4 + width}px`);

  // Painting: finished strokes on one canvas, those that are being drawn on another one above it

  function paint(canvas, { color, width, points }) {
    const context = canvas.getContext("2d"), scale = ([x, y]) => [x * canvas.width, y * canvas.height];
    const erases = color === ERASER, swatch = $(`#colors label:nth-child(${color + 1}) i`);
    context.globalCompositeOperation = erases && canvas === done ? "destination-out" : "source-over";
    context.strokeStyle = erases ? getComputedStyle(board).backgroundColor : getComputedStyle(swatch).color;
    context.lineWidth = (width * canvas.width) / 1000;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...scale(points[0]));
    for (let index = 0; index < points.length - 1; index++) {
      const [[x, y], [nextX, nextY]] = [points[index], points[index + 1]].map(scale);
      context.quadraticCurveTo(x, y, (x + nextX) / 2, (y + nextY) / 2);
    }
    context.lineTo(...scale(points.at(-1)));
    context.stroke();
  }

  function frame() {
    requestAnimationFrame(frame);
    if (!fresh) return;
    fresh = false;
    if (whole) done.width = done.width, painted = 0, whole = false;
    [...strokes.values()].slice(painted).forEach((stroke) => paint(done, stroke));
    painted = strokes.size;
    live.width = live.width;
    for (const { id, stroke } of pending.values()) if (stroke && !undone.has(id)) paint(live, stroke);
    for (const { stroke } of people.values())
      if (stroke && stroke.id !== NOTHING && !strokes.has(stroke.id)) paint(live, stroke);
    if (current) paint(live, current);
  }

  function repaint() {
    for (const canvas of [done, live])
      [canvas.width, canvas.height] = [canvas.clientWidth, canvas.clientHeight].map((size) => size * devicePixelRatio);
    whole = fresh = true;
  }
  new ResizeObserver(repaint).observe(board);
  matchMedia("(prefers-color-scheme: dark)").onchange = repaint;

  connect();
  frame();
</script>
"""
