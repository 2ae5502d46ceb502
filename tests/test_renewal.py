"""SIGHUP to one worker: the process runs its program again, or ends with its terminal. The signal never kills it."""

import errno
import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.request
from contextlib import contextmanager

import pytest
from serving import LIMIT, running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from microws import App
from microws.server.renewal import Renewal, this_program
from microws.server.settings import Settings
from microws.server.worker import run

APP = """
import asyncio, atexit, os, signal, sys, time

from microws import App

app = App()
VERSION = 1


def say(text):
    os.write(1, text.encode() + b"\\n")


atexit.register(say, "atexit")


@app.get("/")
async def who(request):
    return {"pid": os.getpid(), "version": VERSION}


@app.get("/block")
async def block(request):
    say("blocked")
    time.sleep(60)


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.on_shutdown
def stopped():
    say("stopped")


"""

RUN = """
if __name__ == "__main__":
    app.run(port=0{options})
    say("after run")
"""


def write(directory, source="", *, version=1, run=None):
    text = APP.replace("VERSION = 1", f"VERSION = {version}") + source
    (directory / "chat.py").write_text(text + (RUN.format(options=run) if run is not None else ""))


def environ():
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MICROWS_", "PORT", "WEB_"))}
    return clean | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONDONTWRITEBYTECODE": "1"}


@contextmanager
def script(directory, source="", *, run="", **options):
    """``python chat.py``, with what follows the app in ``source`` and the options of ``app.run`` in ``run``."""
    write(directory, source, run=run)
    with running([sys.executable, "chat.py"], cwd=directory, **environ(), **options) as server:
        yield server


@contextmanager
def command(directory, *arguments, **options):
    write(directory)
    bind = () if "--bind" in arguments else ("--port", "0")
    program = [sys.executable, "-m", "microws", "run", "chat:app", *bind, *arguments]
    with running(program, cwd=directory, **environ(), **options) as server:
        yield server


def ask(server):
    with urllib.request.urlopen(server.url, timeout=2 * LIMIT) as response:
        return json.load(response)


def wait_until(condition, *, within=3 * LIMIT):
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# New code


def test_a_script_runs_again_in_the_same_process_and_directory(tmp_path):
    """A client that connects meanwhile waits. The app has changed the directory."""
    source = "@app.on_startup\ndef leave():\n    os.chdir('/')\n"
    with script(tmp_path, source) as server:
        old = ask(server)
        with connect(f"{server.ws_url}/echo", proxy=None) as ws:
            write(tmp_path, source, version=2, run="")
            server.signal(signal.SIGHUP)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(timeout=LIMIT)
            assert closed.value.rcvd.code == 1012
        server.wait_for_line("^stopped$")
        assert ask(server) == {"pid": old["pid"], "version": 2}
        ends = ["stopped", "after run", "atexit"]
        assert [line for line in server.output if line in ends] == ends
        assert server.stop() == 0
    assert [line for line in server.output if line in ends] == ends * 2
    assert len(server.find_lines(f"serving .* on {server.url} ")) == 2


def test_the_command_runs_again_and_reads_its_settings_again(tmp_path):
    """Its environment is that of its start. Then several workers share the socket."""
    (tmp_path / "settings.env").write_text("MICROWS_LOG_FORMAT=text\n")
    with command(tmp_path, "--env-file", "settings.env") as server:
        pid = ask(server)["pid"]
        (tmp_path / "settings.env").write_text("MICROWS_LOG_FORMAT=json\nMICROWS_WORKERS=2\n")
        write(tmp_path, version=2)
        server.signal(signal.SIGHUP)
        server.wait_for_line(
            f'{{.*"message": "microws .* serving chat:app on {server.url} with 2 workers', within=3 * LIMIT
        )
        new = ask(server)
        assert (new["version"], new["pid"] == pid) == (2, False)
        assert server.stop() == 0


