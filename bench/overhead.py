#!/usr/bin/env python
"""
What each framework adds to a bare ASGI app: CPU time and memory, measured in memory.

There is no server and no socket, so there is little noise: a change of one microsecond is visible. The harness acts as
the server of one connection: every event arrives in a later iteration of the event loop, as it does over a socket. The
row of the bare app shows the cost of the harness.
"""

import argparse
import asyncio
import cProfile
import gc
import importlib
import json
import pstats
import sys
import tracemalloc
from collections import deque
from pathlib import Path
from time import process_time

ROOT = Path(__file__).resolve().parent.parent
APPS = {
    "bare": "bench.apps.bare",
    "microws": "bench.apps.microws_app",
    "starlette": "bench.apps.starlette_app",
    "quart": "bench.apps.quart_app",
}
TEXT = "abcdefghijklmnopqrstuvwxyz" * 2 + "abcdefghijkl"
ANSWER = {"message": "Hello, World!"}
TIME_LIMIT = 600  # seconds, for everything together


class Channel:
    """The server's end of one ASGI connection: ``receive`` for the app, ``put`` for the harness."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self._events = deque()
        self._waiter = None

    def put(self, event):
        if self._waiter is None:
            self._events.append(event)
        else:
            self._waiter.set_result(event)
            self._waiter = None

    def put_soon(self, event):
        self._loop.call_soon(self.put, event)

    async def receive(self):
        if self._events:
            return self._events.popleft()
        self._waiter = self._loop.create_future()
        try:
            return await self._waiter
        finally:
            self._waiter = None


def new_scope(kind, path):
    headers = [(b"host", b"127.0.0.1:8000")]
    scope = {
        "type": kind,
        "asgi": {"spec_version": "2.3", "version": "3.0"},
        "http_version": "1.1",
        "scheme": "ws" if kind == "websocket" else "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        "state": {},
        "extensions": {},
    }
    if kind == "websocket":
        headers += [
            (b"upgrade", b"websocket"),
            (b"connection", b"Upgrade"),
            (b"sec-websocket-key", b"dGhlIHNhbXBsZSBub25jZQ=="),
            (b"sec-websocket-version", b"13"),
        ]
        scope["subprotocols"] = []
        scope["extensions"]["websocket.http.response"] = {}
    else:
        scope["method"] = "GET"
    return scope


async def open_websocket(app, on_message):
    """An accepted connection to ``/echo``: its channel and the task that runs the app."""
    channel = Channel()
    accepted = asyncio.get_running_loop().create_future()

    async def send(event):
        if event["type"] == "websocket.send":
            on_message(event)
        elif event["type"] == "websocket.accept":
            accepted.set_result(None)
        elif not accepted.done():
            accepted.set_exception(RuntimeError(f"expected websocket.accept, the app sent {event!r}"))

    task = asyncio.create_task(app(new_scope("websocket", "/echo"), channel.receive, send))
    fail_with(accepted, task)
    channel.put({"type": "websocket.connect"})
    await accepted
    return channel, task


def fail_with(future, task):
    """Fail ``future`` if the app ends before it is done."""

    def app_ended(task):
        if not future.done():
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            future.set_exception(RuntimeError(f"the app ended before it answered, with {error!r}"))

    task.add_done_callback(app_ended)


async def close_websocket(channel, task):
    channel.put({"type": "websocket.disconnect", "code": 1006})
    # Not ``await task``: Quart cancels its view on disconnect, and the task then ends as cancelled.
    await asyncio.wait([task])


async def time_echo(app, n):
    """CPU seconds of ``n`` messages, each sent after the previous one was echoed."""
    left = n
    finished = asyncio.get_running_loop().create_future()

    def on_message(event):
        nonlocal left
        assert event["text"] == TEXT
        left -= 1
        if left:
            channel.put_soon({"type": "websocket.receive", "bytes": None, "text": TEXT})
        else:
            finished.set_result(None)

    channel, task = await open_websocket(app, on_message)
    fail_with(finished, task)
    start = process_time()
    channel.put_soon({"type": "websocket.receive", "bytes": None, "text": TEXT})
    await finished
    elapsed = process_time() - start
    await close_websocket(channel, task)
    return elapsed


async def time_get(app, n):
    """CPU seconds of ``n`` sequential GETs of small JSON."""
    status, body = None, b""

    async def send(event):
        nonlocal status, body
        if event["type"] == "http.response.start":
            status, body = event["status"], b""
        elif event["type"] == "http.response.body":
            body += event.get("body", b"")

    start = process_time()
    for _ in range(n):
        channel = Channel()
        channel.put_soon({"type": "http.request", "body": b"", "more_body": False})
        await asyncio.create_task(app(new_scope("http", "/json"), channel.receive, send))
    elapsed = process_time() - start
    if (status, json.loads(body)) != (200, ANSWER):
        raise RuntimeError(f"expected 200 and {ANSWER}, got {status} and {body!r}")
    return elapsed


async def time_connect(app, n):
    """CPU seconds of ``n`` connections, each accepted and then closed by the client."""
    start = process_time()
    for _ in range(n):
        await close_websocket(*await open_websocket(app, None))
    return process_time() - start


async def idle_bytes(app, n):
    """Bytes of Python objects that one accepted, silent connection holds: app, task and ASGI scope."""
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        connections = [await open_websocket(app, None) for _ in range(n)]
        await asyncio.sleep(0.05)  # for tasks that the app starts after accept
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    for connection in connections:
        await close_websocket(*connection)
    return (after - before) / n


class Lifespan:
    """Runs an app's lifespan around the measurements."""

    def __init__(self, app):
        self._app = app
        self._events = asyncio.Queue()

    async def __aenter__(self):
        self._channel = Channel()
        scope = {"type": "lifespan", "asgi": {"spec_version": "2.0", "version": "3.0"}, "state": {}}
        self._task = asyncio.create_task(self._app(scope, self._channel.receive, self._events.put))
        await self._step("startup")

    async def __aexit__(self, *exc_info):
        await self._step("shutdown")
        await self._task

    async def _step(self, name):
        self._channel.put({"type": f"lifespan.{name}"})
        event = await self._events.get()
        if event["type"] != f"lifespan.{name}.complete":
            raise RuntimeError(f"expected lifespan.{name}.complete, the app sent {event!r}")


