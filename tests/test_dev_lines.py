"""The lines of ``microws dev``: aligned, coloured on a terminal, plain in a pipe, secrets masked."""

import io
import logging
import re

import pytest

from microws import App
from microws.dev.lines import DevFormatter, log_publishes
from microws.server.logs import AccessEntry

CREATED = 1_800_000_000.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def entry(method="GET", target="/", status=200, close_code=None, query=b""):
    path = target.encode()
    return AccessEntry(CREATED, logging.INFO, None, method, path, query, "1.1", status, 1.25, close_code)


def lines(*entries, stream=None):
    formatter = DevFormatter(stream or io.StringIO())
    return [formatter.format_entry(each) for each in entries]


def test_columns_are_aligned():
    shown = lines(
        entry(), entry("DELETE", "/rooms/1", 405), entry("WebSocket", "/chat", 101), entry("GET", "/x", None),
    )  # fmt: skip
    assert len({re.search(r"1\.2ms", line).start() for line in shown}) == 1
    assert [line[10:].split() for line in shown] == [
        ["GET", "/", "200", "1.2ms"],
        ["DELETE", "/rooms/1", "405", "1.2ms"],
        ["WS", "/chat", "open", "1.2ms"],
        ["GET", "/x", "-", "1.2ms"],
    ]


def test_a_long_target_is_shown_whole():
    [line] = lines(entry(target="/" + "x" * 100))
    assert "x" * 100 + " 200" in line


def test_secrets_are_masked_and_a_client_cannot_forge_a_line():
    [line] = lines(entry(target="/a\nb", query=b"token=s3cret&x=1"))
    assert "s3cret" not in line
    assert "\n" not in line


def test_colors_are_for_terminals(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in lines(entry())[0]
    assert "\x1b[32m200" in lines(entry(), stream=Terminal())[0]
    assert "\x1b[31m500" in lines(entry(status=500), stream=Terminal())[0]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in lines(entry(), stream=Terminal())[0]


def test_other_records_have_their_level_in_the_same_column():
    record = logging.LogRecord("x", logging.WARNING, __file__, 1, "hello %s", ("you",), None)
    line = DevFormatter(io.StringIO()).format(record)
    assert re.fullmatch(r"\d\d:\d\d:\d\d  warning hello you", line)


@pytest.mark.anyio
async def test_a_publish_has_a_line_and_many_have_few(caplog):
    app = App()
    with caplog.at_level(logging.INFO, "microws.access"):
        log_publishes(app.hub)
        async with app.running():
            for _ in range(30):
                await app.publish("news", "x")
    shown = [record.getMessage() for record in caplog.records]
    assert len(shown) == 10
    assert shown[0].startswith("PUB news")
    assert shown[0].endswith("0 subscribers")
