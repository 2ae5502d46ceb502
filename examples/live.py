"""
Live topics: rooms with history, and who is there, over one connection, which comes back by itself.

    microws run examples/live.py

Open http://127.0.0.1:8000/ in two tabs, then stop the server and start it again. /?room=tea&name=Anna is another room.
"""

from microws import App, Response

app = App()
app.topic("room:*", history=100, ttl=3600)
app.live("/live")
app.client_js()


@app.on_subscribe("room:{room}")
async def may_read(connection, room):
    return {"id": connection.query.get("name", "Guest")[:40]} if room.isalnum() else None


@app.on_publish("room:{room}")
async def may_write(connection, room, text):
    return text[:500] if room.isalnum() else None


@app.get("/")
async def page():
    html = """<!doctype html><title>Live</title><link rel="icon" href="data:,"><style>
    :root { color-scheme: light dark; font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }
    body { max-width: 40rem; margin: 2rem auto; padding: 0 1rem } input, button { font: inherit }
    </style><p role="status"></p><ol></ol>
    <form><label>Message <input name="text" required></label> <button>Send</button></form><script type="module">
    import { connect } from "/microws.js"
    const [status, list, form] = ["p", "ol", "form"].map(name => document.querySelector(name))
    const asked = new URLSearchParams(location.search), room = asked.get("room") ?? "lobby"
    const name = asked.get("name") ?? `Guest ${Math.ceil(999 * Math.random())}`
    const live = connect(`/live?name=${encodeURIComponent(name)}`)
    const topic = live.subscribe(`room:${room}`, { since: "start", load: () => location.reload() })
    topic.on("message", text => list.appendChild(document.createElement("li")).textContent = text)
    const show = () => status.textContent = `${room}: ${live.state}: ${[...topic.members.keys()].sort().join(", ")}`
    live.on("state", show)
    topic.on("members", show)
    form.onsubmit = event => { event.preventDefault(); topic.publish(form.text.value); form.reset() }</script>"""
    return Response(html, content_type="text/html")
