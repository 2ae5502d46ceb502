"""``connect_hub``: what other programs publish to and read from a server's hub."""

import json
import socket
import threading

import anyio
import anyio.to_thread
import pytest
from hub_here import HISTORY_BYTES, hub_in_thread, serving_from

from microws import App, FeatureUnavailable, HubUnavailable, Overflow, Receipt, connect_hub
from microws.local.directory import socket_path
from microws.local.wire import HELLO, LENGTH, PROTOCOL, WELCOME, Op, frame

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path_factory):
    with hub_in_thread(tmp_path_factory.mktemp("hub")) as path:
        yield path


def make_app():
    app = App()
    app.topic("chat:*", history=100)
    app.topic("price:*", overflow="latest", key="symbol", history=10)
    app.topic("rank:*", overflow="latest", key=lambda value: value["name"].lower(), history=10)
    app.topic("live:*", overflow="latest", key=lambda value: value["name"])
    return app


@pytest.fixture
async def app(path):
    async with serving_from(path, make_app()) as app:
        yield app


async def take(messages, count=1):
    with anyio.fail_after(5):
        return [await anext(messages) for _ in range(count)]


class TestPublishing:
    async def test_every_kind_of_value_arrives_as_from_the_app(self, path, app):
        values = ["text", b"\0bytes", {"a": [1, None]}, 7, None, ""]
        async with app.subscribe("t", "chat:1") as messages, connect_hub(f"local:{path}") as hub:
            for number, value in enumerate(values):
                receipt = await hub.publish(("t", "chat:1")[number % 2], value)
                assert (receipt.subscribers, receipt.id is not None) == (0, number % 2 == 1)
            assert await take(messages, len(values)) == values

    async def test_a_topic_without_history_has_no_positions(self, path, app):
        async with app.subscribe("t") as messages, connect_hub(f"local:{path}") as hub:
            assert await hub.publish("t", 1) == Receipt(0, None)
            assert await take(messages) == [1]
            assert messages.position is None

    async def test_positions_are_those_of_the_app(self, path, app):
        async with app.subscribe("chat:1") as messages, connect_hub(f"local:{path}") as hub:
            receipt = await hub.publish("chat:1", 1)
            assert await take(messages) == [1]
            assert messages.position == receipt.id == await hub.position("chat:1") == await app.position("chat:1")

    async def test_a_key_publishes_once_whoever_repeats_it(self, path, app):
        async with connect_hub(f"local:{path}") as hub:
            first = await hub.publish("chat:1", "paid", key="order-1")
            assert (await hub.publish("chat:1", "paid", key="order-1")).id == first.id
            assert (await app.publish("chat:1", "paid", key="order-1")).id == first.id
            assert (await hub.publish("chat:1", "paid", key="order-2")).id != first.id

    @pytest.mark.parametrize("topic", ["price:1", "rank:1"])
    async def test_latest_keeps_the_newest_of_each_key_of_the_app(self, path, app, topic):
        async with connect_hub(f"local:{path}") as hub:
            for name, number in (("A", 1), ("B", 2), ("A", 3)):
                await hub.publish(topic, {"symbol": name, "name": name, "number": number})
            await app.publish(topic, {"symbol": "B", "name": "B", "number": 4})
            for source in (app, hub):
                async with source.subscribe(topic, since="start") as messages:
                    assert [message["number"] for message in await take(messages, 2)] == [3, 4]

    @pytest.mark.parametrize("topic", ["rank:1", "live:1"])
    async def test_a_key_function_that_fails_raises_and_nothing_is_published(self, path, app, topic):
        async with app.subscribe(topic) as messages, connect_hub(f"local:{path}") as hub:
            with pytest.raises(ValueError, match="KeyError: 'name'"):
                await hub.publish(topic, {})
            await hub.publish(topic, {"name": "a"})
            assert await take(messages) == [{"name": "a"}]

    @pytest.mark.parametrize(
        ("topic", "value", "options", "error"),
        [
            ("", 1, {}, ValueError),
            ("t" * 256, 1, {}, ValueError),
            ("t", object(), {}, TypeError),
            ("t", "\ud800", {}, ValueError),
            ("t", 1, {"key": "k"}, ValueError),
            ("chat:1", 1, {"key": ""}, ValueError),
            ("chat:1", bytes(1 << 20), {}, ValueError),
        ],
    )
    async def test_what_is_invalid_raises(self, path, app, topic, value, options, error):
        async with connect_hub(f"local:{path}") as hub:
            with pytest.raises(error, match=r"expected|support|JSON"):
                await hub.publish(topic, value, **options)
            assert await hub.publish("t", "still connected") == Receipt(0, None)

    async def test_the_position_of_a_topic_without_history_raises(self, path, app):
        async with connect_hub(f"local:{path}") as hub:
            with pytest.raises(ValueError, match="with history"):
                await hub.position("t")

    async def test_json_default_encodes_what_json_does_not_support(self, path, app):
        async with app.subscribe("t") as messages, connect_hub(f"local:{path}", json_default=str) as hub:
            await hub.publish("t", {"path": anyio.Path("x")})
            assert await take(messages) == [{"path": "x"}]

    async def test_many_tasks_publish_at_once(self, path, app):
        async with app.subscribe("chat:1") as messages, connect_hub(f"local:{path}") as hub:
            async with anyio.create_task_group() as tasks:
                for number in range(64):
                    tasks.start_soon(hub.publish, "chat:1", number)
            assert sorted(await take(messages, 64)) == list(range(64))


