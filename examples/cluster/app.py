"""
Cluster: servers on several machines behind a proxy, with Redis between them. When a machine dies, its clients go on
with another one and get what they missed there.

    python examples/cluster/demo.py

That starts Redis, two servers and nginx on this machine, kills one side, and prints what clients notice. compose.yaml
does the same with containers. One server alone, with a Redis of your own:

    microws run examples/cluster/app.py --workers 2 --hub redis://127.0.0.1
"""

import os
import socket

from microws import App, EventStream, HTTPException

app = App()
app.topic("messages", history=1000)
app.health()  # /readyz

# Each worker is a process.
PROCESS = f"{os.environ.get('MACHINE') or socket.gethostname()}-{os.getpid()}"


@app.get("/events")
async def events(request):
    # A page cannot read the headers of an event stream, but it can read a cookie.
    headers = {"set-cookie": f"events={PROCESS}"}
    return EventStream(app.stream("messages", since=request.query.get("since", "start")), headers=headers)


@app.websocket_route("/ws", send_type="json", subscribe="messages")  # ?since=POSITION, or ?since=start
async def live(ws):
    async with ws:
        await ws.send({"process": PROCESS})
        await ws.wait_closed()


# With its name as the key, a message is published once, however often it is put. So this is a PUT, not a POST: if a
# server dies before it has responded, the proxy sends it to another one.
@app.put("/messages/{name}")
async def publish(request, name):
    if len(name) > 50:
        raise HTTPException(400, "expected a name of at most 50 characters")
    receipt = await app.publish("messages", {"name": name, "text": await request.text(), "from": PROCESS}, key=name)
    return {"position": receipt.id, "process": PROCESS}


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Cluster</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --live: light-dark(#18804d, #3c9); --missed: light-dark(#b35c00, #fa3);
          --down: light-dark(#c22, #f66); }
  body { max-width: 60rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  h1, h2, p, dl, dd, ol { margin: 0; padding: 0; }
  h2 { font-size: 1rem; }
  main { display: grid; gap: 1rem; margin: 1rem 0; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
  section { min-width: 0; padding: 1rem; border: 1px solid #8886; border-radius: .5rem; }
  [role=status]::before { content: "● "; color: var(--down); }
  .connected [role=status]::before { color: var(--live); }
  dl { display: flex; gap: 0 1.25rem; flex-wrap: wrap; margin: .5rem 0; }
  dl div { display: flex; gap: .5rem; }
  dd { font-weight: bold; font-variant-numeric: tabular-nums; }
  ol { height: 14rem; overflow-y: auto; list-style: none; }
  li { padding: .1rem 0 .1rem .75rem; overflow-wrap: anywhere; border-left: .25rem solid var(--live); }
  li.missed { border-color: var(--missed); }
  li.move { color: var(--missed); border-color: #0000; }
  li.gap { color: var(--down); border-color: #0000; }
  .missed-key { color: var(--missed); }
  form { display: flex; gap: .5rem; flex-wrap: wrap; }
  input { flex: 1; min-width: 8rem; }
  input, button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
  output { flex-basis: 100%; }
</style>

<h1>Cluster</h1>
<main>
  <section id="socket"><h2>WebSocket</h2></section>
  <section id="events"><h2>Server-sent events</h2></section>
</main>
<form>
  <input name="text" aria-label="Message" placeholder="Message" required autocomplete="off"> <button>Send</button>
  <output></output>
</form>

<script type="module">
  // What arrives so soon after a connection is open was published before.
  const SOON = 200;

  function panelOf(id) {
    const section = document.getElementById(id);
    section.insertAdjacentHTML("beforeend", `
      <p role="status">Connecting …</p>
      <dl>
        <div><dt>Messages</dt><dd>0</dd></div>
        <div><dt class="missed-key">Caught up</dt><dd>0</dd></div>
        <div><dt>Twice</dt><dd>0</dd></div>
        <div><dt>Gaps</dt><dd>0</dd></div>
      </dl>
      <ol role="log" tabindex="0" aria-label="Messages"></ol>`);
    const [messages, missed, twice, gaps] = section.querySelectorAll("dd");
    const status = section.querySelector("[role=status]");
    const names = new Set();
    const list = section.querySelector("ol");
    let process, openedAt = Infinity, newest = null;

    function write(text, kind, before = list.firstChild) {
      const line = document.createElement("li");
      line.textContent = text;
      line.className = kind;
      list.insertBefore(line, before);
    }

    return {
      open() {
        section.classList.add("connected");
        if (process) openedAt = performance.now();
        newest = list.firstChild;
      },
      showProcess(name) {
        status.textContent = `Connected to ${name}`;
        if (process && process !== name) write(`${process} → ${name}`, "move", newest);
        process = name;
      },
      close() {
        section.classList.remove("connected");
        status.textContent = "Disconnected. Trying again …";
      },
      show({ name, text, from }) {
        const isMissed = Math.abs(performance.now() - openedAt) < SOON;
        messages.textContent++;
        if (isMissed) missed.textContent++;
        if (names.has(name)) twice.textContent++;
        names.add(name);
        write(`${text} (${from})`, isMissed ? "missed" : "");
      },
      showGap() {
        gaps.textContent++;
        write("Some messages are missing.", "gap");
      },
    };
  }

  // Server-sent events: an EventSource connects again by itself, and gets what it missed. But it gives up if the proxy
  // responds with an error, because no server is there.
  const events = panelOf("events");
  let lastEvent = "start";
  function listen() {
    const source = new EventSource(`events?since=${lastEvent}`);
    source.onopen = () => {
      events.open();
      events.showProcess(document.cookie.match(/events=([^;]*)/)[1]);
    };
    source.onmessage = ({ data, lastEventId }) => {
      lastEvent = lastEventId;
      events.show(JSON.parse(data));
    };
    source.addEventListener("gap", () => events.showGap());
    source.onerror = () => {
      events.close();
      if (source.readyState === EventSource.CLOSED) setTimeout(listen, 500 + 1000 * Math.random());
    };
  }
  listen();

  // WebSocket: microws.v1 gives each message a position. The page names the last one when it connects again.
  const socket = panelOf("socket");
  let last = "start";
  function connect() {
    const ws = new WebSocket(`ws?since=${last}`, "microws.v1");
    ws.onopen = () => socket.open();
    ws.onmessage = ({ data }) => {
      const message = JSON.parse(data);
      if (message.gap || message.recovered === false) socket.showGap();
      if (message.data && message.topic) socket.show(message.data);
      else if (message.data) socket.showProcess(message.data.process);  // from the view
      last = message.id ?? last;
    };
    ws.onclose = () => {
      socket.close();
      setTimeout(connect, 500 + 1000 * Math.random());
    };
  }
  connect();

  const form = document.querySelector("form");
  form.onsubmit = async (event) => {
    event.preventDefault();
    const text = form.text.value, output = form.querySelector("output");
    try {
      const response = await fetch(`messages/${Date.now()}-${Math.random()}`, { method: "PUT", body: text });
      if (!response.ok) throw response.statusText;
      output.textContent = `Sent to ${(await response.json()).process}.`;
      form.reset();
    } catch (error) {
      output.textContent = `Not sent: ${error}`;
    }
  };
</script>
"""
