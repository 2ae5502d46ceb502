"""The backplane of several processes of one machine passes the suite, with the log in memory and in a file."""

import asyncio
import os
import re
import resource
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from itertools import chain

import anyio
import pytest
from conformance import HISTORY, BackplaneConformance, text
from hub_here import hub_in_thread
from hubs import HISTORY_BYTES, LIMIT, Process, hub_process, kill_at_line

from microws.errors import HubUnavailable, PublishTimeout
from microws.hub import gather, log
from microws.hub.log import MIN_BYTES
from microws.interfaces import Payload, Receipt
from microws.local import client
from microws.local import hub_process as hub_process_module
from microws.local.client import LocalBackplane
from microws.local.directory import socket_path
from microws.local.wire import ACK, LENGTH, PROTOCOL, WELCOME, Op, frame

pytestmark = pytest.mark.anyio


class TestInMemory(BackplaneConformance):
    processes = 3

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path):
        with hub_process(tmp_path / "hub", is_temporary=True) as self.hub:
            yield

    def connect(self):
        return LocalBackplane(self.hub.path)


class TestInAFile(TestInMemory):
    @pytest.fixture(autouse=True)
    def hub(self, tmp_path):
        with hub_process(tmp_path / "hub") as self.hub:
            yield

    @pytest.fixture(params=[("asyncio", {"use_uvloop": False})], ids=["asyncio"])
    def anyio_backend(self, request):
        return request.param


class TestInAThread(TestInAFile):
    """Its lines count for the coverage of the tests."""

    @pytest.fixture(autouse=True)
    def hub(self, tmp_path):
        with hub_in_thread(tmp_path / "hub", history_bytes=HISTORY_BYTES) as self.path:
            yield

    def connect(self):
        return LocalBackplane(socket_path(self.path))


@pytest.fixture
def hub(tmp_path):
    with hub_process(tmp_path / "hub", is_temporary=True) as hub:
        yield hub


@pytest.fixture
def small_hub(tmp_path):
    with hub_process(tmp_path / "hub", is_temporary=True, history_bytes=MIN_BYTES) as hub:
        yield hub


@pytest.fixture
def short(monkeypatch):
    """What waits for the hub process gives up soon."""
    assert client._TIMEOUT == 2
    monkeypatch.setattr(client, "_TIMEOUT", 0.3)
    monkeypatch.setattr(client, "_CHECK_INTERVAL", 0.02)


@asynccontextmanager
async def connected(hub, *subscriptions):
    """A process for each tuple of topics, which it subscribes to."""
    processes = [Process(LocalBackplane(hub.path)) for _ in subscriptions]
    async with anyio.create_task_group() as tasks:
        for process, topics in zip(processes, subscriptions, strict=True):
            process.backplane.start(process)
            await tasks.start(lambda process=process, *, task_status: process.backplane.run(task_status=task_status))
            for topic in topics:
                await process.backplane.subscribe(topic)
        with anyio.fail_after(3 * LIMIT):
            yield processes
        tasks.cancel_scope.cancel()


async def publish(process, value, topic="t", **options):
    with anyio.fail_after(LIMIT):
        return await process.backplane.publish(text(value, topic), **{"has_history": True} | options)


# Interest


async def test_a_topic_is_delivered_to_processes_that_subscribe(hub):
    async with connected(hub, ("t", "end"), ("end",)) as (one, other):
        await publish(one, 1)
        await publish(other, 2)
        await publish(other, "end", "end")
        await one.wait_delivered(3)
        await other.wait_delivered(1)
        assert one.texts == ["1", "2", "end"]
        assert other.texts == ["end"]


async def test_a_message_that_cannot_be_delivered_stops_no_others(hub, caplog, monkeypatch):
    async with connected(hub, ("t",), ()) as (one, other):
        deliver = one.deliver

        def fail_once(payload, skip=None, entry=None):
            if payload.data == b"1":
                raise KeyError("of another version")
            return deliver(payload, skip, entry)

        monkeypatch.setattr(one, "deliver", fail_once)
        for n in range(3):
            await publish(other, n)
        await one.wait_delivered(2)
        assert one.texts == ["0", "2"]
    assert "a message of another process cannot be delivered here" in caplog.text


