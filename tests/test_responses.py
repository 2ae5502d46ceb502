"""Responses whose body is known: what is sent, and what is refused before anything is."""

from datetime import UTC, datetime
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.cookies import parse_cookies
from microws.datastructures import Headers
from microws.responses import JSONResponse, RedirectResponse, Response, ResponseHeaders
from microws.testing import TestClient

pytestmark = pytest.mark.anyio


async def send(response, *, method="GET"):
    async with TestClient(response, lifespan=False) as client:
        return await client.request(method, "/")


class TestSending:
    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            ("ü", "text/html; charset=utf-8"),
            ("", "text/html; charset=utf-8"),
            (b"\xff", "application/octet-stream"),
            (bytearray(b"ab"), "application/octet-stream"),
            (memoryview(b"ab"), "application/octet-stream"),
            (b"", None),
        ],
    )
    async def test_a_body_has_its_length_and_its_type(self, body, content_type):
        sent = await send(Response(body))
        expected = body.encode() if isinstance(body, str) else bytes(body)
        assert sent.status == 200
        assert sent.body == expected
        assert sent.headers["content-length"] == str(len(expected))
        assert sent.headers.get("content-type") == content_type

    async def test_a_given_content_type_is_kept(self):
        for options in (
            {"headers": {"Content-Type": "text/css"}},
            {"content_type": "text/css"},
            {"headers": {"content-type": "text/xml"}, "content_type": "text/css"},
        ):
            assert (await send(Response("x", **options))).headers.getlist("content-type") == ["text/css"]

    async def test_head_has_the_same_headers_and_no_body(self):
        sent, scope = [], {"type": "http", "method": "HEAD"}

        async def keep(event):
            sent.append(event)

        await Response("abc")(scope, None, keep)
        assert sent[1] == {"type": "http.response.body", "body": b""}
        got, head = await send(Response("abc")), await send(Response("abc"), method="HEAD")
        assert head.headers == got.headers

    @pytest.mark.parametrize("status", [204, 304])
    async def test_a_status_without_a_body_has_no_length(self, status):
        sent = await send(Response("abc", status))
        assert sent.status == status
        assert sent.body == b""
        assert "content-length" not in sent.headers

    async def test_status_headers_and_body_can_be_changed_until_it_is_sent(self):
        response = Response("abc")
        response.status = 201
        response.body = b"longer"
        response.headers["x-a"] = "1"
        sent = await send(response)
        assert (sent.status, sent.body, sent.headers["x-a"]) == (201, b"longer", "1")


class TestRefused:
    @pytest.mark.parametrize("status", [0, 99, 101, 199, 600])
    def test_an_informational_status_is_an_error(self, status):
        with pytest.raises(ValueError, match=f"200 to 599, got {status}"):
            Response(status=status)

    @pytest.mark.parametrize("body", [None, {"a": 1}, 1, ["a"]])
    def test_a_body_must_be_str_or_bytes(self, body):
        with pytest.raises(TypeError, match="use JSONResponse"):
            Response(body)

    @pytest.mark.parametrize(
        "header",
        [("a b", "1"), ("", "1"), ("a", "1\r\nb: 2"), ("a", "\0"), ("a", "€"), ("Content-Length", "1"),
         ("Transfer-Encoding", "x")],
    )  # fmt: skip
    def test_an_invalid_header_is_an_error_wherever_it_is_set(self, header):
        for set_it in (
            lambda: Response(headers=[header]),
            lambda: Response(headers=dict([header])),
            lambda: Response().headers.__setitem__(*header),
            lambda: Response().headers.add(*header),
        ):
            with pytest.raises(ValueError, match=r".+"):
                set_it()


class TestResponseHeaders:
    def test_setting_a_name_replaces_every_header_of_it(self):
        headers = ResponseHeaders([("A", "1"), ("b", "2"), ("a", "3")])
        headers["a"] = "4"
        assert headers.multi_items() == [("b", "2"), ("a", "4")]
        assert headers["A"] == "4"

    def test_an_invalid_value_changes_nothing(self):
        headers = ResponseHeaders({"a": "1"})
        with pytest.raises(ValueError, match="control"):
            headers["a"] = "\n"
        assert headers == {"a": "1"}

    def test_add_keeps_headers_of_that_name(self):
        headers = ResponseHeaders(Headers([(b"vary", b"a"), (b"vary", b"b")]))
        headers.add("Vary", "c")
        assert headers.getlist("vary") == ["a", "b", "c"]
        assert headers.raw() == [(b"vary", b"a"), (b"vary", b"b"), (b"vary", b"c")]

    def test_headers_are_a_mutable_mapping(self):
        headers = ResponseHeaders({"a": "1", "b": "2"})
        headers.update({"B": "3", "c": "4"})
        assert headers.setdefault("A", "9") == "1"
        assert headers.pop("C") == "4"
        del headers["a"]
        assert headers == {"b": "3"}
        with pytest.raises(KeyError):
            del headers["a"]


