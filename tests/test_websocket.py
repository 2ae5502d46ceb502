"""The ``ws`` of a view, with the client in memory."""

import logging
import os
import subprocess
import sys
from contextlib import suppress
from functools import partial

import anyio
import pytest
from asgi_client import settle

from microws import (
    App,
    HTTPException,
    InvalidMessage,
    PayloadTypeError,
    TooManySubscriptions,
    WebSocketDisconnect,
    WebSocketRejected,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["raise", "ignore"])
def after_disconnect(request):
    """What the server's ``send`` does after a disconnect."""
    return request.param


@pytest.fixture
def app():
    # With the default close_timeout: a busy machine may need longer than a short one to let a view run.
    return App()


# A server that loads its app before it forks its workers.
FORKED = """
import asyncio, os
from microws import App

app = App()

@app.websocket_route("/")
async def view(ws):
    async with ws:
        os.write(1, ws.id.encode() + b"\\n")  # both processes write at once: a line and its end in one call

async def main():
    async with app.test_client() as client, client.websocket("/"):
        pass

child = os.fork()
asyncio.run(main())
if child:
    os.waitpid(child, 0)
"""


class Notes(list):
    """Notes from a view to its test, which can wait for them."""

    def __init__(self):
        super().__init__()
        self._changed = anyio.Event()

    def append(self, note):
        super().append(note)
        self._changed.set()
        self._changed = anyio.Event()

    async def wait(self, count=1):
        with anyio.fail_after(5):
            while len(self) < count:
                await self._changed.wait()
        return list(self)


def end_of(error):
    return (error.code, error.reason)


async def rejected(app, path="/", *, subprotocols=(), **options):
    """The rejection of a handshake."""
    async with app.test_client(**options) as client:
        with pytest.raises(WebSocketRejected) as caught:
            await client.websocket(path, subprotocols=subprotocols).__aenter__()
    return caught.value


async def answers(ws):
    return {"error": "no"}, 401


async def closed(ws):
    await ws.wait_closed()
    return (ws.close_code, ws.close_reason)


class TestFromTheStart:
    async def test_the_request_is_known_before_the_accept(self, app):
        notes = Notes()

        @app.websocket_route("/rooms/{room}")
        async def view(ws, room):
            notes.append(
                {
                    "path": ws.path,
                    "url": str(ws.url),
                    "header": ws.headers["X-Trace"],
                    "query": ws.query["a"],
                    "cookies": ws.cookies["who"],
                    "client": tuple(ws.client),
                    "path_params": ws.path_params,
                    "subprotocols": ws.subprotocols,
                    "app": ws.app is app,
                    "before": (ws.accepted, ws.closed, ws.close_code, ws.close_reason, ws.subprotocol),
                }
            )
            ws.state.own = 1
            app.state.shared = 2
            async with ws:
                notes.append((ws.accepted, ws.closed, ws.state.own, ws.app.state.shared, room))
            notes.append((ws.accepted, ws.closed, ws.close_code, ws.close_reason))

        async with (
            app.test_client() as client,
            client.websocket(
                "/rooms/x%20y?a=1", headers={"x-trace": "t"}, cookies={"who": "me"}, subprotocols=["v1"]
            ) as ws,
        ):
            assert await closed(ws) == (1000, "")
        assert await notes.wait(3) == [
            {
                "path": "/rooms/x y",
                "url": "ws://testserver/rooms/x%20y?a=1",
                "header": "t",
                "query": "1",
                "cookies": "me",
                "client": ("testclient", 50000),
                "path_params": {"room": "x y"},
                "subprotocols": ["v1"],
                "app": True,
                "before": (False, False, None, "", None),
            },
            (True, False, 1, 2, "x y"),
            (True, True, 1000, ""),
        ]

    async def test_each_connection_has_its_own_constant_id(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                notes.append((ws.id, ws.id))

        async with app.test_client() as client:
            for _ in range(3):
                async with client.websocket("/"):
                    pass
        ids = await notes.wait(3)
        assert all(first == second and first for first, second in ids)
        assert len(set(ids)) == 3

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork")
    def test_processes_forked_with_the_app_create_different_ids(self):
        forked = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=30, check=True)
        assert len(set(forked.stdout.split())) == 2


