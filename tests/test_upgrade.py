"""The bytes of the opening handshake, with h11 as the client."""

import base64

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from microws.server.request_parser import join_fields
from microws.server.websockets import final_response
from microws.upgrade import (
    Upgrade,
    accept_response,
    check_upgrade,
    scope_of,
)

# RFC 6455 §1.3.
KEY, ANSWER = b"dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HEADERS = [(b"host", b"x"), (b"sec-websocket-version", b"13"), (b"sec-websocket-key", KEY)]


def asked(target, headers):
    return Upgrade(target, headers, join_fields(headers))


def scope(target=b"/", headers=()):
    return scope_of(
        asked(target, [*HEADERS, *headers]),
        scheme="ws",
        client=None,
        server=None,
        state={},
        extensions={},
    )


def read(response):
    """Status, headers and body of a response, as a client reads them that takes the connection's end for the body's."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(response)
    client.receive_data(b"")
    answer = client.next_event()
    body = b""
    while isinstance(data := client.next_event(), h11.Data):
        body += data.data
    assert isinstance(data, h11.EndOfMessage)
    return answer.status_code, list(answer.headers), body


# What is refused


def test_the_handshake_of_the_rfc_is_valid():
    assert check_upgrade(asked(b"/", HEADERS)) is None
    assert check_upgrade(asked(b"/", [*HEADERS, (b"content-length", b"0")])) is None


@given(st.binary(min_size=16, max_size=16))
@settings(max_examples=30)
def test_any_16_bytes_are_a_valid_key(key):
    assert check_upgrade(asked(b"/", [*HEADERS[:2], (b"sec-websocket-key", base64.b64encode(key))])) is None


@pytest.mark.parametrize("versions", [[], [b"12"], [b"13", b"13"], [b"13, 8"], [b""], [b"013"]])
def test_another_version_is_426_with_the_supported_one(versions):
    headers = [pair for pair in HEADERS if pair[0] != b"sec-websocket-version"]
    refused = check_upgrade(asked(b"/", headers + [(b"sec-websocket-version", version) for version in versions]))
    status, answer, body = read(final_response(refused.status, refused.headers) + refused.body)
    assert (status, body) == (426, b"expected Sec-WebSocket-Version: 13")
    assert (b"sec-websocket-version", b"13") in answer
    # RFC 9110 §15.5.22 and §7.8.
    assert (b"upgrade", b"websocket") in answer
    assert (b"connection", b"upgrade, close") in answer


@pytest.mark.parametrize("keys", [[], [KEY, KEY], [b""], [b"YQ=="], [b"\xff" * 24], [KEY[:-1]], [KEY + b"YQ=="]])
def test_a_bad_key_is_400(keys):
    refused = check_upgrade(asked(b"/", HEADERS[:2] + [(b"sec-websocket-key", key) for key in keys]))
    assert (refused.status, refused.body) == (400, b"expected one Sec-WebSocket-Key of 16 bytes in Base64")


# The scope


@pytest.mark.parametrize(
    ("target", "path", "raw_path", "query"),
    [
        (b"/", "/", b"/", b""),
        (b"/a%20b%2Fc?d=%20&?", "/a b/c", b"/a%20b%2Fc", b"d=%20&?"),
        (b"/%C3%A9", "/\u00e9", b"/%C3%A9", b""),
        (b"/%ff%zz?", "/\ufffd%zz", b"/%ff%zz", b""),
        (b"//a/../b", "//a/../b", b"//a/../b", b""),
    ],
)
def test_a_target_is_a_path_and_a_query(target, path, raw_path, query):
    made = scope(target)
    assert (made["path"], made["raw_path"], made["query_string"]) == (path, raw_path, query)


@pytest.mark.parametrize(
    ("values", "subprotocols"),
    [([], []), ([b""], []), ([b"a"], ["a"]), ([b" a ,, b,", b"c"], ["a", "b", "c"]), ([b"\xe9"], ["\u00e9"])],
)
def test_subprotocols_come_from_all_fields(values, subprotocols):
    assert scope(headers=[(b"sec-websocket-protocol", value) for value in values])["subprotocols"] == subprotocols


# The answers


def test_an_accept_answers_the_key():
    response = accept_response(asked(b"/", HEADERS), subprotocol=None, headers=[], extensions=None)
    assert response == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + ANSWER + b"\r\n\r\n"
    )


def test_an_accept_has_the_agreed_subprotocol_and_extensions():
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[*HEADERS, ("upgrade", "websocket")]))
    client.receive_data(
        accept_response(
            asked(b"/", HEADERS), subprotocol="chat", headers=[(b"x-y", b"z")], extensions="permessage-deflate"
        )
    )
    answer = client.next_event()
    assert answer.status_code == 101
    assert list(answer.headers)[3:] == [
        (b"sec-websocket-protocol", b"chat"),
        (b"sec-websocket-extensions", b"permessage-deflate"),
        (b"x-y", b"z"),
    ]


def test_a_final_response_always_closes_the_connection():
    headers = [
        (b"connection", b"keep-alive"),
        (b"keep-alive", b"timeout=5"),
        (b"transfer-encoding", b"chunked"),
        (b"x-y", b"z"),
    ]
    status, answer, body = read(final_response(404, headers) + b"not chunked")
    assert (status, body) == (404, b"not chunked")
    assert [name for name, _ in answer] == [b"x-y", b"date", b"connection"]
    assert answer[-1] == (b"connection", b"close")


def test_a_final_response_has_one_date_and_the_phrase_of_its_status():
    assert final_response(418, [(b"date", b"today")]) == (
        b"HTTP/1.1 418 I'm a Teapot\r\ndate: today\r\nconnection: close\r\n\r\n"
    )
    assert final_response(599, []).startswith(b"HTTP/1.1 599 \r\ndate: ")
