"""Two workers, and what reaches both: other programs that publish, disconnects, and the hub process itself."""

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from serving import LIMIT
from supervising import supervised, write
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from microws import HubUnavailable, connect_hub

APP = """
import os
import subprocess
import sys

from microws import App, EventStream

app = App()
admin = App()
app.mount("/admin", admin)
app.health(hub=True)
app.topic("chat:*", history=100)
app.topic("price:*", overflow="latest", key=lambda value: value["symbol"], history=10)


async def read(ws, topic):
    async with ws:
        await ws.send(f"{os.getpid()} {ws.id}")
        await ws.wait_closed()


app.add_websocket_route(read, "/{topic}", subscribe="{topic}")
admin.add_websocket_route(read, "/{topic}", subscribe="{topic}")


@app.websocket_route("/named")
async def named(ws):
    await read(ws, None)


@app.on_subscribe("room:{room}")
async def may_enter(connection, room):
    return {"id": connection.query["user"]}


app.live("/live")


@app.get("/members")
async def members():
    return sorted(await app.members("room:1"))


@app.websocket_route("/of/{user}")
async def of(ws, user):
    ws.tag(user=user)
    await read(ws, None)


@app.get("/connections/{user}")
async def connections(user):
    return [each._asdict() for each in await app.hub.connections(user=user)]


@app.get("/events/{topic}")
async def events(topic):
    return EventStream(app.stream(topic))


@app.get("/hub")
async def hub():
    return os.environ["MICROWS_HUB"]


@app.post("/server")
def server():
    # Another server: the start of its log.
    command = [sys.executable, "-m", "microws", "run", "chat:app", "--workers", "2", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = ""
        while "Ctrl-C" not in log and (line := process.stderr.readline()):
            log += line
        process.terminate()
        process.communicate()
    return log


@app.post("/disconnect")
async def disconnect(request):
    return str(await app.disconnect(**{"code": 4001, "reason": "bye"} | await request.json()))


@app.get("/statistics")
async def statistics():
    return (await app.hub.cluster_statistics())._asdict()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("outside")
    write(directory, APP)
    with supervised(directory, "--workers", "2") as server:
        server.wait_for_line("worker .* serves")
        server.hub = server.wait_for_line(r"hub process at (local:\S+)")[1]
        yield server
        assert server.stop() == 0


def request(server, path, body=None, *, timeout=LIMIT):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    with contextlib.closing(connection):
        data = None if body is None else json.dumps(body)
        connection.request("GET" if body is None else "POST", path, data, {"content-type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def one_each(stack, server, path):
    """A WebSocket and its id in each of the two workers."""
    websockets = {}
    end = time.monotonic() + LIMIT
    while len(websockets) < 2 and time.monotonic() < end:
        with contextlib.ExitStack() as unless_new:
            ws = unless_new.enter_context(connect(f"{server.ws_url}{path}", proxy=None))
            pid, name = ws.recv(timeout=LIMIT).split()
            if pid not in websockets:
                websockets[pid] = ws, name
                stack.push(unless_new.pop_all())
    assert len(websockets) == 2
    return list(websockets.values())


def publish(server, *arguments, hub=None, **options):
    """``microws publish``: exit code, output and errors."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MICROWS_")}
    done = subprocess.run(
        [sys.executable, "-m", "microws", "publish", *arguments],
        env=clean | {"MICROWS_HUB": hub or server.hub},
        timeout=3 * LIMIT,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options,
    )
    return done.returncode, (done.stdout or b"").decode().strip(), done.stderr.decode().strip()


def hub_process_of(server):
    """The child of the supervisor that was forked: its environment is that of the supervisor."""
    environment = Path(f"/proc/{server.pid}/environ").read_bytes()
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    [pid] = [int(pid) for pid in children if Path(f"/proc/{pid}/environ").read_bytes() == environment]
    return pid


def ending_of(ws):
    with pytest.raises(ConnectionClosed) as caught:
        ws.recv(timeout=LIMIT)
    return caught.value.rcvd.code, caught.value.rcvd.reason


