"""Supervisors with real workers, each in a process group of its own that ends with the test."""

import os
import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress

from serving import LIMIT, Server

APP = """
import os
import sys

import anyio

from microws import App

app = App()
VERSION = 1


@app.get("/")
def who(request):
    return {"pid": os.getpid(), "version": VERSION}


@app.get("/slow/{seconds:float}")
async def slow(request, seconds):
    # One write: a line of the log may come between two.
    sys.stdout.write("slow\\n")
    sys.stdout.flush()
    await anyio.sleep(seconds)
    return "done"


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        await ws.send(str(os.getpid()))
        async for message in ws:
            await ws.send(message)


@app.on_shutdown
def stopped():
    os.write(1, b"stopped\\n")  # at once: several processes have the same output
"""


def write(directory, text=APP, *, before="", after=""):
    """``chat.py``, with other lines than those it had."""
    assert before in text
    (directory / "chat.py").write_text(text.replace(before, after) if before else text)


def command(*arguments, app="chat:app", port=0):
    bind = () if "--bind" in arguments else ("--port", str(port))
    return [sys.executable, "-m", "microws", "run", app, *bind, *arguments]


@contextmanager
def process(directory, command, *, max_files=None, **options):
    """A process and all that it starts; none of it outlives the block."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MICROWS_", "PORT", "WEB_"))}
    started = subprocess.Popen(
        command,
        cwd=directory,
        env=clean | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=None if max_files is None else lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (max_files,) * 2),
        **options,
    )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
        started.wait(LIMIT)
        started.stdout.close()


@contextmanager
def supervised(directory, *arguments, **options):
    """``microws run chat:app``, with several workers that serve already."""
    with process(directory, command(*arguments), **options) as started:
        server = Server(started)
        server.pid = started.pid
        yield server
