"""
Broadcast: every client gets each message that is sent or POSTed, over a WebSocket or as a server-sent event.

    microws run examples/broadcast.py

Then open http://127.0.0.1:8000/ in two windows, and in a second terminal:

    curl -X POST http://127.0.0.1:8000/messages -d '{"text": "hello"}'
    curl -N http://127.0.0.1:8000/events
"""

from microws import App, EventStream, HTTPException

app = App()


@app.websocket_route("/ws", value_type="json", subscribe="messages")
async def socket(ws):
    async with ws:
        async for message in ws:
            await broadcast(message)


@app.post("/messages")
async def post(request):
    receipt = await broadcast(await request.json())
    return {"subscribers": receipt.subscribers}, 202


@app.get("/events")
async def events():
    return EventStream(app.stream("messages"))


async def broadcast(message):
    match message:
        case {"text": str(text)}:
            return await app.publish("messages", {"text": text})
        case _:
            raise HTTPException(400, 'expected {"text": "…"}')


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Broadcast</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  h2 { margin: 0; font-size: 1rem; }
  main { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
  main p { margin: 0; }
  section [role=status]::before { content: "● "; color: #d33; }
  section.connected [role=status]::before { color: #2a4; }
  [role=log] { height: 12rem; padding: .5rem 1rem; overflow: auto; overflow-wrap: anywhere; list-style: none;
               margin: .5rem 0 1rem; border: 1px solid #8886; border-radius: .5rem; }
  form, label { display: flex; gap: .5rem; align-items: center; }
  form { flex-wrap: wrap; }
  label { flex: 1 1 18rem; }
  input { flex: 1; min-width: 0; }
  input, button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
</style>

<h1>Broadcast</h1>
<main>
  <section id="socket">
    <h2>WebSocket</h2>
    <p role="status">Connecting …</p>
    <ol role="log" aria-label="Messages over the WebSocket" tabindex="0"></ol>
  </section>
  <section id="events">
    <h2>Server-sent events</h2>
    <p role="status">Connecting …</p>
    <ol role="log" aria-label="Messages as server-sent events" tabindex="0"></ol>
  </section>
</main>
<form>
  <label>Message <input name="text" required autofocus autocomplete="off"></label>
  <button name="post">POST</button>
  <button name="send" disabled>Send over the WebSocket</button>
</form>
<p id="result" role="status"></p>

<script type="module">
  const form = document.querySelector("form");
  const result = document.querySelector("#result");

  function setConnected(id, connected, text) {
    const section = document.getElementById(id);
    section.classList.toggle("connected", connected);
    section.querySelector("[role=status]").textContent = text;
  }

  function show(id, message) {
    const log = document.querySelector(`#${id} [role=log]`);
    const line = document.createElement("li");
    line.textContent = JSON.parse(message).text;
    log.append(line);
    log.scrollTop = log.scrollHeight;
  }

  let ws;
  function connect() {
    ws = new WebSocket("ws");
    ws.onopen = () => {
      setConnected("socket", true, "Connected");
      form.send.disabled = false;
    };
    ws.onclose = ({ code, reason }) => {
      setConnected("socket", false, `Disconnected: ${reason || "no connection"} (${code}). Trying again …`);
      form.send.disabled = true;
      setTimeout(connect, 500 + 1000 * Math.random());
    };
    ws.onmessage = ({ data }) => show("socket", data);
  }
  connect();

  // An EventSource reconnects by itself.
  const source = new EventSource("events");
  source.onopen = () => setConnected("events", true, "Connected");
  source.onerror = () => setConnected("events", false, "Disconnected. Trying again …");
  source.onmessage = ({ data }) => show("events", data);

  form.onsubmit = async (event) => {
    event.preventDefault();
    const message = JSON.stringify({ text: form.text.value });
    try {
      if (event.submitter === form.send) {
        ws.send(message);
        result.textContent = "Sent over the WebSocket.";
      } else {
        const response = await fetch("messages", { method: "POST", body: message });
        if (!response.ok) throw new Error(`${response.status} ${await response.text()}`);
        result.textContent = `Posted to ${(await response.json()).subscribers} subscribers.`;
      }
      form.reset();
    } catch (error) {
      result.textContent = `Not posted: ${error.message}`;
    }
    form.text.focus();
  };
</script>
"""
