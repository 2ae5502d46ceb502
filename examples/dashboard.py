"""
Dashboard: live charts of the server itself. A page that was away gets the samples that it missed.

    microws run examples/dashboard.py --workers 4

Then open http://127.0.0.1:8000/ and press the buttons: "Unplug" leaves a hole in the charts, which is filled when the
page is back. Kill a worker: its line ends, and another one begins. All samples that the history has:

    microws connect "ws://127.0.0.1:8000/live?since=start"
"""

import os
import time
from itertools import count

import anyio

from microws import App

STEP = 0.25  # seconds between two readings of a worker

app = App(threads=2)
app.topic("samples", history=1000, ttl=120)  # one for each worker and second, for the charts
app.topic("now", history=100, ttl=2, overflow="latest", key="worker")  # only the newest reading of each worker


class Meter:
    """What this worker has done since the last reading."""

    def __init__(self):
        self.before = self.counters()
        self.late = 0

    @staticmethod
    def counters():
        return time.monotonic(), time.process_time(), app.hub.statistics().delivered

    def read(self):
        after = self.counters()
        seconds, cpu, messages = (new - old for new, old in zip(after, self.before, strict=True))
        values = {
            "cpu": round(100 * cpu / seconds, 1),
            "late": round(1000 * self.late, 1),
            "connections": app.hub.statistics().connections,
            "messages": round(messages / seconds, 1),
        }
        self.before, self.late = after, 0
        return values


@app.on_startup
async def start():
    app.start_soon(measure)


async def measure():
    worker, numbers, now, second = os.getpid(), count(), Meter(), Meter()
    sampled = int(time.time())
    while True:
        due = (round(time.time() / STEP) + 1) * STEP
        await anyio.sleep(due - time.time())
        late = max(0, time.time() - due)  # how long other tasks have kept the event loop
        now.late, second.late = late, max(late, second.late)
        await app.publish("now", {"worker": worker, **now.read()})
        if int(due) > sampled:
            sampled = int(due)
            await app.publish("samples", {"worker": worker, "number": next(numbers), "time": sampled, **second.read()})


# The page names the positions of both topics when it comes back: ?since=POSITION_POSITION. A new page says "start".
@app.websocket_route("/live", send_type="json", subscribe=["samples", "now"])
async def live(ws):
    async with ws:
        await ws.wait_closed()


