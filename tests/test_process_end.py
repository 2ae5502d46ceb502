"""How a server's process ends while something in it is blocked, and what the log says then."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import ExitStack

import pytest
from serving import running
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

APP = """
import asyncio, atexit, os, threading, time
from concurrent.futures import ThreadPoolExecutor

from microws import App, StreamingResponse

app = App()
pool = ThreadPoolExecutor()
atexit.register(os.write, 1, b"atexit\\n")


def block():
    os.write(1, b"blocked\\n")
    time.sleep(60)


@app.get("/view")
def view():
    block()


@app.get("/generator")
def generator():
    def chunks():
        block()
        yield "never"

    return StreamingResponse(chunks())


@app.get("/queue")
def in_a_queue():
    os.write(1, b"blocked\\n")
    threading.Event().wait(60)


@app.get("/own-thread")
async def in_a_thread():
    await asyncio.to_thread(block)


@app.get("/pool")
async def wait_for_the_pool():
    os.write(1, b"blocked\\n")
    await asyncio.get_running_loop().run_in_executor(pool, time.sleep, 1000)


@app.get("/leave-job")
async def leave_job():
    pool.submit(block)


def short_job():
    os.write(1, b"blocked\\n")
    time.sleep(0.7)
    os.write(1, b"job done\\n")


@app.get("/short-jobs")
async def leave_short_jobs():
    pool.submit(short_job)
    asyncio.get_running_loop().run_in_executor(None, short_job)
    return "started"


@app.get("/loop")
async def in_the_loop():
    block()


@app.get("/busy")
async def busy():
    os.write(1, b"blocked\\n")
    while True:
        pass


@app.get("/stubborn")
async def stubborn():
    os.write(1, b"blocked\\n")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass


