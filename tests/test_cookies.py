"""Cookies: what was set comes back, whatever it holds; what a client makes up never fails."""

from datetime import UTC, datetime, timedelta, timezone
from http.cookies import SimpleCookie

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws import Response
from microws.cookies import parse_cookies

NAMES = st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs"]))


def format_cookie(name, value, **options):
    response = Response()
    response.set_cookie(name, value, **options)
    return response.headers["set-cookie"]


class TestBothWays:
    @given(st.dictionaries(NAMES, VALUES))
    def test_every_name_and_value_comes_back(self, cookies):
        pairs = [format_cookie(name, value).partition(";")[0] for name, value in cookies.items()]
        assert parse_cookies("; ".join(pairs).encode("ascii")) == cookies

    @given(st.text(st.characters(max_codepoint=255)))
    def test_values_that_pythons_own_module_wrote_are_read(self, value):
        jar = SimpleCookie()
        jar["name"] = value
        header = jar["name"].OutputString().encode("latin-1")
        # Beyond ASCII it writes Latin-1, which nobody else does.
        if value.isascii():
            assert parse_cookies(header) == {"name": value}


class TestParse:
    @given(st.binary())
    def test_nothing_makes_it_fail(self, header):
        for name, value in parse_cookies(header).items():
            assert isinstance(name, str)
            assert isinstance(value, str)
            assert name

    @pytest.mark.parametrize(
        ("header", "cookies"),
        [
            (b"", {}),
            (b"a=1; b=2", {"a": "1", "b": "2"}),
            (b"a=1;b=2;;", {"a": "1", "b": "2"}),
            (b"a=b=c", {"a": "b=c"}),
            (b"a=; b", {"a": ""}),
            (b"=x; a=1", {"a": "1"}),
            (b' a = "1 2" ', {"a": "1 2"}),
            (b'a="; b=2', {"a": '"', "b": "2"}),
            (b'a={"json":1}', {"a": '{"json":1}'}),
            (b"bad name=1; b[]=2", {"bad name": "1", "b[]": "2"}),
            ("a=ü".encode(), {"a": "ü"}),
            (b"a=\xff", {"a": "\ufffd"}),
            (rb'a="\303\274\"\999"', {"a": 'ü"999'}),
        ],
    )
    def test_each_pair_stands_for_itself(self, header, cookies):
        assert parse_cookies(header) == cookies

    def test_of_two_with_one_name_the_first_counts(self):
        assert parse_cookies(b"a=near; a=far") == {"a": "near"}


class TestFormat:
    def test_by_default_it_is_for_the_whole_host_until_the_browser_ends(self):
        assert format_cookie("a", "1") == "a=1; Path=/; SameSite=Lax"

    def test_each_attribute_is_written(self):
        cookie = format_cookie(
            "a",
            "1",
            max_age=60,
            expires=datetime(2030, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=1))),
            path="/x",
            domain="example.org",
            secure=True,
            httponly=True,
            samesite="none",
        )
        assert cookie == (
            "a=1; Max-Age=60; Expires=Wed, 02 Jan 2030 02:04:05 GMT; Path=/x; Domain=example.org; Secure; HttpOnly; "
            "SameSite=None"
        )

    def test_what_is_none_is_left_out(self):
        assert format_cookie("a", "1", path=None, samesite=None) == "a=1"

    @given(NAMES, VALUES)
    def test_no_value_ends_the_header_or_the_cookie_early(self, name, value):
        header = format_cookie(name, value, path=None, samesite=None)
        assert header.isascii()
        assert header.isprintable()
        assert ";" not in header

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"name": ""}, "as a cookie's name"),
            ({"name": "a b"}, "as a cookie's name"),
            ({"name": "a=b"}, "as a cookie's name"),
            ({"name": "a\r\n"}, "as a cookie's name"),
            ({"value": "\ud800"}, "surrogate"),
            ({"expires": datetime(2030, 1, 1)}, "time zone"),
            ({"path": "x"}, "cookie's path of a slash"),
            ({"path": "/x; Secure"}, "without semicolons"),
            ({"path": "/ü"}, "ASCII"),
            ({"domain": "a;b"}, "host name"),
            ({"domain": ""}, "host name"),
            ({"samesite": "Lax"}, "'Lax'"),
            ({"samesite": "none"}, "secure=True"),
        ],
    )
    def test_what_no_browser_would_take_is_refused(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            format_cookie(**{"name": "a", "value": "1"} | arguments)

    def test_an_aware_time_in_utc_is_written_as_it_is(self):
        assert "Expires=Thu, 01 Jan 1970 00:00:00 GMT" in format_cookie("a", "", expires=datetime.fromtimestamp(0, UTC))
