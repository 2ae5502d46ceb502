"""Patterns, converters, precedence, conflicts, slashes, mounts, ``url_for``, and the path in a scope."""

import itertools
import string
import uuid
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microws.errors import RoutingError
from microws.routing import (
    Converters,
    Match,
    Miss,
    Mounted,
    Pattern,
    Router,
    encode_path,
    path_of,
    scope_below,
)

NOTHING = Miss(frozenset(), False, None)
A_UUID = "0123abcd-4567-89ab-cdef-0123456789AB"


def router(*patterns, methods=("GET",), **options):
    """A router of HTTP routes whose endpoints are their patterns."""
    result = Router(**options)
    for pattern in patterns:
        result.add(pattern, pattern, kind="http", methods=methods)
    return result


def ask(routes, path, method="GET", kind="http"):
    return routes.resolve(kind, method, *path_of({"path": path}))


def hit(routes, path, method="GET", kind="http"):
    found = ask(routes, path, method, kind)
    return (found.route.endpoint, found.params) if isinstance(found, Match) else None


class TestPatterns:
    @pytest.mark.parametrize("pattern", ["/", "/a", "/a/", "/chat/{room}", "/été/{x}", "/a b", "/{x:path}", "/100%"])
    def test_a_pattern_matches_the_path_that_it_formats(self, pattern):
        routes = router(pattern)
        parameters = dict.fromkeys(routes.routes[0].parsed.parameters, "v")
        path = Pattern.parse(pattern, routes.converters).format(**parameters)
        assert path.isascii()
        assert hit(routes, unquote(path)) == (pattern, parameters)

    @pytest.mark.parametrize(
        ("pattern", "complaint"),
        [
            ("", "must begin with a slash"),
            ("chat", "write '/chat'"),
            ("//", "two slashes"),
            ("/a//b", "two slashes"),
            ("/a/{x", "unbalanced"),
            ("/a/x}", "unbalanced"),
            ("/{{x}}", "whole segment"),
            ("/{x:int:int}", "unbalanced"),
            ("/a-{x}.json", "whole segment"),
            ("/{x}{y}", "whole segment"),
            ("/{}", "identifier"),
            ("/{:int}", "identifier"),
            ("/{1x}", "identifier"),
            ("/{a b}", "identifier"),
            ("/{x:}", "no converter ''"),
            ("/{x:itn}", "did you mean 'int'?"),
            ("/{x:qqqq}", "; known: float, int, path, str, uuid"),
            ("/{x}/{x:int}", "more than once"),
            ("/{x:path}/y", "must be last"),
            ("/{x:path}/", "must be last"),
            ("/<room>", "write {room} for <room>"),
            ("/<int:n>", "write {n:int} for <int:n>"),
            ("/a%20b", "written decoded"),
            ("/a/../b", "resolved away"),
            ("/a/.", "resolved away"),
            ("/a\0b", "NUL"),
            ("/a\udc80", "surrogate"),
        ],
    )
    def test_a_malformed_pattern_is_refused_with_what_to_write(self, pattern, complaint):
        with pytest.raises(RoutingError, match=r".*") as caught:
            router(pattern)
        assert complaint in str(caught.value)

    @given(st.text(alphabet="/{}:abintpath<>%20.é", max_size=30))
    def test_any_text_is_a_pattern_or_a_routing_error(self, text):
        routes = Router()
        try:
            route = routes.add(text, None, kind="websocket")
        except RoutingError:
            assert routes.routes == []
        else:
            assert route.path == text


