"""A result as a table to be read, and as JSON."""

import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import Any

from microws.bench.histogram import Histogram
from microws.bench.messages import Messages
from microws.bench.result import Result
from microws.version import __version__

__all__ = ["DONE", "PERCENTILES", "as_json", "as_text", "counted"]

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}

# What the rate counts, by mode, and what is sent for it.
DONE = {"echo": "answers", "fan-out": "deliveries", "connects": "connects"}
_SENT = {"echo": "messages", "fan-out": "publishes", "connects": "connects"}
# Lines for reasons of one kind.
_MAX_REASONS = 5
_COLUMN = 14
_WIDTH = 100


def as_json(result: Result) -> dict[str, Any]:
    """All of a result in JSON's types; durations in seconds."""
    plan, tally = result.plan, result.tally
    return {
        "microws": __version__,
        "mode": plan.mode,
        "url": plan.target.url,
        "publish": None if plan.publish is None else plan.publish.url,
        "loop": "closed" if plan.rate is None else "open",
        "connections": plan.connections,
        "in_flight": plan.in_flight if plan.rate is None and plan.mode != "connects" else None,
        "message_bytes": None if plan.mode == "connects" else _size(result),
        "target_rate": plan.rate,
        "warm_up_seconds": plan.warm_up,
        "seconds": round(result.seconds, 6),
        "counted": DONE[plan.mode],
        "count": result.done,
        "count_per_second": round(result.rate, 1),
        "sent": result.sent,
        "sent_per_second": round(result.sent_rate, 1),
        "latency_seconds": {name: _durations(histogram) for name, histogram in result.latencies.items()},
        "sent_late_seconds": None if result.lateness is None else _durations(result.lateness),
        "handshakes": tally.handshakes,
        "errors": {
            "total": tally.errors,
            "handshakes_failed": dict(tally.refused),
            "closed": [
                {"code": code, "reason": reason, "count": count} for (code, reason), count in tally.closes.most_common()
            ],
            "closes_unanswered": tally.unanswered_closes,
            "publishes_failed": dict(tally.failed_publishes),
            "unsent": tally.unsent,
            "lost": tally.lost,
            "duplicates": tally.duplicates,
            "out_of_order": tally.out_of_order,
            "wrong": tally.wrong,
        },
        "late": tally.late,
        "others": tally.others,
        "generator": {
            "cpu": round(result.cpu, 3),
            "waited_for_a_core": round(result.waited, 3),
            "was_the_limit": result.is_generator_the_limit,
            "event_loop": result.loop,
        },
        "interrupted": result.is_interrupted,
        "cut_short": result.is_cut_short,
    }


def as_text(result: Result) -> str:
    """A table for a terminal."""
    return "\n".join(_lines(result))


def counted(number: int, word: str) -> str:
    """``1 message``, ``2 messages``, ``1,000 messages``."""
    return f"{number:,} {word}{'' if number == 1 else 'es' if word.endswith('sh') else 's'}"


def _lines(result: Result) -> Iterator[str]:
    plan, tally = result.plan, result.tally
    done, sent = DONE[plan.mode], _SENT[plan.mode]
    yield f"{plan.mode}  {plan.target.url}{_publisher(result)}"
    yield _what(result)
    yield ""
    yield _row(done, f"{_number(result.rate)} per second, {result.done:,} in {result.seconds:.1f} s")
    if plan.mode == "fan-out":
        yield _row(sent, f"{_number(result.sent_rate)} per second")
    if any(histogram.count for histogram in result.latencies.values()):
        yield ""
        yield _row("latency", "".join(f"{name:>11}" for name in (*PERCENTILES, "max")))
        for name, histogram in result.latencies.items():
            yield _row(name, "".join(f"{_milliseconds(value):>11}" for value in _values(histogram)))
        if result.lateness is not None:
            yield _row("sent late by", "".join(f"{_milliseconds(value):>11}" for value in _values(result.lateness)))
        yield _row("", _meaning(result))
    yield ""
    if plan.mode != "connects":
        yield _row("messages", _messages(result))
    yield _row("connections", _connections(result))
    yield from _reasons("refused", tally.refused)
    closes = Counter(
        {f"{code} {reason or '(no reason given)'}": count for (code, reason), count in tally.closes.items()}
    )
    yield from _reasons("closed", closes)
    yield from _reasons("not published", tally.failed_publishes)
    yield _row(
        "generator", f"{_percent(result.cpu)} of a core, {_percent(result.waited)} waiting for one; {result.loop}"
    )
    for note in _notes(result):
        yield ""
        yield textwrap.fill(f"note: {note}", _WIDTH, subsequent_indent="      ")


