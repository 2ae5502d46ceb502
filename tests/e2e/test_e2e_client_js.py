"""``microws.js`` in Chromium, whose network fails: each message arrives once and in order, or the page is told."""

import json
import os
import signal
import sys
import urllib.request
from contextlib import contextmanager

import pytest
from cutting_proxy import Proxy
from servers import HERE
from serving import browsing, running

# One server and one browser for most of them.
pytestmark = pytest.mark.xdist_group("client_js")

# Seconds for what a client does in at most 10, after a random time.
PATIENCE = 25_000

# Counts the WebSockets that are open at the same time.
COUNTING = """
window.most = 0
const sockets = new Set()
window.WebSocket = class extends WebSocket {
  constructor(...values) {
    super(...values)
    sockets.add(this)
    window.most = Math.max(window.most, [...sockets].filter(socket => socket.readyState < 2).length)
  }
}
"""

START = """async ([url, token, topics, since]) => {
  while (!window.connect) await new Promise(resolve => setTimeout(resolve, 10))
  window.got = []
  window.loads = 0
  window.ends = []
  window.states = []
  window.asked = 0
  window.live = connect(url, { token: token && (() => { asked++; return token.shift() ?? "none" }) })
  live.on("state", (state, details) => states.push([state, details.code]))
  window.topics = topics.map(name => {
    const topic = live.subscribe(name, { since, load: () => { loads++ } })
    topic.on("message", data => got.push(data))
    topic.on("end", ({ code }) => ends.push([name, code]))
    return topic
  })
}"""


class Page:
    """A page with a client that subscribes to topics, behind a proxy of its own."""

    def __init__(self, chromium, server):
        self.server = server
        self.proxy = Proxy(server.port)
        self.context = chromium.new_context()
        self.context.set_default_timeout(PATIENCE)
        self.context.add_init_script(COUNTING)
        self.page = self.context.new_page()
        self.problems = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        # The browser itself writes about connections that fail.
        self.page.on(
            "console",
            lambda message: (
                "net::ERR" in message.text or self._is_network(message) or self.problems.append(message.text)
            ),
        )
        self.url = f"http://127.0.0.1:{self.proxy.port}"
        self.page.goto(self.url)

    @staticmethod
    def _is_network(message):
        return message.text.startswith(("WebSocket connection to", "Failed to load resource"))

    def start(self, *topics, url="/live", token=None, since=None):
        self.page.evaluate(START, [url, token, list(topics), since])

    def wait(self, expression):
        self.page.wait_for_function(expression)

    def wait_open(self):
        self.wait("live.state === 'open'")

    def evaluate(self, expression, argument=None):
        return self.page.evaluate(expression, argument)

    def say(self, *values, topic):
        """Publish past the proxy."""
        for value in values:
            post(self.server, f"/say/{topic}", value)

    def wait_for(self, values):
        """Until it has got the last one: then it has all of them, once and in order."""
        self.wait(f"got.at(-1) === {json.dumps(values[-1])}")
        assert self.evaluate("got") == values

    def close(self):
        assert self.evaluate("most") <= 1
        self.context.close()
        self.proxy.close()
        assert self.problems == []


def post(server, path, value):
    request = urllib.request.Request(server.url + path, json.dumps(value).encode())
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


@contextmanager
def serving(*arguments):
    command = [sys.executable, "-m", "microws", "run", "live_page:app", "--port", "0", *arguments]
    with running(command, cwd=HERE) as server:
        yield server
        assert server.stop() == 0
        assert server.find_lines(r"^Traceback| (error|critical) (?!worker \d+ was killed by SIGKILL)") == []


@pytest.fixture(scope="module")
def chromium():
    # Playwright turns the back/forward cache off.
    with browsing(ignore_default_args=["--disable-back-forward-cache"]) as browser:
        yield browser


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture
def open_page(chromium):
    pages = []

    def open_page(server):
        pages.append(Page(chromium, server))
        return pages[-1]

    yield open_page
    for page in pages:
        page.close()


@pytest.fixture
def page(open_page, server):
    return open_page(server)


@pytest.fixture
def topic(request):
    """Another one for each test."""
    return f"chat:{abs(hash(request.node.name))}"


# Interruptions


