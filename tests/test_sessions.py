"""Sessions: the cookie that is set, and every one that is not valid."""

import logging
import random
import re
import subprocess
import sys
import time

import pytest

from microws import App, HTTPException, Request, Response, StreamingResponse
from microws.signing import Signatures, check_secret
from tests.test_tickets import mutations

pytestmark = pytest.mark.anyio

SECRET = "a secret of the tests, of 32 bytes or more"
OLD = b"the secret before that one, which still verifies"


def make_app(secret=SECRET, **settings):
    app = App(secret=secret, **settings)

    @app.get("/")
    async def show(request):
        return request.session

    @app.post("/set")
    async def change(request):
        request.session.update(await request.json())

    @app.post("/append")
    async def append(request):
        request.session.setdefault("list", []).append(1)

    @app.post("/clear")
    async def clear(request):
        request.session.clear()

    @app.get("/unused")
    async def unused():
        return "unused"

    @app.websocket_route("/ws", value_type="json")
    async def echo(ws):
        async with ws:
            await ws.send(dict(ws.session))

    return app


def cookie_of(response):
    return response.headers.get("set-cookie", "")


async def session_of(app, cookie):
    """What the app reads from this cookie."""
    async with app.test_client() as client:
        return (await client.get("/", cookies={"session": cookie})).json()


async def signed_by(app, values):
    async with app.test_client() as client:
        await client.post("/set", json=values)
        return client.cookies["session"]


async def test_a_session_comes_back_in_requests_and_websockets():
    async with make_app().test_client() as client:
        await client.post("/set", json={"user": "anna", "n": [1, {"a": None}]})
        assert (await client.get("/")).json() == {"user": "anna", "n": [1, {"a": None}]}
        async with client.websocket("/ws") as ws:
            assert await ws.receive() == {"user": "anna", "n": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("scheme", "root_path", "ending"),
    [
        ("http", "", "Path=/; HttpOnly; SameSite=Lax"),
        ("https", "", "Path=/; Secure; HttpOnly; SameSite=Lax"),
        ("http", "/a b;c", "Path=/a%20b%3Bc; HttpOnly; SameSite=Lax"),
    ],
)
async def test_the_cookie_is_hidden_and_only_for_this_app(scheme, root_path, ending):
    app = make_app(session_max_age=60)
    async with app.test_client(base_url=f"{scheme}://testserver", root_path=root_path) as client:
        response = await client.post("/set", json={"user": "anna"})
        assert re.fullmatch(rf"session=[\w.-]+; Max-Age=60; {re.escape(ending)}", cookie_of(response))


async def test_the_cookie_is_written_only_if_the_session_changed():
    async with make_app().test_client() as client:
        assert not cookie_of(await client.get("/"))
        assert not cookie_of(await client.post("/clear"))
        assert cookie_of(await client.post("/set", json={"a": 1}))
        assert not cookie_of(await client.get("/"))
        assert not cookie_of(await client.get("/unused"))
        assert not cookie_of(await client.post("/set", json={"a": 1}))
        # A change within a value counts, too.
        assert cookie_of(await client.post("/append"))
        assert cookie_of(await client.post("/append"))
        assert (await client.get("/")).json() == {"a": 1, "list": [1, 1]}


async def test_the_cookie_is_deleted_when_the_session_is_emptied():
    async with make_app().test_client() as client:
        await client.post("/set", json={"a": 1})
        assert "Max-Age=0;" in cookie_of(await client.post("/clear"))
        assert "session" not in client.cookies
        assert (await client.get("/")).json() == {}