class TestSubscribing:
    async def test_messages_come_with_topic_and_position(self, path, app):
        async with connect_hub(f"local:{path}") as hub, hub.subscribe("chat:1", "t") as messages:
            receipt = await app.publish("chat:1", {"a": 1})
            assert await take(messages) == [{"a": 1}]
            assert (messages.topic, messages.position) == ("chat:1", receipt.id)
            await app.publish("t", b"x")
            assert await take(messages) == [b"x"]
            assert (messages.topic, messages.position) == ("t", None)

    async def test_since_brings_what_was_missed(self, path, app):
        position = await app.position("chat:1")
        for number in range(3):
            await app.publish("chat:1", number)
        async with connect_hub(f"local:{path}") as hub, hub.subscribe("chat:1", since=position) as messages:
            assert (await hub.publish("chat:1", 3)).subscribers == 1
            assert await take(messages, 4) == [0, 1, 2, 3]

    async def test_since_that_the_history_lacks_raises_overflow_once(self, path, app):
        async with connect_hub(f"local:{path}") as hub, hub.subscribe("chat:1", since="1-0.1.1") as messages:
            with pytest.raises(Overflow):
                await take(messages)
            await app.publish("chat:1", 1)
            assert await take(messages) == [1]

    async def test_a_slow_reader_of_a_topic_with_a_key_function_is_told_of_a_loss(self, path, app):
        async with connect_hub(f"local:{path}") as hub, hub.subscribe("live:1", "t") as messages:
            for number in range(300):
                await app.publish("live:1", {"name": "same", "number": number})
            # It comes behind them.
            await hub.publish("t", "end")
            with pytest.raises(Overflow):
                await take(messages)
            assert (await take(messages))[0]["number"] == 300 - 256


async def test_settings_are_those_of_the_present_workers_or_of_the_last_ones(path, monkeypatch):
    monkeypatch.setattr("microws.hub_connection._SETTINGS_LAST", 0)

    async def serve(app, stop, *, task_status):
        async with serving_from(path, app):
            task_status.started()
            await stop.wait()

    stops = [anyio.Event(), anyio.Event()]
    async with anyio.create_task_group() as workers:
        await workers.start(serve, App(), stops[0])
        async with connect_hub(f"local:{path}") as hub:
            assert (await hub.publish("chat:1", 1)).id is None
            await workers.start(serve, make_app(), stops[1])
            stops[0].set()
            with anyio.fail_after(5):
                # Until then either of the two versions may answer.
                while (await hub.publish("chat:1", 2)).id is None:
                    pass
            stops[1].set()
            with anyio.fail_after(5):
                while await hub._backplane.ask({"settings": True}):
                    pass
            assert (await hub.publish("chat:1", 3)).id


