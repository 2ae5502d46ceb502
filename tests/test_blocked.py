"""``--warn-blocked``: one line with the place of what blocks the event loop."""

import signal
import time
import urllib.request

import pytest
from serving import LIMIT, running
from supervising import command

APP = """
import time

from microws import App

app = App()


@app.get("/")
async def quick():
    return "quick"


@app.get("/blocks/{seconds:float}")
async def blocks(seconds):
    work(seconds)
    return "done"


def work(seconds):
    time.sleep(seconds)


@app.get("/thread")
def thread():
    time.sleep(0.6)
    return "done"
"""
LINE = r"warning the event loop was blocked for (\d\.\d) s, and every connection with it: (.*)"


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def server(request, tmp_path):
    (tmp_path / "chat.py").write_text(APP)
    options = ("--warn-blocked", "0.2", "--loop", request.param)
    with running(command(*options), cwd=tmp_path) as server:
        server.folder = tmp_path
        yield server


def get(server, path):
    with urllib.request.urlopen(server.url + path, timeout=LIMIT) as response:
        return response.read()


def test_a_block_is_told_once_with_its_place_and_duration(server):
    get(server, "/blocks/0.7")
    ended = time.monotonic()
    match = server.wait_for_line(LINE)
    assert time.monotonic() - ended < LIMIT
    assert 0.5 <= float(match[1]) <= 3
    line = APP.splitlines().index("    work(seconds)") + 1
    inner = APP.splitlines().index("    time.sleep(seconds)") + 1
    file = server.folder / "chat.py"
    assert match[2] == f"blocks() at {file}:{line}, in work() at {file}:{inner}"
    get(server, "/blocks/0.7")
    get(server, "/")
    server.signal(signal.SIGTERM)
    server.wait()
    assert len(server.find_lines(LINE)) == 1


def test_what_blocks_nothing_is_not_told(server):
    get(server, "/blocks/0.01")
    get(server, "/thread")
    server.signal(signal.SIGSTOP)
    time.sleep(0.6)
    server.signal(signal.SIGCONT)
    get(server, "/")
    server.signal(signal.SIGTERM)
    server.wait()
    assert server.find_lines(LINE) == []
