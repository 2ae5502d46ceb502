"""Everything that the commands write, searched for what only a client, the app or Redis may know."""

import http.client
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
from byte_client import ByteClient, close_frame, frame, upgrade
from serving import LIMIT, Server
from supervising import process

from microws.cli import main

MICROWS = [sys.executable, "-m", "microws"]
# Each is found by its beginning or its end, too.
PART = 16

APP = """
import logging
import os

from microws import App, HTTPException

app = App(secret=[os.environ["SECRET"], os.environ["OLD_SECRET"]])
app.metrics()
log = logging.getLogger("chat")


class Wrap:
    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        headers = scope.get("headers")
        await self.app(scope, receive, send)


app.add_middleware(Wrap)


def tell(connection):
    parts = [connection, connection.app, connection.url, connection.headers, connection.query, connection.state,
             connection.app.hub, connection.app.signing, connection.app.signing.session, app._settings]
    for part in parts:
        print(repr(part), flush=True)
        log.warning("it is %r", part)


@app.post("/login")
async def login(request):
    form = await request.form()
    log.warning("the form is %r", form)
    request.session["user"] = "anna"
    return {"ticket": app.ticket("anna", path="/chat"), "other": app.ticket("anna", path="/other")}


@app.get("/known")
async def known(request):
    tell(request)
    return {"user": request.session["user"], "bearer": request.bearer is not None}


@app.get("/fails")
async def fails(request):
    value = request.bearer
    pairs = [*request.headers.items(), *request.query.items(), *request.cookies.items()]
    scope = request.scope
    tell(request)
    raise LookupError("no such thing")


@app.get("/forbidden")
async def forbidden(request):
    raise HTTPException(403, "not yours")


@app.get("/long")
async def long(request):
    request.session["text"] = "x" * 5000
    return "never"


@app.websocket_route("/chat")
async def chat(ws):
    ticket = await ws.take_ticket()
    tell(ws)
    async with ws:
        async for message in ws:
            raise LookupError("no such message")


@app.websocket_route("/bearer")
async def bearer(ws):
    value, session = ws.bearer, ws.session
    tell(ws)
    async with ws:
        ws.start_soon(fail, ws, value)
        async for message in ws:
            pass


async def fail(ws, value):
    raise LookupError("no such task")


async def check(ws, message):
    if message.endswith("wrong"):
        raise LookupError("no such user")
    return False


@app.websocket_route("/first", login=check)
async def first(ws):
    pass


@app.websocket_route("/typed", value_type="json")
async def typed(ws):
    async with ws:
        async for message in ws:
            pass
"""


def secret(name):
    """A text that is nowhere else, of letters that no encoding changes."""
    return (name.replace("_", "") + os.urandom(24).hex())[:48]


