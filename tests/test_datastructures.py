"""Headers, query strings, URLs and state: what they hold, what they find, and what they make of odd input."""

from urllib.parse import quote_plus, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.datastructures import URL, Headers, MultiDict, State, parse_options, parse_query

PAIRS = st.lists(st.tuples(st.sampled_from("abc"), st.integers()))
# What UTF-8 can carry.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


class TestMultiDict:
    @given(PAIRS)
    def test_a_key_gives_its_first_value_and_getlist_all_of_them(self, pairs):
        multi = MultiDict(pairs)
        for key in "abc":
            values = [value for name, value in pairs if name == key]
            assert multi.getlist(key) == values
            assert multi.get(key) == (values[0] if values else None)
            assert (key in multi) is bool(values)

    @given(PAIRS)
    def test_it_is_a_mapping_of_the_first_values_in_order(self, pairs):
        multi = MultiDict(pairs)
        expected = {}
        for key, value in pairs:
            expected.setdefault(key, value)
        assert dict(multi) == expected
        assert multi == expected
        assert list(multi) == list(multi.keys()) == list(expected)
        assert list(multi.values()) == list(expected.values())
        assert list(multi.items()) == list(expected.items())
        assert len(multi) == len(expected)
        assert multi.multi_items() == pairs

    def test_an_absent_key_is_a_key_error_that_names_it(self):
        with pytest.raises(KeyError, match="b"):
            MultiDict([("a", 1)])["b"]
        assert 1 not in MultiDict([("1", 1)])

    def test_two_are_equal_when_each_key_has_the_same_values_in_the_same_order(self):
        assert MultiDict([("a", 1), ("b", 2)]) == MultiDict([("b", 2), ("a", 1)])
        assert MultiDict([("a", 1), ("a", 2)]) != MultiDict([("a", 2), ("a", 1)])
        assert MultiDict([("a", 1), ("a", 2)]) != MultiDict([("a", 1)])

    def test_what_cannot_be_hashed_says_so(self):
        with pytest.raises(TypeError, match="unhashable"):
            hash(MultiDict())

    def test_it_shows_every_pair(self):
        assert repr(MultiDict([("a", 1), ("a", 2)])) == "MultiDict([('a', 1), ('a', 2)])"

    def test_its_repr_shows_no_secret(self):
        form = MultiDict(
            [("name", "anna"), ("password", "hunter2"), ("API_Key", ""), ("new-token", "t"), ("keys", "k")]
        )
        hidden = "('password', '***'), ('API_Key', ''), ('new-token', '***')"
        assert repr(form) == f"MultiDict([('name', 'anna'), {hidden}, ('keys', 'k')])"
        names = ["authorization", "cookie", "sec-websocket-protocol", "proxy-authorization", "set-cookie", "x-api-key"]
        headers = Headers([(b"host", b"h"), *((name.title().encode(), b"hunter2") for name in names)])
        assert repr(headers) == f"Headers({[('host', 'h'), *((name, '***') for name in names)]})"

    def test_many_different_keys_take_no_more_than_linear_time(self):
        # A million pairs squared would not end within the time-out.
        multi = MultiDict((str(i), i) for i in range(1_000_000))
        assert len(multi.items()) == 1_000_000


class TestHeaders:
    def test_names_have_no_case(self):
        headers = Headers([(b"X-One", b"1"), (b"x-one", b"2")])
        assert headers["x-ONE"] == "1"
        assert headers.getlist("X-One") == ["1", "2"]
        assert "X-ONE" in headers
        assert list(headers) == ["x-one"]

    def test_values_are_latin_1(self):
        assert Headers([(b"a", bytes(range(256)))])["a"].encode("latin-1") == bytes(range(256))


class TestURL:
    def test_it_is_written_with_a_question_mark_only_where_there_is_a_query(self):
        assert str(URL(scheme="ws", netloc="a:1", path="/b", query="c=d")) == "ws://a:1/b?c=d"
        assert str(URL(scheme="http", netloc="a", path="/b")) == "http://a/b"

    @pytest.mark.parametrize(
        ("netloc", "host", "port"),
        [
            ("example.org", "example.org", None),
            ("Example.org:8000", "example.org", 8000),
            ("[::1]:80", "::1", 80),
            ("user@host", "host", None),
            ("", "", None),
            ("[::1", "", None),
            ("a:b", "a", None),
            ("a:99999999", "a", None),
        ],
    )
    def test_host_and_port_are_read_from_the_netloc_and_never_fail(self, netloc, host, port):
        url = URL(scheme="http", netloc=netloc, path="/")
        assert (url.host, url.port) == (host, port)

    @given(st.text())
    def test_no_netloc_makes_host_or_port_fail(self, netloc):
        url = URL(scheme="http", netloc=netloc, path="/")
        assert isinstance(url.host, str)
        assert url.port is None or 0 <= url.port <= 65535

    def test_it_equals_a_url_or_a_string_that_is_written_the_same(self):
        url = URL(scheme="http", netloc="a", path="/b")
        assert url == "http://a/b"
        assert url == URL(scheme="http", netloc="a", path="/b")
        assert url != 1
        assert {url, "http://a/b"} == {url}
        assert repr(url) == "URL('http://a/b')"

    @pytest.mark.parametrize(
        ("query", "masked"),
        [
            ("token=a", "token=***"),
            ("a=b&token=c&token=d%26&e", "a=b&token=***&token=***&e"),
            ("Access_Token=a=b", "Access_Token=***"),
            ("tok%65n=a&%74icket=b", "tok%65n=***&%74icket=***"),
            ("x+key=a&api-key=b&user[password]=c", "x+key=***&api-key=***&user[password]=c"),
            ("client.secret=a;b", "client.secret=***"),
            # Not a secret by its name, or without a value.
            ("monkey=a&tokens=b&q=token", "monkey=a&tokens=b&q=token"),
            ("token=&key", "token=&key"),
            # Only "&" divides: this is the parameter "a".
            ("a=b;token=c", "a=b;token=c"),
            ("%zz=%&%=%80", "%zz=%&%=%80"),
        ],
    )
    def test_secrets_in_the_query_are_masked_for_people_to_read(self, query, masked):
        url = URL(scheme="http", netloc="a", path="/token=/", query=query)
        assert repr(url) == f"URL('http://a/token=/?{masked}')"
        assert str(url) == f"http://a/token=/?{query}"


