#!/usr/bin/env python
"""
How long a save takes until the new code answers: ``microws dev``, ``uvicorn --reload`` and ``fastapi dev``.

Before each save, WebSockets and event streams are open, and two requests: one in a thread that blocks, one of a view
that swallows its cancellation. Then a file is saved, and new connections ask for the version until the new one answers.
Each one that is refused or reset counts, and each answer of the old code.
"""

import argparse
import http.client
import os
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

MICROWS = """
import time

import anyio

from microws import App, EventStream

app = App()
VERSION = 1


@app.get("/")
async def version():
    return str(VERSION)


@app.websocket_route("/ws")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.get("/events")
async def events():
    return EventStream(app.stream("news"))


@app.get("/blocked")
def blocked():
    time.sleep(60)


@app.get("/stubborn")
async def stubborn():
    while True:
        try:
            await anyio.sleep(60)
        except BaseException:
            pass
"""
FASTAPI = """
import asyncio
import time

from fastapi import FastAPI, WebSocket
from fastapi.responses import PlainTextResponse, StreamingResponse

app = FastAPI()
VERSION = 1


@app.get("/", response_class=PlainTextResponse)
async def version():
    return str(VERSION)


@app.websocket("/ws")
async def echo(ws: WebSocket):
    await ws.accept()
    async for message in ws.iter_text():
        await ws.send_text(message)


@app.get("/events")
async def events():
    async def wait():
        while True:
            yield ": x\\n\\n"
            await asyncio.sleep(1)

    return StreamingResponse(wait(), media_type="text/event-stream")


@app.get("/blocked")
def blocked():
    time.sleep(60)


@app.get("/stubborn")
async def stubborn():
    while True:
        try:
            await asyncio.sleep(60)
        except BaseException:
            pass
"""
PYTHON = [sys.executable, "-m"]
PEERS = {
    "microws dev": (MICROWS, [*PYTHON, "microws", "dev", "main:app"]),
    "uvicorn --reload": (FASTAPI, [*PYTHON, "uvicorn", "main:app", "--reload"]),
    "fastapi dev": (FASTAPI, [*PYTHON, "fastapi", "dev", "main.py"]),
}
# What fails, and what the answer says of it.
FAILURES = {
    "syntax": ("VERSION = 1\n", "VERSION = (1\n"),
    "import": ("VERSION = 1\n", "VERSION = 1\nimport absent\n"),
    "start-up": ("VERSION = 1\n", "VERSION = 1\napp.on_startup(lambda: 1 / 0)\n"),
}
GIVE_UP = 10.0
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nhost: 127.0.0.1\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


class Clients:
    """Connections that are open during a save. They answer a Close frame, as browsers do."""

    def __init__(self, port):
        self.port = port
        self.selector = selectors.DefaultSelector()
        self.lock = threading.Lock()
        self.open = {}
        threading.Thread(target=self._read, daemon=True).start()

    def fill(self, wanted):
        """Open what is missing, and wait for the head of each response that has one."""
        for request, (count, has_answer) in wanted.items():
            with self.lock:
                missing = count - sum(each == request for each in self.open.values())
            for _ in range(missing):
                sock = socket.create_connection(("127.0.0.1", self.port), GIVE_UP)
                sock.sendall(request)
                if has_answer:
                    sock.recv(4096)
                sock.setblocking(False)
                with self.lock:
                    self.open[sock] = request
                    self.selector.register(sock, selectors.EVENT_READ)

    def _read(self):
        while True:
            for key, _ in self.selector.select(0.05):
                data = b""
                with suppress(OSError):
                    data = key.fileobj.recv(65536)
                if self.open[key.fileobj] == UPGRADE and b"\x88" in data:
                    with suppress(OSError):
                        key.fileobj.send(b"\x88\x80\0\0\0\0")
                if not data:
                    with self.lock:
                        self.selector.unregister(key.fileobj)
                        del self.open[key.fileobj]
                    key.fileobj.close()


