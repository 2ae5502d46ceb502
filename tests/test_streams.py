"""Streams end with their source, stop when the client disconnects, and never look complete when they are not."""

import asyncio
import logging
import socket
import struct
from contextlib import asynccontextmanager
from functools import partial

import anyio
import pytest
from anyio.lowlevel import checkpoint
from worker_here import serving

from microws.app import App
from microws.datastructures import Headers
from microws.event_stream import EventStream, ServerSentEvent
from microws.streams import StreamingResponse
from microws.testing import TestClient

pytestmark = pytest.mark.anyio


async def numbers(count):
    for number in range(count):
        yield str(number)


class Source:
    """An endless source that counts its items and notes its end."""

    def __init__(self, *, pause=checkpoint):
        self.given = 0
        self.closed = anyio.Event()
        self._pause = pause

    async def __aiter__(self):
        try:
            while True:
                self.given += 1
                yield str(self.given)
                await self._pause()
        finally:
            self.closed.set()


# The start of each event stream.
OPENING = b":\n"


class Server:
    """
    The other end of one response.

    ``receive`` waits until the client leaves; ``send`` keeps the bytes, or waits at the first chunk while ``stalled``.
    """

    def __init__(self, *, method="GET", stalled=False):
        self.scope = {"type": "http", "method": method, "path": "/", "headers": []}
        self.events = []
        self.leaves = anyio.Event()
        self.changed = anyio.Event()
        self.stalled = stalled

    async def receive(self):
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, event):
        await checkpoint()
        self.events.append(event)
        self.changed.set()
        self.changed = anyio.Event()
        if self.stalled and event.get("body", b"") not in (b"", OPENING):
            await anyio.sleep_forever()

    @property
    def body(self):
        return b"".join(event.get("body", b"") for event in self.events)

    @property
    def complete(self):
        return self.events[-1].get("more_body") is False or "more_body" not in self.events[-1]

    async def wait_for(self, body):
        with anyio.fail_after(5):
            while body not in self.body:
                await self.changed.wait()

    async def run(self, response):
        with anyio.fail_after(5):
            await response(self.scope, self.receive, self.send)


async def send(response, *, method="GET"):
    async with TestClient(response, lifespan=False) as client:
        return await client.request(method, "/")


class TestStreaming:
    async def test_chunks_and_the_end_are_sent(self):
        response = StreamingResponse(numbers(3), 201, {"x-a": "1"}, content_type="text/plain")
        sent = await send(response)
        assert (sent.status, sent.body, sent.headers["x-a"]) == (201, b"012", "1")
        assert sent.headers["content-type"] == "text/plain"
        assert "content-length" not in sent.headers

    @pytest.mark.parametrize("kind", [list, tuple, iter])
    async def test_a_plain_iterable_is_a_source(self, kind):
        source = kind(["ü", b"\xff", bytearray(b"a"), memoryview(b"b")])
        assert (await send(StreamingResponse(source))).body == b"\xc3\xbc\xffab"

    async def test_a_generator_runs_in_threads_and_may_block(self):
        def generate():
            yield anyio.from_thread.run(partial(anyio.sleep, 0)) or "a"

        assert (await send(StreamingResponse(generate()))).body == b"a"

    def test_a_bad_source_status_or_header_is_refused(self):
        for source in ("text", b"bytes", {"a": 1}, None, 1):
            with pytest.raises(TypeError, match="expected an iterator"):
                StreamingResponse(source)
        with pytest.raises(ValueError, match="200 to 599"):
            StreamingResponse([], 101)
        with pytest.raises(ValueError, match="content-length"):
            StreamingResponse([], headers={"content-length": "1"})

    @pytest.mark.parametrize(("kind", "opening"), [(StreamingResponse, b""), (EventStream, OPENING)])
    async def test_headers_leave_before_the_first_chunk(self, kind, opening):
        source = Source(pause=anyio.sleep_forever)
        server = Server()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, kind(source))
            await server.wait_for(b"1")
            # Some servers hold the headers back until something follows them.
            assert server.events[1] == {"type": "http.response.body", "body": opening, "more_body": True}
            server.leaves.set()

    @pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 204), ("GET", 304)])
    async def test_a_response_without_a_body_closes_its_source_unstarted(self, method, status):
        class File(list):
            closed = False

            def close(self):
                self.closed = True

            def __iter__(self):
                raise AssertionError("nothing is to be read")

        class Slow:
            closed = False

            def __aiter__(self):
                raise AssertionError("nothing is to be read")

            async def aclose(self):
                await anyio.sleep(0.01)
                self.closed = True

        file, slow = File(), Slow()
        for source in (file, numbers(3), Source(), slow):
            sent = await send(StreamingResponse(source, status), method=method)
            assert (sent.status, sent.body) == (status, b"")
        assert file.closed
        assert slow.closed


