"""The rules of a handshake: origins, subprotocols and headers."""

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from microws.datastructures import Headers, MultiDict
from microws.handshake import (
    check_accept,
    check_handshake_origin,
    check_headers,
    check_origin,
    check_origins_setting,
    check_request_origin,
    choose_subprotocol,
    explain_no_subprotocol,
)

HOST = "app.example"


def passes(origin, host=HOST, allowed=None, **options):
    return check_origin(origin=origin, host=host, allowed=check_origins_setting(allowed), **options) is None


def headers_of(host=HOST, **headers):
    pairs = [("host", host), *((name.replace("_", "-"), value) for name, value in headers.items())]
    return Headers([(name.encode(), value.encode("latin-1")) for name, value in pairs if value is not None])


class TestOwnOrigin:
    def test_a_client_without_an_origin_passes(self):
        assert passes(None)
        assert passes(None, host=None)

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://a.example", "a.example"),
            ("http://a.example", "a.example"),
            ("https://a.example", "a.example:443"),
            ("http://a.example", "a.example:80"),
            ("http://a.example:80", "a.example"),
            ("https://a.example:443", "a.example"),
            ("http://a.example:8000", "a.example:8000"),
            ("https://A.Example", "a.eXample"),
            ("HTTPS://a.example", "a.example"),
            ("https://a.example.", "a.example"),
            ("https://a.example", "a.example."),
            ("https://a.example.:8000", "a.example:8000"),
            ("http://127.0.0.1:8000", "127.0.0.1:8000"),
            ("http://[::1]:8000", "[::1]:8000"),
            ("http://[::1]", "[0:0:0:0:0:0:0:1]"),
            ("http://[2001:DB8::1]", "[2001:db8:0::1]:80"),
            ("http://under_score.example", "under_score.example"),
        ],
    )
    def test_a_page_of_the_same_host_and_port_passes(self, origin, host):
        assert passes(origin, host)

    @pytest.mark.parametrize(
        ("origin", "host"),
        [
            ("https://b.example", "a.example"),
            ("https://a.example.evil.example", "a.example"),
            ("https://evil-a.example", "a.example"),
            ("https://sub.a.example", "a.example"),
            ("https://a.example:8443", "a.example"),
            ("https://a.example", "a.example:8443"),
            ("http://a.example:3000", "a.example:8000"),
            ("http://a.example", "a.example:443"),
            ("http://a.example:443", "a.example"),
            ("https://a.example:80", "a.example"),
            ("http://localhost:8000", "127.0.0.1:8000"),
            ("http://[::1]", "[::2]"),
            ("capacitor://a.example", "a.example"),
            ("file://", ""),
            ("chrome-extension://abcdefgh", "abcdefgh"),
        ],
    )
    def test_a_foreign_page_is_refused(self, origin, host):
        refusal = check_origin(origin=origin, host=host, allowed=None)
        assert refusal is not None
        assert refusal.status == 403
        assert refusal.detail == "origin not allowed"
        assert repr(origin) in refusal.log
        assert f"Host {host!r}" in refusal.log
        assert f'App(origins=["{origin.removesuffix(":")}"])' in refusal.log

    @pytest.mark.parametrize(
        "origin",
        [
            "null", "", "app.example", "//app.example", "https:app.example", "https://", "https://.",
            "https://app.example/", "https://app.example/path", "https://app.example?", "https://user@app.example",
            "https://app.example:", "https://app.example:https", "https://app.example:70000",
            "https://app.example:000443", "https://app.example\n", " https://app.example",
            "https://app.example, https://app.example", "https://app.example https://app.example", "https://[::1",
            "https://[zz]", "https://[1:2]", "https://app.ex\u0430mple", "https://app.e\u017fample",
            "https://app%2eexample",
        ],
    )  # fmt: skip
    def test_null_and_malformed_origins_are_refused_unless_the_check_is_off(self, origin):
        for host in (HOST, origin, origin.removeprefix("https://")):
            refusal = check_origin(origin=origin, host=host, allowed=("https://app.example",), any_localhost=True)
            assert refusal is not None
            assert 'to turn the check off: App(origins=["*"])' in refusal.log
        assert passes(origin, allowed=["*"])

    @pytest.mark.parametrize(
        "host",
        [None, "", ":80", "app.example:x", "app.example:70000", "[::1", "[1:2]", "app.example, app.example", "a b"],
    )
    def test_a_page_is_refused_without_one_valid_host(self, host):
        assert not passes("https://app.example", host)
        assert passes("https://app.example", host, allowed=["https://app.example"])

    def test_several_hosts_or_origins_in_a_handshake_are_refused(self):
        host, origin = (b"host", b"app.example"), (b"origin", b"https://app.example")
        assert check_handshake_origin(Headers([host, origin]), allowed=None) is None
        assert check_handshake_origin(Headers([host]), allowed=None) is None
        assert check_handshake_origin(Headers([]), allowed=None) is None
        assert check_handshake_origin(Headers([host, host, origin]), allowed=None) is not None
        assert check_handshake_origin(Headers([host, origin, origin]), allowed=None) is not None
        assert check_handshake_origin(Headers([origin]), allowed=None) is not None

    def test_the_log_line_is_short_and_printable(self):
        refusal = check_origin(origin="https://evil\n" + "x" * 10_000, host="\r\n" + "y" * 10_000, allowed=None)
        assert refusal.log.isprintable()
        assert len(refusal.log) < 400

    @given(st.text(), st.text(), st.booleans())
    @example("https://a.example", "a.example", False)
    def test_any_origin_and_host_pass_or_are_refused(self, origin, host, any_localhost):
        refusal = check_origin(origin=origin, host=host, allowed=None, any_localhost=any_localhost)
        assert refusal is None or refusal[:2] == (403, "origin not allowed")

    @given(st.from_regex(r"[a-z]{1,8}(\.[a-z]{1,8}){0,2}", fullmatch=True), st.integers(0, 65535))
    def test_an_origin_with_the_text_of_the_host_passes(self, name, port):
        assert passes(f"https://{name}:{port}", f"{name}:{port}")
        assert not passes(f"https://x{name}:{port}", f"{name}:{port}")
        assert not passes(f"https://{name}:{port}", f"{name}:{port ^ 1}")