class TestConverters:
    @pytest.mark.parametrize(
        ("pattern", "text", "value"),
        [
            ("/{x}", "a b", "a b"),
            ("/{x:str}", "\n", "\n"),
            ("/{x:int}", "0", 0),
            ("/{x:int}", "007", 7),
            ("/{x:int}", "9" * 308, int("9" * 308)),
            ("/{x:float}", "1.50", 1.5),
            ("/{x:float}", "3", 3.0),
            ("/{x:float}", "9" * 308, float("9" * 308)),
            ("/{x:uuid}", A_UUID, uuid.UUID(A_UUID)),
            ("/{x:path}", "", ""),
        ],
    )
    def test_a_converter_gives_the_value(self, pattern, text, value):
        assert hit(router(pattern), "/" + text) == (pattern, {"x": value})

    @pytest.mark.parametrize(
        ("converter", "text"),
        [
            *(("int", text) for text in ["", "-5", "+5", "1_0", " 1", "1 ", "1\n", "٣", "²", "1.0", "0x1", "9" * 309]),
            *(("float", text) for text in ["", "nan", "inf", "-1.0", "1e5", ".5", "5.", "1_0.0", "٣.٣", "9" * 400]),
            *(
                ("uuid", text)
                for text in ["", A_UUID.replace("-", ""), f"{{{A_UUID}}}", A_UUID[:-1] + "g", A_UUID + "0"]
            ),
            ("str", ""),
        ],
    )
    def test_a_value_that_its_converter_refuses_does_not_match(self, converter, text):
        assert hit(router(f"/v/{{x:{converter}}}"), f"/v/{text}") is None

    def test_a_custom_converter_parses_and_formats(self):
        routes = Router()
        routes.converters.add("hex", "[0-9a-f]+", lambda text: int(text, 16), lambda value: format(value, "x"))
        routes.add("/{n:hex}", None, kind="http", methods=["GET"], name="n")
        assert ask(routes, "/ff").params == {"n": 255}
        assert ask(routes, "/fg") == NOTHING
        assert ask(routes, "/ff\n") == NOTHING
        assert routes.url_for("n", n=255) == "/ff"

    def test_a_parse_that_raises_a_value_error_does_not_match(self):
        routes = Router()
        routes.converters.add("even", "[0-9]+", lambda text: [int(text)][int(text) % 2 and int("odd")], str)
        routes.add("/{n:even}", "even", kind="http", methods=["GET"], name="even")
        routes.add("/{n}", "any", kind="http", methods=["GET"])
        assert hit(routes, "/2") == ("even", {"n": 2})
        assert hit(routes, "/3") == ("any", {"n": "3"})
        with pytest.raises(RoutingError, match="'n' cannot be 3: converter 'even' would not accept it back"):
            routes.url_for("even", n=3)

    def test_no_converter_takes_an_empty_segment(self):
        routes = Router()
        routes.converters.add("any", ".*")
        routes.add("/v/{x:any}", None, kind="http", methods=["GET"])
        assert ask(routes, "/v/") == NOTHING

    def test_custom_converters_are_tried_in_the_order_in_which_they_were_added(self):
        routes = Router()
        routes.converters.add("first", "[a-c]+")
        routes.converters.add("second", "[b-z]+")
        for pattern in ["/{x:second}", "/{x}", "/{x:first}"]:
            routes.add(pattern, pattern, kind="http", methods=["GET"])
        assert [hit(routes, path)[0] for path in ["/a", "/b", "/d", "/9"]] == [
            "/{x:first}",
            "/{x:first}",
            "/{x:second}",
            "/{x}",
        ]

    @pytest.mark.parametrize(
        ("name", "pattern", "complaint"),
        [
            ("int", "x", "already"),
            ("hex", "x", "already"),
            ("a-b", "x", "identifier"),
            ("bad", "(", "expected a regular expression"),
        ],
    )
    def test_an_invalid_converter_is_refused(self, name, pattern, complaint):
        converters = Converters()
        converters.add("hex", "x")
        with pytest.raises(RoutingError, match=complaint):
            converters.add(name, pattern)


