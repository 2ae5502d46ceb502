"""``microws dev``: real processes, sockets and files."""

import fcntl
import http.client
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import threading
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from developing import APP, command, developed, is_running
from serving import LIMIT
from supervising import process
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

WITHOUT_WATCHFILES = """
import sys

sys.modules["watchfiles"] = None
from microws.cli import main

sys.exit(main(["dev", "chat:app", "--port", "0"]))
"""
WITHOUT_FORK = """
import sys
from functools import partial
from pathlib import Path

from microws.dev import child, supervisor
from microws.server.settings import Settings


def load(serve):
    import chat

    return serve("chat:app", chat.app)


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    settings = Settings(port=0)
    serve = partial(child.serve_in_child, settings, child.DevOptions(Path.cwd()), load)
    sys.exit(supervisor.develop(settings, serve, folder=Path.cwd(), fork=False))
"""


@pytest.fixture
def dev(tmp_path):
    with developed(tmp_path) as running:
        yield running


def test_a_request_right_after_a_save_is_answered_by_the_new_code(dev):
    for version in range(2, 12):
        dev.save(before="VERSION = 1\n", after=f"VERSION = {version}\n")
        assert dev.version == version


def test_two_saves_in_a_row_end_with_the_last_one(dev):
    for version in range(2, 8):
        dev.save(before="VERSION = 1\n", after=f"VERSION = {version}\n")
    assert dev.version == 7
    pid = dev.pid
    dev.save(before="VERSION = 1\n", after="VERSION = 9\n")
    assert dev.version == 9
    assert not is_running(pid)


@pytest.mark.parametrize("way", ["without watchfiles", "without fork"])
def test_it_reloads_in_every_way(way, tmp_path):
    (tmp_path / "serve.py").write_text(WITHOUT_FORK)
    arguments = ["-c", WITHOUT_WATCHFILES] if way == "without watchfiles" else ["serve.py"]
    with developed(tmp_path, program=[sys.executable, *arguments]) as dev:
        for version in (2, 3, 4):
            dev.save(before="VERSION = 1\n", after=f"VERSION = {version}\n")
            assert dev.version == version
        # Without a request the file system, or a look at the files, tells of the change.
        dev.save(before="VERSION = 1\n", after="VERSION = 5\n")
        dev.server.wait_for_line(r"chat\.py changed; reloaded", times=4)
        dev.server.signal(signal.SIGINT)
        assert dev.server.wait() == 0


def test_a_request_on_an_old_connection_is_sent_to_a_new_one(dev):
    connection = http.client.HTTPConnection("127.0.0.1", dev.port, timeout=LIMIT)
    connection.request("GET", "/")
    assert connection.getresponse().read().startswith(b'{"version":1,')
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    connection.request("POST", "/?x=%2f", body=b"data")
    response = connection.getresponse()
    assert (response.status, response.headers["location"]) == (307, "/?x=%2f")
    response.read()
    connection.close()
    assert dev.version == 2


def test_without_a_request_the_file_system_tells_of_a_change(dev):
    pid = dev.pid
    dev.server.wait_for_line("serving")
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    dev.server.wait_for_line(r"chat\.py changed; reloaded in 0\.\d\d s")
    assert dev.pid != pid


def test_a_reload_closes_websockets_with_1012_and_ends_event_streams(dev):
    with ExitStack() as stack:
        sockets = [stack.enter_context(connect(f"ws://127.0.0.1:{dev.port}/echo", proxy=None)) for _ in range(10)]
        stream = stack.enter_context(socket.create_connection(("127.0.0.1", dev.port), LIMIT))
        stream.sendall(b"GET /news HTTP/1.1\r\nhost: localhost\r\n\r\n")
        received = b""
        while b"\r\n\r\n" not in received:
            received += stream.recv(4096)
        dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
        assert dev.version == 2
        while data := stream.recv(4096):
            received += data
        assert received.endswith(b"0\r\n\r\n")
        for ws in sockets:
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(LIMIT)
            assert caught.value.rcvd.code == 1012