class TestAllowedOrigins:
    def test_a_list_allows_its_origins_and_the_own_one(self):
        allowed = ["https://one.example", "http://two.example:3000", "http://[::1]:80", "chrome-extension://abc"]
        for origin in (*allowed, "https://ONE.example:443", "http://[0::1]", "https://app.example"):
            assert passes(origin, allowed=allowed)
        for origin in ("http://one.example", "https://two.example:3000", "http://two.example", "https://x.one.example"):
            assert not passes(origin, allowed=allowed)

    def test_a_star_allows_everything(self):
        for origin in ("https://evil.example", "null", "nonsense"):
            assert passes(origin, host=None, allowed=["https://one.example", "*"])

    def test_the_setting_is_normalized(self):
        assert check_origins_setting(None) is None
        assert check_origins_setting([]) == ()
        origins = ["HTTPS://App.Example:443", "http://a:80", "http://a:81", "*", "http://[0::1]:8000", "file://"]
        expected = ("https://app.example", "http://a", "http://a:81", "*", "http://[::1]:8000", "file://")
        assert check_origins_setting(origins) == expected
        assert check_origins_setting(expected) == expected

    @pytest.mark.parametrize(
        ("entry", "right"),
        [
            ("app.example", "https://app.example"),
            ("localhost:3000", "https://localhost:3000"),
            ("https://app.example/", "https://app.example"),
            ("http://App.example:3000/path?query#fragment", "http://app.example:3000"),
            ("app.example/path", "https://app.example"),
            ("https://*.example", "https://app.example"),
            ("https://bücher.example", "https://app.example"),
            ("https://", "https://app.example"),
            ("", "https://app.example"),
            ("https://user:password@a", "https://app.example"),
        ],
    )
    def test_an_invalid_entry_is_refused_with_the_correct_form(self, entry, right):
        with pytest.raises(ValueError, match=re.escape(f'not {entry!r}; write "{right}"')):
            check_origins_setting(["https://fine.example", entry])

    @pytest.mark.parametrize(
        ("origins", "error", "message"),
        [
            (["null"], ValueError, r'^origins cannot allow "null"'),  # every sandboxed page sends it
            ("https://app.example", ValueError, r"^origins takes a list: origins=\['https://app\.example'\]$"),
            ([None], TypeError, r'^origins takes str such as "https://app\.example", not None$'),
        ],
    )
    def test_an_invalid_setting_is_refused(self, origins, error, message):
        with pytest.raises(error, match=message):
            check_origins_setting(origins)

    @given(st.text())
    def test_any_entry_is_accepted_or_refused(self, entry):
        try:
            (taken,) = check_origins_setting([entry])
        except ValueError:
            return
        assert passes(entry, host=None, allowed=[taken])