class TestPrecedence:
    def test_literals_beat_converters_plain_parameters_and_paths_in_any_order(self):
        patterns = ["/v/{x:path}", "/v/{x}", "/v/{x:float}", "/v/{x:uuid}", "/v/{x:int}", "/v/7"]
        for order in (patterns, patterns[::-1]):
            routes = router(*order)
            asked = ["/v/a/b", "/v/a", "/v/1.5", f"/v/{A_UUID}", "/v/8", "/v/7", "/v/"]
            assert [hit(routes, path)[0] for path in asked] == [*patterns, "/v/{x:path}"]

    def test_a_literal_without_a_route_falls_back_to_a_parameter(self):
        routes = router("/a/b/c", "/{x}/b/d", "/{x}/{y}/e", "/{rest:path}")
        assert hit(routes, "/a/b/d") == ("/{x}/b/d", {"x": "a"})
        assert hit(routes, "/a/b/e") == ("/{x}/{y}/e", {"x": "a", "y": "b"})
        assert hit(routes, "/a/b/f") == ("/{rest:path}", {"rest": "a/b/f"})

    def test_a_deeper_path_parameter_beats_a_shallower_one_and_begins_with_a_second_slash(self):
        routes = router("/{rest:path}", "/a/{rest:path}")
        for path, pattern, rest in (
            ("/a/b", "/a/{rest:path}", "b"),
            ("/a/b/c/", "/a/{rest:path}", "b/c/"),
            ("/a//b", "/a/{rest:path}", "/b"),
            ("/a/", "/a/{rest:path}", ""),
            ("/a", "/{rest:path}", "a"),
        ):
            assert hit(routes, path) == (pattern, {"rest": rest})
        assert hit(router("/a/{rest:path}"), "/a") is None

    def test_a_route_without_the_method_falls_back_to_one_that_has_it(self):
        routes = router("/a/b", methods=["POST"])
        routes.add("/a/{x}", "parameter", kind="http", methods=["GET"])
        assert hit(routes, "/a/b") == ("parameter", {"x": "b"})
        assert hit(routes, "/a/b", "POST") == ("/a/b", {})

    def test_a_pattern_may_have_both_kinds_and_methods_with_own_parameters(self):
        routes = router("/a/{x}")
        routes.add("/a/{y}", "post", kind="http", methods=["post"])
        routes.add("/a/{z}", "ws", kind="websocket")
        routes.add("/a/b", "literal", kind="websocket")
        assert hit(routes, "/a/b") == ("/a/{x}", {"x": "b"})
        assert hit(routes, "/a/1", "HEAD") == ("/a/{x}", {"x": "1"})
        assert hit(routes, "/a/1", "POST") == ("post", {"y": "1"})
        assert hit(routes, "/a/1", kind="websocket") == ("ws", {"z": "1"})
        assert hit(routes, "/a/b", kind="websocket") == ("literal", {})


class TestMisses:
    def test_the_allowed_methods_are_those_of_every_pattern_that_matches(self):
        routes = router("/a/b", methods=["PUT"])
        routes.add("/a/{x}", None, kind="http", methods=["GET"])
        routes.add("/a/{x:int}", None, kind="http", methods=["PATCH"])
        routes.add("/{rest:path}", None, kind="http", methods=["DELETE"])
        for method in ("POST", "OPTIONS"):
            assert ask(routes, "/a/b", method) == Miss(frozenset({"PUT", "GET", "HEAD", "DELETE"}), False, None)

    def test_a_miss_names_the_routes_of_the_other_kind(self):
        routes = router("/page")
        routes.add("/chat", None, kind="websocket")
        assert ask(routes, "/chat") == Miss(frozenset(), True, None)
        assert ask(routes, "/page", kind="websocket") == Miss(frozenset({"GET", "HEAD"}), False, None)

    def test_an_unknown_path_or_an_empty_segment_is_nothing(self):
        for path in ("", "/", "/b", "/a/b/c", "//", "*", "http://host/a"):
            assert ask(router("/a/b"), path) == NOTHING
        assert ask(router("/{a}/{b}"), "/a//") == NOTHING
        assert ask(router("/{a}/{b}/{c}"), "/a//c") == NOTHING


