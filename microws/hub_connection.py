"""The hub of a running server, for other programs: ``connect_hub``."""

import os
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import anyio

from microws.codec import Codecs
from microws.connection.bulk_writes import BulkWriter
from microws.connection.tasks import task_group
from microws.errors import HubUnavailable, PublishTimeout
from microws.hub import Hub, check_topic, encode_key, running_loop
from microws.hub.backplane import Backplane
from microws.hub_url import HUB_VARIABLE, check_hub, directory_of, redis_address
from microws.interfaces import Payload, Receipt
from microws.local.client import LocalBackplane
from microws.local.directory import socket_path
from microws.subscription import Subscription

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = ["BlockingHubConnection", "HubConnection", "HubConnector", "connect_hub"]

# Seconds until the hub process, and a worker of the app, must have answered for the first time; and between two
# attempts if no worker is there.
_CONNECT_TIMEOUT: Final = 10.0
_RETRY: Final = 0.05
# Seconds for which the settings of the app's topics count as known: a new version of the app may have others.
_SETTINGS_LAST: Final = 1.0


class HubConnection:
    """
    The hub of a running server: what ``async with connect_hub() as hub`` gives.

    What ``app.topic`` has set applies to its topics. If the hub process is started again, the connection is made again.
    Use it in the event loop in which it was made. Any number of tasks may share it.
    """

    def __init__(self, hub: Hub, codecs: Codecs, backplane: Backplane) -> None:
        self._hub = hub
        self._codecs = codecs
        self._backplane = backplane
        self._known_until = 0.0
        self._has_ended = False

    async def publish(self, topic: str, value: Any, *, key: str | None = None) -> Receipt:
        """
        ``app.publish`` from another program. Returns once the hub process has the message.

        Args:
            topic: 1 to 255 UTF-8 bytes without control characters.
            value: ``str``, ``bytes``, or a value that JSON supports. ``bytes`` is always a binary frame.
            key: Names the message, on a topic with history: if the history has a message of the topic with this key,
                nothing is published. So a publish may be repeated. Default: each call publishes.

        Returns:
            ``Receipt(subscribers, id)``: the number of subscriptions of this connection that the message reached, and
            its position, which is ``None`` without history.

        Raises:
            PublishTimeout: The hub process did not answer within 2 seconds; the message may or may not have been
                published.
            TypeError, ValueError: The topic or key is invalid, or JSON does not support the value. Nothing was
                published.
        """
        check_topic(topic)
        payload = self._codecs.payload(value, topic)
        await self._learn()
        settings = self._hub.settings(topic)
        name = b"" if key is None else encode_key(key, topic, settings)
        # Also without history: an invalid key would fail in the workers.
        conflation = await self._conflation(payload) if settings.overflow == "latest" else b""
        if not settings.history:
            return await self._backplane.publish(payload)
        return await self._backplane.publish(payload, has_history=True, key=name, conflation=conflation)

    async def position(self, topic: str) -> str:
        """
        ``app.position`` from another program: where a topic with history is now.

        Raises:
            PublishTimeout: The hub process did not answer within 2 seconds.
            TypeError, ValueError: The topic is invalid, or has no history.
        """
        await self._learn()
        return await self._hub.position(topic)

    def subscribe(self, *topics: str, since: str | Mapping[str, str | None] | None = None) -> Subscription:
        """
        ``app.subscribe`` from another program: ``async with hub.subscribe("chat:1") as messages:``, then ``async for``
        over ``messages``.

        Args:
            topics: One or several topics.
            since: As of ``ws.subscribe``. If the history does not have all that was missed, the first read raises
                ``Overflow``.

        Raises:
            TypeError, ValueError: A topic is invalid. Raised on entering.
            PublishTimeout: The hub process did not answer within 2 seconds. Raised on entering.
        """
        return _Messages(self._hub, self._codecs, topics, since, prepare=self._learn)

    async def open(self) -> None:
        """Wait until a worker has told the settings of topics."""
        while not await self._ask_for_settings():  # noqa: ASYNC110 - the worker is in another process
            await anyio.sleep(_RETRY)

    def close(self) -> None:
        """Every later call raises."""
        self._has_ended = True

    async def _learn(self) -> None:
        """Have the settings that topics have now; or had, if no worker answers."""
        if self._has_ended:
            raise RuntimeError("use the hub within its block: `async with connect_hub() as hub:`")
        if monotonic() >= self._known_until:
            await self._ask_for_settings()

    async def _ask_for_settings(self) -> bool:
        # First of all, so that of many tasks one asks.
        self._known_until = monotonic() + _SETTINGS_LAST
        answers = await self._backplane.ask({"settings": True}, first=True)
        if answers:
            self._hub.learn(answers[0])
        return bool(answers)

    async def _conflation(self, payload: Payload) -> bytes:
        """The conflation key of a message, which the app may compute with a function."""
        question = [payload.kind, b64encode(payload.data).decode(), payload.topic]
        answers = await self._backplane.ask({"conflation": question}, first=True)
        if not answers:
            raise PublishTimeout("expected the key of the message from a worker of the app, got no answer")
        if (error := answers[0].get("error")) is not None:
            raise ValueError(f"expected a message that key= of app.topic takes, got {error}")
        return b64decode(answers[0]["conflation"])


