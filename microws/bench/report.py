"""The result of a run: as a table, as JSON, and as one line about what went wrong."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, final

from microws.bench.histogram import Histogram
from microws.bench.plan import Messages, Plan
from microws.datastructures import mask_secrets
from microws.version import __version__

__all__ = ["Result", "as_json", "as_text", "problem_with"]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
# Share of a core from which on the generator itself may be the bottleneck.
BUSY = 0.9
# What failed, for each kind of reasons; and how many reasons of each kind the table shows.
FAILURES = {
    "publishes_failed": "publishes not accepted",
    "handshakes_failed": "handshakes refused",
    "closed": "connections closed",
}
MAX_REASONS = 5

_JSON = """--message '{"text": "{text}"}'"""
# What to try, by the beginning of a reason; of a Close frame, by its code. The first match counts.
_HINTS = {
    ("Connection refused", "Connect call failed"): "is the server running there?",
    ("TLS failed: CERTIFICATE", "TLS failed: self"): "--insecure accepts any certificate",
    ("TLS failed",): "is the URL ws:// or http://, without TLS?",
    ("closed by the server", "invalid HTTP response", "Connection reset"): "is the URL wss:// or https://, with TLS?",
    ("no answer in time",): "--timeout waits longer",
    ("Too many open files",): "raise the limit: ulimit -n 65536",
    ("HTTP 404", "HTTP 405"): "is the path right?",
    ("HTTP 4",): f"the app may expect a --header such as 'Cookie: …', a --subprotocol, or JSON: {_JSON}",
    ("1003", "1007", "1008"): f"the app may expect other messages, or fewer: {_JSON}, --binary, --rate",
    ("1009",): "the messages are too large for the app: use a smaller --size",
    ("1013",): "the app closes slow clients: use a smaller --rate, or longer queues in the app",
    ("HTTP 5", "1006", "1011"): "see the server's log",
}
# The other errors, the most severe first, and what to try.
_COUNTS = {
    "closes_unanswered": ("Close frames not answered in time", "see the server's log"),
    "lost": ("messages not received in time", "does the app answer or publish each one, also to slow clients?"),
    "wrong": ("messages not as sent", "a --message without {text} is only counted"),
    "duplicates": ("messages received twice", "if the app publishes to all, use --fan-out"),
    "out_of_order": ("messages out of order", "does the app send them from several tasks?"),
    "unsent": ("messages due by --rate not sent", "use a smaller --rate, or more --connections"),
}


@final
@dataclass(kw_only=True, slots=True)
class Result:
    """
    One run.

    Attributes:
        seconds: Length of the measurement; 0: it did not begin.
        done: Answers, deliveries or connects in that time.
        sent: Messages, publishes or connects that were started in that time.
        latencies: By what was measured, the main one first.
        lateness: With ``rate``: how late each message was sent.
        cpu: Share of a core that the generator used.
        waited: Share of the time that the generator was ready to run and had no core.
        handshakes: Accepted, in the whole run.
        failures: Counts of reasons, by the keys of ``FAILURES``, in the whole run.
        counts: Other errors by the keys of ``_COUNTS``, in the whole run; ``others`` are messages of a topic that this
            run did not send.
        loop: The event loop.
        is_interrupted: Whether the user stopped the run.
    """

    plan: Plan
    seconds: float = 0.0
    done: int = 0
    sent: int = 0
    latencies: dict[str, Histogram] = field(default_factory=dict)
    lateness: Histogram = field(default_factory=Histogram)
    cpu: float = 0.0
    waited: float = 0.0
    handshakes: int = 0
    failures: dict[str, Counter[str]] = field(default_factory=lambda: {name: Counter() for name in FAILURES})
    counts: Counter[str] = field(default_factory=Counter)
    loop: str = ""
    is_interrupted: bool = False

    @property
    def counted(self) -> str:
        """What ``done`` counts."""
        return {"echo": "answers", "fan-out": "deliveries", "connects": "connects"}[self.plan.mode]

    @property
    def was_the_limit(self) -> bool:
        """Whether the generator may have been the bottleneck. A run that measured nothing had none."""
        return self.done > 0 and self.cpu >= BUSY

    @property
    def errors(self) -> int:
        """Everything that went wrong."""
        return sum(reasons.total() for reasons in self.failures.values()) + sum(self.counts[name] for name in _COUNTS)


def as_json(result: Result) -> dict[str, Any]:
    """All of a result in JSON's types; durations are in seconds."""
    plan = result.plan
    is_connects = plan.mode == "connects"
    return {
        "microws": __version__,
        "mode": plan.mode,
        "url": mask_secrets(plan.url),
        "publish": mask_secrets(plan.publish) or None,
        "loop": "closed" if plan.rate is None else "open",
        "connections": plan.connections,
        "in_flight": plan.in_flight if plan.rate is None and not is_connects else None,
        "message_bytes": None if is_connects else Messages(plan).size,
        "target_rate": plan.rate,
        "warm_up_seconds": plan.warm_up,
        "seconds": round(result.seconds, 6),
        "counted": result.counted,
        "count": result.done,
        "count_per_second": _rate(result.done, result),
        "sent": result.sent,
        "sent_per_second": _rate(result.sent, result),
        "latency_seconds": {name: _durations(histogram) for name, histogram in result.latencies.items()},
        "sent_late_seconds": None if plan.rate is None else _durations(result.lateness),
        "handshakes": result.handshakes,
        "errors": {"total": result.errors, **result.failures, **{name: result.counts[name] for name in _COUNTS}},
        "others": result.counts["others"],
        "generator": {
            "cpu": round(result.cpu, 3),
            "waited_for_a_core": round(result.waited, 3),
            "was_the_limit": result.was_the_limit,
            "event_loop": result.loop,
        },
        "interrupted": result.is_interrupted,
    }


