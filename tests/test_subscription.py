"""Topics read by the app itself: as a queue, and as server-sent events."""

from base64 import b64encode
from contextlib import asynccontextmanager

import anyio
import pytest

from microws import App, EventStream, Overflow
from microws.event_stream import ServerSentEvent

pytestmark = pytest.mark.anyio


@pytest.fixture
async def app():
    app = App()
    async with app.running():
        yield app


async def take(source, count):
    with anyio.fail_after(5):
        return [await anext(source) for _ in range(count)]


class TestQueues:
    async def test_messages_of_all_topics_arrive_in_order_as_they_were_published(self, app):
        values = ["text", b"\0bytes", {"a": [1, None]}, 7, None, ""]
        async with app.subscribe("t", "u") as messages:
            for n, value in enumerate(values):
                assert (await app.publish("tu"[n % 2], value)).subscribers == 1
            assert await take(messages, len(values)) == values

    async def test_topic_names_the_topic_of_the_last_message(self, app):
        app.topic("t", queue=2, overflow="drop_newest")
        async with app.subscribe("t", "u") as messages:
            assert messages.topic == ""
            for topic in "tuttt":
                await app.publish(topic, topic)
            for expected in "tut":
                assert (await take(messages, 1), messages.topic) == ([expected], expected)
            await app.publish("t", 1)
            with pytest.raises(Overflow):
                await take(messages, 1)
            assert await take(messages, 1) == [1]

    async def test_a_read_waits_for_the_next_message(self, app):
        got = []

        async def read(messages):
            async for message in messages:
                got.append(message)
                if message == "end":
                    return

        with anyio.fail_after(5):
            async with app.subscribe("t") as messages, anyio.create_task_group() as tasks:
                tasks.start_soon(read, messages)
                await anyio.wait_all_tasks_blocked()
                await app.publish("t", 1)
                await anyio.wait_all_tasks_blocked()
                assert got == [1]
                await app.publish("t", "end")

    async def test_overflow_is_raised_once_after_the_queue_and_reading_goes_on(self, app):
        app.topic("t", queue=3)
        async with app.subscribe("t") as messages:
            for n in range(5):
                await app.publish("t", n)
            assert await take(messages, 3) == [0, 1, 2]
            with pytest.raises(Overflow, match="messages of t came faster than they were read"):
                await take(messages, 1)
            assert (await app.publish("t", 5)).subscribers == 1
            assert await take(messages, 1) == [5]
        assert app.hub.statistics().topics == 0

    @pytest.mark.parametrize(
        ("overflow", "expected"),
        [("drop_oldest", [Overflow, 3, 4]), ("drop_newest", [0, 1, Overflow, 5]), ("latest", [4])],
    )
    async def test_a_policy_that_drops_raises_overflow_where_the_loss_is(self, app, overflow, expected):
        app.topic("t", queue=2, overflow=overflow)
        got = []
        async with app.subscribe("t") as messages:
            for n in range(5):
                await app.publish("t", n)
            if overflow == "drop_newest":
                got += await take(messages, 2)
                await app.publish("t", 5)
            while len(got) < len(expected):
                try:
                    got += await take(messages, 1)
                except Overflow:
                    got.append(Overflow)
        assert got == expected

    async def test_leaving_the_block_unsubscribes_and_forgets_queue_and_overflow(self, app):
        app.topic("t", queue=1)
        subscription = app.subscribe("t")
        async with subscription:
            await app.publish("t", 1)
            await app.publish("t", 2)
        assert app.hub.statistics().topics == 0
        assert (await app.publish("t", 2)).subscribers == 0
        async with subscription as messages:
            with anyio.move_on_after(0):
                await anext(messages)
            await app.publish("t", 3)
            assert await take(messages, 1) == [3]

    async def test_a_read_before_the_block_or_at_its_end_raises(self, app):
        errors = []

        async def read(messages):
            with pytest.raises(RuntimeError) as caught:
                await anext(messages)
            errors.append(str(caught.value))

        with anyio.fail_after(5):
            await read(app.subscribe("t"))
            async with anyio.create_task_group() as tasks, app.subscribe("t") as messages:
                tasks.start_soon(read, messages)
                await anyio.wait_all_tasks_blocked()
        assert "`async with app" in errors[0]
        assert "within its block" in errors[1]

    async def test_an_invalid_or_missing_topic_is_refused(self, app):
        with pytest.raises(TypeError, match="at least one topic"):
            app.subscribe()
        with pytest.raises(ValueError, match="control characters"):
            async with app.subscribe("fine", "a\n"):
                pass
        assert app.hub.statistics().topics == 0

    async def test_included_apps_have_subscriptions_of_their_own(self, app):
        part = App()
        app.include(part)
        async with app.subscribe("t") as one:
            async with part.subscribe("t") as two:
                assert app.hub.statistics().subscribers == 2
                await app.publish("t", 1)
                assert await take(two, 1) == [1]
            assert app.hub.statistics().subscribers == 1
            await part.publish("t", 2)
            assert await take(one, 2) == [1, 2]
        assert app.hub.statistics().subscribers == 0


