"""The command ``microws bench``: its flags, what it prints, and its exit codes."""

import io
import json
import os
import re
import signal
import subprocess
import sys

import pytest
from serving import LIMIT, ROOT, Server

from microws.cli import main
from microws.cli.bench import _show_status, bench_parser, bench_plan

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


def plan_of(*arguments):
    return bench_plan(vars(bench_parser().parse_args(arguments)))


def test_the_default_is_an_echo_of_100_connections():
    plan = plan_of(URL)
    assert (plan.mode, plan.url, plan.publish, plan.rate) == ("echo", URL, "", None)
    assert (plan.connections, plan.seconds, plan.warm_up, plan.in_flight) == (100, 10, 1, 1)
    assert (plan.message, plan.size, plan.timeout) == ("{text}", 64, 5)
    assert (plan.subprotocol, plan.header, plan.insecure, plan.binary) == ((), (), False, False)


def test_every_flag_is_honored():
    plan = plan_of(
        URL, "--fan-out", "--publish", "https://h/messages", "--connections=7", "--seconds=2.5", "--warm-up=0",
        "--rate=50", "--message", '{"a": "{text}"}', "--size", "1KiB", "--timeout=9", "--subprotocol=a",
        "--subprotocol=b", "--header", "X-Key: k", "--header=Host:example.org", "--insecure", "--json",
    )  # fmt: skip
    assert (plan.mode, plan.publish, plan.connections, plan.seconds) == ("fan-out", "https://h/messages", 7, 2.5)
    assert (plan.warm_up, plan.rate, plan.message, plan.size) == (0, 50, '{"a": "{text}"}', 1024)
    assert (plan.timeout, plan.insecure) == (9, True)
    assert (plan.subprotocol, plan.header) == (("a", "b"), (("X-Key", "k"), ("Host", "example.org")))


