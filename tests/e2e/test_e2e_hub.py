"""
Several workers with one hub, from outside: what their clients see when a worker, the hub process or the server ends.

Each client comes back with its last position, as a page does. At the end all of them have the same messages, in one
order, without a hole; and each was told the truth.
"""

import itertools
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from serving import LIMIT, Server
from supervising import command, process
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from microws.hub.log import _AT_BOOT

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

WHOLE = os.environ.get("CHAOS") == "whole"
APP = """
import os

from microws import App

app = App(**OPTIONS)
app.topic("*", history=5_000, queue=1_000)


@app.get("/")
def who(request):
    return {"pid": os.getpid()}


@app.post("/publish/{topic}")
async def publish(request, topic):
    receipt = await app.publish(topic, await request.text())
    return {"pid": os.getpid(), "id": receipt.id}


@app.get("/statistics")
async def statistics(request):
    answers = await app.hub.backplane.ask({"statistics": True})
    return {"connections": [answer["connections"] for answer in answers]}


@app.websocket_route("/live/{topic}", subscribe="{topic}")
async def live(ws, topic):
    async with ws:
        async for message in ws:
            pass
"""


@pytest.fixture(params=[("asyncio", {"use_uvloop": True})], ids=["uvloop"])
def anyio_backend(request):
    return request.param


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


@pytest.fixture(autouse=True)
def temporary(monkeypatch):
    """Where the servers make their temporary directories. Its path is short, as that of a Unix socket must be."""
    with tempfile.TemporaryDirectory(prefix="hub-") as path:
        monkeypatch.setenv("TMPDIR", path)
        yield Path(path)


@contextmanager
def serving(directory, *, port, hub=None, workers=4):
    (directory / "chat.py").write_text(APP.replace("**OPTIONS", "" if hub is None else f"hub={hub!r}"))
    with process(directory, command("--workers", str(workers), "--no-access-log", port=port)) as started:
        server = Server(started)
        server.pid = started.pid
        yield server


def children(pid):
    """The processes that it started and that run: those that have a supervisor, and those that are forks of it."""
    workers, forks = [], []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                is_worker = b"MICROWS_SUPERVISOR=" in (path / "environ").read_bytes()
                (workers if is_worker else forks).append(int(path.name))
        except OSError:
            pass
    return workers, forks


def hub_of(server):
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        _, forks = children(server.pid)
        if len(forks) == 1:
            return forks[0]
        time.sleep(0.005)
    return pytest.fail("no hub process")


def is_running(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


async def wait_ended(pid):
    while is_running(pid):  # noqa: ASYNC110 - a process tells only its parent of its end
        await anyio.sleep(0.005)


class Client:
    """A page: it shows what it gets, and comes back when its connection ends."""

    def __init__(self, port, topic="t"):
        self.url = f"ws://127.0.0.1:{port}/live/{topic}"
        self.begin = self.position = None
        self.got = []
        # Of each time it came back: whether it was told that nothing was lost, and how long it was away.
        self.recovered = []
        self.away = []
        self.refused = []
        self.gaps = 0
        self.codes = []
        self.is_here = anyio.Event()

    async def run(self):
        left = None
        while True:
            query = "" if self.position is None else f"?since={self.position}"
            try:
                async with connect(self.url + query, subprotocols=["microws.v1"], proxy=None, open_timeout=LIMIT) as ws:
                    async for message in ws:
                        self.follow(json.loads(message))
                        if left is not None:
                            self.away.append(time.monotonic() - left)
                            left = None
            except ConnectionClosed as error:
                self.codes.append(None if error.rcvd is None else error.rcvd.code)
            except (OSError, TimeoutError, InvalidHandshake) as error:
                self.refused.append(error)
                await anyio.sleep(0.05)
            left = left or time.monotonic()
            await anyio.sleep(0.05 * random.random())

    def follow(self, message):
        if "hello" in message:
            return
        if "recovered" in message:
            if self.begin is None:
                self.begin = message["id"]
            else:
                self.recovered.append(message["recovered"])
                if not message["recovered"]:
                    self.position = message["id"]
            self.position = self.position or message["id"]
            self.is_here.set()
        elif "gap" in message:
            self.gaps += 1
        else:
            self.got.append((place_of(message["id"]), message["data"]))
            self.position = message["id"]

    async def wait_until(self, condition, within=LIMIT):
        with anyio.fail_after(within):
            while not condition(self):  # noqa: ASYNC110 - its connection comes and goes
                await anyio.sleep(0.01)


def http_client(port):
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT, trust_env=False)


