"""Every example, served by ``microws run``: its WebSockets over real sockets, its pages in a browser."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta

import httpx
import pytest
from e2e.proxies import block_for, find, is_listening
from playwright.sync_api import expect
from redis_server import find_redis
from serving import LIMIT, ROOT, browsing, running, serving
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

EXAMPLES = (
    *("echo", "ping_pong", "broadcast", "live", "reports", "chat", "duplex", "notify", "ticker"),
    *("poll", "dashboard", "whiteboard", "login", "cluster/app"),
)
TOKEN = "let-me-in"
SECRET = "a secret of the tests, of 32 bytes or more"
HOSTILE = "<img src=x onerror=\"document.title='pwned'\">'\"</script>&{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Start the server of an example when the first test needs it."""
    with ExitStack() as stack:
        servers = {}
        directory = tmp_path_factory.mktemp("notify")
        environments = {
            "reports": {"REPORTS_TOKEN": TOKEN},
            "duplex": {"REPORTS_TOKEN": TOKEN},
            "notify": notify_environment(directory),
            "ticker": {"WEB_CONCURRENCY": "2"},
            "poll": {"WEB_CONCURRENCY": "4", "POLL_DATABASE": f"{directory}/poll.db"},
            "dashboard": {"WEB_CONCURRENCY": "4"},
            "whiteboard": {"WEB_CONCURRENCY": "4"},
            "login": {"WEB_CONCURRENCY": "2", "SECRET": SECRET},
        }

        def serve(name):
            if name not in servers:
                servers[name] = stack.enter_context(serving(f"examples/{name}.py", **environments.get(name, {})))
            return servers[name]

        serve.environments = environments
        yield serve


def notify_environment(directory):
    return {
        "WEB_CONCURRENCY": "2",
        "MICROWS_HUB": f"local:{directory}/hub",
        "NOTIFY_DATABASE": f"{directory}/notify.db",
    }


@pytest.fixture
def server(serve, request):
    """The server of the example that the class tests."""
    return serve(request.cls.example)


@contextmanager
def joined(server, path, **options):
    with connect(server.ws_url + path, open_timeout=LIMIT, close_timeout=LIMIT, **options) as ws:
        if ws.subprotocol == "microws.v1":
            assert list(receive(ws)) == ["hello"]
        yield ws


def receive(ws):
    return json.loads(ws.recv(LIMIT))


def send(ws, value):
    ws.send(json.dumps(value))


def closing_of(ws):
    """The code and reason of the server's Close frame, which must be the next frame."""
    with pytest.raises(ConnectionClosed) as caught:
        pytest.fail(f"expected a Close frame, got {ws.recv(LIMIT)!r}")
    return caught.value.rcvd.code, caught.value.rcvd.reason


def rejection_of(server, path, **options):
    """The response to a rejected handshake."""
    with pytest.raises(InvalidStatus) as caught, joined(server, path, **options):
        pass
    response = caught.value.response
    return response.status_code, response.headers, response.body.decode()


@pytest.mark.parametrize("name", EXAMPLES)
def test_docstring_has_the_command(name):
    text = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    assert re.search(rf"\n    microws run examples/{name}\.py( --.*)?\n", text)


class TestEcho:
    example = "echo"

    def test_messages_return_in_order(self, server):
        messages = ["hello", "", "héllo ✓ 🎉", "x" * 100_000, "\0", *map(str, range(200))]
        with joined(server, "/echo") as ws:
            for message in messages:
                ws.send(message)
            assert [ws.recv(LIMIT) for _ in messages] == messages

    def test_client_gets_only_its_own_messages(self, server):
        with ExitStack() as stack:
            clients = [stack.enter_context(joined(server, "/echo")) for _ in range(20)]
            for number, ws in enumerate(clients):
                ws.send(f"from {number}")
            assert [ws.recv(LIMIT) for ws in clients] == [f"from {number}" for number in range(20)]
            with pytest.raises(TimeoutError):
                clients[0].recv(0.1)


class TestPingPong:
    example = "ping_pong"

    def test_ping_gets_pong_and_pong_gets_ping(self, server):
        with joined(server, "/ping-pong") as ws:
            for sent, answer in [("ping", "pong"), ("pong", "ping"), ("ping", "pong")]:
                send(ws, {"type": sent})
                assert receive(ws) == {"type": answer}

    def test_two_clients_play_a_rally(self, server):
        with joined(server, "/ping-pong") as ada, joined(server, "/ping-pong") as ben:
            ball = {"type": "ping"}
            for _ in range(10):
                send(ada, ball)
                send(ben, receive(ada))
                ball = receive(ben)
            assert ball == {"type": "ping"}

    @pytest.mark.parametrize("value", [{"type": "pang"}, {"type": None}, {}, [], ["ping"], "ping", None, 1, True])
    def test_other_json_gets_an_error_message(self, server, value):
        with joined(server, "/ping-pong") as ws:
            send(ws, value)
            assert receive(ws)["type"] == "error"
            send(ws, {"type": "ping"})
            assert receive(ws) == {"type": "pong"}


class TestBroadcast:
    example = "broadcast"

    @staticmethod
    @contextmanager
    def events(server):
        """The data of the server-sent events."""
        with httpx.stream("GET", f"{server.url}/events", timeout=LIMIT) as response:
            assert response.headers["content-type"] == "text/event-stream"
            yield TestBroadcast.parse(response.iter_lines())

    @staticmethod
    def parse(lines):
        fields = {}
        for line in lines:
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            else:
                assert "event" not in fields, "onmessage of a browser does not get named events"
                if "data" in fields:
                    yield json.loads(fields["data"])
                fields = {}

    @staticmethod
    def post(server, text):
        return httpx.post(f"{server.url}/messages", content=text, timeout=LIMIT)

    def test_post_reaches_websockets_and_event_streams(self, server):
        with joined(server, "/ws") as ada, joined(server, "/ws") as ben, self.events(server) as events:
            assert self.post(server, '{"text": "hello"}').status_code == 202
            assert receive(ada) == receive(ben) == {"text": "hello"}
            assert next(events) == {"text": "hello"}

    def test_post_returns_the_number_of_subscribers(self):
        with serving("examples/broadcast.py") as server:
            with joined(server, "/ws"):
                with joined(server, "/ws"):
                    with self.events(server):
                        assert self.post(server, '{"text": "hello"}').json() == {"subscribers": 3}
                    server.wait_for_line('"GET /events ')
                    assert self.post(server, '{"text": "hello"}').json() == {"subscribers": 2}
                server.wait_for_line('"WebSocket /ws .* closed ')
                assert self.post(server, '{"text": "hello"}').json() == {"subscribers": 1}
            server.wait_for_line('"WebSocket /ws .* closed ', times=2)
            assert self.post(server, '{"text": "hello"}').json() == {"subscribers": 0}

    def test_websocket_message_reaches_every_client(self, server):
        with joined(server, "/ws") as ada, joined(server, "/ws") as ben, self.events(server) as events:
            send(ada, {"text": "héllo\nyou"})
            assert receive(ada) == receive(ben) == {"text": "héllo\nyou"}
            assert next(events) == {"text": "héllo\nyou"}

    def test_all_clients_get_messages_in_the_same_order(self, server):
        with ExitStack() as stack:
            sockets = [stack.enter_context(joined(server, "/ws")) for _ in range(5)]
            events = stack.enter_context(self.events(server))
            for number in range(20):
                for name, ws in enumerate(sockets):
                    send(ws, {"text": f"{name} {number}"})
                self.post(server, json.dumps({"text": f"post {number}"}))
            received = [[receive(ws)["text"] for _ in range(120)] for ws in sockets]
            received.append([next(events)["text"] for _ in range(120)])
            assert all(texts == received[0] for texts in received)
            for name in [*"01234", "post"]:
                assert [text for text in received[0] if text.startswith(f"{name} ")] == [
                    f"{name} {number}" for number in range(20)
                ]

    @pytest.mark.parametrize(
        "body", [b"", b"hello", b"\xff", b"null", b"[]", b"{}", b'{"text": 1}', b'{"text": NaN}', b"[" * 100_000]
    )
    def test_invalid_body_is_400_and_not_published(self, server, body):
        with joined(server, "/ws") as ws:
            response = self.post(server, body)
            assert response.status_code == 400
            assert response.text
            self.post(server, '{"text": "after"}')
            assert receive(ws) == {"text": "after"}

    @pytest.mark.parametrize(
        ("message", "code"), [("hello", 1007), ("[]", 3400), ('{"text": 1}', 3400), (b'{"text": "hello"}', 1003)]
    )
    def test_invalid_message_closes_and_is_not_published(self, server, message, code):
        with joined(server, "/ws") as ada, joined(server, "/ws") as ben:
            ada.send(message)
            assert closing_of(ada)[0] == code
            send(ben, {"text": "still here"})
            assert receive(ben) == {"text": "still here"}


