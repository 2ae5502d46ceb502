"""``microws run`` as a program: its log, its exit code, and how it ends."""

import json
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TESTS = Path(__file__).parent
LIMIT = 30.0

ECHO = """
import anyio

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("stopped", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (event := await receive())["type"] != "websocket.disconnect":
            await send({"type": "websocket.send", "text": event["text"]})
        print(event["code"], flush=True)
    elif scope["path"] == "/hang":
        print("asked", flush=True)
        await anyio.sleep_forever()
    else:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})
"""


class Program:
    """A running ``microws``, its two streams read line by line."""

    def __init__(self, process):
        self.process = process
        self.lines = {"stdout": queue.Queue(), "stderr": queue.Queue()}
        self.seen = []
        self._threads = [
            threading.Thread(target=self._read, args=(stream, self.lines[name]), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def _read(self, stream, lines):
        with stream:
            for line in stream:
                lines.put(line.rstrip("\n"))

    def line_with(self, text, *, stream="stderr"):
        """The next line with ``text``."""
        end = time.monotonic() + LIMIT
        while True:
            try:
                line = self.lines[stream].get(timeout=max(0, end - time.monotonic()))
            except queue.Empty:
                pytest.fail(f"no line with {text!r}; there were: {self.seen}")
            self.seen.append(line)
            if text in line:
                return line

    def serving(self):
        """Wait until the program serves; its port."""
        return int(self.line_with(" serving ").partition(" on ")[2].split()[0].rpartition(":")[2])

    def stop(self, *signals):
        """Send the signals; the exit code and the rest of stderr."""
        for number in signals or (signal.SIGTERM,):
            self.process.send_signal(number)
        return self.wait()

    def wait(self):
        code = self.process.wait(LIMIT)
        for thread in self._threads:
            thread.join(LIMIT)
        return code

    def rest(self, stream="stderr"):
        """The unread lines, after the end."""
        lines = []
        while not self.lines[stream].empty():
            lines.append(self.lines[stream].get())
        return lines


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "chat.py").write_text(ECHO)
    return tmp_path


@pytest.fixture
def start(directory):
    programs = []

    def start(*arguments, env=(), command=(sys.executable, "-m", "microws"), **options):
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("MICROWS_", "PORT", "WEB_"))}
        environ = clean | {"PYTHONPATH": str(TESTS.parent), "PYTHONWARNINGS": "error", **dict(env)}
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        program = Program(process)
        programs.append(program)
        return program

    yield start
    for program in programs:
        program.process.kill()
        program.wait()


LOOPS = ["asyncio", "uvloop", "trio"]


@pytest.mark.parametrize("loop", LOOPS)
def test_sigterm_closes_websockets_with_1012_and_exits_with_0(start, loop):
    program = start("run", "chat.py", "--port", "0", "--loop", loop)
    line = program.line_with(" serving ")
    before, _, after = line.partition(" serving chat:app on http://127.0.0.1:")
    assert " info microws " in before
    port, _, how_to_stop = after.partition(" ")
    assert how_to_stop == "(Ctrl-C stops)"
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
    with connect(f"ws://127.0.0.1:{port}/") as ws:
        ws.send("hi")
        assert ws.recv(timeout=LIMIT) == "hi"
        program.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=LIMIT)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "service restart")
    assert program.wait() == 0
    assert program.rest("stdout") == ["1012", "stopped"]
    access = [line.partition('"')[2].rpartition(" ")[0] for line in program.rest() if '"' in line]
    assert access == ['GET / HTTP/1.1" 200', 'WebSocket / HTTP/1.1" 101', 'WebSocket / HTTP/1.1" closed 1012']


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_ctrl_c_ends_the_program_immediately(start, loop):
    program = start("run", "chat:app", "--port", "0", "--loop", loop, "--drain-timeout", "300")
    with socket.create_connection(("127.0.0.1", program.serving())) as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        program.line_with("asked", stream="stdout")
        program.process.send_signal(signal.SIGINT)
        program.line_with("stopping within 300 s; open requests: 1, WebSockets: 0")
        began = time.monotonic()
        assert program.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5