def test_page_gets_what_it_missed_while_it_was_offline_for_10_s(page, topic):
    page.start(topic)
    page.wait("topics[0].since")
    page.say(0, 1, topic=topic)
    page.wait_for([0, 1])
    page.context.set_offline(True)
    page.proxy.is_silent = True
    page.say(2, 3, topic=topic)
    page.page.wait_for_timeout(10_000)
    page.proxy.cut_all()
    page.proxy.is_silent = False
    page.context.set_offline(False)
    page.say(4, topic=topic)
    page.wait_for([0, 1, 2, 3, 4])
    assert page.evaluate("loads") == 0


def test_frozen_page_gets_what_it_missed(page, topic):
    page.start(topic)
    page.wait("topics[0].since")
    devtools = page.context.new_cdp_session(page.page)
    devtools.send("Page.setWebLifecycleState", {"state": "frozen"})
    page.say(*range(50), topic=topic)
    page.proxy.cut_all()
    page.say(50, topic=topic)
    devtools.send("Page.setWebLifecycleState", {"state": "active"})
    page.wait_for(list(range(51)))
    assert page.evaluate("loads") == 0


def test_page_in_the_back_forward_cache_has_no_connection_and_resumes(page, topic):
    page.start(topic)
    page.wait("topics[0].since")
    page.say(0, topic=topic)
    page.wait_for([0])
    page.evaluate("void addEventListener('pageshow', ({ persisted }) => (window.isRestored = persisted))")
    page.page.goto(f"{page.url}/elsewhere")
    page.say(1, topic=topic)
    # A page from the cache has no load event, for which go_back would wait.
    page.evaluate("setTimeout(() => history.back())")
    page.wait("window.isRestored")
    page.wait_for([0, 1])
    assert page.evaluate("states.map(([state]) => state)") == ["connecting", "open", "waiting", "connecting", "open"]
    assert page.evaluate("loads") == 0


def test_device_that_slept_for_an_hour_connects_again(page, topic):
    page.page.clock.install()
    page.page.reload()
    page.start(topic)
    page.wait("topics[0].since")
    page.proxy.is_silent = True
    page.say(0, topic=topic)
    page.page.clock.fast_forward("01:00:00")
    page.proxy.cut_all()
    page.proxy.is_silent = False
    page.page.clock.fast_forward("10")
    page.page.clock.fast_forward("10")
    page.wait_for([0])
    assert page.evaluate("loads") == 0


def test_page_resumes_behind_another_server_with_the_same_log(open_page, topic, tmp_path):
    hub = ("--hub", f"local:{tmp_path}/log")
    with serving(*hub) as first:
        page = open_page(first)
        page.start(topic)
        page.wait("topics[0].since")
        page.say(0, topic=topic)
        page.wait_for([0])
        page.proxy.target = None
        assert first.stop() == 0
    with serving(*hub) as page.server:
        page.say(1, 2, topic=topic)
        page.proxy.target = page.server.port
        page.wait_for([0, 1, 2])
        assert page.evaluate("loads") == 0


def test_page_loads_its_state_if_another_server_has_no_log(open_page, topic):
    with serving() as first:
        page = open_page(first)
        page.start(topic, "plain:a")
        page.wait("topics[0].since")
    with serving() as page.server:
        page.proxy.target = page.server.port
        page.wait("loads === 2")


def test_page_survives_the_death_of_its_worker(open_page, topic):
    with serving("--workers", "2") as server:
        page = open_page(server)
        page.start(topic)
        page.wait("topics[0].since")
        page.say(0, topic=topic)
        worker = server.wait_for_line(r"\[(\d+)\] info .*WebSocket /live")[1]
        os.kill(int(worker), signal.SIGKILL)
        page.wait("states.some(([state]) => state === 'waiting')")
        page.wait_open()
        page.say(1, topic=topic)
        page.wait_for([0, 1])
        assert page.evaluate("loads") == 0


# Publishing