class TestReports:
    example = "reports"

    @staticmethod
    @contextmanager
    def authenticated(server):
        with joined(server, "/reports") as ws:
            ws.send(TOKEN)
            yield ws

    @staticmethod
    def run_client(server, *arguments, typed="", token=TOKEN):
        return subprocess.run(
            [sys.executable, ROOT / "examples" / "reports_client.py", "--url", f"{server.ws_url}/reports", *arguments],
            input=typed,
            env=os.environ | {"REPORTS_TOKEN": token},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )

    def test_hello_is_json(self, server):
        response = httpx.get(f"{server.url}/hello")
        assert response.headers["content-type"] == "application/json"
        assert response.json() == {"hello": "world"}

    def test_echo_returns_the_message_and_the_date(self, server):
        with joined(server, "/echo") as ws:
            for message in ["hello", "", '{"a": 1}', "héllo"]:
                ws.send(message)
                answer = receive(ws)
                assert list(answer) == ["message", "date"]
                assert answer["message"] == message
                date = datetime.fromisoformat(answer["date"])
                assert abs(datetime.now(date.tzinfo) - date) < timedelta(seconds=LIMIT)

    def test_reports_are_found_by_name(self, server):
        with self.authenticated(server) as ada, self.authenticated(server) as ben:
            for name in ["report1", "report9", "report2", "", "REPORT1", TOKEN]:
                ada.send(name)
            ben.send("report3")
            missing = {"error": "report not found"}
            assert receive(ada) == {"report": "Report 1"}
            assert receive(ada) == missing
            assert receive(ada) == {"report": "Report 2"}
            assert [receive(ada) for _ in range(3)] == [missing] * 3
            assert receive(ben) == {"report": "Report 3"}

    @pytest.mark.parametrize("token", ["wrong", "", TOKEN.upper(), f"{TOKEN} ", "ü", TOKEN.encode(), b"\xff"])
    def test_wrong_token_closes_with_1008(self, server, token):
        with joined(server, "/reports") as ws:
            ws.send(token)
            try:
                ws.send("report1")
            except ConnectionClosed:
                pass
            assert closing_of(ws) == (1008, "wrong or missing token")

    def test_missing_token_closes_with_1008_after_5_seconds(self, server):
        with joined(server, "/reports") as ws:
            began = time.monotonic()
            assert closing_of(ws) == (1008, "wrong or missing token")
            assert 4.5 < time.monotonic() - began < 5 + LIMIT

    def test_hook_prints_the_path_of_each_connection(self, server):
        echo, reports = "^WebSocket connection on /echo$", "^WebSocket connection on /reports$"
        echoes, reported = len(server.find_lines(echo)), len(server.find_lines(reports))
        with joined(server, "/echo"), joined(server, "/reports"), joined(server, "/echo"):
            server.wait_for_line(echo, times=echoes + 2)
            server.wait_for_line(reports, times=reported + 1)

    def test_client_prints_the_named_reports(self, server):
        result = self.run_client(server, "report1", "report9", "report3")
        assert (result.returncode, result.stdout) == (0, "Report 1\nreport not found\nReport 3\n")

    def test_client_prompts_until_the_input_ends(self, server):
        result = self.run_client(server, typed="report2\nreport1\n")
        assert (result.returncode, result.stdout.replace("report: ", "")) == (0, "Report 2\nReport 1\n")

    def test_client_reports_a_rejected_token(self, server):
        result = self.run_client(server, "report1", token="wrong")
        assert result.returncode == 1
        assert "1008" in result.stderr
        assert "wrong or missing token" in result.stderr
        assert "Traceback" not in result.stderr

    def test_client_reports_a_missing_server(self, server):
        result = self.run_client(server, "report1", "--url", "ws://127.0.0.1:1/reports")
        assert result.returncode == 1
        assert "ws://127.0.0.1:1/reports" in result.stderr
        assert "Traceback" not in result.stderr