class TestAccept:
    async def test_a_subprotocol_and_headers_go_with_it(self, app):
        @app.websocket_route("/")
        async def view(ws):
            await ws.accept("v2", headers={"X-Room": "1"})
            assert ws.subprotocol == "v2"

        async with app.test_client() as client, client.websocket("/", subprotocols=["v1", "v2"]) as ws:
            assert ws.subprotocol == "v2"
            assert ws.accept_headers["x-room"] == "1"

    @pytest.mark.parametrize(
        ("offered", "chosen"), [(["a", "v1"], "v1"), (["v1", "v2"], "v2"), (["a"], None), ([], None)]
    )
    async def test_the_first_subprotocol_of_the_route_that_is_offered_is_chosen(self, app, offered, chosen):
        @app.websocket_route("/", subprotocols=["v2", "v1"])
        async def view(ws):
            async with ws:
                assert ws.subprotocol == chosen

        async with app.test_client() as client, client.websocket("/", subprotocols=offered) as ws:
            assert ws.subprotocol == chosen

    @pytest.mark.parametrize(
        ("offered", "supported", "token", "chosen"),
        [
            (["bearer", "s3cret"], [], "s3cret", "bearer"),
            (["bearer", "s3cret"], ["v1"], "s3cret", "bearer"),
            (["bearer", "s3cret", "v1"], ["v1"], "s3cret", "v1"),
            (["v1", "bearer", "s3cret"], ["v1"], "s3cret", "v1"),
            (["bearer", "v1"], ["v1"], "v1", "bearer"),
            (["bearer"], [], None, None),
            (["v1", "bearer"], [], None, None),
            (["bearer", "s3/cret"], [], None, None),
            (["bearer", "v1", "bearer", "v2"], ["v1"], None, None),
        ],
    )
    async def test_a_token_among_the_subprotocols_is_never_chosen(self, app, caplog, offered, supported, token, chosen):
        @app.websocket_route("/", subprotocols=supported)
        async def view(ws):
            async with ws:
                await ws.send(repr(ws.bearer))

        with caplog.at_level(logging.DEBUG):
            async with app.test_client() as client, client.websocket("/", subprotocols=offered) as ws:
                assert (ws.subprotocol, await ws.receive()) == (chosen, repr(token))
        assert "s3" not in caplog.text

    async def test_a_view_cannot_choose_the_token(self, app):
        @app.websocket_route("/")
        async def view(ws):
            with pytest.raises(ValueError, match="expected a subprotocol that the client offers") as caught:
                await ws.accept("s3cret")
            assert "s3cret" not in str(caught.value)
            await ws.reject(400)

        assert (await rejected(app, subprotocols=["bearer", "s3cret"])).status == 400

    async def test_an_offer_without_an_accepted_subprotocol_is_logged(self, app, caplog):
        caplog.set_level("INFO", logger="microws.websocket")

        @app.websocket_route("/a", subprotocols=["v2"])
        async def has_others(ws):
            await ws.accept()

        @app.websocket_route("/b")
        async def has_none(ws):
            await ws.accept(ws.query.get("chosen"))

        async with app.test_client() as client:
            for path, offered in (
                ("/a", ["v1", "Bearer", "s3cret"]),
                ("/b", ["v1"]),
                ("/a", ["v2"]),
                ("/a", []),
                ("/b?chosen=v1", ["v1"]),
            ):
                async with client.websocket(path, subprotocols=offered):
                    pass
        said = "accepted without a subprotocol, which browsers refuse; the client offers"
        fix = "write subprotocols=[…] at the route or ws.accept(subprotocol=…)"
        assert caplog.messages == [
            f"'/a': {said} 'v1', 'Bearer', '…', the route has 'v2': {fix}",
            f"'/b': {said} 'v1', the route has none: {fix}",
        ]

    async def test_what_may_not_be_sent_is_a_value_error_and_nothing_was_sent(self, app):
        @app.websocket_route("/")
        async def view(ws):
            for headers in ({"x\n": "1"}, {"x": "1\r\ny: 2"}, {"sec-websocket-protocol": "v1"}):
                with pytest.raises(ValueError):  # noqa: PT011
                    await ws.accept(headers=headers)
            with pytest.raises(ValueError, match="v9"):
                await ws.accept("v9")
            assert not ws.accepted
            for status, headers in ((101, None), (600, None), (400, {"x": "\n"}), (400, {"content-length": "1"})):
                with pytest.raises(ValueError):  # noqa: PT011
                    await ws.reject(status, headers=headers)
            await ws.reject(418)

        rejection = await rejected(app, subprotocols=["v1"])
        assert rejection.status == 418

    async def test_a_second_accept_raises_and_async_with_accepts_only_once(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            await ws.accept()
            for call in (ws.accept, ws.reject):
                with pytest.raises(RuntimeError, match="is accepted already"):
                    await call()
            async with ws:
                await ws.send("in")
            notes.append("done")

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await ws.receive() == "in"
        await notes.wait()

    async def test_a_call_before_the_accept_raises_and_names_the_fix(self, app):
        @app.websocket_route("/")
        async def view(ws):
            for name, call in (
                ("receive", ws.receive),
                ("receive", partial(ws.receive, timeout=1)),
                ("receive", ws.receive_event),
                ("receive", ws.__anext__),
                ("wait_closed", ws.wait_closed),
                ("send", partial(ws.send, "x")),
                ("send", partial(ws.send_event, {"type": "websocket.send", "text": "x"})),
            ):
                with pytest.raises(RuntimeError, match=rf"ws\.{name}\(\) before the handshake is accepted: write"):
                    await call()
            assert not ws.closed
            await ws.reject(418)

        assert (await rejected(app)).status == 418

    async def test_accept_timeout_cancels_the_view_and_answers_503(self):
        app, notes = App(accept_timeout=0.05), Notes()

        @app.websocket_route("/")
        async def view(ws):
            try:
                await anyio.sleep_forever()
            finally:
                notes.append("finally")

        rejection = await rejected(app)
        assert rejection.status == 503
        assert notes == ["finally"]

    async def test_accept_timeout_ends_with_the_accept(self):
        app = App(accept_timeout=0.05)

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await anyio.sleep(0.1)
                await ws.send("still here")

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await ws.receive() == "still here"


class TestReject:
    @pytest.mark.parametrize(
        ("body", "content_type", "expected"),
        [
            ("é", "text/plain; charset=utf-8", "é".encode()),
            (b"\xff", "application/octet-stream", b"\xff"),
            ({"a": 1}, "application/json", b'{"a":1}'),
            ([1], "application/json", b"[1]"),
            ("", "text/plain; charset=utf-8", b""),
        ],
    )
    @pytest.mark.parametrize("own", [{}, {"Content-Type": "text/html"}])
    async def test_a_rejection_is_an_http_response(self, app, body, content_type, expected, own):
        @app.websocket_route("/")
        async def view(ws):
            await ws.reject(401, body, headers={"WWW-Authenticate": "Bearer", **own})
            assert (ws.closed, ws.accepted, ws.close_code) == (True, False, 3401)

        rejection = await rejected(app)
        assert (rejection.status, rejection.code, rejection.body) == (401, 3401, expected)
        assert dict(rejection.headers) == {
            "www-authenticate": "Bearer",
            "content-type": own.get("Content-Type", content_type),
            "content-length": str(len(expected)),
        }

    async def test_a_response_returned_before_the_accept_rejects_the_handshake(self, app):
        app.add_websocket_route(answers, "/")
        rejection = await rejected(app)
        assert (rejection.status, rejection.body) == (401, b'{"error":"no"}')

    @pytest.mark.parametrize("denial", [True, False])
    async def test_reject_close_and_return_before_the_accept_are_403(self, app, denial, caplog):
        @app.websocket_route("/{way}")
        async def view(ws, way):
            if way == "reject":
                await ws.reject()
            if way == "close":
                await ws.close(4000, "no")
                await ws.close()

        with caplog.at_level("INFO", "microws"):
            for way in ("reject", "close", "return"):
                rejection = await rejected(app, f"/{way}", denial=denial)
                assert (rejection.status, rejection.code) == (403, 3403)
        assert "'/return': the view returned without accepting" in caplog.text

    async def test_after_a_rejection_each_call_raises_its_code(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            await ws.reject(409)
            for call in (ws.receive(), ws.send("x"), ws.subscribe("t"), anext(ws, "the end")):
                try:
                    notes.append(await call)
                except WebSocketDisconnect as end:
                    notes.append(end.code)
            with pytest.raises(RuntimeError, match="rejected already"):
                await ws.reject()

        await rejected(app)
        assert notes == [3409, 3409, 3409, "the end"]


class TestReceive:
    @pytest.mark.parametrize(
        ("options", "message", "event"),
        [
            ({}, "text", {"text": "text"}),
            ({"value_type": "bytes"}, b"\xff", {"bytes": b"\xff"}),
            ({"value_type": "bytes"}, b"", {"bytes": b""}),
            ({"value_type": "json"}, {"a": None}, {"text": '{"a":null}'}),
            ({"value_type": "json"}, "s", {"text": '"s"'}),
            ({"value_type": "auto"}, "", {"text": ""}),
            ({"value_type": "auto"}, b"", {"bytes": b""}),
            ({"value_type": "bytes", "receive_type": "json", "send_type": "json"}, [1], {"text": "[1]"}),
        ],
    )
    async def test_messages_are_decoded_and_values_encoded_by_the_route_s_type(self, app, options, message, event):
        @app.websocket_route("/", **options)
        async def view(ws):
            async with ws:
                value = await ws.receive()
                assert value == message
                await ws.send(value)

        async with app.test_client() as client, client.websocket("/") as ws:
            await ws.send(message)
            assert await ws.receive_event() == {"type": "websocket.send", **event}

    async def test_each_direction_may_have_a_type_of_its_own(self, app):
        @app.websocket_route("/in", receive_type="json")
        async def decodes(ws):
            async with ws:
                await ws.send(type(await ws.receive()).__name__)

        @app.websocket_route("/out", send_type="json")
        async def encodes(ws):
            async with ws:
                await ws.send([await ws.receive()])

        async with app.test_client() as client:
            for path, reply in (("/in", "list"), ("/out", '["[]"]')):
                async with client.websocket(path) as ws:
                    await ws.send_text("[]")
                    assert await ws.receive_text() == reply

    async def test_a_type_for_this_once_and_the_explicit_methods(self, app):
        notes = Notes()

        @app.websocket_route("/", value_type="bytes")
        async def view(ws):
            async with ws:
                notes.append(await ws.receive(type="json"))
                notes.append(await ws.receive_text())
                notes.append(await ws.receive_bytes())
                notes.append(await ws.receive_json())
                notes.append(await ws.receive())
                await ws.send({"a": 1}, type="json")
                await ws.send_text("t")
                await ws.send_bytes(bytearray(b"b"))
                await ws.send_json([1])
                await ws.send(memoryview(b"r"))

        async with app.test_client() as client, client.websocket("/") as ws:
            for message in ("[1]", "t", b"b", '{"a":1}', b"r"):
                await (ws.send_text if isinstance(message, str) else ws.send_bytes)(message)
            events = [await ws.receive_event() for _ in range(5)]
        assert notes == [[1], "t", b"b", {"a": 1}, b"r"]
        assert [event.get("text", event.get("bytes")) for event in events] == ['{"a":1}', "t", b"b", "[1]", b"r"]

    @pytest.mark.parametrize(
        ("method", "expected"), [("receive", [1, 2]), ("receive_text", ["1", "2"]), ("receive_json", [1, 2])]
    )
    async def test_a_time_out_loses_no_message(self, app, method, expected):
        notes = Notes()

        @app.websocket_route("/", value_type="json")
        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await getattr(ws, method)(timeout=0.01)
                notes.append("timed out")
                notes.append(await getattr(ws, method)(timeout=5))
                notes.append(await getattr(ws, method)(timeout=5))

        async with app.test_client() as client, client.websocket("/") as ws:
            await notes.wait()
            await ws.send(1)
            await ws.send(2)
            assert await notes.wait(3) == ["timed out", *expected]

    @pytest.mark.parametrize(
        ("value_type", "message", "error", "code", "reason"),
        [
            ("text", b"x", PayloadTypeError, 1003, "expected a text frame, got a binary one"),
            ("bytes", "x", PayloadTypeError, 1003, "expected a binary frame, got a text one"),
            ("json", "{", InvalidMessage, 1007, "invalid JSON"),
        ],
    )
    async def test_a_wrong_frame_is_1003_and_an_invalid_message_1007(
        self, app, value_type, message, error, code, reason
    ):
        @app.websocket_route("/", value_type=value_type)
        async def view(ws):
            async with ws:
                if ws.query.get("catches"):
                    with pytest.raises(error, match=reason):
                        await ws.receive()
                    await ws.send(await ws.receive(type="auto"), type="auto")
                if ws.query.get("iterates"):
                    await anext(ws)
                await ws.receive()

        async with app.test_client() as client:
            for query in ("", "iterates=1", "catches=1"):
                async with client.websocket("/", query=query) as ws:
                    await (ws.send_text if isinstance(message, str) else ws.send_bytes)(message)
                    if query == "catches=1":
                        await ws.send_text("next")
                        assert await ws.receive_text() == "next"
                        continue
                    got_code, got_reason = await closed(ws)
                    assert got_code == code
                    assert got_reason.startswith(reason)

    async def test_skipped_messages_have_two_log_lines_at_most(self, app, caplog):
        @app.websocket_route("/", value_type="json", on_invalid="skip")
        async def view(ws):
            async with ws:
                if ws.query.get("iterates"):
                    assert await anext(ws) == "end"
                else:
                    assert await ws.receive() == "end"
                await ws.close(4001)

        async with app.test_client() as client:
            for count, path in ((1, "/"), (500, "/"), (500, "/?iterates=1")):
                caplog.clear()
                async with client.websocket(path) as ws:
                    for number in range(count):
                        await (ws.send_text("{garbage") if number % 2 == 0 else ws.send_bytes(b"3"))
                    await ws.send("end")
                    assert (await closed(ws))[0] == 4001
                lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
                assert lines[0].startswith("'/': skipped a message: invalid JSON: ")
                assert lines[1:] == (["'/': skipped 500 messages of one connection in all"] if count > 1 else [])

    async def test_after_a_disconnect_async_for_ends_and_receive_raises(self, app, after_disconnect):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                async for message in ws:
                    notes.append(message)
                notes.append((ws.closed, ws.close_code, ws.close_reason))
                for _ in range(2):
                    with pytest.raises(WebSocketDisconnect) as caught:
                        await ws.receive()
                    notes.append(end_of(caught.value))

        async with app.test_client(send_after_disconnect=after_disconnect) as client, client.websocket("/") as ws:
            await ws.send("last words")
            await ws.close(4321, "bye")
            assert await notes.wait(4) == ["last words", (True, 4321, "bye"), (4321, "bye"), (4321, "bye")]


class TestSend:
    async def test_what_cannot_be_encoded_raises_and_nothing_was_sent(self, app):
        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                for value_type, value, error in (("text", b"x", TypeError), ("json", float("inf"), ValueError)):
                    with pytest.raises(error):
                        await ws.send(value, type=value_type)
                await ws.send("next")

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await ws.receive() == "next"

    async def test_a_view_that_only_sends_notices_the_disconnect_at_once(self, app, after_disconnect):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                try:
                    while True:
                        await ws.send("tick")
                        await anyio.sleep(0.001)
                except WebSocketDisconnect as end:
                    notes.append(end_of(end))

        async with app.test_client(send_after_disconnect=after_disconnect) as client, client.websocket("/") as ws:
            assert await ws.receive() == "tick"
            await ws.close(4000, "enough")
            assert await notes.wait() == [(4000, "enough")]


class TestEvents:
    async def test_raw_events_both_ways_and_the_disconnect_once(self, app):
        notes = Notes()

        @app.websocket_route("/", value_type="json")
        async def view(ws):
            await ws.send_event(
                {"type": "websocket.accept", "subprotocol": "v1", "headers": [(b"x-one", b"1"), (b"x-two", b"2")]}
            )
            assert ws.accepted
            while (event := await ws.receive_event())["type"] != "websocket.disconnect":
                notes.append(event)
                await ws.send_event({"type": "websocket.send", "text": event.get("text"), "bytes": event.get("bytes")})
            notes.append(event)
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.receive_event()
            notes.append(caught.value.code)

        async with app.test_client() as client, client.websocket("/", subprotocols=["v1"]) as ws:
            assert (ws.subprotocol, ws.accept_headers["x-one"], ws.accept_headers["x-two"]) == ("v1", "1", "2")
            await ws.send_text("t")
            await ws.send_bytes(b"")
            assert (await ws.receive_text(), await ws.receive_bytes()) == ("t", b"")
            await ws.close(4000, "bye")
            assert await notes.wait(4) == [
                {"type": "websocket.receive", "text": "t"},
                {"type": "websocket.receive", "bytes": b""},
                {"type": "websocket.disconnect", "code": 4000, "reason": "bye"},
                4000,
            ]

    async def test_receive_event_returns_the_disconnect_after_send_raised_it(self, app):
        notes, left = Notes(), anyio.Event()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await ws.receive(timeout=0)
                notes.append("ready")
                await left.wait()
                with suppress(WebSocketDisconnect):
                    while True:
                        await ws.send("x")
                for _ in range(2):
                    event = await ws.receive_event()
                    notes.append((event["type"], event.get("text")))

        async with app.test_client() as client, client.websocket("/") as ws:
            await notes.wait()
            await ws.send("unread")
            await ws.close(4000)
            left.set()
            assert await notes.wait(3) == [
                "ready",
                ("websocket.receive", "unread"),
                ("websocket.disconnect", None),
            ]

    async def test_a_close_event_closes_and_a_response_event_is_refused(self, app):
        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                with pytest.raises(ValueError, match=r"see ws\.reject"):
                    await ws.send_event({"type": "websocket.http.response.start", "status": 400})
                await ws.send_event({"type": "websocket.close", "code": 4000, "reason": None})

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await closed(ws) == (4000, "")


class TestWaitClosed:
    async def test_wait_closed_discards_messages_until_the_disconnect(self, app):
        notes = Notes()

        @app.websocket_route("/", value_type="json", subscribe="t", catch_disconnect=False)
        async def view(ws):
            await ws.accept()
            await ws.wait_closed()
            notes.append((ws.close_code, ws.close_reason))
            await ws.wait_closed()

        async with app.test_client() as client:
            async with client.websocket("/") as ws:
                for number in range(20):
                    await ws.send_text("no JSON")
                    await ws.send_bytes(b"\x00")
                    await app.publish("t", number)
                    assert await ws.receive() == number
                await ws.close(4000, "enough")
            assert await notes.wait() == [(4000, "enough")]

    @pytest.mark.parametrize("end", ["close", "reject"])
    async def test_wait_closed_returns_at_once_after_this_side_ended(self, app, end):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            if end == "close":
                await ws.accept()
            await getattr(ws, end)(*([4001] if end == "close" else [400]))
            await ws.wait_closed()
            notes.append(ws.close_code)

        async with app.test_client() as client:
            with suppress(WebSocketRejected):
                async with client.websocket("/"):
                    pass
            assert await notes.wait() == [3400 if end == "reject" else 4001]


class TestClose:
    async def test_an_invalid_close_raises_and_sends_nothing(self, app):
        message = r"^expected a number as close code, got 'bye'; .* close\(1000, reason\)$"
        reason = "at most 123 UTF-8 bytes"
        refused = [(("bye",), TypeError, message), ((1001, "x" * 124), ValueError, reason)]
        codes = (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, -1)
        refused += [((code,), ValueError, "expected a close code of 1000") for code in codes]

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                for arguments, error, complaint in [*refused, ((1001, "é" * 62), ValueError, reason)]:
                    with pytest.raises(error, match=complaint):
                        await ws.close(*arguments)
                assert not ws.closed
                await ws.close(4000, "x" * 123)

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await closed(ws) == (4000, "x" * 123)

    async def test_a_second_close_does_nothing_and_every_call_raises_the_first_code(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await ws.close(4000, "first")
                await ws.close(4001, "second")
                notes.append((ws.closed, ws.close_code, ws.close_reason))
                for call in (ws.receive(), ws.receive(timeout=1), ws.send("x"), ws.subscribe("t")):
                    with pytest.raises(WebSocketDisconnect) as caught:
                        await call
                    notes.append(end_of(caught.value))
                notes.append([message async for message in ws])

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await closed(ws) == (4000, "first")
        assert notes == [(True, 4000, "first"), *[(4000, "first")] * 4, []]


class TestAsyncWith:
    @pytest.mark.parametrize("value", [None, "too late", 403])
    async def test_a_view_that_returns_closes_with_1000(self, app, value):
        @app.websocket_route("/")
        async def view(ws):
            await ws.accept()
            return value

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await closed(ws) == (1000, "")


class TestCatchDisconnect:
    async def endings(self, app, after_disconnect, *, catch):
        """How a view ends that the client leaves: in ``async for``, in ``receive``, in ``send``, and in a group."""
        notes = Notes()

        async def iterate(ws):
            async for _ in ws:
                pass
            return "ended"

        async def receive(ws):
            while True:
                await ws.receive()

        async def send(ws):
            while True:
                await ws.send("x")
                await anyio.sleep(0.001)

        async def in_a_group(ws):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(receive, ws)
                tasks.start_soon(receive, ws)
                tasks.start_soon(send, ws)

        def register(name, body):
            @app.websocket_route(f"/{name}", catch_disconnect=catch, name=name)
            async def view(ws):
                note = "swallowed"
                try:
                    async with ws:
                        note = await body(ws) or note
                except WebSocketDisconnect as end:
                    note = end.code
                except ExceptionGroup as group:
                    note = sorted({error.code for error in group.exceptions})
                notes.append(note)

        bodies = {"iterate": iterate, "receive": receive, "send": send, "group": in_a_group}
        for name, body in bodies.items():
            register(name, body)
        async with app.test_client(send_after_disconnect=after_disconnect) as client:
            for number, name in enumerate(bodies, 1):
                async with client.websocket(f"/{name}") as ws:
                    await ws.close(4000)
                await notes.wait(number)
        return list(notes)

    @pytest.mark.parametrize(
        ("catch", "expected"),
        [(True, ["ended", "swallowed", "swallowed", "swallowed"]), (False, [4000, 4000, 4000, [4000]])],
    )
    async def test_async_with_swallows_the_disconnect_if_catch_disconnect(self, app, after_disconnect, catch, expected):
        assert await self.endings(app, after_disconnect, catch=catch) == expected

    async def test_the_end_of_another_connection_is_not_swallowed(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            try:
                async with ws:
                    raise WebSocketDisconnect(1001, "of another one")
            except WebSocketDisconnect as end:
                notes.append(end_of(end))

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await notes.wait() == [(1001, "of another one")]
            assert await closed(ws) == (1000, "")

    async def test_another_error_beside_it_in_a_group_is_an_error(self, app):
        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                try:
                    await ws.receive()
                except WebSocketDisconnect as end:
                    raise ExceptionGroup("both", [end, KeyError()]) from None

        notes = Notes()

        @app.error_handler(500)
        async def handle(ws, error):
            notes.append(type(error))

        async with app.test_client(raise_errors=False) as client:
            async with client.websocket("/") as ws:
                await ws.close()
            assert await notes.wait() == [KeyError]


class TestTopics:
    async def test_publish_reaches_everyone_on_the_topic_but_this_connection(self, app):
        @app.websocket_route("/", value_type="json", subscribe="t")
        async def view(ws):
            async with ws:
                async for message in ws:
                    receipt = await ws.publish("t", message)
                    await ws.send({"reached": receipt.subscribers})

        async with (
            app.test_client() as client,
            client.websocket("/") as a,
            client.websocket("/") as b,
            client.websocket("/") as c,
        ):
            await a.send({"n": 1})
            assert await a.receive() == {"reached": 2}
            assert [await b.receive(), await c.receive()] == [{"n": 1}, {"n": 1}]

    async def test_subscribing_takes_effect_before_the_handshake_is_answered(self, app):
        @app.websocket_route("/route/{room}", subscribe=["room:{room}", "all"])
        async def by_route(ws, room):
            await ws.app.publish(f"room:{room}", "1")
            await ws.app.publish("all", "2")
            async with ws:
                await ws.send("3")
                await ws.receive()

        @app.websocket_route("/view")
        async def by_view(ws):
            await ws.subscribe("all")
            await ws.app.publish("all", "1")
            async with ws:
                await ws.send("2")
                await ws.receive()

        async with app.test_client() as client:
            async with client.websocket("/route/x") as ws:
                assert [await ws.receive() for _ in range(3)] == ["1", "2", "3"]
            async with client.websocket("/view") as ws:
                await app.publish("all", "3")
                assert [await ws.receive() for _ in range(3)] == ["1", "2", "3"]
        assert app.hub.statistics().topics == 0

    async def test_each_subscriber_gets_the_form_of_its_own_send_type(self, app):
        async def view(ws):
            async with ws:
                await ws.receive()

        for name in ("text", "bytes"):
            app.add_websocket_route(view, f"/{name}", value_type=name, subscribe="t", name=name)
        async with app.test_client() as client, client.websocket("/text") as text, client.websocket("/bytes") as raw:
            assert (await app.publish("t", {"a": 1})).subscribers == 2
            assert await text.receive_event() == {"type": "websocket.send", "text": '{"a":1}'}
            assert await raw.receive_event() == {"type": "websocket.send", "bytes": b'{"a":1}'}

    async def test_unsubscribe_ends_a_topic_and_leaving_ends_all(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                await ws.unsubscribe("never subscribed")
                await ws.subscribe("t", "u", "t")
                await ws.subscribe("t")
                notes.append(app.hub.statistics().subscriptions)
                await ws.unsubscribe("t")
                notes.append(app.hub.statistics().subscriptions)
                assert (await app.publish("t", "x")).subscribers == 0
                assert (await app.publish("u", "y")).subscribers == 1
            notes.append(app.hub.statistics().subscriptions)
            assert (await app.publish("u", "z")).subscribers == 0

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await ws.receive() == "y"
            assert await closed(ws) == (1000, "")
        assert notes == [2, 1, 0]

    async def test_max_subscriptions_limits_a_connection(self):
        app, notes = App(max_subscriptions=3), Notes()

        @app.websocket_route("/", subscribe="of the route")
        async def view(ws):
            async with ws:
                await ws.subscribe("a", "a", "of the route")
                with pytest.raises(
                    TooManySubscriptions, match="at most 3 subscriptions of one connection, got 4"
                ) as caught:
                    await ws.subscribe("b", "c")
                assert (caught.value.count, caught.value.maximum) == (4, 3)
                notes.append(app.hub.statistics().subscriptions)
                await ws.subscribe("b")
                await ws.subscribe("a", "b")
                await ws.unsubscribe("a")
                await ws.subscribe("c")
                # What the app reads itself is not counted.
                async with app.subscribe("a", "b", "c", "d"):
                    notes.append(app.hub.statistics().subscriptions)

        async with app.test_client() as client, client.websocket("/"):
            assert await notes.wait(2) == [2, 3 + 4]

    @pytest.mark.parametrize("accepts_before", [True, False])
    async def test_one_too_many_closes_with_1008_or_is_403(self, accepts_before, caplog):
        app = App(max_subscriptions=2)

        @app.websocket_route("/")
        async def view(ws):
            if accepts_before:
                await ws.accept()
            await ws.subscribe("a", "b", "c")

        if accepts_before:
            async with app.test_client() as client, client.websocket("/") as ws:
                assert await closed(ws) == (1008, "more than 2 subscriptions")
        else:
            rejection = await rejected(app)
            assert (rejection.status, rejection.body) == (403, b"more than 2 subscriptions")
        assert app.hub.statistics().topics == 0
        (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
        assert "App(max_subscriptions=" in record.getMessage()

    @pytest.mark.parametrize(
        ("error", "code", "reason", "logged"),
        [
            (partial(TooManySubscriptions, 3, 2), 1008, "more than 2", 1),
            (partial(HTTPException, 404, {"value": object()}), 1011, "internal error", 1),
            (partial(KeyError, "secret"), 1011, "internal error", 1),
            (partial(HTTPException, 404, "no such room"), 3404, "no such room", 0),
            (partial(InvalidMessage, "wrong message"), 1007, "wrong message", 0),
            (partial(PayloadTypeError, "wrong frame"), 1003, "wrong frame", 0),
        ],
    )
    @pytest.mark.parametrize("way", ["async with", "accept"])
    async def test_an_exception_has_its_code_and_is_logged_once_at_most(self, error, code, reason, logged, way, caplog):
        app, codes = App(), []

        @app.websocket_route("/")
        async def view(ws):
            if way == "accept":
                await ws.accept()
                raise error()
            try:
                async with ws:
                    raise error()
            finally:
                codes.append(ws.close_code)

        async with app.test_client(raise_errors=False) as client, client.websocket("/") as ws:
            got, text = await closed(ws)
            assert (got, text.startswith(reason), "secret" in text) == (code, True, False)
        assert codes == ([code] if way == "async with" else [])
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == logged

    @pytest.mark.parametrize(
        ("room", "maximum", "status"), [("x" * 300, 9, 400), ("1", 1, 403)], ids=["invalid topic", "too many"]
    )
    async def test_topics_of_a_route_may_refuse_the_handshake(self, room, maximum, status):
        app = App(max_subscriptions=maximum)

        @app.websocket_route("/{room}", subscribe=["room:{room}", "all"])
        async def view(ws, room):
            raise AssertionError("called")

        rejection = await rejected(app, "/" + room)
        assert rejection.status == status
        assert app.hub.statistics().topics == 0

    async def test_bad_topics_raise_and_none_of_them_is_subscribed(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            with pytest.raises(ValueError, match="control characters"):
                await ws.subscribe("fine", "a\n")
            with pytest.raises(TypeError, match="expected a topic as str"):
                await ws.subscribe(7)
            with pytest.raises(TypeError, match="at least one topic"):
                await ws.subscribe()
            with pytest.raises(ValueError, match="at least one character"):
                await ws.unsubscribe("")
            with pytest.raises(ValueError, match="control characters"):
                await ws.publish("\0", 1)
            with pytest.raises(TypeError, match="since= as a dict of 2 topics"):
                await ws.subscribe("t", "u", since="x")
            with pytest.raises(ValueError, match="since= with topics that are subscribed, got 'u'"):
                await ws.subscribe("t", since={"u": "x"})
            notes.append(app.hub.statistics().topics)
            await ws.accept()

        async with app.test_client() as client, client.websocket("/"):
            assert await notes.wait() == [0]

    async def test_a_stalled_subscriber_is_1013_and_the_others_get_everything(self, app):
        app.topic("t", queue=4)

        @app.websocket_route("/", subscribe="t")
        async def view(ws):
            async with ws:
                async for _ in ws:
                    pass

        async with (
            app.test_client() as client,
            client.websocket("/", max_queue=1) as slow,
            client.websocket("/") as quick,
        ):
            for n in range(100):
                await app.publish("t", str(n))
            assert [await quick.receive() for _ in range(100)] == [str(n) for n in range(100)]
            # What the server had buffered still arrives, but nothing after a loss.
            assert [text async for text in slow] == ["0"]
            assert app.hub.statistics().dropped == {"close": 1}
            assert app.hub.statistics().subscribers == 1

    @pytest.mark.parametrize(("gaps", "expected"), [(True, ['{"topic":"t","gap":true}']), (False, [])])
    async def test_a_client_that_asked_for_gap_markers_is_told_of_dropped_messages(self, app, gaps, expected):
        app.topic("t", queue=2, overflow="drop_oldest")

        @app.websocket_route("/", subscribe="t", gaps=gaps)
        async def view(ws):
            async with ws:
                async for _ in ws:
                    pass

        async with app.test_client() as client, client.websocket("/", max_queue=1) as ws:
            for n in range(20):
                await app.publish("t", str(n))
            texts = [await ws.receive_text() for _ in range(4 + gaps)]
        assert texts == ["0", "1", *expected, "18", "19"]
        assert app.hub.statistics().dropped == {"drop_oldest": 16}


class TestHelpers:
    async def test_a_helper_is_cancelled_when_the_view_ends(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async def tick(word):
                try:
                    while True:
                        await ws.send(word)
                        await anyio.sleep(0.001)
                finally:
                    notes.append("ended")

            async with ws:
                ws.start_soon(tick, "tick")
                await ws.receive()

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await ws.receive() == "tick"
            await ws.send("stop")
            assert [text async for text in ws if text != "tick"] == []
            assert ws.close_code == 1000
            assert await notes.wait() == ["ended"]

    async def test_helpers_are_functions_and_are_forgotten_when_they_have_ended(self, app):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async with ws:
                for _ in range(100):
                    ws.start_soon(anyio.lowlevel.checkpoint)
                await settle()
                notes.append(len(ws._helpers))
                coroutine = anyio.sleep(1)
                with pytest.raises(TypeError, match=r"as in start_soon\(tick, 1\), .*; got coroutine$"):
                    ws.start_soon(coroutine)
                coroutine.close()

        async with app.test_client() as client, client.websocket("/"):
            assert await notes.wait() == [0]

    async def test_a_failed_helper_closes_with_1011_and_is_logged(self, app, caplog):
        notes = Notes()

        @app.websocket_route("/")
        async def view(ws):
            async def fail():
                await ws.send("soon")
                raise KeyError("secret")

            async with ws:
                ws.start_soon(fail)
                try:
                    await ws.receive()
                except WebSocketDisconnect as end:
                    notes.append(end_of(end))

        async with app.test_client(raise_errors=False) as client, client.websocket("/") as ws:
            assert await ws.receive() == "soon"
            code, reason = await closed(ws)
            assert await notes.wait() == [(code, reason)]
        assert code == 1011
        error_id = reason.removeprefix("internal error, error id ")
        assert f"the connection is closed with 1011, id {error_id}\n" in caplog.text
        assert "KeyError: 'secret'" in caplog.text

    async def test_a_disconnect_in_a_helper_does_not_count_for_the_view(self, caplog, after_disconnect):
        app, notes = App(close_timeout=0.05), Notes()

        @app.websocket_route("/", catch_disconnect=False)
        async def view(ws):
            async def receive():
                try:
                    await ws.receive()
                finally:
                    notes.append("helper")

            async with ws:
                ws.start_soon(receive)
                try:
                    await anyio.sleep_forever()
                finally:
                    notes.append("view")

        async with app.test_client(send_after_disconnect=after_disconnect) as client:
            async with client.websocket("/") as ws:
                await settle()
                await ws.close(4000)
            assert await notes.wait(2) == ["helper", "view"]
        assert caplog.text == ""


class TestTheEndOfAView:
    @pytest.mark.parametrize("vanishes", [True, False])
    async def test_a_view_that_does_not_notice_the_end_is_cancelled(self, after_disconnect, vanishes):
        app, notes = App(close_timeout=0.05), Notes()

        @app.websocket_route("/", subscribe="t")
        async def view(ws):
            async with ws:
                try:
                    await anyio.sleep_forever()
                finally:
                    notes.append(("finally", ws.close_code))

        async with app.test_client(send_after_disconnect=after_disconnect) as client, client.websocket("/") as ws:
            ws.abort() if vanishes else await ws.close()
            assert await notes.wait() == [("finally", 1006 if vanishes else 1000)]
        assert app.hub.statistics().topics == 0

    async def test_a_view_that_noticed_the_end_may_go_on_and_publish(self, after_disconnect):
        app = App(close_timeout=0.05)

        @app.websocket_route("/", subscribe="t")
        async def view(ws):
            try:
                async with ws:
                    async for _ in ws:
                        pass
            finally:
                await anyio.sleep(0.15)
                await ws.publish("t", "a client disconnected")

        async with (
            app.test_client(send_after_disconnect=after_disconnect) as client,
            client.websocket("/") as stays,
            client.websocket("/") as leaves,
        ):
            await leaves.close()
            assert await stays.receive() == "a client disconnected"

    async def test_a_block_that_is_cancelled_from_within_closes_first(self, app):
        notes, go = Notes(), anyio.Event()

        @app.websocket_route("/")
        async def view(ws):
            with anyio.CancelScope() as scope:
                async with ws:
                    scope.cancel()
                    await anyio.sleep_forever()
            notes.append((ws.closed, ws.close_code))
            await go.wait()

        async with app.test_client() as client, client.websocket("/") as ws:
            assert await closed(ws) == (1000, "")
            assert await notes.wait() == [(True, 1000)]
            go.set()
