"""
The hub and the outboxes against a model, over both kinds of connection: any events in any order.

Each client is judged by the bytes or events that it gets: published messages arrive once and in one order, each loss is
marked, and a connection that was closed got nothing after its loss.
"""

import asyncio
import logging
from collections import Counter
from functools import partial

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from judging_clients import MAX_HEAD, TOPICS, UNLIMITED, ASGIEnd, Client, Message, SocketEnd, value_of
from virtual_clock import VirtualClockLoop
from websocket_server import DEFAULTS

from microws import App, WebSocketDisconnect
from microws.hub import MAX_BYTES
from microws.interfaces import Limits
from microws.server.settings import Settings
from microws.server.websockets import WebSockets

MIB = 1 << 20

# Payload bytes, about: small ones, some for a part of a batch, and more than a part, than 1 MiB.
SIZE = st.sampled_from([0, 0, 30, 30, 200, 3_000, 20_000, 70_000, 400_000, MIB + 100])
# Three of the largest do not fit into an outbox.
SEND_SIZE = st.sampled_from([0, 30, 3_000, 70_000, 400_000, 400_000, 400_000, MIB + 100])
MAX_CONNECTIONS = 5

# A connection, by its place in the order of connecting.
WHO = st.integers(0, MAX_CONNECTIONS - 1)
# A closed connection tests nothing more: that topic is drawn less often.
NAME = st.sampled_from(["oldest", "newest", "latest", "last", "oldest", "newest", "latest", "last", "close", "close"])
CONNECTION = {
    "is_direct": st.booleans(),
    "path": st.sampled_from(["text-gaps", "json-gaps", "text-gaps", "json-gaps", "text", "json"]),
    "early": st.sampled_from([[], [], ["close"], ["oldest", "newest"]]),
    "topics": st.just(["oldest", "newest", "latest"]) | st.lists(NAME, min_size=1, max_size=3, unique=True),
    "accepts": st.sampled_from([True, True, False]),
    "high_water": st.sampled_from([0, 0, 2_000, 64 << 10]),
    "chunk": st.sampled_from([UNLIMITED, UNLIMITED, 200_000, 20_000]),
    # On the direct transport: compressed. On the other: the server's send lets other tasks run each time.
    "variant": st.booleans(),
}
# The actions, their weights and their arguments. One rule draws them all: hypothesis leaves some rules of a machine
# out of each run, and without a publish there is nothing to judge.
ACTIONS = {
    "publish": (
        16,
        {
            "topic": NAME,
            "kind": st.sampled_from(["dict", "dict", "str", "bytes"]),
            "size": SIZE,
            "key": st.sampled_from("abc"),
            "amount": st.integers(1, 6),
            "skipped": st.just(None) | WHO,
        },
    ),
    "burst": (2, {"topic": NAME, "size": st.sampled_from([0, 100, 2_000]), "amount": st.integers(10, 80)}),
    "send": (
        8,
        {"who": WHO, "size": SEND_SIZE, "kind": st.sampled_from(["str", "bytes"]), "amount": st.integers(1, 4)},
    ),
    "cancel": (3, {"who": WHO, "which": st.integers(0, 3)}),
    "stall": (6, {"who": WHO}),
    "resume": (4, {"who": WHO}),
    "turn": (5, {}),
    "settle": (4, {"seconds": st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 6, 11])}),
    "subscribe": (1, {"who": WHO, "topics": st.lists(NAME, min_size=1, max_size=3)}),
    "unsubscribe": (1, {"who": WHO, "topics": st.lists(NAME, min_size=1, max_size=3)}),
    "connect": (1, CONNECTION),
    "accept": (1, {"who": WHO}),
    "close": (2, {"who": WHO}),
    "return": (1, {"who": WHO}),
    "leave": (1, {"who": WHO, "orderly": st.booleans()}),
}
OFTEN = [name for name, (times, _) in ACTIONS.items() for _ in range(times)]


@st.composite
def action(draw):
    name = draw(st.sampled_from(OFTEN))
    return name, draw(st.fixed_dictionaries(ACTIONS[name][1]))


class Log(logging.Handler):
    """Treats every logged error as a failure of the test."""

    def __init__(self, failures):
        super().__init__(logging.ERROR)
        self._failures = failures

    def emit(self, record):
        self._failures.append(record.exc_info[1] if record.exc_info else record.getMessage())


class Loop(VirtualClockLoop):
    """Runs one turn, or until no task can go on, or for some seconds of its virtual time. It never waits."""

    def __init__(self):
        super().__init__()
        self._until = 0.0

    def turn(self):
        self.call_soon(self.stop)
        self.run_forever()

    def settle(self, seconds=0.0):
        self._until = self._now + seconds
        self.run_forever()

    def _advance(self, seconds):
        if seconds is None or self._now + seconds > self._until:
            self._now = self._until
            self.stop()
        else:
            self._now += seconds