class _Messages(Subscription):
    """Asks for the settings of topics first."""

    def __init__(
        self,
        hub: Hub,
        codecs: Codecs,
        topics: tuple[str, ...],
        since: str | Mapping[str, str | None] | None,
        *,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(hub, codecs.get("json"), topics, since)
        self._prepare = prepare

    async def __aenter__(self) -> Self:
        await self._prepare()
        return await super().__aenter__()


class BlockingHubConnection:
    """
    The hub of a running server: what ``with connect_hub() as hub`` gives, for programs without an event loop. Any
    number of threads may share it.
    """

    def __init__(self, connection: HubConnection, portal: "BlockingPortal") -> None:
        self._connection = connection
        self._portal = portal

    def publish(self, topic: str, value: Any, *, key: str | None = None) -> Receipt:
        """See ``HubConnection.publish``. Blocks until the hub process has the message."""
        return self._portal.call(lambda: self._connection.publish(topic, value, key=key))

    def position(self, topic: str) -> str:
        """See ``HubConnection.position``."""
        return self._portal.call(self._connection.position, topic)


class HubConnector:
    """
    What ``connect_hub`` returns: a context manager, async and plain. One block at a time may use it.

    Args:
        make: Makes the backplane.
        shown: What errors call the hub.
        codecs: Of what is published.
    """

    def __init__(self, make: Callable[[], Backplane], *, shown: str, codecs: Codecs) -> None:
        self._make = make
        self._shown = shown
        self._codecs = codecs
        self._stack = ExitStack()

    async def __aenter__(self) -> HubConnection:
        self._connected = self._connect()
        return await self._connected.__aenter__()

    async def __aexit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._connected.__aexit__(error_type, error, traceback)

    def __enter__(self) -> BlockingHubConnection:
        if running_loop() is not None:
            raise RuntimeError("expected a thread without an event loop; here write `async with connect_hub() as hub:`")
        from anyio.from_thread import start_blocking_portal  # here, because it takes 10 ms to import

        with ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            connection = stack.enter_context(portal.wrap_async_context_manager(self._connect()))
            self._stack = stack.pop_all()
        return BlockingHubConnection(connection, portal)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._stack.__exit__(error_type, error, traceback)

    @asynccontextmanager
    async def _connect(self) -> AsyncIterator[HubConnection]:
        backplane = self._make()
        hub = Hub(self._codecs, backplane, write=BulkWriter().write)
        connection = HubConnection(hub, self._codecs, backplane)
        async with task_group() as group:
            with hub.loop.running():
                missing = self._shown
                with anyio.move_on_after(_CONNECT_TIMEOUT) as limit:
                    await group.start(backplane.run)
                    missing = f"a worker of the app through {self._shown}"
                    await connection.open()
                if limit.cancelled_caught:
                    raise HubUnavailable(
                        f"expected an answer of {missing} within {_CONNECT_TIMEOUT:g} s, got none: "
                        "start the app with this hub"
                    )
                try:
                    yield connection
                finally:
                    connection.close()


def connect_hub(
    url: str | None = None, *, mount: str = "", json_default: Callable[[Any], Any] | None = None
) -> HubConnector:
    """
    Connect to the hub of a running server, to publish from another program, such as a cron job.

    ::

        with connect_hub("local:/run/chat") as hub:
            hub.publish("news", {"text": "hello"})

    In an event loop write ``async with``; there the hub can also ``subscribe``. The app runs with ``--workers`` or with
    ``App(hub="local:PATH")``, and the program on the same machine as the same user; or the app runs with
    ``App(hub="redis://HOST")``.

    Args:
        url: ``local:PATH``, where PATH is the directory of the hub: the log of ``microws run`` names it. Or the
            ``redis://…`` of the app. Default: the variable ``MICROWS_HUB``, which programs that the app starts have.
        mount: Where the ``App`` is mounted whose topics are meant, such as ``/admin``, or the ``mount`` of
            ``app.running``. Default: the outermost app.
        json_default: As of ``App``.

    Raises:
        HubUnavailable: No server has its hub there, or it does not answer within 10 seconds; or Redis refuses the
            login. Raised on entering.
        ValueError: An invalid ``url``, or none.
        FeatureUnavailable: This version does not have that kind of hub.
    """
    url = url or os.environ.get(HUB_VARIABLE, "")
    if not url:
        raise ValueError(
            "expected the hub of a server as local:PATH or redis://HOST, or in MICROWS_HUB, got none; the log of "
            "microws run --workers 2 names it"
        )
    directory, redis = directory_of(check_hub(url)), redis_address(url)
    codecs = Codecs(json_default)
    if redis is not None:
        from microws.redis_hub.backplane import RedisBackplane  # here, because it needs a package

        return HubConnector(
            partial(RedisBackplane, url, serves=False, mount=mount), shown=f"Redis at {redis.shown}", codecs=codecs
        )
    if directory is None:
        raise ValueError(
            f"expected local:PATH with the directory that the log of the server names, or redis://HOST, got {url!r}"
        )
    path = socket_path(directory)
    return HubConnector(
        partial(LocalBackplane, path, serves=False, mount=mount), shown=f"the hub process at {path}", codecs=codecs
    )