async def test_a_topic_that_was_left_is_given_up_after_a_while(hub, monkeypatch):
    assert client._LINGER == 5
    monkeypatch.setattr(client, "_LINGER", 0.1)
    monkeypatch.setattr(client, "_CHECK_INTERVAL", 0.02)
    async with connected(hub, ("t", "end"), ()) as (one, other):
        one.backplane.unsubscribe("t")
        await publish(other, "lingers")
        await one.wait_delivered(1)
        with anyio.fail_after(LIMIT):
            while "t" in one.backplane._topics:
                await anyio.lowlevel.checkpoint()
        await publish(one, "gone")
        await publish(other, "gone")
        await publish(other, "end", "end")
        await one.wait_until(lambda one: one.texts[-1] == "end")
        assert one.texts == ["lingers", "end"]
        await one.backplane.subscribe("t")
        await publish(other, "again")
        await one.wait_until(lambda one: one.texts[-1] == "again")


async def test_names_of_topics_that_were_left_are_forgotten(hub, monkeypatch):
    monkeypatch.setattr(client, "_LINGER", 0.01)
    monkeypatch.setattr(client, "_CHECK_INTERVAL", 0.02)
    async with connected(hub, ()) as [process]:
        backplane = process.backplane
        for part in range(3):
            topics = [f"{part}.{number}" for number in range(600)]
            async with anyio.create_task_group() as tasks:
                for topic in topics:
                    tasks.start_soon(backplane.subscribe, topic)
            for topic in topics:
                await backplane.publish(text("hi", topic))
            await process.wait_delivered(600 * (part + 1))
            for topic in topics:
                backplane.unsubscribe(topic)
            with anyio.fail_after(LIMIT):
                while backplane._topics:
                    await anyio.lowlevel.checkpoint()
        assert len(backplane._names) <= 1024 + 600


# A hub process that does not answer


async def test_what_waits_for_a_stopped_hub_process_raises(hub, short):
    async with connected(hub, ("t",)) as [process]:
        backplane = process.backplane
        hub.signal(signal.SIGSTOP)
        for ask in (
            partial(backplane.publish, text("late"), has_history=True),
            partial(backplane.subscribe, "u"),
            partial(backplane.read, "t", "start", history=1, ttl=None, by_key=False),
            partial(backplane.position, "t"),
            partial(backplane.claim, "k", 60),
            partial(backplane.ask, {}),
        ):
            began = anyio.current_time()
            with pytest.raises(PublishTimeout, match="expected"), anyio.fail_after(LIMIT):
                await ask()
            assert anyio.current_time() - began >= 0.3
        hub.signal(signal.SIGCONT)
        # It was not lost.
        await process.wait_delivered(1)
        await publish(process, "next")
        assert process.texts == ["late", "next"]


async def test_without_history_a_publish_waits_for_room_only(hub, short):
    async with connected(hub, ("t",)) as [process]:
        hub.signal(signal.SIGSTOP)
        payload = Payload("bytes", bytes(100_000), "t")
        for _ in range(10):
            assert await process.backplane.publish(payload) == Receipt(1)
        with pytest.raises(PublishTimeout, match="keep up"), anyio.fail_after(LIMIT):
            await process.backplane.publish(payload)
        hub.signal(signal.SIGCONT)
        await process.wait_delivered(10)
        with anyio.fail_after(LIMIT):
            await process.backplane.publish(payload)
        assert len(await process.wait_delivered(11)) == 11