class TestErrors:
    @pytest.mark.parametrize("kind", [StreamingResponse, EventStream])
    @pytest.mark.parametrize("in_thread", [False, True])
    @pytest.mark.parametrize(
        "error", [LookupError("lost"), ConnectionResetError("the database's"), ExceptionGroup("own", [LookupError()])]
    )
    async def test_an_error_of_the_source_is_raised_and_the_response_has_no_end(self, kind, error, in_thread):
        def broken():
            yield "a"
            raise error from KeyError("why")

        async def async_broken():
            for item in broken():
                yield item

        server = Server()
        with pytest.raises(type(error)) as caught:
            await server.run(kind(broken() if in_thread else async_broken()))
        assert caught.value is error
        assert isinstance(caught.value.__cause__, KeyError)
        assert b"a" in server.body
        assert not server.complete

    async def test_a_value_that_cannot_be_sent_is_refused(self):
        with pytest.raises(TypeError, match="EventStream sends values as JSON"):
            await Server().run(StreamingResponse([{"a": 1}]))
        with pytest.raises(TypeError, match="object"):
            await Server().run(EventStream([object()]))


@pytest.mark.parametrize("kind", [StreamingResponse, EventStream])
class TestLeaving:
    @pytest.mark.parametrize("pause", [checkpoint, anyio.sleep_forever])
    async def test_a_source_ends_when_the_client_disconnects(self, kind, pause):
        for method, options in (("GET", {}), ("POST", {"content": b"unread"})):
            source = Source(pause=pause)
            async with TestClient(kind(source), lifespan=False) as client:
                async with client.stream(method, "/", **options) as response:
                    assert await anext(response.iter_bytes())
                assert source.closed.is_set()

    async def test_a_source_that_never_waits_ends_when_the_client_disconnects(self, kind):
        async def never():
            pass

        source = Source(pause=never)
        server = Server()

        async def send_at_once(event):
            server.events.append(event)
            if len(server.events) == 10:
                server.leaves.set()

        with anyio.fail_after(5):
            await kind(source)(server.scope, server.receive, send_at_once)
        assert source.closed.is_set()
        assert not server.complete

    async def test_an_oserror_of_send_means_that_the_client_disconnected(self, kind):
        source = Source()
        server = Server()

        async def broken_send(event):
            await server.send(event)
            if event.get("body"):
                raise BrokenPipeError

        with anyio.fail_after(5):
            await kind(source)(server.scope, server.receive, broken_send)
        assert source.closed.is_set()
        assert not server.complete

    async def test_a_source_may_hold_a_task_group_of_its_own(self, kind):
        async def source():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                yield "a"
                yield "b"
                tasks.cancel_scope.cancel()

        server = Server()
        await server.run(kind(source()))
        assert server.complete
        stalled = Server(stalled=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stalled.run, kind(source()))
            await stalled.wait_for(b"a")
            stalled.leaves.set()
        assert not stalled.complete

    async def test_an_error_while_cleaning_up_is_raised(self, kind):
        async def source():
            async with anyio.create_task_group():
                try:
                    yield "a"
                finally:
                    raise LookupError("lost")

        server = Server()

        async def leaving_send(event):
            await server.send(event)
            if event.get("body"):
                raise BrokenPipeError

        with pytest.raises(ExceptionGroup) as caught:
            await kind(source())(server.scope, server.receive, leaving_send)
        assert caught.group_contains(LookupError, match="lost")
        assert not caught.group_contains(GeneratorExit)

    @pytest.mark.parametrize("when", ["within", "before"])
    async def test_a_generator_in_a_thread_is_started_and_closed(self, kind, when):
        steps = []

        def source():
            try:
                steps.append("begins")
                while True:
                    yield "a"
            finally:
                steps.append("finally")

        server = Server()
        if when == "before":
            server.leaves.set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, kind(source()))
            if when == "within":
                await server.wait_for(b"a")
                server.leaves.set()
        assert steps == ["begins", "finally"]

    async def test_a_slow_client_makes_the_source_wait(self, kind):
        source = Source()
        server = Server(stalled=True)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, kind(source))
            await server.wait_for(b"1")
            await anyio.wait_all_tasks_blocked()
            assert source.given == 1
            server.leaves.set()