def test_the_command_publishes_to_the_clients_of_all_workers(server, tmp_path):
    (tmp_path / "file").write_bytes(b"\0in a file")
    with contextlib.ExitStack() as stack:
        clients = [ws for ws, _ in one_each(stack, server, "/chat:1")]
        code, position, errors = publish(server, "chat:1", '{"a": [1]}', "--json", "--key", "k")
        assert (code, errors) == (0, "")
        assert re.fullmatch(r"[0-9a-f]+-[0-9a-f.]+", position)
        assert publish(server, "chat:1", "again", "--key", "k") == (0, position, "")
        assert publish(server, "chat:1", "--file", "-", input=b"\0from stdin")[0] == 0
        assert publish(server, "chat:1", "--file", str(tmp_path / "file"))[0] == 0
        assert publish(server, "chat:1", '"text"')[0] == 0
        for ws in clients:
            got = [ws.recv(timeout=LIMIT) for _ in range(4)]
            assert got == ['{"a":[1]}', b"\0from stdin", b"\0in a file", '"text"']


def test_a_topic_without_history_has_no_position_to_print(server):
    with contextlib.ExitStack() as stack:
        clients = [ws for ws, _ in one_each(stack, server, "/news")]
        assert publish(server, "news", "hello", "--hub", server.hub, hub="local:nowhere") == (0, "", "")
        assert [ws.recv(timeout=LIMIT) for ws in clients] == ["hello", "hello"]


def test_a_mounted_app_has_topics_of_its_own(server):
    with contextlib.ExitStack() as stack:
        outer = [ws for ws, _ in one_each(stack, server, "/news")]
        mounted = [ws for ws, _ in one_each(stack, server, "/admin/news")]
        assert publish(server, "news", "for admin", "--mount", "/admin") == (0, "", "")
        assert publish(server, "news", "for all") == (0, "", "")
        assert [ws.recv(timeout=LIMIT) for ws in (*mounted, *outer)] == ["for admin"] * 2 + ["for all"] * 2


def test_a_command_whose_output_nobody_reads_has_published(server):
    ours, theirs = os.pipe()
    os.close(ours)
    with connect(f"{server.ws_url}/chat:9", proxy=None) as ws, os.fdopen(theirs, "w") as closed:
        ws.recv(timeout=LIMIT)
        assert publish(server, "chat:9", "hi", stdout=closed) == (0, "", "")
        assert ws.recv(timeout=LIMIT) == "hi"


def test_the_websockets_of_a_user_are_found_and_closed_in_all_workers(server):
    with contextlib.ExitStack() as stack:
        anna = one_each(stack, server, "/of/anna")
        ben = one_each(stack, server, "/of/ben")
        found = json.loads(request(server, "/connections/anna")[1])
        assert sorted(each["id"] for each in found) == sorted(name for _, name in anna)
        assert {(each["path"], each["tags"]["user"], each["queued"]) for each in found} == {("/of/anna", "anna", 0)}
        assert request(server, "/disconnect", {"user": "anna", "code": 4403, "reason": "logged out"}) == (200, "2")
        assert [ending_of(ws) for ws, _ in anna] == [(4403, "logged out")] * 2
        assert request(server, "/connections/anna") == (200, "[]")
        assert request(server, "/disconnect", {"user": "ben", "code": 1000, "reason": ""}) == (200, "2")
        assert [ending_of(ws) for ws, _ in ben] == [(1000, "")] * 2


def enter(stack, server, user):
    """A client in room 1 that reads who is there: its WebSocket."""
    url = f"{server.ws_url}/live?user={user}"
    ws = stack.enter_context(connect(url, proxy=None, subprotocols=["microws.v1"]))
    ws.send('{"subscribe": "room:1"}')
    return ws