def test_many_signals_leave_one_process_that_serves(tmp_path):
    """They arrive while it drains, ends, starts and imports."""
    with script(tmp_path) as server:
        pid = ask(server)["pid"]
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            server.signal(signal.SIGHUP)
            time.sleep(0.003)
        assert ask(server) == {"pid": pid, "version": 1}
        assert server.stop() == 0


def test_a_unix_socket_and_an_inherited_socket_stay_open(tmp_path):
    path = tmp_path / "app.sock"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        number = sock.fileno()
        os.set_inheritable(number, True)
        addresses = ["--bind", f"fd://{number}", "--bind", f"unix:{path}"]

        def ask_both():
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(2 * LIMIT)
                client.connect(str(path))
                client.sendall(b"GET / HTTP/1.0\r\nhost: x\r\n\r\n")
                with client.makefile("rb") as file:
                    answer = json.loads(file.read().rpartition(b"\r\n")[2])
            return [answer["version"], ask(server)["version"]]

        with command(tmp_path, *addresses, close_fds=False) as server:
            assert ask_both() == [1, 1]
            write(tmp_path, version=2)
            server.signal(signal.SIGHUP)
            server.wait_for_line("^stopped$")
            assert ask_both() == [2, 2]
            assert server.stop() == 0
    assert not list(tmp_path.glob("app.sock*"))


# What goes wrong


def is_refused(port):
    with socket.socket() as sock:
        sock.settimeout(LIMIT)
        return sock.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


@pytest.mark.parametrize(
    ("source", "code", "line"),
    [
        ("1 / 0\n", 3, "^error: SIGHUP: the new code does not start; this process ends, and the server is down$"),
        (
            "@app.on_startup\ndef fail():\n    raise LookupError\n",
            1,
            "critical SIGHUP: the new code does not start; this process ends, and the server is down$",
        ),
    ],
)
def test_new_code_that_does_not_start_ends_the_process_with_a_log(tmp_path, source, code, line):
    with command(tmp_path) as server:
        write(tmp_path, source)
        server.signal(signal.SIGHUP)
        assert server.wait() == code
        assert len(server.find_lines("^(ZeroDivisionError|LookupError)")) == 1
        assert server.find_lines(line)


