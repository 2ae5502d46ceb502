"""``microws connect``: at a terminal, in a pipe, and its mistakes."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
from serving import LIMIT, ROOT, Server
from terminal import in_terminal

from microws.cli import main

APP = """
import anyio
from microws import App, EventStream, RedirectResponse, ServerSentEvent

app = App(origins=["https://app.example"])


@app.websocket_route("/echo", value_type="auto", subprotocols=["v1"])
async def echo(ws):
    async with ws:
        async for message in ws:
            if message == "headers":
                message = "; ".join(f"{name}={ws.headers.get(name)}" for name in ("host", "x-key", "origin"))
            if message == "escape":
                message = "\\x1b[2J\\x07"
            if message == "bye":
                await ws.close(4001, "bye")
            while message == "flood":
                await ws.send(message)
            if message == "done":
                await ws.close()
            if message == "restart":
                await ws.close(1012)
            await ws.send(message)


@app.websocket_route("/deaf")
async def deaf(ws):
    async with ws:
        await ws.send("ready")
        await anyio.sleep_forever()


@app.websocket_route("/rejects")
async def rejects(ws):
    await ws.reject(403, "not today\\x1b")


@app.get("/events")
async def events():
    async def generate():
        yield {"n": 1}
        yield ServerSentEvent("two\\nlines", event="news", id="7")

    return EventStream(generate())


@app.get("/endless")
async def endless():
    return EventStream(app.stream("topic"))


@app.get("/breaks")
async def breaks():
    async def generate():
        yield "one"
        raise ValueError

    return EventStream(generate())


@app.get("/page")
async def page():
    return "<h1>page</h1>"


@app.get("/moved")
async def moved():
    return RedirectResponse("/events")
