"""Several workers behind one socket: what their clients see when workers die, are renewed, and end."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from servers import UPGRADE
from serving import LIMIT, Server
from supervising import APP, command, process, supervised, write
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

TLS = Path(__file__).parents[1] / "tls"


@pytest.fixture
def directory(tmp_path):
    write(tmp_path)
    return tmp_path


def get(port, path="/", *, family=socket.AF_INET):
    """The status and the body, over a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", None if family == socket.AF_UNIX else port, timeout=LIMIT)
    if family == socket.AF_UNIX:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(LIMIT)
        connection.sock.connect(str(port))
    with contextlib.closing(connection):
        connection.request("GET", path, headers={"connection": "close"})
        response = connection.getresponse()
        return response.status, response.read().decode()


def one_websocket_each(stack, server, count):
    """A WebSocket of each worker, by the worker's number."""
    websockets = {}
    end = time.monotonic() + LIMIT
    while len(websockets) < count and time.monotonic() < end:
        ws = stack.enter_context(connect(f"{server.ws_url}/echo", proxy=None))
        websockets.setdefault(int(ws.recv(timeout=LIMIT)), ws)
    assert len(websockets) == count
    return websockets


def echoes(ws):
    ws.send("hello")
    return ws.recv(timeout=LIMIT) == "hello"


