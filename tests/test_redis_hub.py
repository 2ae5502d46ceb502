"""Apps and programs that use Redis: where it is, how they start, and what they do without it."""

import json
import logging
import re
import socket
import sys
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import httpx
import pytest
from hiredis import ReplyError
from hubs import LIMIT, Process
from redis_server import TLS, Proxy, free_port, redis_server, sentinel_of

from microws import App, FeatureUnavailable, HubUnavailable, Overflow, PublishTimeout, connect_hub, hub_connection
from microws.hub import TopicSettings, presence, running_loop
from microws.interfaces import Payload
from microws.redis_hub import backplane as module
from microws.redis_hub import publisher, topics
from microws.redis_hub.backplane import RedisBackplane
from microws.server.lifespan import LifespanRunner

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(server):
    server.command("FLUSHALL")
    return server


@pytest.fixture
def impatient(monkeypatch):
    """The first connection is given up soon."""
    assert module._FIRST_CONNECT == 5
    monkeypatch.setattr(module, "_FIRST_CONNECT", 0.1)


@asynccontextmanager
async def connected(*urls, settings=None):
    """A process for each URL, which subscribes to ``t``."""
    processes = [Process(RedisBackplane(url)) for url in urls]
    async with anyio.create_task_group() as tasks:
        for process in processes:
            if settings is not None:
                process.settings = lambda topic: settings
            process.backplane.start(process)
            with anyio.fail_after(LIMIT):
                await tasks.start(
                    lambda process=process, *, task_status: process.backplane.run(task_status=task_status)
                )
            await process.backplane.subscribe("t")
        with anyio.fail_after(3 * LIMIT):
            yield processes
        tasks.cancel_scope.cancel()


async def publish(process, value, topic="t", **options):
    payload = Payload("text", str(value).encode(), topic)
    with anyio.fail_after(LIMIT):
        return (await process.backplane.publish(payload, **{"has_history": True} | options)).id


@asynccontextmanager
async def serving(app):
    """The lifespan of ``app``, as of a server that is not microws's."""
    lifespan = LifespanRunner(app)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifespan.run)
        assert await lifespan.startup(timeout=LIMIT)
        try:
            yield app
        finally:
            with anyio.CancelScope(shield=True):
                assert await lifespan.shutdown(timeout=LIMIT)


def app_at(url):
    app = App(hub=url)
    app.topic("chat:*", history=10)
    return app


async def run(url):
    """Run a backplane until it fails."""
    process = Process(RedisBackplane(url))
    process.backplane.start(process)
    with anyio.fail_after(LIMIT):
        await process.backplane.run()


async def reach(url):
    """A message gets from one connection to another one."""
    async with connected(url, url) as (one, other):
        await publish(one, "hi")
        await other.wait_delivered(1)
        assert other.texts == ["hi"]


# Where it is


async def test_a_unix_socket(tmp_path):
    with redis_server(tmp_path, unix=True) as server:
        await reach(f"{server.url}?db=3")


async def test_tls(tmp_path):
    with redis_server(tmp_path, tls=True) as server:
        await reach(f"{server.url}?ssl_ca_certs={TLS}/localhost.pem")
        await reach(f"{server.url}?ssl_cert_reqs=none")
        with pytest.raises(
            HubUnavailable, match=r"this machine trusts, got: self-signed certificate; .* ssl_ca_certs="
        ):
            await run(server.url)
        with pytest.raises(
            HubUnavailable, match="expected certificates for Redis in ssl_ca_certs=/missing, got: No such"
        ):
            await run(f"{server.url}?ssl_ca_certs=/missing")


async def test_a_password(tmp_path, monkeypatch):
    with redis_server(tmp_path, requirepass="p@ss") as server:
        where = server.url.removeprefix("redis://")
        await reach(f"redis://:p%40ss@{where}")
        with pytest.raises(
            HubUnavailable, match=r"refused: it expects a password; .* MICROWS_HUB_PASSWORD .redis://127"
        ):
            await run(server.url)
        for login in (":wrong", "user:p%40ss", "user"):
            with pytest.raises(HubUnavailable, match=r"Redis refused: WRONGPASS .*; check the user and password"):
                await run(f"redis://{login}@{where}")
        monkeypatch.setenv("MICROWS_HUB_PASSWORD", "p@ss")
        await reach(server.url)


async def test_a_sentinel_names_the_primary(tmp_path, redis):
    with sentinel_of(redis, tmp_path) as sentinel:
        await reach(f"redis+sentinel://127.0.0.1:{sentinel.port}/main/1")
        with pytest.raises(HubUnavailable, match=r"write redis\+sentinel://HOST:26379/SERVICE"):
            await run(sentinel.url)


@pytest.mark.usefixtures("impatient")
async def test_a_service_that_no_sentinel_knows_is_an_error(tmp_path, redis):
    with (
        sentinel_of(redis, tmp_path) as sentinel,
        pytest.raises(HubUnavailable, match=r"the Sentinel at 127.0.0.1:.* knows 'main', not 'other'; check"),
    ):
        await run(f"redis+sentinel://127.0.0.1:{sentinel.port}/other")


@pytest.mark.usefixtures("impatient")
async def test_what_is_not_the_redis_of_the_url_is_told(tmp_path, redis, monkeypatch):
    """Another server, with or without TLS, no socket, no Sentinel, or one that refuses."""

    async def refusal_of(url):
        with pytest.raises(HubUnavailable) as caught:
            await run(url)
        return str(caught.value)

    with redis_server(tmp_path / "tls", tls=True) as server:
        assert "there without TLS (with TLS, write rediss://)" in await refusal_of(f"redis://127.0.0.1:{server.port}")
    with monkeypatch.context() as patch:
        patch.setattr(module, "_CONNECT_TIMEOUT", 0.2)
        for scheme, service in (("redis", ""), ("redis+sentinel", "/main")):
            url = f"{scheme.replace('redis', 'rediss')}://127.0.0.1:{redis.port}{service}"
            assert f"there with TLS (without, write {scheme}://)" in await refusal_of(url)
    assert "got: No such file or directory; check the path" in await refusal_of(f"unix://{tmp_path}/redis.sock")
    assert await refusal_of(f"{redis.url}/99") == (
        "Redis refused: ERR DB index is out of range; use a lower number of the database, or set more of them as "
        f"`databases` in Redis ({redis.url}/99)"
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, greet, listener)
            assert await refusal_of(f"redis://127.0.0.1:{port}") == (
                f"expected Redis, got something that speaks another protocol: check the port (redis://127.0.0.1:{port})"
            )
    where = f"127.0.0.1:{redis.port}"
    assert await refusal_of(f"redis+sentinel://{where}/main") == (
        f"expected a Sentinel at {where}, got Redis: write redis://HOST (redis+sentinel://{where}/main)"
    )
    assert "Sentinel at 127.0.0.1:1: Connection refused; check" in await refusal_of("redis+sentinel://127.0.0.1:1/main")
    with redis_server(tmp_path / "sentinel", is_sentinel=True, requirepass="secret") as sentinel:
        url = f"redis+sentinel://127.0.0.1:{sentinel.port}/main"
        assert "write its user and password as sentinel_username= and sentinel_password=" in await refusal_of(url)