class TestConflicts:
    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("/a", "/a"),
            ("/a/{x}", "/a/{y}"),
            ("/{x}", "/{y:str}"),
            ("/{x:int}/", "/{y:int}/"),
            ("/{x:path}", "/{y:path}"),
        ],
    )
    def test_two_routes_for_the_same_requests_are_refused(self, one, other):
        routes = router(one)
        with pytest.raises(RoutingError) as caught:
            routes.add(other, None, kind="http", methods=["GET"], name="other")
        assert repr(one) in str(caught.value)
        assert repr(other) in str(caught.value)
        assert [route.path for route in routes.routes] == [one]
        with pytest.raises(RoutingError, match="no route is called 'other'"):
            routes.url_for("other")

    def test_get_includes_head_and_two_websocket_routes_are_refused_too(self):
        with pytest.raises(RoutingError, match="HEAD '/a'"):
            router("/a").add("/a", None, kind="http", methods=["HEAD"])
        routes = Router()
        routes.add("/{x}", None, kind="websocket")
        with pytest.raises(RoutingError, match=r"WebSocket '/{y}' can never be reached"):
            routes.add("/{y}", None, kind="websocket")

    def test_distinct_routes_may_be_registered_together(self):
        routes = router("/{x}", "/{x:int}", "/{x:float}", "/x", "/x/", "/{x}/", "/{x:path}")
        assert (hit(routes, "/x"), hit(routes, "/x/")) == (("/x", {}), ("/x/", {}))

    @pytest.mark.parametrize(
        ("kind", "methods", "complaint"),
        [
            ("http", (), "at least one method"),
            ("http", "GET", r"such as \['GET'\]"),
            ("http", ["G T"], "expected an HTTP method"),
            ("http", [""], "expected an HTTP method"),
            ("websocket", ["GET"], "no methods"),
        ],
    )
    def test_invalid_methods_are_refused(self, kind, methods, complaint):
        with pytest.raises(RoutingError, match=complaint):
            Router().add("/", None, kind=kind, methods=methods)


class TestSlashes:
    @pytest.mark.parametrize(
        ("pattern", "path", "target"),
        [
            ("/a", "/a/", "/a"),
            ("/a/", "/a", "/a/"),
            ("/{x}/", "/é b", "/%C3%A9%20b/"),
            ("/{x}", "/\\evil/", "/%5Cevil"),
            ("/", "//", "/"),
            ("/f/{rest:path}", "/f", "/f/"),
            ("/{x}/", "/\udc80", "/%3F/"),
        ],
    )
    def test_http_is_redirected_if_only_the_other_slash_form_exists(self, pattern, path, target):
        assert ask(router(pattern), path) == Miss(frozenset(), False, target)
        assert ask(router(pattern, redirect_slashes=False), path) == NOTHING
        assert ask(router(pattern), path, "POST") == NOTHING
        assert ask(router(pattern), path, kind="websocket") == NOTHING

    def test_an_encoded_slash_stays_encoded_in_a_redirect(self):
        asked = path_of({"path": "/a/b", "raw_path": b"/a%2Fb"})
        assert router("/{x}/").resolve("http", "GET", *asked) == Miss(frozenset(), False, "/a%2Fb/")

    def test_a_path_with_another_method_or_kind_is_not_redirected(self):
        routes = router("/a")
        routes.add("/a/", None, kind="http", methods=["POST"])
        routes.add("/b/", None, kind="websocket")
        routes.add("/b", None, kind="http", methods=["GET"])
        assert ask(routes, "/a/") == Miss(frozenset({"POST"}), False, None)
        assert ask(routes, "/b/") == Miss(frozenset(), True, None)

    @given(st.lists(st.sampled_from(["", "a", "\\", "evil.com", ".."]), max_size=5), st.sampled_from(["GET", "POST"]))
    def test_a_redirect_begins_with_exactly_one_slash_and_leads_to_a_route(self, asked, method):
        routes = router("/", "/a/", "/{x}", "/{x}/{y}/", "/a/a/{rest:path}")
        found = routes.resolve("http", method, "/" + "/".join(asked), asked)
        if isinstance(found, Miss) and found.redirect is not None:
            assert found.redirect.startswith("/")
            assert not found.redirect.startswith(("//", "/\\"))
            assert hit(routes, unquote(found.redirect), method) is not None