async def test_errors_streams_and_hooks_can_change_the_session():
    app = make_app()

    @app.get("/fail")
    async def fail(request):
        request.session["tries"] = 1
        raise HTTPException(401)

    @app.get("/stream")
    async def stream(request):
        request.session["stream"] = 1
        return StreamingResponse(iter([b"a"]))

    @app.after_request
    async def count(request, response):
        if request.path == "/unused":
            request.session["hook"] = 1

    async with app.test_client() as client:
        assert cookie_of(await client.get("/fail"))
        assert cookie_of(await client.get("/stream"))
        assert cookie_of(await client.get("/unused"))
        assert (await client.get("/")).json() == {"tries": 1, "stream": 1, "hook": 1}


@pytest.mark.parametrize("headers", [None, {"x-page": "1"}])
async def test_a_response_for_all_clients_gets_no_cookie_of_one_client(headers):
    app = App(secret=SECRET)
    shared = Response("ok", headers=headers)

    @app.get("/login")
    async def login(request):
        request.session["user"] = "anna"
        return shared

    @app.get("/other")
    async def other():
        return shared

    async with app.test_client() as client:
        assert cookie_of(await client.get("/login"))
        response = await client.get("/other")
        assert not cookie_of(response)
        assert response.headers.get("x-page") == (headers and "1")


async def test_a_cookie_over_4_kib_is_an_error_with_its_size(caplog):
    async with make_app().test_client(raise_errors=False) as client:
        await client.post("/set", json={"a": "x" * 2900})
        response = await client.post("/set", json={"a": "x" * 3100})
        assert response.status == 500
        assert not cookie_of(response)
    assert re.search(
        r"ValueError: request.session: expected a cookie of at most 4096 bytes, got 4\d\d\d; ", caplog.text
    )


async def test_a_value_that_is_not_json_is_an_error():
    app = make_app()

    @app.get("/bad")
    async def bad(request):
        request.session["a"] = {1, 2}

    async with app.test_client() as client:
        with pytest.raises(TypeError, match=r"^value\.a is of type set, which JSON cannot represent"):
            await client.get("/bad")


@pytest.mark.parametrize(
    "write",
    [
        lambda session: session.__setitem__("a", 1),
        lambda session: session.__delitem__("a"),
        lambda session: session.update(a=1),
        lambda session: session.clear(),
        lambda session: session.pop("a"),
        lambda session: session.popitem(),
        lambda session: session.setdefault("a", 1),
        lambda session: session.__ior__({"a": 1}),
    ],
)
async def test_the_session_of_a_websocket_cannot_be_changed(write):
    app = App(secret=SECRET)

    @app.websocket_route("/")
    async def view(ws):
        async with ws:
            with pytest.raises(TypeError, match=r"^ws\.session is read-only, because a WebSocket has no response"):
                write(ws.session)
            await ws.send("refused")

    async with app.test_client() as client, client.websocket("/") as ws:
        assert await ws.receive() == "refused"


async def test_every_mutated_or_truncated_cookie_gives_an_empty_session():
    app = make_app()
    cookie = await signed_by(app, {"user": "anna"})
    assert await session_of(app, cookie) == {"user": "anna"}
    alphabet = "ABCXYZabcxyz0189-_.=~ é"
    async with app.test_client() as client:
        for place in range(len(cookie)):
            for letter in random.sample(alphabet, 3):
                for other in (cookie[:place] + letter + cookie[place + 1 :], cookie[:place] + letter + cookie[place:]):
                    if other.strip() != cookie:
                        assert (await client.get("/", headers={"cookie": f"session={other}"})).json() == {}
            assert (await client.get("/", headers={"cookie": f"session={cookie[:place]}"})).json() == {}