def place_of(position):
    return int(position.partition("-")[2].split(".")[0], 16)


class Load:
    """So many tasks publish, one message after the other, through any worker."""

    def __init__(self, port, *, publishers=1, pause=0.01):
        self.port = port
        self.publishers = publishers
        self.pause = pause
        self.numbers = itertools.count(1)
        self.published = {}
        self.unsure = {}
        self.scope = anyio.CancelScope()

    async def run(self):
        self.began = time.monotonic()
        with self.scope:
            async with anyio.create_task_group() as tasks:
                for _ in range(self.publishers):
                    tasks.start_soon(self.publish_on)

    async def publish_on(self):
        async with http_client(self.port) as http:
            for number in self.numbers:
                try:
                    await self.publish(http, f"message {number}")
                except (httpx.TransportError, httpx.HTTPStatusError) as error:
                    self.unsure[f"message {number}"] = error
                await anyio.sleep(self.pause)

    async def publish(self, http, text):
        response = await http.post("/publish/t", content=text)
        response.raise_for_status()
        self.published[place_of(response.json()["id"])] = text


@asynccontextmanager
async def clients_of(port, number, **options):
    """So many clients, and a load."""
    clients, load = [Client(port) for _ in range(number)], Load(port, **options)
    async with anyio.create_task_group() as tasks:
        for client in clients:
            tasks.start_soon(client.run)
        with anyio.fail_after(3 * LIMIT if WHOLE else LIMIT):
            for client in clients:
                await client.is_here.wait()
        tasks.start_soon(load.run)
        yield clients, load
        tasks.cancel_scope.cancel()


async def judge(clients, load):
    """All have everything, once, in one order."""
    load.scope.cancel()
    async with http_client(load.port) as http:
        await load.publish(http, "end")
    for client in clients:
        await client.wait_until(lambda client: client.got and client.got[-1][1] == "end", within=3 * LIMIT)
    everything = dict(load.published)
    for client in clients:
        everything.update(client.got)
    everything = sorted(everything.items())
    texts = [text for _, text in everything]
    assert len(set(texts)) == len(texts)
    for client in clients:
        assert client.got == everything
        assert all(client.recovered)
        assert client.gaps == 0
    return len(everything)


async def get(port, path):
    async with http_client(port) as http:
        return (await http.get(path)).json()


@pytest.fixture
def report(capfd):
    def report(text):
        with capfd.disabled():
            print(f"\n  {text} (load {os.getloadavg()[0]:.1f})", file=sys.stderr)

    return report


async def test_a_message_reaches_the_sockets_of_all_workers(tmp_path, temporary):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, 20) as (clients, load):
            statistics = await get(port, "/statistics")
            assert len(statistics["connections"]) == 4
            assert min(statistics["connections"]) >= 1
            assert sum(statistics["connections"]) == 20
            await clients[0].wait_until(lambda client: len(client.got) > 20)
            await judge(clients, load)
        assert server.stop() == 0
        assert not list(temporary.iterdir())


# How many clients there are, and what is published meanwhile.
STEADY = (1_000, {"pause": 0.05}) if WHOLE else (60, {})
SATURATED = (40, {"publishers": 16, "pause": 0})
LOADS = {"steady": STEADY, "saturated": SATURATED} if WHOLE else {"steady": STEADY}
at_each_load = pytest.mark.parametrize(("count", "options"), LOADS.values(), ids=LOADS)


@at_each_load
async def test_a_worker_is_killed_and_its_clients_come_back(tmp_path, report, count, options):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, count, **options) as (clients, load):
            for _ in range(2):
                os.kill(children(server.pid)[0][0], signal.SIGKILL)
                await anyio.sleep(1)
            rate = len(load.published) / (time.monotonic() - load.began)
            await judge(clients, load)
            back = [client for client in clients if client.recovered]
            assert len(back) > count / 8
            longest = max(max(client.away) for client in back)
            report(
                f"worker killed: {len(back)} of {count} clients came back, {rate:.0f} messages/s, away {longest:.2f} s"
            )
            assert longest <= 3
        assert server.stop() == 0