@pytest.mark.parametrize("path", ["/blocked", "/stubborn"])
def test_a_view_that_does_not_end_does_not_keep_the_old_code(dev, path):
    pid = dev.pid
    with socket.create_connection(("127.0.0.1", dev.port), LIMIT) as client:
        client.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n".encode())
        dev.version  # the request before it has begun  # noqa: B018
        dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
        assert dev.version == 2
        assert not is_running(pid)


def test_requests_meanwhile_wait_and_none_is_refused(dev):
    problems, versions, stop = [], [], threading.Event()

    def ask():
        while not stop.is_set():
            try:
                versions.append(dev.version)
            except Exception as error:
                problems.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(2, 8):
        dev.save(before="VERSION = 1\n", after=f"VERSION = {version}\n")
        dev.wait_until(lambda version=version: version in versions)
    stop.set()
    for thread in threads:
        thread.join(LIMIT)
    assert problems == []
    assert sorted(versions) == versions


FAILURES = {
    "syntax": ("VERSION = 1\n", "VERSION = (1\n", r"chat.py:10: SyntaxError: '(' was never closed"),
    "import": ("VERSION = 1\n", "import absent\n", "chat.py:10: ModuleNotFoundError: No module named 'absent'"),
    "exception": ("VERSION = 1\n", "VERSION = {}['key']\n", "chat.py:10: KeyError: 'key'"),
    "start-up": ("VERSION = 1\n", "app.on_startup(lambda: 1 / 0)\n", "chat.py:10: ZeroDivisionError: division by zero"),
    "exit": ("VERSION = 1\n", "raise SystemExit(4)\n", "chat.py:10: SystemExit: 4"),
    "crash": ("VERSION = 1\n", "os._exit(5)\n", "the app's process ended with exit code 5"),
    "kill": ("VERSION = 1\n", "os.kill(os.getpid(), 11)\n", "the app's process was killed by SIGSEGV"),
    "no app": (
        "            pass\n",
        "            pass\n\n\napp = 1\n",
        "chat: expected an ASGI app, got app, of type int",
    ),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_code_that_fails_is_answered_with_503_until_it_is_mended(dev, kind):
    before, after, line = FAILURES[kind]
    dev.save(before=before, after=after)
    status, text, headers = dev.get()
    assert status == 503
    assert text.startswith(line)
    assert headers["content-type"] == "text/plain; charset=utf-8"
    dev.server.wait_for_line(rf"error +{line[:20].replace('(', '.')}.*; 503 until it is mended")
    status, page, headers = dev.get(accept="text/html,*/*;q=0.8")
    assert (status, headers["content-type"]) == (503, "text/html; charset=utf-8")
    assert 'id="microws-error"' in page
    with connect(f"ws://127.0.0.1:{dev.port}/echo", proxy=None) as ws:
        with pytest.raises(ConnectionClosed) as caught:
            ws.recv(LIMIT)
        assert caught.value.rcvd.code == 1013
        assert caught.value.rcvd.reason.startswith(line[:80])
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    assert dev.version == 2


def test_a_start_up_that_fails_in_a_large_folder_is_mended(dev):
    for number in range(3000):
        (dev.folder / f"{'module' * 15}{number}.py").write_text("")
    dev.save(before="VERSION = 1\n", after="app.on_startup(lambda: 1 / 0)\n")
    assert dev.get()[1].startswith("chat.py:10: ZeroDivisionError")
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    assert dev.version == 2


def test_an_app_that_loads_slowly_starts_after_a_file_was_removed(dev):
    dev.save("x = 1\n", name="other.py")
    # Longer than files are not looked at.
    lines = "VERSION = 1\ntime.sleep(0.7)\ntry:\n    import other\nexcept ImportError:\n    VERSION = 2\n"
    dev.save(before="VERSION = 1\n", after=lines)
    assert dev.version == 1
    (dev.folder / "other.py").unlink()
    assert dev.version == 2


def test_a_crash_after_a_file_was_removed_is_not_repeated(dev):
    dev.save("x = 1\n", name="other.py")
    dev.save(before="VERSION = 1\n", after="VERSION = 1\nimport other\n")
    assert dev.version == 1
    (dev.folder / "other.py").unlink()
    assert dev.get()[1].startswith("chat.py:11: ModuleNotFoundError: No module named 'other'")
    dev.save(before="VERSION = 1\n", after="os._exit(5)\n")
    assert dev.get()[1].startswith("the app's process ended with exit code 5")
    dev.get()
    assert len(dev.server.find_lines("exit code 5")) == 1
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    assert dev.version == 2


def test_code_that_fails_from_the_start_is_mended_by_a_new_file(tmp_path):
    text = APP.replace("VERSION = 1", "from parts.version import VERSION")
    with developed(tmp_path, text=text) as dev:
        assert dev.get()[1].startswith("chat.py:10: ModuleNotFoundError: No module named 'parts'")
        dev.save("VERSION = 7\n", name="parts/version.py")
        dev.server.wait_for_line("reloaded")
        assert dev.version == 7


def test_a_module_that_a_view_imports_is_watched(dev):
    dev.save("VERSION = 3\n", name="later.py")
    dev.save(before="    return {", after="    from later import VERSION\n    return {")
    assert dev.version == 3
    dev.save("VERSION = 4\n", name="later.py")
    assert dev.version == 4


def test_files_that_the_app_did_not_load_are_not_watched(dev):
    pid = dev.pid
    for name in ("other.py", "venv/lib/python3.11/site-packages/x.py", "node_modules/x.js", "data.json", "chat.log"):
        dev.save("VERSION = 1\n", name=name)
    dev.save("p {}\n", name="templates/page.html")
    dev.server.wait_for_line(r"templates/page\.html changed; pages reload")
    assert dev.pid == pid


def test_a_template_or_a_style_reloads_pages_only(tmp_path):
    for folder in ("templates", "static"):
        (tmp_path / folder).mkdir()
    (tmp_path / "templates" / "page.html").write_text("one")
    (tmp_path / "static" / "site.css").write_text("p {}")
    text = APP.replace("VERSION = 1\n", 'VERSION = 1\napp.static("/static", "static")\n')
    with developed(tmp_path, text=text) as dev, connect(
        f"ws://127.0.0.1:{dev.port}/.microws/dev.js", proxy=None
    ) as page:  # fmt: skip
        process = page.recv(LIMIT)
        pid = dev.pid
        dev.save("two", name="templates/page.html")
        assert page.recv(LIMIT) == "pages"
        dev.save("p { color: red }", name="static/site.css")
        assert page.recv(LIMIT) == "pages"
        assert dev.pid == pid
        dev.save("<p>", name="beside.html")
        dev.save(text, before="VERSION = 1\n", after="VERSION = 2\n")
        with pytest.raises(ConnectionClosed):
            page.recv(LIMIT)
        assert dev.version == 2
        with connect(f"ws://127.0.0.1:{dev.port}/.microws/dev.js", proxy=None) as page:
            assert page.recv(LIMIT) != process


def test_only_localhost_is_answered(dev):
    for host in ("localhost", "app.localhost:8000", "127.0.0.1", "[::1]:80"):
        assert dev.get(host=host)[0] == 200, host
    status, text, _ = dev.get(host="evil.example:80")
    assert status == 421
    assert "microws dev --allow-host evil.example" in text


def test_more_hosts_can_be_allowed(tmp_path):
    with developed(tmp_path, "chat:app", "--allow-host", "my.test", "--allow-host", "*.other.test") as dev:
        assert dev.get(host="my.test")[0] == 200
        assert dev.get(host="a.other.test")[0] == 200
        assert dev.get(host="evil.example")[0] == 421


def test_a_server_for_every_network_answers_to_the_names_of_the_machine(tmp_path):
    with developed(tmp_path, "chat:app", "--host", "0.0.0.0") as dev:
        name = socket.gethostname().lower()
        for host in (name, f"{name}.local:80", "0.0.0.0", "localhost"):
            assert dev.get(host=host)[0] == 200, host
        assert dev.get(host="evil.example")[0] == 421


def test_a_port_in_use_is_one_line(dev):
    with process(dev.folder, command("chat:app", "--port", str(dev.port))) as started:
        output = started.stdout.read()
        assert started.wait(LIMIT) == 1
    assert "is in use" in output
    assert len(output.splitlines()) == 1


def test_every_localhost_origin_may_connect(dev):
    with connect(f"ws://127.0.0.1:{dev.port}/echo", origin="http://localhost:5173", proxy=None) as ws:
        ws.send("x")
        assert ws.recv(LIMIT) == "x"


def test_an_app_that_does_not_exist_ends_the_command(tmp_path):
    (tmp_path / "chat.py").write_text(APP)
    with process(tmp_path, command("chatt")) as started:
        output = started.stdout.read()
        assert started.wait(LIMIT) == 3
    assert "no module 'chatt'" in output
    assert "did you mean: microws dev chat" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_processes(dev, number):
    pid = dev.pid
    dev.server.signal(number)
    assert dev.server.wait() == 0
    assert not is_running(pid)


def test_the_end_of_the_supervisor_ends_all_processes(dev):
    pid = dev.pid
    others = children_of(dev.server.pid)
    assert pid in others
    dev.server.signal(signal.SIGKILL)
    dev.server.wait()
    dev.wait_until(lambda: not any(map(is_running, others)))


def test_without_the_watcher_files_are_looked_at(dev):
    [watcher] = set(children_of(dev.server.pid)) - {dev.pid}
    os.kill(watcher, signal.SIGKILL)
    dev.server.wait_for_line("does not notify")
    dev.save(before="VERSION = 1\n", after="VERSION = 2\n")
    dev.server.wait_for_line(r"chat\.py changed; reloaded")


def test_the_hub_process_goes_on_over_a_reload(tmp_path):
    text = APP.replace("App()", 'App(hub="local")').replace(
        "VERSION = 1\n",
        'VERSION = 1\napp.topic("log", history=10)\n\n@app.websocket_route("/log", subscribe="log")\n'
        "async def log(ws):\n    async with ws:\n        async for message in ws:\n"
        '            receipt = await app.publish("log", message)\n',
    )
    with developed(tmp_path, text=text) as dev:
        with connect(f"ws://127.0.0.1:{dev.port}/log", proxy=None) as ws:
            ws.send("one")
            assert ws.recv(LIMIT) == "one"
        dev.save(text, before="VERSION = 1\n", after="VERSION = 2\n")
        assert dev.version == 2
        with connect(f"ws://127.0.0.1:{dev.port}/log?since=start", proxy=None) as ws:
            assert ws.recv(LIMIT) == "one"
            ws.send("two")
            assert ws.recv(LIMIT) == "two"


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(number) for number in found.stdout.split() if is_running(int(number))]