class TestCookies:
    async def test_the_next_request_has_the_cookie(self):
        response = Response("x")
        response.set_cookie("name", "a b;ü", max_age=60, httponly=True)
        response.set_cookie("other", "1", samesite="strict", path="/x")
        first, second = (await send(response)).headers.getlist("set-cookie")
        assert first.endswith("; Max-Age=60; Path=/; HttpOnly; SameSite=Lax")
        assert parse_cookies(first.partition(";")[0].encode()) == {"name": "a b;ü"}
        assert second == "other=1; Path=/x; SameSite=Strict"

    async def test_a_deleted_cookie_has_expired(self):
        response = Response("x")
        response.delete_cookie("name", path="/x", domain="example.org", secure=True, samesite="none")
        assert (await send(response)).headers["set-cookie"] == (
            "name=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/x; Domain=example.org; Secure; "
            "SameSite=None"
        )

    def test_an_invalid_cookie_is_an_error(self):
        with pytest.raises(ValueError, match="as a cookie's name"):
            Response().set_cookie("a b", "1", expires=datetime.now(UTC))


class TestJSON:
    @pytest.mark.parametrize("value", [{"a": [1, "ü"]}, [], None, "text", 2**70])
    async def test_any_value_can_be_decoded_again(self, value):
        sent = await send(JSONResponse(value, HTTPStatus.CREATED, {"x-a": "1"}))
        assert (sent.json(), sent.status, sent.headers["x-a"]) == (value, 201, "1")
        assert sent.headers["content-type"] == "application/json"
        sent = await send(JSONResponse(value, headers={"content-type": "application/problem+json"}))
        assert sent.headers["content-type"] == "application/problem+json"

    def test_a_value_that_json_cannot_encode_is_named(self):
        with pytest.raises(ValueError, match=r"value\.a is nan"):
            JSONResponse({"a": float("nan")})
        with pytest.raises(TypeError, match="object"):
            JSONResponse(object())


class TestRedirect:
    @pytest.mark.parametrize(
        ("location", "sent_as"),
        [
            ("/", "/"),
            ("/a/b?c=d#e", "/a/b?c=d#e"),
            ("/ä b", "/%C3%A4%20b"),
            ("/a%20b", "/a%20b"),
            ("/a//b", "/a//b"),
            ("https://other.example/x", "https://other.example/x"),
            ("HTTP://[::1]:80/", "HTTP://[::1]:80/"),
        ],
    )
    async def test_a_redirect_goes_to_a_path_or_url(self, location, sent_as):
        sent = await send(RedirectResponse(location))
        assert sent.status == 307
        assert sent.headers["location"] == sent_as
        assert sent.headers["content-length"] == "0"

    async def test_a_redirect_has_any_redirect_status(self):
        for status in (301, 302, 303, 307, 308):
            assert (await send(RedirectResponse("/", status))).status == status
        for status in (200, 300, 304, 400):
            with pytest.raises(ValueError, match="redirect's status"):
                RedirectResponse("/", status)

    @pytest.mark.parametrize(
        "location",
        ["//evil.example", "///evil.example", "/\\evil.example", "\\\\evil.example", "/\t/evil.example",
         "\n//evil.example", " //evil.example", "/a\r\nset-cookie: x=1", "/\x7f", "evil.example", "", "?a=b",
         "javascript:alert(1)", "data:text/html,x", "http:evil.example", "https:///evil.example",
         "https:\\\\evil.example", "ftp://evil.example"],
    )  # fmt: skip
    def test_a_path_that_a_browser_reads_as_a_host_is_an_error(self, location):
        with pytest.raises(ValueError, match="exactly one slash"):
            RedirectResponse(location)

    @given(st.text() | st.text("/\\.:@?#\t\n htps"))
    def test_no_path_leads_to_another_host(self, path):
        try:
            location = RedirectResponse(f"/{path}").headers["location"]
        except ValueError:
            return
        assert location.startswith("/")
        assert not location.startswith("//")
        assert location.isascii()
        assert location.isprintable()
        assert urlsplit(urljoin("https://own.example/x/", location)).netloc == "own.example"