async def test_a_stopped_hub_process_answers_late_for_others_only(hub, short):
    async with connected(hub, (), ()) as (one, other):
        hub.signal(signal.SIGSTOP)
        with pytest.raises(PublishTimeout):
            await one.backplane.claim("k", 60)
        hub.signal(signal.SIGCONT)
        # The claim was made, and its caller does not know.
        assert not await other.backplane.claim("k", 60)


async def test_one_that_the_hub_process_refuses_comes_back_after_a_pause(hub, monkeypatch, caplog):
    assert client._PAUSE_AFTER_REFUSAL == 1
    monkeypatch.setattr(client, "_PAUSE_AFTER_REFUSAL", 0.1)
    async with connected(hub, ("t",), ("t",)) as (one, other):
        began = anyio.current_time()
        # As a message that the log does not take: it is sent again each time.
        one.backplane._unacknowledged.append((1, nonsense := frame(LENGTH, Op.READ)))
        one.backplane._put(nonsense)
        with anyio.fail_after(LIMIT):
            while (count := caplog.text.count("refuses what this process sends")) < 3:
                await anyio.lowlevel.checkpoint()
        assert anyio.current_time() - began >= 0.2
        assert count == 3
        one.backplane._unacknowledged.clear()
        await publish(other, 1)
        await one.wait_delivered(1)
        assert (one.texts, one.losses) == (["1"], [])