class Cleaning:
    """A source that waits in its ``finally`` and in an ``async with`` block, and notes each step."""

    def __init__(self, kind):
        self.steps = []
        self.waits = anyio.Event()
        self.cleaned = anyio.Event()
        self._kind = kind

    def __aiter__(self):
        return getattr(self, self._kind)()

    @asynccontextmanager
    async def resource(self):
        try:
            yield
        finally:
            await checkpoint()
            self.steps.append("exit")
            self.cleaned.set()

    async def waiting(self):
        async with self.resource():
            try:
                self.waits.set()
                await anyio.sleep_forever()
                yield "never"
            finally:
                await anyio.sleep(0.01)
                self.steps.append("finally")

    async def giving(self):
        async with self.resource():
            try:
                while True:
                    self.waits.set()
                    yield "x"
            finally:
                await anyio.sleep(0.01)
                self.steps.append("finally")

    async def in_a_group(self):
        async with self.resource(), anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            try:
                self.waits.set()
                await anyio.Event().wait()
                yield "never"
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.01)
                self.steps.append("finally")


@pytest.mark.parametrize("response", [StreamingResponse, EventStream])
@pytest.mark.parametrize("kind", ["waiting", "giving", "in_a_group"])
class TestCleaningUp:
    """Wherever a source is when it is cancelled or closed, its ``finally`` and ``async with`` may wait."""

    @pytest.mark.parametrize("when", ["before the first chunk", "within"])
    async def test_when_the_client_disconnects(self, response, kind, when):
        source = Cleaning(kind)
        server = Server()
        if when != "within":
            server.leaves.set()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, response(source))
            if when == "within":
                await source.waits.wait()
                server.leaves.set()
        assert source.steps == ["finally", "exit"]
        assert when != "within" or not server.complete

    async def test_when_the_headers_cannot_be_sent(self, response, kind):
        async def broken_send(event):
            raise BrokenPipeError

        source = Cleaning(kind)
        server = Server()
        with anyio.fail_after(5), pytest.raises(BrokenPipeError):
            await response(source)(server.scope, server.receive, broken_send)
        assert source.steps == ["finally", "exit"]

    async def test_when_the_response_is_cancelled(self, response, kind):
        source = Cleaning(kind)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Server().run, response(source))
            await source.waits.wait()
            tasks.cancel_scope.cancel()
        assert source.steps == ["finally", "exit"]

    async def test_when_its_task_is_cancelled_as_asyncio_does(self, response, kind, anyio_backend_name):
        if anyio_backend_name != "asyncio":
            return
        source = Cleaning(kind)
        task = asyncio.create_task(Server().run(response(source)))
        await source.waits.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.steps == ["finally", "exit"]

    async def test_when_the_client_resets_the_connection(self, response, kind):
        app = App()
        called = anyio.Event()
        left = anyio.Event()
        sources = []

        @app.get("/{when}")
        async def view(when):
            sources.append(Cleaning(kind))
            called.set()
            if when == "before":
                await left.wait()
            return response(sources[-1])

        async with serving(app) as served:
            for when in "before", "within":
                client = socket.create_connection(("127.0.0.1", served.port))
                client.sendall(b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n" % when.encode())
                await called.wait()
                called = anyio.Event()
                if when == "within":
                    await sources[-1].waits.wait()
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                left.set()
                await sources[-1].cleaned.wait()
        assert [source.steps for source in sources] == [["finally", "exit"]] * 2


class TestLimits:
    async def test_cleaning_up_after_close_timeout_is_cancelled_and_logged(self, caplog):
        app = App(close_timeout=0.01)

        @app.get("/slow")
        async def view():
            async def source():
                try:
                    yield "x"
                    await anyio.sleep_forever()
                finally:
                    await anyio.sleep_forever()

            return StreamingResponse(source())

        async with app.test_client() as client, client.stream("GET", "/slow") as response:
            assert await anext(response.iter_bytes())
        assert caplog.record_tuples == [
            ("microws", logging.WARNING, "'/slow': the source of a stream did not clean up within 0.01 s")
        ]

    async def test_a_source_that_swallows_its_cancellation_is_closed_later(self):
        steps = []

        async def source():
            try:
                while True:
                    steps.append("waits")
                    try:
                        await anyio.sleep_forever()
                    except anyio.get_cancelled_exc_class():
                        steps.append("goes on")
                    yield "x"
            finally:
                steps.append("finally")

        server = Server()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.run, StreamingResponse(source()))
            await anyio.wait_all_tasks_blocked()
            server.leaves.set()
        assert steps == ["waits", "goes on", "finally"]

    async def test_a_time_out_inside_the_source_does_not_end_it(self):
        async def source():
            for number in range(3):
                with anyio.move_on_after(0.001):
                    await anyio.sleep_forever()
                yield str(number)

        server = Server()
        await server.run(StreamingResponse(source()))
        assert (server.body, server.complete) == (b"012", True)

    async def test_a_slow_cleanup_does_not_hide_an_error(self, monkeypatch):
        async def source():
            try:
                yield object()
            finally:
                await anyio.sleep_forever()

        monkeypatch.setattr("microws.streams._CLOSE_TIMEOUT", 0.01)
        server = Server()
        with pytest.raises(TypeError, match="got object"):
            await server.run(StreamingResponse(source()))
        assert not server.complete