class TestMounts:
    def test_a_mount_answers_every_kind_and_method_below_its_prefix(self):
        routes = Router()
        routes.mount("/admin", "app")
        for path in ["/admin/", "/admin/x", "/admin//x/y"]:
            assert ask(routes, path, "PURGE") == Mounted("app", "/admin")
            assert ask(routes, path, kind="websocket") == Mounted("app", "/admin")
        assert ask(routes, "/administrator") == NOTHING
        assert ask(routes, "/") == NOTHING

    def test_http_at_the_prefix_is_redirected_and_a_websocket_is_mounted(self):
        routes = Router()
        routes.mount("/a/b", "app")
        assert ask(routes, "/a/b") == Miss(frozenset(), False, "/a/b/")
        assert ask(routes, "/a/b", kind="websocket") == Mounted("app", "/a/b")
        routes.redirect_slashes = False
        assert ask(routes, "/a/b") == Mounted("app", "/a/b")

    def test_routes_below_the_prefix_beat_the_mount_which_beats_parameters(self):
        routes = router("/s/page", "/s/{x}/edit", "/{x}/{y}", "/{rest:path}")
        routes.mount("/s", "app")
        assert hit(routes, "/s/page") == ("/s/page", {})
        assert hit(routes, "/s/1/edit") == ("/s/{x}/edit", {"x": "1"})
        assert ask(routes, "/s/page", "POST") == Mounted("app", "/s")
        assert ask(routes, "/s/other") == Mounted("app", "/s")
        assert hit(routes, "/s") == ("/{rest:path}", {"rest": "s"})

    def test_the_longest_prefix_wins(self):
        routes = Router()
        routes.mount("/", "root")
        routes.mount("/a", "a")
        routes.mount("/a/b/", "b")
        assert [ask(routes, path) for path in ["/", "/x", "/a/x", "/a/b/x", "/a/b/"]] == [
            Mounted("root", ""),
            Mounted("root", ""),
            Mounted("a", "/a"),
            Mounted("b", "/a/b"),
            Mounted("b", "/a/b"),
        ]
        assert ask(routes, "*") == NOTHING

    @pytest.mark.parametrize(
        ("prefix", "complaint"),
        [
            ("/a", "mounted at '/a' already"),
            ("/a/", "already"),
            ("/{x}", "no parameters"),
            ("b", "slash"),
            ("/b//", "two"),
        ],
    )
    def test_an_invalid_prefix_is_refused(self, prefix, complaint):
        routes = Router()
        routes.mount("/a", "app")
        with pytest.raises(RoutingError, match=complaint):
            routes.mount(prefix, "other")
        assert routes.mounts == [Mounted("app", "/a")]


class TestInclude:
    def test_routes_names_and_converters_are_included_below_the_prefix(self):
        other = Router()
        other.converters.add("hex", "[0-9a-f]+", lambda text: int(text, 16), lambda value: format(value, "x"))
        other.add("/{n:hex}", "view", kind="websocket", name="n")
        other.add("/", "index", kind="http", methods=["GET"], default_name="index")
        routes = router("/api/{x}")
        routes.include(other, "/api/t/")
        assert hit(routes, "/api/t/ff", kind="websocket") == ("view", {"n": 255})
        assert hit(routes, "/api/t/") == ("index", {})
        assert routes.url_for("n", n=255) == "/api/t/ff"
        assert routes.url_for("index") == "/api/t/"
        assert routes.routes[-1].path == "/api/t/"
        with pytest.raises(RoutingError, match="no converter 'hex'"):
            routes.add("/{x:hex}", None, kind="websocket")

    def test_mounts_are_included_below_a_literal_prefix_and_a_router_in_itself(self):
        other = Router()
        other.mount("/files", "app")
        other.mount("", "rest")
        routes = router("/a")
        routes.include(other, "/a")
        routes.include(other)
        assert ask(routes, "/a/files/x") == Mounted("app", "/a/files")
        assert ask(routes, "/a/x") == Mounted("rest", "/a")
        assert ask(routes, "/x") == Mounted("rest", "")
        routes.include(routes, "/again")
        assert [route.path for route in routes.routes] == ["/a", "/again/a"]

    @pytest.mark.parametrize(
        ("prefix", "complaint"),
        [
            ("/{x}", "no parameters"),
            ("/{rest:path}", "no parameters"),
            ("x", "slash"),
            ("/x//", "two slashes"),
            ("/a", "can never be reached"),
        ],
    )
    def test_an_invalid_prefix_or_a_conflict_is_refused(self, prefix, complaint):
        with pytest.raises(RoutingError, match=complaint):
            router("/a/{x}").include(router("/{y}"), prefix)

    def test_converters_with_one_name_in_two_included_routers_are_separate(self):
        routes = Router()
        for prefix, expression in [("/a", "x+"), ("/a", "y+")]:
            other = Router()
            other.converters.add("letters", expression)
            other.add("/{v:letters}", expression, kind="websocket")
            routes.include(other, prefix)
        assert hit(routes, "/a/xx", kind="websocket") == ("x+", {"v": "xx"})
        assert hit(routes, "/a/yy", kind="websocket") == ("y+", {"v": "yy"})