class TestChat:
    example = "chat"

    def test_room_gets_messages_in_one_order(self, server):
        with joined(server, "/rooms/order?name=Ada") as ada:
            assert receive(ada) == {"type": "joined", "name": "Ada"}
            with joined(server, "/rooms/order?name=Ben") as ben:
                assert receive(ada) == receive(ben) == {"type": "joined", "name": "Ben"}
                for number in range(50):
                    ada.send(f"a{number}")
                    ben.send(f"b{number}")
                heard = [receive(ada) for _ in range(100)]
                assert heard == [receive(ben) for _ in range(100)]
                for name, letter in [("Ada", "a"), ("Ben", "b")]:
                    said = [message["text"] for message in heard if message["name"] == name]
                    assert said == [f"{letter}{number}" for number in range(50)]
            assert receive(ada) == {"type": "left", "name": "Ben"}

    def test_rooms_are_separate(self, server):
        with joined(server, "/rooms/tea?name=Ada") as tea, joined(server, "/rooms/t%C3%A9%2Fa?name=Ben") as other:
            assert receive(tea)["name"] == "Ada"
            other.send("hello")
            assert [receive(other) for _ in range(2)] == [
                {"type": "joined", "name": "Ben"},
                {"type": "said", "name": "Ben", "text": "hello"},
            ]
            tea.send("alone")
            assert receive(tea) == {"type": "said", "name": "Ada", "text": "alone"}

    @pytest.mark.parametrize("query", ["", "?name=", "?name=%20%09", "?nom=Ada"])
    def test_missing_name_is_400(self, server, query):
        status, _, body = rejection_of(server, f"/rooms/tea{query}")
        assert status == 400
        assert "name=" in body

    def test_name_is_cut_to_32_characters(self, server):
        with joined(server, f"/rooms/long?name={'x' * 100}") as ws:
            assert receive(ws)["name"] == "x" * 32

    def test_binary_message_closes_and_publishes_left(self, server):
        with joined(server, "/rooms/binary?name=Ada") as ada, joined(server, "/rooms/binary?name=Ben") as ben:
            ben.send(b"hello")
            assert [receive(ben)["type"] for _ in range(2)] == ["joined", "left"]
            assert closing_of(ben)[0] == 1003
            assert [receive(ada)["type"] for _ in range(3)] == ["joined", "joined", "left"]

    def test_page_and_websocket_share_a_path(self, server):
        response = httpx.get(f"{server.url}/rooms/tea")
        assert response.headers["content-type"] == "text/html; charset=utf-8"
        assert "<h1>tea</h1>" in response.text
        with joined(server, "/rooms/tea?name=Ada") as ws:
            assert receive(ws) == {"type": "joined", "name": "Ada"}

    def test_root_page_is_the_lobby(self, server):
        page = httpx.get(f"{server.url}/", params={"name": "Ada"}).text
        assert "<h1>lobby</h1>" in page
        assert '"/rooms/lobby"' in page

    def test_names_are_escaped_in_the_page(self, server):
        page = httpx.get(f"{server.url}/rooms/{HOSTILE.replace('/', '%2F')}", params={"name": HOSTILE}).text
        assert "<img" not in page
        assert page.count("</script>") == 1
        assert "{{ 7 * 7 }}" in page
        assert "49" not in page