class TestEventStream:
    async def test_headers_turn_caches_and_proxy_buffers_off_unless_replaced(self):
        headers = (await send(EventStream(numbers(0)))).headers
        assert headers["content-type"] == "text/event-stream"
        assert headers["cache-control"] == "no-store"
        assert headers["x-accel-buffering"] == "no"
        headers = EventStream([], headers=Headers([(b"cache-control", b"no-cache"), (b"x-a", b"1")])).headers
        assert (headers.getlist("cache-control"), headers["x-a"]) == (["no-cache"], "1")

    async def test_events_text_and_other_values_are_sent(self):
        async def source():
            yield ServerSentEvent("a\nb", event="e", id="1", retry=5)
            yield "text"
            yield {"json": ["ü", None]}
            yield None
            yield b"bytes"

        async with (
            TestClient(EventStream(source()), lifespan=False) as client,
            client.stream("GET", "/") as response,
        ):
            events = [event async for event in response.events()]
        assert [(event.event, event.data) for event in events] == [
            ("e", "a\nb"),
            ("message", "text"),
            ("message", '{"json":["ü",null]}'),
            ("message", "null"),
            ("message", "bytes"),
        ]
        assert (events[0].id, events[0].retry) == ("1", 5)

    async def test_silence_is_broken_by_comments_and_no_item_is_lost(self):
        items, source = anyio.create_memory_object_stream(10)
        server = Server()
        async with anyio.create_task_group() as tasks, items:
            tasks.start_soon(server.run, EventStream(source, keepalive=0.01))
            await server.wait_for(b": keepalive\n\n" * 2)
            items.send_nowait("one")
            await server.wait_for(b"data: one\n\n: keepalive\n\n")
            items.send_nowait("two")
            items.close()
        source.close()
        assert server.complete
        assert server.body.replace(b": keepalive\n\n", b"") == OPENING + b"data: one\n\ndata: two\n\n"

    async def test_a_comment_is_never_sent_during_an_event(self):
        server = Server()
        sending = []

        async def slow_send(event):
            assert not sending, "two sends at once"
            sending.append(event)
            try:
                await anyio.sleep(0.01)
            finally:
                # The end of the source cancels the send of a comment.
                sending.clear()
            await server.send(event)

        with anyio.fail_after(5):
            await EventStream(numbers(5), keepalive=0.005)(server.scope, server.receive, slow_send)
        events = server.body.replace(b": keepalive\n\n", b"")
        assert events == OPENING + b"".join(b"data: %d\n\n" % number for number in range(5))
        assert b"keepalive" not in (await send(EventStream(numbers(100)))).body

    @pytest.mark.parametrize("keepalive", [0, -1, float("nan")])
    def test_a_keepalive_of_0_or_less_is_refused(self, keepalive):
        with pytest.raises(ValueError, match="seconds above 0"):
            EventStream([], keepalive=keepalive)