"""

MICROWS = [sys.executable, "-m", "microws"]


@contextmanager
def served(directory, *options):
    (directory / "talking.py").write_text(APP)
    process = subprocess.Popen(
        [*MICROWS, "run", "talking.py", "--port", "0", "--no-access-log", *options],
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


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("app")) as server:
        yield server


@pytest.fixture
def ws_url(server):
    return server.ws_url


def piped(*arguments, text=b"", **variables):
    """Run the command with ``text`` as its standard input: exit code, stdout and stderr."""
    command = [*MICROWS, "connect", *arguments]
    done = subprocess.run(command, input=text, capture_output=True, timeout=LIMIT, env=os.environ | variables)
    return done.returncode, done.stdout, done.stderr.decode()


def run(capsys, *arguments):
    code = main(["connect", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


# In a pipe


def test_the_lines_of_a_pipe_are_sent_and_the_answers_are_raw(ws_url):
    text = b'{"a": [1, 2]}\n\n/ping\n\x1b[2J\nlast'
    assert piped(f"{ws_url}/echo", "-w", "0.5", text=text) == (0, text + b"\n", "")


def test_a_pipe_waits_for_answers_only_as_long_as_the_server_stays(ws_url):
    assert piped(f"{ws_url}/echo", "--wait", "1000", text=b"done\n") == (0, b"", "")


def test_lines_of_bytes_are_sent_with_binary_and_shown_as_hex(ws_url):
    assert piped(f"{ws_url}/echo", "--binary", "-w", "0.5", text=b"a\xff\n") == (0, b"binary, 2 bytes: 61 ff\n", "")


def test_a_line_that_is_not_utf_8_is_named(ws_url):
    code, _, error = piped(f"{ws_url}/echo", text=b"ok\n\xff\n")
    assert (code, error) == (2, "error: expected a message in UTF-8, got b'\\xff'; for bytes: --binary\n")


def test_a_closed_stdout_ends_the_command_without_a_traceback(ws_url):
    command = [*MICROWS, "connect", f"{ws_url}/echo", "-x", "flood", "-w", "1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"flood\n"
        process.stdout.close()
        assert process.wait(LIMIT) == 1
        assert process.stderr.read() == b""


# Messages, headers and how it ends


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["-x", "hi"], "hi\n"),
        (["-x", "hi", "-x", "ho"], "hi\nho\n"),
        (["-x", "[1]", "--json"], "[1]\n"),
        (["-x", "hi", "--binary"], "binary, 2 bytes: 68 69\n"),
        (["-x", "headers", "-H", "Host: h", "-H", "X-Key: k"], "host=h; x-key=k; origin=None\n"),
        (["-x", "headers", "-H", "Host: h", "-o", "https://app.example"], "x-key=None; origin=https://app.example\n"),
        (["-x", "hi", "-s", "v2", "-s", "v1"], "hi\n"),
    ],
)
def test_messages_of_x_are_sent_and_the_answers_are_shown(ws_url, capsys, arguments, shown):
    code, out, error = run(capsys, f"{ws_url}/echo", *arguments, "-w", "0.3")
    assert (code, out.removeprefix("host=h; "), error) == (0, shown.removeprefix("host=h; "), "")


@pytest.mark.parametrize(
    ("message", "code", "line"),
    [
        ("done", 0, ""),
        ("bye", 1, "error: closed with 4001: bye\n"),
        ("restart", 1, "error: closed with 1012 (service restart)\n"),
    ],
)
def test_the_exit_code_is_0_only_after_1000(ws_url, capsys, message, code, line):
    assert run(capsys, f"{ws_url}/echo", "-x", message) == (code, "", line)


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/rejects", ["403 Forbidden: refused the handshake", "not today\\x1b"]),
        (
            "/nothing",
            [
                "404 Not Found: refused the handshake; to see what is near: microws routes chat:app WS /nothing",
                "Not Found",
            ],
        ),
        (
            "/events",
            ["405 Method Not Allowed: refused the handshake; if it has server-sent events: microws connect http://"],
        ),
    ],
)
def test_a_refused_handshake_shows_its_status_and_body(ws_url, capsys, path, lines):
    code, out, error = run(capsys, f"{ws_url}{path}", "-x", "hi")
    assert (code, out) == (1, "")
    for line, expected in zip(error.removeprefix("error: ").splitlines(), lines, strict=False):
        assert line.startswith(expected)


# Server-sent events


def test_the_data_of_events_is_raw_in_a_pipe(server, capsys):
    assert run(capsys, f"{server.url}/events") == (0, '{"n":1}\ntwo\nlines\n', "")


def test_events_are_read_for_as_long_as_w_says(server, capsys):
    assert run(capsys, f"{server.url}/endless", "-w", "0.1") == (0, "", "")


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/breaks", "the server broke off the stream"),
        (
            "/nothing",
            "404 Not Found: expected a text/event-stream, got text/plain; charset=utf-8; to see what is near: m",
        ),
        ("/page", "200 OK: expected a text/event-stream, got text/html; charset=utf-8\n<h1>page</h1>"),
        ("/moved", "307 Temporary Redirect: expected a text/event-stream, got none; it redirects to /events"),
        (
            "/echo",
            "426 Upgrade Required: expected a text/event-stream, got text/plain; charset=utf-8; for a WebSocket: ",
        ),
    ],
)
def test_what_is_no_event_stream_says_what_it_is(server, capsys, path, line):
    code, _, error = run(capsys, f"{server.url}{path}")
    assert code == 1
    assert error.startswith(f"error: {line}")


# At a terminal


@pytest.fixture
def terminal(ws_url, tmp_path):
    """Open the command in a terminal, with a history in ``tmp_path``."""

    @contextmanager
    def opened(path, *arguments, base=ws_url, **variables):
        command = [*MICROWS, "connect", f"{base}{path}", *arguments]
        with in_terminal(*command, XDG_STATE_HOME=str(tmp_path), **variables) as shown:
            yield shown

    return opened


def test_json_is_coloured_and_indented_where_it_does_not_fit_in_the_line(terminal):
    long = "x" * 80
    with terminal("/echo", "-s", "v1") as shown:
        shown.until("connected with v1; Ctrl-D closes, /ping, /close and /bin FILE are commands")
        shown.prompt()
        shown.type('{"a": [1, true, "b"]}\r')
        shown.until(
            r'< \x1b\[m\{\x1b\[36m"a"\x1b\[m: \[\x1b\[33m1\x1b\[m, \x1b\[35mtrue\x1b\[m, \x1b\[32m"b"\x1b\[m\]\}'
        )
        shown.type(f'["{long}"]\r')
        shown.until(rf'\[\r\n  \x1b\[32m"{long}"\x1b\[m\r\n\]')
        shown.prompt()
        shown.type("\x04")
        shown.until(r"closed with 1000 \(normal closure\)")
        assert shown.ended() == 0


def test_a_terminal_without_color_gets_none_and_no_control_characters_of_a_message(terminal):
    with terminal("/echo", NO_COLOR="1") as shown:
        shown.prompt()
        shown.type("escape\r")
        shown.until(r"< \\x1b\[2J\\x07\r\n")
        shown.type('{"a": 1}\r')
        shown.until(r'< \{"a": 1\}\r\n')
        shown.prompt()
        shown.type("\x04")
        assert shown.ended() == 0


def test_what_is_typed_stays_below_a_message_that_arrives(terminal):
    with terminal("/deaf") as shown:
        shown.until("ready\r\n")
        shown.prompt()
        shown.type("half")
        shown.until("half")
        shown.type("\x03")
        shown.until("closed with 1000")
        assert shown.ended() == 0


def test_the_commands_at_the_prompt(terminal, tmp_path):
    (tmp_path / "file").write_bytes(bytes(300))
    with terminal("/echo") as shown:
        for line, answer in (
            ("/ping", r"pong after [0-9.]+ ms"),
            ("/bin nothing", r"error: /bin FILE: No such file or directory: 'nothing'"),
            (f"/bin {tmp_path}/file", r"binary, 300 bytes: (00 ){255}00 …"),
            ("//ping", r"< \x1b\[m/ping"),
            ("/pnig x", r"error: there is no command /pnig; did you mean '/ping'\?; to send it: //pnig x"),
            ("/close now", r"error: expected /close \[CODE \[REASON\]\], got '/close now'"),
            ("/close 1005", r"error: expected a close code of 1000 to 1003"),
            ("/close 4000 over", r"error: closed with 4000: over"),
        ):
            shown.prompt()
            shown.type(f"{line}\r")
            shown.until(answer)
        assert shown.ended() == 1


def test_invalid_json_at_the_prompt_is_not_sent(terminal):
    with terminal("/echo", "--json") as shown:
        shown.prompt()
        shown.type("{\r")
        shown.until("error: expected a message that is JSON, got '{': invalid JSON")
        shown.type("{}\r")
        shown.until(r"< \x1b\[m\{\}")
        shown.type("/close\r")
        assert shown.ended() == 0


def test_the_history_is_kept_and_private(terminal, tmp_path):
    for keys in ("remembered\r", "\x1b[A\r"):
        with terminal("/echo") as shown:
            shown.prompt()
            shown.type(keys)
            shown.until(r"< \x1b\[mremembered")
            shown.prompt()
            shown.type("\x04")
            assert shown.ended() == 0
    [history] = tmp_path.rglob("history")
    assert history.stat().st_mode & 0o777 == 0o600


def test_events_at_a_terminal_have_their_type_and_id(terminal, server):
    with terminal("/events", base=server.url) as shown:
        shown.until("connected; Ctrl-C ends")
        shown.until(r'< \x1b\[m\{\x1b\[36m"n"\x1b\[m: \x1b\[33m1\x1b\[m\}')
        shown.until(r"< news 7 \x1b\[mtwo\r\nlines")
        assert shown.ended() == 0


def test_ctrl_c_ends_a_stream_orderly(terminal, server):
    with terminal("/endless", base=server.url) as shown:
        shown.until("connected; Ctrl-C ends")
        shown.type("\x03")
        assert shown.ended() == 0


# TLS, and servers that do something else


def test_tls_is_spoken_and_an_unknown_certificate_is_explained(tmp_path):
    tls = ROOT / "tests/tls"
    with served(tmp_path, "--certfile", str(tls / "localhost.pem"), "--keyfile", str(tls / "localhost.key")) as server:
        url = f"wss://localhost:{server.port}/echo"
        code, _, error = piped(url, "-x", "hi")
        assert code == 1
        assert error.startswith(f"error: localhost:{server.port}: TLS failed: ")
        assert error.endswith("; to accept any certificate: --insecure\n")
        assert piped(url, "-x", "hi", "-w", "0.3", "--insecure") == (0, b"hi\n", "")
        assert piped(url, "-x", "hi", "-w", "0.3", SSL_CERT_FILE=str(tls / "localhost.pem")) == (0, b"hi\n", "")


def test_a_server_without_tls_is_named(server, capsys):
    code, _, error = run(capsys, f"wss://127.0.0.1:{server.port}/echo", "-x", "hi")
    assert (code, "; a server without TLS has a URL that begins with ws:// or http://" in error) == (1, True)


@contextmanager
def answering(data):
    """A server that sends ``data`` to its first client, and closes; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            client, _ = listening.accept()
            with client:
                client.recv(65536)
                client.sendall(data)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}/"
        thread.join(LIMIT)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", "the server closed the connection before it answered the handshake"),
        (
            b"HTTP/1.1 301 Moved\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n",
            "301 Moved Permanently: refused the handshake; it redirects to /new",
        ),
        (b"HTTP/1.1 799 Odd\r\n\r\n" + b"x" * 9999, "799 : refused the handshake"),
        (b"nonsense\r\n\r\n", "127.0.0.1:"),
        (b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "127.0.0.1:"),
    ],
)
def test_another_answer_than_a_handshake_is_one_line(capsys, data, line):
    with answering(data) as url:
        code, _, error = run(capsys, url, "-x", "hi")
    assert code == 1
    assert error.splitlines()[0].startswith(f"error: {line}")