class TestLocalhost:
    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost", "http://localhost:5173", "https://LOCALHOST:1", "http://127.0.0.1:3000",
            "http://127.255.0.3", "http://[::1]:3000", "http://app.localhost:3000", "http://localhost.:3000",
        ],
    )  # fmt: skip
    def test_localhost_origins_of_any_port_may_be_allowed(self, origin):
        assert passes(origin, any_localhost=True)
        assert not passes(origin)

    @pytest.mark.parametrize(
        "origin",
        [
            "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://evillocalhost",
            "http://128.0.0.1", "http://[::2]", "http://10.0.0.1", "file://localhost", "null",
        ],
    )  # fmt: skip
    def test_names_that_resemble_localhost_are_refused(self, origin):
        assert not passes(origin, any_localhost=True)


def request_passes(method="POST", allowed=None, any_localhost=False, **headers):
    allowed = check_origins_setting(allowed)
    return check_request_origin(method, headers_of(**headers), allowed=allowed, any_localhost=any_localhost) is None


class TestRequests:
    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
    def test_a_safe_method_passes(self, method):
        assert request_passes(method, origin="https://evil.example", sec_fetch_site="cross-site")

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "PURGE"])
    def test_an_unsafe_method_from_a_foreign_page_is_refused(self, method):
        assert not request_passes(method, origin="https://evil.example")
        assert not request_passes(method, sec_fetch_site="cross-site")
        assert not request_passes(method, origin="https://evil.example", sec_fetch_site="cross-site")
        assert not request_passes(method, origin="null")

    @pytest.mark.parametrize("site", ["same-origin", "none"])
    def test_same_origin_passes_if_a_proxy_rewrites_host(self, site):
        assert request_passes(sec_fetch_site=site)
        assert request_passes(sec_fetch_site=site, origin="https://public.example", host="backend:8000")

    def test_another_origin_of_the_same_site_is_refused(self):
        assert not request_passes(sec_fetch_site="same-site", origin="https://other.example")
        assert not request_passes(sec_fetch_site="same-site", origin="http://app.example:3000", host="app.example:8000")
        assert not request_passes(sec_fetch_site="same-site")
        assert request_passes(sec_fetch_site="same-site", origin="https://app.example")

    def test_a_cross_site_request_is_refused_even_with_our_origin(self):
        assert not request_passes(sec_fetch_site="cross-site", origin="https://app.example")

    @pytest.mark.parametrize("site", [None, "cross-site", "same-site"])
    def test_an_allowed_origin_passes(self, site):
        assert request_passes(sec_fetch_site=site, origin="https://one.example", allowed=["https://one.example"])
        assert not request_passes(sec_fetch_site=site, origin="https://two.example", allowed=["https://one.example"])
        assert request_passes(sec_fetch_site=site, origin="null", allowed=["*"])
        assert request_passes(sec_fetch_site=site, allowed=["*"])
        assert request_passes(sec_fetch_site=site, origin="http://localhost:3000", any_localhost=True)

    def test_without_a_known_site_the_origin_decides(self):
        assert request_passes(sec_fetch_site="nonsense")
        assert request_passes()  # not a browser
        assert request_passes(host=None)
        assert request_passes(origin="https://app.example")  # an old browser
        assert not request_passes(sec_fetch_site="nonsense", origin="https://evil.example")

    @pytest.mark.parametrize("sites", [("same-origin", "cross-site"), ("cross-site", "none"), ("none", "same-site")])
    def test_of_several_sites_the_strictest_wins(self, sites):
        headers = Headers([(b"host", b"app.example"), *((b"sec-fetch-site", site.encode()) for site in sites)])
        assert check_request_origin("POST", headers, allowed=None) is not None

    def test_a_refusal_names_the_origin_and_the_setting_to_write(self):
        headers = headers_of(origin="https://evil.example", sec_fetch_site="cross-site")
        refusal = check_request_origin("POST", headers, allowed=None)
        assert refusal.log == (
            "Origin 'https://evil.example' (Sec-Fetch-Site: cross-site) is not the request's own Host 'app.example'; "
            "if a proxy changes Host, configure it to forward the client's; "
            'to allow this origin: App(origins=["https://evil.example"])'
        )
        refusal = check_request_origin("POST", headers_of(sec_fetch_site="cross-site"), allowed=None)
        assert refusal.log.startswith("a request without Origin (Sec-Fetch-Site: cross-site) is not")