def problem_with(result: Result) -> str | None:
    """The most severe error, and what to try; ``None``: there was none."""
    for name, text in FAILURES.items():
        if reasons := result.failures[name]:
            reason = reasons.most_common(1)[0][0]
            hint = next((f"; {hint}" for starts, hint in _HINTS.items() if reason.startswith(starts)), "")
            url = mask_secrets(result.plan.publish if name == "publishes_failed" else result.plan.url)
            return f"{text} ({reasons.total():,}): {url}: {reason}{hint}"
    for name, (text, hint) in _COUNTS.items():
        if result.counts[name]:
            return f"{text} ({result.counts[name]:,}); {hint}"
    return None if result.done else "nothing was received during the measurement; use a longer --seconds"


def as_text(result: Result) -> str:
    """A table for a terminal."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    plan, counts = result.plan, result.counts
    publish = f"  published by {'POST ' if plan.posts else ''}{mask_secrets(plan.publish)}" if plan.publish else ""
    yield f"{plan.mode}  {mask_secrets(plan.url)}{publish}"
    yield f"{_load(plan)}; {result.seconds:.1f} s after {plan.warm_up:g} s of warm-up"
    yield ""
    yield _row(result.counted, f"{_rate(result.done, result):,} per second, {result.done:,} in {result.seconds:.1f} s")
    if plan.publish:
        yield _row("publishes", f"{_rate(result.sent, result):,} per second")
    yield ""
    yield _row("latency", "".join(f"{name:>11}" for name in PERCENTILES))
    late = {} if plan.rate is None else {"sent late by": result.lateness}
    for name, histogram in (result.latencies | late).items():
        times = (_milliseconds(histogram.percentile(p)) if histogram.count else "-" for p in PERCENTILES.values())
        yield _row(name, "".join(f"{text:>11}" for text in times))
    if plan.rate is None:
        yield _row("", "closed loop: a stalled server is sent less, so a stall counts once; see --rate")
    else:
        yield _row("", "open loop: each latency counts from the time that the message was due")
    yield ""
    if plan.mode != "connects":
        names = ["lost", "duplicates", "out_of_order", "wrong"] if plan.is_numbered else ["lost", "duplicates"]
        names += [name for name in ("unsent", "others") if counts[name]]
        note = "" if plan.is_numbered else ", only counted: --message has no {text}"
        note += "" if plan.is_ordered else ", order not checked: POSTs race"
        yield _row("messages", ", ".join(f"{counts[name]:,} {name.replace('_', ' ')}" for name in names) + note)
    refused, closed = (result.failures[name].total() for name in ("handshakes_failed", "closed"))
    yield _row("connections", f"{result.handshakes:,} opened, {refused:,} refused, {closed:,} closed")
    for name, reasons in result.failures.items():
        for reason, count in reasons.most_common(MAX_REASONS):
            yield _row(FAILURES[name].partition(" ")[2], f"{count:,} × {reason}")
    yield _row("generator", f"{result.cpu:.0%} of a core, {result.waited:.0%} waiting for one; {result.loop}")
    notes = []
    if result.was_the_limit:
        notes.append("the generator used its core fully: the rate is a lower bound, the latencies are partly its own")
    elif result.done and result.cpu + result.waited >= BUSY:
        text = f"the generator waited for a core {result.waited:.0%} of the time, because other processes used it"
        notes.append(f"{text}: the rate is a lower bound, the latencies are partly its own")
    if result.is_interrupted:
        notes.append("interrupted: these are the figures until then")
    for note in notes:
        yield ""
        yield textwrap.fill(f"note: {note}", 100, subsequent_indent="      ")


def _load(plan: Plan) -> str:
    if plan.mode == "connects":
        return (
            f"connect, Close, repeat; {f'{plan.rate:,g} a second' if plan.rate else f'{plan.connections:,} at a time'}"
        )
    connections = f"{plan.connections:,} {'subscribers' if plan.publish else 'connections'}"
    size = f"of {Messages(plan).size:,} bytes"
    if plan.rate:
        return f"{connections}; {plan.rate:,g} messages {size} a second in all"
    messages = "1 message" if plan.in_flight == 1 else f"{plan.in_flight:,} messages"
    return f"{connections}; {messages} {size} in flight{'' if plan.publish else ' on each'}"


def _row(name: str, text: str) -> str:
    return f"{name:<14}{text}".rstrip()


def _rate(count: int, result: Result) -> float:
    rate = count / result.seconds if result.seconds else 0.0
    return round(rate) if rate >= 100 else round(rate, 1)


def _durations(histogram: Histogram) -> dict[str, float | int]:
    values = {name: round(histogram.percentile(percent), 7) for name, percent in PERCENTILES.items()}
    return {"count": histogram.count, "mean": round(histogram.mean, 7), **values}


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:,.{3 if milliseconds < 1 else 2 if milliseconds < 100 else 0}f} ms"
