"""Clients that others have made, against ``microws run``, with TLS and without."""

import hashlib
import os
import sys
import uuid

import conversing
import node_packages
import pytest
from conversing import CERTIFICATE, Conversation
from serving import browsing, running
from websockets.frames import Close, Frame, Opcode

# One server, one browser and one installation of packages for all of them.
pytestmark = pytest.mark.xdist_group("clients")

CLIENTS = ("websockets", "aiohttp", "ws", "undici", "chromium")


@pytest.fixture(scope="module", params=["plain", "tls"])
def server(request):
    """``microws run``, as long as the tests of this module last."""
    command = [sys.executable, "-m", "microws", "run", "answering:app", "--port", "0", "--app-dir", conversing.HERE]
    if request.param == "tls":
        command += ["--certfile", CERTIFICATE, "--keyfile", CERTIFICATE.with_suffix(".key")]
    with running(command) as server:
        yield server
        assert server.stop() == 0
        assert server.find_lines(r"^Traceback| (error|critical) ") == []


@pytest.fixture(scope="module")
def chromium():
    with browsing() as browser:
        yield browser


@pytest.fixture(scope="module")
def installed_packages():
    node_packages.install(conversing.NODE)


@pytest.fixture(params=CLIENTS)
def converse(request, server):
    """One client."""
    match request.param:
        case "websockets":
            yield conversing.websockets
        case "aiohttp":
            yield conversing.aiohttp_client
        case "ws" | "undici":
            request.getfixturevalue("installed_packages")
            yield conversing.node(request.param)
        case "chromium":
            with request.getfixturevalue("chromium").new_context(ignore_https_errors=True) as context:
                page = context.new_page()
                page.goto(server.url)
                yield conversing.browser(page)


def test_text_and_binary_messages_come_back_as_what_they_were(server, converse):
    messages = ["hello", "", "Zażółć gęślą jaźń \N{GRINNING FACE}\0", b"", bytes(range(256)), "x" * 126, bytes(1 << 16)]
    assert converse(f"{server.ws_url}/echo", messages=messages, close=(1000, "")).received == messages


def test_the_first_of_the_views_subprotocols_that_the_client_offers_is_theirs(server, converse):
    end = converse(f"{server.ws_url}/echo", subprotocols=["other", "chat.v1"], messages=["hello"], close=(1000, ""))
    assert (end.subprotocol, end.received) == ("chat.v1", ["hello"])


def test_without_an_offer_there_is_no_subprotocol(server, converse):
    assert converse(f"{server.ws_url}/echo", close=(1000, "")).subprotocol == ""


def test_the_client_sees_the_servers_close_code_and_reason(server, converse):
    assert converse(f"{server.ws_url}/bye") == Conversation("", [], 4001, "bye")


def test_the_view_sees_the_clients_close_code_and_reason(server, converse):
    name = uuid.uuid4().hex
    # aiohttp does not show the reason of a close that it began.
    assert converse(f"{server.ws_url}/farewell/{name}", close=(4002, "so long")).code == 4002
    assert server.wait_for_line(rf"^{name} left: (.*)$")[1] == "4002 so long"


@pytest.mark.parametrize("message", ["é" * (1 << 19), os.urandom(1 << 20)], ids=["text", "binary"])
def test_a_message_of_1_MiB_comes_back(server, converse, message):  # noqa: N802
    received = converse(f"{server.ws_url}/echo", messages=[message], close=(1000, "")).received
    assert [digest(message) for message in received] == [digest(message)]


@pytest.fixture
def curl():
    node_packages.need("curl")
    return conversing.curl


def test_curl_sees_the_subprotocol_and_the_servers_close_code_and_reason(server, curl):
    end = curl(f"{server.ws_url}/bye", subprotocols=["other", "chat.v1"])
    assert end == Conversation("chat.v1", [], 4001, "bye")


@pytest.mark.parametrize(
    "message", ["", "héllo", b"\0\xff", os.urandom(1 << 20)], ids=["empty", "text", "binary", "1 MiB"]
)
def test_what_curl_sends_behind_its_request_is_the_first_message(server, curl, message):
    opcode, data = (Opcode.TEXT, message.encode()) if isinstance(message, str) else (Opcode.BINARY, message)
    end = curl(f"{server.ws_url}/once", sent=Frame(opcode, data).serialize(mask=True))
    assert ([digest(message) for message in end.received], end.code, end.reason) == ([digest(message)], 4001, "bye")


def test_the_view_sees_the_close_code_and_reason_that_curl_sends_behind_its_request(server, curl):
    name = uuid.uuid4().hex
    farewell = Frame(Opcode.CLOSE, Close(4002, "so long").serialize()).serialize(mask=True)
    assert curl(f"{server.ws_url}/farewell/{name}", sent=farewell).code == 4002
    assert server.wait_for_line(rf"^{name} left: (.*)$")[1] == "4002 so long"


def digest(message):
    """The kind, the size and the hash: a difference of a mebibyte is no use in a log."""
    data = message.encode() if isinstance(message, str) else message
    return type(message), len(data), hashlib.sha256(data).hexdigest()