def test_variables_of_the_platform_start_workers_and_a_wrong_one_warns_once(start):
    program = start("run", "chat:app", env={"PORT": "0", "WEB_CONCURRENCY": "2", "MICROWS_LOGLEVEL": "debug"})
    line = program.line_with(" serving ")
    assert line.endswith(" with 2 workers (Ctrl-C stops)")
    assert program.seen[0] == "warning: MICROWS_LOGLEVEL is not an option; did you mean 'MICROWS_LOG_LEVEL'?"
    port = line.partition(" on ")[2].split()[0].rpartition(":")[2]
    assert httpx.get(f"http://127.0.0.1:{port}/", timeout=LIMIT).text == "ok"
    assert program.stop() == 0
    assert "".join(program.rest("stdout")).count("stopped") == 2
    assert not [line for line in (*program.seen[1:], *program.rest()) if "LOGLEVEL" in line]


def test_several_addresses_are_served_and_json_logs_are_one_object_a_line(start, directory):
    path = directory / "app.sock"
    program = start("run", "chat:app", "--bind", f"unix:{path}", "--bind", "127.0.0.1:0", "--log-format", "json")
    line = json.loads(program.line_with("serving"))["message"]
    assert f" on unix:{path}, http://127.0.0.1:" in line
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://app/").text == "ok"
    port = line.partition("127.0.0.1:")[2].split()[0]
    assert httpx.get(f"http://127.0.0.1:{port}/x?y").text == "ok"
    access = json.loads(program.line_with("/x"))
    assert [access[key] for key in ("method", "path", "status", "logger")] == ["GET", "/x?y", 200, "microws.access"]
    assert program.stop() == 0
    assert not path.exists()
    for line in program.rest():
        json.loads(line)


def test_a_factory_in_another_directory_is_served_without_an_access_log(start, directory):
    (directory / "src").mkdir()
    (directory / "src" / "shop.py").write_text("from microws import App\n\ndef create_app():\n    return App()\n")
    program = start("run", "shop:create_app", "--factory", "--app-dir", "src", "--port", "0", "--no-access-log")
    port = program.serving()
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
    assert program.stop() == 0
    assert not any("GET" in line for line in [*program.seen, *program.rest()])


@pytest.mark.parametrize(
    ("loop", "family"), [("asyncio", socket.AF_INET), ("uvloop", socket.AF_UNIX), ("trio", socket.AF_INET)]
)
def test_a_socket_of_the_parent_is_served(start, loop, family, directory):
    path = directory / "app.sock"
    with socket.socket(family) as sock:
        sock.bind(str(path) if family == socket.AF_UNIX else ("127.0.0.1", 0))
        sock.listen()
        number = sock.fileno()
        program = start("run", "chat:app", "--bind", f"fd://{number}", "--loop", loop, pass_fds=[number])
        uds = str(path) if family == socket.AF_UNIX else None
        port = 80 if uds else sock.getsockname()[1]
        with httpx.Client(transport=httpx.HTTPTransport(uds=uds)) as client:
            assert client.get(f"http://127.0.0.1:{port}/", timeout=LIMIT).text == "ok"
        assert program.stop() == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_tls_is_served(start, loop):
    files = ("--certfile", str(TESTS / "tls" / "localhost.pem"), "--keyfile", str(TESTS / "tls" / "localhost.key"))
    program = start("run", "chat:app", "--port", "0", "--loop", loop, *files)
    port = program.serving()
    trusted = ssl.create_default_context(cafile=TESTS / "tls" / "localhost.pem")
    assert httpx.get(f"https://localhost:{port}/", verify=trusted).text == "ok"
    with connect(f"wss://localhost:{port}/", ssl=trusted) as ws:
        ws.send("hi")
        assert ws.recv(timeout=LIMIT) == "hi"
        program.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=LIMIT)
        assert closed.value.rcvd.code == 1012
    assert program.wait() == 0