def _what(result: Result) -> str:
    plan = result.plan
    lasting = f"{result.seconds:.1f} s after {plan.warm_up:g} s of warm-up"
    if plan.mode == "connects":
        what = f"{plan.connections:,} at a time" if plan.rate is None else f"{plan.rate:,g} a second"
        return f"connect, Close, again; {what}; {lasting}"
    size = f"{_size(result):,} bytes"
    if plan.mode == "echo":
        who = counted(plan.connections, "connection")
        if plan.rate is not None:
            return f"{who}; {plan.rate:,g} messages of {size} a second in all; {lasting}"
        return f"{who}, each with {counted(plan.in_flight, 'message')} of {size} in flight; {lasting}"
    who = counted(plan.connections, "subscriber")
    if plan.rate is not None:
        return f"{who}; {plan.rate:,g} messages of {size} a second; {lasting}"
    return f"{who}; {counted(plan.in_flight, 'message')} of {size} in flight; {lasting}"


def _publisher(result: Result) -> str:
    plan = result.plan
    if plan.publish is None:
        return ""
    return f"  published by {'POST ' if plan.posts else ''}{plan.publish.url}"


def _meaning(result: Result) -> str:
    if result.plan.rate is not None:
        return "open loop: from the time that each was due, whatever became of those before it"
    return "closed loop: a server that stalls is asked less meanwhile, so a stall counts once; see --rate"


def _messages(result: Result) -> str:
    tally, plan = result.tally, result.plan
    parts = [f"{tally.lost:,} lost", f"{tally.duplicates:,} duplicates"]
    if plan.is_numbered:
        order = (
            f"{tally.out_of_order:,} out of order" if plan.is_ordered else "order not checked: POSTs race each other"
        )
        parts.append(order)
        parts.append(f"{tally.wrong:,} wrong")
    else:
        parts.append("only counted: --message has no {text}")
    if tally.late:
        parts.append(f"{tally.late:,} came too late")
    if tally.others:
        parts.append(f"{tally.others:,} others")
    if tally.unsent:
        parts.append(f"{tally.unsent:,} could not be sent")
    return ", ".join(parts)


def _connections(result: Result) -> str:
    tally = result.tally
    parts = [f"{tally.handshakes:,} opened", f"{tally.refused.total():,} refused", f"{tally.closes.total():,} closed"]
    if tally.unanswered_closes:
        parts.append(f"{tally.unanswered_closes:,} without an answer to Close")
    return ", ".join(parts)


def _reasons(word: str, reasons: "Counter[str]") -> Iterator[str]:
    for reason, count in reasons.most_common(_MAX_REASONS):
        yield _row(word, f"{count:,} × {reason}")
    if len(reasons) > _MAX_REASONS:
        yield _row(word, f"… and for {len(reasons) - _MAX_REASONS} other reasons")


def _notes(result: Result) -> Iterator[str]:
    if result.is_generator_the_limit:
        yield "the generator had its core full: the rate is a lower bound, and the latencies are partly its own"
    elif result.is_short_of_cores:
        yield (
            f"the generator waited for a core {_percent(result.waited)} of the time, which the server or others had: "
            "the rate is a lower bound, and the latencies are partly its own"
        )
    if result.is_late:
        yield "much of these latencies is the generator's own: it sent late, for want of a core"
    if not result.keeps_up and result.seconds:
        yield (
            f"{_number(result.sent_rate)} a second were sent, not the {result.plan.rate:,g} of --rate: "
            "these latencies grow with the time of the run"
        )
    if result.is_interrupted:
        yield "interrupted: this is what there was until then"
    elif result.is_cut_short:
        yield "cut short: nobody was left to send or to receive"


def _row(name: str, text: str) -> str:
    return f"{name:<{_COLUMN}}{text}".rstrip()


def _values(histogram: Histogram) -> list[float]:
    return [*(histogram.percentile(percent) for percent in PERCENTILES.values()), histogram.max]


def _durations(histogram: Histogram) -> dict[str, float | int]:
    values = zip((*PERCENTILES, "max"), _values(histogram), strict=True)
    return {
        "count": histogram.count,
        "mean": round(histogram.mean, 7),
        **{name: round(value, 7) for name, value in values},
    }


def _milliseconds(seconds: float) -> str:
    milliseconds = seconds * 1000
    digits = 3 if milliseconds < 1 else 2 if milliseconds < 100 else 0
    return f"{milliseconds:,.{digits}f} ms"


def _percent(share: float) -> str:
    return f"{share * 100:.0f} %"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def _size(result: Result) -> int:
    return Messages(result.plan.message, size=result.plan.size).size