@asynccontextmanager
async def reading(stream):
    """The list of the events that a task reads from ``stream``; after the block, all of them."""
    events = []

    async def read():
        events.extend([event async for event in stream])

    with anyio.fail_after(5):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            yield events
            await anyio.wait_all_tasks_blocked()
            await stream.aclose()


class TestStreams:
    async def test_events_have_the_message_and_no_type(self, app):
        async with reading(app.stream("t")) as events:
            for value in ("text", {"a": 1}, b"\xff\0", 7):
                await app.publish("t", value)
        assert all(isinstance(event, ServerSentEvent) and event.event is None for event in events)
        assert events[0].encoded == b"data: text\n\n"
        assert [event.data for event in events] == ["text", '{"a":1}', b64encode(b"\xff\0").decode(), "7"]
        assert app.hub.statistics().topics == 0

    async def test_the_iteration_ends_where_a_message_was_lost(self, app):
        app.topic("t", queue=2)
        stream = app.stream("t")
        with anyio.fail_after(5):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anext, stream)
                await anyio.wait_all_tasks_blocked()
                await app.publish("t", "first")
            for n in range(4):
                await app.publish("t", n)
            assert [event.data async for event in stream] == ["0", "1"]
        assert app.hub.statistics().topics == 0

    async def test_a_closed_stream_has_ended(self, app):
        stream = aiter(app.stream("t"))
        await stream.aclose()
        with anyio.fail_after(5), pytest.raises(StopAsyncIteration):
            await anext(stream)

    async def test_history_is_read_from_a_position_on_and_events_have_ids(self, app):
        app.topic("t", history=10)
        ids = [(await app.publish("t", n)).id for n in range(4)]
        async with reading(app.stream("t", since=ids[1])) as events:
            ids.append((await app.publish("t", 4)).id)
        assert [(event.data, event.id) for event in events] == list(zip("234", ids[2:], strict=True))

    @pytest.mark.parametrize(
        ("event", "expected"),
        [
            (None, [None, None, None]),
            ("news", ["news", "news", "news"]),
            (lambda topic: topic.upper(), ["T", "U", "T"]),
            ({"t": "a"}.get, ["a", None, "a"]),
        ],
    )
    async def test_events_of_several_topics_have_the_type_of_event(self, app, event, expected):
        async with reading(app.stream("t", "u", event=event)) as events:
            for n, topic in enumerate("tut"):
                await app.publish(topic, n)
        assert [event.event for event in events] == expected
        assert [event.data for event in events] == ["0", "1", "2"]
        assert app.hub.statistics().topics == 0

    @pytest.mark.parametrize(
        ("topics", "options", "complaint"),
        [
            ((), {}, "at least one topic"),
            (("a\n",), {}, "control characters"),
            ((["a", "b"],), {}, "expected a topic as str, got list"),
            (("a",), {"event": 7}, "expected event=None, a str or a function of the topic that returns one, got 7"),
            (("a",), {"event": lambda topic: 7}, "got 7"),
            (("a",), {"event": "two\nlines"}, "without line ends"),
        ],
    )
    async def test_an_invalid_topic_or_type_is_refused_before_the_response(self, app, topics, options, complaint):
        with pytest.raises((TypeError, ValueError), match=complaint):
            app.stream(*topics, **options)

    async def test_the_client_gets_what_is_published_after_the_head_until_it_leaves(self, app):
        app.add_route(lambda: EventStream(app.stream("t", "u", event="news")), "/")
        async with app.test_client() as client:
            for n in range(20):
                async with client.stream("GET", "/") as response:
                    assert (await app.publish("tu"[n % 2], n)).subscribers == 1
                    event = await anext(response.events())
                    assert (event.event, event.data) == ("news", str(n))
                assert app.hub.statistics().topics == 0