@pytest.mark.parametrize(
    ("path", "headers", "expected"),
    [
        ("/unused", {}, []),
        ("/", {}, ["Cookie"]),
        ("/none", {}, ["Cookie"]),
        ("/refused", {}, ["Cookie"]),
        ("/hook", {}, ["Cookie"]),
        ("/own", {"vary": "Accept"}, ["Accept", "Cookie"]),
        ("/own", {"Vary": "accept, COOKIE"}, ["accept, COOKIE"]),
        ("/own", {"vary": "*"}, ["*"]),
        ("/own", {"vary": "Cookie-Jar"}, ["Cookie-Jar", "Cookie"]),
    ],
)
async def test_a_response_that_depends_on_the_session_tells_caches(path, headers, expected):
    app = make_app()
    shared = Response("for all")

    @app.before_request
    async def look(request):
        if request.path == "/hook":
            assert "user" not in request.session

    @app.get("/none")
    async def none(request):
        assert "user" not in request.session
        return shared

    @app.get("/refused")
    async def refused(request):
        raise HTTPException(404, "" if "user" in request.session else "log in first")

    @app.get("/hook")
    async def hook():
        return "hook"

    @app.get("/own")
    async def own(request):
        return f"{request.session}", headers

    async with app.test_client() as client:
        response = await client.get(path)
    assert response.headers.getlist("vary") == expected
    assert "vary" not in shared.headers


async def count_passed(count, seed):
    """How many of ``count`` mutated cookies give a session."""
    app = make_app()
    cookie = await signed_by(app, {"user": "anna"})

    def session(value):
        scope = {"type": "http", "headers": [(b"cookie", b"session=" + value.encode("latin-1"))]}
        return Request(scope, app, "/", {}, None, None).session

    assert session(cookie) == {"user": "anna"}
    # Blanks around a cookie's value are not of the value.
    return sum(bool(session(other)) for other in mutations(cookie, count, seed) if other.strip() != cookie)


async def test_a_sample_of_mutated_cookies_does_not_pass():
    assert await count_passed(2000, random.randrange(1 << 30)) == 0


def test_spare_bits_of_base64_do_not_make_another_valid_signature():
    signatures = Signatures(check_secret(SECRET), b"test")
    signed = signatures.sign(b"data", context="")
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    passed = [letter for letter in alphabet if signatures.verify(signed[:-1] + letter, context="") is not None]
    assert passed == [signed[-1]]


def test_a_signature_is_of_one_purpose_and_one_context():
    secrets = check_secret(SECRET)
    signed = Signatures(secrets, b"one").sign(b"data", context="/a")
    assert Signatures(secrets, b"one").verify(signed, context="/a") == b"data"
    assert Signatures(secrets, b"two").verify(signed, context="/a") is None
    assert Signatures(secrets, b"one").verify(signed, context="/b") is None


async def test_a_cookie_of_another_secret_gives_an_empty_session():
    cookie = await signed_by(make_app("x" * 32), {"user": "anna"})
    assert await session_of(make_app(), cookie) == {}


async def test_the_first_secret_signs_and_all_verify():
    old, both, new = make_app(OLD), make_app([SECRET, OLD]), make_app(SECRET)
    assert await session_of(both, await signed_by(old, {"a": 1})) == {"a": 1}
    assert await session_of(new, await signed_by(both, {"a": 1})) == {"a": 1}
    assert await session_of(old, await signed_by(both, {"a": 1})) == {}


async def test_a_session_ends_after_its_time(monkeypatch):
    app = make_app(session_max_age=60)
    cookie = await signed_by(app, {"a": 1})
    now = time.time()
    monkeypatch.setattr("microws.requests.time.time", lambda: now + 58)
    assert await session_of(app, cookie) == {"a": 1}
    monkeypatch.setattr("microws.requests.time.time", lambda: now + 62)
    assert await session_of(app, cookie) == {}


async def test_a_mounted_app_has_a_session_of_its_own():
    inner, outer = make_app(), make_app()
    outer.mount("/inner", inner)
    async with outer.test_client() as client:
        await client.post("/set", json={"at": "outer"})
        outer_cookie = client.cookies["session"]
        # The browser sends the cookie of / to /inner. With the same secret, too, it is not a session there.
        assert (await client.get("/inner/")).json() == {}
        response = await client.post("/inner/set", json={"at": "inner"})
        assert "; Path=/inner;" in cookie_of(response)
        inner_cookie = cookie_of(response).partition(";")[0]
        both = {"cookie": f"{inner_cookie}; session={outer_cookie}"}
        assert (await client.get("/inner/", headers=both)).json() == {"at": "inner"}