class TestState:
    def test_what_was_set_can_be_read_and_deleted(self):
        state = State()
        state.user = "ann"
        assert state.user == "ann"
        assert "user" in state
        del state.user
        assert "user" not in state

    def test_what_was_not_set_is_named_beside_what_was(self):
        state = State({"db": 1})
        with pytest.raises(AttributeError, match=r"no 'user'; it has db"):
            state.user  # noqa: B018
        with pytest.raises(AttributeError, match="no 'user'"):
            del state.user
        with pytest.raises(AttributeError, match="nothing"):
            State().user  # noqa: B018

    def test_two_over_one_dict_see_each_other(self):
        values = {}
        one, two = State(values), State(values)
        one.a = 1
        assert two.a == 1
        assert values == {"a": 1}
        assert repr(two) == "State({'a': 1})"


class TestParseQuery:
    @given(st.lists(st.tuples(TEXT, TEXT)))
    def test_what_a_browser_encodes_comes_back(self, pairs):
        assert parse_query(urlencode(pairs)).multi_items() == pairs

    @given(st.lists(st.tuples(TEXT, TEXT)))
    def test_it_may_come_as_bytes_in_utf_8_that_were_not_encoded(self, pairs):
        raw = "&".join(f"{quote_plus(key, safe='')}={quote_plus(value)}" for key, value in pairs).encode()
        assert parse_query(raw).multi_items() == pairs
        assert parse_query("ü=ä".encode()).multi_items() == [("ü", "ä")]

    def test_blank_values_are_kept(self):
        assert parse_query("a&b=&c=1").multi_items() == [("a", ""), ("b", ""), ("c", "1")]

    @given(st.binary() | st.text())
    def test_nothing_makes_it_fail(self, query):
        for key, value in parse_query(query).multi_items():
            assert isinstance(key, str)
            assert isinstance(value, str)

    def test_bytes_that_are_no_utf_8_become_replacement_characters(self):
        assert parse_query(b"a=%FF&b=\xff").multi_items() == [("a", "\ufffd"), ("b", "\ufffd")]

    def test_more_than_max_fields_are_refused(self):
        assert len(parse_query("a=1&b=2", max_fields=2)) == 2
        with pytest.raises(ValueError, match="fields"):
            parse_query("a=1&b=2&c=3", max_fields=2)


class TestParseOptions:
    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            ("", ("", {})),
            ("text/html", ("text/html", {})),
            ("Text/HTML ;Charset=UTF-8", ("text/html", {"charset": "UTF-8"})),
            ('a; b="c; d=e"; f=g', ("a", {"b": "c; d=e", "f": "g"})),
            (r'a; b="\"\\c\d"', ("a", {"b": r'"\c\d'})),
            ("a; b = c ; d", ("a", {"b": "c"})),
            ("a; b=1; b=2", ("a", {"b": "1"})),
            ('a; b="open', ("a", {"b": '"open'})),
            ('a; b="', ("a", {"b": '"'})),
            ("a;;b=;=c", ("a", {"b": ""})),
        ],
    )
    def test_a_header_is_its_word_and_its_parameters(self, value, expected):
        assert parse_options(value) == expected

    @given(st.text())
    def test_nothing_makes_it_fail(self, value):
        parse_options(value)

    @given(st.dictionaries(st.from_regex(r"[a-z]+", fullmatch=True), st.text()))
    def test_quoted_values_come_back(self, options):
        def quoted(text):
            return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'

        header = "word" + "".join(f"; {name}={quoted(text)}" for name, text in options.items())
        assert parse_options(header) == ("word", options)

    @pytest.mark.parametrize("piece", [";", '"', ' ;a="', "\\", ';a="\\"', "; a=b", " "])
    def test_no_header_takes_more_than_linear_time(self, piece):
        parse_options("a" + piece * 100_000)
