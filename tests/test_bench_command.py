"""``microws bench`` as a command: its flags, what it prints, and its exit codes."""

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import partial

import pytest
from serving import LIMIT, ROOT, Server
from wsproto.utilities import generate_accept_token

from microws.bench.run import Progress
from microws.cli import main
from microws.cli.bench_options import BENCH_FLAGS, bench_parser, bench_plan
from microws.cli.progress import Bar
from microws.cli.usage import UsageError

URL = "ws://127.0.0.1:8000/echo"

APP = """
from microws import App

app = App()


@app.websocket_route("/ws", subscribe="messages")
async def ws(ws):
    async with ws:
        async for message in ws:
            await ws.send(message)


@app.post("/messages")
async def post(request):
    await app.publish("messages", (await request.json())["text"])
    return {}, 202


@app.websocket_route("/closes")
async def closes(ws):
    async with ws:
        await ws.receive()
        await ws.close(4000, "enough")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("app")
    (directory / "measured.py").write_text(APP)
    command = [sys.executable, "-m", "microws", "run", "measured.py", "--port", "0", "--no-access-log"]
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield Server(process)
    finally:
        process.kill()
        process.wait(LIMIT)
        process.stdout.close()


def short(*arguments):
    return ["bench", *arguments, "--seconds", "0.2", "--warm-up", "0", "--connections", "2"]


# What is told to measure


def plan_of(*arguments):
    return bench_plan(vars(bench_parser().parse_args(arguments)))


def test_without_a_word_it_is_an_echo_of_100_connections():
    plan = plan_of(URL)
    assert (plan.mode, plan.target.url, plan.publish, plan.rate) == ("echo", URL, None, None)
    assert (plan.connections, plan.seconds, plan.warm_up, plan.in_flight) == (100, 10, 1, 1)
    assert (plan.message, plan.size, plan.timeout, plan.open_timeout) == ("{text}", 64, 5, 5)
    assert (plan.subprotocols, plan.headers, plan.insecure, plan.binary) == ((), (), False, False)


def test_every_flag_is_heard():
    plan = plan_of(
        URL, "--fan-out", "--publish", "https://h/messages", "--connections=7", "--seconds=2.5", "--warm-up=0",
        "--rate=50", "--message", '{"a": "{text}"}', "--size", "1KiB", "--timeout=9", "--subprotocol=a",
        "--subprotocol=b", "--header", "X-Key: k", "--header=Host:example.org", "--insecure", "--json",
    )  # fmt: skip
    assert (plan.mode, plan.publish.url, plan.connections, plan.seconds) == ("fan-out", "https://h/messages", 7, 2.5)
    assert (plan.warm_up, plan.rate, plan.message, plan.size) == (0, 50, '{"a": "{text}"}', 1024)
    assert (plan.timeout, plan.open_timeout, plan.insecure) == (9, 9, True)
    assert (plan.subprotocols, plan.headers) == (("a", "b"), (("X-Key", "k"), ("Host", "example.org")))


def test_a_fan_out_publishes_to_the_same_url_by_default_and_a_post_is_json():
    assert plan_of(URL, "--fan-out").publish == plan_of(URL).target
    assert plan_of(URL, "--fan-out", "--in-flight", "8").message == "{text}"
    assert plan_of(URL, "--fan-out", "--publish", "http://h/").message == '{"text": "{text}"}'
    assert plan_of(URL, "--connects").mode == "connects"
    assert plan_of(URL, "--binary").binary


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["http://h/"], "URL: expected a URL that begins with ws:// or wss://, got 'http://h/'; did you mean ws://h/"),
        ([URL, "--connections", "0"], "--connections: expected a number, 1 or more, got '0'"),
        ([URL, "--in-flight", "many"], "--in-flight: expected a number, 1 or more, got 'many'"),
        ([URL, "--seconds", "0"], "--seconds: expected seconds, more than 0, got '0'"),
        ([URL, "--warm-up", "-1"], "--warm-up: expected seconds, 0 or more, got '-1'"),
        ([URL, "--timeout", "inf"], "--timeout: expected seconds, more than 0, got 'inf'"),
        ([URL, "--rate", "fast"], "--rate: expected a number a second, more than 0, got 'fast'"),
        ([URL, "--size", "8"], "--size: expected at least 20 bytes, because a message carries its number, got '8'"),
        ([URL, "--size", "big"], "--size: expected a size such as 65536, 64KiB or 1MiB, got 'big'"),
        ([URL, "--message", "{text}{text}"], "--message: expected {text} once or not at all, got '{text}{text}'"),
        ([URL, "--message", "hi", "--size", "64"], "--size: expected {text} in --message, got none"),
        ([URL, "--subprotocol", "a, b"], "for more than one repeat the option"),
        ([URL, "--header", "no colon"], "--header: expected 'Name: value', got 'no colon'"),
        ([URL, "--header", "Upgrade: h2c"], "--header: expected another header, got Upgrade, which microws sets"),
        ([URL, "--header", "Sec-WebSocket-Protocol: a"], "which microws sets; write --subprotocol"),
        ([URL, "--header", "X: a\nY: b"], "--header: expected a value of printable ASCII, got 'a\\nY: b'"),
        ([URL, "--fan-out", "--connects"], "expected --fan-out or --connects, got both; leave out one of them"),
        ([URL, "--publish", "ws://h/"], "--publish: expected --fan-out too, got --publish alone; add --fan-out"),
        ([URL, "--fan-out", "--publish", "h/pub"], "expected a URL that begins with ws://, wss://, http:// or https://"),
        ([URL, "--rate", "5", "--in-flight", "5"], "expected --rate or --in-flight, got both; leave out one of them"),
        ([URL, "--connects", "--size", "64"], "expected --connects or --size, got both"),
        ([URL, "--fan-out", "--publish", "http://h/", "--binary"], "--binary: expected a WebSocket to publish to, got"),
        ([], "the following arguments are required: URL; see microws bench --help"),
        ([URL, "--conections", "5"], "unknown argument '--conections'; did you mean '--connections'?"),
        ([URL, "ws://h/"], "unknown argument 'ws://h/'; see microws bench --help"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(arguments, problem, capsys):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    assert problem in printed.err


def test_the_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in BENCH_FLAGS)


def test_a_mistake_in_a_value_names_the_flag():
    with pytest.raises(UsageError, match=r"^--seconds: "):
        plan_of(URL, "--seconds", "soon")


# What is printed


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        (
            "/ws",
            [],
            ["echo  ws://", "answers", "per second", "p99.9", "closed loop", "0 lost, 0 duplicates", "of a core"],
        ),
        (
            "/ws",
            ["--rate", "50"],
            ["50 messages of 64 bytes a second in all", "sent late by", "from the time that each was due"],
        ),
        ("/ws", ["--connects"], ["connects  ws://", "2 at a time", "handshake", "until closed"]),
        ("/ws", ["--connects", "--rate", "20"], ["20 a second"]),
        (
            "/ws",
            ["--fan-out", "--publish", "http://127.0.0.1:{port}/messages", "--in-flight", "2"],
            [
                "2 subscribers; 2 messages of 76 bytes",
                "published by POST http://",
                "deliveries",
                "publishes",
                "to the last",
                "POSTs race each other",
            ],
        ),
        ("/ws", ["--message", "ping"], ["only counted: --message has no {text}"]),
    ],
)
def test_a_table_tells_what_was_measured(server, path, options, words, capsys):
    options = [option.format(port=server.port) if "{port}" in option else option for option in options]
    code = main(short(f"{server.ws_url}{path}", *options))
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    for word in words:
        assert word in printed.out
    assert max(len(line) for line in printed.out.splitlines()[1:]) <= 120


def test_a_fan_out_by_the_clock_tells_its_rate(server, capsys):
    publish = f"http://127.0.0.1:{server.port}/messages"
    assert main(short(f"{server.ws_url}/ws", "--fan-out", "--publish", publish, "--rate", "20")) == 0
    assert "20 messages of 76 bytes a second" in capsys.readouterr().out


def test_the_handlers_of_signals_are_put_back(server):
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(short(f"{server.ws_url}/ws")) == 0
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_json_is_one_object_and_nothing_else(server, capsys):
    assert main(short(f"{server.ws_url}/ws", "--json")) == 0
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert printed.err == ""
    assert (told["mode"], told["counted"], told["loop"], told["connections"]) == ("echo", "answers", "closed", 2)
    assert told["count"] > 0
    assert set(told["latency_seconds"]["answer"]) == {"count", "mean", "p50", "p90", "p99", "p99.9", "max"}
    assert told["errors"]["total"] == 0
    assert set(told["generator"]) == {"cpu", "waited_for_a_core", "was_the_limit", "event_loop"}


def test_what_goes_wrong_is_one_line_with_a_hint_and_exit_code_1(server, capsys):
    assert main(short(f"{server.ws_url}/nothing")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    url = f"{server.ws_url}/nothing"
    assert printed.err == f"error: 1 handshake failed at {url}: HTTP 404, 'Not Found'; is the path right?\n"


def test_json_is_there_also_when_nothing_was_measured(server, capsys):
    assert main(short(f"{server.ws_url}/closes", "--json")) == 1
    printed = capsys.readouterr()
    told = json.loads(printed.out)
    assert told["errors"]["closed"] == [{"code": 4000, "reason": "enough", "count": 2}]
    assert printed.err == "error: 2 connections closed by the server: 4000 enough\n"


# Being interrupted


@pytest.fixture
def on_terminal():
    """Starts the command with stderr on a terminal; returns it, and what reads all that it prints until it ends."""
    pty = pytest.importorskip("pty", reason="terminals are POSIX's")
    with ExitStack() as stack:

        def start(*arguments):
            ours, theirs = pty.openpty()
            stack.callback(os.close, ours)
            command = [sys.executable, "-m", "microws", "bench", *arguments, "--seconds", "60", "--warm-up", "0"]
            process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=theirs, text=True
            )
            os.close(theirs)
            watchdog = threading.Timer(3 * LIMIT, process.kill)
            watchdog.start()
            for last in (process.stdout.close, partial(process.wait, LIMIT), process.kill, watchdog.cancel):
                stack.callback(last)

            def read(measuring):
                """Calls ``measuring`` when the bar says so; the exit code, stdout and what the terminal has got."""
                shown = ""
                while chunk := _read(ours):
                    before, shown = shown, shown + chunk
                    if "measuring" in shown and "measuring" not in before:
                        measuring()
                out, _ = process.communicate(timeout=LIMIT)
                return process.returncode, out, shown

            return process, read

        yield start


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_prints_what_there_is_so_far(server, on_terminal, number):
    process, read = on_terminal(f"{server.ws_url}/ws")
    code, out, shown = read(measuring=lambda: process.send_signal(number))
    assert code == 0, shown
    assert "interrupted: this is what there was until then" in out
    assert "answers" in out
    # The bar leaves no trace.
    assert shown.endswith("\r\x1b[K")


def test_ctrl_c_twice_ends_at_once(on_terminal):
    def serve():
        connection, _ = listener.accept()
        with connection:
            request = connection.recv(1 << 16)
            key = re.search(rb"Sec-WebSocket-Key: (\S+)", request)[1]
            connection.sendall(
                b"HTTP/1.1 101 X\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
                b"sec-websocket-accept: " + generate_accept_token(key) + b"\r\n\r\n"
            )
            # A message, then the Close frame, which is not answered.
            while data := connection.recv(1 << 16):
                if data.startswith(b"\x88"):
                    process.send_signal(signal.SIGINT)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LIMIT)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}/"
        process, read = on_terminal(url, "--connections", "1", "--timeout", "60")
        code, out, shown = read(measuring=lambda: process.send_signal(signal.SIGINT))
        thread.join(LIMIT)
    assert (code, out) == (1, "")
    assert shown.endswith("\r\x1b[Kerror: interrupted\r\n")


def _read(descriptor):
    try:
        return os.read(descriptor, 4096).decode(errors="replace")
    except OSError:  # Linux: nobody has the other end open
        return ""


# The bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_shown_on_a_terminal_and_wiped_away():
    terminal = Terminal()
    bar = Bar(terminal, words="answers")
    bar.show(Progress(phase="connecting", done=50, total=100))
    bar.show(Progress(phase="connecting", done=50, total=100))
    bar.show(Progress(phase="measuring", done=5, total=10, rate=51_203.4))
    bar.show(Progress(phase="warming up", done=0, total=0))
    bar.show(Progress(phase="finishing", done=0, total=7))
    bar.clear()
    bar.clear()
    half, whole = "█" * 12 + "░" * 12, "█" * 24
    assert terminal.getvalue().split("\r\x1b[K") == [
        "",
        f"connecting  {half}  50 of 100",
        f"measuring  {half}  5 of 10 s  51,203 answers/s",
        f"warming up  {whole}  0 of 0 s",
        "waiting for 7 under way",
        "",
    ]


def test_elsewhere_there_is_no_bar():
    stream = io.StringIO()
    bar = Bar(stream, words="answers")
    bar.show(Progress(phase="connecting", done=50, total=100))
    bar.clear()
    assert stream.getvalue() == ""