class TestURLFor:
    @pytest.fixture
    def routes(self):
        routes = Router()
        for name, pattern in [
            ("str", "/s/{x}"),
            ("int", "/i/{x:int}"),
            ("float", "/f/{x:float}"),
            ("uuid", "/u/{x:uuid}"),
            ("path", "/p/{x:path}"),
            ("rest", "/{x:path}"),
            ("self", "/self/{name}/{self}"),
        ]:
            routes.add(pattern, name, kind="http", methods=["GET"], name=name)
        return routes

    @given(
        st.one_of(
            st.tuples(st.just("str"), st.text()),
            st.tuples(st.just("int"), st.integers() | st.just(10**700)),
            st.tuples(st.just("float"), st.floats()),
            st.tuples(st.just("uuid"), st.uuids()),
            st.tuples(st.sampled_from(["path", "rest"]), st.text() | st.text(alphabet="/.a\\")),
        )
    )
    def test_its_path_resolves_to_the_same_parameters(self, named):
        name, value = named
        routes = Router()
        prefix = "" if name == "rest" else "/v"
        converter = "path" if name == "rest" else name
        routes.add(f"{prefix}/{{x:{converter}}}", name, kind="http", methods=["GET"], name=name)
        try:
            path = routes.url_for(name, x=value)
        except RoutingError:
            return
        assert set(path) <= set(string.ascii_letters + string.digits + "-._~!$&'()*+,;=:@%/")
        assert path.startswith("/")
        assert not path.startswith("//")
        assert not {".", ".."} & set(path.split("/"))
        scope = {"path": unquote(path), "raw_path": path.encode()}
        assert routes.resolve("http", "GET", *path_of(scope)).params == {"x": value}

    @given(st.floats(min_value=0, max_value=1e307) | st.integers(min_value=0, max_value=10**308 - 1))
    def test_every_number_of_ordinary_size_has_a_path(self, value):
        routes = Router()
        name = type(value).__name__
        routes.add(f"/{{x:{name}}}", None, kind="http", methods=["GET"], name=name)
        assert ask(routes, routes.url_for(name, x=abs(value))).params == {"x": value}

    def test_a_value_is_one_encoded_segment_and_a_path_keeps_its_slashes(self, routes):
        assert routes.url_for("str", x="a/b ?#%é") == "/s/a%2Fb%20%3F%23%25%C3%A9"
        assert routes.url_for("path", x="a/b c") == "/p/a/b%20c"
        assert routes.url_for("path", x="") == "/p/"
        assert routes.url_for("self", name="n", self="s") == "/self/n/s"
        assert routes.url_for("str", x=5) == "/s/5"

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            *(("str", value) for value in ["", ".", "..", None, "a\0", "\udc80"]),
            *(("int", value) for value in [-1, True, 1.0, "x", None, 10**308]),
            *(("float", value) for value in [-1.0, float("nan"), float("inf"), "x", None, 10**400, [], 1e308]),
            *(("uuid", value) for value in ["x", 5, uuid.UUID(A_UUID).hex, None]),
            *(("path", value) for value in ["a/../b", ".", None, "\0"]),
            *(("rest", value) for value in ["/evil.com", "//", "/"]),
        ],
    )
    def test_a_value_that_would_not_resolve_again_is_refused(self, routes, name, value):
        with pytest.raises(RoutingError) as caught:
            routes.url_for(name, x=value)
        assert len(str(caught.value)) < 300

    def test_a_number_that_python_would_not_print_is_refused(self, routes):
        with pytest.raises(RoutingError, match="expected a value of converter 'int' as 'x': Exceeds the limit"):
            routes.url_for("int", x=10**5000)
        routes.converters.add("hex", "[0-9a-f]{1,8}", lambda text: int(text, 16), lambda value: format(value, "x"))
        routes.add("/h/{x:hex}", None, kind="http", methods=["GET"], name="hex")
        with pytest.raises(RoutingError, match="'x' cannot be this int: converter 'hex' would not accept it back"):
            routes.url_for("hex", x=16**5000)

    def test_an_unknown_name_is_refused_with_the_nearest(self, routes):
        with pytest.raises(RoutingError, match=r"no route is called 'flaot'; did you mean 'float'\?"):
            routes.url_for("flaot")
        with pytest.raises(RoutingError, match=r"; known: float, int, path, rest, self, str, uuid$"):
            routes.url_for("zzzz")
        for number in range(4):
            routes.add(f"/n/{number}", None, kind="http", methods=["GET"], name=f"n{number}")
        with pytest.raises(RoutingError, match=r"; known: float, int, n0, n1, n2, n3, path, rest, self, str, …$"):
            routes.url_for("zzzz")
        with pytest.raises(RoutingError, match=r"no route is called 'x'$"):
            Router().url_for("x")

    def test_missing_and_unknown_parameters_are_named(self, routes):
        with pytest.raises(RoutingError, match=r"'name' is missing, 'nam' is unknown; did you mean 'name'\?"):
            routes.url_for("self", nam="x", self="y")

    def test_a_name_may_have_patterns_with_other_parameters(self):
        routes = Router()
        routes.add("/log", None, kind="http", methods=["GET"], name="log")
        routes.add("/log/{day}", None, kind="http", methods=["GET"], name="log")
        routes.add("/log/{day}", None, kind="websocket", name="log")
        assert routes.url_for("log") == "/log"
        assert routes.url_for("log", day="1") == "/log/1"
        with pytest.raises(RoutingError, match=r"'log' expects the parameters of /log or /log/{day}, got dya"):
            routes.url_for("log", dya="1")
        with pytest.raises(RoutingError, match=r"'log' is the name of '/log/{day}' already"):
            routes.add("/b/{day}", None, kind="http", methods=["GET"], name="log")
        assert len(routes.routes) == 3

    def test_a_default_name_may_be_shared_until_it_is_used(self):
        routes = Router()
        for pattern in ["/a", "/b", "/c/{x}"]:
            routes.add(pattern, None, kind="http", methods=["GET"], default_name="view")
        assert routes.url_for("view", x="1") == "/c/1"
        with pytest.raises(RoutingError, match="'view' may be /a or /b"):
            routes.url_for("view")
        routes.add("/d", None, kind="http", methods=["GET"], name="view")
        assert routes.url_for("view") == "/d"