@HISTORY
async def test_a_message_that_is_too_large_is_refused_before_the_limit_is_known(hub, has_history):
    """The hub process would refuse the process that sends it."""
    hub.stop()
    process = Process(LocalBackplane(hub.path))
    errors = []

    async def publish_large(size):
        try:
            await process.backplane.publish(Payload("bytes", bytes(size), "t"), has_history=has_history)
        except (ValueError, PublishTimeout) as error:
            errors.append(str(error))
        else:
            errors.append(size)

    process.backplane.start(process)
    with anyio.fail_after(LIMIT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.backplane.run)
            async with anyio.create_task_group() as publishing:
                publishing.start_soon(publish_large, HISTORY_BYTES // 2)
                publishing.start_soon(publish_large, 20_000)
                await anyio.wait_all_tasks_blocked()
                assert errors == []
                hub.signal(signal.SIGCONT)
            [small] = [each for each in errors if each == 20_000]
            [large] = [each for each in errors if each != small]
            assert re.match(r"expected a message of at most \d+ bytes, got 4194304: App\(history_bytes", large)
            errors.clear()
            await process.backplane.aclose()
            tasks.cancel_scope.cancel()


async def test_who_asks_too_few_is_told(hub, short, monkeypatch, caplog):
    async with connected(hub, (), (), ()) as (one, other, silent):
        monkeypatch.setattr(silent, "answer", None)
        with anyio.fail_after(LIMIT):
            answers = await one.backplane.ask({"disconnect": {}})
        assert sorted(answer["name"] for answer in answers) == sorted([one.name, other.name])
        assert "2 of 3 workers answered within 0.3 s; the others are left out: disconnect" in caplog.text
        caplog.clear()
        assert await one.backplane.ask({"settings": True}, first=True)
        assert "left out" not in caplog.text


@pytest.mark.uvloop
@pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": True})], ids=["uvloop"])
async def test_a_hub_process_that_ends_with_messages_to_read_both_ways_is_noticed(tmp_path):
    """uvloop calls the reader once for the error that this leaves, though there is a message to read before it."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        listener.setblocking(False)

        async def accept():
            with anyio.fail_after(LIMIT):
                await anyio.wait_readable(listener)
                sock, _ = listener.accept()
                await anyio.wait_readable(sock)
                assert sock.recv(4096)
                sock.send(frame(WELCOME, Op.WELCOME, PROTOCOL, 1, HISTORY_BYTES, 0, 0))
                return sock

        process = Process(LocalBackplane(str(tmp_path / "socket")))
        process.backplane.start(process)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(process.backplane.run)
            hub = await accept()
            with hub:
                await anyio.wait_all_tasks_blocked()
                await process.backplane.publish(text(1))
                with anyio.fail_after(LIMIT):
                    await anyio.wait_readable(hub)
                hub.send(frame(ACK, Op.ACK, 0, 0))
            (await accept()).close()
            tasks.cancel_scope.cancel()


# What is sent together

ON_ASYNCIO = pytest.mark.parametrize("anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"])


@pytest.fixture
def sent(monkeypatch):
    """Connects a process, and a socket from which to read what it sends."""

    @asynccontextmanager
    async def sent(hub):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        async with connected(hub, ()) as (one,):
            with ours, theirs:
                monkeypatch.setattr(one.backplane, "_sock", ours)
                yield one.backplane, theirs

    return sent


@ON_ASYNCIO
async def test_what_is_published_in_turns_after_each_other_is_sent_together(hub, sent, monkeypatch):
    monkeypatch.setattr(gather, "_LONGEST_WAIT", LIMIT)
    async with sent(hub) as (backplane, output):
        for number in range(3):
            await backplane.publish(text(number))
            for _ in range(gather._QUIET_TURNS):
                await asyncio.sleep(0)
            with pytest.raises(BlockingIOError):
                output.recv(1)
        await asyncio.sleep(0)
        data = output.recv(4096)
        lengths = []
        while data:
            lengths.append(LENGTH.unpack_from(data)[0])
            data = data[lengths[-1] :]
        assert len(lengths) == 3


@ON_ASYNCIO
@pytest.mark.parametrize("other", ["_MAX_COUNT", "_LONGEST_WAIT"])
async def test_what_is_published_in_each_turn_is_sent_soon(hub, sent, monkeypatch, other):
    """After some messages, and after a while."""
    monkeypatch.setattr(client, "_MAX_PENDING", 1 << 40)
    monkeypatch.setattr(gather, other, 1 << 40)
    async with sent(hub) as (backplane, output):
        is_sent = False
        while not is_sent:
            await backplane.publish(text(1))
            await asyncio.sleep(0)
            with suppress(BlockingIOError):
                is_sent = bool(output.recv(1))


# A hub process that is killed


async def test_after_a_kill_everything_goes_on_and_nobody_is_told(hub):
    async with connected(hub, ("t", "u"), ("t",)) as (one, other):
        for number in range(10):
            await publish(one, number)
            await publish(other, number, "u")
            await hub.kill()
        assert await one.backplane.claim("k", 60)
        await hub.kill()
        assert not await other.backplane.claim("k", 60)
        await one.wait_delivered(20)
        await other.wait_delivered(10)
        assert one.texts == [str(number // 2) for number in range(20)]
        assert other.texts == [str(number) for number in range(10)]
        assert one.losses == other.losses == []


async def test_after_a_kill_a_process_without_descriptors_connects_once_it_has_one(hub, caplog):
    async with connected(hub, ("t",)) as [process]:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            hub.end()
            with anyio.fail_after(LIMIT):
                while "connecting again" not in caplog.text:
                    await anyio.lowlevel.checkpoint()
            await anyio.wait_all_tasks_blocked()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        await hub.wait_started(2)
        await publish(process, 1)
        await process.wait_delivered(1)


async def test_a_process_that_got_nothing_for_long_is_not_told_of_a_loss(small_hub):
    """Whatever was published to other topics meanwhile."""
    async with connected(small_hub, ("quiet",), ()) as (one, other):
        for _ in range(100):
            await publish(other, "x" * 2_000)
        await small_hub.kill()
        await publish(other, "hi", "quiet")
        await one.wait_delivered(1)
        assert (one.texts, one.losses) == (["hi"], [])


@pytest.mark.parametrize("is_read", [False, True], ids=["not read", "read"])
async def test_after_a_kill_there_is_room_again(hub, short, caplog, is_read):
    """Its acknowledgements may be lost with it. What the socket did not take is no beginning for the next one."""
    async with connected(hub, ()) as [process]:
        hub.signal(signal.SIGSTOP)
        payload = Payload("bytes", bytes(500_000), "t")
        for _ in range(2):
            await process.backplane.publish(payload)
        if is_read:
            hub.signal(signal.SIGCONT)
        await hub.kill()
        with anyio.fail_after(LIMIT):
            while process.backplane._unacknowledged:
                await process.backplane.aclose()  # which may give up before the next hub process answers
        assert "refuses" not in caplog.text


async def test_a_claim_holds_whatever_is_published(small_hub):
    async with connected(small_hub, (), ()) as (one, other):
        assert await one.backplane.claim("k", 60)
        for _ in range(100):
            await publish(other, "x" * 2_000)
        assert not await other.backplane.claim("k", 60)
        await small_hub.kill()
        assert not await other.backplane.claim("k", 60)


async def test_too_many_claims_are_an_error_for_those_that_make_them(small_hub):
    async with connected(small_hub, (), ()) as (one, other):
        for number in range(1024):
            assert await one.backplane.claim(f"{number}", 60)
        for process in (one, other):
            with pytest.raises(HubUnavailable, match="at most 1024 claims that hold at once"):
                await process.backplane.claim("one more", 60)
            assert not await process.backplane.claim("7", 60)


CLAIMER = """
import sys
import anyio
from microws.local import client
from microws.local.client import LocalBackplane

client._TIMEOUT = 60  # a claim whose answer is late is made, and nobody knows


class Receiver:
    is_busy = False


async def claim(backplane, name):
    if await backplane.claim(name, 60):
        print(name)


async def main(path):
    backplane = LocalBackplane(path)
    backplane.start(Receiver())
    async with anyio.create_task_group() as tasks:
        await tasks.start(lambda *, task_status: backplane.run(task_status=task_status))
        print("ready", flush=True)
        sys.stdin.readline()
        async with anyio.create_task_group() as claims:
            for number in range(500):
                claims.start_soon(claim, backplane, f"ticket {number}")
        tasks.cancel_scope.cancel()


anyio.run(main, sys.argv[1])
"""


@pytest.mark.parametrize("kills", [0, 5])
def test_of_several_processes_that_claim_at_once_one_has_each(small_hub, kills):
    command = [sys.executable, "-c", CLAIMER, small_hub.path]
    with ExitStack() as stack:
        claimers = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(4)
        ]
        for claimer in claimers:
            stack.callback(claimer.kill)
        for claimer in claimers:
            assert claimer.stdout.readline() == "ready\n"
        for claimer in claimers:
            claimer.stdin.write("go\n")
            claimer.stdin.flush()
        for _ in range(kills):
            small_hub.end()
            small_hub.check()
        got = [claimer.communicate(timeout=3 * LIMIT)[0].splitlines() for claimer in claimers]
    assert sorted(chain(*got)) == sorted(f"ticket {number}" for number in range(500))
    assert [claimer.returncode for claimer in claimers] == [0] * 4


async def kill_at_lines(path, step):
    """
    The hub process is killed at every n-th line from a publish on, again and again, until it gets to the end.

    Each message arrives once, in one order; each publisher is told of it; no client is told of a loss.
    """
    armed = step

    def run(process):
        kill_at_line(process, armed, b"first of %d;" % armed, hub_process_module, log)

    with hub_process(path, is_temporary=True, run=run) as hub:
        async with connected(hub, ("t", "n"), ("t", "n", "u")) as (one, other):
            expected = []
            is_killed = True
            while is_killed:
                line, starts, ids = armed, hub.starts, {}
                armed += step  # the next process

                async def send(name, process, topic="t", *, number=1, ids=ids, line=line, **options):
                    ids[name, number] = (await publish(process, f"{name} of {line};", topic, **options)).id

                async with anyio.create_task_group() as tasks:
                    for number in (1, 2):
                        keyed = partial(send, key=b"%d" % line, number=number)
                        tasks.start_soon(partial(keyed, "first", one))
                    tasks.start_soon(partial(send, "second", one, "u"))
                    tasks.start_soon(partial(send, "third", one, "n", has_history=False))
                    tasks.start_soon(partial(send, "fourth", other))
                    tasks.start_soon(partial(send, "fifth", other, "alone"))
                    while len(ids) < 6:
                        hub.check()
                        await anyio.sleep(0.001)
                    # It may be killed between the acknowledgement and the other process.
                    tasks.start_soon(hub.keep)
                    expected += [f"{name} of {line};" for name in ("first", "fourth", "third")]
                    await one.wait_delivered(len(expected))
                    await other.wait_delivered(len(expected) // 3 * 4)
                    tasks.cancel_scope.cancel()
                hub.check()
                is_killed = hub.starts > starts
                # The two of one key have one position, which the second may not have come to know.
                assert len(set(ids.values()) - {None}) == 4
                assert None not in [position for (name, _), position in ids.items() if name not in ("first", "third")]
            for process in (one, other):
                assert sorted(each for each in process.texts if "second" not in each) == sorted(expected)
                assert process.losses == []
                await process.backplane.aclose()
                assert not process.backplane._unacknowledged
            for topic in "tn":
                orders = [
                    [payload.data for payload, _, _ in process.delivered if payload.topic == topic]
                    for process in (one, other)
                ]
                assert orders[0] == orders[1]
    assert line > 150


async def test_a_kill_between_commit_and_forward_loses_and_doubles_nothing(tmp_path):
    await kill_at_lines(tmp_path / "hub", 1 if os.environ.get("CHAOS") == "whole" else 23)


# A log that is lost


@pytest.mark.parametrize("is_tail", [False, True], ids=["another run of the machine", "an older copy"])
async def test_everybody_is_told_of_a_lost_log(tmp_path, monkeypatch, is_tail):
    """The machine ended meanwhile; or a copy of the file was put back, whose places are used again."""
    with hub_process(tmp_path / "hub") as hub:
        async with connected(hub, ("t",), ("t",)) as processes:
            kept = (await publish(processes[0], "kept")).id
            file = hub.directory.log_file
            size = os.fstat(file).st_size
            copy = os.pread(file, size, 0)
            lost = [(await publish(processes[0], number)).id for number in range(3)]
            empty = await processes[0].backplane.position("empty")
            for process in processes:
                await process.wait_delivered(4)
            hub.end()
            if is_tail:
                os.pwrite(file, copy, 0)
            else:
                monkeypatch.setattr(hub.directory, "_boot", 7)
            await hub.wait_started(2)
            for process in processes:
                await process.wait_until(lambda process: process.losses)
            after = [(await publish(processes[1], f"after {number}")).id for number in range(3)]
            for process in processes:
                await process.wait_delivered(7)
                assert process.losses == [4]
                assert process.texts[4:] == ["after 0", "after 1", "after 2"]
            assert not set(after) & set(lost)
            for position in (*lost, kept, empty):
                for topic in ("t", "empty"):
                    read = processes[0].backplane.read
                    found = await read(topic, position, history=10, ttl=None, by_key=False)
                    assert found.recovered == (is_tail and (position, topic) == (kept, "t"))


async def test_a_process_that_was_overtaken_by_the_log_is_told(small_hub):
    async with connected(small_hub, ("t",), ()) as (one, other):
        one.is_busy = True
        gate = anyio.Event()
        one.relax = gate.wait
        for number in range(600):
            await publish(other, f"{number} " + "x" * 2_000)
        gate.set()
        one.is_busy = False
        await one.wait_until(lambda one: one.losses)
        await publish(other, "end")
        await one.wait_until(lambda one: one.texts[-1] == "end")
        numbers = [int(each.split()[0]) for each in one.texts[:-1]]
        first = numbers[: one.losses[0]]
        assert first == list(range(len(first)))
        assert numbers == sorted(set(numbers))