class TestDuplex:
    example = "duplex"
    credentials = {"additional_headers": {"Authorization": f"Bearer {TOKEN}"}}  # noqa: RUF012

    def metering(self, server):
        return joined(server, "/meter", subprotocols=["other", "meter.v1"], **self.credentials)

    def test_reports_arrive_without_input(self, server):
        with self.metering(server) as ws:
            assert ws.subprotocol == "meter.v1"
            assert [receive(ws), receive(ws)] == [{"lines": 0}, {"lines": 0}]

    def test_lines_are_counted_while_no_report_is_read(self, server):
        with self.metering(server) as ada, self.metering(server) as ben:
            for number in range(500):
                ada.send(f"line {number}")
            reports = [receive(ada)["lines"] for _ in range(3)]
            assert reports == sorted(reports)
            assert reports[-1] == 500
            assert receive(ben) == {"lines": 0}

    @pytest.mark.parametrize(
        "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer let-me-in\u00fc"}]
    )
    def test_missing_or_wrong_header_is_401(self, server, headers):
        status, answer, body = rejection_of(server, "/meter", subprotocols=["meter.v1"], additional_headers=headers)
        assert (status, answer["www-authenticate"], body) == (401, "Bearer", "wrong or missing token")

    @pytest.mark.parametrize("subprotocols", [None, ["meter.v2"], ["METER.v1"]])
    def test_missing_or_wrong_subprotocol_is_400(self, server, subprotocols):
        status, _, body = rejection_of(server, "/meter", subprotocols=subprotocols, **self.credentials)
        assert (status, body) == (400, "expected the subprotocol meter.v1")

    def test_client_of_the_example_prints_reports(self, server):
        result = subprocess.run(
            [sys.executable, "-c", "import sys, duplex; duplex.client(sys.argv[1])", f"{server.ws_url}/meter"],
            cwd=ROOT / "examples",
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout.endswith('{"lines":1000}\n')


class TestNotify:
    example = "notify"

    @staticmethod
    def log_in(server, name):
        """The headers of a client that has logged in."""
        response = httpx.post(f"{server.url}/login/{name}", timeout=LIMIT)
        return {"Cookie": f"session={response.cookies['session']}"}

    @staticmethod
    def notify(server, user, text, headers):
        response = httpx.post(f"{server.url}/notify/{user}", content=text, headers=headers, timeout=LIMIT)
        assert response.status_code == 204

    @staticmethod
    @contextmanager
    def events(server, headers):
        """The id and data of the server-sent events."""

        def parse(lines):
            event = {}
            for line in lines:
                name, _, value = line.partition(": ")
                event[name] = value
                if not line and "data" in event:
                    yield event["id"], json.loads(event["data"])

        with httpx.stream("GET", f"{server.url}/events", headers=headers, timeout=LIMIT) as response:
            assert response.status_code == 200
            yield parse(response.iter_lines())

    def test_notification_reaches_clients_of_every_worker(self, server):
        ada, ben = self.log_in(server, "every"), self.log_in(server, "ben")
        with ExitStack() as stack:
            sockets = [stack.enter_context(joined(server, "/ws", additional_headers=ada)) for _ in range(6)]
            events = stack.enter_context(self.events(server, ada))
            other = stack.enter_context(joined(server, "/ws", additional_headers=ben))
            server.wait_for_line(r'"WebSocket /ws .* 101 ', times=7)
            workers = {match[1] for match in server.find_lines(r' \[(\d+)\] .*"WebSocket /ws .* 101 ')}
            assert len(workers) == 2
            self.notify(server, "every", "hello", ben)
            self.notify(server, "ben", "for Ben", ada)
            assert [receive(ws) for ws in sockets] == [{"from": "ben", "text": "hello"}] * 6
            assert next(events)[1] == {"from": "ben", "text": "hello"}
            assert receive(other) == {"from": "every", "text": "for Ben"}

    def test_client_that_returns_gets_what_it_missed(self, server):
        ada = self.log_in(server, "missed")
        with joined(server, "/ws", additional_headers=ada, subprotocols=["microws.v1"]) as ws:
            position = receive(ws)["id"]
        for number in range(3):
            self.notify(server, "missed", f"{number}", ada)
        with joined(server, f"/ws?since={position}", additional_headers=ada, subprotocols=["microws.v1"]) as ws:
            assert receive(ws)["recovered"] is True
            assert [receive(ws)["data"]["text"] for _ in range(3)] == ["0", "1", "2"]
        with self.events(server, ada | {"Last-Event-ID": position}) as events:
            received = [next(events) for _ in range(3)]
            assert [data["text"] for _, data in received] == ["0", "1", "2"]
        with self.events(server, ada | {"Last-Event-ID": received[1][0]}) as events:
            assert next(events)[1]["text"] == "2"

    def test_script_notifies_from_outside(self, server, serve):
        ada = self.log_in(server, "outside")
        with self.events(server, ada) as events:
            subprocess.run(
                [sys.executable, ROOT / "examples" / "notify_send.py", "outside", "héllo"],
                env=os.environ | serve.environments["notify"],
                timeout=LIMIT,
                check=True,
            )
            assert next(events)[1] == {"from": "a script", "text": "héllo"}

    def test_log_out_closes_all_connections_of_the_user(self, server):
        ada, again, ben = (self.log_in(server, name) for name in ("leaving", "leaving", "staying"))
        live = {"subprotocols": ["microws.v1"]}
        with ExitStack() as stack:
            sockets = [
                stack.enter_context(joined(server, "/ws", additional_headers=headers, **live))
                for headers in (ada, again, ada, again)
            ]
            events = stack.enter_context(self.events(server, ada))
            other = stack.enter_context(joined(server, "/ws", additional_headers=ben, **live))
            for ws in (*sockets, other):
                receive(ws)
            response = httpx.post(f"{server.url}/logout", headers=again, timeout=LIMIT)
            assert response.json() == {"connections": 5}
            assert [closing_of(ws) for ws in sockets] == [(4401, "logged out")] * 4
            assert list(events) == []
            self.notify(server, "staying", "hello", ben)
            assert receive(other)["data"]["text"] == "hello"
        with joined(server, "/ws", additional_headers=ada) as ws:
            assert closing_of(ws) == (4401, "log in first")

    @pytest.mark.parametrize(("method", "path"), [("GET", "/events"), ("POST", "/logout"), ("POST", "/notify/ada")])
    def test_client_that_is_not_logged_in_gets_401(self, server, method, path):
        for headers in ({}, {"Cookie": "session=guess"}):
            response = httpx.request(method, server.url + path, headers=headers, timeout=LIMIT)
            assert (response.status_code, response.text) == (401, "log in first")


class TestTicker:
    example = "ticker"

    def test_each_tick_comes_once_from_two_workers(self, server):
        with joined(server, "/ws?since=start") as ada, joined(server, "/ws?since=start") as ben:
            ticks = [receive(ada) for _ in range(4)]
            assert ticks == [receive(ben) for _ in range(4)]
        steps = [tick["step"] for tick in ticks]
        assert steps == list(range(steps[0], steps[0] + 4))

    def test_new_client_gets_the_newest_price_of_each_symbol(self, server):
        with joined(server, "/ws?since=start") as ws:
            for _ in range(3):
                symbols = set(receive(ws)["prices"])
        with httpx.stream("GET", f"{server.url}/prices", timeout=LIMIT) as response:
            prices = TestBroadcast.parse(response.iter_lines())
            assert {next(prices)["symbol"] for _ in symbols} == symbols


class TestPoll:
    example = "poll"

    @staticmethod
    def vote(server, choice, voter):
        return httpx.post(f"{server.url}/votes/{choice}", cookies={"voter": voter} if voter else {}, timeout=LIMIT)

    @staticmethod
    def load(server, voter=""):
        return httpx.get(f"{server.url}/poll", cookies={"voter": voter}, timeout=LIMIT).json()

    def test_each_voter_has_one_vote_in_all_workers(self, server):
        before = self.load(server)["votes"]
        with TestBroadcast.events(server) as events:
            for voter in range(8):
                assert self.vote(server, "bread", f"one {voter}").status_code == 204
            for voter in range(8):
                assert self.vote(server, "bug" if voter < 3 else "bread", f"one {voter}").status_code == 204
            for _ in range(16):
                tally = next(events)
        after = self.load(server, "one 2")
        assert {choice: count - before.get(choice, 0) for choice, count in after["votes"].items()} == {
            **dict.fromkeys(before, 0),
            "bread": 5,
            "bug": 3,
        }
        assert (after["mine"], after["votes"], after["newest"]) == ("bug", tally["votes"], tally["newest"])

    @pytest.mark.parametrize(
        ("choice", "voter", "status"), [("bug", "", 400), ("beer", "x", 404), ("%3Cb%3E%27", "x", 404)]
    )
    def test_invalid_vote_is_not_counted(self, server, choice, voter, status):
        before = self.load(server, voter)
        assert self.vote(server, choice, voter).status_code == status
        assert self.load(server, voter) == before

    def test_page_sets_the_cookie_once(self, server):
        with httpx.Client(base_url=server.url, timeout=LIMIT) as client:
            assert "HttpOnly" in client.get("/").headers["set-cookie"]
            assert "set-cookie" not in client.get("/").headers


class TestDashboard:
    example = "dashboard"

    @staticmethod
    def live(server, since="start"):
        return joined(server, f"/live?since={since}", subprotocols=["microws.v1"], max_queue=None)

    @staticmethod
    def take(ws, count, last):
        """``count`` samples; their numbers go on from those in ``last``. Returns the positions of both topics."""
        positions = {}
        while count:
            message = receive(ws)
            assert message.get("recovered", True)
            positions[message["topic"]] = message["id"]
            if message["topic"] == "samples" and "data" in message:
                worker, number = message["data"]["worker"], message["data"]["number"]
                assert number == last.get(worker, number - 1) + 1
                last[worker] = number
                count -= 1
        return f"{positions['samples']}_{positions['now']}"

    def test_client_that_comes_back_misses_no_sample_of_a_worker(self, server):
        last = {}
        with self.live(server) as ws, self.live(server) as other:
            since = self.take(ws, 4, last)
            self.take(other, 8, {})
            other.close()
        with self.live(server, since) as ws:
            self.take(ws, 8, last)
        assert len(last) == 4

    def test_new_client_gets_the_newest_reading_of_each_worker(self, server):
        with self.live(server) as ws:
            self.take(ws, 8, {})
        with self.live(server) as ws:
            readings = []
            while len(readings) < 4:
                if (message := receive(ws))["topic"] == "now" and "data" in message:
                    readings.append(message["data"])
        assert len({reading["worker"] for reading in readings}) == 4
        assert all(reading["cpu"] >= 0 and reading["late"] >= 0 for reading in readings)

    @pytest.mark.parametrize("since", ["guess", "a_b", "%00_%F0%9F", "x" * 1000])
    def test_invalid_position_is_not_recovered(self, server, since):
        with self.live(server, since) as ws:
            assert receive(ws)["recovered"] is False


class TestWhiteboard:
    example = "whiteboard"
    pointer, stroke, undo, clear = range(4)

    @staticmethod
    @contextmanager
    def drawing(server, room, name="Ada"):
        """A person in a room, with the ID that the server has given."""
        with joined(server, f"/rooms/{room}?name={name}") as ws:
            ws.drawn = []  # what has arrived before
            while not isinstance(message := ws.recv(LIMIT), str) or "you" not in message:
                if isinstance(message, bytes):
                    ws.drawn.append(message)
            ws.id = json.loads(message)["you"]
            yield ws

    @staticmethod
    def encode(kind, number, *points):
        head = bytes([kind]) + number.to_bytes(8, "big")
        return head + (bytes([3, 8]) if points else b"") + b"".join(part.to_bytes(2, "big") for part in points)

    @staticmethod
    def ending_of(ws):
        """The code and reason of the server's Close frame. Before it come only messages about people."""

        def read():
            while True:
                assert receive(ws)["id"]

        with pytest.raises(ConnectionClosed) as caught:
            read()
        return caught.value.rcvd.code, caught.value.rcvd.reason

    @staticmethod
    def next_of(ws, kind):
        """The next message that is ``bytes``, or the next one about a person."""
        if kind is bytes and ws.drawn:
            return ws.drawn.pop(0)
        end = time.monotonic() + LIMIT
        while not isinstance(message := ws.recv(max(0, end - time.monotonic())), kind):
            pass
        return message if kind is bytes else json.loads(message)

    def test_strokes_reach_everyone_and_those_who_come_late(self, server):
        sent = [self.encode(self.stroke, 1, 0, 0, 65535, 65535), self.encode(self.undo, 1), self.encode(self.clear, 2)]
        with self.drawing(server, "late") as ada, self.drawing(server, "late") as ben:
            for message in (sent[0], *sent[:2]):  # the first one again, as after a lost connection
                ada.send(message)
            for message in sent[:2]:
                assert self.next_of(ben, bytes) == bytes.fromhex(ada.id) + message
            ben.send(sent[2])
            assert [self.next_of(ada, bytes)[4:] for _ in sent] == sent
            with self.drawing(server, "late") as carla, self.drawing(server, "other") as other:
                assert [self.next_of(carla, bytes)[4:] for _ in sent] == sent
                other.send(sent[0])
                assert self.next_of(other, bytes)[:4].hex() == other.id

    def test_pointer_reaches_the_others_and_is_not_kept(self, server):
        message = self.encode(self.pointer, 7, 1, 2)
        with self.drawing(server, "pointers") as ada, self.drawing(server, "pointers") as ben:
            ada.send(message)
            assert self.next_of(ben, bytes) == bytes.fromhex(ada.id) + message
            stroke = self.encode(self.stroke, 7, 1, 2)
            ada.send(stroke)
            assert self.next_of(ada, bytes)[4:] == stroke
            with self.drawing(server, "pointers") as carla:
                assert self.next_of(carla, bytes)[4:] == stroke

    def test_room_has_eight_people_in_all_workers(self, server):
        with ExitStack() as stack:
            people = [stack.enter_context(self.drawing(server, "full", f"p{number}")) for number in range(8)]
            with joined(server, "/rooms/full") as ninth:
                assert self.ending_of(ninth) == (4001, "the room is full")
            leaving = people.pop()
            leaving.close()
            while (message := self.next_of(people[0], str))["here"] or message["id"] != leaving.id:
                pass
            with self.drawing(server, "full", "again") as again:
                assert self.next_of(again, str)["here"]

    @pytest.mark.parametrize(
        "message",
        [
            b"",
            b"\0",
            b"\1" + bytes(8),
            b"\1" + bytes(10),
            b"\1" + bytes(13),
            b"\2" + bytes(9),
            b"\4" + bytes(8),
            b"\xff" * 15,
        ],
    )
    def test_invalid_message_closes_and_reaches_nobody(self, server, message):
        with self.drawing(server, "invalid") as ben:
            with self.drawing(server, "invalid") as ada:
                ada.send(message)
                assert self.ending_of(ada)[0] == 1007
            pointer = self.encode(self.pointer, 1, 1, 1)
            with self.drawing(server, "invalid") as carla:
                carla.send(pointer)
                assert self.next_of(ben, bytes)[4:] == pointer

    @pytest.mark.parametrize("room", ["a%2Fb", "%0A", "x" * 33, "%3Cb%3E"])
    def test_invalid_room_is_404(self, server, room):
        assert rejection_of(server, f"/rooms/{room}")[0] == 404
        assert httpx.get(f"{server.url}/rooms/{room}", timeout=LIMIT).status_code == 404


class TestLogin:
    example = "login"

    @staticmethod
    @contextmanager
    def client_of(server, name, password, *, status=204):
        """A client that has logged in, or tried to."""
        with httpx.Client(base_url=server.url, timeout=LIMIT) as client:
            assert client.post("/login", data={"name": name, "password": password}).status_code == status
            yield client

    @pytest.mark.parametrize(("name", "password"), [("ada", ""), ("ada", "hopper"), ("mallory", "lovelace"), ("", "")])
    def test_wrong_password_gives_no_ticket(self, server, name, password):
        with self.client_of(server, name, password, status=401) as client:
            assert client.post("/ticket").status_code == 401

    def test_ticket_lets_one_client_in(self, server):
        with self.client_of(server, "ada", "lovelace") as client:
            ticket = client.post("/ticket").json()["ticket"]
            with joined(server, f"/chat?ticket={ticket}") as ws:
                ws.send("hello")
                assert receive(ws) == {"from": "ada", "text": "hello"}
                for _ in range(4):  # in both workers
                    assert rejection_of(server, f"/chat?ticket={ticket}")[0] == 401
        assert rejection_of(server, "/chat")[0] == 401
        server.wait_for_line(r"/chat\?ticket=\*\*\* ")
        assert not server.find_lines(re.escape(ticket))

    def test_logout_closes_the_connections_of_the_user_in_all_workers(self, server):
        users = [("grace", "hopper"), ("grace", "hopper"), ("ada", "lovelace")]
        with ExitStack() as stack:
            first, second, ada = [stack.enter_context(self.client_of(server, *user)) for user in users]

            def chat(client):
                ticket = client.post("/ticket").json()["ticket"]
                return stack.enter_context(joined(server, f"/chat?ticket={ticket}"))

            sockets = [chat(client) for client in (first, second) for _ in range(4)]
            other = chat(ada)
            assert first.post("/logout").status_code == 204
            assert {closing_of(ws) for ws in sockets} == {(4403, "logged out")}
            assert first.post("/ticket").status_code == 401
            assert first.post("/logout").status_code == 204
            other.send("still here")
            assert receive(other) == {"from": "ada", "text": "still here"}


class TestCluster:
    folder = ROOT / "examples" / "cluster"

    @staticmethod
    @contextmanager
    def running_demo():
        """The demo until Ctrl-C, with nginx in the place of the server."""
        find("nginx")
        find_redis()
        command = [sys.executable, "-u", "examples/cluster/demo.py", "--keep"]
        with running(command, ready=r"open (http://.*)/ ") as demo:
            try:
                demo.wait_for_line("kill -KILL -- -.*# right")
                yield demo
            finally:
                demo.signal(signal.SIGINT)
                code = demo.wait()
        assert code == 130

    def test_clients_of_a_killed_server_go_on_with_the_other_one(self, open_tab):
        with self.running_demo() as demo:
            moved = demo.find_lines(r"left-\d+ → right-\d+, went on after \S+, and caught up on (\d+) messages")
            assert len(moved) == 4
            assert any(int(match[1]) for match in moved)
            assert demo.find_lines("each client got 300 messages: 0 missing, 0 twice, 0 gaps")
            page = open_tab(demo.url)
            statuses = page.get_by_role("status")
            expect(statuses).to_contain_text(["Connected to", "Connected to"])
            killed, kept = ("left", "right") if statuses.filter(has_text="left").count() else ("right", "left")
            groups = {match[2]: int(match[1]) for match in demo.find_lines(r"kill -KILL -- -(\d+)  # (\w+)")}
            os.killpg(groups[killed], signal.SIGKILL)
            say(page, HOSTILE)
            for panel in ("#socket", "#events"):
                expect(page.locator(f"{panel} li", has_text=HOSTILE)).to_have_count(1)
                expect(page.locator(f"{panel} dd")).to_have_text(["301", re.compile("[01]"), "0", "0"])
            expect(statuses).to_contain_text([f"Connected to {kept}"] * 2)
        ports = [int(port) for port in re.findall(r"(?:port |:)(\d+)", demo.output[0])]
        assert len(ports) == 4
        end = time.monotonic() + LIMIT
        while any(map(is_listening, ports)):
            assert time.monotonic() < end

    def test_nginx_has_all_lines_of_the_guide(self):
        """The end-to-end tests attack the guide's, with one server."""
        lines = [line.strip() for line in (self.folder / "nginx.conf").read_text().splitlines()]
        others = {line.strip() for line in block_for("nginx").splitlines()}.difference(lines)
        assert others == {
            "upstream chat {", "server 127.0.0.1:8000;", "server_name chat.example;", "proxy_pass http://chat;",
        }  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=LIMIT * 1000)
    with browsing() as browser:
        yield browser