class Run:
    """
    What may not be written, and everything that was.

    Attributes:
        secrets: By name.
        written: Output, and bodies of responses that are for somebody else than the owner of the secret.
    """

    def __init__(self):
        names = ("secret", "old_secret", "bearer", "sub_bearer", "password", "first", "query_key", "hub_password")
        self.secrets = {name: secret(name) for name in names}
        self.written = ""
        self.server = None

    def headers(self):
        headers = {"authorization": f"Bearer {self.secrets['bearer']}"}
        if "cookie" in self.secrets:
            headers["cookie"] = f"theme=dark; session={self.secrets['cookie']}"
        return headers

    def request(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=LIMIT)
        with_names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, self.headers() | with_names)
        response = connection.getresponse()
        text = response.read().decode()
        connection.close()
        return response, text

    def visit(self, path, *frames, subprotocols="", **headers):
        """Open a WebSocket, send the frames, and wait for its end."""
        lines = [f"{name}: {value}" for name, value in (self.headers() | headers).items()]
        if subprotocols:
            lines.append(f"sec-websocket-protocol: {subprotocols}")
        with ByteClient(self.server.port) as client:
            client.send(upgrade(path, *lines))
            status, head = client.read_head()
            self.written += repr(status) + repr(head)
            if status == 101:
                client.send(b"".join(frames))
                self.written += repr(client.read_close())
                client.send(close_frame(1000))
            else:
                self.written += repr(client.read_bytes(int(head["content-length"])))

    def drive(self):
        """Everything that a client may do right and wrong."""
        secrets = self.secrets
        response, text = self.request(
            "/login",
            "POST",
            f"name=anna&password={secrets['password']}",
            content_type="application/x-www-form-urlencoded",
        )
        assert response.status == 200, text
        secrets["cookie"] = response.headers["set-cookie"].removeprefix("session=").partition(";")[0]
        tickets = json.loads(text)
        secrets["ticket"], secrets["other_ticket"] = tickets["ticket"], tickets["other"]
        # Beside ticket=, other names of secrets, in other spellings.
        key = f"api_key={secrets['query_key']}&%74oken={secrets['query_key']}"
        for path in ("/known", "/fails", "/forbidden", "/nowhere", "/long"):
            for accept in ("*/*", "text/html"):
                response, text = self.request(f"{path}?{key}", accept=accept)
                self.written += text
                if path == "/known":
                    assert (response.status, text) == (200, '{"user":"anna","bearer":true}')
        _, text = self.request("/known", cookie=f"session={secrets['cookie'][:-2]}")
        self.written += text
        self.request("/login", "POST", "x", origin="https://evil.example")
        ticket = secrets["ticket"]
        self.visit(f"/chat?ticket={ticket}&{key}", frame("hi"))
        self.visit(f"/chat?ticket={ticket}")
        self.visit(f"/chat?{key}&ticket={secrets['other_ticket']}")
        self.visit(f"/chat?ticket={ticket}", origin="https://evil.example")
        self.visit("/bearer", subprotocols=f"bearer, {secrets['sub_bearer']}, v1")
        self.visit("/bearer", subprotocols=f"bearer.{secrets['sub_bearer']}", authorization="Basic x")
        self.visit("/first", frame(secrets["first"]))
        self.visit("/first", frame(secrets["first"] + "wrong"))
        self.visit("/typed", frame(secrets["first"]))
        self.visit("/typed", frame(f'"{secrets["first"]}"'), close_frame(1000))
        self.visit("/nowhere", frame("hi"))
        _, text = self.request("/metrics")
        assert "microws_websockets_total" in text
        self.written += text

    def command(self, *arguments, **environment):
        done = subprocess.run(
            [*MICROWS, *arguments],
            capture_output=True,
            text=True,
            timeout=3 * LIMIT,
            env=os.environ | environment | {"SECRET": self.secrets["secret"], "OLD_SECRET": self.secrets["old_secret"]},
            stdin=subprocess.DEVNULL,
        )
        self.written += done.stdout + done.stderr
        return done.returncode

    @contextmanager
    def serve(self, folder, *arguments):
        environment = {"SECRET": self.secrets["secret"], "OLD_SECRET": self.secrets["old_secret"]}
        os.environ.update(environment)
        try:
            with process(folder, [*MICROWS, *arguments, "--port", "0"]) as started:
                self.server = Server(started, ready=r"(?:serving .*|[Rr]unning|\"serving.*) on (https?://[^\s,\"]+)")
                yield
                assert self.server.stop() == 0
                self.written += "\n".join(self.server.output)
        finally:
            for name in environment:
                del os.environ[name]

    def check(self):
        found = {}
        for name, value in self.secrets.items():
            for part in (value, value[:PART], value[-PART:]):
                if (place := self.written.find(part)) >= 0:
                    found[name] = self.written[max(0, place - 200) : place + 60]
        assert not found, "\n\n".join(f"{name} in: {text}" for name, text in found.items())
        assert "LookupError" in self.written


@pytest.fixture
def run(tmp_path):
    (tmp_path / "chat.py").write_text(APP)
    return Run()


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--log-level", "debug"),
        ("run", "--log-level", "debug", "--log-format", "json"),
        ("run", "--workers", "2"),
        ("dev",),
        ("dev", "--show-locals"),
    ],
    ids=" ".join,
)
def test_a_server_writes_no_secret(tmp_path, run, arguments):
    with run.serve(tmp_path, *arguments, "chat:app"):
        run.drive()
    run.check()


def test_the_other_commands_write_no_secret(tmp_path, run, capfd):
    assert run.command("routes", "--app-dir", str(tmp_path), "chat:app") == 0
    with run.serve(tmp_path, "run", "chat:app"):
        run.drive()
        ticket, url = run.secrets["ticket"], run.server.ws_url
        for path in (f"/chat?ticket={ticket}", "/nowhere", "/bearer"):
            authorization = f"Authorization: Bearer {run.secrets['bearer']}"
            run.command("connect", url + path, "-H", authorization, "-s", "bearer", "-s", run.secrets["sub_bearer"])
        run.command("connect", f"ws://127.0.0.1:1/chat?ticket={ticket}", "-x", "hi")
        run.command("connect", f"ws://anna:{run.secrets['password']}@127.0.0.1:1/")
    password = run.secrets["hub_password"]
    hub = ("--hub", f"redis://anna:{password}@127.0.0.1:1")
    assert run.command("run", "--app-dir", str(tmp_path), "chat:app", "--port", "0", *hub) == 1
    for url in (
        f"redis://:{password}@127.0.0.1:port",
        f"redis://:{password}@127.0.0.1/{password[:4]}",
        f"redis+sentinel://:{password}@127.0.0.1",
        f"redis+sentinel://127.0.0.1/name/x?sentinel_password={password}",
        f"redi://:{password}@127.0.0.1",
        f":{password}@127.0.0.1",
    ):
        for command in (["run", str(tmp_path / "chat.py")], ["publish", "topic", "value"]):
            assert main([*command, "--hub", url]) == 2
    shown = capfd.readouterr()
    assert shown.err.count("error: ") == 12
    run.written += shown.out + shown.err
    run.check()