def test_children_are_found():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        assert child.pid in children_of(os.getpid())
        child.communicate(b"\n")


def test_the_lines_of_a_websocket_count_its_messages(tmp_path):
    text = APP.replace('"/echo"', '"/echo", subscribe="news"').replace(
        "            await ws.send(message)\n",
        "            await ws.send(message)\n            await app.publish('news', message * 9000)\n",
    )
    with developed(tmp_path, text=text) as dev:
        with connect(f"ws://127.0.0.1:{dev.port}/echo?token=s3cret", proxy=None) as ws:
            for _ in range(3):
                ws.send("12345678")
                assert ws.recv(LIMIT) == "12345678"
                assert ws.recv(LIMIT) == "12345678" * 9000
        line = dev.server.wait_for_line(r"WS  .*in ").string
        assert re.search(r"WS      /echo\?token=\*+ +1000 +\S+ms  in 3, out 6$", line), line
        dev.server.wait_for_line(r"PUB     news +\S+ms  1 subscriber$", times=3)
        dev.server.wait_for_line(r"WS      /echo\?token=\*+ +open ")
        assert not dev.server.find_lines("s3cret")


def test_a_view_that_blocks_the_event_loop_is_named(dev):
    dev.save(
        APP.replace("def who(request):", "async def who(request):"),
        before="    return {",
        after="    time.sleep(1)\n    return {",
    )
    assert dev.version == 1
    dev.server.wait_for_line(r"warning the event loop was blocked for [\d.]+ s.*who\(\) at .*chat\.py:15$")


