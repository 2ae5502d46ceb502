"""
A chat behind a login: a password, a session, a ticket for the WebSocket, and a log-out that closes every tab.

    microws dev examples/login.py

Then open http://127.0.0.1:8000/ in several tabs and log in as "ada" with the password "lovelace", or as "grace" with
"hopper". `microws dev` makes a secret. A server needs one of its own, the same for all workers:

    export SECRET=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')
    microws run examples/login.py --workers 2

It needs the extra `sessions`. "Log out" ends the session of this browser, and closes every chat of the user. To end the
sessions of other browsers, too, keep them in a database, as in notify.py.
"""

import os
from hmac import compare_digest

from microws import App, HTTPException

app = App(secret=os.environ.get("SECRET"))

USERS = {"ada": "lovelace", "grace": "hopper"}  # an app that is not an example keeps hashes, in a database


@app.post("/login")
async def login(request):
    form = await request.form()
    name, password = str(form.get("name", "")), str(form.get("password", ""))
    if name not in USERS or not compare_digest(USERS[name].encode(), password.encode()):
        raise HTTPException(401, "wrong name or password")
    request.session["user"] = name


@app.post("/ticket")
async def ticket(request):
    user = request.session.get("user")
    if user is None:
        raise HTTPException(401, "log in first")
    return {"user": user, "ticket": app.ticket(user, path="/chat", ttl=10)}


@app.post("/logout")
async def logout(request):
    user = request.session.pop("user", None)
    if user is not None:
        await app.disconnect(user=user, code=4403, reason="logged out")


@app.websocket_route("/chat", receive_type="text", send_type="json")
async def chat(ws):
    user = (await ws.take_ticket()).value
    ws.tag(user=user)  # for the log-out
    await ws.subscribe("chat")
    async with ws:
        async for text in ws:
            await app.publish("chat", {"from": user, "text": text[:500]})


@app.get("/")
async def page():
    return PAGE


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Chat with a login</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --accent: #276ef1; --line: #8885; --soft: #8882; }
  * { box-sizing: border-box; }
  body { margin: 0 auto; padding: 1rem; max-width: 44rem; font: 1rem/1.5 system-ui, sans-serif; }
  h1 { margin: 0; font-size: 1.5rem; }
  [hidden] { display: none !important; }
  input, button { padding: .6rem .9rem; font: inherit; border: 1px solid var(--line); border-radius: .6rem; }
  input { width: 100%; }
  ::placeholder { color: inherit; opacity: .7; }
  button { background: var(--accent); border-color: transparent; color: #fff; cursor: pointer; }
  button.quiet { background: none; border-color: var(--line); color: inherit; }
  :focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
  #login { display: grid; gap: 1rem; max-width: 22rem; margin: 12vh auto 0; padding: 1.5rem;
           border: 1px solid var(--line); border-radius: 1rem; }
  #login label { display: grid; gap: .25rem; }
  #login p { margin: 0; }
  [role=alert] { min-height: 1.5em; color: light-dark(#b3261e, #ff8a80); }
  main { display: grid; grid-template-rows: auto 1fr auto; gap: 1rem; height: calc(100dvh - 2rem); }
  header { display: flex; gap: 1rem; align-items: center; justify-content: space-between; }
  header p { margin: 0; }
  [role=status]::before { content: "● "; color: #d33; }
  .connected [role=status]::before { color: #2a4; }
  [role=log] { margin: 0; padding: 0 .25rem; overflow: auto; list-style: none; display: flex; gap: .5rem;
               flex-direction: column; }
  li { max-width: 85%; padding: .5rem .9rem; border-radius: .9rem; background: var(--soft); overflow-wrap: anywhere;
       align-self: flex-start; }
  li.own { align-self: flex-end; background: var(--accent); color: #fff; }
  li strong { display: block; font-size: .8rem; }
  #send { display: flex; gap: .5rem; }
</style>

<form id="login" hidden>
  <h1>Log in</h1>
  <label>Name <input name="name" autocomplete="username" required maxlength="32"></label>
  <label>Password <input name="password" type="password" autocomplete="current-password" required></label>
  <button>Log in</button>
  <p role="alert"></p>
</form>
<main hidden>
  <header>
    <div><h1>Chat</h1><p role="status">Connecting …</p></div>
    <button id="logout" class="quiet">Log out</button>
  </header>
  <ol role="log" aria-label="Messages" tabindex="0"></ol>
  <form id="send">
    <input name="text" aria-label="Message" placeholder="Message" required maxlength="500" autocomplete="off">
    <button>Send</button>
  </form>
</main>

<script type="module">
  const main = document.querySelector("main");
  const status = document.querySelector("[role=status]");
  const alert = document.querySelector("[role=alert]");
  const log = document.querySelector("[role=log]");
  const [login, send] = document.forms;
  let ws = null;
  let user = "";

  function show(isLoggedIn, text = "") {
    main.hidden = !isLoggedIn;
    login.hidden = isLoggedIn;
    alert.textContent = text;
    const { name, password } = login.elements;
    (isLoggedIn ? send.text : name.value ? password : name).focus();
  }

  function setStatus(isConnected, text) {
    main.classList.toggle("connected", isConnected);
    status.textContent = text;
  }

  const post = (path, body) => fetch(path, { method: "POST", body });

  // Each connection needs a new ticket, so the page asks for one also when it connects again.
  async function connect() {
    const response = await post("ticket").catch(() => null);
    if (response?.status === 401) return show(false);
    if (!response?.ok) return connectLater();
    const answer = await response.json();
    user = answer.user;
    show(true);
    ws = new WebSocket(`chat?ticket=${answer.ticket}`);
    ws.onopen = () => setStatus(true, `Logged in as ${user}`);
    ws.onmessage = ({ data }) => add(JSON.parse(data));
    ws.onclose = ({ code, reason }) => {
      setStatus(false, "Connecting …");
      if (code === 4403) {
        log.replaceChildren();
        show(false, `You are ${reason}.`);
      } else connectLater();
    };
  }

  const connectLater = () => setTimeout(connect, 500 + 1000 * Math.random());

  function add({ from, text }) {
    const line = document.createElement("li");
    const who = document.createElement("strong");
    who.textContent = from;
    line.append(who, text);
    line.classList.toggle("own", from === user);
    log.append(line);
    line.scrollIntoView();
  }

  login.onsubmit = async (event) => {
    event.preventDefault();
    const response = await post("login", new URLSearchParams(new FormData(login))).catch(() => null);
    if (response?.ok) {
      login.reset();
      connect();
    } else show(false, response?.status === 401 ? "Wrong name or password." : "The server does not answer.");
  };
  send.onsubmit = (event) => {
    event.preventDefault();
    if (ws?.readyState !== WebSocket.OPEN) return;
    ws.send(send.text.value);
    send.text.value = "";
  };
  document.querySelector("#logout").onclick = () => post("logout");
  connect();
</script>
"""
