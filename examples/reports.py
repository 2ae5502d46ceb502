"""
Reports: a hook logs each connection, and a WebSocket requires a token as its first message.

    microws run examples/reports.py

Then open http://127.0.0.1:8000/ in a browser, or run the client in a second terminal:

    python examples/reports_client.py report1

The token is "let-me-in", or the value of REPORTS_TOKEN.
"""

from datetime import UTC, datetime
from functools import wraps
from os import environ
from secrets import compare_digest

from microws import App, CloseCode, PayloadTypeError

TOKEN = environ.get("REPORTS_TOKEN") or "let-me-in"
REPORTS = {"report1": "Report 1", "report2": "Report 2", "report3": "Report 3"}

app = App()


@app.before_websocket
async def log(ws):
    print(f"WebSocket connection on {ws.path}", flush=True)


def requires_token(view):
    """Run ``view`` only if the client sends the token as its first message, within 5 seconds."""

    @wraps(view)
    async def check_token(ws):
        async with ws:
            try:
                token = await ws.receive_text(timeout=5)
            except (TimeoutError, PayloadTypeError):
                token = ""
            if compare_digest(token.encode(), TOKEN.encode()):
                await view(ws)
            else:
                await ws.close(CloseCode.POLICY_VIOLATION, "wrong or missing token")

    return check_token


@app.websocket_route("/reports", send_type="json")
@requires_token
async def reports(ws):
    async for name in ws:
        if name in REPORTS:
            await ws.send({"report": REPORTS[name]})
        else:
            await ws.send({"error": "report not found"})


@app.websocket_route("/echo", send_type="json")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send({"message": message, "date": datetime.now(UTC).isoformat()})


@app.get("/hello")
async def hello():
    return {"hello": "world"}


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Reports</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  h2 { margin: 0; font-size: 1rem; }
  main { display: grid; gap: 1rem 2rem; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
  main p { margin: 0; }
  [role=status]::before { content: "● "; color: #d33; }
  .connected [role=status]::before { color: #2a4; }
  [role=log] { height: 12rem; padding: .5rem 1rem; overflow: auto; overflow-wrap: anywhere; list-style: none;
               margin: .5rem 0 1rem; border: 1px solid #8886; border-radius: .5rem; font-family: monospace; }
  form, label { display: flex; gap: .5rem; align-items: center; }
  label, input { flex: 1; min-width: 0; }
  input, button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
  [hidden] { display: none; }
</style>

<h1>Reports</h1>
<main>
  <section id="reports">
    <h2>/reports</h2>
    <p role="status">Not connected: enter the token</p>
    <ol role="log" aria-label="Reports" tabindex="0"></ol>
    <form id="login">
      <label>Token <input name="token" type="password" required autofocus autocomplete="off"></label>
      <button>Connect</button>
    </form>
    <form class="talk" hidden>
      <label>Report <input name="text" required autocomplete="off" placeholder="report1"></label>
      <button disabled>Ask</button>
    </form>
  </section>
  <section id="echo">
    <h2>/echo</h2>
    <p role="status">Connecting …</p>
    <ol role="log" aria-label="Echoes" tabindex="0"></ol>
    <form class="talk">
      <label>Message <input name="text" required autocomplete="off"></label>
      <button disabled>Send</button>
    </form>
  </section>
</main>

<script type="module">
  const login = document.querySelector("#login");
  const POLICY_VIOLATION = 1008;

  function connect(path, token) {
    const section = document.getElementById(path);
    const form = section.querySelector(".talk");
    const log = section.querySelector("[role=log]");

    function setConnected(connected, text) {
      section.classList.toggle("connected", connected);
      section.querySelector("[role=status]").textContent = text;
      form.querySelector("button").disabled = !connected;
    }

    function show(text) {
      const line = document.createElement("li");
      line.textContent = text;
      log.append(line);
      log.scrollTop = log.scrollHeight;
    }

    const ws = new WebSocket(path);
    ws.onopen = () => {
      if (token) ws.send(token);
      setConnected(true, "Connected");
    };
    ws.onclose = ({ code, reason }) => {
      const why = `${reason || "no connection"} (${code})`;
      if (code === POLICY_VIOLATION) {
        setConnected(false, `Refused: ${why}`);
        showLogin(true);
      } else {
        setConnected(false, `Disconnected: ${why}. Trying again …`);
        setTimeout(connect, 500 + 1000 * Math.random(), path, token);
      }
    };
    ws.onmessage = ({ data }) => show(data);
    form.onsubmit = (event) => {
      event.preventDefault();
      ws.send(form.text.value);
      form.reset();
      form.text.focus();
    };
  }

  function showLogin(shown) {
    const talk = document.querySelector("#reports .talk");
    login.hidden = !shown;
    talk.hidden = shown;
    (shown ? login.token : talk.text).focus();
  }

  login.onsubmit = (event) => {
    event.preventDefault();
    showLogin(false);
    connect("reports", login.token.value);
    login.reset();
  };
  connect("echo");
</script>
"""