def test_a_script_is_run_again(tmp_path):
    text = f"""import sys
{APP}
print("arguments", sys.argv[1:], flush=True)
if __name__ == "__main__":
    app.run(port=int(sys.argv[1]), reload=True)
    print("after", flush=True)
"""
    with developed(tmp_path, text=text, program=[sys.executable, "chat.py", "0", "x"]) as dev:
        dev.server.wait_for_line(r"arguments \['0', 'x'\]")
        for version in (2, 3):
            dev.save(text, before="VERSION = 1\n", after=f"VERSION = {version}\n")
            assert dev.version == version
        dev.save(text, before="VERSION = 1\n", after="VERSION = absent\n")
        assert dev.get()[1].startswith("chat.py:11: NameError: name 'absent' is not defined")
        dev.save(text, before="VERSION = 1\n", after="VERSION = 4\n")
        assert dev.version == 4
        dev.server.signal(signal.SIGINT)
        assert dev.server.wait() == 0
        dev.server.wait_for_line("^after$")


def test_a_module_is_run_again(tmp_path):
    text = APP + "\n\nif __name__ == '__main__':\n    app.run(port=0, reload=True)\n"
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "serve.py").write_text(text)
    with developed(tmp_path, program=[sys.executable, "-m", "rooms.serve"]) as dev:
        dev.save(text, before="VERSION = 1\n", after="VERSION = 2\n", name="rooms/serve.py")
        assert dev.version == 2


