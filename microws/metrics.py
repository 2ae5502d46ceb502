"""``App.metrics``: what all workers have counted, for Prometheus."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

import anyio

from microws.counters import BUCKETS, COUNTERS, Number, Slot
from microws.errors import FeatureUnavailable, PublishTimeout
from microws.hub import Hub
from microws.hub.log import LogUsage
from microws.requests import Request
from microws.responses import Response

try:
    import prometheus_client.core as prometheus
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector
except ImportError:
    raise FeatureUnavailable("metrics need prometheus-client: pip install 'microws[metrics]'") from None

__all__ = ["Metrics"]

# Seconds between two looks at the queues: another worker shows them. Prometheus asks every 15 to 60 seconds.
_LOOK_INTERVAL: Final = 1.0
# Seconds that the hub process has to answer; as for a probe of readiness.
_HUB_TIMEOUT: Final = 0.5

# Name, help, and what is counted: counters, and numbers of this moment.
_COUNTERS: Final = (
    ("microws_websockets", "WebSockets that were opened or refused.", Number.CONNECTIONS),
    ("microws_messages_received", "Messages of WebSocket clients, under microws run.", Number.RECEIVED),
    ("microws_received_bytes", "Bytes of frames of WebSocket clients, under microws run.", Number.RECEIVED_BYTES),
    ("microws_messages_sent", "Messages to WebSockets and events to streams, under microws run.", Number.SENT),
    ("microws_sent_bytes", "Bytes of these messages and events.", Number.SENT_BYTES),
    ("microws_deliveries", "Published messages that were put into the outbox of a subscriber.", Number.DELIVERED),
    ("microws_worker_restarts", "Workers that died and were replaced.", Number.RESTARTS),
)
_MOMENTARY: Final = (
    ("microws_websockets_open", "WebSockets that are open or being opened.", Number.OPEN),
    ("microws_topics", "Topics that have subscribers.", Number.TOPICS),
    ("microws_subscribers", "WebSockets, streams and blocks that subscribe.", Number.SUBSCRIBERS),
    ("microws_subscriptions", "Pairs of subscriber and topic.", Number.SUBSCRIPTIONS),
    ("microws_queued_messages", "Messages that are pending in all outboxes.", Number.QUEUED),
    ("microws_longest_queue_messages", "Messages that are pending in the longest outbox.", Number.LONGEST_QUEUE),
)


# What the hub counts, in its order.
_MOMENT: Final = (
    Number.TOPICS, Number.SUBSCRIBERS, Number.SUBSCRIPTIONS, Number.QUEUED, Number.LONGEST_QUEUE,
)  # fmt: skip


class Metrics:
    """
    The metrics of a server. An app has one object, which turns counting on.

    Args:
        hub: Returns the hub that is counted: it may be another one when the app is included.
    """

    def __init__(self, hub: Callable[[], Hub]) -> None:
        self._hub = hub
        COUNTERS.is_on = True

    async def metrics(self, request: Request) -> Response:
        """Respond with the metrics of all workers, in the format that the client accepts."""
        await self._look()
        usage = None
        with suppress(PublishTimeout), anyio.move_on_after(_HUB_TIMEOUT):
            usage = await self._hub().backplane.ask_for_usage()
        registry = CollectorRegistry()
        registry.register(_Families(COUNTERS.slots(), usage))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), content_type=content_type)

    async def keep_looking(self) -> None:
        """Have in memory what is pending in this worker."""
        while True:
            await self._look()
            await anyio.sleep(_LOOK_INTERVAL)

    async def _look(self) -> None:
        counts = await self._hub().count_pending()
        for number, count in zip(_MOMENT, counts, strict=True):
            COUNTERS.set(number, count)


class _Families(Collector):
    """What ``prometheus_client`` asks for: the metrics of one moment."""

    def __init__(self, slots: list[Slot], usage: LogUsage | None) -> None:
        self._slots = slots
        self._usage = usage

    def collect(self) -> Iterator[Any]:
        """The metrics."""
        alive = [slot for slot in self._slots if slot.is_alive]
        for name, text, number in _COUNTERS:
            yield _family(prometheus.CounterMetricFamily, name, text, self._slots, number)
        for name, text, number in _MOMENTARY:
            yield _family(prometheus.GaugeMetricFamily, name, text, alive, number)
        dropped = prometheus.CounterMetricFamily(
            "microws_dropped_messages", "Published messages that subscribers did not get.", labels=("worker", "reason")
        )
        closed = prometheus.CounterMetricFamily(
            "microws_websockets_closed", "WebSockets that have ended, by close code.", labels=("worker", "code")
        )
        published = prometheus.HistogramMetricFamily(
            "microws_publish_seconds", "Time until a published message was on its way.", labels=("worker",)
        )
        for slot in self._slots:
            worker = str(slot.place)
            for reason, count in slot.dropped.items():
                dropped.add_metric((worker, reason), count)
            for code, count in slot.closed.items():
                closed.add_metric((worker, str(code)), count)
            total, buckets = 0, []
            for limit, count in zip((*map(str, BUCKETS), "+Inf"), slot.buckets, strict=True):
                total += count
                buckets.append((limit, total))
            published.add_metric((worker,), buckets, slot.numbers[Number.PUBLISH_NANOSECONDS] / 1e9)
        yield from (dropped, closed, published)
        yield _value("microws_hub_up", "Whether the hub answers.", self._usage is not None)
        if self._usage is not None:
            yield _value("microws_hub_history_bytes", "Bytes of the log that are in use.", self._usage.bytes)
            text = "Messages that made room for others in the log, since its process started."
            yield _value("microws_hub_history_dropped_messages", text, self._usage.dropped)


def _family(kind: Any, name: str, text: str, slots: Iterable[Slot], number: Number) -> Any:
    family = kind(name, text, labels=("worker",))
    for slot in slots:
        family.add_metric((str(slot.place),), slot.numbers[number])
    return family


def _value(name: str, text: str, value: float) -> Any:
    return prometheus.GaugeMetricFamily(name, text, value=value)