@pytest.mark.parametrize("cut", ["before", "after", "answer"])
@pytest.mark.parametrize("is_blocked", [False, True], ids=["websocket", "post"])
def test_publish_that_is_cut_arrives_exactly_once_and_in_order(page, topic, cut, is_blocked):
    page.proxy.refuses_upgrades = is_blocked
    page.start(topic)
    page.wait("topics[0].since")
    page.evaluate("window.done = []")
    for number in range(4):
        page.proxy.cut = cut if number < 3 else None
        page.evaluate("n => { topics[0].publish(n).then(({ id }) => done.push(id)) }", number)
        page.evaluate("n => { topics[0].publish(n).then(({ id }) => done.push(id)) }", number + 0.5)
        page.wait(f"done.length === {2 * number + 2}")
        assert page.proxy.cut is None
    page.wait_for([0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    assert page.evaluate("loads") == 0


def test_publish_that_is_refused_rejects(page, topic):
    page.start(topic)
    assert page.evaluate("topics[0].publish('bad').catch(({ code }) => code)") == 4403
    assert page.evaluate("live.publish('plain:a', 1).catch(({ code }) => code)") == 4403


# Without WebSockets


def test_page_behind_a_proxy_without_websockets_has_events_and_posts(page, topic):
    page.proxy.refuses_upgrades = True
    page.start(topic, "plain:a", "chat:secret")
    page.wait_open()
    page.wait("ends.length")
    assert page.evaluate("ends") == [["chat:secret", 4403]]
    page.wait("live.state === 'open' && topics[0].since")
    ids = page.evaluate("Promise.all([0, 1, 2].map(n => topics[0].publish(n)))")
    assert all(each["id"] for each in ids)
    page.wait_for([0, 1, 2])
    assert page.evaluate("topics[0].publish('bad').catch(({ code }) => code)") == 4403
    # Another topic needs another stream, and a cut one comes back.
    page.evaluate("void live.subscribe('chat:other').on('message', data => got.push(data))")
    page.wait("live.state === 'open'")
    page.proxy.cut_all()
    page.say(3, topic=topic)
    page.wait_for([0, 1, 2, 3])


# Refusals


def test_refused_token_is_renewed_once(page, topic, server):
    try:
        post(server, "/token", "new")
        page.start(topic, token=["old", "new"])
        page.wait("topics[0].since")
        assert page.evaluate("asked") == 2
        post(server, "/token", "newer")
        page.proxy.cut_all()
        page.wait("live.state === 'closed'")
        assert page.evaluate("states.at(-1)") == ["closed", 4401]
        assert page.evaluate("ends") == [[topic, 4401]]
        assert page.evaluate("topics[0].publish(1).catch(({ code }) => code)") == 1000
    finally:
        post(server, "/token", None)


@pytest.mark.parametrize("code", [1008, 4400, 4403, 4499])
def test_client_stops_at_a_final_close_code(page, code):
    page.start(url=f"/closes/{code}")
    page.wait("live.state === 'closed'")
    assert page.evaluate("states.at(-1)") == ["closed", code]
    assert page.proxy.upgrades == 1
    page.evaluate("dispatchEvent(new Event('online'))")
    assert page.evaluate("live.state") == "closed"


# Beside topics


def test_client_speaks_with_a_view(page):
    page.start(url="/echo")
    page.wait_open()
    page.evaluate("void live.on('message', data => got.push(data))")
    assert page.evaluate("live.send({ a: 1 })") is True
    page.wait("got.length")
    assert page.evaluate("got") == [{"echo": {"a": 1}}]
    assert page.evaluate("live.close() ?? live.send('lost')") is False


def test_messages_wait_until_the_state_is_loaded(page, topic):
    page.start()
    page.evaluate(
        """topic => {
          const load = () => new Promise(resolve => (window.loaded = resolve))
          const chat = live.subscribe(topic, { since: "unknown", load })
          chat.on("message", data => got.push(data))
          window.chat = chat
        }""",
        topic,
    )
    page.wait("!!window.loaded")
    page.evaluate("chat.publish(1)")
    assert page.evaluate("got") == []
    page.evaluate("loaded()")
    page.wait("got.length")
    bytes_back = page.evaluate(
        """async () => {
          const next = chat[Symbol.asyncIterator]().next()
          await chat.publish(new Uint8Array([0, 255]))
          return [...(await next).value.data]
        }"""
    )
    assert bytes_back == [0, 255]


# Frames that no server here sends


@pytest.fixture
def speak(page):
    """Plays the server on each WebSocket of the page: a function that says what it answers to a frame."""

    def speak(answer):
        def serve(route):
            route.on_message(lambda text: [route.send(json.dumps(frame)) for frame in answer(json.loads(text), route)])
            route.send('{"hello":{"id":"x","ping":25}}')

        page.page.route_web_socket("**/live", serve)
        page.page.reload()

    return speak


def test_page_knows_who_is_there(page, speak):
    def answer(frame, _):
        yield {"n": frame["n"], "id": "1-a", "recovered": False}
        yield {"topic": "chat:a", "members": {"1": {"name": "Ada"}, "2": {"name": "Ben"}}, "id": "9-p"}
        yield {"topic": "chat:a", "join": {"3": {"name": "Eve"}}, "leave": ["1"], "id": "10-p"}
        yield {"topic": "chat:a", "count": 300, "id": "11-p"}
        yield {"topic": "chat:a", "data": "last", "id": "2-a"}

    speak(answer)
    page.evaluate(START, ["/live", None, [], None])
    page.evaluate(
        """() => {
          const chat = (window.chat = live.subscribe("chat:a"))
          chat.on("members", members => got.push([...members.keys()]))
          chat.on("count", count => got.push(count))
          chat.on("message", data => got.push(data))
        }"""
    )
    page.wait("got.at(-1) === 'last'")
    assert page.evaluate("got") == [["1", "2"], ["2", "3"], 300, "last"]
    assert page.evaluate("chat.since") == "2-a"


def test_question_that_the_hub_cannot_answer_is_repeated(page, speak):
    asked = []

    def answer(frame, _):
        asked.append("publish" if "publish" in frame else "subscribe")
        yield {"n": frame["n"]} | ({"id": "1-a"} if asked.count(asked[-1]) > 1 else {"error": 4503, "reason": "later"})

    speak(answer)
    page.start("chat:a")
    assert page.evaluate("topics[0].publish(1)") == {"id": "1-a"}
    page.wait("topics[0].since")
    assert sorted(asked) == ["publish", "publish", "subscribe", "subscribe"]


def test_client_waits_as_long_as_the_server_says(page, speak):
    def answer(_, route):
        route.close(code=1012, reason="the server restarts, retry=7.25")
        return []

    speak(answer)
    page.start()
    page.evaluate("void live.on('state', (state, { delay }) => state === 'waiting' && got.push(delay))")
    page.evaluate("void live.subscribe('chat:a')")
    page.wait("got.length")
    assert page.evaluate("got") == [7250]


def test_wait_between_attempts_is_random_and_grows(page):
    page.proxy.target = None
    page.page.clock.install()
    page.evaluate(
        """() => {
          window.delays = []
          window.live = connect("/live")
          live.on("state", (state, { delay }) => state === "waiting" && delays.push(delay))
        }"""
    )
    for number in range(1, 9):
        page.wait(f"delays.length >= {number}")
        page.page.clock.fast_forward(30_000)
    delays = page.evaluate("delays")
    assert all(delay <= min(30_000, 1000 * 2**number) for number, delay in enumerate(delays))
    assert len(set(delays)) == len(delays)


def test_client_keeps_at_most_1000_messages(page, speak):
    def answer(frame, _):
        if frame.get("subscribe"):
            yield {"n": frame["n"], "id": "0-a", "recovered": False}
            for number in range(1001):
                yield {"topic": "chat:a", "id": f"{number}-a", "data": number}

    speak(answer)
    page.evaluate(START, ["/live", None, [], None])
    page.evaluate(
        """async () => {
          const loading = []
          window.loading = loading
          const load = () => new Promise(resolve => loading.push(resolve))
          const chat = live.subscribe("chat:a", { since: "old", load })
          chat.on("message", data => got.push(data))
          chat.on("gap", () => window.loads++)
        }"""
    )
    page.wait("loads === 2")
    page.evaluate("loading[0]()")
    page.wait("loading.length === 2")
    page.evaluate("loading[1]()")
    assert page.evaluate("got") == []
    codes = """() => {
      const codes = []
      for (let n = 0; n < 1001; n++) live.publish("chat:a", n).catch(({ code }) => codes.push(code))
      return new Promise(resolve => setTimeout(() => resolve(codes), 0))
    }"""
    assert page.evaluate(codes) == [4429]