def get(port, path="/"):
    """Status and body, on a new connection; ``None`` if it was refused or reset."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=GIVE_UP)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except TimeoutError:
        return 0, ""
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


class Server:
    def __init__(self, name):
        self.text, command = PEERS[name]
        self.folder = Path(tempfile.mkdtemp())
        self.file = self.folder / "main.py"
        self.save(self.text)
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]
        self.log = self.folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_for("1", GIVE_UP * 3)

    def save(self, text):
        """As editors do: another file that takes the place."""
        written = self.folder / "written"
        written.write_text(text)
        os.replace(written, self.file)  # noqa: PTH105

    def version(self, number):
        return self.text.replace("VERSION = 1\n", f"VERSION = {number}\n")

    def wait_for(self, answer, limit=GIVE_UP):
        """Seconds until this answer, the number of refused connections, and that of other answers."""
        began = time.monotonic()
        refused = others = 0
        while time.monotonic() < began + limit:
            got = get(self.port)
            if got is None:
                refused += 1
                time.sleep(0.01)
            elif got[1].startswith(answer):
                return time.monotonic() - began, refused, others
            else:
                others += 1
                time.sleep(0.005)
        return None, refused, others

    def stop(self):
        """End the server; the number of its processes that are left after two seconds."""
        self.process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GIVE_UP)
        end = time.monotonic() + 2
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.05)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        shutil.rmtree(self.folder)
        return len(left)

    def members(self):
        """The processes of its session, without those that have ended."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid and fields[0] != "Z":
                    found.append(int(path.parent.name))
        return found


def measure(name, options):
    server = Server(name)
    clients = Clients(server.port)
    wanted = {
        UPGRADE: (options.websockets, True),
        b"GET /events HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n": (options.streams, True),
    }
    if options.stuck:
        for path in ("blocked", "stubborn"):
            wanted[f"GET /{path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()] = (1, False)
    times, refused, stale, late = [], 0, 0, 0
    for number in range(2, options.saves + 2):
        seconds = None
        with suppress(OSError):  # it answers no more
            clients.fill(wanted)
            time.sleep(options.pause)
            server.save(server.version(number))
            seconds, more_refused, more_stale = server.wait_for(str(number))
            refused += more_refused
            stale += more_stale
        if seconds is None:
            late += 1
            if late == options.max_late:
                break
        else:
            times.append(seconds)
    orphans = server.stop()
    shown = f"{statistics.median(times):.2f} s | {max(times):.2f} s" if times else "- | -"
    print(f"| {name} | {len(times) + late} | {shown} | {late} | {refused} | {stale} | {orphans} |", flush=True)


def measure_failures(repeats):
    """Of ``microws dev``: until the answer that says what is wrong, and the line; until the app is back."""
    print("\n| error | answer, at most | line, at most | back, at most |\n|---|---|---|---|")
    server = Server("microws dev")
    for kind, (before, after) in FAILURES.items():
        rows = []
        for _ in range(repeats):
            seen = server.log.read_text().count("503 until it is mended")
            began = time.monotonic()
            server.save(server.text.replace(before, after))
            answer, _, _ = server.wait_for("main.py:")
            while server.log.read_text().count("503 until it is mended") == seen:
                time.sleep(0.002)
            line = time.monotonic() - began
            server.save(server.text)
            back, _, _ = server.wait_for("1")
            rows.append((answer, line, back))
        answer, line, back = (max(row) for row in zip(*rows, strict=True))
        print(f"| {kind} | {answer:.2f} s | {line:.2f} s | {back:.2f} s |", flush=True)
    server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], default=[], help="default: all")
    parser.add_argument("--saves", type=int, default=100)
    parser.add_argument("--websockets", type=int, default=100)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--pause", type=float, default=0.2, help="seconds before each save")
    parser.add_argument(
        "--no-stuck", dest="stuck", action="store_false", help="without the two requests that never end"
    )
    parser.add_argument(
        "--max-late", type=int, default=3, help="give up a server after so many saves without an answer"
    )
    options = parser.parse_args()
    print("| | saves | median | maximum | none in 10 s | refused | old answers | processes left |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.names or PEERS:
        measure(name, options)
    if not options.names:
        measure_failures(10)


if __name__ == "__main__":
    main()