def greet(listener):
    """A server of another protocol, for one client."""
    listener.settimeout(LIMIT)
    client, _ = listener.accept()
    with client:
        client.recv(1)
        client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def test_a_user_without_rights_is_told_where_they_are_listed(tmp_path):
    with redis_server(tmp_path) as server:
        url = server.url.replace("//", "//hub:secret@")
        for missing in ("-evalsha", "-set", "resetkeys", "resetchannels"):
            server.command("ACL", "SETUSER", "hub", "reset", "on", ">secret", "+@all", "~*", "&*", missing)
            with pytest.raises(
                HubUnavailable, match=r"Redis refused: .*; give the user the rights that the guide lists"
            ):
                await run(url)


async def test_a_cluster_cannot_carry_a_hub(tmp_path):
    with (
        redis_server(tmp_path, cluster_enabled="yes") as server,
        pytest.raises(HubUnavailable, match=r"a Redis Cluster cannot carry a hub: use .* \(redis://127"),
    ):
        await run(server.url)


async def test_databases_prefixes_and_mounts_are_separate(redis):
    urls = [redis.url, f"{redis.url}/1", f"{redis.url}?prefix=other"]
    async with connected(*urls) as processes:
        mounted = RedisBackplane(redis.url, mount="/m")
        processes.append(Process(mounted))
        mounted.start(processes[-1])
        async with anyio.create_task_group() as tasks:
            await tasks.start(lambda *, task_status: mounted.run(task_status=task_status))
            await mounted.subscribe("t")
            for number, process in enumerate(processes):
                await publish(process, number)
                assert await process.backplane.claim("separate", 60)
                assert len(await process.backplane.ask({})) == 1
            for number, process in enumerate(processes):
                await process.wait_delivered(1)
                assert process.texts == [str(number)]
            tasks.cancel_scope.cancel()


# How they start


@pytest.mark.usefixtures("impatient")
async def test_no_server_is_one_line(caplog):
    caplog.set_level(logging.INFO, "microws.hub")
    with pytest.raises(
        HubUnavailable,
        match=r"^expected Redis at redis://u:\*\*\*@127.0.0.1:1, got: Connection refused; check host and port, and "
        r"that Redis runs there without TLS \(with TLS, write rediss://\)$",
    ):
        await run("redis://u:secret@127.0.0.1:1")
    assert caplog.messages == ["waiting for Redis at redis://u:***@127.0.0.1:1: Connection refused"]


async def test_a_server_that_comes_late_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_FIRST_CONNECT", LIMIT)
    with redis_server(tmp_path) as server:
        server.kill()
        process = Process(RedisBackplane(server.url))
        process.backplane.start(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, server.start)
            with anyio.fail_after(LIMIT):
                await tasks.start(lambda *, task_status: process.backplane.run(task_status=task_status))
            assert await publish(process, 1)
            tasks.cancel_scope.cancel()


async def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "hiredis", None)
    for name in ("backplane", "connection"):
        monkeypatch.delitem(sys.modules, f"microws.redis_hub.{name}")
        monkeypatch.delattr(f"microws.redis_hub.{name}")
    with pytest.raises(FeatureUnavailable, match=re.escape("pip install 'microws[redis]'")):
        connect_hub("redis://h")


@pytest.mark.usefixtures("impatient")
async def test_an_app_without_its_redis_does_not_start_and_shows_no_traceback(caplog):
    lifespan = LifespanRunner(app_at("redis://127.0.0.1:1"))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lifespan.run)
        assert not await lifespan.startup(timeout=LIMIT)
    [line] = [record for record in caplog.records if record.name == "microws.server"]
    assert line.getMessage().startswith(
        "the app's startup failed: expected Redis at redis://127.0.0.1:1, got: Connection refused; check host and port"
    )
    assert line.exc_info is None


# Apps


async def test_apps_on_any_server_share_their_topics(redis):
    async with serving(app_at(redis.url)) as one, serving(app_at(redis.url)) as other:
        async with one.subscribe("chat:1") as messages:
            sent = await other.publish("chat:1", {"n": 1})
            assert await messages.__anext__() == {"n": 1}
            assert messages.position == sent.id == await one.position("chat:1")
        assert (await one.hub.cluster_statistics()).workers == 2
        assert await one.hub.is_connected()


async def until(condition):
    with anyio.fail_after(2 * LIMIT):
        while not condition():  # noqa: ASYNC110 - other machines change it
            await anyio.sleep(0.01)


class Person:
    """A member of topics."""

    queued = 0

    def __init__(self, name):
        self.id = name
        self.members = {}

    def tell_members(self, frame):
        told = json.loads(frame.frame.text)
        for name in told.get("leave", ()):
            del self.members[name]
        self.members = told["members"] if "members" in told else self.members | told["join"]


async def test_members_are_those_of_all_machines(redis, monkeypatch):
    for name, seconds in (("_TICK", 0.02), ("_BEAT", 0.1), ("_DEAD", 0.5)):
        monkeypatch.setattr(presence, name, seconds)
    anna, ben, carl = Person("anna"), Person("ben"), Person("carl")
    async with serving(app_at(redis.url)) as one, serving(app_at(redis.url)) as other:
        async with serving(app_at(redis.url)) as third:
            for app, person in ((one, anna), (other, ben), (third, carl)):
                app.hub.presence.join(person, "t", {"id": person.id}, app.start_soon)
            await until(lambda: all(len(each.members) == 3 for each in (anna, ben, carl)))
            assert await one.count("t") == 3
            other.hub.presence.leave(ben, ["t"], lingers=False)
            await until(lambda: set(anna.members) == set(carl.members) == {"anna", "carl"})
        # The third machine is gone, without a word.
        await until(lambda: set(anna.members) == {"anna"})
        assert set(await other.members("t")) == {"anna"}


async def test_mounted_apps_use_the_redis_of_the_outermost_one(redis):
    async def start(stack):
        outer, inner = app_at(redis.url), App()
        outer.mount("/inner", inner)
        await stack.enter_async_context(serving(outer))
        return outer, inner

    async with AsyncExitStack() as stack:
        one, other = await start(stack), await start(stack)
        async with one[0].subscribe("t") as outer, one[1].subscribe("t") as inner:
            await other[0].publish("t", "outer")
            await other[1].publish("t", "inner")
            assert (await outer.__anext__(), await inner.__anext__()) == ("outer", "inner")