async def test_the_hub_process_is_killed_and_no_client_notices(tmp_path):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, 20) as (clients, load):
            for _ in range(10 if WHOLE else 3):
                os.kill(hub_of(server), signal.SIGKILL)
                await anyio.sleep(5.1 if WHOLE else 0.4)
            await judge(clients, load)
            assert not any(client.recovered or client.refused for client in clients)
            assert not load.unsure
        assert server.stop() == 0
    assert server.find_lines("the hub process .* ended with -9; another one goes on with its log")


@at_each_load
async def test_sighup_under_load_costs_no_message(tmp_path, report, count, options):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, count, **options) as (clients, load):
            hub = hub_of(server)
            server.signal(signal.SIGHUP)
            await anyio.to_thread.run_sync(lambda: server.wait_for_line("all 4 workers are new", within=6 * LIMIT))
            await anyio.sleep(0.5)
            rate = len(load.published) / (time.monotonic() - load.began)
            await judge(clients, load)
            assert all(client.recovered for client in clients)
            assert not any(client.refused for client in clients)
            # A worker that drains closes idle connections. A request that is on its way then is not handled.
            assert all(
                isinstance(error, httpx.RemoteProtocolError | httpx.ReadError) for error in load.unsure.values()
            ), load.unsure
            assert load.unsure.keys().isdisjoint(text for _, text in clients[0].got), load.unsure
            assert hub_of(server) == hub
            longest = max(max(client.away) for client in clients)
            report(f"SIGHUP: {count} clients came back, {rate:.0f} messages/s, away {longest:.2f} s at most")
        assert server.stop() == 0


@pytest.mark.parametrize("is_power_cut", [False, True], ids=["orderly", "power cut"])
async def test_clients_resume_after_a_full_stop_and_start(tmp_path, report, is_power_cut):
    """After a power cut all are told instead."""
    port, count = free_port(), 1_000 if WHOLE else 40
    hub = f"local:{tmp_path / 'hub'}"
    with serving(tmp_path, port=port, hub=hub, workers=2) as server:
        async with clients_of(port, count, pause=0.05) as (clients, load):
            await anyio.sleep(0.5)
            if is_power_cut:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()
                with (tmp_path / "hub" / "log").open("r+b") as log:
                    # Another run of the machine.
                    log.seek(8 * _AT_BOOT)
                    log.write(bytes(8))
            else:
                assert await anyio.to_thread.run_sync(server.stop) == 0
            for client in clients:
                await client.wait_until(lambda client: client.refused)
            with serving(tmp_path, port=port, hub=hub, workers=2) as again:
                for client in clients:
                    await client.wait_until(lambda client: client.recovered, within=3 * LIMIT)
                if is_power_cut:
                    assert not any(any(client.recovered) for client in clients)
                    lost = {len(client.got) for client in clients}
                    await clients[0].wait_until(lambda client: len(client.got) > max(lost))
                else:
                    await anyio.sleep(0.5)
                    messages = await judge(clients, load)
                    report(f"full stop and start: {count} clients recovered, {messages} messages")
                assert await anyio.to_thread.run_sync(again.stop) == 0
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == ["log"]


async def test_a_hub_process_that_ends_again_and_again_ends_the_server(tmp_path, temporary):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, 8) as (clients, _):
            for number in range(5):
                os.kill(hub_of(server), signal.SIGKILL)
                times = number + 1
                await anyio.to_thread.run_sync(
                    lambda times=times: server.wait_for_line("the hub process .* ended with -9", times=times)
                )
            assert await anyio.to_thread.run_sync(server.wait) == 1
            for client in clients:
                await client.wait_until(lambda client: client.refused)
    assert server.find_lines("critical .* 5 times in a row soon after its start")
    assert not list(temporary.iterdir())
    # The publishers were told.
    errors = server.find_lines(r"^[\w.]+(Error|Timeout): ")
    assert all(found[0] == "microws.errors.PublishTimeout: " for found in errors)


async def test_after_the_supervisor_the_workers_end_then_the_hub_process(tmp_path, temporary):
    port = free_port()
    with serving(tmp_path, port=port) as server:
        async with clients_of(port, 8) as (clients, _):
            workers, [hub] = children(server.pid)
            assert len(workers) == 4
            assert list(temporary.iterdir())
            os.kill(server.pid, signal.SIGKILL)
            with anyio.fail_after(2 * LIMIT):
                await wait_ended(hub)
                # All clients were told to come back before.
                for client in clients:
                    await client.wait_until(lambda client: client.refused)
                    assert set(client.codes) == {1012}
                for worker in workers:
                    await wait_ended(worker)
        assert not list(temporary.iterdir())