@pytest.fixture
def open_tab(browser):
    """``open_tab(url)`` opens a page in a new tab. No page may raise an error or request another host."""
    with ExitStack() as stack:
        errors = []

        def open_tab(url):
            context = browser.new_context()
            stack.callback(context.close)
            context.set_default_timeout(LIMIT * 1000)
            page = context.new_page()
            page.on("pageerror", lambda error: errors.append(error))
            page.on("request", lambda request: requested.append(request.url))
            page.goto(url)
            return page

        requested = []
        yield open_tab
        assert errors == []
        assert [url for url in requested if not re.match(r"(http|ws)://127\.0\.0\.1:|data:", url)] == []


def say(page, text, *, label="Message", button="Send"):
    page.get_by_label(label, exact=True).fill(text)
    page.get_by_role("button", name=button, exact=True).click()


def record_texts(locator):
    """A function that waits until the element has had a text since now: a state that ends by itself may be short."""
    element = locator.element_handle()
    element.evaluate(
        """element => {
            element.texts = [];
            const observer = new MutationObserver(() => element.texts.push(element.textContent));
            observer.observe(element, { childList: true, characterData: true, subtree: true });
        }"""
    )

    def await_text(text):
        condition = "([element, text]) => element.texts.some(each => each.includes(text))"
        locator.page.wait_for_function(condition, arg=[element, text])

    return await_text