class TestCost:
    def test_a_path_of_ten_thousand_segments_is_resolved(self):
        routes = router("/a/{x}/b", "/{rest:path}")
        path = "/a" * 10_000
        assert hit(routes, path) == ("/{rest:path}", {"rest": path[1:]})
        deep = router("".join(f"/{{p{i}}}" for i in range(3_000)))
        assert isinstance(ask(deep, "/a" * 3_000), Match)
        assert ask(deep, "/a" * 10_000) == NOTHING

    def test_patterns_that_share_their_beginning_do_not_multiply(self):
        """Two ways on at each of ten levels: a parameter's place is looked at once, not once per way that failed."""
        routes = Router()
        read = []
        routes.converters.add("seen", ".+", lambda text: read.append(text) or text)
        places = set()
        for choice in itertools.product("ap", repeat=10):
            parts = [f"{{p{i}:seen}}" if each == "p" else each for i, each in enumerate(choice)]
            places.update(tuple(parts[: i + 1]) for i, each in enumerate(choice) if each == "p")
            routes.add("/" + "/".join([*parts, "end"]), None, kind="websocket")
        assert ask(routes, "/a" * 10 + "/other", kind="websocket") == NOTHING
        assert len(read) == len(places) == 2**10 - 1


def scope(path, raw=None, root=None):
    result = {"type": "http", "path": path}
    if raw is not None:
        result["raw_path"] = raw
    if root is not None:
        result["root_path"] = root
    return result


def divided(path, segments):
    """What ``path_of`` returns, with the segments in any case."""
    return path, path.split("/")[1:] if segments is None else segments