class HubMachine(RuleBasedStateMachine):
    """
    Actions only say what is to happen in the next turn of the event loop, in their order; ``turn`` and ``settle`` have
    it happen.
    """

    @initialize(connections=st.lists(st.fixed_dictionaries(CONNECTION), min_size=2, max_size=4))
    def start(self, connections):
        self.loop = Loop()
        self.failures = []
        self.loop.set_exception_handler(lambda _, context: self.failures.append(context.get("exception") or context))
        self.app = App(compression=True)
        for topic, options in TOPICS.items():
            self.app.topic(topic, **options)
        for codec in ("text", "json"):
            for gaps in (False, True):
                path = f"/{codec}-gaps" if gaps else f"/{codec}"
                self.app.websocket_route(path, value_type=codec, gaps=gaps)(self.view)
        self.websockets = WebSockets(self.app, Settings(**DEFAULTS), limits=Limits(compression=True), extension={})
        self.members = []
        self.messages = []
        self.tasks = []
        self.largest = 0
        self.published = 0
        self.is_broken = False
        self.log = Log(self.failures)
        logging.getLogger("microws").addHandler(self.log)
        for connection in connections:
            self._connect(**connection)

    # What the app does

    async def view(self, ws):
        client = self.members[int(ws.query["n"])]
        client.ws = ws
        if client.early:
            await self.subscribe(client, client.early)
        await client.go.wait()
        async with ws:
            async for message in ws:
                if message == "return":
                    break

    def spawn(self, coroutine):
        self.tasks.append(self.loop.create_task(coroutine))

    def add(self, value, **options):
        message = Message(len(self.messages), value, **options)
        self.messages.append(message)
        return message

    async def publish(self, topic, kind, size, key, skipped):
        number = len(self.messages)
        value = value_of(kind, number, size, key)
        # A dict has its key; of the others a topic by key knows none.
        self.add(value, topic=topic, key=key if kind == "dict" and topic == "latest" else None)
        self.largest = max(self.largest, size + 100)
        due = [client for client in self.members if client.is_open() and topic in client.subscribed]
        due = [client for client in due if client is not skipped]
        for client in due:
            client.expected[topic].append(number)
        self.published += 1
        skip = None if skipped is None or skipped.ws is None else skipped.ws.id
        receipt = await self.app.hub.publish(topic, value, skip=skip)
        assert receipt.subscribers <= len(due)

    async def publish_all(self, amount, topic, size):
        for _ in range(amount):
            await self.publish(topic, "str", size, None, None)

    async def send(self, client, size, kind):
        if not client.is_accepted or not client.is_open():
            return
        value = value_of(kind, len(self.messages), size, None)
        message = self.add(value)
        message.is_optional = True
        client.sends.append(message)
        self.largest = max(self.largest, size + 100)
        try:
            await client.ws.send(value, type="auto" if client.codec == "text" or kind == "bytes" else None)
        except WebSocketDisconnect:
            return
        message.is_optional = False
        message.returned = len(self.messages)

    async def subscribe(self, client, topics):
        if not client.is_open():
            return
        await client.ws.subscribe(*topics)
        client.subscribed.update(topics)
        client.was_stalled = client.was_stalled or not client.is_accepted

    async def unsubscribe(self, client, topics):
        if client.ws is not None:
            await client.ws.unsubscribe(*topics)
            client.subscribed.difference_update(topics)

    async def close(self, client):
        if client.is_open() and client.is_accepted:
            await client.ws.close(4000)

    # What may happen

    @rule(actions=st.lists(action(), min_size=1, max_size=10))
    def happen(self, actions):
        for name, arguments in actions:
            arguments = dict(arguments)
            who = arguments.pop("who", None)
            if who is not None:
                arguments["client"] = self.members[who % len(self.members)]
            getattr(self, f"_{name}")(**arguments)

    def _connect(self, *, is_direct, path, early, topics, accepts, high_water, chunk, variant):
        if len(self.members) == MAX_CONNECTIONS:
            return
        is_quick = is_direct and chunk == UNLIMITED
        client = Client(self, len(self.members), path=path, early=early, is_quick=is_quick)
        self.members.append(client)
        if is_direct:
            client.end_point = SocketEnd(client, self.loop, high_water=high_water, chunk=chunk, inflates=variant)
        else:
            client.end_point = ASGIEnd(client, self.loop, suspends=variant)
        self.loop.call_soon(client.end_point.connect, self)
        self.loop.settle()
        if accepts:
            client.go.set()
            self.loop.settle()
            self._subscribe(client, topics)

    def _accept(self, client):
        self.loop.call_soon(client.go.set)

    def _subscribe(self, client, topics):
        self.spawn(self.subscribe(client, topics))

    def _unsubscribe(self, client, topics):
        self.spawn(self.unsubscribe(client, topics))

    def _publish(self, topic, kind, size, key, amount, skipped):
        """By several publishers in one turn."""
        skipped = None if skipped is None else self.members[skipped % len(self.members)]
        for _ in range(amount if size < MIB else 1):
            self.spawn(self.publish(topic, kind, size, key, skipped))

    def _burst(self, topic, size, amount):
        """By one publisher, which does nothing else."""
        self.spawn(self.publish_all(amount, topic, size))

    def _send(self, client, size, kind, amount):
        for _ in range(amount):
            client.tasks.append(self.loop.create_task(self.send(client, size, kind)))

    def _cancel(self, client, which):
        waiting = [task for task in client.tasks if not task.done()]
        if waiting:
            waiting[which % len(waiting)].cancel()

    def _stall(self, client):
        self.loop.call_soon(client.end_point.stall)
        client.was_stalled = True

    def _resume(self, client):
        self.loop.call_soon(client.end_point.resume)

    def _close(self, client):
        self.spawn(self.close(client))

    def _return(self, client):
        self.loop.call_soon(client.end_point.say, '"return"' if client.codec == "json" else "return")

    def _leave(self, client, orderly):
        self.loop.call_soon(partial(client.end_point.leave, orderly=orderly))

    def _turn(self):
        self.loop.turn()

    def _settle(self, seconds):
        self.loop.settle(seconds)

    # What must hold

    @invariant()
    def holds(self):
        if not hasattr(self, "loop"):
            return
        try:
            self._judge()
        except BaseException:
            self.is_broken = True
            raise

    def _judge(self):
        for failure in self.failures:
            raise failure if isinstance(failure, BaseException) else AssertionError(failure)
        for task in self.tasks:
            if task.done():
                task.result()
        for client in self.members:
            if client.ws is not None:
                self._judge_bounds(client)
        statistics = self.app.hub.statistics()
        subscribed = [client.subscribed for client in self.members if client.is_open()]
        assert statistics.subscriptions == sum(map(len, subscribed))
        assert statistics.subscribers == sum(map(bool, subscribed))
        assert statistics.topics == len(set().union(*subscribed))
        assert statistics.published == self.published

    def _judge_bounds(self, client):
        client.end_point.judge_bounds()
        outbox = client.ws._connection.outbox
        if outbox is not None:
            markers = MAX_HEAD * sum(options["queue"] for options in TOPICS.values())
            assert outbox.size <= max(MAX_BYTES, self.largest) + markers

    def teardown(self):
        if not hasattr(self, "loop"):
            return
        try:
            if not self.is_broken:
                self._end()
        finally:
            logging.getLogger("microws").removeHandler(self.log)
            for task in asyncio.all_tasks(self.loop):
                task.cancel()
            self.loop.settle(30)
            self.loop.close()

    def _end(self):
        """Each client takes what is pending, and is judged; then all disconnect."""
        for client in self.members:
            client.go.set()
            self.loop.call_soon(client.end_point.resume)
        self.loop.settle()
        self._judge()
        assert all(task.done() for client in self.members for task in client.tasks)
        self._judge_losses()
        for client in self.members:
            self.loop.call_soon(partial(client.end_point.leave, orderly=True))
        self.loop.settle(30)
        self._judge()
        self._judge_leftovers()

    def _judge_losses(self):
        lost = Counter()
        for client in self.members:
            losses = client.judge()
            if client.is_whole():
                lost += losses
            if not client.was_stalled:
                assert client.end in (None, 1000, 4000) or not client.is_accepted
                assert not client.is_whole() or not losses.total()
        counted = Counter(self.app.hub.losses)
        gone = [client for client in self.members if not client.is_whole()]
        assert counted.pop("close", 0) <= len(gone)
        assert counted == +lost if not gone else all(lost[policy] <= counted[policy] for policy in lost)

    def _judge_leftovers(self):
        hub = self.app.hub
        assert hub._topics == hub._subscribers == {}
        assert not hub._flusher._due
        assert not hub._flusher.is_behind
        assert (hub.statistics().connections, hub.statistics().queued) == (0, 0)
        assert self.websockets.open == 0
        assert not asyncio.all_tasks(self.loop)
        for client in self.members:
            for task in client.tasks:
                assert task.cancelled() or task.exception() is None


TestHubMachine = HubMachine.TestCase
# The rest is the profile's, so that `make fuzz` looks longer.
TestHubMachine.settings = settings(stateful_step_count=8)
