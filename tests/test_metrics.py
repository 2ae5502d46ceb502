"""``App.metrics``: what Prometheus is told, in one process and of several workers."""

import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import LIMIT, ROOT, Server
from websockets.sync.client import connect

from microws import App, FeatureUnavailable
from microws.counters import COUNTERS

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    """Count only in these tests."""
    monkeypatch.setattr(COUNTERS, "is_on", False)


def values_of(text):
    """The samples of all workers in sum, by name and the labels other than ``worker``."""
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = [f"{name}={value}" for name, value in sample.labels.items() if name != "worker"]
            key = " ".join([sample.name, *sorted(labels)])
            values[key] = values.get(key, 0) + sample.value
    return values


async def scrape(client):
    response = await client.get("/metrics")
    assert response.status == 200
    assert response.headers["content-type"].startswith("text/plain; version=")
    return values_of(response.text)


def changes(before, after):
    found = {name: value - before.get(name, 0) for name, value in after.items() if "publish_seconds" not in name}
    return {name: value for name, value in found.items() if value}


@pytest.fixture
def app():
    app = App()
    app.metrics()

    @app.websocket_route("/ws", subscribe="topic", gaps=True)
    async def ws(ws):
        async with ws:
            async for message in ws:
                await ws.close(int(message))

    return app


async def test_connections_publishes_and_closes_are_counted(app):
    async with app.test_client() as client:
        before = await scrape(client)
        async with client.websocket("/ws") as one, client.websocket("/ws") as other:
            await app.publish("topic", "hi")
            assert [await one.receive(), await other.receive()] == ["hi", "hi"]
            during = await scrape(client)
            assert changes(before, during) == {
                "microws_websockets_total": 2,
                "microws_websockets_open": 2,
                "microws_topics": 1,
                "microws_subscribers": 2,
                "microws_subscriptions": 2,
                "microws_deliveries_total": 2,
            }
            assert during["microws_publish_seconds_count"] == before["microws_publish_seconds_count"] + 1
            assert during["microws_publish_seconds_sum"] > before["microws_publish_seconds_sum"]
            await one.send("4001")
            await one.wait_closed()
        assert (await client.get("/ws")).status == 426
        after = changes(before, await scrape(client))
        assert after == {
            "microws_websockets_total": 2,
            "microws_deliveries_total": 2,
            "microws_websockets_closed_total code=4001": 1,
            "microws_websockets_closed_total code=1000": 1,
        }


async def test_drops_are_counted_by_reason(app):
    app.topic("topic", queue=1, overflow="drop_newest")
    async with app.test_client() as client:
        before = await scrape(client)
        async with client.websocket("/ws", max_queue=1):
            for _ in range(10):
                await app.publish("topic", "x")
            dropped = app.hub.losses["drop_newest"]
            assert dropped > 0
            after = changes(before, await scrape(client))
            assert after["microws_dropped_messages_total reason=drop_newest"] == dropped
            assert after["microws_queued_messages"] > 0
            assert after["microws_longest_queue_messages"] > 0


async def test_the_hub_is_shown_with_its_history(app):
    app.topic("kept", history=5)
    async with app.test_client() as client:
        await app.publish("kept", "x" * 100)
        values = await scrape(client)
        assert values["microws_hub_up"] == 1
        assert values["microws_hub_history_bytes"] > 100
        assert values["microws_hub_history_dropped_messages"] == 0


async def test_openmetrics_is_sent_to_a_client_that_asks_for_it(app):
    async with app.test_client() as client:
        response = await client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert response.headers["content-type"].startswith("application/openmetrics-text")
        assert response.text.endswith("# EOF\n")


async def test_the_hooks_of_the_app_guard_the_route_and_its_pattern_may_be_another_one():
    app = App()
    app.metrics("/internal/metrics")

    @app.before_request
    async def check(request):
        return None if request.headers.get("authorization") == "Bearer x" else ("", 401)

    async with app.test_client() as client:
        assert (await client.get("/internal/metrics")).status == 401
        assert (await client.get("/internal/metrics", headers={"authorization": "Bearer x"})).status == 200


async def test_an_included_app_shows_the_hub_of_the_app_that_serves(app):
    outer = App()
    outer.include(app, "/live")
    async with outer.test_client() as client, client.websocket("/live/ws"):
        values = values_of((await client.get("/live/metrics")).text)
        assert values["microws_subscribers"] == 1


async def test_nothing_is_counted_without_metrics():
    app = App()

    @app.websocket_route("/ws", subscribe="topic")
    async def ws(ws):
        async with ws:
            await ws.receive()

    before = COUNTERS.slots()
    async with app.test_client() as client, client.websocket("/ws"):
        await app.publish("topic", "hi")
    assert COUNTERS.slots() == before