async def test_an_app_that_asks_for_its_hub_is_not_ready_while_redis_is_silent(tmp_path):
    with redis_server(tmp_path) as server:
        app = app_at(server.url)
        app.health(hub=True)
        transport = httpx.ASGITransport(app)
        async with serving(app), httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            assert (await client.get("/readyz")).status_code == 200
            server.pause()
            assert (await client.get("/readyz")).status_code == 503
            server.resume()
            with anyio.fail_after(LIMIT):
                while (await client.get("/readyz")).status_code != 200:
                    pass


async def test_other_programs_connect(redis):
    async with serving(app_at(redis.url)) as app, app.subscribe("chat:1") as messages, connect_hub(redis.url) as hub:
        sent = await hub.publish("chat:1", "hi", key="k")
        assert await hub.publish("chat:1", "hi", key="k") == sent
        assert sent.id == await hub.position("chat:1")
        assert await messages.__anext__() == "hi"
        async with hub.subscribe("chat:1", since="start") as read:
            assert await read.__anext__() == "hi"


@pytest.mark.usefixtures("impatient")
async def test_other_programs_are_told_of_a_missing_redis():
    with pytest.raises(HubUnavailable, match=r"expected Redis at redis://127\.0\.0\.1:1, got: Connection refused"):
        async with connect_hub("redis://127.0.0.1:1"):
            pass


async def test_other_programs_are_told_of_a_missing_app(redis, monkeypatch):
    monkeypatch.setattr(hub_connection, "_CONNECT_TIMEOUT", 0.1)
    text = (
        f"expected an answer of a worker of the app through Redis at {redis.url} within 0.1 s, got none: start the app"
    )
    with pytest.raises(HubUnavailable, match=re.escape(text)):
        async with connect_hub(redis.url):
            pass


# Limits


async def test_redis_has_its_own_words_for_a_refusal(tmp_path):
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            server.set(maxmemory="1")
            for options in ({}, {"has_history": False}):
                with pytest.raises(HubUnavailable, match="Redis refused: OOM command not allowed"):
                    await publish(process, 1, **options)
            # Reading goes on, and an empty topic has no position to resume from.
            assert (await process.backplane.subscribe("empty"))[1] == -1
            server.set(maxmemory="0")
            await publish(process, 2)
            await process.wait_delivered(1)
            assert process.texts == ["2"]


@pytest.mark.parametrize(("name", "conflation"), [("l:bad", b""), ("h:bad", b"k")])
async def test_a_topic_that_redis_cannot_write_stops_no_other_one(redis, name, conflation):
    async with connected(redis.url) as [process]:
        await publish(process, "bad", "bad", conflation=conflation)
        redis.command("SET", f"microws:{name}", "of another program")
        refused = []

        async def publish_bad():
            with pytest.raises(HubUnavailable, match=r"^Redis refused: WRONGTYPE .* kind of value$") as caught:
                await publish(process, "bad", "bad", conflation=conflation)
            refused.append(str(caught.value))

        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(publish, process, number)
                tasks.start_soon(publish_bad)
        await publish(process, "end")
        await process.wait_delivered(4)
        assert sorted(process.texts) == ["0", "1", "2", "end"]
        assert len(refused) == 3


async def test_redis_6_names_the_script_before_its_own_words(redis, monkeypatch):
    said = "ERR Error running script (call to f_7a): @user_script:46: @user_script: 46: -OOM command not allowed"
    async with connected(redis.url) as [process]:
        connection, post = process.backplane._connection, process.backplane._connection.post

        def refuse(answer, *command):
            post(lambda _: answer(ReplyError(said)), *command)

        monkeypatch.setattr(connection, "post", refuse)
        with pytest.raises(HubUnavailable) as caught:
            await publish(process, 0)
        assert str(caught.value) == "Redis refused: OOM command not allowed"


async def test_a_paused_redis_raises_within_two_seconds(tmp_path):
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            server.pause()
            for call in (
                lambda: publish(process, 1),
                lambda: process.backplane.claim("k", 60),
            ):
                began = anyio.current_time()
                with pytest.raises(
                    PublishTimeout, match=r"expected an answer of Redis at redis://.* within 2 s, got none"
                ):
                    await call()
                assert 1 < anyio.current_time() - began < 2.5
            server.resume()
            await process.backplane.aclose()


async def test_publishers_wait_for_room(tmp_path):
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            server.pause()
            pending = []

            async def send():
                with pytest.raises(PublishTimeout):
                    await publish(process, "x" * 200_000)

            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(send)
                await anyio.wait_all_tasks_blocked()
                pending.append(process.backplane._publisher._pending_bytes)
            assert 1_000_000 < pending[0] < 1 << 20
            assert not process.backplane._publisher._pending_bytes
            server.resume()
            await publish(process, "next")


async def test_a_publish_raises_in_time_though_a_younger_one_is_before_it(redis, monkeypatch):
    """It waited for room before."""
    async with connected(redis.url) as [process], anyio.create_task_group() as tasks:
        async with cut_off(redis, process):
            tasks.start_soon(publish, process, "younger")
            await anyio.wait_all_tasks_blocked()
            monkeypatch.setattr(publisher, "TIMEOUT", 0.01)
            process.backplane._publisher._queue[0].deadline += LIMIT
            with pytest.raises(PublishTimeout):
                await publish(process, "older")
        await process.wait_delivered(1)
        assert process.texts == ["younger"]


# Without history


async def publish_plain(process, value, topic="t"):
    assert await publish(process, value, topic, has_history=False) is None


async def test_without_history_a_publish_does_not_wait_and_nothing_is_lost(tmp_path):
    with redis_server(tmp_path) as server, Proxy(server.port) as proxy:
        async with connected(server.url, proxy.url) as (other, process):
            proxy.loses = {"requests"}
            for number in range(3):
                await publish_plain(process, number)
            await wait_for(lambda: proxy.lost)
            proxy.loses = ()
            proxy.cut()
            await publish(other, "end")
            for each in (other, process):
                await each.wait_delivered(4)
                assert {*each.texts} == {"0", "1", "2", "end"}
                assert [text for text in each.texts if text != "end"] == ["0", "1", "2"]
                assert each.losses == []