@app.post("/work")
def work():
    end = time.monotonic() + 2
    while time.monotonic() < end:
        sum(range(10_000))
    return {"worker": os.getpid()}


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Dashboard</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --paper: light-dark(#f3f5f8, #101319); --card: light-dark(#fff, #191d25);
          --ink: light-dark(#1a1d24, #eceef2); --quiet: light-dark(#565c69, #a3aaba);
          --edge: light-dark(#dce0e7, #2b313d);
          --good: light-dark(#177a4c, #4fd08f); --bad: light-dark(#b3261e, #ff8a80);
          --away: light-dark(#9a5b00, #ffb84d); }
  body { max-width: 76rem; margin: 0 auto; padding: 1.25rem 1rem; font: 1rem/1.4 system-ui, sans-serif;
         color: var(--ink); background: var(--paper); }
  header, header div, dl, dl div { display: flex; gap: .5rem 1rem; align-items: center; flex-wrap: wrap; }
  header div { gap: .5rem; }
  dl { gap: .3rem .9rem; font-size: .9rem; }
  h1, h2, p, dl, dd { margin: 0; }
  h1 { font-size: 1.5rem; letter-spacing: -.01em; }
  h2 { font-size: .95rem; }
  [role=status] { flex: 1 0 auto; }
  [role=status]::before { content: "● "; color: var(--bad); }
  .connected [role=status]::before { color: var(--good); }
  button { padding: .4rem .65rem; font: inherit; font-size: .85rem; font-weight: 600; color: inherit; cursor: pointer;
           border: 1px solid var(--edge); border-radius: .6rem; background: var(--card); }
  button:hover:enabled { border-color: currentcolor; }
  button:disabled { opacity: .5; cursor: default; }
  button[aria-pressed=true] { color: var(--card); background: var(--ink); }
  :focus-visible { outline: 3px solid var(--good); outline-offset: 2px; }
  main { display: grid; gap: 1rem; margin: 1rem 0;
         grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
  figure { margin: 0; }
  figure, .workers { padding: 1rem; border: 1px solid var(--edge); border-radius: .9rem; background: var(--card); }
  figcaption { display: flex; gap: 0 .6rem; align-items: baseline; flex-wrap: wrap; margin-bottom: .6rem; }
  figcaption b { font-size: 1.7rem; line-height: 1; font-variant-numeric: tabular-nums; }
  figcaption span, .axis, th { font-size: .85rem; font-weight: normal; color: var(--quiet); }
  figcaption h2 { flex: 1 0 100%; margin-bottom: .3rem; }
  .plot { position: relative; height: 8rem; border-radius: .3rem; touch-action: pan-y; cursor: crosshair;
          border-bottom: 1px solid var(--edge);
          background: linear-gradient(var(--edge) 1px, #0000 1px) 0 0 / 100% 50%; }
  .plot span { position: absolute; top: .1rem; left: .2rem; padding: 0 .2rem; font-size: .75rem; color: var(--quiet);
               border-radius: .2rem; background: color-mix(in srgb, var(--card) 75%, #0000); }
  svg { position: absolute; inset: 0; display: block; width: 100%; height: 100%; }
  path { fill: var(--color); fill-opacity: .75; stroke: var(--color); stroke-width: 1.5; }
  path.line { fill: none; stroke-width: 2; }
  path, line { vector-effect: non-scaling-stroke; }
  rect { fill: var(--away); opacity: .2; }
  line { stroke: var(--ink); }
  .axis { display: flex; justify-content: space-between; margin-top: .25rem; }
  .workers { margin-bottom: 1rem; overflow-x: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: .15rem .3rem; text-align: right; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  td:first-child::before { content: ""; display: inline-block; width: .7rem; height: .7rem; margin-right: .5rem;
                           border-radius: .2rem; background: var(--color); }
  dd { font-weight: bold; font-variant-numeric: tabular-nums; }
  .away { color: var(--away); }
  body:not(.connected) :is(figcaption b, tbody) { opacity: .4; }
</style>

<header>
  <h1>Dashboard</h1>
  <p role="status">Connecting …</p>
  <div>
    <button id="work">Work 2 s</button>
    <button id="more" aria-pressed="false">+ 20 WebSockets</button>
    <button id="unplug" disabled>Unplug 5 s</button>
  </div>
</header>
<main></main>
<div class="workers">
  <table>
    <thead><tr><th>Worker<th>CPU<th>Late<th>WebSockets<th>Messages</thead>
    <tbody></tbody>
  </table>
</div>
<dl>
  <div><dt>Samples</dt><dd id="samples">0</dd></div>
  <div><dt class="away">Caught up</dt><dd id="caught">0</dd></div>
  <div><dt>Missing</dt><dd id="missing">0</dd></div>
  <div><dt>Twice</dt><dd id="twice">0</dd></div>
</dl>

<script type="module">
  const SPAN = 120, DELAY = 1.2;  // seconds on a chart; seconds until each worker has sent a sample
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const max = (values) => Math.max(0, ...values);
  const CHARTS = [
    { id: "cpu", title: "CPU", unit: "% of a core", axis: "%", least: 20, join: sum },
    { id: "late", title: "Event loop is late", unit: "ms", axis: "ms", least: 10, join: max, lines: true },
    { id: "connections", title: "WebSockets", unit: "open", axis: "", least: 4, join: sum },
    { id: "messages", title: "Messages", unit: "per second", axis: "", least: 20, join: sum },
  ];
  const counts = { samples: 0, caught: 0, missing: 0, twice: 0 };
  const seconds = new Map();  // second → worker → sample
  const workers = new Map();  // worker → { color, number: that of its last sample, now: its newest reading }
  const positions = { samples: "start", now: "start" };
  const away = [];  // times without a connection: { from, to }
  const $ = (selector) => document.querySelector(selector);
  const hues = [215, 160, 38, 340, 268, 190, 95, 10];
  let clock = Infinity, base, heard, ago = null, changed = true;

  // The time of the server. Samples of the past arrive late, those of now tell the difference.
  const serverTime = () => performance.now() / 1000 - clock;

  function workerOf(id) {
    const hue = hues[workers.size % hues.length];
    if (!workers.has(id)) workers.set(id, { color: `light-dark(hsl(${hue} 75% 42%), hsl(${hue} 80% 66%))` });
    return workers.get(id);
  }

  function keep(sample, openedAt) {
    const worker = workerOf(sample.worker);
    counts.samples++;
    if (sample.number <= worker.number) counts.twice++;
    if (sample.number > worker.number + 1) counts.missing += sample.number - worker.number - 1;
    worker.number = sample.number;
    clock = Math.min(clock, performance.now() / 1000 - sample.time);
    base ??= sample.time;
    if (sample.time < openedAt) counts.caught++;
    if (!seconds.has(sample.time)) seconds.set(sample.time, new Map());
    seconds.get(sample.time).set(sample.worker, sample);
    for (const [name, count] of Object.entries(counts)) $(`#${name}`).textContent = count;
    changed = true;
  }

  // Charts

  const svg = (name, attributes) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    return element;
  };

  for (const chart of CHARTS) {
    const figure = document.createElement("figure");
    figure.innerHTML = `<figcaption><h2></h2><b>–</b><span></span></figcaption>
      <div class="plot" tabindex="0" role="slider" aria-valuemin="-${SPAN}" aria-valuemax="0">
        <svg preserveAspectRatio="none" aria-hidden="true"><g></g><g></g><line y2="100"/></svg><span></span></div>
      <div class="axis"><span>2 minutes ago</span><span>now</span></div>`;
    figure.querySelector("h2").textContent = chart.title;
    chart.value = figure.querySelector("b");
    chart.when = figure.querySelector("figcaption span");
    chart.plot = figure.querySelector(".plot");
    chart.top = chart.plot.querySelector("span");
    chart.svg = chart.plot.querySelector("svg");
    [chart.shapes, chart.bands, chart.cross] = chart.svg.children;
    chart.plot.ariaLabel = `${chart.title}: time to read`;
    chart.plot.onpointermove = ({ offsetX }) => read(SPAN * (1 - offsetX / chart.plot.clientWidth));
    chart.plot.onpointerleave = chart.plot.onblur = () => read(null);
    chart.plot.onkeydown = (event) => {
      const to = { ArrowLeft: (ago ?? 0) + 1, ArrowRight: (ago ?? 0) - 1, Home: SPAN, End: 0, Escape: null }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      read(to);
    };
    $("main").append(figure);
  }

  function read(secondsAgo) {
    ago = secondsAgo === null ? null : Math.min(SPAN, Math.max(0, secondsAgo));
    move();
  }

  const atLeast = (value, least) => {
    const power = 10 ** Math.floor(Math.log10(Math.max(value, least)));
    return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= Math.max(value, least));
  };

  // The seconds that follow each other. Between two runs there is a hole.
  function runsOf(times) {
    const runs = [];
    for (const time of times) {
      if (time - 1 !== runs.at(-1)?.at(-1)) runs.push([]);
      runs.at(-1).push(time);
    }
    return runs;
  }

  function draw() {
    changed = false;
    const times = [...seconds.keys()].sort((a, b) => a - b);
    while (times[0] < serverTime() - SPAN - 5) seconds.delete(times.shift());
    while (away[0]?.to < times[0]) away.shift();
    for (const chart of CHARTS) {
      const values = (time) => [...seconds.get(time).values()].map((sample) => sample[chart.id]);
      const top = atLeast(Math.max(...times.map((time) => chart.join(values(time)))), chart.least);
      const floor = new Map(times.map((time) => [time, 0]));
      const at = (time, value) => `${time - base} ${100 - (100 * value) / top}`;
      const paths = [];
      for (const [id, { color }] of workers) {
        const own = chart.lines ? times.filter((time) => seconds.get(time).has(id)) : times;
        const value = (time) => seconds.get(time).get(id)?.[chart.id] ?? 0;
        const d = runsOf(own).map((run) => {
          if (chart.lines) return `M${run.map((time) => at(time, value(time))).join("L")}`;
          const below = run.map((time) => at(time, floor.get(time))).reverse();
          const above = run.map((time) => at(time, floor.set(time, floor.get(time) + value(time)).get(time)));
          return `M${above.join("L")}L${below.join("L")}Z`;
        });
        if (own.some((time) => seconds.get(time).has(id)))
          paths.push(svg("path", { d: d.join(""), class: chart.lines ? "line" : "", style: `--color: ${color}` }));
      }
      chart.shapes.replaceChildren(...paths);
      chart.top.textContent = `${top} ${chart.axis}`;
    }
  }

  function move() {
    if (base === undefined) return;
    if (changed) draw();
    const end = serverTime() - DELAY, at = Math.round(end - (ago ?? 0)), reading = ago !== null && seconds.get(at);
    const live = [...workers.values()].filter(({ now }) => now && heard - now.arrived < 2000);
    for (const chart of CHARTS) {
      const values = ago === null ? live.map(({ now }) => now) : [...(reading || new Map()).values()];
      chart.value.textContent = values.length ? Math.round(chart.join(values.map((each) => each[chart.id]))) : "–";
      chart.when.textContent = chart.unit + (ago === null ? "" : `, ${Math.round(ago)} s ago`);
      chart.plot.ariaValueNow = -Math.round(ago ?? 0);
      chart.plot.ariaValueText = `${chart.value.textContent} ${chart.when.textContent}`;
      chart.svg.setAttribute("viewBox", `${end - base - SPAN} 0 ${SPAN} 100`);
      for (const name of ["x1", "x2"]) chart.cross.setAttribute(name, at - base);
      chart.cross.style.display = ago === null ? "none" : "";
      chart.bands.replaceChildren(...away.map(({ from, to = serverTime() }) =>
        svg("rect", { x: from - base, width: Math.max(0, to - from), height: 100 })));
    }
    $("tbody").replaceChildren(...live.map(({ color, now }) => {
      const row = document.createElement("tr");
      row.style.setProperty("--color", color);
      const { worker, cpu, late, connections, messages } = now;
      for (const text of [worker, `${Math.round(cpu)} %`, `${Math.round(late)} ms`, connections, Math.round(messages)])
        row.insertCell().textContent = text;
      return row;
    }));
  }
  setInterval(move, matchMedia("(prefers-reduced-motion: reduce)").matches ? 1000 : 100);

  // Connection: microws.v1 gives each message a position. The page sends the last ones when it is back.

  let ws, tries = 0;
  function connect() {
    let openedAt = 0;
    ws = new WebSocket(`live?since=${positions.samples}_${positions.now}`, "microws.v1");
    ws.onopen = () => {
      tries = 0;
      openedAt = serverTime();  // -Infinity for a new page: it has missed nothing
      if (away.length) away.at(-1).to = openedAt;
      setConnected(true, "Connected");
    };
    ws.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      positions[message.topic] = message.id ?? positions[message.topic];
      if (message.topic === "samples" && message.data) keep(message.data, openedAt);
      if (message.topic === "now" && message.data)
        workerOf(message.data.worker).now = { ...message.data, arrived: heard = performance.now() };
    };
    ws.onclose = ({ code, reason }) => {
      if (openedAt) away.push({ from: serverTime() });
      const unplugged = code === 1000, why = `${reason || "no connection"} (${code})`;
      setConnected(false, unplugged ? "Unplugged" : `Disconnected: ${why}. Trying again …`);
      // With a random part, so that not all pages come back at the same moment.
      setTimeout(connect, unplugged ? 5000 : Math.min(10, 2 ** tries++) * (300 + 700 * Math.random()));
    };
  }
  connect();

  function setConnected(connected, text) {
    document.body.classList.toggle("connected", connected);
    $("[role=status]").textContent = text;
    $("#unplug").disabled = !connected;
  }

  $("#work").onclick = () => fetch("work", { method: "POST" });
  $("#unplug").onclick = () => ws.close(1000);
  let more = [];
  $("#more").onclick = ({ target }) => {
    more.forEach((socket) => socket.close());
    more = more.length ? [] : Array.from({ length: 20 }, () => new WebSocket("live"));
    target.ariaPressed = more.length > 0;
  };
</script>
"""
