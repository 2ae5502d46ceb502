"""Which Redis there is, and since when it has all that was published."""

import logging
from collections.abc import Iterable
from os import urandom
from typing import Any, Final, final

from microws.errors import HubUnavailable
from microws.redis_hub.connection import Connection, is_refusal, words_of
from microws.redis_hub.scripts import CLAIM, EPOCH_SIZE, OPEN, PUBLISH, READ, call

__all__ = ["Epoch", "fields", "ignore", "refusal"]

_LOADS: Final = tuple((b"SCRIPT", b"LOAD", script.text) for script in (PUBLISH, READ, OPEN, CLAIM))

_log = logging.getLogger("microws.hub")


@final
class Epoch:
    """
    The time in which Redis has lost nothing.

    Args:
        prefix: Of its keys.
        shown: Its URL for the log.

    Attributes:
        is_trusted: Whether the epoch, and the count of keys that were evicted, are as at the connection before.
    """

    def __init__(self, prefix: bytes, shown: str) -> None:
        self._prefix = prefix
        self._shown = shown
        # What Redis is: whether it writes each message to disk first; which run of which server, with which data, and
        # with which data before it was promoted. Its epoch and the count of keys that it evicted.
        self._server = (b"0", b"", b"")
        self._known: tuple[bytes, bytes | None] = (b"", None)
        self.is_trusted = False

    async def open(self, connection: Connection, channels: Iterable[bytes]) -> None:
        """Learn what Redis is, and begin an epoch if its last messages may be lost; subscribe to ``channels`` first."""
        info, config, *_ = await connection.converse((b"INFO",), (b"CONFIG", b"GET", b"appendfsync"), *_LOADS)
        server = fields(info)
        # One that was a replica may have lacked messages when it was promoted. Its files lack them, too.
        was_primary = server.get(b"second_repl_offset") == b"-1"
        is_durable = server.get(b"aof_enabled") == b"1" and config == {b"appendfsync": b"always"} and was_primary
        data, data_before = server[b"master_replid"], server.get(b"master_replid2", b"")
        run = server.get(b"run_id", b"")
        self._server = b"%d" % is_durable, b"%b %b" % (run, data), b"%b %b" % (run, data_before)
        subscribe = [(b"SUBSCRIBE", channel) for channel in channels]
        *_, epoch = await connection.converse(*subscribe, self._begin())
        known = epoch, server.get(b"evicted_keys")
        self.is_trusted = self._known == known
        self._known = known

    def _begin(self) -> tuple[bytes | int, ...]:
        # As the id of a publisher, it is a part of positions.
        return call(OPEN, self._prefix, urandom(5) + bytes(EPOCH_SIZE - 5), *self._server)

    def recover(self, connection: Connection, error: Exception) -> bool:
        """Whether what failed may be sent again, now or after the cut."""
        text = str(error)
        if is_refusal(error):
            return False
        if text.startswith("NOSCRIPT"):
            for load in _LOADS:
                connection.post(ignore, *load)
        elif text.startswith("EPOCH"):

            def follow(epoch: Any) -> None:
                self._follow(connection, epoch)

            connection.post(follow, *self._begin())
        elif not text.startswith("BEHIND"):
            connection.cut(text)
        return True

    def _follow(self, connection: Connection, epoch: Any) -> None:
        if isinstance(epoch, Exception):
            # A replica that has been emptied, for example. What waits for the epoch would fail again and again.
            connection.cut(str(epoch))
        elif epoch != self._known[0]:
            self._known = epoch, self._known[1]
            _log.warning("Redis at %s has lost its messages: clients cannot resume", self._shown)


def fields(info: bytes) -> dict[bytes, bytes]:
    """What ``INFO`` says."""
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)


def refusal(error: Exception) -> HubUnavailable:
    """An error of Redis, in its own words."""
    return HubUnavailable(f"Redis refused: {words_of(error)}")


def ignore(answer: Any) -> None:
    """Of a command whose answer says nothing."""