async def test_without_history_publishers_wait_for_room(tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "TIMEOUT", 0.3)
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            server.pause()
            for number in range(5):
                await publish_plain(process, f"{number} " + "x" * 200_000)
            with pytest.raises(PublishTimeout, match="to keep up, got none of its answers"):
                await publish_plain(process, "x" * 200_000)
            server.resume()
            await process.wait_delivered(5)
            await publish_plain(process, "next")
            await process.wait_delivered(6)
            assert [text.split()[0] for text in process.texts] == [*"01234", "next"]


async def test_without_history_a_publish_raises_while_there_is_no_connection(redis, monkeypatch):
    monkeypatch.setattr(publisher, "TIMEOUT", 0.3)
    async with connected(redis.url) as [process]:
        async with cut_off(redis, process):
            with pytest.raises(PublishTimeout, match="expected an answer of Redis"):
                await publish_plain(process, "never")
        await publish_plain(process, "now")
        await process.wait_delivered(1)
        assert process.texts == ["now"]


async def test_without_history_what_redis_refuses_is_told_before_what_follows(tmp_path, caplog):
    with redis_server(tmp_path) as server:
        async with connected(server.url, server.url) as (one, other):
            await publish_plain(one, 0)
            await other.wait_delivered(1)
            server.set(maxmemory="1")
            for _ in range(2):
                await publish_plain(one, "refused")
            await one.wait_until(lambda one: one.losses)
            with pytest.raises(HubUnavailable, match="Redis refused: OOM command not allowed"):
                await publish_plain(one, "refused, too")
            server.set(maxmemory="0")
            # It waits, until one is taken.
            for number in range(1, 3):
                await publish_plain(one, number)
            for process in (one, other):
                await process.wait_delivered(3)
                assert (process.texts, {*process.losses}) == (["0", "1", "2"], {1})
    assert [line.partition(" command")[0] for line in caplog.messages] == [
        "messages were lost, and their subscribers are told: Redis refused: OOM"
    ]


async def test_without_history_a_loss_is_told_after_a_cut(tmp_path):
    with redis_server(tmp_path) as server, Proxy(server.port) as proxy:
        async with connected(server.url, proxy.url) as (other, process):
            proxy.loses = {"requests"}
            await publish_plain(process, "given up")
            await wait_for(lambda: proxy.lost)
            process.backplane._publisher.end_late(float("inf"), PublishTimeout("late"))
            proxy.loses = ()
            proxy.cut()
            for each in (other, process):
                await each.wait_until(lambda each: each.losses)
                assert each.texts == []


async def test_without_history_requests_after_each_other_are_one_call(redis, monkeypatch):
    async with connected(redis.url) as [process]:
        connection, calls = process.backplane._connection, []
        post = connection.post

        def count(answer, *command):
            calls.append(command)
            post(answer, *command)

        monkeypatch.setattr(connection, "post", count)
        for number in range(3):
            await publish_plain(process, number)
            await anyio.lowlevel.checkpoint()
        await process.wait_delivered(3)
        assert len(calls) == 1 or running_loop() is None


async def test_without_history_what_is_asked_next_comes_after_the_message(redis):
    async with connected(redis.url, redis.url) as (one, other):
        other.answer = lambda question: other.texts
        await publish_plain(one, "first")
        assert ["first"] in await one.backplane.ask({})


async def test_without_history_other_programs_wait_for_redis(redis):
    async with serving(app_at(redis.url)), connect_hub(redis.url) as hub:
        await hub.publish("t", "hi")
        assert redis.command("EXISTS", "microws:o:t")


async def test_what_arrives_after_it_was_sent_again_is_not_published(redis, monkeypatch):
    """It was under way on a connection that was given up."""
    async with connected(redis.url) as [process]:
        connection, sent = process.backplane._connection, []
        post = connection.post

        def note(answer, *command):
            sent.append(command)
            post(answer, *command)

        monkeypatch.setattr(connection, "post", note)
        await publish_plain(process, 0)
        await publish_plain(process, 1)
        await process.wait_delivered(2)
        await publish_plain(process, 2)
        await process.wait_delivered(3)
        for command in sent:
            redis.command(*command)
        await publish_plain(process, "end")
        await process.wait_delivered(4)
        assert process.texts == ["0", "1", "2", "end"]


async def test_what_was_not_sent_when_a_process_ends_is_logged(redis, monkeypatch, caplog):
    monkeypatch.setattr(publisher, "TIMEOUT", 0.1)
    async with connected(redis.url) as [process]:
        monkeypatch.setattr(process.backplane._publisher, "fill", lambda: None)
        process.backplane._connection.cut("of the test")
        await wait_for(lambda: process.backplane._publisher.connection is not None)
        await publish_plain(process, 0)
        await process.backplane.aclose()
    assert "messages were lost: Redis at" in caplog.text


@pytest.mark.parametrize("size", [10, 100_000])
async def test_large_histories_are_read_in_parts(redis, size):
    async with connected(redis.url) as [process]:
        positions = [await publish(process, f"{number} " + "x" * size, "large") for number in range(12)]
        for since, expected in (("start", 12), (positions[1], 10)):
            found = await process.backplane.read("large", since, history=100, ttl=None, by_key=False)
            assert [entry.payload.data.split()[0] for entry in found.entries] == [b"%d" % n for n in range(12)][
                -expected:
            ]
            assert (found.recovered, found.position) == (True, positions[-1])


async def test_by_key_large_histories_are_read_in_parts(redis):
    settings = TopicSettings(history=20, overflow="latest")
    async with connected(redis.url, settings=settings) as [process]:
        for number in range(100):
            await publish(process, f"{number} " + "x" * 50_000, "keys", conflation=b"%d" % (number % 60))
        read = process.backplane.read
        found = await read("keys", "start", history=20, ttl=None, by_key=True)
        assert [int(entry.payload.data.split()[0]) for entry in found.entries] == list(range(80, 100))
        assert redis.command("HLEN", "microws:h:keys") <= 2 * 20 + 16


async def test_a_history_of_any_ttl_is_kept(redis):
    settings = TopicSettings(history=5, ttl=1e300)
    async with connected(redis.url, settings=settings) as [process]:
        first = await publish(process, 0)
        await publish(process, 1)
        found = await process.backplane.read("t", first, history=5, ttl=1e300, by_key=False)
        assert [entry.payload.data for entry in found.entries] == [b"1"]
    year = 365 * 86_400
    async with connected(redis.url, settings=settings._replace(ttl=year)) as [process]:
        await publish(process, 0, "year")
    for key in ("o:year", "l:year"):
        assert redis.command("TTL", f"microws:{key}") > year - LIMIT


