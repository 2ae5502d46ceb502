"""``microws dev`` in a process group of its own, which ends with the test; and the app that it serves."""

import http.client
import os
import sys
import time
from contextlib import contextmanager

from serving import LIMIT, Server
from supervising import process

APP = """
import os
import time

import anyio

from microws import App, EventStream

app = App()
VERSION = 1


@app.get("/")
def who(request):
    return {"version": VERSION, "pid": os.getpid()}


@app.get("/page")
def page():
    return "<!doctype html><html><body><h1>Page</h1></body></html>"


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.get("/news")
async def news():
    return EventStream(app.stream("news"))


@app.get("/blocked")
def blocked():
    time.sleep(30)


@app.get("/stubborn")
async def stubborn():
    while True:
        try:
            await anyio.sleep(30)
        except BaseException:
            pass
"""


class Developing:
    """A running ``microws dev chat:app``, and the folder of the app."""

    def __init__(self, server, folder):
        self.server = server
        self.folder = folder
        self.port = server.port

    def save(self, text=APP, *, before="", after="", name="chat.py"):
        """Replace the app, or a part of it; as editors do, by another file."""
        if before:
            assert before in text
            text = text.replace(before, after)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "written").write_text(text)
        os.replace(self.folder / "written", path)  # noqa: PTH105

    def get(self, path="/", **headers):
        """Status, body and headers, on a new connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=LIMIT)
        try:
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request("GET", path, headers={"connection": "close"} | headers)
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace"), response.headers
        finally:
            connection.close()

    @property
    def version(self):
        return self.json()["version"]

    @property
    def pid(self):
        return self.json()["pid"]

    def json(self):
        import json

        status, body, _ = self.get()
        assert status == 200, body
        return json.loads(body)

    def wait_until(self, is_true, within=LIMIT):
        end = time.monotonic() + within
        while not is_true():
            assert time.monotonic() < end, "\n".join(self.server.output)
            time.sleep(0.01)


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(*arguments):
    return [sys.executable, "-m", "microws", "dev", "--port", "0", *arguments]


@contextmanager
def developed(folder, *arguments, text=APP, program=None):
    """``microws dev chat:app``, which serves already."""
    (folder / "chat.py").write_text(text)
    with process(folder, program or command(*(arguments or ("chat:app",)))) as started:
        server = Server(started)
        server.pid = started.pid
        yield Developing(server, folder)