def connected(page):
    expect(page.get_by_role("status").first).to_contain_text("Connected")
    return page


class TestPages:
    def test_app_in_the_readme_is_a_chat(self, open_tab, tmp_path):
        app = re.search(r'^```python title="chat.py"\n(.*?)^```$', (ROOT / "README.md").read_text(), re.M | re.S)[1]
        (tmp_path / "chat.py").write_text(app)
        with serving(str(tmp_path / "chat.py")) as server:
            ada, ben = tabs = [open_tab(server.url) for _ in range(2)]
            for page in tabs:
                page.wait_for_function("ws.readyState === WebSocket.OPEN")
            ada.get_by_role("textbox").fill(HOSTILE)
            ada.get_by_role("button").click()
            httpx.post(f"{server.url}/announce", content="lunch is ready")
            for page in tabs:
                expect(page.locator("body")).to_contain_text("lunch is ready")
                expect(page.locator("body")).to_contain_text(HOSTILE)
            assert ben.title() == "Chat"

    def test_echo_shows_the_echoes(self, serve, open_tab):
        page = connected(open_tab(serve("echo").url))
        lines = page.get_by_role("listitem")
        say(page, "hello")
        expect(lines).to_have_text(["hello"])
        page.get_by_label("Message").press_sequentially("by the Enter key")
        page.get_by_label("Message").press("Enter")
        expect(lines).to_have_text(["hello", "by the Enter key"])
        expect(page.get_by_label("Message")).to_have_value("")
        expect(page.get_by_label("Message")).to_be_focused()
        say(page, HOSTILE)
        expect(lines).to_have_text(["hello", "by the Enter key", HOSTILE])
        expect(page).to_have_title("Echo")

    def test_broadcast_shows_every_message_in_both_tabs(self, serve, open_tab):
        server = serve("broadcast")
        ada, ben = tabs = [connected(open_tab(server.url)) for _ in range(2)]
        for page in tabs:
            expect(page.locator("#events").get_by_role("status")).to_have_text("Connected")
        say(ada, "from Ada", button="POST")
        expect(ada.locator("#result")).to_have_text(re.compile(r"^Posted to \d+ subscribers\.$"))
        for page in tabs:
            expect(page.locator("#events li")).to_have_text(["from Ada"])
        say(ben, "from Ben", button="Send over the WebSocket")
        for page in tabs:
            expect(page.locator("#events li")).to_have_text(["from Ada", "from Ben"])
        httpx.post(f"{server.url}/messages", json={"text": HOSTILE})
        for page in tabs:
            for panel in ("#socket", "#events"):
                expect(page.locator(f"{panel} li")).to_have_text(["from Ada", "from Ben", HOSTILE])
            expect(page).to_have_title("Broadcast")

    def test_broadcast_keeps_the_text_of_a_failed_post(self, open_tab):
        with serving("examples/broadcast.py") as server:
            page = connected(open_tab(server.url))
        say(page, "hello", button="POST")
        expect(page.locator("#result")).to_contain_text("Not posted: ")
        expect(page.get_by_role("textbox")).to_have_value("hello")

    def test_login_opens_a_chat_in_every_tab_and_logout_closes_all(self, serve, open_tab):
        server = serve("login")
        ada, grace = open_tab(server.url), open_tab(server.url)

        def log_in(page, name, password):
            page.get_by_label("Name").fill(name)
            say(page, password, label="Password", button="Log in")

        log_in(ada, "ada", "hopper")
        expect(ada.get_by_role("alert")).to_have_text("Wrong name or password.")
        expect(ada.get_by_label("Password")).to_be_focused()
        log_in(ada, "ada", "lovelace")
        expect(ada.get_by_role("status")).to_have_text("Logged in as ada")
        tab = ada.context.new_page()
        tab.goto(server.url)
        expect(tab.get_by_role("status")).to_have_text("Logged in as ada")
        log_in(grace, "grace", "hopper")
        expect(grace.get_by_role("status")).to_have_text("Logged in as grace")
        say(grace, HOSTILE)
        for page in (ada, tab, grace):
            expect(page.get_by_role("listitem")).to_have_text([f"grace{HOSTILE}"])
            expect(page).to_have_title("Chat with a login")
        tab.get_by_role("button", name="Log out").click()
        for page in (ada, tab):
            expect(page.get_by_role("alert")).to_have_text("You are logged out.")
            expect(page.get_by_role("listitem")).to_have_count(0)
            expect(page.get_by_label("Name")).to_be_focused()
        ada.reload()
        expect(ada.get_by_label("Name")).to_be_visible()
        expect(grace.get_by_role("status")).to_have_text("Logged in as grace")

    def test_reports_requires_the_token(self, serve, open_tab):
        page = open_tab(serve("reports").url)
        reports = page.locator("#reports")
        expect(page.get_by_label("Report", exact=True)).to_be_hidden()
        say(page, "wrong", label="Token", button="Connect")
        expect(reports.get_by_role("status")).to_have_text("Refused: wrong or missing token (1008)")
        say(page, TOKEN, label="Token", button="Connect")
        connected(page)
        expect(page.get_by_label("Token")).to_be_hidden()
        say(page, "report1", label="Report", button="Ask")
        say(page, "report9", label="Report", button="Ask")
        expect(reports.get_by_role("listitem")).to_have_text(['{"report":"Report 1"}', '{"error":"report not found"}'])

    def test_reports_has_an_echo_without_a_token(self, serve, open_tab):
        page = open_tab(serve("reports").url)
        echo = page.locator("#echo")
        expect(echo.get_by_role("status")).to_have_text("Connected")
        say(page, "hello")
        expect(echo.get_by_role("listitem")).to_have_text(re.compile(r'\{"message":"hello","date":".+"\}'))

    def test_live_rooms_have_a_history_and_come_back(self, open_tab):
        with serving("examples/live.py") as server:
            first = open_tab(f"{server.url}/?name=Ada")
            expect(first.get_by_role("status")).to_have_text("lobby: open: Ada")
            say(first, "one")
            expect(first.get_by_role("listitem")).to_have_text(["one"])
            second, other = open_tab(f"{server.url}/?name=Ben"), open_tab(f"{server.url}/?room=tea")
            expect(first.get_by_role("status")).to_have_text("lobby: open: Ada, Ben")
            expect(second.get_by_role("listitem")).to_have_text(["one"])
            say(other, "elsewhere")
            say(second, "two")
            expect(first.get_by_role("listitem")).to_have_text(["one", "two"])
        expect(first.get_by_role("status")).to_have_text(re.compile("lobby: (waiting|connecting)"))
        # The log of this server ends with it.
        with serving("examples/live.py", port=server.port):
            expect(first.get_by_role("listitem")).to_have_text([])
            expect(first.get_by_role("status")).to_have_text("lobby: open: Ada, Ben")
            say(first, "three")
            expect(second.get_by_role("listitem")).to_have_text(["three"])

    def test_chat_shows_messages_in_every_tab_of_a_room(self, serve, open_tab):
        server = serve("chat")
        ada, ben = open_tab(server.url), open_tab(f"{server.url}/rooms/lobby")
        say(ada, "Ada", label="Your name", button="Join")
        connected(ada)
        say(ben, "Ben", label="Your name", button="Join")
        connected(ben)
        say(ada, "hello, Ben")
        expect(ben.get_by_role("listitem")).to_have_text(["Ben joined", "Ada hello, Ben"])
        say(ben, "hello, Ada")
        expect(ada.get_by_role("listitem")).to_have_text(
            ["Ada joined", "Ben joined", "Ada hello, Ben", "Ben hello, Ada"]
        )
        ben.get_by_role("link", name="tea").click()
        expect(ada.get_by_role("listitem").last).to_have_text("Ben left")
        expect(connected(ben).get_by_role("heading")).to_have_text("tea")
        expect(ben.get_by_role("listitem")).to_have_text(["Ben joined"])
        ben.get_by_role("link", name="lobby").click()
        expect(ada.get_by_role("listitem").last).to_have_text("Ben joined")

    def test_chat_shows_names_and_messages_as_text(self, serve, open_tab):
        url = f"{serve('chat').url}/rooms/{HOSTILE.replace('/', '%2F')}"
        name = HOSTILE[:32]
        ada = open_tab(url)
        say(ada, name, label="Your name", button="Join")
        expect(ada.get_by_role("status")).to_have_text(f"Connected as {name}")
        say(ada, HOSTILE)
        expect(ada.get_by_role("heading")).to_have_text(HOSTILE)
        expect(ada.get_by_role("listitem")).to_have_text([f"{name} joined", f"{name} {HOSTILE}"])
        expect(ada.locator("img")).to_have_count(0)
        expect(ada).to_have_title(f"{HOSTILE} – Chat")

    def test_notify_shows_missed_notifications_and_logs_out(self, open_tab, tmp_path):
        with serving("examples/notify.py", **notify_environment(tmp_path)) as server:
            tabs = [open_tab(server.url) for _ in range(2)]
            for page in tabs:
                page.get_by_label("Your name").fill("Ada")
                page.get_by_role("button", name="Log in").click()
            for page in tabs:
                for status in page.get_by_role("status").all():
                    expect(status).to_have_text("Connected")
            self.send_notification(tabs[0], HOSTILE)
            self.expect_notifications(tabs, [HOSTILE])
            seen = [record_texts(status) for page in tabs for status in page.get_by_role("status").all()]
            server.signal(signal.SIGHUP)
            for await_text in seen:
                await_text("Disconnected")
            self.send_notification(tabs[1], "while away")
            self.expect_notifications(tabs, ["while away", HOSTILE])
            tabs[0].get_by_role("button", name="Log out everywhere").click()
            for page in tabs:
                expect(page.get_by_role("button", name="Log in")).to_be_visible()
                expect(page.locator("main")).to_be_hidden()
                expect(page).to_have_title("Notifications")

    @staticmethod
    def send_notification(page, text):
        page.get_by_label("To").fill("Ada")
        say(page, text, label="Text", button="Notify")

    @staticmethod
    def expect_notifications(tabs, texts):
        for page in tabs:
            for panel in ("#socket", "#events"):
                expect(page.locator(f"{panel} li")).to_have_text([f"Ada{text}" for text in texts])

    @pytest.mark.parametrize("fault", ["cut", "deploy", "kill"])
    def test_ticker_misses_no_tick(self, open_tab, fault):
        command = [sys.executable, "-m", "microws", "run", "examples/ticker.py", "--port", "0", "--workers", "2"]
        with running(command) as server:
            page = connected(open_tab(server.url))
            expect(page.locator("#ticks")).not_to_have_text("0")
            await_text = record_texts(page.get_by_role("status"))
            if fault == "cut":
                page.get_by_role("button").click()
            elif fault == "deploy":
                server.signal(signal.SIGHUP)
                server.wait_for_line("all 2 workers are new", within=6 * LIMIT)
            else:
                for number, worker in enumerate(self.workers_of(server), 2):
                    os.kill(worker, signal.SIGKILL)
                    server.wait_for_line(r" worker \d+ serves", times=number, within=6 * LIMIT)
            await_text("Disconnected")
            expect(page.locator("#missed")).not_to_have_text("0")
            expect(page.get_by_role("status")).to_have_text("Connected")
            assert page.locator("#gaps").text_content() == "0"
            assert page.locator("#duplicates").text_content() == "0"
            assert server.stop() == 0

    @staticmethod
    def workers_of(server):
        """The process IDs of two workers, from their log lines."""
        for _ in range(100):
            httpx.get(server.url, timeout=LIMIT)
            if len(workers := {int(match[1]) for match in server.find_lines(r" \[(\d+)\] ")}) == 2:
                return workers
        pytest.fail("\n".join(server.output))

    def test_poll_moves_the_bars_in_every_browser(self, serve, open_tab):
        server = serve("poll")
        before = TestPoll.load(server)["votes"]
        ada, ben = (connected(open_tab(server.url)) for _ in range(2))
        self.choice(ada, "Baking bread").click()
        self.choice(ben, "Baking bread").press("Enter")
        for page in (ada, ben):
            expect(self.choice(page, "Baking bread")).to_contain_text(f"{before.get('bread', 0) + 2} votes")
            expect(self.choice(page, "Baking bread")).to_have_attribute("aria-pressed", "true")
        self.choice(ada, "Watching films").click()
        films = before.get("films", 0) + 1
        expect(self.choice(ben, "Watching films")).to_contain_text(f"{films} vote{'s' if films > 1 else ''}")
        expect(self.choice(ben, "Watching films")).to_have_attribute("aria-pressed", "false")
        ada.reload()
        expect(connected(ada).locator("[aria-pressed=true]")).to_contain_text("Watching films")
        expect(ada).to_have_title("What is a rainy Sunday for?")

    @staticmethod
    def choice(page, name):
        return page.get_by_role("button", name=name)

    def test_poll_keeps_the_vote_and_says_that_another_did_not_arrive(self, open_tab, tmp_path):
        database = str(tmp_path / "poll.db")
        with serving("examples/poll.py", POLL_DATABASE=database) as server:
            page = connected(open_tab(server.url))
            self.choice(page, "Reading a book").click()
            expect(page.locator("#total")).to_have_text("1 vote in total")
        expect(page.get_by_role("status")).to_contain_text("Disconnected")
        self.choice(page, "Baking bread").click()
        expect(page.get_by_role("alert")).to_contain_text("Your vote did not arrive: ")
        with serving("examples/poll.py", port=server.port, POLL_DATABASE=database):
            expect(connected(page).locator("[aria-pressed=true]")).to_contain_text("Reading a book")
            self.choice(page, "Baking bread").click()
            expect(self.choice(page, "Baking bread")).to_contain_text("100 %")
            expect(page.get_by_role("alert")).to_be_hidden()

    def test_dashboard_fills_the_charts_after_a_disconnect(self, serve, open_tab):
        page = connected(open_tab(serve("dashboard").url))
        sockets = page.locator("figure", has_text="WebSockets").locator("b")
        expect(page.locator("tbody tr")).to_have_count(4)
        expect(page.locator("path")).to_have_count(16)
        page.get_by_role("button", name="Unplug").click()
        expect(page.get_by_role("status")).to_have_text("Unplugged")
        with page.expect_response("**/work") as work:
            page.get_by_role("button", name="Work").click()
        assert work.value.ok
        expect(connected(page).locator("rect")).to_have_count(4)
        expect(page.locator("#caught")).to_have_text(re.compile("^[1-9]"))
        page.get_by_role("button", name="+ 20").click()
        expect(sockets).to_have_text(re.compile("^2[1-9]$"))
        page.get_by_role("button", name="+ 20").click()
        expect(sockets).to_have_text(re.compile("^[1-9]$"))
        chart = page.get_by_role("slider").first
        chart.press("ArrowLeft")
        chart.press("ArrowLeft")
        expect(chart).to_have_attribute("aria-valuetext", re.compile("^[0-9]+ % of a core, 2 s ago$"))
        assert [page.locator(f"#{count}").text_content() for count in ("missing", "twice")] == ["0", "0"]

    def test_whiteboard_shows_strokes_and_pointers_of_everyone(self, serve, open_tab):
        url = f"{serve('whiteboard').url}/rooms/shared"
        ada, ben = (connected(open_tab(url)) for _ in range(2))
        ada.get_by_label("Your name").fill(HOSTILE)
        ada.get_by_label("Your name").press("Enter")
        name = HOSTILE[:24]
        expect(ben.get_by_role("listitem").filter(has_text=name)).to_be_visible()
        connected(ada).get_by_label("Red").check()
        self.draw(ada, (0.2, 0.2), (0.4, 0.4))
        self.expect_ink(ben, 0.3, 0.3)
        expect(ben.locator(".pointer[data-person]")).to_have_text(name)
        expect(ben).to_have_title("shared")
        ben.locator("#board").focus()
        for key in ("Space", "Shift+ArrowRight", "Shift+ArrowRight", "Space"):
            ben.keyboard.press(key)
        self.expect_ink(ada, 0.55, 0.5)
        carla = connected(open_tab(url))
        self.expect_ink(carla, 0.3, 0.3)
        self.expect_ink(carla, 0.55, 0.5)
        ada.get_by_role("button", name="Undo").click()
        self.expect_ink(carla, 0.3, 0.3, inked=False)
        carla.on("dialog", lambda dialog: dialog.accept())
        carla.get_by_role("button", name="Clear").click()
        self.expect_ink(ada, 0.55, 0.5, inked=False)

    def test_whiteboard_keeps_what_was_drawn_without_a_connection(self, open_tab, tmp_path):
        hub = f"local:{tmp_path}/hub"
        with serving("examples/whiteboard.py", MICROWS_HUB=hub) as server:
            page = connected(open_tab(server.url))
            self.draw(page, (0.2, 0.2), (0.4, 0.4))
            self.expect_ink(page, 0.3, 0.3)
        expect(page.get_by_role("status")).to_contain_text("Disconnected")
        self.draw(page, (0.6, 0.2), (0.8, 0.4))
        with serving("examples/whiteboard.py", port=server.port, MICROWS_HUB=hub):
            for tab in (connected(page), connected(open_tab(server.url))):
                self.expect_ink(tab, 0.3, 0.3)
                self.expect_ink(tab, 0.7, 0.3)

    def test_whiteboard_waits_until_the_room_has_a_place(self, serve, open_tab):
        server = serve("whiteboard")
        with ExitStack() as stack:
            people = [stack.enter_context(TestWhiteboard.drawing(server, "popular")) for _ in range(8)]
            page = open_tab(f"{server.url}/rooms/popular")
            expect(page.get_by_role("status")).to_have_text("The room is full. Trying again …")
            people[0].close()
            connected(page)

    @staticmethod
    def draw(page, begin, end):
        box = page.locator("#board").bounding_box()
        places = [(box["x"] + box["width"] * x, box["y"] + box["height"] * y) for x, y in (begin, end)]
        page.mouse.move(*places[0])
        page.mouse.down()
        page.mouse.move(*places[1], steps=5)
        page.mouse.up()

    @staticmethod
    def expect_ink(page, x, y, *, inked=True):
        """Wait until a finished stroke covers a place, or none does."""
        page.wait_for_function(
            """([x, y, inked]) => {
                const canvas = document.querySelector("canvas");
                const place = [x * canvas.width, y * canvas.height].map(Math.round);
                return (canvas.getContext("2d").getImageData(...place, 1, 1).data[3] > 0) === inked;
            }""",
            arg=[x, y, inked],
        )

    @pytest.mark.parametrize("name", ["echo", "broadcast", "reports", "chat"])
    def test_page_shows_a_lost_connection_and_reconnects(self, open_tab, name):
        with serving(f"examples/{name}.py", REPORTS_TOKEN=TOKEN) as server:
            page = open_tab(f"{server.url}?name=Ada" if name == "chat" else server.url)
            if name == "reports":
                say(page, TOKEN, label="Token", button="Connect")
            statuses = page.locator("section, body:not(:has(section))").get_by_role("status")
            for status in statuses.all():
                expect(status).to_contain_text("Connected")
        for status in statuses.all():
            expect(status).to_contain_text("Disconnected")
            assert "retry=" not in status.inner_text()
        expect(page.get_by_role("button", name="Send")).to_be_disabled()
        with serving(f"examples/{name}.py", port=server.port, REPORTS_TOKEN=TOKEN):
            for status in statuses.all():
                expect(status).to_contain_text("Connected")
            expect(page.get_by_role("button", name="Send")).to_be_enabled()