def test_a_server_that_does_not_answer_the_close_is_named(capsys, monkeypatch):
    monkeypatch.setattr("microws.cli.connect._CLOSE_TIMEOUT", 0.1)
    url = None
    ready = threading.Event()

    async def serve():
        nonlocal url
        from wsproto.utilities import generate_accept_token

        stop = asyncio.Event()

        async def answer(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            [key] = [line[19:] for line in head.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key: ")]
            accept = generate_accept_token(key)
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            await reader.read()
            writer.close()
            stop.set()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listening:
            url = f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/"
            ready.set()
            async with asyncio.timeout(LIMIT):
                await stop.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert ready.wait(LIMIT)
    assert run(capsys, url, "-x", "hi", "-w", "0") == (
        1, "", "error: the server did not answer the Close frame within 0.1 seconds\n",
    )  # fmt: skip
    thread.join(LIMIT)


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        ([], 2, "expected URL, got none; see microws connect --help"),
        (
            ["localhost:8000/chat"],
            2,
            "URL: expected a URL such as ws://127.0.0.1:8000/chat, or http://127.0.0",
        ),
        (["ftp://h/"], 2, "URL: expected a URL such as ws://127.0.0.1:8000/chat, or http://127.0.0.1:8000/ev"),
        (["ws://"], 2, "URL: ws:// isn't a valid URI: hostname isn't provided; see microws connect --help"),
        (["ws://h:port/"], 2, "URL: ws://h:port/ isn't a valid URI: expected a port, 0 to 65535, after the colon; see"),
        (["ws://h/", "hi"], 2, "unknown argument 'hi'; to send a message: -x hi"),
        (["ws://anna:pw@h/"], 2, "URL: a name and password belong in --header 'Authorization: Basic …'"),
        (["ws://h/", "-H", "X"], 2, "--header: expected 'Name: value' with a name that microws does not"),
        (["ws://h/", "-H", "Upgrade: x"], 2, "--header: expected 'Name: value' with a name that microws"),
        (["ws://h/", "-s", "a b"], 2, "--subprotocol: expected one name without spaces and commas"),
        (
            ["ws://h/", "-o", "a b"],
            2,
            "--origin: expected an origin such as https://app.example, got 'a b'",
        ),
        (["ws://h/", "-w", "long"], 2, "--wait: expected seconds, 0 or more, got 'long'"),
        (["ws://h/", "--jsn"], 2, "unknown argument '--jsn'; did you mean '--json'?"),
        (["ws://h/", "--json", "--binary"], 2, "expected --json or --binary, got both; leave out one of them"),
        (["http://h/", "-x", "hi"], 2, "--send: expected a URL that begins with ws, got http://h/"),
        (["http://h/", "--json"], 2, "--json: expected a URL that begins with ws, got http://h/"),
        (["ws://nothing.invalid/", "-x", "hi"], 1, "nothing.invalid: "),
        (
            ["ws://127.0.0.1:1/", "-x", "hi"],
            1,
            "127.0.0.1:1: nothing answers there; to start an app: microws run chat:",
        ),
    ],
)
def test_a_mistake_is_one_line_and_its_exit_code(capsys, arguments, code, line):
    shown_code, out, error = run(capsys, *arguments)
    assert (shown_code, out, error.count("\n")) == (code, "", 1)
    assert error.startswith(f"error: {line}")


def test_a_message_that_is_not_json_is_not_sent(ws_url, capsys):
    code, out, error = run(capsys, f"{ws_url}/echo", "--json", "-x", "{")
    assert (code, out) == (2, "")
    assert error.startswith("error: expected a message that is JSON, got '{': invalid JSON")
