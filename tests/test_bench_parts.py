"""The parts of the load generator: durations, messages, URLs and the report."""

import json
import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws.bench import run
from microws.bench.histogram import Histogram
from microws.bench.plan import MIN_TEXT, Messages, Plan, parse_url
from microws.bench.report import Result, as_json, as_text, problem_with
from microws.framing.parser import FrameParser


@given(st.lists(st.floats(0, 10_000), min_size=1), st.floats(0.001, 100))
@example([0.0], 50.0)
@example([1e-7 * n for n in range(1000)], 99.9)
def test_a_percentile_is_that_of_the_sorted_list_or_slightly_more(values, percent):
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    found = histogram.percentile(percent)
    assert exact - 1e-12 <= found <= exact * (1 + 1 / 128) + 1.01e-7
    assert found <= histogram.percentile(100) == max(values)
    assert histogram.count == len(values)
    assert histogram.mean == pytest.approx(sum(values) / len(values))


def test_a_histogram_counts_negative_durations_as_zero_and_can_be_cleared():
    histogram = Histogram()
    assert (histogram.count, histogram.percentile(50), histogram.mean) == (0, 0, 0)
    histogram.record(5)
    histogram.clear()
    histogram.record(-1e-6)
    assert (histogram.count, histogram.percentile(100)) == (1, 0)


templates = st.one_of(
    st.just("{text}"), st.tuples(st.text(), st.text()).map("{text}".join).filter(lambda text: text.count("{text}") == 1)
)


@given(templates, st.integers(MIN_TEXT, 70_000), st.integers(0, 10**12 - 1), st.booleans())
def test_a_message_is_recognized_by_its_number_anywhere_in_an_answer(template, size, number, binary):
    messages = Messages(Plan(url="ws://h/", message=template, size=size, binary=binary))
    mark = messages.mark(3)
    payload = messages.payload(mark, number)
    assert len(payload) == messages.size == size + len(template.encode()) - len("{text}")
    assert messages.number_in(payload, mark) == (number, True)
    assert messages.number_in(b"before" + payload + b"after", mark) == (number, True)
    assert messages.number_in(payload, messages.mark(4)) == (None, False)
    frame = messages.frame(payload)
    assert FrameParser(max_message_size=1 << 20).feed(frame) == [payload if binary else payload.decode()]


def test_a_truncated_message_has_no_number_or_is_incomplete():
    messages = Messages(Plan(url="ws://h/"))
    mark = messages.mark(0)
    payload = messages.payload(mark, 7)
    assert messages.number_in(payload[:8], mark) == (None, False)
    assert messages.number_in(payload.replace(b"000007", b"00000x"), mark) == (None, False)
    assert messages.number_in(payload[:-1], mark) == (7, False)


@given(st.text().filter(lambda text: "{text}" not in text), st.integers(0, 9))
def test_a_message_without_a_place_for_the_text_is_sent_as_it_is(message, number):
    messages = Messages(Plan(url="ws://h/", message=message))
    payload = messages.payload(messages.mark(number), number)
    assert payload == message.encode()
    assert FrameParser(max_message_size=1 << 20).feed(messages.frame(payload)) == [message]


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "is_secure"),
    [
        ("ws://127.0.0.1:8000/echo", "127.0.0.1", 8000, "/echo", False),
        ("wss://example.org", "example.org", 443, "/", True),
        ("http://example.org/a b?c=d", "example.org", 80, "/a%20b?c=d", False),
        ("https://[::1]:9/%20", "::1", 9, "/%20", True),
        ("ws://b\u00fccher.example/\u00e4?\u00f6", "xn--bcher-kva.example", 80, "/%C3%A4?%C3%B6", False),
    ],
)
def test_a_url_is_parsed(url, host, port, path, is_secure):
    uri = parse_url(url)
    assert (uri.host, uri.port, uri.resource_name, uri.secure) == (host, port, path, is_secure)


@pytest.mark.parametrize("url", ["ftp://h/", "ws:///x", "ws://h:x/", "ws://h:99999/", "ws://a:b@h/", "ws://h/#top"])
def test_an_invalid_url_is_refused(url):
    with pytest.raises(ValueError, match=r"."):
        parse_url(url)


def result_of(*, counts=None, failures=None, **options):
    plan = {name: options.pop(name) for name in ("rate", "url", "publish", "mode") if name in options}
    result = Result(plan=Plan(**({"url": "ws://h/?token=secret"} | plan)), seconds=2.0, done=10, sent=10, **options)
    result.counts.update(counts or {})
    for name, reasons in (failures or {}).items():
        result.failures[name].update(reasons)
    return result


def test_every_error_is_in_the_table_and_in_json():
    counts = {"lost": 1001, "duplicates": 2, "out_of_order": 3, "wrong": 4, "others": 5, "unsent": 6}
    failures = {"handshakes_failed": {"HTTP 503": 9}, "closed": {"1013 too slow": 10, "1005 (no reason)": 11}}
    result = result_of(counts=counts, failures=failures)
    text = as_text(result)
    assert "1,001 lost, 2 duplicates, 3 out of order, 4 wrong, 6 unsent, 5 others" in text
    assert "0 opened, 9 refused, 21 closed" in text
    assert "refused       9 × HTTP 503" in text
    assert "closed        10 × 1013 too slow" in text
    errors = as_json(result)["errors"]
    assert errors["total"] == result.errors == 1001 + 2 + 3 + 4 + 6 + 9 + 21
    assert errors["closed"] == {"1013 too slow": 10, "1005 (no reason)": 11}
    assert "secret" not in f"{text}{json.dumps(as_json(result))}{problem_with(result)}"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({}, None),
        ({"done": 0}, "nothing was received during the measurement; use a longer --seconds"),
        ({"counts": {"lost": 2}}, "messages not received in time (2); does the app answer or publish each one"),
        ({"counts": {"unsent": 1}}, "messages due by --rate not sent (1); use a smaller --rate"),
        (
            {"failures": {"closed": {"1013 x": 1}}},
            "connections closed (1): ws://h/?token=***: 1013 x; the app closes slow",
        ),
    ],
)
def test_the_most_severe_error_is_one_line_with_a_hint(options, problem):
    result = result_of(**{name: value for name, value in options.items() if name != "done"})
    result.done = options.get("done", 10)
    found = problem_with(result)
    assert found is None if problem is None else found.startswith(problem)


@pytest.mark.parametrize(
    ("cpu", "waited", "note"),
    [
        (0.93, 0.02, "note: the generator used its core fully"),
        (0.4, 0.55, "note: the generator waited for a core 55% of the time"),
        (0.4, 0.1, None),
    ],
)
def test_a_busy_generator_is_noted(cpu, waited, note):
    result = result_of(cpu=cpu, waited=waited)
    assert as_json(result)["generator"]["was_the_limit"] == (cpu > 0.9)
    assert note in as_text(result) if note else "note" not in as_text(result)


def test_a_run_that_measured_nothing_has_no_latencies_and_no_limit():
    result = result_of(cpu=0.95, waited=0.5, latencies={"answer": Histogram()})
    result.done = 0
    assert re.search(r"^answer( +-){5}$", as_text(result), re.MULTILINE)
    assert "note" not in as_text(result)
    assert not as_json(result)["generator"]["was_the_limit"]


def test_without_the_scheduler_statistics_of_linux_nothing_was_waited(monkeypatch, tmp_path):
    monkeypatch.setattr(run, "SCHEDULER", tmp_path / "missing")
    assert run._waited() == 0