def test_the_benchmark_finds_nothing_refused_nothing_stale_and_nothing_left():
    script = Path(__file__).parents[1] / "bench" / "dev.py"
    options = ("--saves", "3", "--websockets", "10", "--streams", "2", "--pause", "0")
    done = subprocess.run(
        [sys.executable, script, "microws dev", *options], capture_output=True, text=True, timeout=6 * LIMIT, check=True
    )
    row = done.stdout.splitlines()[-1].split(" | ")
    assert row[:2] == ["| microws dev", "3"]
    assert row[-4:] == ["0", "0", "0", "0 |"]


def test_a_terminal_shows_colors_and_ctrl_c_leaves_no_traceback(tmp_path):
    (tmp_path / "chat.py").write_text(APP)
    ours, theirs = pty.openpty()
    environ = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    with (
        os.fdopen(ours, "rb", 0) as terminal,
        subprocess.Popen(
            command("chat:app"), cwd=tmp_path, env=environ, stdin=theirs, stdout=theirs, stderr=theirs,
            start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        ) as started,
    ):  # fmt: skip
        os.close(theirs)
        shown = b""
        while not (match := re.search(rb"http://127.0.0.1:(\d+)", shown)):
            shown += terminal.read(4096)
        urllib.request.urlopen(f"http://127.0.0.1:{match[1].decode()}/", timeout=LIMIT).close()
        while b"\x1b[32m200" not in shown:
            shown += terminal.read(4096)
        os.write(ours, b"\x03")
        with suppress(OSError):  # the end of the terminal
            while data := terminal.read(4096):
                shown += data
        assert started.wait(LIMIT) == 0
    assert b"Traceback" not in shown