@pytest.mark.parametrize("history", [0, 5])
async def test_a_topic_of_which_versions_of_an_app_keep_different_messages(redis, history):
    """A client of the version with ``overflow="latest"`` is told of what the other one has published."""
    async with connected(redis.url, settings=TopicSettings(history=history)) as [process]:

        async def read(position):
            return await process.backplane.read("versions", position, history=5, ttl=None, by_key=True)

        async def publish_by_key():
            process.settings = lambda topic: TopicSettings(history=5)
            return await publish(process, "new", "versions", conflation=b"k")

        first = await publish_by_key()
        process.settings = lambda topic: TopicSettings(history=history)
        await publish(process, "old", "versions", has_history=history > 0)
        assert not (await read(first)).recovered
        second = await publish_by_key()
        third = await publish_by_key()
        found = await read(second)
        assert (found.recovered, found.position) == (True, third)


KINDS = {
    "plain": TopicSettings(),
    "list": TopicSettings(history=100),
    "latest": TopicSettings(history=100, overflow="latest"),
}


@pytest.mark.parametrize("one", KINDS)
@pytest.mark.parametrize("other", KINDS)
async def test_while_versions_of_an_app_are_mixed_what_is_missing_is_told(redis, one, other):
    """A deploy changes what a topic keeps. Only who gets all that both have published is told ``recovered``."""
    async with connected(redis.url, redis.url) as processes:
        for process, kind in zip(processes, (one, other), strict=True):
            process.settings = lambda topic, settings=KINDS[kind]: settings
        seen = {}

        async def publish_with(number, text):
            kind = (one, other)[number]
            options = {"has_history": kind != "plain", "conflation": text.encode() if kind == "latest" else b""}
            await publish(processes[number], text, **options)
            await processes[0].wait_delivered(len(texts))

        texts = []
        for number in (0, 0, 1, 0, 1, 1, 0, 0):
            texts.append(str(len(texts)))
            await publish_with(number, texts[-1])
            for reader, kind in ((0, one), (1, other)):
                if kind == "plain":
                    continue
                settings, read = KINDS[kind], processes[reader].backplane.read
                by_key = settings.overflow == "latest"
                for since, count in [("start", 0), *seen.items()]:
                    found = await read("t", since, history=100, ttl=None, by_key=by_key)
                    got = [entry.payload.data.decode() for entry in found.entries]
                    if found.recovered:
                        # What was kept in another way before the first of them is not in the window.
                        assert got == (texts[count:] if since != "start" else texts[len(texts) - len(got) :])
                        assert got or since != "start"
                    position = found.position
                seen[position] = len(texts)
                again = await read("t", position, history=100, ttl=None, by_key=by_key)
                assert (again.recovered, again.entries) == (True, ())


async def test_who_starts_with_messages_of_another_version_is_told(redis):
    async with serving(app_at(redis.url)) as one, connected(redis.url) as [other]:
        other.settings = lambda topic: KINDS["latest"]
        await one.publish("chat:1", "as a list")
        await publish(other, "by key", "chat:1", conflation=b"k")
        async with one.subscribe("chat:1", since="start") as messages:
            with pytest.raises(Overflow):
                await messages.__anext__()
            await one.publish("chat:1", "next")
            assert await messages.__anext__() == "next"


async def test_keys_are_forgotten_with_their_messages(redis):
    async with connected(redis.url, settings=TopicSettings(history=5)) as [process]:
        first = await publish(process, 0, key=b"0")
        for number in range(1, 6):
            await publish(process, number, key=b"%d" % number)
        assert await publish(process, "again", key=b"0") == first
        await publish(process, 6)
        assert await publish(process, "again", key=b"0") != first
        for number in range(100):
            await publish(process, number, key=b"more %d" % number)
        assert redis.command("HLEN", "microws:k:t") <= 2 * 6 + 16
        assert redis.command("LLEN", "microws:l:t") == 6


@pytest.mark.parametrize("by_key", [False, True], ids=["all messages", "newest by key"])
@pytest.mark.parametrize("lost", ["k:t", "l:t h:t", "o:t", "e"])
async def test_a_key_is_known_though_redis_has_lost_a_part(redis, lost, by_key):
    """Evicted, or its last messages after it was started again."""
    size = 600 if lost == "k:t" else 20  # of a list, 512 are read at once
    async with connected(redis.url, settings=TopicSettings(history=700)) as [process]:

        async def publish_again(number):
            options = {"key": b"%d" % number} if number % 2 else {}
            return await publish(process, number, conflation=b"%d" % number if by_key else b"", **options)

        positions = {}

        async def publish_first(number):
            positions[number] = await publish_again(number)

        async with anyio.create_task_group() as tasks:
            for number in range(size):
                tasks.start_soon(publish_first, number)
        redis.command("DEL", *(f"microws:{name}" for name in lost.split()))
        for number in (size - 1, 1):
            assert await publish_again(number) == positions[number]
        await publish_again(size)
        for number in (1, size // 2 + 1, size - 1):
            assert await publish_again(number) == positions[number]
        await process.wait_delivered(size + 1)
        assert len(process.delivered) == size + 1


async def test_a_key_of_an_expired_message_is_not_taken_from_the_log(redis):
    async with connected(redis.url, settings=TopicSettings(history=10)) as [process]:
        first = await publish(process, 0, key=b"k")
        process.settings = lambda topic: TopicSettings(history=10, ttl=1e-6)
        redis.command("DEL", "microws:k:t")
        assert await publish(process, 1, key=b"k") != first


async def test_by_key_the_keys_of_messages_do_not_pile_up(redis):
    async with connected(redis.url, settings=TopicSettings(history=5)) as [process]:
        for number in range(100):
            last = await publish(process, number, key=b"%d" % number, conflation=b"k")
        assert await publish(process, "again", key=b"99", conflation=b"k") == last
        assert redis.command("HLEN", "microws:k:t") <= 2 * 6 + 16


async def test_a_topic_that_was_left_is_given_up_after_a_while(redis, monkeypatch):
    assert topics._LINGER == 5
    monkeypatch.setattr(topics, "_LINGER", 0.1)
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.02)
    async with connected(redis.url, redis.url) as (one, other):
        one.backplane.unsubscribe("t")
        await publish(other, "lingers")
        await one.wait_delivered(1)
        with anyio.fail_after(LIMIT):
            while redis.command("PUBSUB", "NUMSUB", "microws:0:t:t")[1] == 2:
                await anyio.lowlevel.checkpoint()
        await publish(one, "gone")
        await one.backplane.subscribe("t")
        await publish(other, "again")
        await one.wait_delivered(2)
        assert one.texts == ["lingers", "again"]


async def test_a_topic_with_one_message_takes_less_than_700_bytes(redis):
    async with connected(redis.url) as [process]:
        await publish(process, "x" * 64, "chat:00042")
        keys = redis.command("KEYS", "*chat:00042")
        assert sum(redis.command("MEMORY", "USAGE", key) for key in keys) < 700