@app.websocket_route("/echo")
async def echo(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.on_shutdown
def stopped():
    os.write(1, b"stopped\\n")


def run(**options):
    app.run(**{"port": 0, "drain_timeout": 0.1} | options)
    os.write(1, b"after run\\n")
"""

CUT_OFF = "warning still running, and cut off by the end of the process: "


def script(directory, source):
    (directory / "chat.py").write_text(f"{APP}\n{source}")
    return running([sys.executable, "chat.py"], cwd=directory, PYTHONPATH=os.pathsep.join(sys.path))


def blocked(server, path):
    """A client whose request is blocked."""
    sock = socket.create_connection(("127.0.0.1", server.port), 10)
    sock.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
    server.wait_for_line("^blocked$")
    return sock


def steps(server):
    """What the script and its hooks have printed at the end, in order."""
    names = ("stopped", "job done", "after run", "end of the script", "mine", "atexit")
    return [line for line in server.output if line in names]


# Blocked threads


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_blocked_threads_do_not_keep_the_process(tmp_path, loop):
    """Everything that runs at an orderly end has run, in its order. trio itself waits for its threads."""
    with script(tmp_path, f"run(loop={loop!r})") as server, ExitStack() as clients:
        for path in "/view", "/generator", "/queue":
            clients.enter_context(blocked(server, path))
        server.wait_for_line("^blocked$", times=3)
        assert server.stop() == 0
    [line] = server.find_lines(f"{CUT_OFF}(.*)")
    places = dict(re.findall(r"(\w+)\(\) at \S*chat\.py:(\d+)", line[1]))
    expected = {"view": "block()", "chunks": "block()", "in_a_queue": "threading.Event().wait(60)"}
    assert {name: APP.splitlines()[int(places[name]) - 1].strip() for name in expected} == expected
    assert steps(server) == (["stopped", "after run", "atexit"] if loop == "uvloop" else ["stopped", "atexit"])


def test_a_blocked_thread_of_the_apps_pool_does_not_keep_the_process(tmp_path):
    """The rest of the script runs first. The pool has an idle thread from before the server."""
    source = 'pool.submit(int).result()\nrun()\ntime.sleep(0.6)\nos.write(1, b"end of the script\\n")'
    with script(tmp_path, source) as server, blocked(server, "/pool"):
        assert server.stop() == 0
    assert server.find_lines(f"{CUT_OFF}a function that is not written in Python, in a thread of ThreadPoolExecutor-0$")
    assert steps(server) == ["stopped", "after run", "end of the script", "atexit"]


def test_the_log_counts_blocked_threads_by_place_in_one_line(tmp_path):
    views = "".join(f"@app.get('/{number}')\ndef view{number}():\n    wait()\n\n" for number in range(7))
    source = f"""
import queue


def wait():
    os.write(1, b"blocked\\n")
    queue.Queue().get()


{views}
run()
"""
    with script(tmp_path, source) as server, ExitStack() as clients:
        for path in ["/generator", *(f"/{number}" for number in range(7)), *["/3"] * 20]:
            clients.enter_context(blocked(server, path))
        server.wait_for_line("^blocked$", times=28)
        assert server.stop() == 0
    [line] = server.find_lines(f"{CUT_OFF}(.*)")
    first, *others, last = line[1].split("; ")
    assert re.fullmatch(r"21 × view3\(\) at \S*chat\.py:\d+, in wait\(\) at \S*chat\.py:\d+", first)
    assert len({*others}) == 4
    place = r"(view\d|\S+chunks)\(\) at \S*chat\.py:\d+, in (wait|block)\(\) at \S*chat\.py:\d+"
    assert all(re.fullmatch(place, other) for other in others)
    assert last == "and 3 more"


@pytest.mark.parametrize(
    ("path", "place"), [("/own-thread", r"block\(\) at .*chat\.py:\d+$"), ("/stubborn", "a task that ignores its canc")]
)
def test_what_the_event_loop_waits_for_does_not_keep_the_process(tmp_path, path, place):
    with script(tmp_path, "run(loop='asyncio')") as server, blocked(server, path):
        assert server.stop() == 0
    assert server.find_lines(f"{CUT_OFF}{place}")
    assert steps(server) == ["stopped", "atexit"]


def test_jobs_left_to_a_pool_have_the_time_of_the_drain(tmp_path):
    with script(tmp_path, "run(drain_timeout=10)") as server, blocked(server, "/short-jobs"):
        server.wait_for_line("^blocked$", times=2)
        assert server.stop() == 0
    assert not server.find_lines("warning")
    assert steps(server) == ["stopped", "job done", "job done", "after run", "atexit"]


def test_a_second_ctrl_c_does_not_wait_for_a_job(tmp_path):
    with script(tmp_path, "run(drain_timeout=60)") as server, blocked(server, "/leave-job"):
        server.signal(signal.SIGINT)
        server.wait_for_line(r"info waiting for [56]\d s at most \(Ctrl-C: at once\) for block\(\) at .*chat\.py")
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert server.find_lines(f"{CUT_OFF}block")
    assert steps(server) == ["stopped", "after run", "atexit"]


def test_an_atexit_function_that_blocks_does_not_keep_the_process(tmp_path):
    with script(tmp_path, "atexit.register(block)\nrun()") as server, blocked(server, "/view"):
        assert server.stop() == 0
    assert steps(server) == ["stopped", "after run"]


def test_a_script_that_fails_after_its_server_fails(tmp_path):
    with script(tmp_path, "run()\n1 / 0") as server, blocked(server, "/view"):
        assert server.stop() == 1
    assert server.find_lines("^ZeroDivisionError")


def test_idle_pools_and_threads_of_the_script_change_nothing(tmp_path):
    source = """
before = threading.Thread(target=lambda: threading.main_thread().join())
before.start()

@app.on_startup
def use_threads():
    pool.submit(int).result()
    threading.Thread(target=lambda: (threading.main_thread().join(), os.write(1, b"mine\\n"))).start()

run()
import sys
sys.exit(7)
"""
    with script(tmp_path, source) as server:
        assert server.stop() == 7
    assert not server.find_lines("warning")
    assert steps(server) == ["stopped", "after run", "mine", "atexit"]


# A blocked event loop


@pytest.mark.parametrize("options", ["", "stop_delay=0.1"])
def test_a_blocked_event_loop_does_not_keep_the_process(tmp_path, options):
    """The app's shutdown cannot run: that is exit code 1."""
    with script(tmp_path, f"run({options})") as server, blocked(server, "/loop"):
        assert server.stop() == 1
    assert server.find_lines(rf"{CUT_OFF}in_the_loop\(\) at .*chat\.py:\d+, in block\(\) at .*")
    assert steps(server) == ["atexit"]


# Two signals, the second one of another kind: the system merges two equal signals that are pending.


@pytest.mark.parametrize(("loop", "path"), [("asyncio", "/loop"), ("uvloop", "/busy"), ("trio", "/loop")])
def test_with_a_blocked_loop_a_signal_says_so_and_the_second_ends(tmp_path, loop, path):
    with script(tmp_path, f"run(drain_timeout=60, loop={loop!r})") as server, blocked(server, path):
        server.signal(signal.SIGINT)
        place = r"(in_the_loop|busy)\(\) at \S*chat\.py:\d+(, in block\(\) at \S*chat\.py:\d+)?$"
        server.wait_for_line(rf"warning the event loop is blocked, and does not react to the signal \(.*\): {place}")
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
    assert server.find_lines(f"{CUT_OFF}{place}")
    assert steps(server) == ["atexit"]


def test_the_second_signal_ends_a_start_up_that_is_blocked(tmp_path):
    source = "app.on_startup(in_the_loop)\nos.write(1, b'serving x on http://x:1\\n')\nrun(drain_timeout=60)"
    with script(tmp_path, source) as server:
        server.wait_for_line("^blocked$")
        server.signal(signal.SIGINT)
        server.signal(signal.SIGTERM)
        assert server.wait() == 1
    assert server.find_lines(rf"{CUT_OFF}in_the_loop\(\) at .*, in block\(\) at .*")


def test_the_third_signal_kills(tmp_path):
    """The event loop has reacted to two, and then a hook of the app blocks it."""
    source = """
@app.on_shutdown
async def hang():
    await asyncio.sleep(0.01)
    block()

run(drain_timeout=10)
"""
    with script(tmp_path, source) as server:
        server.signal(signal.SIGINT)
        server.wait_for_line("info stopping within 10 s")
        server.signal(signal.SIGINT)
        server.wait_for_line("^blocked$")
        server.signal(signal.SIGTERM)
        assert server.wait() == -signal.SIGTERM
    assert not server.find_lines("still running")


# --stop-delay


def ask_ready(server):
    """The status that a load balancer gets, over a connection of its own."""
    try:
        with urllib.request.urlopen(f"{server.url}/readyz", timeout=10) as response:
            return response.status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.parametrize("loop", ["uvloop", "trio"])
def test_in_the_stop_delay_the_server_accepts_and_is_not_ready(tmp_path, loop):
    with script(tmp_path, f"app.health()\nrun(loop={loop!r}, stop_delay=60)") as server:
        assert ask_ready(server) == 200
        with connect(f"{server.ws_url}/echo", proxy=None) as ws:
            server.signal(signal.SIGTERM)
            server.wait_for_line(r"info not ready; draining in 60 s \(--stop-delay; a second signal drains now\)")
            assert ask_ready(server) == 503
            ws.send("hello")
            assert ws.recv(timeout=10) == "hello"
            server.signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                ws.recv(timeout=10)
        assert closed.value.rcvd.code == 1012
        assert server.wait() == 0
    assert server.find_lines("^stopped$")


@pytest.mark.parametrize(("number", "delay"), [(signal.SIGTERM, 0.1), (signal.SIGINT, 60)])
def test_the_stop_delay_ends_by_itself_and_ctrl_c_has_none(tmp_path, number, delay):
    with script(tmp_path, f"run(stop_delay={delay})") as server:
        server.signal(number)
        assert server.wait() == 0
    assert bool(server.find_lines("--stop-delay")) == (number == signal.SIGTERM)


# Windows

LIKE_WINDOWS = """
import asyncio, signal, socket, sys

asyncio.SelectorEventLoop.add_signal_handler = asyncio.AbstractEventLoop.add_signal_handler
asyncio.SelectorEventLoop.remove_signal_handler = asyncio.AbstractEventLoop.remove_signal_handler
sys.modules["uvloop"] = None

def socketpair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return socket.create_connection(server.getsockname()), server.accept()[0]

socket.socketpair = socketpair
del socket.AF_UNIX
for name in ("SIGHUP", "SIGCHLD", "pthread_sigmask"):
    delattr(signal, name)

from microws.cli import main

sys.exit(main(["run", "chat:app", *sys.argv[1:]]))
"""


@pytest.fixture
def like_windows(tmp_path):
    (tmp_path / "chat.py").write_text(APP)
    (tmp_path / "like_windows.py").write_text(LIKE_WINDOWS)
    return {"cwd": tmp_path, "PYTHONPATH": os.pathsep.join(sys.path)}


def test_a_system_like_windows_serves_and_stops_at_ctrl_c(like_windows):
    """No Unix sockets, no signal handlers of the event loop."""
    command = [sys.executable, "like_windows.py", "--port", "0"]
    with running(command, **like_windows) as server, connect(f"{server.ws_url}/echo", proxy=None) as ws:
        ws.send("hello")
        assert ws.recv(timeout=10) == "hello"
        server.signal(signal.SIGINT)
        assert server.wait() == 0
    assert server.find_lines("^stopped$")
    assert not server.find_lines("Traceback")


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--workers", "2"], 2, "error: several workers need a Unix system; write --workers 1"),
        (["--bind", "unix:x"], 1, "cannot listen on unix:x: this system has no Unix sockets; use --host and --port"),
    ],
)
def test_a_system_like_windows_refuses_what_it_does_not_have(like_windows, arguments, code, line):
    cwd = like_windows.pop("cwd")
    command = [sys.executable, "like_windows.py", *arguments]
    environ = os.environ | like_windows
    result = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == code
    [only] = result.stderr.splitlines()
    assert only.endswith(line)
