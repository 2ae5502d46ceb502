"""
Poll: votes arrive by POST, and the bars move in every browser.

    microws run examples/poll.py --workers 4

Then open http://127.0.0.1:8000/ in two browsers and vote, or vote in a second terminal:

    curl -X POST -b voter=ada http://127.0.0.1:8000/votes/bread

Each browser has one vote, and may change it: a cookie names the voter. Votes are in a database, because the workers
share them: examples/poll.db, or the file that POLL_DATABASE names.
"""

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

from microws import App, EventStream, HTTPException, Response

QUESTION = "What is a rainy Sunday for?"
CHOICES = {"book": "Reading a book", "bread": "Baking bread", "films": "Watching films", "bug": "Fixing that one bug"}
DATABASE = os.environ.get("POLL_DATABASE") or Path(__file__).with_suffix(".db")

app = App()


@app.on_startup
def create_table():
    query("CREATE TABLE IF NOT EXISTS votes (number INTEGER PRIMARY KEY AUTOINCREMENT, voter UNIQUE, choice)")


def query(sql, *values):
    with closing(sqlite3.connect(DATABASE)) as database, database:
        return database.execute(sql, values).fetchall()


def tally():
    """The votes of each choice, and the number of the newest vote: two workers may publish in another order."""
    rows = query("SELECT choice, count(*), max(number) FROM votes GROUP BY choice")
    return {"votes": {choice: votes for choice, votes, _ in rows}, "newest": max((row[2] for row in rows), default=0)}


@app.get("/poll")
def poll(request):
    mine = query("SELECT choice FROM votes WHERE voter = ?", request.cookies.get("voter", ""))
    return {"question": QUESTION, "choices": CHOICES, "mine": mine[0][0] if mine else None, **tally()}


@app.post("/votes/{choice}")
def vote(request, choice):
    voter = request.cookies.get("voter")
    if not voter:
        raise HTTPException(400, "expected the cookie that the page sets: reload the page")
    if choice not in CHOICES:
        raise HTTPException(404, f"expected one of {', '.join(CHOICES)}")
    query("REPLACE INTO votes (voter, choice) VALUES (?, ?)", voter, choice)
    app.publish_from_thread("tally", tally())


@app.get("/events")
async def events():
    return EventStream(app.stream("tally"))


@app.get("/")
async def page(request):
    response = Response(PAGE)
    if "voter" not in request.cookies:
        response.set_cookie("voter", secrets.token_urlsafe(), max_age=365 * 24 * 3600, httponly=True)
    return response


PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Poll</title>
<link rel="icon" href="data:,">
<style>
  :root { color-scheme: light dark; --paper: light-dark(#f6f4ef, #14151a); --card: light-dark(#fff, #1e2027);
          --ink: light-dark(#1c1d22, #f0efec); --quiet: light-dark(#54565e, #c3c5cd);
          --edge: light-dark(#dddad2, #33363f);
          --good: light-dark(#177a4c, #4fd08f); --bad: light-dark(#b3261e, #ff8a80); }
  body { display: grid; place-items: center; box-sizing: border-box; min-height: 100vh; margin: 0; padding: 1.5rem 1rem;
         font: 1rem/1.4 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
  main { width: min(38rem, 100%); }
  h1 { margin: 0 0 1.5rem; font-size: clamp(1.8rem, 6vw, 2.8rem); line-height: 1.1; letter-spacing: -.02em;
       text-wrap: balance; }
  ul { display: grid; gap: .75rem; margin: 0; padding: 0; list-style: none; }
  button { position: relative; display: grid; grid-template-columns: 1fr auto; gap: .1rem 1rem; width: 100%;
           padding: .9rem 1.1rem; overflow: hidden; font: inherit; color: inherit; text-align: left; cursor: pointer;
           border: 2px solid var(--edge); border-radius: .9rem; background: var(--card); transition: border-color .2s; }
  button::before { position: absolute; inset: 0; content: ""; background: var(--color); opacity: .3;
                   transform: scaleX(var(--share, 0)); transform-origin: left;
                   transition: transform .7s cubic-bezier(.2, .9, .3, 1); }
  button > * { position: relative; }
  button:hover, button[aria-pressed=true] { border-color: var(--color); }
  :focus-visible { outline: 3px solid var(--ink); outline-offset: 3px; }
  .choice { font-size: 1.15rem; font-weight: 600; }
  [aria-pressed=true] .choice::after { content: "Your vote"; margin-left: .6rem; padding: .1rem .5rem;
                                       font-size: .75rem; white-space: nowrap; vertical-align: .1rem;
                                       border-radius: 1rem; color: var(--card); background: var(--ink); }
  .share { grid-row: span 2; align-self: center; font-size: 1.6rem; font-weight: 700;
           font-variant-numeric: tabular-nums; }
  .votes, footer { font-size: .9rem; color: var(--quiet); }
  .leads .share::before { content: "★ "; font-size: 1.1rem; vertical-align: .15rem; color: var(--color); }
  li:nth-child(4n + 1) { --color: light-dark(#e0592a, #ff8f66); }
  li:nth-child(4n + 2) { --color: light-dark(#c98a00, #ffc94d); }
  li:nth-child(4n + 3) { --color: light-dark(#3b6fe0, #7fa8ff); }
  li:nth-child(4n) { --color: light-dark(#1f9d63, #4fd08f); }
  footer { display: flex; gap: .3rem 1.5rem; justify-content: space-between; flex-wrap: wrap; margin-top: 1.2rem; }
  footer p { margin: 0; }
  [role=status]::before { content: "● "; color: var(--bad); }
  .connected [role=status]::before { color: var(--good); }
  [role=alert] { margin: 1rem 0 0; color: var(--bad); }
  @media (prefers-reduced-motion: reduce) { * { transition: none !important; } }
</style>

<main>
  <h1>Poll</h1>
  <ul></ul>
  <p role="alert" hidden></p>
  <footer><p id="total"></p><p role="status">Connecting …</p></footer>
</main>

<script type="module">
  const list = document.querySelector("ul");
  const problem = document.querySelector("[role=alert]");
  const calm = matchMedia("(prefers-reduced-motion: reduce)");
  const tabs = new BroadcastChannel("vote");
  const buttons = new Map();
  let newest = -1;

  function addChoice(id, text) {
    const item = document.createElement("li");
    item.innerHTML = `<button aria-pressed="false"><span class="choice"></span> <span class="share"></span>
                      <span class="votes"></span></button>`;
    item.querySelector(".choice").textContent = text;
    item.querySelector("button").onclick = () => vote(id);
    list.append(item);
    buttons.set(id, item.firstChild);
  }

  function show(tally) {
    if (tally.newest < newest) return;
    newest = tally.newest;
    const counts = [...buttons.keys()].map((id) => tally.votes[id] ?? 0);
    const total = counts.reduce((sum, votes) => sum + votes, 0);
    [...buttons.values()].forEach((button, index) => {
      const votes = counts[index], share = total && votes / total;
      const text = `${votes} ${votes === 1 ? "vote" : "votes"}`;
      const line = button.querySelector(".votes");
      if (line.textContent && line.textContent !== text && !calm.matches)
        button.animate({ scale: [1, 1.015, 1] }, 250);
      line.textContent = text;
      button.querySelector(".share").textContent = `${Math.round(100 * share)} %`;
      button.style.setProperty("--share", share);
      button.classList.toggle("leads", votes > 0 && votes === Math.max(...counts));
    });
    document.querySelector("#total").textContent = `${total} ${total === 1 ? "vote" : "votes"} in total`;
  }

  function mark(mine) {
    buttons.forEach((button, id) => button.setAttribute("aria-pressed", id === mine));
  }

  tabs.onmessage = ({ data }) => mark(data);

  async function load() {
    const poll = await (await fetch("poll")).json();
    document.title = document.querySelector("h1").textContent = poll.question;
    if (!buttons.size) Object.entries(poll.choices).forEach(([id, text]) => addChoice(id, text));
    mark(poll.mine);
    show(poll);
  }

  async function vote(id) {
    const before = [...buttons].find(([, button]) => button.ariaPressed === "true")?.[0];
    mark(id);
    try {
      const response = await fetch(`votes/${encodeURIComponent(id)}`, { method: "POST" });
      if (!response.ok) throw new Error(await response.text());
      problem.hidden = true;
      tabs.postMessage(id);
    } catch (error) {
      mark(before);
      problem.textContent = `Your vote did not arrive: ${error.message}`;
      problem.hidden = false;
    }
  }

  function setConnected(connected) {
    document.body.classList.toggle("connected", connected);
    document.querySelector("[role=status]").textContent = connected ? "Connected" : "Disconnected. Trying again …";
  }

  // The page loads the poll when the stream is open, so that it misses no vote. Browsers come back at random moments.
  function connect() {
    const source = new EventSource("events");
    source.onopen = () => load().then(() => setConnected(true), source.onerror);
    source.onmessage = ({ data }) => show(JSON.parse(data));
    source.onerror = () => {
      source.close();
      setConnected(false);
      setTimeout(connect, 500 + 2000 * Math.random());
    };
  }
  connect();
</script>
"""