# Cuts


def disconnect(redis):
    assert redis.command("CLIENT", "KILL", "TYPE", "pubsub") > 0


async def wait_for(condition):
    with anyio.fail_after(LIMIT):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def wait_open(process, before):
    """Until it has caught up on another connection."""
    backplane = process.backplane
    await wait_for(lambda: backplane._publisher.connection not in (None, before))


@asynccontextmanager
async def cut_off(redis, process, *, waits=True):
    """A process without its connection, until the end of the block, and until it has caught up if ``waits``."""
    backplane = process.backplane
    connect, gate, before = module.connect, anyio.Event(), backplane._connection

    async def connect_later(*args):
        await gate.wait()
        return await connect(*args)

    module.connect = connect_later
    try:
        before.cut("of the test")
        await wait_for(lambda: backplane._connection is None)
        yield
    finally:
        module.connect = connect
        gate.set()
    if waits:
        await wait_open(process, before)


@pytest.mark.parametrize("size", [1, 100_000], ids=["at once", "in parts"])
async def test_after_a_cut_what_was_missed_is_delivered_and_nobody_is_told(redis, size, caplog):
    caplog.set_level(logging.INFO, "microws.hub")
    async with connected(redis.url, redis.url) as (one, other):
        await publish(other, 0)
        await one.wait_delivered(1)
        async with cut_off(redis, one):
            for number in range(1, 8):
                await publish(other, f"{number} " + "x" * size)
        await publish(other, 8)
        await one.wait_delivered(9)
        assert [text.split()[0] for text in one.texts] == [str(number) for number in range(9)]
        assert one.losses == other.losses == []
    assert [line.split(": ")[-1] for line in caplog.messages[:1]] == ["of the test; connecting again"]
    assert re.fullmatch(r"connected to Redis at .* again after \d\.\d s", caplog.messages[1])
    assert len(caplog.messages) == 2


async def test_after_a_cut_many_topics_catch_up_part_by_part(redis, monkeypatch):
    monkeypatch.setattr(module, "_MAX_TOPICS", 2)
    topics = [f"topic {number}" for number in range(15)]
    async with connected(redis.url, redis.url) as (one, other):
        for topic in topics:
            await one.backplane.subscribe(topic)
        async with cut_off(redis, one):
            for number, topic in enumerate(topics):
                await publish(other, number, topic)
        await one.wait_delivered(15)
        assert sorted(map(int, one.texts)) == list(range(15))
        for topic in topics:
            await publish(other, "live", topic)
        await one.wait_delivered(30)
        assert (one.texts[15:], one.losses) == (["live"] * 15, [])


async def test_after_a_cut_those_who_missed_too_much_are_told_once(redis, caplog):
    async with connected(redis.url, redis.url, settings=TopicSettings(history=3)) as (one, other):
        await publish(other, 0)
        await one.wait_delivered(1)
        async with cut_off(redis, one):
            for number in range(1, 6):
                await publish(other, number)
        await publish(other, 6)
        await one.wait_delivered(2)
        assert (one.texts, one.losses) == (["0", "6"], [1])
    assert "messages were lost: Redis does not have all that followed the last ones of 1 topics" in caplog.messages


@pytest.mark.parametrize("begins", [False, True], ids=["nothing published before", "published before"])
@pytest.mark.parametrize("missed", [0, 1])
async def test_without_history_those_who_missed_something_are_told(redis, missed, begins):
    async with connected(redis.url, redis.url, settings=TopicSettings()) as (one, other):
        if begins:
            await publish(other, 0, has_history=False)
            await one.wait_delivered(1)
        async with cut_off(redis, one):
            for _ in range(missed):
                await publish(other, "missed", has_history=False)
        await publish(other, 1, has_history=False)
        await one.wait_delivered(begins + 1)
        assert one.texts == ["0", "1"][not begins :]
        assert len(one.losses) == missed


@pytest.mark.parametrize("has_history", [False, True])
async def test_a_restart_without_a_safe_log_is_told_to_all(tmp_path, has_history):
    with redis_server(tmp_path) as server:
        settings = TopicSettings(history=5 if has_history else 0)
        async with connected(server.url, settings=settings) as [process]:
            before = process.backplane._connection
            position = await publish(process, 0, has_history=has_history)
            await process.wait_delivered(1)
            await anyio.to_thread.run_sync(server.restart)
            await wait_open(process, before)
            assert process.losses == [1]
            if has_history:
                found = await process.backplane.read("t", position, history=5, ttl=None, by_key=False)
                assert not found.recovered


async def test_a_restart_that_loses_nothing_is_told_to_nobody(tmp_path):
    with redis_server(tmp_path, appendfsync="always") as server:
        async with connected(server.url) as [process]:
            before = process.backplane._connection
            position = await publish(process, 0)
            await anyio.to_thread.run_sync(server.restart)
            await wait_open(process, before)
            await publish(process, 1)
            await process.wait_delivered(2)
            assert (process.texts, process.losses) == (["0", "1"], [])
            found = await process.backplane.read("t", position, history=5, ttl=None, by_key=False)
            assert found.recovered


async def test_a_topic_that_is_given_up_during_catch_up_stays_so(redis, monkeypatch):
    monkeypatch.setattr(module, "_MAX_TOPICS", 1)
    monkeypatch.setattr(module, "_PARTS_AT_ONCE", 1)
    monkeypatch.setattr(topics, "_LINGER", 0)
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.01)
    async with connected(redis.url) as [process]:
        backplane = process.backplane
        await backplane.subscribe("left")
        # That of "t", before which nothing is known of the others.
        catch_up = backplane._topics.catch_up

        def give_up(behind, answers, **options):
            if behind[0].name == "t":
                del backplane._topics._by_channel[b"microws:0:t:left"]
            return catch_up(behind, answers, **options)

        monkeypatch.setattr(backplane._topics, "catch_up", give_up)
        async with cut_off(redis, process):
            pass
        assert redis.command("PUBSUB", "CHANNELS", "microws:0:t:*") == [b"microws:0:t:t"]


MINIMAL_RIGHTS = [
    *("-@all", "+hello", "+auth", "+select", "+info", "+config|get", "+script|load", "+evalsha"),
    *("+subscribe", "+unsubscribe", "+publish", "+time", "+get", "+set", "+del", "+exists", "+pexpire"),
    *("+rpush", "+lrange", "+llen", "+ltrim", "+hset", "+hget", "+hdel", "+hlen", "+hvals", "+hgetall"),
    *("resetkeys", "~microws:*", "resetchannels", "&microws:*"),
]