def follow(ws, names, within=LIMIT):
    """Read frames until these are the members; the seconds that it took."""
    members = getattr(ws, "members", set())
    began = time.monotonic()
    while members != set(names):
        frame = json.loads(ws.recv(timeout=began + within - time.monotonic()))
        members = (
            set(frame["members"])
            if "members" in frame
            else (members - {*frame.get("leave", ())}) | {*frame.get("join", ())}
        )
    ws.members = members
    return time.monotonic() - began


def test_members_are_those_of_all_workers_and_leave_with_a_killed_one(server):
    with contextlib.ExitStack() as stack:
        users = [f"user-{number}" for number in range(12)]
        clients = [enter(stack, server, user) for user in users]
        for ws in clients:
            follow(ws, users)
        assert json.loads(request(server, "/members")[1]) == sorted(users)
        pids = {
            pid
            for pid, _ in (
                ws.recv(timeout=LIMIT).split()
                for ws in (stack.enter_context(connect(f"{server.ws_url}/named", proxy=None)) for _ in range(12))
            )
        }
        assert len(pids) == 2
        os.kill(int(pids.pop()), signal.SIGKILL)
        left = set()
        for ws, user in zip(clients, users, strict=True):
            with contextlib.suppress(ConnectionClosed):
                ws.send('{"ping": 1}')
                while json.loads(ws.recv(timeout=LIMIT)) != {}:
                    pass
                left.add(user)
        assert 0 < len(left) < 12
        for ws, user in zip(clients, users, strict=True):
            if user in left:
                assert follow(ws, left) < 5.5


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["news", "x", "--hub", "local:/nowhere"], 1, "error: expected a server with its hub at /nowhere/hub.sock"),
        (["news", "x", "--hub", "nats://h"], 2, "error: this version has no 'nats' backplane"),
        (["news", "x", "--key", "k"], 2, "error: expected a topic with history for key=, got 'news'"),
        (["price:1", "{}", "--json"], 2, "error: expected a message that key= of app.topic takes, got KeyError"),
    ],
)
def test_the_command_fails_with_its_reason_and_exit_code(server, arguments, code, error):
    got, output, errors = publish(server, *arguments)
    assert (got, output) == (code, "")
    assert errors.startswith(error)
    assert "\n" not in errors


def test_a_program_of_another_kind_publishes_and_the_workers_name_the_hub(server):
    assert request(server, "/hub") == (200, server.hub)
    with contextlib.ExitStack() as stack:
        clients = [ws for ws, _ in one_each(stack, server, "/chat:2")]
        hub = stack.enter_context(connect_hub(server.hub))
        position = hub.position("chat:2")
        receipts = [hub.publish("chat:2", number) for number in range(10)]
        assert hub.position("chat:2") == receipts[-1].id != position
        for ws in clients:
            assert [ws.recv(timeout=LIMIT) for _ in range(10)] == [str(number) for number in range(10)]


def test_a_disconnect_reaches_the_connections_of_all_workers(server):
    with contextlib.ExitStack() as stack:
        clients = [ws for ws, _ in one_each(stack, server, "/user:42")]
        named = one_each(stack, server, "/named")
        events = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LIMIT)
        stack.callback(events.close)
        events.request("GET", "/events/user:42")
        response = events.getresponse()
        assert response.readline() == b":\n"
        assert publish(server, "user:42", "last words")[0] == 0
        assert request(server, "/disconnect", {"topic": "user:42"}) == (200, "3")
        assert request(server, "/disconnect", {"topic": "user:42"}) == (200, "0")
        for ws in clients:
            assert ws.recv(timeout=LIMIT) == "last words"
            assert ending_of(ws) == (4001, "bye")
        assert response.read() == b"data: last words\n\n"
        for ws, name in named:
            assert request(server, "/disconnect", {"id": name}) == (200, "1")
            assert ending_of(ws) == (4001, "bye")


def test_a_server_that_the_app_starts_has_a_hub_of_its_own(server):
    status, log = request(server, "/server", {}, timeout=6 * LIMIT)
    assert status == 200
    assert "with 2 workers" in log
    assert "is not an option" not in log
    [hub] = re.findall(r"hub process at (local:\S+)", log)
    assert hub != server.hub


