"""
Notifications: each user has a topic, which WebSockets and event streams subscribe to, in every worker.

    microws run examples/notify.py --workers 2 --hub local:/tmp/notify

Then open http://127.0.0.1:8000/ in two windows and log in as "ada". Another program can notify her, too:

    python examples/notify_send.py ada "lunch is ready"

"Log out everywhere" closes all connections of the user. Sessions are in a database, because the workers share them:
examples/notify.db, or the file that NOTIFY_DATABASE names.
"""

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from anyio.to_thread import run_sync

from microws import App, EventStream, HTTPException, JSONResponse

app = App()
app.topic("user:*", history=50, ttl=3600)

DATABASE = os.environ.get("NOTIFY_DATABASE") or Path(__file__).with_suffix(".db")


@app.on_startup
def create_table():
    query("CREATE TABLE IF NOT EXISTS sessions (token TEXT PRIMARY KEY, user TEXT)")


@app.before_request
@app.before_websocket
def load_user(connection):
    found = query("SELECT user FROM sessions WHERE token = ?", connection.cookies.get("session", ""))
    connection.state.user = found[0][0] if found else None


def query(sql, *values):
    with closing(sqlite3.connect(DATABASE)) as database, database:
        return database.execute(sql, values).fetchall()


def user_of(request):
    if request.state.user is None:
        raise HTTPException(401, "log in first")
    return request.state.user


@app.post("/login/{name}")
def login(name):  # an app that is not an example asks for a password
    token = secrets.token_urlsafe()
    query("INSERT INTO sessions VALUES (?, ?)", token, name)
    response = JSONResponse({"user": name})
    response.set_cookie("session", token, httponly=True)
    return response


@app.post("/logout")
async def logout(request):
    user = user_of(request)
    await run_sync(query, "DELETE FROM sessions WHERE user = ?", user)
    return {"connections": await app.disconnect(topic=f"user:{user}", code=4401, reason="logged out")}


@app.post("/notify/{name}")
async def notify(request, name):
    await app.publish(f"user:{name}", {"from": user_of(request), "text": await request.text()})


@app.websocket_route("/ws")
async def socket(ws):
    if ws.state.user is not None:
        await ws.subscribe(f"user:{ws.state.user}", since=ws.query.get("since"))
        await run_sync(load_user, ws)  # again, because the user may have logged out meanwhile
    async with ws:
        if ws.state.user is None:
            await ws.close(4401, "log in first")
        await ws.wait_closed()


@app.get("/events")
async def events(request):
    return EventStream(app.stream(f"user:{user_of(request)}"))


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Notifications</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; }
  body { max-width: 50rem; margin: 2rem auto; padding: 0 1rem; font: 1rem/1.5 system-ui, sans-serif; }
  header { display: flex; gap: 0 1rem; align-items: baseline; justify-content: space-between; flex-wrap: wrap; }
  h1 { margin: .5rem 0; }
  h2 { margin: 0; font-size: 1rem; }
  main { display: grid; gap: 1rem; margin: 1rem 0; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); }
  main p { margin: 0; }
  section [role=status]::before { content: "● "; color: #d33; }
  section.connected [role=status]::before { color: #2a4; }
  [role=log] { min-height: 14rem; padding: 0; list-style: none; }
  li { margin: .5rem 0; padding: .5rem 1rem; overflow-wrap: anywhere; animation: arrive .4s;
       border-left: .3rem solid #2a7; border-radius: .3rem; background: #8882; }
  li.gap { border-color: #e80; }
  li strong { display: block; }
  @keyframes arrive { from { opacity: 0; transform: translateX(2rem); } }
  form { display: flex; gap: .5rem; flex-wrap: wrap; }
  input { flex: 1; min-width: 6rem; }
  input, button { padding: .4rem .8rem; font: inherit; border: 1px solid #8888; border-radius: .5rem; }
  [hidden] { display: none; }
</style>

<header>
  <h1>Notifications</h1>
  <button id="logout" hidden>Log out everywhere</button>
</header>
<form id="login" hidden>
  <input name="user" aria-label="Your name" placeholder="Your name" required maxlength="32"> <button>Log in</button>
</form>
<main hidden>
  <section id="socket">
    <h2>WebSocket</h2>
    <p role="status">Connecting …</p>
    <ol role="log" aria-label="Notifications over the WebSocket"></ol>
  </section>
  <section id="events">
    <h2>Server-sent events</h2>
    <p role="status">Connecting …</p>
    <ol role="log" aria-label="Notifications as server-sent events"></ol>
  </section>
</main>
<form id="send" hidden>
  <input name="to" aria-label="To" placeholder="To" required>
  <input name="text" aria-label="Text" placeholder="Text" required autocomplete="off"> <button>Notify</button>
</form>

<script type="module">
  const main = document.querySelector("main");
  const [login, send] = document.forms;
  const logout = document.querySelector("#logout");

  function setConnected(id, connected, text) {
    const section = document.getElementById(id);
    section.classList.toggle("connected", connected);
    section.querySelector("[role=status]").textContent = text;
  }

  function show(id, { from, text }, isGap = false) {
    const line = document.createElement("li");
    const who = document.createElement("strong");
    who.textContent = from;
    line.append(who, text);
    line.classList.toggle("gap", isGap);
    document.querySelector(`#${id} [role=log]`).prepend(line);
  }

  const showGap = (id) => show(id, { from: "Gap", text: "Some notifications are missing." }, true);

  function showLoggedIn(isLoggedIn) {
    main.hidden = send.hidden = logout.hidden = !isLoggedIn;
    login.hidden = isLoggedIn;
  }

  // microws.v1: each message has a topic and an id. The page sends the last id when it connects again.
  let last = "";
  function connect() {
    const ws = new WebSocket(`ws?since=${last}`, "microws.v1");
    ws.onopen = () => setConnected("socket", true, "Connected");
    ws.onmessage = ({ data }) => {
      showLoggedIn(true);
      const message = JSON.parse(data);
      if (message.gap || (message.recovered === false && last)) showGap("socket");
      if (message.data) show("socket", message.data);
      last = message.id ?? last;
    };
    ws.onclose = ({ code, reason }) => {
      setConnected("socket", false, `Disconnected: ${reason || "no connection"} (${code})`);
      if (code === 4401) showLoggedIn(false);
      else setTimeout(connect, 500 + 1000 * Math.random());
    };
  }

  // The same with server-sent events: the browser does it all.
  function listen() {
    const source = new EventSource("events");
    source.onopen = () => setConnected("events", true, "Connected");
    source.onerror = () => setConnected("events", false, "Disconnected");
    source.onmessage = ({ data }) => show("events", JSON.parse(data));
    source.addEventListener("gap", () => showGap("events"));
  }

  function start() {
    last = "";
    connect();
    listen();
  }

  login.onsubmit = async (event) => {
    event.preventDefault();
    await fetch(`login/${encodeURIComponent(login.user.value)}`, { method: "POST" });
    start();
  };
  logout.onclick = () => fetch("logout", { method: "POST" });
  send.onsubmit = (event) => {
    event.preventDefault();
    fetch(`notify/${encodeURIComponent(send.to.value)}`, { method: "POST", body: send.text.value });
    send.text.value = "";
  };
  start();
</script>
"""