async def test_a_user_with_few_rights_suffices(tmp_path):
    with redis_server(tmp_path) as server:
        server.command("ACL", "SETUSER", "hub", "on", ">secret", *MINIMAL_RIGHTS)
        url = server.url.replace("//", "//hub:secret@")
        async with connected(url, url) as (one, other):
            first = await publish(one, 0, key=b"k")
            assert await publish(other, 1, key=b"k") == first
            for number in range(60):
                await publish(one, number, key=b"%d" % number)
                await publish(one, number, "by key", conflation=b"%d" % number)
            await publish(one, 1, "plain", has_history=False)
            assert (await one.backplane.read("t", first, history=100, ttl=None, by_key=False)).recovered
            await other.backplane.read("by key", None, history=1, ttl=None, by_key=True)
            assert await one.backplane.claim("c", 60)
            assert len(await one.backplane.ask({})) == 2
            assert (await one.backplane.ask_for_usage()).bytes > 0
            async with cut_off(server, other):
                await publish(one, "missed")
            await other.wait_delivered(62)
            assert other.losses == []


@pytest.mark.parametrize("refused", ["script|load", "evalsha", "subscribe", "info"])
async def test_a_right_that_is_missing_at_first_is_one_line(redis, refused):
    redis.command("ACL", "SETUSER", "few", "on", ">secret", "reset")
    redis.command(
        "ACL", "SETUSER", "few", "on", ">secret", *(right for right in MINIMAL_RIGHTS if right[1:] != refused)
    )
    with pytest.raises(HubUnavailable, match=f"Redis refused: .*{refused[:6]}"):
        await run(redis.url.replace("//", "//few:secret@"))


async def test_a_command_that_was_renamed_is_one_line(tmp_path):
    refusal = pytest.raises(HubUnavailable, match=r"Redis refused: ERR unknown command .EVALSHA. \(redis://")
    with redis_server(tmp_path, rename_command='EVALSHA ""') as server, refusal:
        await run(server.url)


async def test_a_redis_whose_settings_cannot_be_read_may_lose_messages(tmp_path):
    with redis_server(tmp_path, appendfsync="always", rename_command='CONFIG ""') as server:
        async with connected(server.url) as [process]:
            before = process.backplane._connection
            await publish(process, 0)
            await anyio.to_thread.run_sync(server.restart)
            await wait_open(process, before)
            assert process.losses == [1]


@pytest.mark.parametrize("takes", ["+subscribe", "+time"])
async def test_rights_that_are_taken_away_stop_nobody(tmp_path, caplog, takes):
    """Redis refuses what a process needs to catch up, and then not any more."""
    caplog.set_level(logging.INFO, "microws.hub")
    with redis_server(tmp_path) as server:
        server.command("ACL", "SETUSER", "hub", "on", ">secret", *MINIMAL_RIGHTS)
        async with connected(server.url.replace("//", "//hub:secret@")) as [process]:
            for topic in ("u", "v"):
                await process.backplane.subscribe(topic)
            await publish(process, 0)
            connections, connect = [], module.connect

            async def connect_and_count(*args):
                connection = await connect(*args)
                connections.append(connection)
                if len(connections) < 4:
                    server.command("ACL", "SETUSER", "hub", takes.replace("+", "-"))
                return connection

            # What is asked before is allowed.
            open_before = process.backplane._open

            async def allow(connection):
                server.command("ACL", "SETUSER", "hub", takes)
                await open_before(connection)

            process.backplane._open = allow
            before = process.backplane._connection
            module.connect = connect_and_count
            try:
                before.cut("of the test")
                await wait_open(process, before)
            finally:
                module.connect = connect
            assert len(connections) >= 4
            await publish(process, 1)
            await process.wait_delivered(2)
    assert [line.partition(" ")[0] for line in caplog.messages] == ["disconnected", "connected"]


def fill_memory(server):
    server.set(maxmemory="1")
    return lambda: server.set(maxmemory="0")


def fail_to_write_files(server):
    (server.directory / "dump.rdb").mkdir()
    server.set(save="3600 1")
    server.command("BGSAVE")
    return lambda: server.set(save="")


@pytest.mark.parametrize(
    ("refuse", "words"), [(fill_memory, "OOM"), (fail_to_write_files, "MISCONF")], ids=["memory", "disk"]
)
async def test_a_redis_that_takes_no_writes_is_connected_to(tmp_path, monkeypatch, caplog, refuse, words):
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.02)
    with redis_server(tmp_path) as server:
        async with connected(server.url, server.url) as (one, other):
            await publish(other, 0)
            accept = refuse(server)
            await wait_until_refused(other, words)
            before = one.backplane._connection
            before.cut("of the test")
            await wait_open(one, before)
            # It is quiet for longer than a connection that is dead.
            kept, probes = one.backplane._connection, []
            follow_probe = one.backplane._publisher._follow_probe
            monkeypatch.setattr(
                one.backplane._publisher, "_follow_probe", lambda *args: (probes.append(args), follow_probe(*args))
            )
            await wait_for(lambda: len(probes) > 3)
            assert one.backplane._connection is kept
            accept()
            await publish(other, 1)
            await one.wait_delivered(2)
            assert (one.texts, one.losses) == (["0", "1"], [])
    assert [line.partition(" ")[0] for line in caplog.messages] == ["disconnected"]


async def wait_until_refused(process, words):
    refused = ""
    with anyio.fail_after(LIMIT):
        while not refused:
            try:
                await publish(process, "probe", "other")
            except HubUnavailable as error:
                refused = str(error)
    assert refused.startswith(f"Redis refused: {words}")


async def test_a_full_redis_that_may_have_lost_messages_is_connected_to(tmp_path):
    """That is written down, though nothing else is."""
    with redis_server(tmp_path, appendfsync="everysec") as server:
        async with connected(server.url) as [process]:
            before = process.backplane._connection
            position = await publish(process, 0)
            await anyio.to_thread.run_sync(server.stop)
            server.settings["maxmemory"] = 1
            await anyio.to_thread.run_sync(server.start)
            await wait_open(process, before)
            assert process.losses == [1]
            read = process.backplane.read
            assert not (await read("t", position, history=5, ttl=None, by_key=False)).recovered
            async with connected(server.url) as [other]:
                server.set(maxmemory=0)
                await publish(other, 1)
                await process.wait_delivered(2)
                assert (process.losses, other.losses) == ([1], [])