async def test_many_outboxes_are_counted_in_several_turns(app, monkeypatch):
    monkeypatch.setattr("microws.hub.hub._COUNTED_AT_ONCE", 2)
    async with app.test_client() as client, client.websocket("/ws"), client.websocket("/ws"), client.websocket("/ws"):
        assert await app.hub.count_pending() == (1, 3, 3, 0, 0)


def test_without_prometheus_client_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "microws.metrics", raising=False)
    monkeypatch.setitem(sys.modules, "prometheus_client.core", None)
    with pytest.raises(FeatureUnavailable, match=r"metrics need prometheus-client: pip install 'microws\[metrics\]'"):
        App().metrics()


# Several workers

SERVED = """
import os
import time
from microws import App, EventStream

app = App()
app.metrics()


@app.websocket_route("/echo", subscribe="topic")
async def echo(ws):
    async with ws:
        async for message in ws:
            if message == "pid":
                message = str(os.getpid())
            if message == "block":
                time.sleep(1000)
            await ws.send(message)


@app.get("/events")
async def events():
    return EventStream(app.stream("topic"))


@app.post("/publish")
async def publish(request):
    await app.publish("topic", "published")
    return str(os.getpid())
"""


@contextmanager
def served(directory, *options):
    (directory / "counted.py").write_text(SERVED)
    process = subprocess.Popen(
        [sys.executable, "-m", "microws", "run", "counted.py", "--port", "0", "--no-access-log", *options],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(LIMIT)
        finally:
            process.kill()
            process.stdout.close()


def ask(ws, message):
    ws.send(message)
    return ws.recv(timeout=LIMIT)


def scrape_until(url, condition):
    """Scrape until ``condition`` holds of the values; all values meanwhile, by sample with its worker."""
    seen = []
    for _ in range(500):
        with httpx.Client(timeout=2, verify=False) as client, suppress(httpx.TransportError):
            text = client.get(f"{url}/metrics").text
            seen.append(text)
            if condition(values_of(text)):
                return seen
    raise AssertionError(seen[-1])


def never_falls(texts):
    before = {}
    for text in texts:
        now = {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            if family.type in ("counter", "histogram")
            for sample in family.samples
        }
        assert {name: (value, now.get(name)) for name, value in before.items() if now.get(name, 0) < value} == {}
        before = now


def test_workers_are_counted_together_also_if_one_is_blocked_or_killed(tmp_path):
    with (
        served(tmp_path, "--workers", "2", "--worker-timeout", "0", "--drain-timeout", "1") as server,
        ExitStack() as stack,
    ):
        sockets = [stack.enter_context(connect(f"{server.ws_url}/echo", close_timeout=1)) for _ in range(4)]
        pids = [int(ask(ws, "pid")) for ws in sockets]
        assert len(set(pids)) == 2
        assert [ask(ws, "hello") for ws in sockets] == ["hello"] * 4
        assert sockets[0].ping(b"not a message").wait(LIMIT)
        assert httpx.post(f"{server.url}/publish").status_code == 200
        for ws in sockets:
            assert ws.recv(timeout=LIMIT) == "published"
        expected = {
            "microws_websockets_total": 4,
            "microws_websockets_open": 4,
            "microws_messages_received_total": 8,
            "microws_messages_sent_total": 12,
            "microws_received_bytes_total": 4 * (6 + len("pid") + 6 + len("hello")) + 6 + len("not a message"),
            "microws_deliveries_total": 4,
            "microws_publish_seconds_count": 1,
            "microws_subscribers": 4,
            "microws_worker_restarts_total": 0,
            "microws_hub_up": 1,
        }
        texts = scrape_until(server.url, lambda values: expected.items() <= values.items())
        assert set(re.findall(r'worker="(\d)"', texts[-1])) == {"0", "1"}

        sockets[0].send("block")
        other = next(ws for ws, pid in zip(sockets, pids, strict=True) if pid != pids[0])
        assert ask(other, "more") == "more"
        texts += scrape_until(server.url, lambda values: values["microws_messages_received_total"] == 10)

        os.kill(pids[0], signal.SIGKILL)
        texts += scrape_until(server.url, lambda values: values["microws_worker_restarts_total"] == 1)
        values = values_of(texts[-1])
        assert (values["microws_messages_received_total"], values["microws_messages_sent_total"]) == (10, 13)
        killed = values["microws_websockets_closed_total code=1006"]
        assert killed + values["microws_websockets_open"] == values["microws_websockets_total"] == 4
        server.wait_for_line("worker [0-9]+ serves", within=LIMIT)
        with connect(f"{server.ws_url}/echo") as ws:
            assert ask(ws, "again") == "again"
        texts += scrape_until(server.url, lambda values: values["microws_messages_received_total"] == 11)
        never_falls(texts)
