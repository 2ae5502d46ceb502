"""ASGIConnection on servers of every kind: order, limits, cancellation, and how each connection ends."""

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager, suppress

import anyio
import pytest
from asgi_client import DISCONNECT, ASGIClient, ClientDisconnected, connected, settle

from microws import App, WebSocketDisconnect
from microws.connection.tasks import AsyncioTasks

pytestmark = pytest.mark.anyio


def app_of(view, **options):
    """An app with one view, and small time-outs."""
    route = {name: options.pop(name) for name in ("subscribe", "gaps", "value_type") if name in options}
    app = App(**{"close_timeout": 0.05, "send_timeout": 5, **options})
    app.websocket_route("/", **route)(view)
    return app


def assert_nothing_is_left(app):
    statistics = app.hub.statistics()
    assert (statistics.topics, statistics.subscribers) == (0, 0)


@asynccontextmanager
async def no_task_is_left():
    """On asyncio, where a task could outlive the call."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        yield
        return
    before = asyncio.all_tasks()
    yield
    await settle()
    assert asyncio.all_tasks() <= before


@contextmanager
def note_end(ends):
    """Append the code and the reason of a ``WebSocketDisconnect``."""
    try:
        yield
    except WebSocketDisconnect as end:
        ends.append((end.code, end.reason))


async def serve(app, *, sent):
    """Serve a client that disconnects after it got ``sent`` events. Returns the client."""
    async with connected(app, ASGIClient()) as client:
        await client.wait_sent(sent)
        client.put(DISCONNECT)
    return client


async def sleep_forever_in(ws):
    async with ws:
        await anyio.sleep_forever()


class TestReading:
    @pytest.mark.parametrize(
        ("queue", "paused_at", "messages"),
        [(4, 4, [str(number) for number in range(100)]), (1000, 2, ["x" * (1 << 19)] * 10)],
        ids=["receive_queue", "1 MiB"],
    )
    async def test_reading_pauses_until_the_view_receives(self, queue, paused_at, messages):
        go, got = anyio.Event(), []

        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await ws.receive(timeout=0)
                await go.wait()
                got.extend([message async for message in ws])

        async with connected(app_of(view, receive_queue=queue), ASGIClient()) as client:
            await settle()
            client.put(*messages)
            await client.wait_for(lambda: client.taken >= 1 + paused_at)
            await settle()
            assert client.taken <= 1 + paused_at + 1
            client.put(DISCONNECT)
            go.set()
        assert got == messages

    async def test_messages_after_the_view_are_discarded_until_the_disconnect(self):
        async def view(ws):
            async with ws:
                pass

        app = app_of(view, receive_queue=4, subscribe="t", close_timeout=10)
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            await client.wait_sent(2)
            client.put(*["x"] * 1000, DISCONNECT)
        assert (client.texts, client.taken) == (["accept", "close 1000"], 1002)
        assert_nothing_is_left(app)

    async def test_close_timeout_starts_again_with_each_discarded_message(self):
        async def view(ws):
            await ws.accept()

        async with connected(app_of(view, close_timeout=1), ASGIClient()) as client:
            await client.wait_sent(2)
            for _ in range(12):
                client.put("x")
                await anyio.sleep(0.1)
            assert not client.has_ended
            client.put(DISCONNECT)
        assert client.taken == 14

    async def test_the_call_ends_close_timeout_after_an_unanswered_close(self):
        async def view(ws):
            await ws.accept()

        async with no_task_is_left(), connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(2)
        assert client.texts == ["accept", "close 1000"]

    async def test_a_cancelled_receive_passes_its_turn_to_the_next(self):
        got, first = [], anyio.CancelScope()

        async def give_up(ws):
            with first:
                await ws.receive()

        async def read(ws):
            got.extend([await ws.receive(), await ws.receive()])

        async def view(ws):
            async with ws, anyio.create_task_group() as tasks:
                tasks.start_soon(give_up, ws)
                await ws.send("ready")
                tasks.start_soon(read, ws)

        async with connected(app_of(view), ASGIClient()) as client:
            await settle()
            first.cancel()
            await settle()
            client.put("1", "2")
            await client.wait_sent(3)
            client.put(DISCONNECT)
        assert got == ["1", "2"]

    async def test_a_receive_cancelled_at_any_moment_loses_no_message(self):
        got = []

        async def view(ws):
            async with ws:
                while len(got) < 200:
                    with anyio.move_on_after(0.001 if len(got) % 3 else 0):
                        got.append(await ws.receive())
                    try:
                        got.append(await ws.receive(timeout=0.001 if len(got) % 2 else 0))
                    except TimeoutError:
                        pass

        async with connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(1)
            for n in range(200):
                client.put(str(n))
                for _ in range(n % 4):
                    await anyio.lowlevel.checkpoint()
            await client.wait_sent(2)
            client.put(DISCONNECT)
        assert got == [str(n) for n in range(200)]

    async def test_a_time_out_loses_nothing_if_the_server_s_receive_would(self):
        timed_out = anyio.Event()

        class Forgetful(ASGIClient):
            async def receive(self):
                event = await super().receive()
                if event["type"] == "websocket.receive":
                    await timed_out.wait()
                return event

        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await ws.receive(timeout=0.01)
                timed_out.set()
                assert await ws.receive(timeout=5) == "1"

        async with connected(app_of(view), Forgetful()) as client:
            client.put("1")
            await client.wait_sent(2)
            assert client.texts == ["accept", "close 1000"]
            client.put(DISCONNECT)

    @pytest.mark.parametrize("message", ["€€€€", "x" * 11, b"x" * 11, "\U0001f600" * 3])
    async def test_a_message_over_the_limit_closes_with_1009_unseen(self, message):
        async def view(ws):
            async with ws:
                for expected in ("x" * 10, "€€€", b"x" * 10):
                    assert await ws.receive() == expected
                    await ws.send("ok")
                with pytest.raises(WebSocketDisconnect) as caught:
                    await ws.receive()
                assert (caught.value.code, caught.value.reason) == (1009, "message over 10 bytes")

        async with connected(app_of(view, max_message_size=10, value_type="auto"), ASGIClient()) as client:
            client.put("x" * 10, "€€€", b"x" * 10)
            await client.wait_sent(4)
            client.put(message, "never seen")
            await client.wait_sent(5)
            client.put(DISCONNECT)
        assert client.error is None
        assert client.texts == ["accept", "ok", "ok", "ok", "close 1009 message over 10 bytes"]

    @pytest.mark.parametrize("sends", [True, False])
    async def test_a_view_that_sends_or_subscribes_and_never_receives_is_1008(self, sends):
        ended = []

        async def view(ws):
            await ws.subscribe("ticks")
            async with ws:
                try:
                    while sends:
                        await ws.send("tick")
                        await anyio.sleep(0.01)
                    await anyio.sleep_forever()
                finally:
                    ended.append(ws.close_code)
                    client.notify()

        app = app_of(view, receive_queue=2, send_timeout=0.05)
        async with app.running(), connected(app, ASGIClient()) as client:
            client.put("1", "2", "3")
            with anyio.fail_after(5):
                while not ended or client.texts[-1] == "tick":
                    await app.publish("ticks", "tick")
                    await anyio.sleep(0.01)
            client.put(DISCONNECT)
        assert ended == [1008]
        assert client.texts[-1] == "close 1008 messages are not read here"

    async def test_a_view_that_pauses_for_long_may_still_receive_everything(self):
        got, go = [], anyio.Event()

        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await ws.receive(timeout=0)
                await go.wait()
                got.extend([message async for message in ws])

        async with connected(app_of(view, receive_queue=2, send_timeout=0.02), ASGIClient()) as client:
            await settle()
            client.put("1", "2", "3", {"type": "websocket.unheard of"}, DISCONNECT)
            await client.wait_for(lambda: client.taken >= 3)
            await anyio.sleep(0.1)
            go.set()
        assert got == ["1", "2", "3"]

    async def test_what_receive_raises_reaches_the_view_after_earlier_messages(self):
        got = []

        async def view(ws):
            async with ws:
                while len(got) < 3:
                    try:
                        got.append(await ws.receive())
                    except LookupError as error:
                        client.receive_raises = None
                        got.append(error)
                    client.notify()
                await ws.receive()

        async with no_task_is_left(), connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(1)
            client.put("1")
            await settle()
            client.receive_raises = failure = LookupError("of middleware")
            client.notify()
            await client.wait_for(lambda: failure in got)
            client.put("2")
            await client.wait_for(lambda: len(got) == 3)
            client.receive_raises = failure
            client.notify()
            await client.wait_ended()
        assert got == ["1", failure, "2"]
        assert client.sent[1]["code"] == 1011
        assert client.error is failure

    async def test_a_receive_that_fails_ends_a_view_that_does_not_receive(self, caplog):
        async with no_task_is_left(), connected(app_of(sleep_forever_in, subscribe="t"), ASGIClient()) as client:
            await client.wait_sent(1)
            client.receive_raises = RuntimeError("the server is broken")
            client.notify()
            await client.wait_ended()
        assert "the server's receive failed" in caplog.text


class TestTheHandshake:
    @pytest.mark.parametrize("denial", [True, False])
    async def test_nothing_published_is_sent_around_a_rejection(self, denial):
        async def view(ws):
            await ws.app.publish("t", "x")
            await settle()
            await ws.reject(418)
            await ws.app.publish("t", "y")
            await settle()

        app = app_of(view, subscribe="t")
        async with no_task_is_left(), connected(app, ASGIClient(denial=denial)) as client:
            pass
        assert client.error is None
        assert client.texts == ([418, "http.response.body"] if denial else ["close 3418"])
        assert_nothing_is_left(app)

    async def test_accept_timeout_ends_a_stalled_accept_and_sends_nothing_published(self):
        async def view(ws):
            await ws.app.publish("t", "x")
            await ws.accept()

        client = ASGIClient()
        client.stall()
        app = app_of(view, subscribe="t", accept_timeout=0.05)
        async with connected(app, client):
            await client.wait_for(lambda: client.was_cancelled)
            client.resume()
        assert client.texts in ([503, "http.response.body"], [])
        assert_nothing_is_left(app)

    async def test_a_cancelled_accept_may_be_called_again(self):
        async def view(ws):
            with anyio.move_on_after(0):
                await ws.accept()
            assert not ws.accepted
            async with ws:
                assert ws.accepted

        client = await serve(app_of(view), sent=2)
        assert client.texts == ["accept", "close 1000"]

    async def test_a_handshake_is_answered_by_one_task(self):
        async def view(ws):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ws.accept)
                await settle()
                for answer in (ws.accept, ws.reject):
                    with pytest.raises(RuntimeError, match="is being answered already"):
                        await answer()
                with pytest.raises(RuntimeError, match=r"ws\.send\(\) before the handshake is accepted"):
                    await ws.send("x")
                client.resume()

        client = ASGIClient()
        client.stall()
        async with connected(app_of(view), client):
            await client.wait_sent(2)
            client.put(DISCONNECT)
        assert client.error is None
        assert client.texts == ["accept", "close 1000"]

    async def test_accept_raises_if_the_client_disconnects_while_it_waits(self):
        codes = []

        async def view(ws):
            try:
                await ws.accept()
            except WebSocketDisconnect as end:
                codes.append((end.code, ws.accepted))

        client = ASGIClient()
        client.stall()
        async with no_task_is_left(), connected(app_of(view, close_timeout=5), client):
            client.put(DISCONNECT)
        assert codes == [(1001, False)]

    @pytest.mark.parametrize("denial", [True, False])
    async def test_a_rejection_that_cannot_be_sent_still_ends_the_call(self, denial):
        async def view(ws):
            await ws.reject(400)
            assert ws.close_code == 3400

        stalled, gone, left = ASGIClient(denial=denial), ASGIClient(denial=denial), ASGIClient(denial=denial)
        stalled.stall()
        gone.raises = ClientDisconnected()
        gone.put(DISCONNECT)
        async with no_task_is_left(), connected(app_of(view), stalled, gone, left):
            pass
        assert (stalled.texts, gone.texts) == ([], [])
        assert stalled.error is None
        assert gone.error is None

    async def test_accept_raises_and_reject_returns_after_a_disconnect(self):
        codes = []

        async def view(ws):
            await left.wait()
            await ws.close()
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.accept()
            codes.append((caught.value.code, caught.value.reason, ws.closed))
            await ws.close()
            await ws.reject(400)
            assert ws.close_code == 1001

        left = anyio.Event()
        async with connected(app_of(view, close_timeout=5), ASGIClient()) as client:
            client.put(DISCONNECT)
            await client.wait_for(lambda: client.taken == 2)
            left.set()
        assert client.error is None
        assert codes == [(1001, "bye", True)]
        assert client.texts == []

    @pytest.mark.parametrize("answer", ["accept", "reject"])
    async def test_accept_raises_1013_if_the_outbox_overflowed_before_it(self, answer):
        ends = []

        async def view(ws):
            await ws.subscribe("t")
            for n in range(3):
                await ws.app.publish("t", n)
            if answer == "reject":
                await ws.reject(418)
            with pytest.raises(WebSocketDisconnect) as caught:
                await ws.accept()
            ends.append((caught.value.code, caught.value.reason))

        app = app_of(view)
        app.topic("t", queue=2)
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            pass
        assert ends == [(1013, "too slow")]
        assert client.error is None
        assert client.texts == ["close 1013 too slow"]
        assert_nothing_is_left(app)


class TestTheEndSeen:
    async def test_a_sending_view_ends_if_the_server_s_send_never_waits_nor_raises(self):
        ends = []

        async def view(ws):
            async with ws:
                with note_end(ends):
                    while True:
                        await ws.send("x")

        client = ASGIClient(suspends=False)
        client.put(DISCONNECT)
        async with connected(app_of(view), client):
            pass
        assert ends == [(1001, "bye")]

    async def test_a_disconnect_ends_a_send_that_the_server_never_finishes(self):
        ends = []

        async def view(ws):
            async with ws:
                with note_end(ends):
                    for _ in range(20):
                        await ws.send("x")

        async with no_task_is_left(), connected(app_of(view, close_timeout=5), ASGIClient()) as client:
            await client.wait_sent(10)
            client.stall()
            client.put(DISCONNECT)
        assert ends == [(1001, "bye")]

    async def test_two_ends_at_once_report_the_first(self):
        ends = []

        async def view(ws):
            async with ws:
                await ws.receive()
                try:
                    await ws.send("x")
                except WebSocketDisconnect as end:
                    ends.append(end.code)

        async with (
            no_task_is_left(),
            connected(app_of(view, close_timeout=5, max_message_size=10), ASGIClient()) as client,
        ):
            await client.wait_sent(1)
            client.stall()
            client.put("go")
            await settle()
            client.put("x" * 11, DISCONNECT)
        assert ends == [1009]
        assert client.error is None

    async def test_messages_from_before_the_disconnect_are_still_received(self):
        got = []

        async def view(ws):
            async with ws:
                with pytest.raises(TimeoutError):
                    await ws.receive(timeout=0)
                await seen.wait()
                with pytest.raises(WebSocketDisconnect):
                    await ws.send("x")
                got.extend([message async for message in ws])

        seen = anyio.Event()
        async with connected(app_of(view, close_timeout=5), ASGIClient()) as client:
            await settle()
            client.put("1", "2", DISCONNECT)
            await client.wait_for(lambda: client.taken == 1 + 3)
            seen.set()
        assert got == ["1", "2"]

    async def test_a_send_that_fails_in_one_task_ends_the_wait_of_another(self):
        ends = []

        async def view(ws):
            async with ws, anyio.create_task_group() as tasks:

                async def read():
                    with note_end(ends):
                        await ws.receive()

                tasks.start_soon(read)
                await go.wait()
                with note_end(ends):
                    await ws.send("x")

        go = anyio.Event()
        async with no_task_is_left(), connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(1)
            await settle()
            client.raises = ClientDisconnected()
            go.set()
        assert ends == [(1006, "")] * 2


def test_a_server_that_swallows_a_cancellation_leaves_none_pending():
    pending = []

    class Swallowing(ASGIClient):
        async def send(self, event):
            with suppress(asyncio.CancelledError):
                await super().send(event)

    async def view(ws):
        async with ws:
            await ws.receive()
            with pytest.raises(WebSocketDisconnect):
                await ws.send("x")
            pending.append(asyncio.current_task().cancelling())
            with pytest.raises(WebSocketDisconnect):
                await ws.receive()

    async def main():
        async with connected(app_of(view, close_timeout=5), Swallowing()) as client:
            await client.wait_sent(1)
            client.stall()
            client.put("go", DISCONNECT)

    asyncio.run(main())
    assert pending == [0]


class TestSending:
    async def test_a_client_that_takes_nothing_is_closed_with_1013_after_send_timeout(self):
        ends = []

        async def view(ws):
            async with ws:
                await ws.receive()
                with note_end(ends):
                    await ws.send("1")
                    client.notify()

        async with connected(app_of(view, send_timeout=0.05, close_timeout=5), ASGIClient()) as client:
            await client.wait_sent(1)
            client.stall()
            client.put("go")
            await client.wait_for(lambda: ends)
            client.resume()
            await client.wait_sent(2)
            client.put(DISCONNECT)
        assert ends == [(1013, "too slow")]
        assert client.texts == ["accept", "close 1013 too slow"]

    async def test_send_timeout_starts_again_with_each_send(self):
        async def view(ws):
            async with ws:
                for _ in range(30):
                    await ws.send("x")

        async with connected(app_of(view, send_timeout=0.24), ASGIClient()) as client:
            for n in range(5):
                await client.wait_sent(2 + n)
                client.stall()
                await anyio.sleep(0.06)
                client.resume()
            await client.wait_sent(32)
            client.put(DISCONNECT)
        assert client.texts[-1] == "close 1000"

    async def test_a_cancelled_send_does_not_affect_the_next(self):
        async def view(ws):
            async with ws:
                await ws.receive()
                with anyio.move_on_after(0.01):
                    await ws.send("given up")
                client.resume()
                await ws.send("next")

        async with connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(1)
            client.stall()
            client.put("go")
            await client.wait_sent(3)
            client.put(DISCONNECT)
        assert client.texts == ["accept", "next", "close 1000"]

    async def test_the_call_ends_though_the_client_never_reads_again(self):
        ends = []

        async def view(ws):
            async with ws:
                with pytest.raises(WebSocketDisconnect) as caught:
                    await ws.receive()
                ends.append(caught.value.code)

        app = app_of(view, subscribe="t")
        app.topic("t", queue=2)
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            await client.wait_sent(1)
            client.stall()
            for n in range(10):
                await app.publish("t", n)
            assert app.hub.statistics().subscribers == 0
        assert ends == [1013]
        assert client.texts == ["accept"]

    @pytest.mark.parametrize(
        "texts",
        [
            [f"{n:07}" * 10000 for n in range(60)],
            # The last one would fit.
            ["a" * 900_000, "b" * 900_000, "c" * 900_000, "d"],
        ],
        ids=["equal sizes", "a small one last"],
    )
    async def test_sends_wait_for_room_in_the_order_of_their_calls(self, texts):
        async def view(ws):
            async with ws, anyio.create_task_group() as tasks:
                for text in texts:
                    tasks.start_soon(ws.send, text)
                    await settle()
                client.resume()
                await client.wait_sent(1 + len(texts))

        async with connected(app_of(view), ASGIClient()) as client:
            await client.wait_sent(1)
            client.stall()
            await client.wait_sent(2 + len(texts))
            client.put(DISCONNECT)
        assert client.texts == ["accept", *texts, "close 1000"]

    @pytest.mark.parametrize("error", [RuntimeError, ValueError])
    async def test_an_error_of_the_server_s_send_is_raised_in_the_view(self, error):
        raised = []

        async def view(ws):
            async with ws:
                await ws.receive()
                try:
                    await ws.send("x")
                except error as failure:
                    raised.append(failure)
                    raise

        app = app_of(view, subscribe="t")
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            await client.wait_sent(1)
            client.raises = error("the server is broken")
            client.put("go")
        assert raised == [client.raises]
        assert_nothing_is_left(app)

    async def test_a_failed_send_outside_the_view_ends_the_connection(self, caplog):
        ends = []

        async def view(ws):
            async with ws:
                try:
                    await ws.receive()
                except WebSocketDisconnect as end:
                    ends.append(end.code)

        app = app_of(view, subscribe="t")
        app.topic("t", overflow="drop_oldest")
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            await client.wait_sent(1)
            await settle()
            client.raises = RuntimeError("the server is broken")
            await app.publish("t", "x")
        assert ends == [1006]
        assert "the server's send failed" in caplog.text
        assert_nothing_is_left(app)


class TestClosing:
    async def test_pending_messages_are_sent_before_the_close(self):
        async def view(ws):
            async with ws:
                client.stall()
                for n in range(20):
                    await ws.app.publish("t", str(n))
                await settle()
                client.resume()
                await ws.close(4000, "done")

        async with connected(app_of(view, subscribe="t", close_timeout=5), ASGIClient()) as client:
            await client.wait_sent(22)
            client.put(DISCONNECT)
        assert client.texts == ["accept", *map(str, range(20)), "close 4000 done"]

    async def test_after_close_timeout_a_stalled_client_gets_nothing_more(self):
        async def view(ws):
            async with ws:
                for n in range(5):
                    await ws.app.publish("t", str(n))
                await client.wait_sent(3)
                client.stall()

        app = app_of(view, subscribe="t")
        async with no_task_is_left(), connected(app, ASGIClient()) as client:
            await client.wait_sent(3)
            await client.wait_ended()
            client.resume()
            await settle()
        assert client.texts == ["accept", "0", "1"] or client.texts == ["accept", "0", "1", "2"]

    async def test_a_client_that_sends_and_never_reads_is_dropped(self):
        async def view(ws):
            async with ws:
                await ws.app.publish("t", "never taken")

        client = ASGIClient()
        async with no_task_is_left(), connected(app_of(view, subscribe="t"), client):
            await client.wait_sent(1)
            client.stall()
            with anyio.fail_after(5):
                while not client.has_ended:
                    client.put("x")
                    await anyio.sleep(0.01)

    @pytest.mark.parametrize("waiting", [0, 3])
    async def test_a_close_that_is_cancelled_midway_still_sends_the_close(self, waiting):
        async def view(ws):
            await ws.accept()
            client.stall()
            for n in range(waiting):
                await ws.app.publish("t", str(n))
            with anyio.CancelScope() as scope:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(ws.close, 4000, "done")
                    await settle()
                    scope.cancel()
            assert ws.closed
            client.resume()
            await client.wait_sent(waiting + 2)

        async with connected(app_of(view, subscribe="t", close_timeout=5), ASGIClient()) as client:
            await client.wait_sent(waiting + 2)
            client.put(DISCONNECT)
        assert client.texts == ["accept", *map(str, range(waiting)), "close 4000 done"]

    async def test_a_close_in_a_helper_is_sent_if_the_view_returns_with_it(self):
        async def view(ws):
            async def end():
                await ws.close(4000, "done")

            async with ws:
                ws.start_soon(end)
                async for _ in ws:
                    pass

        client = await serve(app_of(view, close_timeout=5), sent=2)
        assert client.texts == ["accept", "close 4000 done"]

    async def test_a_failing_helper_before_accept_refuses_the_handshake(self):
        async def view(ws):
            async def fail():
                raise KeyError

            ws.start_soon(fail)
            await settle()
            assert ws.closed

        async with no_task_is_left(), connected(app_of(view), ASGIClient()) as client:
            pass
        (close,) = client.texts
        assert close.startswith("close 1011 internal error, error id ")

    @pytest.mark.parametrize("has_run", [True, False])
    async def test_a_helper_ends_with_the_view_while_the_client_stays(self, has_run):
        ended = anyio.Event()

        async def view(ws):
            async def helper():
                try:
                    await anyio.sleep_forever()
                finally:
                    ended.set()

            await ws.accept()
            ws.start_soon(helper)
            if has_run:
                await anyio.lowlevel.checkpoint()
            else:
                ended.set()

        async with no_task_is_left(), connected(app_of(view, close_timeout=30), ASGIClient()) as client:
            await client.wait_sent(2)
            with anyio.fail_after(5):
                await ended.wait()
            assert not client.has_ended
            client.put(DISCONNECT)

    async def test_nothing_can_be_started_or_sent_after_the_call(self):
        kept = []

        async def view(ws):
            kept.append(ws)
            await ws.reject(400)

        async with no_task_is_left(), connected(app_of(view), ASGIClient()):
            pass
        (ws,) = kept
        with pytest.raises(RuntimeError, match="has ended"):
            ws.start_soon(anyio.sleep_forever)
        for call in (ws.receive(timeout=1), ws.receive(), ws.send("x"), ws.subscribe("t")):
            with pytest.raises(WebSocketDisconnect):
                await call
        await ws.close()


class TestDeadlines:
    async def test_the_server_s_task_is_not_cancelled_after_the_view(self):
        went_on = []

        async def view(ws):
            await ws.accept()
            await ended.wait()

        ended = anyio.Event()
        app = app_of(view)

        async def server(scope, receive, send):
            await app(scope, receive, send)
            await anyio.sleep(0.3)
            went_on.append(True)

        async with connected(server, ASGIClient()) as client:
            await client.wait_sent(1)
            client.put(DISCONNECT)
            ended.set()
        assert went_on == [True]

    async def test_the_server_s_task_is_not_cancelled_if_a_helper_fails(self):
        went_on = []

        async def view(ws):
            async def fail():
                raise KeyError

            await ws.accept()
            ws.start_soon(fail)
            await client.until(lambda: ws.closed)

        app = app_of(view, close_timeout=0.2)

        async def server(scope, receive, send):
            with pytest.raises(KeyError):
                await app(scope, receive, send)
            went_on.append(True)

        async with connected(server, ASGIClient()) as client:
            await client.wait_sent(2)
            for _ in range(10):
                client.put("x")
                await anyio.sleep(0.05)
            client.put(DISCONNECT)
        assert went_on == [True]

    async def test_an_overflow_cancels_a_view_that_does_not_notice_it(self):
        cleaned = []

        async def view(ws):
            async with ws:
                try:
                    await anyio.sleep_forever()
                finally:
                    cleaned.append(ws.close_code)
                    client.notify()

        app = app_of(view, subscribe="t", value_type="json")
        app.topic("t", queue=1)
        async with connected(app, ASGIClient()) as client:
            await client.wait_sent(1)
            client.stall()
            for _ in range(5):
                await app.publish("t", "x")
            await client.wait_for(lambda: cleaned)
            client.resume()
            client.put(DISCONNECT)
        assert cleaned == [1013]


def test_event_loops_in_two_threads_have_one_clock_each():
    clocks, alternate = [], threading.Barrier(2)

    async def connect():
        tasks = []
        for _ in range(20):
            alternate.wait(5)
            tasks.append(AsyncioTasks(asyncio.get_running_loop(), {}, 10))
        clocks.append({one._deadlines for one in tasks})
        for one in tasks:
            one.end()

    threads = [threading.Thread(target=asyncio.run, args=(connect(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert [len(one) for one in clocks] == [1, 1]
    assert clocks[0] != clocks[1]


async def never_accept(ws):
    await anyio.sleep_forever()


async def only_accept(ws):
    await ws.accept()


async def receive_once(ws):
    async with ws:
        await ws.receive()


async def receive_and_send(ws):
    async with ws:
        await ws.receive()
        await ws.send("x")


async def read_in_helpers(ws):
    async with ws:
        for _ in range(2):
            ws.start_soon(ws.receive)
        await anyio.sleep_forever()


@pytest.mark.parametrize(
    ("view", "sent", "stalled", "messages"),
    [
        pytest.param(never_accept, 0, False, [], id="before the accept"),
        pytest.param(receive_once, 1, False, [], id="receiving"),
        pytest.param(receive_once, 1, True, [], id="receiving, stalled"),
        pytest.param(sleep_forever_in, 1, False, [], id="waiting for something else"),
        pytest.param(sleep_forever_in, 1, True, [], id="waiting for something else, stalled"),
        pytest.param(receive_and_send, 1, True, ["go"], id="sending"),
        pytest.param(receive_once, 1, True, ["go"], id="closing"),
        pytest.param(only_accept, 2, False, [], id="after the view"),
        pytest.param(read_in_helpers, 1, False, [], id="with helpers"),
    ],
)
async def test_a_cancellation_by_the_server_ends_everything_at_once(view, sent, stalled, messages):
    app = app_of(view, subscribe="t", close_timeout=30, send_timeout=30, accept_timeout=30)
    async with app.running(), no_task_is_left(), connected(app, ASGIClient()) as client:
        await client.wait_sent(sent)
        if stalled:
            client.stall()
        await app.publish("t", "x")
        client.put(*messages)
        await settle()
        client.cancel()
        with anyio.fail_after(1):
            await client.until(lambda: client.has_ended)
    assert client.error is None
    assert_nothing_is_left(app)