TIMED = {"echo": time_echo, "get": time_get, "connect": time_connect}


async def measure(names, counts, rounds, idle):
    """``{app: {measure: figure}}``: microseconds, the minimum of all rounds because noise only adds, and bytes."""
    apps = {name: importlib.import_module(APPS[name]).app for name in names}
    figures = {name: {} for name in names}
    for name, app in apps.items():
        async with Lifespan(app):
            for measure_time in TIMED.values():
                await measure_time(app, 200)
            figures[name]["idle"] = await idle_bytes(app, idle)
    gc.collect()
    gc.freeze()
    for round_ in range(rounds):
        for name in names if round_ % 2 == 0 else names[::-1]:
            async with Lifespan(apps[name]):
                for key, measure_time in TIMED.items():
                    gc.collect()
                    microseconds = await measure_time(apps[name], counts[key]) / counts[key] * 1e6
                    figures[name][key] = min(microseconds, figures[name].get(key, microseconds))
    return figures


async def profile(name, key, n):
    """Print a profile of one measure."""
    app = importlib.import_module(APPS[name]).app
    async with Lifespan(app):
        await TIMED[key](app, 200)
        with cProfile.Profile() as profiler:
            await TIMED[key](app, n)
    pstats.Stats(profiler).strip_dirs().sort_stats("tottime").print_stats(30)


def table(figures):
    columns = {"echo": "echo, µs", "get": "GET, µs", "connect": "connect, µs", "idle": "idle connection, bytes"}
    lines = ["| app | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    bare = figures.get("bare")
    for name, row in figures.items():
        cells = []
        for key in columns:
            cell = f"{row[key]:,.0f}" if key == "idle" else f"{row[key]:.1f}"
            if bare and name != "bare":
                more = row[key] - bare[key]
                cell += f" ({more:+,.0f})" if key == "idle" else f" ({more:+.1f})"
            cells.append(cell)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="What each framework adds to a bare ASGI app, measured in memory.")
    parser.add_argument("--only", default=",".join(APPS), help="apps, comma-separated (%(default)s)")
    parser.add_argument("-n", type=int, default=10_000, help="messages and GETs a sample (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="samples of each; the minimum counts (%(default)s)")
    parser.add_argument("--idle", type=int, default=1_000, help="idle connections (%(default)s)")
    parser.add_argument("--profile", choices=TIMED, help="print a profile of this measure instead, for each app")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := [name for name in names if name not in APPS]:
        parser.error(f"--only: expected some of {', '.join(APPS)}, got {', '.join(unknown)}")

    sys.path.insert(0, str(ROOT))
    if arguments.profile:
        for name in names:
            print(f"# {name}, {arguments.profile}")
            asyncio.run(asyncio.wait_for(profile(name, arguments.profile, arguments.n), TIME_LIMIT))
        return
    # A connection costs about ten times as much as a message.
    counts = {"echo": arguments.n, "get": arguments.n, "connect": arguments.n // 4}
    figures = asyncio.run(asyncio.wait_for(measure(names, counts, arguments.rounds, arguments.idle), TIME_LIMIT))
    if arguments.json:
        print(json.dumps(figures))
    else:
        print(table(figures))
        if "bare" in figures:
            print("\nIn brackets: the difference to the bare app, which is the cost of the framework.")


if __name__ == "__main__":
    main()