def test_a_fan_out_publishes_to_the_same_url_and_posts_json_by_default():
    assert plan_of(URL, "--fan-out").publish == URL
    assert plan_of(URL, "--fan-out", "--in-flight", "8").message == "{text}"
    assert plan_of(URL, "--fan-out", "--publish", "http://h/").message == '{"text": "{text}"}'
    assert plan_of(URL, "--connects").mode == "connects"
    assert plan_of(URL, "--binary").binary


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["http://h/"], "URL: expected a URL such as ws://127.0.0.1:8000/echo, got 'http://h/'; see microws"),
        (["h:80/"], "URL: expected a URL such as ws://127.0.0.1:8000/echo, got 'h:80/'; write ws://h:80/; see microws"),
        (["ws://anna:pw@h/"], "URL: a name and password belong in --header 'Authorization: Basic …'"),
        ([URL, "--connections", "0"], "--connections: expected a whole number, 1 or more, got '0'"),
        ([URL, "--in-flight", "many"], "--in-flight: expected a whole number, 1 or more, got 'many'"),
        ([URL, "--seconds", "0"], "--seconds: expected seconds, more than 0, got '0'"),
        ([URL, "--warm-up=-1"], "--warm-up: expected seconds, 0 or more, got '-1'"),
        ([URL, "--timeout", "inf"], "--timeout: expected seconds, more than 0, got 'inf'"),
        ([URL, "--rate", "fast"], "--rate: expected a number a second, more than 0, got 'fast'"),
        ([URL, "--size", "8"], "--size: expected a size such as 64 or 16KiB, 20 bytes or more, got '8'"),
        ([URL, "--size", "big"], "--size: expected a size such as 64 or 16KiB, 20 bytes or more, got 'big'"),
        ([URL, "--message", "{text}{text}"], "--message: expected {text} at most once, got '{text}{text}'"),
        ([URL, "--message", "hi", "--size", "64"], "--size: expected {text} in --message, got none"),
        ([URL, "--subprotocol", "a, b"], "expected one name without spaces and commas (repeat the option for more)"),
        ([URL, "--header", "no colon"], "--header: expected 'Name: value' with a name that microws"),
        ([URL, "--header", "Upgrade: h2c"], "--header: expected 'Name: value' with a name that microws"),
        ([URL, "--header", "Sec-WebSocket-Protocol: a"], "--header: expected 'Name: value' with a name that"),
        ([URL, "--header", "X: a\nY: b"], "--header: expected 'Name: value' with a name that microws"),
        ([URL, "--fan-out", "--connects"], "expected --fan-out or --connects, got both; leave out one of them"),
        ([URL, "--publish", "ws://h/"], "--publish: expected --fan-out too, got --publish alone; add --fan-out"),
        ([URL, "--fan-out", "--publish", "h/pub"], "expected a URL that begins with ws://, wss://, http:// or https://"),
        ([URL, "--rate", "5", "--in-flight", "5"], "expected --rate or --in-flight, got both; leave out one of them"),
        ([URL, "--connects", "--size", "64"], "expected --connects or --size, got both"),
        ([URL, "--fan-out", "--publish", "http://h/", "--binary"], "--binary: expected a WebSocket to publish to, got"),
        ([], "expected URL, got none; see microws bench --help"),
        ([URL, "--conections", "5"], "unknown argument '--conections'; did you mean '--connections'?"),
        ([URL, "ws://h/"], "unknown argument 'ws://h/'; see microws bench --help"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_exit_code_2(arguments, problem, capsys):
    assert main(["bench", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {problem}") or problem in printed.err
    assert printed.err.count("\n") == 1


def test_the_help_names_every_flag(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in bench_parser().flags)


POST = ["--fan-out", "--publish", "http://127.0.0.1:{port}/messages"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["echo  ws://", "answers", "per second", "p99.9", "closed loop", "0 lost, 0 duplicates", "of a core"]),
        (["--rate", "50"], ["50 messages of 64 bytes a second in all", "sent late by", "open loop"]),
        (["--connects"], ["connects  ws://", "2 at a time", "handshake", "until closed"]),
        (["--connects", "--rate", "20"], ["20 a second"]),
        (
            [*POST, "--in-flight", "2"],
            ["2 subscribers; 2 messages of 76 bytes in flight", "published by POST http://", "deliveries", "publishes"],
        ),
        ([*POST, "--rate", "20"], ["20 messages of 76 bytes a second"]),
    ],
)
def test_the_table_shows_what_was_measured(server, options, words, capsys):
    options = [option.replace("{port}", str(server.port)) for option in options]
    code = main(short(f"{server.ws_url}/ws", *options))
    printed = capsys.readouterr()
    assert (code, printed.err) == (0, "")
    for word in words:
        assert word in printed.out
    assert max(len(line) for line in printed.out.splitlines()[1:]) <= 120


def test_json_is_one_object_and_nothing_else(server, capsys):
    assert main(short(f"{server.ws_url}/ws", "--json")) == 0
    printed = capsys.readouterr()
    report = json.loads(printed.out)
    assert printed.err == ""
    assert (report["mode"], report["counted"], report["loop"], report["connections"]) == (
        "echo",
        "answers",
        "closed",
        2,
    )
    assert report["count"] > 0
    assert set(report["latency_seconds"]["answer"]) == {"count", "mean", "p50", "p90", "p99", "p99.9", "max"}
    assert report["errors"]["total"] == 0
    assert set(report["generator"]) == {"cpu", "waited_for_a_core", "was_the_limit", "event_loop"}


def test_an_error_is_one_line_with_a_hint_and_exit_code_1(server, capsys):
    assert main(short(f"{server.ws_url}/nothing")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    url = f"{server.ws_url}/nothing"
    assert printed.err == f"error: handshakes refused (1): {url}: HTTP 404, 'Not Found'; is the path right?\n"


def test_json_is_printed_even_if_nothing_was_measured(server, capsys):
    url = f"{server.ws_url}/closes"
    assert main(short(url, "--json")) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["errors"]["closed"] == {"4000 enough": 2}
    assert printed.err == f"error: connections closed (2): {url}: 4000 enough\n"


def test_the_status_is_shown_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, shown in ((io.StringIO(), ""), (Terminal(), "\r\x1b[Kmeasuring\r\x1b[K")):
        monkeypatch.setattr(sys, "stderr", stream)
        _show_status("measuring")
        _show_status("")
        assert stream.getvalue() == shown


# Ctrl-C


def test_ctrl_c_prints_the_figures_until_then(server, monkeypatch, capsys):
    def interrupt(text):
        if re.search(r"measuring  .* [1-9][0-9,]* answers", text):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys.modules["microws.cli.bench"], "_show_status", interrupt)
    # Shells start background jobs with SIGINT ignored, and a child inherits this.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main(["bench", f"{server.ws_url}/ws", "--seconds", "60", "--warm-up", "0"]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    printed = capsys.readouterr().out
    assert "interrupted: these are the figures until then" in printed
    assert "answers" in printed


def test_a_second_ctrl_c_ends_the_command_without_figures(monkeypatch, capsys):
    async def measure(plan, status):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["microws.cli.bench"], "measure", measure)
    assert main(["bench", URL]) == 1
    assert capsys.readouterr() == ("", "error: interrupted\n")