def wait_until(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


# Connections

# What a WebSocket of the app begins with: the number of its worker.
FIRST_MESSAGE = re.compile(rb"\r\n\r\n\x81.(\d+)", re.DOTALL)


def connect_at_once(address, count):
    """So many WebSockets whose handshakes are sent before any answer is read; and the workers that have them."""
    family = socket.AF_INET if isinstance(address, tuple) else socket.AF_UNIX
    clients = [socket.socket(family) for _ in range(count)]
    workers = []
    for client in clients:
        client.settimeout(LIMIT)
        client.connect(address)
        client.sendall(UPGRADE % b"/echo")
    for client in clients:
        answer = b""
        while not (match := FIRST_MESSAGE.search(answer)):
            answer += client.recv(1000)
        workers.append(int(match[1]))
    return clients, workers


@pytest.mark.parametrize(("loop", "is_unix"), [("asyncio", True), ("uvloop", False)], ids=["unix", "tcp"])
def test_each_worker_gets_its_share_of_the_connections(directory, loop, is_unix):
    path = directory / "app.sock"
    bind = ("--bind", "127.0.0.1:0", "--bind", f"unix:{path}") if is_unix else ()
    shares = {}
    with supervised(directory, "--workers", "4", "--loop", loop, *bind) as server:
        for batch in (1, 20, 100):
            counts = Counter()
            with contextlib.ExitStack() as stack:
                for _ in range(400 // batch):
                    clients, workers = connect_at_once(str(path) if is_unix else ("127.0.0.1", server.port), batch)
                    for client in clients:
                        stack.enter_context(client)
                    counts.update(workers)
            shares[batch] = sorted(counts.values())
        assert server.stop() == 0
    assert [len(share) for share in shares.values()] == [4, 4, 4]
    # 1.02 to 1.22 on an idle machine; on a busy one the system may let a worker wait. Without shares it was up to 8.2.
    assert all(share[-1] <= 2.5 * share[0] for share in shares.values()), shares


# Workers that die


def test_a_killed_worker_is_replaced_and_the_others_are_unaffected(directory):
    with supervised(directory, "--workers", "4") as server, contextlib.ExitStack() as stack:
        websockets = one_websocket_each(stack, server, 4)
        killed, ws = websockets.popitem()
        os.kill(killed, signal.SIGKILL)
        server.wait_for_line(rf"error worker {killed} was killed by SIGKILL; another one is started$")
        with pytest.raises(ConnectionClosed):
            ws.recv(timeout=LIMIT)
        assert all(echoes(ws) for ws in websockets.values())
        new = int(server.wait_for_line(r"info worker (\d+) serves", times=4)[1])
        wait_until(lambda: json.loads(get(server.port)[1])["pid"] == new)
        assert all(echoes(ws) for ws in websockets.values())
        stack.close()
        assert server.stop() == 0
        assert len(server.find_lines("^stopped$")) == 4


def test_workers_drain_when_their_supervisor_was_killed(directory):
    with supervised(directory, "--workers", "2") as server, connect(f"{server.ws_url}/echo", proxy=None) as ws:
        ws.recv(timeout=LIMIT)
        server.signal(signal.SIGKILL)
        with pytest.raises(ConnectionClosed) as closed:
            ws.recv(timeout=LIMIT)
        assert closed.value.rcvd.code == 1012
        # wait() also waits for the end of the output, which the workers share.
        assert server.wait() == -signal.SIGKILL
        assert len(server.find_lines("^stopped$")) == 2
        with pytest.raises(ConnectionRefusedError):
            get(server.port)


BLOCKING = """
import time

@app.get("/block")
async def block(request):
    print("blocked", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def blocking(server):
    """A client that has one of the workers blocked."""
    with socket.create_connection(("127.0.0.1", server.port), LIMIT) as sock:
        sock.sendall(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_for_line("^blocked$")
        yield


def test_a_worker_with_a_blocked_loop_is_replaced_and_logs_where(directory):
    write(directory, APP + BLOCKING)
    with supervised(directory, "--workers", "2", "--worker-timeout", "3") as server, blocking(server):
        pid = server.wait_for_line(r"error worker (\d+) is killed: it sent nothing for 3 s")[1]
        server.wait_for_line(rf"\[{pid}\] warning still running, .*: block\(\) at .*chat\.py:\d+$")
        server.wait_for_line(rf"error worker {pid} ended with exit code 1; another one is started")
        server.wait_for_line(r"info worker \d+ serves", times=2)
        assert get(server.port)[0] == 200
        assert server.stop() == 0
    assert len(server.find_lines("is killed")) == 1


# SIGHUP


class Load:
    """200 requests a second, each over a connection of its own, from a thread."""

    def __init__(self, port):
        self.answers = []
        self.failures = []
        self.longest = 0.0
        self._port = port
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(4)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join(LIMIT)

    def _run(self):
        due = time.monotonic()
        while not self._is_over.wait(max(0, due - time.monotonic())):
            due += 0.02
            began = time.monotonic()
            try:
                status, body = get(self._port)
                self.longest = max(self.longest, time.monotonic() - began)
                self.answers.append((status, json.loads(body)["version"]))
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)


def test_sighup_loads_new_code_and_no_client_waits_or_is_refused(directory):
    """The new code takes 1.5 s to start."""
    with supervised(directory, "--workers", "2", "--no-access-log") as server:
        with connect(f"{server.ws_url}/echo", proxy=None) as ws, Load(server.port) as load:
            ws.recv(timeout=LIMIT)
            write(directory, before="VERSION = 1", after="VERSION = 2\nimport time\ntime.sleep(1.5)")
            server.signal(signal.SIGHUP)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(timeout=LIMIT)
            assert closed.value.rcvd.code == 1012
            server.wait_for_line("all 2 workers are new")
            server.wait_for_line("^stopped$", times=2)
            count = len(load.answers)
            wait_until(lambda: len(load.answers) > count + 20)
        assert load.failures == []
        assert load.longest < 1.4
        assert set(load.answers) == {(200, 1), (200, 2)}
        assert {version for _, version in load.answers[count + 4 :]} == {2}
        assert server.stop() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_sighup_to_one_worker_loads_new_code_and_refuses_no_client(directory, loop):
    """Clients that connect meanwhile wait. Hypercorn, which serves on trio, may close what it has just accepted."""
    with supervised(directory, "--loop", loop, "--no-access-log") as server, Load(server.port) as load:
        wait_until(lambda: load.answers)
        write(directory, before="VERSION = 1", after="VERSION = 2")
        server.signal(signal.SIGHUP)
        server.wait_for_line("serving", times=2)
        count = len(load.answers)
        wait_until(lambda: len(load.answers) > count + 20)
        assert load.failures == []
        assert set(load.answers) == {(200, 1), (200, 2)}
        assert {version for _, version in load.answers[count + 4 :]} == {2}
        assert server.stop() == 0


@pytest.mark.parametrize(("workers", "line", "times"), [("1", "serving .* on ", 2), ("2", "all 2 workers are new", 1)])
def test_sighup_loads_new_code_on_hypercorn(directory, workers, line, times):
    with supervised(directory, "--workers", workers, "--loop", "trio") as server:
        write(directory, before="VERSION = 1", after="VERSION = 2")
        server.signal(signal.SIGHUP)
        server.wait_for_line(line, times=times)
        wait_until(partial(_serves_version_2, server.port))
        assert server.stop() == 0


def _serves_version_2(port):
    try:
        return json.loads(get(port)[1])["version"] == 2
    except ConnectionError:
        return False  # Hypercorn may close what it has just accepted


def test_new_code_that_does_not_start_keeps_the_old_workers(directory):
    with supervised(directory, "--workers", "2") as server, connect(f"{server.ws_url}/echo", proxy=None) as ws:
        ws.recv(timeout=LIMIT)
        write(directory, before="VERSION = 1", after="VERSION =")
        server.signal(signal.SIGHUP)
        server.wait_for_line("error worker .* the new code does not start, the old workers stay; fix it and")
        assert len(server.find_lines("^SyntaxError")) == 1
        assert echoes(ws)
        write(directory, before="VERSION = 1", after="VERSION = 3")
        server.signal(signal.SIGHUP)
        server.wait_for_line("all 2 workers are new")
        wait_until(lambda: json.loads(get(server.port)[1])["version"] == 3)
        assert server.stop() == 0


def test_unix_and_inherited_sockets_are_shared_and_kept(directory):
    path = directory / "app.sock"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = sock.fileno()
        arguments = command("--workers", "2", "--bind", f"fd://{number}", "--bind", f"unix:{path}")
        with process(directory, arguments, pass_fds=[number]) as started:
            server = Server(started)
            assert server.port == sock.getsockname()[1]
            server.signal(signal.SIGHUP)
            server.wait_for_line("all 2 workers are new")
            server.wait_for_line("^stopped$", times=2)
            assert get(path, family=socket.AF_UNIX)[0] == 200
            assert get(server.port)[0] == 200
            assert server.stop() == 0
    assert not path.exists()


# The start


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        (f"{APP}\n@app.on_startup\ndef fail():\n    raise LookupError('no database')\n", 1, "LookupError: no database"),
        ("1 / 0\n", 3, "ZeroDivisionError: division by zero"),
        ("import os\nos._exit(0)\n", 1, r"worker \d+ ended with exit code 0 before it served"),
    ],
)
def test_an_app_that_does_not_start_is_logged_once(directory, text, code, line):
    write(directory, text)
    with process(directory, command("--workers", "4")) as started:
        output, _ = started.communicate(timeout=LIMIT)
    assert started.returncode == code
    assert len(re.findall(line, output)) == 1
    assert output.count("Traceback") <= 1


def test_workers_speak_tls_and_log_their_process_id(directory):
    files = ("--certfile", str(TLS / "localhost.pem"), "--keyfile", str(TLS / "localhost.key"))
    trusted = ssl.create_default_context(cafile=TLS / "localhost.pem")
    with supervised(directory, "--workers", "2", "--log-format", "json", *files) as server:
        with connect(f"wss://localhost:{server.port}/echo", ssl=trusted, proxy=None) as ws:
            pid = int(ws.recv(timeout=LIMIT))
            assert echoes(ws)
        access = json.loads(server.wait_for_line('.*"path".*')[0])
        assert (access["process"], access["status"]) == (pid, 101)
        assert server.stop() == 0
        [line] = server.find_lines(".*hub process.*")
        assert json.loads(line[0])["message"].startswith("hub process at local:")


def test_a_script_may_serve_with_several_workers(directory):
    write(directory, f"{APP}\nif __name__ == '__main__':\n    app.run(port=0, workers=2)\n")
    with process(directory, [sys.executable, "chat.py"]) as started, contextlib.ExitStack() as stack:
        server = Server(started)
        one_websocket_each(stack, server, 2)
        stack.close()
        assert server.stop() == 0


def test_a_program_without_a_file_cannot_have_workers(directory):
    source = "from microws import App\nApp().run(port=0, workers=2)\n"
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run(
        [sys.executable, "-"], input=source, capture_output=True, text=True, env=environ, timeout=LIMIT, check=False
    )
    assert result.returncode == 1
    assert "ValueError: several workers start the program again, but it has no file" in result.stderr


# The end


def test_a_signal_to_the_process_group_counts_once(directory):
    """As systemd sends it."""
    with supervised(directory, "--workers", "2") as server, connect(f"{server.ws_url}/echo", proxy=None) as ws:
        ws.recv(timeout=LIMIT)
        with socket.create_connection(("127.0.0.1", server.port), LIMIT) as slow:
            slow.sendall(b"GET /slow/2 HTTP/1.1\r\nhost: x\r\n\r\n")
            server.wait_for_line("^slow$")
            os.killpg(server.pid, signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(timeout=LIMIT)
            assert closed.value.rcvd.code == 1012
            assert slow.recv(100).startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
        assert len(server.find_lines("^stopped$")) == 2


# The log


@pytest.mark.parametrize("count", [1, 2])
def test_an_unread_log_blocks_neither_the_server_nor_its_shutdown(directory, count):
    write(directory, APP.replace('os.write(1, b"stopped\\n")', "pass"))
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        arguments = command("--workers", str(count), "--bind", f"fd://{sock.fileno()}")
        started = stack.enter_context(process(directory, arguments, pass_fds=[sock.fileno()]))
        connection = http.client.HTTPConnection(*sock.getsockname(), timeout=LIMIT)
        stack.callback(connection.close)
        # The socket listens already. 600 lines of 300 bytes are more than twice what a pipe takes.
        for _ in range(600):
            connection.request("GET", f"/?{'x' * 200}")
            assert connection.getresponse().read()
        started.send_signal(signal.SIGTERM)
        assert started.wait(LIMIT) == 0
        lines = started.stdout.read().splitlines()
    assert len(lines) > 100
    assert [line for line in lines if not re.search(r" (info|warning) \S", line)] == []


@pytest.mark.parametrize("count", [1, 2])
def test_a_server_without_standard_files_serves_and_ends(directory, count):
    with contextlib.ExitStack() as stack:
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        arguments = command("--workers", str(count), "--bind", f"fd://{sock.fileno()}")
        shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *arguments]
        started = stack.enter_context(process(directory, shell, pass_fds=[sock.fileno()]))
        assert get(sock.getsockname()[1])[0] == 200
        started.send_signal(signal.SIGTERM)
        assert started.wait(LIMIT) == 0


# Too many connections


@pytest.mark.parametrize("loop", ["asyncio", "trio"])
def test_without_file_descriptors_open_connections_continue(directory, loop):
    """The log has one line. uvloop closes connections for which it has no descriptor, and logs nothing."""
    with (
        supervised(directory, "--workers", "2", "--loop", loop, max_files=64) as server,
        contextlib.ExitStack() as stack,
    ):
        websockets = one_websocket_each(stack, server, 2)
        for _ in range(200):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", server.port))
        server.wait_for_line("error cannot accept connections: Too many open files; ", times=2)
        assert all(echoes(ws) for ws in websockets.values())
        # Within the second after which asyncio tries again, on a socket that is closed by then.
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert len(server.find_lines("cannot accept")) == 2
        assert not server.find_lines("Traceback")