def test_a_hub_process_that_is_stopped_or_killed_is_noticed_and_replaced(server):
    pid = hub_process_of(server)
    with contextlib.ExitStack() as stack:
        clients = [ws for ws, _ in one_each(stack, server, "/chat:3")]
        hub = stack.enter_context(connect_hub(server.hub))
        os.kill(pid, signal.SIGSTOP)
        try:
            assert request(server, "/readyz")[0] == 503
        finally:
            os.kill(pid, signal.SIGCONT)
        os.kill(pid, signal.SIGKILL)
        receipt = hub.publish("chat:3", "after it")
        assert [ws.recv(timeout=LIMIT) for ws in clients] == ["after it"] * 2
        assert receipt.id == hub.position("chat:3")
        assert request(server, "/readyz")[0] == 200
        assert json.loads(request(server, "/statistics")[1])["workers"] == 2


def test_what_is_acknowledged_arrives_once_and_in_order_though_the_hub_is_killed(server):
    with contextlib.ExitStack() as stack:
        clients = {topic: [ws for ws, _ in one_each(stack, server, f"/{topic}")] for topic in ("chat:4", "news:4")}
        hub = stack.enter_context(connect_hub(server.hub))
        for number in range(300):
            if number % 100 == 50:
                # A hub process that ends soon after its start counts towards giving up: three are not too many.
                os.kill(hub_process_of(server), signal.SIGKILL)
            for topic in clients:
                hub.publish(topic, number)
        for websockets in clients.values():
            for ws in websockets:
                assert [ws.recv(timeout=LIMIT) for _ in range(300)] == [str(number) for number in range(300)]


FRAMEWORK = APP.replace('app.mount("/admin", admin)', "").replace("app = ", "live = ", 1)
FRAMEWORK = (
    FRAMEWORK.replace("@app", "@live").replace("app.", "live.")
    + """

async def app(scope, receive, send):
    if scope["type"] != "lifespan":
        await live(scope, receive, send)
        return
    await receive()
    async with live.running(), admin.running(mount="/admin"):
        await send({"type": "lifespan.startup.complete"})
        await receive()
    await send({"type": "lifespan.shutdown.complete"})
"""
)


def test_two_apps_that_another_framework_serves_need_two_names(tmp_path):
    write(tmp_path, FRAMEWORK, before=', admin.running(mount="/admin")', after=", App().running()")
    with supervised(tmp_path, "--workers", "2") as server:
        server.wait_for_line(r"expected one App with app.running\(\) in this process, got two", times=2)


def test_an_app_that_another_framework_serves_has_the_hub_of_the_server(tmp_path):
    write(tmp_path, FRAMEWORK)
    with supervised(tmp_path, "--workers", "2") as server, contextlib.ExitStack() as stack:
        server.wait_for_line("worker .* serves")
        server.hub = server.wait_for_line(r"hub process at (local:\S+)")[1]
        clients = [ws for ws, _ in one_each(stack, server, "/news")]
        assert publish(server, "news", "hello") == (0, "", "")
        assert [ws.recv(timeout=LIMIT) for ws in clients] == ["hello", "hello"]
        assert json.loads(request(server, "/statistics")[1])["workers"] == 2


def test_after_the_end_of_the_server_nothing_is_published(tmp_path):
    write(tmp_path, APP)
    path = tmp_path / "hub"
    with supervised(tmp_path, "--hub", f"local:{path}") as server:
        server.hub = f"local:{path}"
        code, position, _ = publish(server, "chat:1", "kept")
        assert (code, bool(position)) == (0, True)
        assert server.stop() == 0
        code, _, errors = publish(server, "chat:1", "too late")
        assert code == 1
        assert "expected a server with its hub at" in errors
        with pytest.raises(HubUnavailable), connect_hub(server.hub):
            pass
    with supervised(tmp_path, "--hub", f"local:{path}"), connect_hub(f"local:{path}") as hub:
        assert hub.position("chat:1") == position
