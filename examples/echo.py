"""
Echo: the server returns each message, and the page reconnects by itself.

    microws run examples/echo.py

Then open http://127.0.0.1:8000/ in a browser, or send messages from a second terminal:

    microws connect ws://127.0.0.1:8000/echo
"""

from microws import App

app = App()


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Echo</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { max-width: 40rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  [role=status]::before { content: "● "; color: #d33; }
  .connected [role=status]::before { color: #2a4; }
  [role=log] { height: 16rem; padding: .5rem 1rem; overflow: auto; overflow-wrap: anywhere; list-style: none;
               border: 1px solid #8886; border-radius: .5rem; }
  form, label { display: flex; gap: .5rem; align-items: center; }
  label, input { flex: 1; min-width: 0; }
  input, button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
</style>

<h1>Echo</h1>
<p role="status">Connecting …</p>
<ol role="log" aria-label="Echoes" tabindex="0"></ol>
<form>
  <label>Message <input name="text" required autofocus autocomplete="off"></label>
  <button disabled>Send</button>
</form>

<script type="module">
  const status = document.querySelector("[role=status]");
  const log = document.querySelector("[role=log]");
  const form = document.querySelector("form");
  const button = form.querySelector("button");

  function setConnected(connected, text) {
    document.body.classList.toggle("connected", connected);
    button.disabled = !connected;
    status.textContent = text;
  }

  function connect() {
    const ws = new WebSocket("echo");
    ws.onopen = () => setConnected(true, "Connected");
    ws.onclose = ({ code, reason }) => {
      setConnected(false, `Disconnected: ${reason || "no connection"} (${code}). Trying again …`);
      setTimeout(connect, 500 + 1000 * Math.random());
    };
    ws.onmessage = ({ data }) => {
      const line = document.createElement("li");
      line.textContent = data;
      log.append(line);
      log.scrollTop = log.scrollHeight;
    };
    form.onsubmit = (event) => {
      event.preventDefault();
      ws.send(form.text.value);
      form.reset();
      form.text.focus();
    };
  }

  connect();
</script>
"""