class TestSubprotocols:
    def test_the_first_supported_subprotocol_that_is_offered_is_chosen(self):
        assert choose_subprotocol(["a", "b", "c"], ["x", "c", "a"]) == "c"
        assert choose_subprotocol(["a"], ["b"]) is None
        assert choose_subprotocol([], ["b"]) is None
        assert choose_subprotocol(["a"], []) is None
        assert choose_subprotocol(["Chat"], ["chat"]) is None

    def test_an_offered_subprotocol_is_accepted(self):
        assert check_accept(subprotocol="chat", offered=["x", "chat"]) == []
        assert check_accept(subprotocol=None, offered=["x"]) == []

    def test_a_subprotocol_that_was_not_offered_is_refused(self):
        message = r"^expected a subprotocol that the client offers \('a', 'b'\), got 'chat'$"
        with pytest.raises(ValueError, match=message):
            check_accept(subprotocol="chat", offered=["a", "b"])
        with pytest.raises(ValueError, match=r"the client offers \(none\), "):
            check_accept(subprotocol="chat", offered=[])

    @pytest.mark.parametrize(
        ("offered", "shown"),
        [
            (["bearer", "s3cret"], "'bearer', '…'"),
            (["v1", "Bearer", "s3cret", "s3cret2"], "'v1', 'Bearer', '…', '…'"),
            (["v1", "bearer.s3cret"], "'v1', 'bearer…'"),
            (["base64url.bearer.authorization.k8s.io.s3cret", "v1"], "'base64url.bearer…', '…'"),
            (["x" * 99, *"abcdefghijk"], f"'{'x' * 58}…, 'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', …"),
        ],
    )
    def test_tokens_and_long_offers_are_not_shown(self, offered, shown):
        with pytest.raises(ValueError, match="expected a subprotocol that the client offers") as caught:
            check_accept(subprotocol="bearer-s3cret", offered=offered)
        assert f"the client offers ({shown})" in str(caught.value)
        assert f"client offers {shown}, the route has none:" in explain_no_subprotocol(offered, ())
        assert "s3cret" not in str(caught.value) + explain_no_subprotocol(offered, ["bearer-s3cret"])
        with pytest.raises(ValueError, match=r"expected a subprotocol of letters, .* got '…'$") as caught:
            check_accept(subprotocol="s3 cret", offered=["bearer", "s3 cret"])
        assert "cret" not in str(caught.value)

    @pytest.mark.parametrize("subprotocol", ["", "a b", "a,b", "a\r\nx: y", "é", "\u20ac", "a\x00", '"a"', "a/b"])
    def test_a_subprotocol_that_is_not_a_token_is_refused(self, subprotocol):
        with pytest.raises(ValueError, match=r"^expected a subprotocol of letters, digits and "):
            check_accept(subprotocol=subprotocol, offered=[subprotocol])

    @given(st.text(), st.lists(st.text()))
    def test_any_subprotocol_is_accepted_or_refused(self, subprotocol, offered):
        try:
            check_accept(subprotocol=subprotocol, offered=offered)
        except ValueError:
            return
        assert subprotocol in offered
        assert re.fullmatch(r"[!-~]+", subprotocol)