class TestBlocking:
    async def test_threads_publish_and_read_positions(self, path, app):
        def work():
            with connect_hub(f"local:{path}") as hub:
                threads = [threading.Thread(target=hub.publish, args=("chat:1", n)) for n in range(8)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                last = hub.publish("chat:1", 8, key="last")
                assert hub.publish("chat:1", 8, key="last") == last
                return last.id, hub.position("chat:1")

        async with app.subscribe("chat:1") as messages:
            receipt, position = await anyio.to_thread.run_sync(work)
            assert receipt == position
            assert sorted(await take(messages, 9)) == list(range(9))

    async def test_an_error_is_raised_in_the_thread(self, path, app):
        def work():
            with connect_hub(f"local:{path}") as hub:
                hub.publish("", 1)

        with pytest.raises(ValueError, match="at least one character"):
            await anyio.to_thread.run_sync(work)

    def test_a_server_that_is_missing_raises(self, tmp_path):
        with pytest.raises(HubUnavailable, match="expected a server"), connect_hub(f"local:{tmp_path}"):
            pass

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_in_an_event_loop_it_is_refused(self, path, anyio_backend):
        with pytest.raises(RuntimeError, match="async with"), connect_hub(f"local:{path}"):
            pass


class TestConnecting:
    @pytest.mark.parametrize("name", ["", "missing", "x" * 120])
    async def test_a_directory_without_a_server_is_an_error_at_once(self, tmp_path, name):
        with anyio.fail_after(2), pytest.raises(HubUnavailable, match=r"hub\.sock, got: "):
            async with connect_hub(f"local:{tmp_path / name}"):
                pass

    async def test_a_socket_that_a_killed_server_left_is_an_error(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(socket_path(str(tmp_path)))
        with pytest.raises(HubUnavailable, match="refused"):
            async with connect_hub(f"local:{tmp_path}"):
                pass

    @pytest.mark.parametrize("has_hub", [False, True])
    async def test_a_hub_that_does_not_answer_or_has_no_worker_is_an_error(self, tmp_path, monkeypatch, has_hub):
        monkeypatch.setattr("microws.hub_connection._CONNECT_TIMEOUT", 0.3)

        async def connect(path):
            with pytest.raises(HubUnavailable, match=r"within 0\.3 s, got none"):
                async with connect_hub(f"local:{path}"):
                    pass

        if has_hub:
            with hub_in_thread(tmp_path) as path:
                await connect(path)
        else:
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(socket_path(str(tmp_path)))
                listener.listen()
                await connect(tmp_path)

    async def test_a_worker_that_does_not_answer_delays_nothing(self, path, app):
        with socket.socket(socket.AF_UNIX) as worker:
            worker.connect(socket_path(path))
            worker.sendall(frame(HELLO, Op.HELLO, PROTOCOL, 1, 7, 0, 0) + frame(LENGTH, Op.BEGIN))
            assert WELCOME.unpack(worker.recv(WELCOME.size, socket.MSG_WAITALL))[1] == Op.WELCOME
            # Less than the 2 seconds after which an answer does not count.
            with anyio.fail_after(1.5):
                async with connect_hub(f"local:{path}") as hub:
                    await hub.publish("rank:1", {"name": "a"})

    async def test_a_question_of_another_version_ends_no_worker(self, path, app, monkeypatch, caplog):
        monkeypatch.setattr("microws.local.client._TIMEOUT", 0.3)
        async with connect_hub(f"local:{path}") as hub:
            assert await hub._backplane.ask({"disconnect": {"unknown": 1}}) == []
            assert "a question of another process cannot be answered" in caplog.text
            assert len(await hub._backplane.ask({"statistics": True})) == 1
        with anyio.fail_after(5):
            assert (await app.publish("chat:1", 1)).id is not None

    async def test_a_hub_of_another_version_is_an_error(self, tmp_path):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(socket_path(str(tmp_path)))
            listener.listen()

            def answer():
                with listener.accept()[0] as client:
                    client.sendall(frame(WELCOME, Op.WELCOME, 99, 0, 0, 0, 0))
                    while client.recv(4096):
                        pass

            thread = threading.Thread(target=answer)
            thread.start()
            with anyio.fail_after(5), pytest.raises(HubUnavailable, match="this version"):
                async with connect_hub(f"local:{tmp_path}"):
                    pass
            thread.join(5)

    async def test_the_url_may_be_in_the_environment(self, path, app, monkeypatch):
        monkeypatch.setenv("MICROWS_HUB", f"local:{path}")
        async with connect_hub() as hub:
            assert await hub.publish("t", 1) == Receipt(0)

    @pytest.mark.parametrize(
        ("url", "error", "message"),
        [
            (None, ValueError, "local:PATH or redis://HOST, or in MICROWS_HUB, got none"),
            ("", ValueError, "got none"),
            ("local", ValueError, "expected local:PATH"),
            ("local:", ValueError, "local:PATH"),
            ("memory", ValueError, "expected local:PATH"),
            ("/run/chat", ValueError, "local:PATH"),
            ("redis+cluster://localhost", FeatureUnavailable, "a Redis Cluster"),
        ],
    )
    async def test_an_invalid_url_is_an_error(self, url, error, message, monkeypatch):
        monkeypatch.delenv("MICROWS_HUB", raising=False)
        with pytest.raises(error, match=message):
            connect_hub(url)

    async def test_after_its_block_it_is_refused(self, path, app):
        async with connect_hub(f"local:{path}") as hub:
            pass
        with pytest.raises(RuntimeError, match="within its block"):
            await hub.publish("t", 1)


class TestMounts:
    async def test_topics_of_a_mounted_app_are_separate(self, path):
        outer, inner = make_app(), make_app()
        outer.mount("/admin", inner)
        async with (
            serving_from(path, outer),
            connect_hub(f"local:{path}") as to_outer,
            connect_hub(f"local:{path}", mount="/admin") as to_inner,
        ):
            async with outer.subscribe("chat:1", "t") as outer_messages, inner.subscribe("chat:1", "t") as messages:
                for number, publish in enumerate((outer.publish, inner.publish, to_outer.publish, to_inner.publish)):
                    await publish("chat:1", number)
                    await publish("t", -number)
                assert await take(outer_messages, 4) == [0, 0, 2, -2]
                assert await take(messages, 4) == [1, -1, 3, -3]
                assert (messages.topic, await to_inner.position("chat:1")) == ("t", await inner.position("chat:1"))
                assert await inner.position("chat:1") != await outer.position("chat:1")
            async with inner.subscribe("chat:1", since="start") as messages:
                assert await take(messages, 2) == [1, 3]
                assert messages.topic == "chat:1"

    async def test_statistics_and_disconnects_are_of_one_app(self, path):
        outer, inner, innermost = make_app(), make_app(), make_app()
        outer.mount("/admin", inner)
        inner.mount("/", innermost)
        async with serving_from(path, outer), outer.subscribe("t"), inner.subscribe("t"), innermost.subscribe("u"):
            for app, topics in ((outer, {"t": 1}), (inner, {"t": 1}), (innermost, {"u": 1})):
                statistics = await app.hub.cluster_statistics()
                assert (statistics.workers, statistics.topics) == (1, topics)
            assert await outer.disconnect(topic="t") == 0


class TestVersions:
    """Two versions of an app share a hub process during a deploy."""

    async def test_history_is_what_the_receiving_version_has(self, path):
        async with serving_from(path, App()) as old, serving_from(path, make_app()) as new:
            async with old.subscribe("chat:1") as old_messages, new.subscribe("chat:1") as new_messages:
                assert (await old.publish("chat:1", 1)).id is None
                assert await take(old_messages) == await take(new_messages) == [1]
                receipt = await new.publish("chat:1", 2)
                assert await take(old_messages) == await take(new_messages) == [2]
                assert (old_messages.position, new_messages.position) == (None, receipt.id)
                await old.publish("chat:1", 3)
                assert await take(new_messages) == [3]
                assert new_messages.position == await new.position("chat:1")
            async with new.subscribe("chat:1", since=receipt.id) as messages:
                assert await take(messages) == [3]

    async def test_a_connection_reads_with_the_settings_that_it_has_when_it_subscribes(self, path, monkeypatch):
        monkeypatch.setattr("microws.hub_connection._SETTINGS_LAST", 0)
        app = App()
        async with serving_from(path, app), connect_hub(f"local:{path}") as hub:
            async with hub.subscribe("chat:1") as messages:
                await hub.publish("chat:1", 1)
                assert await take(messages) == [1]
                assert messages.position is None
            app.topic("chat:*", history=100)
            async with hub.subscribe("chat:1") as messages:
                receipt = await hub.publish("chat:1", 2)
                assert await take(messages) == [2]
                assert messages.position == receipt.id is not None

    async def test_a_message_that_has_no_key_here_is_delivered(self, path, caplog):
        other = App()
        async with (
            serving_from(path, make_app()) as app,
            serving_from(path, other),
            app.subscribe("live:1") as messages,
        ):
            await other.publish("live:1", {"title": "new"})
            assert await take(messages) == [{"title": "new"}]
            await app.publish("live:1", {"name": "a"})
            assert await take(messages) == [{"name": "a"}]
        assert "has no key" in caplog.text


async def test_cluster_statistics_have_the_log_of_the_hub_process(path, app):
    before = await app.hub.cluster_statistics()
    for _ in range(5):
        await app.publish("chat:1", bytes(HISTORY_BYTES // 5))
    after = await app.hub.cluster_statistics()
    assert before.history_bytes < HISTORY_BYTES // 5 < after.history_bytes <= HISTORY_BYTES
    assert (before.history_dropped, after.history_dropped) == (0, 1)
    statistics = app.hub.statistics()
    assert (statistics.history_bytes, statistics.history_dropped) == (0, 0)


def test_a_worker_answers_with_plain_json():
    settings = make_app().hub.answer({"settings": True})
    assert json.loads(json.dumps(settings))[2][3] is True
