"""``microws run`` as a program: what it says, what it exits with, and how it ends."""

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
        """The next line that has ``text``."""
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
        """Wait until it serves; its port."""
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
        """The lines that nobody has read, after the end."""
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


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return sock.getsockname()[1]


LOOPS = ["asyncio", "uvloop", "trio"]


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_closes_websockets_with_1012_and_exits_with_0(start, loop, number):
    program = start("run", "chat:app", "--port", "0", "--loop", loop)
    port = program.serving()
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
    with connect(f"ws://127.0.0.1:{port}/") as ws:
        ws.send("hi")
        assert ws.recv(timeout=LIMIT) == "hi"
        program.process.send_signal(number)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=LIMIT)
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1012, "service restart")
    assert program.wait() == 0
    assert program.rest("stdout") == ["1012", "stopped"]
    access = [line.partition('"')[2].rpartition(" ")[0] for line in program.rest() if '"' in line]
    assert access == ['GET / HTTP/1.1" 200', 'WebSocket / HTTP/1.1" 101', 'WebSocket / HTTP/1.1" closed 1012']


def test_the_first_line_says_what_is_served_where_and_how_to_stop_it(start):
    program = start("run", "chat.py", "--port", "0")
    line = program.line_with("serving")
    before, _, after = line.partition(" serving chat:app on http://127.0.0.1:")
    assert " info microws " in before
    assert after.endswith(" (Ctrl-C stops)")
    assert program.stop() == 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_second_ctrl_c_ends_it_at_once(start, loop):
    program = start("run", "chat:app", "--port", "0", "--loop", loop, "--drain-timeout", "300")
    with socket.create_connection(("127.0.0.1", program.serving())) as client:
        client.sendall(b"GET /hang HTTP/1.1\r\nhost: x\r\n\r\n")
        program.line_with("asked", stream="stdout")
        program.process.send_signal(signal.SIGINT)
        program.line_with("stopping within 300 s; open requests: 1, WebSockets: 0")
        began = time.monotonic()
        assert program.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5


def test_json_logs_are_one_object_a_line(start):
    program = start("run", "chat:app", "--port", "0", "--log-format", "json")
    port = json.loads(program.line_with("serving"))["message"].partition("127.0.0.1:")[2].split()[0]
    httpx.get(f"http://127.0.0.1:{port}/x?y")
    access = json.loads(program.line_with("GET"))
    assert program.stop() == 0
    assert (access["method"], access["path"], access["status"], access["logger"]) == (
        "GET",
        "/x?y",
        200,
        "microws.access",
    )
    for line in program.rest():
        json.loads(line)


def test_a_start_up_that_fails_is_exit_code_1_with_the_users_traceback(start, directory):
    (directory / "main.py").write_text(
        "from microws import App\napp = App()\n\n@app.on_startup\n"
        "async def connect():\n    raise LookupError('no database')\n"
    )
    port = free_port()
    program = start("run", "--port", str(port))
    assert program.wait() == 1
    text = "\n".join(program.rest())
    assert "the app's startup failed" in text
    assert 'main.py", line 6, in connect' in text
    assert text.count("LookupError: no database") == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_an_address_in_use_is_exit_code_1_and_one_line(start):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        program = start("run", "chat:app", "--port", str(port))
        assert program.wait() == 1
    [line] = program.rest()
    assert f"127.0.0.1:{port} is in use" in line
    assert f"--port {port + 1}" in line


def test_a_usage_error_is_exit_code_2_and_one_line(start):
    program = start("run", "chat:app", "--prot", "1")
    assert program.wait() == 2
    assert program.rest() == ["error: unknown argument '--prot'; did you mean '--port'?"]


def test_a_variable_that_nobody_knows_is_warned_of_once_and_by_no_worker(start):
    program = start("run", "chat:app", "--port", "0", "--workers", "2", env={"MICROWS_LOGLEVEL": "debug"})
    program.serving()
    assert program.seen[0] == "warning: MICROWS_LOGLEVEL is not an option; did you mean 'MICROWS_LOG_LEVEL'?"
    assert program.stop() == 0
    assert not [line for line in (*program.seen[1:], *program.rest()) if "LOGLEVEL" in line]


def test_an_app_that_cannot_be_loaded_is_exit_code_3_and_one_line(start):
    program = start("run", "chat:ap")
    assert program.wait() == 3
    assert program.rest() == ["error: chat has no attribute 'ap'; did you mean: microws run chat:app"]


def test_an_import_that_fails_shows_the_users_own_frames_only(start, directory):
    (directory / "helper.py").write_text("import chta\n")
    (directory / "main.py").write_text("import helper\n")
    program = start("run", "main:app")
    assert program.wait() == 3
    assert program.rest() == [
        "Traceback (most recent call last):",
        f'  File "{directory}/main.py", line 1, in <module>',
        "    import helper",
        f'  File "{directory}/helper.py", line 1, in <module>',
        "    import chta",
        "ModuleNotFoundError: No module named 'chta'",
        "error: main failed while it was imported: ModuleNotFoundError",
    ]


def test_flag_beats_environment_beats_pyproject(start, directory):
    (directory / "pyproject.toml").write_text(
        '[tool.microws]\napp = "chat:app"\nport = 1\nhost = "127.0.0.2"\ndrain-timeout = 3\naccess-log = false\n'
    )
    (directory / "settings.env").write_text("MICROWS_DRAIN_TIMEOUT=4\nMICROWS_LOG_LEVEL=info\n")
    program = start("run", "--env-file", "settings.env", "--port", "0", env={"PORT": "2", "MICROWS_LOG_LEVEL": "debug"})
    line = program.line_with("serving chat:app")
    assert "http://127.0.0.2:" in line
    port = int(line.partition("127.0.0.2:")[2].split()[0])
    httpx.get(f"http://127.0.0.2:{port}/")
    program.process.send_signal(signal.SIGTERM)
    program.line_with("stopping within 4 s")
    assert program.wait() == 0
    assert not any("GET" in line for line in program.seen)


def test_the_platform_may_ask_for_several_workers(start):
    program = start("run", "chat:app", env={"PORT": "0", "WEB_CONCURRENCY": "2"})
    line = program.line_with(" serving ")
    assert line.endswith(" with 2 workers (Ctrl-C stops)")
    port = line.partition(" on ")[2].split()[0].rpartition(":")[2]
    assert httpx.get(f"http://127.0.0.1:{port}/", timeout=LIMIT).text == "ok"
    assert program.stop() == 0
    assert "".join(program.rest("stdout")).count("stopped") == 2


def test_several_addresses_are_served(start, directory):
    path = directory / "app.sock"
    program = start("run", "chat:app", "--bind", f"unix:{path}", "--bind", "127.0.0.1:0")
    line = program.line_with("serving")
    assert f" on unix:{path}, http://127.0.0.1:" in line
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
        assert client.get("http://app/").text == "ok"
    port = line.partition("127.0.0.1:")[2].split()[0]
    assert httpx.get(f"http://127.0.0.1:{port}/").text == "ok"
    assert program.stop() == 0
    assert not path.exists()


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
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


def test_a_factory_in_another_directory_is_served(start, directory):
    (directory / "src").mkdir()
    (directory / "src" / "shop.py").write_text("from microws import App\n\ndef create_app():\n    return App()\n")
    program = start("run", "shop:create_app", "--factory", "--app-dir", "src", "--port", "0", "--no-access-log")
    port = program.serving()
    assert httpx.get(f"http://127.0.0.1:{port}/").status_code == 404
    assert program.stop() == 0
    assert not any("GET" in line for line in [*program.seen, *program.rest()])
