"""Server-sent events: what a browser's parser reads is what was written."""

import re
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.codec import TEXT as TEXT_CODEC
from microws.codec import loads_json
from microws.event_stream import KEEPALIVE, ServerSentEvent, event_codec
from microws.interfaces import Payload

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("a \r\n:\0\x85\u2028\ufeff")
FIELD = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\0"))


def parse(stream):
    """
    The events of a whole stream as ``(type, data, last event id, reconnection time)``, step by step as in
    https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
    """
    events = []
    event_type, data, last_id, retry = "", "", "", None
    text = stream.decode().removeprefix("\ufeff")
    for line in re.split("\r\n|\n|\r", text)[:-1]:
        if line == "":
            if data != "":
                events.append((event_type or "message", data.removesuffix("\n"), last_id, retry))
            event_type, data = "", ""
            continue
        name, colon, value = line.partition(":")
        value = value.removeprefix(" ") if colon else ""
        if name == "event":
            event_type = value
        elif name == "data":
            data += value + "\n"
        elif name == "id" and "\0" not in value:
            last_id = value
        elif name == "retry" and re.fullmatch("[0-9]+", value):
            retry = int(value)
    return events


def with_line_feeds(text):
    return re.sub("\r\n|\r", "\n", text)


class TestFraming:
    @given(st.lists(TEXT | st.just(None)))
    def test_every_text_comes_back_among_comments(self, texts):
        stream = b"".join(KEEPALIVE if text is None else ServerSentEvent(text).encoded for text in texts)
        assert [data for _, data, _, _ in parse(stream)] == [
            with_line_feeds(text) for text in texts if text is not None
        ]

    @given(TEXT, st.none() | FIELD, st.none() | FIELD, st.none() | st.integers(min_value=0))
    def test_every_field_comes_back(self, data, event, id_, retry):
        encoded = ServerSentEvent(data, event=event, id=id_, retry=retry).encoded
        assert parse(encoded) == [(event or "message", with_line_feeds(data), id_ or "", retry)]

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | TEXT,
            lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
            max_leaves=20,
        )
    )
    def test_every_other_value_comes_back_as_json(self, value):
        [(_, data, _, _)] = parse(ServerSentEvent(value).encoded)
        assert data == with_line_feeds(value) if isinstance(value, str) else loads_json(data) == value

    def test_bytes_are_text_in_utf_8(self):
        assert ServerSentEvent("ü\n{}".encode()).encoded == ServerSentEvent("ü\n{}").encoded

    def test_an_event_is_written_as_the_specification_shows_it(self):
        event = ServerSentEvent("a\r\nb\rc\n", event="e", id="1", retry=2)
        assert event.encoded == b"event: e\nid: 1\nretry: 2\ndata: a\ndata: b\ndata: c\ndata: \n\n"

    def test_a_comment_is_not_an_event(self):
        assert parse(KEEPALIVE) == []


class TestPublished:
    @given(st.sampled_from(["text", "json"]), TEXT, st.none() | FIELD)
    def test_a_published_text_is_framed_as_server_sent_event_does(self, kind, text, event):
        payload = Payload(kind, text.encode())
        frame = event_codec(event, is_chunked=False).frame(payload)
        assert frame.is_encoded
        assert frame.data == ServerSentEvent(TEXT_CODEC.frame(payload).text, event=event).encoded

    @given(st.binary())
    def test_published_bytes_are_base64(self, data):
        frame = event_codec(None, is_chunked=False).frame(Payload("bytes", data))
        assert frame.data == ServerSentEvent(b64encode(data)).encoded

    @given(TEXT, st.none() | FIELD)
    def test_a_chunk_is_the_event_after_its_size(self, text, event):
        payload = Payload("text", text.encode())
        plain = event_codec(event, is_chunked=False).frame(payload).data
        size, _, rest = event_codec(event, is_chunked=True).frame(payload).data.partition(b"\r\n")
        assert (int(size, 16), rest) == (len(plain), plain + b"\r\n")

    def test_streams_of_one_type_share_a_codec(self):
        codec = event_codec("a", is_chunked=True)
        assert codec is event_codec("a", is_chunked=True)
        assert codec not in (event_codec("b", is_chunked=True), event_codec("a", is_chunked=False))


class TestRefused:
    @pytest.mark.parametrize("field", ["event", "id"])
    @pytest.mark.parametrize("value", ["a\nb", "a\r", "\0"])
    def test_a_line_end_or_nul_in_a_field_is_refused(self, field, value):
        with pytest.raises(ValueError, match=f"an event's {field} without line ends"):
            ServerSentEvent("x", **{field: value})

    def test_a_negative_retry_is_refused(self):
        with pytest.raises(ValueError, match="milliseconds"):
            ServerSentEvent("x", retry=-1)

    @pytest.mark.parametrize("data", ["\ud800", b"\xff", {"a": float("inf")}])
    def test_data_that_cannot_be_encoded_is_refused(self, data):
        with pytest.raises(ValueError, match=r"."):
            ServerSentEvent(data)

    def test_data_without_a_json_form_is_refused(self):
        with pytest.raises(TypeError, match="object"):
            ServerSentEvent(object())


def test_events_with_equal_fields_are_equal():
    assert ServerSentEvent({"a": 1}, id="1") == ServerSentEvent({"a": 1}, id="1")
    assert repr(ServerSentEvent("x", event="e")) == "ServerSentEvent(data='x', event='e', id=None, retry=None)"