class TestPathOf:
    @pytest.mark.parametrize(
        ("asked", "path", "parts"),
        [
            (scope("/a/b"), "/a/b", ["a", "b"]),
            (scope("/"), "/", [""]),
            (scope(""), "/", [""]),
            (scope("/a//b/"), "/a//b/", ["a", "", "b", ""]),
            (scope("//evil.com"), "//evil.com", ["", "evil.com"]),
            (scope("*"), "*", []),
            # An encoded slash stays inside its segment; everything is decoded once.
            (scope("/a/b/c", b"/a%2Fb/c"), "/a/b/c", ["a/b", "c"]),
            (scope("/a/b/c", b"/a%2fb/c?x=%2F/"), "/a/b/c", ["a/b", "c"]),
            (scope("/a%2Fb", b"/a%252Fb"), "/a%2Fb", ["a%2Fb"]),
            (scope("/é/é", "/é%2F%C3%A9".encode()), "/é/é", ["é/é"]),
            # A raw path that does not decode to the path is not looked at.
            (scope("/new/b", b"/a%2Fb"), "/new/b", ["new", "b"]),
            (scope("/\ufffd/b", b"/%FF%2Fb"), "/\ufffd/b", ["\ufffd", "b"]),
            (scope("/a/b", b"http://host/a%2Fb"), "/a/b", ["a", "b"]),
            (scope("/a\0"), "/a\0", ["a\0"]),
            # The root path is taken off where it is.
            (scope("/api/a", root="/api"), "/a", ["a"]),
            (scope("/api/a", root="/api/"), "/a", ["a"]),
            (scope("/api/a", root="api"), "/a", ["a"]),
            (scope("/a", root="/api"), "/a", ["a"]),
            (scope("/apia", root="/api"), "/apia", ["apia"]),
            (scope("/api", root="/api"), "/", [""]),
            (scope("/api/", root="/api"), "/", [""]),
            (scope("/api//evil.com", root="/api"), "//evil.com", ["", "evil.com"]),
            (scope("/api/v1/a/b", b"/api/v1/a%2Fb", "/api/v1"), "/a/b", ["a/b"]),
            (scope("/api/a", b"/api%2Fa", "/api"), "/api/a", ["api/a"]),
            (scope("/a", root=""), "/a", ["a"]),
            (scope("/a", root="/"), "/a", ["a"]),
        ],
    )
    def test_the_path_and_its_segments(self, asked, path, parts):
        assert divided(*path_of(asked)) == (path, parts)

    @given(st.text(alphabet=st.characters(), max_size=20), st.binary(max_size=20), st.sampled_from(["", "/a", "/a/b"]))
    def test_no_path_raises(self, path, raw, root):
        routes = router("/a/{x}/", "/{n:int}", "/{f:float}/{u:uuid}", "/a/b/c")
        routes.mount("/m", "app")
        for asked in (scope(path, raw, root), scope("/" + path, b"/%2F" + raw, root)):
            decoded, parts = divided(*path_of(asked))
            assert decoded == "/" + "/".join(parts) or not parts
            for kind in ("http", "websocket"):
                routes.resolve(kind, "GET", *path_of(asked))
            scope_below(asked, "/m")

    @given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
    def test_segments_are_restored_from_a_raw_path(self, parts):
        parts = [part.encode(errors="replace").decode() for part in parts]
        raw = "".join("/" + quote(part, safe="") for part in parts)
        assert divided(*path_of(scope(unquote(raw), raw.encode()))) == ("/" + "/".join(parts), parts)


class TestScopeBelow:
    def test_the_root_path_grows_and_the_path_stays(self):
        given_scope = scope("/api/sub/x", b"/api/sub/x", "/api")
        below = scope_below(given_scope, "/sub")
        assert below == scope("/api/sub/x", b"/api/sub/x", "/api/sub")
        assert given_scope["root_path"] == "/api"
        assert path_of(below) == ("/x", None)

    @pytest.mark.parametrize("raw", [None, b"/sub/a%2Fb"])
    def test_a_root_path_that_the_server_omitted_is_added(self, raw):
        below = scope_below(scope("/sub/a/b", raw, "/é/"), "/sub")
        assert below["root_path"] == "/é/sub"
        assert below["path"] == "/é/sub/a/b"
        assert path_of(below) == ("/a/b", None if raw is None else ["a/b"])

    def test_without_a_root_path_or_a_prefix_the_other_is_it(self):
        assert scope_below(scope("/sub/x"), "/sub") == scope("/sub/x", root="/sub")
        assert scope_below(scope("/x", root="/api/"), "")["path"] == "/api/x"


def test_text_is_encoded_for_a_path():
    assert encode_path("a/b é~!:@", keep_slashes=False) == "a%2Fb%20%C3%A9~!:@"
    assert encode_path("/a b/") == "/a%20b/"