class TestHeaders:
    def test_headers_may_be_a_mapping_or_pairs(self):
        expected = [(b"x-one", b"1"), (b"x-two", b"2")]
        assert check_headers({"X-One": "1", "X-Two": "2"}) == expected
        assert check_headers([("X-One", "1"), ("X-Two", "2")]) == expected
        assert check_headers(iter([[b"X-One", b"1"], ("X-Two", b"2")])) == expected
        assert check_headers(None) == []

    def test_every_value_of_a_multi_dict_is_kept(self):
        items = [("set-cookie", "a=1"), ("set-cookie", "b=2")]
        expected = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")]
        assert check_headers(MultiDict(items)) == check_headers(items) == expected
        assert check_accept(subprotocol=None, offered=[], headers=Headers(expected)) == expected

    def test_blanks_around_a_value_are_dropped(self):
        assert check_headers({"a": " \tb c\t ", "d": ""}) == [(b"a", b"b c"), (b"d", b"")]

    def test_values_are_latin_1(self):
        assert check_headers({"a": "caf\xe9"}) == [(b"a", b"caf\xe9")]
        with pytest.raises(ValueError, match=r"^the header value '\u20ac' is not in Latin-1; percent-encode it$"):
            check_headers({"a": "\u20ac"})
        with pytest.raises(ValueError, match=r"^the header name '\u20ac' is not in Latin-1"):
            check_headers({"\u20ac": "a"})

    @pytest.mark.parametrize("name", ["", "a b", "a:", ":status", "a\r\n", "\xe9", "a\x00", "a(b)", b"a b"])
    def test_a_name_that_is_not_a_token_is_refused(self, name):
        with pytest.raises(ValueError, match=r"^expected a header name of letters, digits and "):
            check_headers([(name, "value")])

    @pytest.mark.parametrize("value", ["a\r\nx: y", "a\nb", "a\rb", "a\x00b", "\x1b", "\x7f", b"a\x0bb", "\r"])
    def test_a_value_with_a_control_character_is_refused(self, value):
        with pytest.raises(ValueError, match=r" of the header 'x-a' has a control character$"):
            check_headers([("x-a", value)])

    def test_other_types_are_refused(self):
        with pytest.raises(TypeError, match=r"^expected a header value as str or bytes, got int: 5$"):
            check_headers({"x-a": 5})
        with pytest.raises(TypeError, match=r"^expected a header name as str or bytes, got NoneType: None$"):
            check_headers([(None, "a")])
        for headers in ("x-a: b", [("a", "b", "c")], ["ab"], [b"ab"]):
            with pytest.raises(TypeError, match=r"^expected headers as a mapping or \(name, value\) pairs, got "):
                check_headers(headers)

    @pytest.mark.parametrize(
        "name",
        [
            "Connection", "upgrade", "Content-Length", "transfer-encoding", "TE", "Trailer", "Keep-Alive",
            "Sec-WebSocket-Accept", "sec-websocket-extensions", "Sec-WebSocket-Anything",
        ],
    )  # fmt: skip
    def test_accept_cannot_set_headers_of_the_handshake(self, name):
        message = rf"^the handshake sets the header {name.lower()} itself; leave it out$"
        with pytest.raises(ValueError, match=message):
            check_accept(subprotocol=None, offered=[], headers={name: "1"})
        assert check_headers({name: "1"}) == [(name.lower().encode(), b"1")]

    def test_a_subprotocol_header_is_refused_with_the_argument_to_use(self):
        with pytest.raises(ValueError, match=r"itself; leave it out; use accept\(subprotocol=…\)$"):
            check_accept(subprotocol=None, offered=["chat"], headers={"Sec-WebSocket-Protocol": "chat"})

    def test_an_error_shortens_a_huge_value(self):
        for headers in ({"a" * 10_000: "\n"}, {"a " * 10_000: "b"}, {"a": "\u20ac" * 10_000}, ["a" * 10_000]):
            with pytest.raises((ValueError, TypeError)) as caught:
                check_headers(headers)
            assert len(str(caught.value)) < 250

    @given(st.lists(st.tuples(st.text() | st.binary(), st.text() | st.binary())))
    def test_any_headers_are_clean_or_refused(self, headers):
        try:
            checked = check_headers(headers)
        except ValueError:
            return
        for name, value in checked:
            assert re.fullmatch(rb"[!-9;-~]+", name)
            assert name == name.lower()
            assert re.fullmatch(rb"([!-~\x80-\xff]([\t -~\x80-\xff]*[!-~\x80-\xff])?)?", value)