@pytest.mark.parametrize("limit", [100_000, 30_000], ids=["larger than a message", "smaller"])
async def test_a_small_output_buffer_is_given_smaller_answers_and_pauses(tmp_path, monkeypatch, caplog, limit):
    """Redis disconnects a subscriber if more is pending."""
    caplog.set_level(logging.INFO, "microws.hub")
    monkeypatch.setattr(module, "random", lambda: 1)
    with redis_server(tmp_path) as server:
        async with connected(server.url, server.url) as (one, other):
            await publish(other, 0)
            await one.wait_delivered(1)
            before, lines = one.backplane._connection, len(caplog.messages)
            async with cut_off(server, one, waits=False):
                for number in range(1, 20):
                    await publish(other, f"{number} " + "x" * 40_000)
                server.set(client_output_buffer_limit=f"pubsub {limit} 0 0")
                connections = server.info("stats")["total_connections_received"]
                began = anyio.current_time()
            if limit > 40_000:
                await wait_open(one, before)
                await one.wait_delivered(20)
                assert [text.split()[0] for text in one.texts] == [str(number) for number in range(20)]
                assert one.losses == []
                return
            await wait_for(lambda: len(caplog.messages) >= lines + 2)
            assert anyio.current_time() - began > 0.5
            assert server.info("stats")["total_connections_received"] - connections < 10
            server.set(client_output_buffer_limit="pubsub 0 0 0")
            await wait_open(one, before)
            await one.wait_delivered(20)
    assert re.sub("redis://[^ ]*", "URL", caplog.messages[lines + 1]) == (
        "disconnected from Redis at URL 5 times in a row while asking for what was missed: it closed the connection"
    )
    assert [line.partition(" ")[0] for line in caplog.messages[lines:]] == ["disconnected"] * 2 + ["connected"]


@pytest.mark.parametrize("is_back", [False, True], ids=["replica", "replica, and back"])
async def test_what_a_replica_lacked_when_it_was_promoted_is_told(tmp_path, is_back):
    """Also of servers that write all to disk, and of one that was the primary before."""
    with (
        redis_server(tmp_path / "master", appendfsync="always") as master,
        Proxy(master.port) as front,
        Proxy(master.port) as between,
        redis_server(tmp_path / "replica", appendfsync="always") as replica,
    ):
        replica.replicate(between)
        async with connected(front.url) as [process]:
            before = process.backplane._connection
            position = await publish(process, 0)
            await wait_for(lambda: replica.command("EXISTS", "microws:l:t"))
            between.freeze()
            await publish(process, 1)
            front.refuses = True
            front.cut()
            replica.promote()
            if is_back:
                master.replicate(replica)
                master.promote()
            else:
                front.target = replica.port
            front.refuses = False
            await wait_open(process, before)
            assert process.losses == [2]
            assert not (await process.backplane.read("t", position, history=5, ttl=None, by_key=False)).recovered


async def test_what_was_not_answered_before_a_cut_is_published_once(redis):
    async with connected(redis.url, redis.url) as (one, other):
        publisher = one.backplane._publisher
        ids = []

        async def send(number, key=b""):
            ids.append(await publish(one, number, key=key))

        # Redis gets the messages, and its answers do not arrive any more.
        real = publisher._follow
        publisher._follow = lambda *_: None
        async with anyio.create_task_group() as tasks:
            for number in range(3):
                tasks.start_soon(send, number)
            await other.wait_delivered(3)
            publisher._follow = real
            disconnect(redis)
        await publish(one, "end")
        await other.wait_delivered(4)
        assert sorted(other.texts) == ["0", "1", "2", "end"]
        assert len(set(ids)) == 3


async def test_a_flush_and_forgotten_scripts_stop_nobody(redis, caplog):
    async with connected(redis.url, redis.url) as (one, other):
        old = await publish(one, 0)
        redis.command("FLUSHALL")
        await publish(one, 1)
        assert not (await one.backplane.read("t", old, history=5, ttl=None, by_key=False)).recovered
        redis.command("SCRIPT", "FLUSH")
        assert await other.backplane.claim("k", 60)
        await publish(one, 2)
        redis.command("SCRIPT", "FLUSH")
        await publish(one, 3)
        for process in (one, other):
            await process.wait_delivered(4)
            assert (process.texts, process.losses) == (["0", "1", "2", "3"], [])
    assert [line for line in caplog.messages if "has lost its messages" in line] == caplog.messages


async def test_a_replica_is_left(tmp_path):
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            await publish(process, 0)
            server.command("REPLICAOF", "127.0.0.1", free_port())
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(publish, process, 1)
                await wait_for(lambda: process.backplane._connection is None)
                server.promote()
            await process.wait_delivered(2)
            # It had no data of the other one.
            assert (process.texts, process.losses) == (["0", "1"], [])


async def test_a_silent_redis_is_left(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(module, "_CHECK_INTERVAL", 0.02)
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT", 0.1)
    with redis_server(tmp_path) as server:
        async with connected(server.url) as [process]:
            backplane, answers = process.backplane, []
            before = backplane._connection
            monkeypatch.setattr(backplane._publisher, "_follow_probe", lambda _, answer: answers.append(answer))
            # A quiet connection is kept as long as probes come back.
            await wait_for(lambda: len(answers) > 3 or backplane._connection is not before)
            assert backplane._connection is before
            server.pause()
            await wait_for(lambda: backplane._connection is None)
            server.resume()
            await wait_open(process, before)
            await publish(process, 1)
            await process.wait_delivered(1)
    assert "it does not answer; connecting again" in caplog.text


async def test_what_another_program_publishes_on_the_channels_stops_nobody(redis, caplog):
    async with connected(redis.url) as [process]:
        before = process.backplane._connection
        for channel in ("0:t:t", "0:ask:", f"r:{process.backplane._publisher.name.decode()}"):
            assert redis.command("PUBLISH", f"microws:{channel}", "hello")
        await publish(process, 1)
        await process.wait_delivered(1)
        assert (process.texts, process.losses) == (["1"], [])
        assert process.backplane._connection is before
    assert sorted(caplog.messages) == [
        "a message of another process cannot be delivered here",
        "a question of another process cannot be answered",
        "a reply of another process cannot be read",
    ]


async def test_what_another_version_sends_stops_nobody(redis, caplog):
    async with connected(redis.url, redis.url) as (one, other):
        deliver, answer = one.deliver, one.answer

        def fail(*_):
            raise KeyError("of another version")

        one.deliver, one.answer = fail, fail
        await publish(other, 0)
        assert len(await other.backplane.ask({}, first=True)) == 1
        await one.backplane.position("t")
        one.deliver, one.answer = deliver, answer
        await publish(other, 1)
        await one.wait_delivered(1)
        assert one.texts == ["1"]
    assert "a message of another process cannot be delivered here" in caplog.text
    assert "a question of another process cannot be answered" in caplog.text