async def test_an_included_app_uses_the_secret_of_the_including_one():
    app, part = App(secret=SECRET), App()

    @part.get("/part")
    async def view(request):
        request.session["part"] = 1

    app.include(part)
    async with app.test_client() as client:
        assert cookie_of(await client.get("/part"))


async def test_without_a_secret_the_first_use_says_what_to_write():
    app = App()

    @app.get("/")
    async def view(request):
        return request.session

    @app.websocket_route("/")
    async def websocket(ws):
        ws.session  # noqa: B018

    async with app.test_client() as client:
        with pytest.raises(RuntimeError, match=r"^request\.session needs App\(secret=…\): 32 random bytes or more"):
            await client.get("/")
        with pytest.raises(RuntimeError, match=r"^ws\.session needs App\(secret=…\)"):
            async with client.websocket("/"):
                pass


@pytest.mark.parametrize(
    "secret", ["", "short-secret", b"31 bytes, which is one too few!", [], [SECRET, "short-secret"]]
)
def test_a_weak_secret_is_refused_in_one_line_that_does_not_show_it(secret):
    with pytest.raises(
        ValueError, match=r"^secret: expected 32 bytes or more, got \d+; make one with: .+\)'$"
    ) as caught:
        App(secret=secret)
    assert "short" not in str(caught.value)


@pytest.mark.parametrize("secret", [42, {"a": SECRET}, [None]])
def test_a_secret_of_another_type_is_refused(secret):
    with pytest.raises(TypeError, match=r"^secret: expected str, bytes or a list of them, got "):
        App(secret=secret)


def test_a_secret_is_in_no_repr():
    app = make_app([SECRET, OLD])
    parts = [app, app._settings, app.signing, app.signing.session, *app.signing.session._signers]
    text = " ".join(map(repr, parts))
    assert SECRET not in text
    assert OLD.decode() not in text


async def test_nothing_that_a_run_logs_has_the_secret_or_the_cookie(caplog):
    caplog.set_level(logging.DEBUG)
    app = make_app()

    @app.get("/fail")
    async def fail(request):
        request.session["user"] = "anna"
        raise KeyError("no such thing")

    async with app.test_client(raise_errors=False) as client:
        await client.post("/set", json={"a": 1})
        cookie = client.cookies["session"]
        await client.get("/fail")
        await client.get("/", cookies={"session": cookie + "x"})
    assert "no such thing" in caplog.text
    assert SECRET not in caplog.text
    assert cookie not in caplog.text


def test_without_itsdangerous_one_line_says_how_to_install_it():
    program = """
import sys
sys.modules["itsdangerous"] = None
from microws import App, FeatureUnavailable
App()
try:
    App(secret="x" * 32)
except FeatureUnavailable as error:
    print(error)
try:
    App().ticket("anna", path="/")
except RuntimeError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout.splitlines() == [
        "sessions and tickets need itsdangerous: pip install 'microws[sessions]'",
        (
            "app.ticket needs App(secret=…): 32 random bytes or more, such as os.environ['SECRET']; and pip install "
            "'microws[sessions]'"
        ),
    ]


def test_an_app_without_a_secret_imports_nothing_for_it():
    program = "import sys, microws; microws.App(); print({'itsdangerous', 'microws.signing'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert result.stdout == "set()\n"


async def test_in_development_an_app_without_a_secret_gets_one(monkeypatch):
    monkeypatch.setenv("MICROWS_DEV_SECRET", "ab" * 32)
    own, app = make_app(), make_app(secret=None)
    signing = own.signing
    for each in (own, app):
        each._develop(lambda hub: None)
    assert own.signing is signing
    assert await session_of(app, await signed_by(app, {"a": 1})) == {"a": 1}