def test_a_signal_to_stop_cancels_the_renewal_and_the_drain_goes_on(tmp_path):
    source = """
@app.get("/slow")
async def slow(request):
    say("slow")
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
    return "done"
"""
    with script(tmp_path, source) as server, socket.create_connection(("127.0.0.1", server.port), LIMIT) as sock:
        sock.sendall(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_for_line("^slow$")
        server.signal(signal.SIGHUP)
        server.wait_for_line("info SIGHUP: after the drain this process runs its program again$")
        server.signal(signal.SIGTERM)
        server.wait_for_line("info after the drain this process ends: another signal has followed SIGHUP$")
        wait_until(lambda: is_refused(server.port))
        (tmp_path / "go").touch()
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert server.wait() == 0
    assert len(server.find_lines("serving")) == 1


def test_a_blocked_event_loop_does_not_prevent_the_renewal(tmp_path):
    with (
        script(tmp_path, run=", drain_timeout=0.1") as server,
        socket.create_connection(("127.0.0.1", server.port), LIMIT) as sock,
    ):
        sock.sendall(b"GET /block HTTP/1.1\r\nhost: x\r\n\r\n")
        server.wait_for_line("^blocked$")
        write(tmp_path, version=2, run="")
        server.signal(signal.SIGHUP)
        assert ask(server)["version"] == 2
        assert server.stop() == 0
    assert server.find_lines("warning still running, .*: block")


def test_a_program_without_a_file_logs_that_it_cannot_run_again(tmp_path):
    write(tmp_path, run="")
    shell = ["sh", "-c", f"exec {sys.executable} - < chat.py"]
    with running(shell, cwd=tmp_path, **environ()) as server:
        server.signal(signal.SIGHUP)
        server.wait_for_line(
            "warning SIGHUP: cannot run the program again, because the program has no file; restart it"
        )
        assert ask(server)["version"] == 1
        assert server.stop() == 0


@pytest.fixture
def renewal():
    renewal = Renewal([sys.executable, "chat.py"])
    yield renewal
    renewal.cancel()
    renewal.close()


def test_prepare_refuses_a_closed_socket_and_a_removed_python(renewal, tmp_path):
    [listener] = renewal.listeners(Settings(port=0), secure=False)
    assert renewal.prepare() is None
    assert renewal.is_due
    renewal.cancel()
    renewal.command = [str(tmp_path / "python")]
    assert renewal.prepare() == f"{tmp_path}/python is not executable"
    renewal.command = [sys.executable]
    listener.close()
    assert renewal.prepare() == "the app has closed a listening socket"
    assert not renewal.is_due


@pytest.mark.parametrize("left", ["nonsense", '{"process": 1, "had_terminal": false, "sockets": [[0, null, null]]}'])
def test_sockets_left_for_another_process_are_ignored(monkeypatch, left):
    monkeypatch.setenv("MICROWS_RENEWAL", left)
    renewal = Renewal(None)
    renewal.close()
    assert not renewal.is_renewed
    assert "MICROWS_RENEWAL" not in os.environ


def test_sockets_that_were_closed_meanwhile_are_one_log_line(tmp_path, capfd, monkeypatch):
    left = {"process": os.getpid(), "had_terminal": False, "sockets": [[9999, None, None]]}
    monkeypatch.setenv("MICROWS_RENEWAL", json.dumps(left))
    assert run(App(), port=0) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert "error the listening socket that SIGHUP has left is lost: " in line


def test_the_apps_own_handler_for_sighup_wins(tmp_path):
    with script(tmp_path, "signal.signal(signal.SIGHUP, lambda number, frame: say('mine'))\n") as server:
        server.signal(signal.SIGHUP)
        server.wait_for_line("^mine$")
        assert ask(server)["version"] == 1
        assert server.stop() == 0


def test_the_command_is_that_of_this_process(monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "chat.py", "8000"])
    monkeypatch.setattr(sys, "argv", ["chat.py", "8000"])
    assert this_program() == [sys.executable, "-X", "dev", "chat.py", "8000"]
    main = types.ModuleType("__main__")
    main.__file__ = "/srv/chat.py"
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert this_program() == [sys.executable, "-X", "dev", "/srv/chat.py", "8000"]


@pytest.mark.parametrize("arguments", [[], [""], ["-"]])
def test_a_program_without_a_file_has_no_command(monkeypatch, arguments):
    monkeypatch.setattr(sys, "argv", arguments)
    assert this_program() is None


# While the program starts

SLOW_START = """
say("starting")
while not os.path.exists("go"):
    time.sleep(0.01)
"""
SLOW_STARTUP = """
@app.on_startup
async def start():
    say("starting")
    while not os.path.exists("go"):
        await asyncio.sleep(0.01)
"""


@pytest.mark.parametrize("source", [SLOW_START, SLOW_STARTUP])
def test_sighup_during_the_start_runs_the_program_again_before_it_serves(tmp_path, source):
    write(tmp_path, source)
    log = (tmp_path / "log").open("w+")
    with log, process([sys.executable, "-m", "microws", "run", "chat:app", "--port", "0"], tmp_path, log) as started:
        wait_until(lambda: "starting" in read(log))
        write(tmp_path, version=2)
        started.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        wait_until(lambda: "serving chat:app" in read(log))
        started.terminate()
        assert started.wait(2 * LIMIT) == 0
        assert read(log).count("serving") == 1
        assert "SIGHUP: after the drain this process runs its program again" in read(log)


# The end of the terminal


def read(log):
    log.seek(0)
    return log.read()


