"""
Ticker: prices as server-sent events. A client that was away gets what it missed, with no code for it in the page.

    microws run examples/ticker.py --workers 2

Then open http://127.0.0.1:8000/ and press "Cut all connections", or kill a worker: the log has its process ID. The
newest price of each symbol, and all ticks that the history has:

    curl -N http://127.0.0.1:8000/prices
    microws connect "ws://127.0.0.1:8000/ws?since=start"
"""

import math
import time
from itertools import count
from random import Random

import anyio

from microws import App, EventStream

app = App()
app.topic("ticks", history=120)  # every tick, for the chart
app.topic("prices", history=100, overflow="latest", key="symbol")  # only the newest price of each symbol

SYMBOLS = {"TEA": 40, "SALT": 12, "WOOL": 75, "AMBER": 310}


@app.on_startup
async def start():
    app.start_soon(tick)


async def tick():
    for step in count(int(time.time())):
        prices = {symbol: price_of(symbol, step) for symbol in SYMBOLS}
        # Each worker runs this task. Only the first message with a key is published, so each tick comes once.
        await app.publish("ticks", {"step": step, "prices": prices}, key=f"{step}")
        for symbol, price in prices.items():
            await app.publish("prices", {"symbol": symbol, "price": price}, key=f"{step} {symbol}")
        await anyio.sleep(max(0, step + 1 - time.time()))


def price_of(symbol, step):
    """The price at a second: the same in each worker."""
    wave = math.sin(step / 17 + len(symbol)) + math.sin(step / 7 * len(symbol) / 4) / 3
    return round(SYMBOLS[symbol] * (1 + wave / 20 + Random(f"{symbol} {step}").gauss(0, 0.004)), 2)


@app.get("/ticks")
async def ticks():
    # A new page gets the history. One that reconnects gets what it missed: the browser sends the id of its last event.
    return EventStream(app.stream("ticks", since="start"))


@app.get("/prices")
async def prices():
    return EventStream(app.stream("prices", since="start"))


@app.websocket_route("/ws", send_type="json", subscribe="ticks")  # ?since=POSITION, or ?since=start
async def socket(ws):
    async with ws:
        await ws.wait_closed()


@app.post("/cut")
async def cut():
    return {"connections": await app.disconnect(topic="ticks", code=1012, reason="cut")}


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Ticker</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --live: light-dark(#18804d, #3c9); --missed: light-dark(#b35c00, #fa3);
          --down: light-dark(#c22, #f66); }
  body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  header, footer { display: flex; gap: 1rem; align-items: center; flex-wrap: wrap; }
  h1, h2, dl { margin: 0; }
  h2 { font-size: 1rem; }
  [role=status]::before { content: "● "; color: var(--down); }
  .connected [role=status]::before { color: var(--live); }
  main { display: grid; gap: 1rem; margin: 1rem 0; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); }
  section { padding: 1rem; border: 1px solid #8886; border-radius: .5rem; }
  section p { margin: 0; font-size: 2rem; font-variant-numeric: tabular-nums; }
  section p.up { color: var(--live); }
  section p.down { color: var(--down); }
  svg { display: block; width: 100%; height: 6rem; overflow: visible; }
  path { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; stroke: var(--live); }
  path.missed { stroke: var(--missed); }
  dl { display: flex; gap: 1.5rem; flex-wrap: wrap; }
  dl div { display: flex; gap: .5rem; }
  dd { margin: 0; font-weight: bold; font-variant-numeric: tabular-nums; }
  .missed-key { color: var(--missed); }
  button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
</style>

<header>
  <h1>Ticker</h1>
  <p role="status">Connecting …</p>
  <button>Cut all connections</button>
</header>
<main></main>
<footer>
  <dl>
    <div><dt>Ticks</dt><dd id="ticks">0</dd></div>
    <div><dt class="missed-key">Caught up</dt><dd id="missed">0</dd></div>
    <div><dt>Gaps</dt><dd id="gaps">0</dd></div>
    <div><dt>Duplicates</dt><dd id="duplicates">0</dd></div>
  </dl>
</footer>

<script type="module">
  const WIDTH = 120;
  const counts = { ticks: 0, missed: 0, gaps: 0, duplicates: 0 };
  const steps = [];
  const cards = new Map();
  let last, openedAt, reconnects = -1;

  function cardOf(symbol) {
    if (!cards.has(symbol)) {
      const card = document.createElement("section");
      card.innerHTML = "<h2></h2><p>–</p><svg preserveAspectRatio='none'></svg>";
      card.querySelector("h2").textContent = symbol;
      document.querySelector("main").append(card);
      cards.set(symbol, card);
    }
    return cards.get(symbol);
  }

  function draw(symbol) {
    const prices = steps.map((tick) => tick.prices[symbol]);
    const low = Math.min(...prices), high = Math.max(...prices);
    const at = (index) => `${index} ${100 - (100 * (prices[index] - low)) / (high - low || 1)}`;
    const svg = cardOf(symbol).querySelector("svg");
    svg.setAttribute("viewBox", `${steps.length - WIDTH} 0 ${WIDTH} 100`);
    const paths = [];
    for (let index = 1; index < steps.length; index++) {
      const { missed } = steps[index];
      if (paths.at(-1)?.missed !== missed) paths.push({ missed, points: [at(index - 1)] });
      paths.at(-1).points.push(at(index));
    }
    svg.replaceChildren(...paths.map(({ missed, points }) => {
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", `M${points.join("L")}`);
      path.classList.toggle("missed", missed);
      return path;
    }));
  }

  function show({ step, prices }) {
    counts.ticks++;
    if (step <= last) counts.duplicates++;
    if (last && step > last + 1) counts.gaps++;
    last = step;
    // What arrives as soon as the connection is open again was published before.
    const missed = reconnects > 0 && performance.now() - openedAt < 200;
    if (missed) counts.missed++;
    steps.push({ prices, missed });
    if (steps.length > WIDTH) steps.shift();
    Object.keys(prices).forEach(draw);
    for (const [name, count] of Object.entries(counts)) document.getElementById(name).textContent = count;
  }

  function setConnected(connected) {
    document.body.classList.toggle("connected", connected);
    document.querySelector("[role=status]").textContent = connected ? "Connected" : "Disconnected. Trying again …";
  }

  // An EventSource reconnects by itself, and then gets what it missed.
  const ticks = new EventSource("ticks");
  ticks.onmessage = ({ data }) => show(JSON.parse(data));
  ticks.onerror = () => setConnected(false);
  ticks.onopen = () => {
    openedAt = performance.now();
    reconnects++;
    setConnected(true);
  };

  new EventSource("prices").onmessage = ({ data }) => {
    const { symbol, price } = JSON.parse(data);
    const line = cardOf(symbol).querySelector("p");
    line.className = price < parseFloat(line.textContent) ? "down" : "up";
    line.textContent = price.toFixed(2);
  };

  document.querySelector("button").onclick = () => fetch("cut", { method: "POST" });
</script>
"""
