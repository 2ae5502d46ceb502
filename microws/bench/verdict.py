"""One line about what went wrong in a run, and what to try."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from microws.bench.report import counted
from microws.bench.result import Result

__all__ = ["problem_with"]

_JSON = """--message '{"text": "{text}"}'"""

# The beginnings of reasons for which there is no connection.
_REFUSED = {
    "connection refused": "is the server running there?",
    "unknown host": "is the name right?",
    "no answer within": "--timeout gives it longer",
    "certificate not accepted": "--insecure takes any certificate",
    "TLS failed": "is it ws:// there, without TLS?",
    "closed by the server": "is it wss:// there, with TLS?",
    "no answer in HTTP": "is it wss:// there, with TLS?",
    "connection reset": "is it wss:// there, with TLS?",
    "too many open files": "raise the limit: ulimit -n 65536",
    "cannot assign requested address": "no port is free: fewer --connections, or wait a minute",
    "HTTP 400": "does the app want a --header, or a --subprotocol?",
    "HTTP 401": "say who you are: --header 'Authorization: …' or --header 'Cookie: …'",
    "HTTP 403": "does the app want a --header, such as 'Origin: …' or 'Cookie: …'?",
    "HTTP 404": "is the path right?",
    "HTTP 405": "is the path right?",
    "HTTP 415": f"--header 'Content-Type: …' says what the body is, {_JSON} is JSON",
    "HTTP 422": f"the app wants another body, such as {_JSON}",
    "HTTP 2": "is there a WebSocket at this path?",
    "HTTP 3": "the server sends elsewhere: take the URL that it names",
    "HTTP 5": "the server's log says more",
}

_CLOSED = {
    1003: f"the app wants other messages: text, JSON as with {_JSON}, or bytes, with --binary",
    1006: "the server's log says more",
    1007: f"the app wants other messages: {_JSON} sends JSON",
    1008: f"the app wants other messages, or fewer: {_JSON}, --rate",
    1009: "the messages are too large for the app: a smaller --size",
    1011: "the server's log says more",
    1013: "the app drops those that do not keep up: a smaller --rate, or longer queues in the app",
}


class _Problem(NamedTuple):
    text: str
    hint: str


def problem_with(result: Result) -> str | None:
    """What went wrong, the gravest first, and a hint; ``None``: nothing did."""
    problems = [*_with_connections(result), *_with_messages(result)]
    if problems:
        text, hint = problems[0]
        return f"{text}; {hint}" if hint else text
    if not result.seconds and result.is_interrupted:
        return "interrupted before anything was measured"
    if not result.done:
        return "nothing came in the time that was measured; a larger --seconds?"
    return None


def _with_connections(result: Result) -> Iterator[_Problem]:
    tally, plan = result.tally, result.plan
    if tally.failed_publishes and plan.publish is not None:
        reason = _first(tally.failed_publishes)
        word = "publish" if tally.sent else "connection"
        text = f"{counted(tally.failed_publishes.total(), word)} failed at {plan.publish.url}: {reason}"
        yield _Problem(text, _hint_for(reason))
    if tally.refused:
        reason = _first(tally.refused)
        text = f"{counted(tally.refused.total(), 'handshake')} failed at {plan.target.url}: {reason}"
        yield _Problem(text, _hint_for(reason))
    if tally.closes:
        code, reason = _first(tally.closes)
        text = f"{counted(tally.closes.total(), 'connection')} closed by the server: {code} {reason}".rstrip()
        yield _Problem(text, _CLOSED.get(code, ""))
    if tally.unanswered_closes:
        text = f"{counted(tally.unanswered_closes, 'Close frame')} not answered by closing within {plan.timeout:g} s"
        yield _Problem(text, "the server's log says more")


def _with_messages(result: Result) -> Iterator[_Problem]:
    tally, plan = result.tally, result.plan
    if tally.lost:
        text = f"{counted(tally.lost, 'message')} lost, or not there within {plan.timeout:g} s"
        yield _Problem(text, _hint_for_loss(result))
    if tally.wrong:
        hint = "where answers are other messages, --message without {text} has them counted only"
        yield _Problem(f"{counted(tally.wrong, 'message')} not as sent", hint)
    if tally.duplicates:
        hint = "does the app publish to all? --fan-out is for that" if plan.mode == "echo" else ""
        yield _Problem(f"{counted(tally.duplicates, 'message')} came again, or unasked", hint)
    if tally.out_of_order:
        yield _Problem(f"{counted(tally.out_of_order, 'message')} out of order", "")
    if tally.unsent:
        text = f"{counted(tally.unsent, 'message')} due by --rate not sent"
        yield _Problem(text, "a smaller --rate, or more --connections")


def _hint_for(reason: str) -> str:
    return next((hint for start, hint in _REFUSED.items() if reason.startswith(start)), "")


def _hint_for_loss(result: Result) -> str:
    if result.tally.others:
        return "what came has no number in it: --message without {text} has messages counted only"
    if result.tally.late:
        return "some came later: --timeout waits longer"
    if result.done:
        return "does the app drop messages for those that do not keep up?"
    if result.plan.mode == "echo":
        return "does the app answer each message? --fan-out is for apps that publish"
    return "is this the URL of those who get what --publish publishes?"


_Key = TypeVar("_Key")


def _first(reasons: "Counter[_Key]") -> _Key:
    return reasons.most_common(1)[0][0]