@contextmanager
def process(command, directory, output, **options):
    started = subprocess.Popen(
        command,
        cwd=directory,
        env=environ(),
        **{"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output} | options,
    )
    try:
        yield started
    finally:
        started.kill()
        started.wait(LIMIT)


needs_setsid = pytest.mark.skipif(
    shutil.which("setsid") is None and os.environ.get("CI") != "true",
    reason="setsid(1) is not installed",
)


@contextmanager
def in_terminal(directory, command, log, **options):
    """A process whose controlling terminal is a new one; and the function that closes that."""
    ours, theirs = pty.openpty()
    is_open = True

    def close():
        nonlocal is_open
        if is_open:
            is_open = False
            os.close(ours)

    try:
        with process(["setsid", "--ctty", *command], directory, log, stdin=theirs, **options) as started:
            os.close(theirs)
            yield started, close
    finally:
        close()


@needs_setsid
@pytest.mark.parametrize("workers", [1, 2])
def test_the_server_stops_when_its_terminal_is_closed(tmp_path, workers):
    write(tmp_path, run=f", workers={workers}")
    # Neither standard input nor its output is the terminal.
    shell = ["sh", "-c", f"exec {sys.executable} chat.py </dev/null"]
    with (tmp_path / "log").open("w+") as log, in_terminal(tmp_path, shell, log) as (started, close):
        wait_until(lambda: "serving" in read(log))
        close()
        assert started.wait(2 * LIMIT) == 0
        assert read(log).count("stopped") == workers


@needs_setsid
@pytest.mark.parametrize(("source", "workers"), [(SLOW_START, 1), (SLOW_STARTUP, 1), (SLOW_START, 2)])
def test_a_program_stops_when_its_terminal_is_closed_while_it_starts(tmp_path, source, workers):
    write(tmp_path, source)
    command = [sys.executable, "-m", "microws", "run", "chat:app", "--port", "0", "--workers", str(workers)]
    with (tmp_path / "log").open("w+") as log, in_terminal(tmp_path, command, log) as (started, close):
        wait_until(lambda: "starting" in read(log))
        close()
        if source == SLOW_START and workers == 1:
            # The signal is handled as soon as the event loop runs.
            (tmp_path / "go").touch()
        assert started.wait(2 * LIMIT) == 0
        assert "serving" not in read(log)


@needs_setsid
def test_under_nohup_the_end_of_the_terminal_changes_nothing(tmp_path):
    write(tmp_path, run=", workers=2")
    with (
        (tmp_path / "log").open("w+") as log,
        in_terminal(tmp_path, ["nohup", sys.executable, "chat.py"], log) as (started, close),
    ):
        wait_until(lambda: "serving" in read(log))
        close()
        # The signal has been sent by now: it comes before the terminal counts as closed.
        url = re.search(r"serving .* on (http\S+)", read(log))[1]
        with urllib.request.urlopen(url, timeout=2 * LIMIT) as response:
            assert json.load(response)["version"] == 1
        started.terminate()
        assert started.wait(2 * LIMIT) == 0
        assert read(log).count("serving") == 1


@needs_setsid
def test_a_background_job_of_a_shell_stops_when_the_terminal_is_closed(tmp_path):
    write(tmp_path, run="")
    ours, theirs = pty.openpty()
    shell = ["setsid", "--ctty", "bash", "--norc", "-i"]
    with (tmp_path / "log").open("w+") as log, process(shell, tmp_path, theirs, stdin=theirs):
        os.close(theirs)
        os.write(ours, f"{sys.executable} chat.py </dev/null >log 2>&1 &\n".encode())
        wait_until(lambda: "serving" in read(log))
        os.close(ours)
        wait_until(lambda: "atexit" in read(log))
        assert "stopped" in read(log)
        assert read(log).count("serving") == 1


@needs_setsid
def test_a_server_without_a_controlling_terminal_runs_again(tmp_path):
    """As ``setsid`` starts it: the system sends it no signal when that terminal is closed."""
    write(tmp_path, run="")
    ours, theirs = pty.openpty()
    with (
        (tmp_path / "log").open("w+") as log,
        process([sys.executable, "chat.py"], tmp_path, log, stdin=theirs, start_new_session=True) as started,
    ):
        os.close(theirs)
        wait_until(lambda: "serving" in read(log))
        os.close(ours)
        started.send_signal(signal.SIGHUP)
        wait_until(lambda: read(log).count("serving") == 2)
        started.terminate()
        assert started.wait(2 * LIMIT) == 0
