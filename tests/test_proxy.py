"""Headers of proxies: which proxies are trusted, what their headers change, and that other clients change nothing."""

import logging
import ssl
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest
from byte_client import upgrade
from http_here import request, serving
from hypothesis import given
from hypothesis import strategies as st
from websocket_server import ASYNCIO_BACKENDS
from worker_here import respond
from worker_here import serving as serving_worker

from microws import App
from microws.server.listening import tls_context
from microws.server.proxy import ProxyHeaders, TrustedProxies, forwarded

pytestmark = [pytest.mark.anyio, pytest.mark.sockets]
on_asyncio = pytest.mark.parametrize("anyio_backend", ASYNCIO_BACKENDS.values(), ids=ASYNCIO_BACKENDS)

TLS = Path(__file__).parent / "tls"

THIS_MACHINE = ("127.0.0.1", "::1", "unix")
CLIENT = "203.0.113.7"
FORGED = "198.51.100.66"


def scope_of(*headers, kind="http", client=("127.0.0.1", 50000), server=("127.0.0.1", 8000), **more):
    return {
        "type": kind,
        "scheme": "ws" if kind == "websocket" else "http",
        "path": "/x",
        "raw_path": b"/x",
        "root_path": "",
        "headers": [(b"host", b"inner:8000"), *((name.encode(), value.encode("latin-1")) for name, value in headers)],
        "client": client,
        "server": server,
        "state": {"shared": object()},
        **more,
    }


def changes(*headers, trusted=THIS_MACHINE, **scope):
    return forwarded(scope_of(*headers, **scope), TrustedProxies(trusted))


def client_of(chain, *, trusted=THIS_MACHINE, **scope):
    changed = changes(("x-forwarded-for", chain), trusted=trusted, **scope)
    return changed.get("client", (None,))[0]


def host_of(changed):
    hosts = [value.decode() for name, value in changed.get("headers", ()) if name == b"host"]
    assert len(hosts) < 2
    return hosts[0] if hosts else None


# Trusted peers

EVERYTHING = (
    ("x-forwarded-for", CLIENT),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "outer.example"),
    ("x-forwarded-port", "8443"),
    ("x-forwarded-prefix", "/chat"),
)


@pytest.mark.parametrize(
    ("trusted", "client"),
    [
        (THIS_MACHINE, ("127.0.0.1", 1)),
        (THIS_MACHINE, ("::1", 1)),
        (THIS_MACHINE, ("::ffff:127.0.0.1", 1)),
        (THIS_MACHINE, None),
        (["10.0.0.0/8"], ("10.1.2.3", 1)),
        (["fe80::/10"], ("fe80::1%eth0", 1)),
        (["*"], ("192.0.2.1", 1)),
        (["*"], None),
        (["*"], ("testclient", 1)),
    ],
)
def test_a_trusted_proxy_is_believed(trusted, client):
    server = ("/run/app.sock", None) if client is None else ("127.0.0.1", 8000)
    is_here = client is not None and client[0].endswith(("127.0.0.1", "::1"))
    assert changes(*EVERYTHING, trusted=trusted, client=client, server=server) == {
        **({"microws.received_host": b"inner:8000"} if is_here else {}),
        "client": (CLIENT, 0),
        "scheme": "https",
        "headers": [
            (b"host", b"outer.example:8443"),
            *((name.encode(), value.encode()) for name, value in EVERYTHING),
        ],
        "root_path": "/chat",
        "path": "/chat/x",
        "raw_path": b"/chat/x",
    }


@pytest.mark.parametrize(
    ("trusted", "client", "server"),
    [
        (THIS_MACHINE, ("192.0.2.1", 1), ("192.0.2.2", 80)),
        (THIS_MACHINE, ("127.0.0.2", 1), ("127.0.0.1", 80)),
        (THIS_MACHINE, ("localhost", 1), ("127.0.0.1", 80)),
        # A TCP client that disconnected before the server asked for its address.
        (THIS_MACHINE, None, ("127.0.0.1", 80)),
        (["10.0.0.0/8"], ("127.0.0.1", 1), ("127.0.0.1", 80)),
        (["10.0.0.0/8"], None, None),
        ([], ("127.0.0.1", 1), ("127.0.0.1", 80)),
        ([], None, None),
    ],
)
def test_other_peers_are_not(trusted, client, server):
    assert changes(*EVERYTHING, ("forwarded", "for=192.0.2.9"), trusted=trusted, client=client, server=server) == {}


def test_without_such_headers_nothing_changes():
    assert changes() == {}
    assert changes(("x-real-ip", FORGED), ("x_forwarded_for", FORGED), ("via", "1.1 proxy")) == {}


# The client


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (CLIENT, CLIENT),
        (f"{FORGED}, {CLIENT}", CLIENT),
        (f"{FORGED},{CLIENT},10.0.0.1 ,\t10.0.0.2", CLIENT),
        (f"{CLIENT}:50123", CLIENT),
        ("2001:db8::7", "2001:db8::7"),
        ("2001:0DB8:0::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        (f"::ffff:{CLIENT}", CLIENT),
        ("10.0.0.9, 10.0.0.1", "10.0.0.9"),
        # An invalid element ends the chain: what is left of it does not count.
        (f"{FORGED}, unknown", None),
        (f"{FORGED}, unknown, 10.0.0.1", "10.0.0.1"),
        (f"{FORGED}, , 10.0.0.1", "10.0.0.1"),
        (f"{FORGED}, 010.0.0.1", None),
        (f"{FORGED}, 1.2.3.4:99999", None),
        (f"{FORGED}, 1.2.3.4:", None),
        (f"{FORGED}, 1.2.3.4.5", None),
        (f"{FORGED}, fe80::1%eth0", None),
        (f"{FORGED}, 1.2.3.4\xa0", None),
        (f"{FORGED}, \xb2.2.3.4", None),
        (f"{FORGED};", None),
        ("", None),
    ],
)
def test_the_client_is_the_rightmost_address_of_no_trusted_proxy(chain, client):
    assert client_of(chain, trusted=["127.0.0.1", "10.0.0.0/8"]) == client


def test_the_port_of_the_client_is_0_if_it_is_unknown():
    assert changes(("x-forwarded-for", f"{CLIENT}:50123"))["client"] == (CLIENT, 50123)
    assert changes(("x-forwarded-for", CLIENT))["client"] == (CLIENT, 0)
    assert changes(("forwarded", f'for="{CLIENT}:_hidden"'))["client"] == (CLIENT, 0)


def test_a_star_trusts_every_peer_but_no_address_in_a_header():
    assert client_of(f"{FORGED}, {CLIENT}", trusted=["*"], client=("192.0.2.1", 1)) == CLIENT
    assert client_of(f"{FORGED}, {CLIENT}, 10.0.0.1", trusted=["*", "10.0.0.0/8"]) == CLIENT


def test_repeated_headers_are_one_list():
    assert changes(("x-forwarded-for", FORGED), ("x-forwarded-for", CLIENT))["client"][0] == CLIENT
    assert changes(("forwarded", f"for={FORGED}"), ("forwarded", f"for={CLIENT}"))["client"][0] == CLIENT
    assert changes(("x-forwarded-proto", "https"), ("x-forwarded-proto", "http"))["scheme"] == "http"


# Scheme, host and port


@pytest.mark.parametrize(
    ("kind", "proto", "scheme"),
    [
        ("http", "https", "https"),
        ("http", "HTTPS", "https"),
        ("http", "wss", "https"),
        ("http", "http", "http"),
        ("websocket", "https", "wss"),
        ("websocket", "wss", "wss"),
        ("websocket", "http", "ws"),
        ("websocket", "ws", "ws"),
        ("http", "http, https", "https"),
        ("http", "https, http", "http"),
        ("http", "gopher", None),
        ("http", "https,", None),
        ("http", "", None),
    ],
)
def test_the_scheme_is_the_outer_one(kind, proto, scheme):
    assert changes(("x-forwarded-proto", proto), kind=kind).get("scheme") == scheme


@pytest.mark.parametrize(
    ("host", "port", "taken"),
    [
        ("outer.example", "", "outer.example"),
        ("outer.example:444", "", "outer.example:444"),
        ("outer.example:444", "8443", "outer.example:444"),
        ("outer.example", "8443", "outer.example:8443"),
        ("[2001:db8::1]", "8443", "[2001:db8::1]:8443"),
        ("outer.example", "443", "outer.example"),
        ("outer.example", "80", "outer.example"),
        ("evil.example, outer.example", "1, 8443", "outer.example:8443"),
        ("outer.example", "65536", "outer.example"),
        ("outer.example", "0", "outer.example"),
        ("outer.example", "\xb2", "outer.example"),
        # Not a valid Host: the inner one stays.
        ("evil.example/", "", None),
        ("user@evil.example", "", None),
        ("http://evil.example", "", None),
        ("outer example", "", None),
        ("outer.example,", "", None),
        ("outer.example:", "", None),
        ("\xe9vil.example", "", None),
        ("", "", None),
    ],
)
def test_the_outer_host_replaces_the_inner_one(host, port, taken):
    assert host_of(changes(("x-forwarded-host", host), ("x-forwarded-port", port))) == taken


def test_the_outer_port_is_added_to_a_host_without_one():
    def with_hosts(*hosts):
        headers = [(b"host", host) for host in hosts] + [(b"x-forwarded-port", b"8443")]
        return forwarded(scope_of() | {"headers": headers}, TrustedProxies(THIS_MACHINE))

    assert host_of(with_hosts(b"outer.example")) == "outer.example:8443"
    assert with_hosts(b"outer.example:444") == {}
    assert with_hosts(b"outer.example", b"evil.example") == {}
    assert with_hosts(b"bad host") == {}
    assert with_hosts() == {}


# The prefix


@pytest.mark.parametrize(
    ("prefix", "root_path"),
    [
        ("/chat", "/chat"),
        ("/chat/", "/chat"),
        ("/a/b-c_d.e~f:1", "/a/b-c_d.e~f:1"),
        ("/evil, /chat", "/chat"),
        ("/...", "/..."),
        *(
            (bad, None)
            for bad in (
                "", "/", "chat", "//evil.example", "///evil.example", "/chat//x", "/chat//", "/\\evil.example",
                "\\/evil.example", "https://evil.example", "/https://evil.example", "/..", "/../x", "/a/./b",
                "/a/..", "/a?b", "/a#b", "/a%2f", "/a b", "/a\tb", "/a\x00", "/a\x7f", "/\xe9", "/'onload='", '/"',
                "/<b>", "/chat,",
            )
        ),
    ],
)  # fmt: skip
def test_only_a_path_on_this_host_is_a_prefix(prefix, root_path):
    assert changes(("x-forwarded-prefix", prefix)).get("root_path") == root_path


def test_root_path_wins_over_a_prefix():
    assert changes(("x-forwarded-prefix", "/evil"), root_path="/chat") == {}


def test_paths_begin_with_the_prefix_as_in_asgi():
    changed = changes(("x-forwarded-prefix", "/chat"), path="/a/b", raw_path=b"/a%2fb")
    assert changed == {"root_path": "/chat", "path": "/chat/a/b", "raw_path": b"/chat/a%2fb"}
    assert changes(("x-forwarded-prefix", "/chat"), raw_path=None) == {"root_path": "/chat", "path": "/chat/x"}
    assert changes(("x-forwarded-prefix", "/chat"), path="*", raw_path=b"*") == {"root_path": "/chat"}


@pytest.mark.parametrize(("path", "raw_path"), [("/chat", b"/chat"), ("/chat/", b"/chat/"), ("/chat/a", b"/%63hat/a")])
def test_a_path_that_begins_with_the_prefix_does_not_change(path, raw_path):
    assert changes(("x-forwarded-prefix", "/chat"), path=path, raw_path=raw_path) == {"root_path": "/chat"}


# RFC 7239


@pytest.mark.parametrize(
    ("value", "client", "scheme", "host"),
    [
        (f"for={CLIENT};proto=https;host=outer.example", CLIENT, "https", "outer.example"),
        (f'For="{CLIENT}:1234" ; PROTO="https";by=_me;;', CLIENT, "https", None),
        ('for="[2001:db8::7]:1"', "2001:db8::7", None, None),
        (f"for={CLIENT}:1234", CLIENT, None, None),
        # The outermost trusted proxy counts.
        (f"for={CLIENT};proto=https;host=a.example, for=127.0.0.1;proto=http;host=b", CLIENT, "https", "a.example"),
        (f"for={CLIENT}, for=127.0.0.1;proto=https;host=b.example", CLIENT, "https", "b.example"),
        (f"for={FORGED};proto=https;host=evil.example, for={CLIENT}", CLIENT, None, None),
        ("for=127.0.0.1;proto=https, for=127.0.0.1", "127.0.0.1", "https", None),
        # An address may be hidden: the rest of the element counts.
        ("for=_hidden;proto=https;host=outer.example", None, "https", "outer.example"),
        ("for=unknown;proto=https, for=127.0.0.1", "127.0.0.1", "https", None),
        ("proto=https;host=outer.example", None, "https", "outer.example"),
        (f'for={CLIENT};host="outer.example:444";x="a, for={FORGED}; \' "', CLIENT, None, "outer.example:444"),
        # An invalid element ends the chain.
        (f"for={FORGED}, nonsense", None, None, None),
        (f"for={FORGED}, for={CLIENT};for={FORGED}", None, None, None),
        (f'for={FORGED}, for="{CLIENT}', None, None, None),
        (f'for={FORGED}, for="a\\"b"', None, None, None),
        (f"for={FORGED},", None, None, None),
        (f"for = {FORGED}", None, None, None),
        ("", None, None, None),
    ],
)
def test_forwarded_is_read_element_by_element_from_the_right(value, client, scheme, host):
    changed = changes(("forwarded", value))
    assert changed.get("client", (None,))[0] == client
    assert changed.get("scheme") == scheme
    assert host_of(changed) == host


@pytest.mark.parametrize(
    "made_up",
    ['for="', f'for={FORGED};x="', f'for={FORGED}, x="', f'for={FORGED};x="\\', f'"for={FORGED}', f"for={FORGED};;"],
)
@pytest.mark.parametrize("added", [f"for={CLIENT}", f'for="{CLIENT}:1"', f'proto=https;for="{CLIENT}:1";by="_x"'])
def test_an_open_quote_of_the_client_does_not_hide_the_proxys_element(made_up, added):
    assert changes(("forwarded", f"{made_up}, {added}"))["client"][0] == CLIENT


@pytest.mark.parametrize(
    "header", [("x-forwarded-for", CLIENT), ("x-forwarded-proto", "http"), ("x-forwarded-host", "outer.example")]
)
def test_forwarded_is_ignored_beside_x_forwarded_headers(header):
    made_up = ("forwarded", f"for={FORGED};proto=https;host=evil.example")
    assert changes(header, made_up) | {"headers": None} == changes(header) | {"headers": None}
    assert host_of(changes(header, made_up)) != "evil.example"


def test_a_prefix_and_a_port_count_beside_forwarded():
    changed = changes(
        ("forwarded", f"for={CLIENT};host=outer.example"), ("x-forwarded-prefix", "/chat"), ("x-forwarded-port", "8443")
    )
    assert (changed["client"][0], host_of(changed), changed["root_path"]) == (CLIENT, "outer.example:8443", "/chat")


# Arbitrary headers

names = st.sampled_from([name.encode() for name, _ in EVERYTHING] + [b"forwarded", b"host"])
values = (
    st.binary(max_size=60)
    | st.text('for=proto:[]",;.\\ 127 x/', max_size=60).map(str.encode)
    | st.lists(st.sampled_from(["127.0.0.1", CLIENT, "::1", "x", "", "https", '"', "for=", "/a", ";"])).map(
        lambda parts: ", ".join(parts).encode()
    )
)
any_headers = st.lists(st.tuples(names, values), max_size=8)


@given(any_headers, st.sampled_from(["http", "websocket"]), st.sampled_from([None, ("127.0.0.1", 1)]))
def test_no_header_raises_and_the_changes_are_valid(headers, kind, client):
    changed = forwarded(scope_of(kind=kind, client=client, server=None) | {"headers": headers}, TrustedProxies(["*"]))
    expected = {"client", "scheme", "headers", "root_path", "path", "raw_path", "microws.received_host"}
    assert changed.keys() <= expected
    if "client" in changed:
        host, port = changed["client"]
        assert str(ip_address(host)) == host
        assert 0 <= port <= 65535
    assert changed.get("scheme", "http") in ("http", "https", "ws", "wss")
    assert changed.get("root_path", "/x").startswith("/")
    assert "//" not in changed.get("root_path", "")
    assert changed.get("root_path", "").isprintable()
    if host := host_of(changed):
        assert not set(host) & set("/\\@?# ,")


@given(any_headers, st.ip_addresses())
def test_no_header_of_an_untrusted_peer_changes_anything(headers, address):
    proxies = TrustedProxies(["192.0.2.1"])
    if str(address) != "192.0.2.1":
        assert forwarded(scope_of(client=(str(address), 1)) | {"headers": headers}, proxies) == {}


@given(any_headers, st.ip_addresses())
def test_the_proxys_element_wins_over_what_a_client_made_up(headers, address):
    proxies = TrustedProxies(["127.0.0.1"])
    client = address.ipv4_mapped or address if address.version == 6 else address
    if str(client) != "127.0.0.1":
        chain = [*headers, (b"x-forwarded-for", str(address).encode())]
        assert forwarded(scope_of() | {"headers": chain}, proxies)["client"][0] == str(client)
        element = f'for="[{address}]"' if address.version == 6 else f"for={address}"
        only_forwarded = [(name, value) for name, value in headers if name == b"forwarded"]
        chain = [*only_forwarded, (b"forwarded", element.encode())]
        assert forwarded(scope_of() | {"headers": chain}, proxies)["client"][0] == str(client)


def test_a_long_hostile_header_is_parsed_in_linear_time():
    for value in ('"' * 16_000, "a=" * 8_000, "," * 16_000, 'a="' * 5_000, ";" * 16_000, "a=b;" * 4_000 + "\\"):
        changes(("forwarded", value), ("x-forwarded-prefix", "/a" * 8_000 + "%"))


# In the server


async def test_the_scope_is_changed_in_place_and_keeps_its_state():
    seen = []

    async def app(scope, receive, send):
        seen.append(scope)

    scope = scope_of(*EVERYTHING)
    state = scope["state"]
    await ProxyHeaders(app, TrustedProxies(THIS_MACHINE))(scope, None, None)
    assert seen[0] is scope
    assert scope["state"] is state
    assert scope["client"] == (CLIENT, 0)


async def tell(scope, receive, send):
    client = scope["client"] and scope["client"][0]
    hosts = [value.decode() for name, value in scope["headers"] if name == b"host"]
    text = f"{client} {scope['scheme']} {hosts} {scope['root_path']} {scope['path']} {scope['raw_path'].decode()}"
    if scope["type"] == "http":
        await respond(send, text.encode())
    elif scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": text})
        await receive()


def lines(headers):
    return [f"{name}: {value}" for name, value in headers]


async def told(server, target, headers=EVERYTHING, *, tls=False):
    """What ``tell`` says to a request and to a WebSocket."""
    connect = server.connect_tls if tls else server.connect
    async with await connect() as client:
        answer = await client.ask(request(*lines(headers), first=f"GET {target} HTTP/1.1"))
        await client.open(target, *lines(headers))
        return answer.body.decode(), (await client.read_frame()).payload.decode()


@on_asyncio
async def test_a_scope_and_the_access_log_say_what_the_proxy_says(caplog):
    caplog.set_level(logging.INFO, logger="microws")
    async with serving(tell, tls=True) as server:
        outer = f"{CLIENT} {{}} ['outer.example:8443'] /chat /chat/x /chat/x"
        assert await told(server, "/x", tls=True) == (outer.format("https"), outer.format("wss"))
        inner = "127.0.0.1 {} ['x']  /x /x"
        assert await told(server, "/x", (), tls=True) == (inner.format("https"), inner.format("wss"))
    log = [record.getMessage() for record in caplog.records if record.name == "microws.access"]
    assert log[0].startswith(f'{CLIENT} "GET /chat/x HTTP/')
    assert log[1].startswith(f'{CLIENT} "WebSocket /chat/x HTTP/1.1" 101 ')


@pytest.mark.parametrize("http2", [False, True])
async def test_proxy_headers_work_on_hypercorn(http2, caplog):
    caplog.set_level(logging.INFO, logger="microws")
    files = {"certfile": str(TLS / "localhost.pem"), "keyfile": str(TLS / "localhost.key")}
    options = {"server": "hypercorn", "tls": tls_context(**files), "root_path": "/chat", **files}
    trusting = ssl.create_default_context(cafile=TLS / "localhost.pem")
    async with serving_worker(tell, **options) as served, httpx.AsyncClient(verify=trusting, http2=http2) as client:
        url = f"https://localhost:{served.port}/x%2F"
        behind = await client.get(url, headers=dict(EVERYTHING) | {"x-forwarded-proto": "http"})
        plain = await client.get(url)
    assert behind.http_version == ("HTTP/2" if http2 else "HTTP/1.1")
    assert behind.text == f"{CLIENT} http ['outer.example:8443'] /chat /chat/x/ /chat/x%2F"
    assert plain.text == f"127.0.0.1 https ['localhost:{served.port}'] /chat /chat/x/ /chat/x%2F"
    [line, _] = [record.getMessage() for record in caplog.records if record.name == "microws.access"]
    assert line.startswith(f'{CLIENT} "GET /chat/x%2F HTTP/')


@on_asyncio
@pytest.mark.parametrize(("trusted", "client"), [("127.0.0.1,unix", CLIENT), ("127.0.0.1", "None"), ("*", CLIENT)])
async def test_a_unix_socket_is_trusted_by_the_word_unix(tmp_path, trusted, client):
    async with serving(tell, path=tmp_path / "socket", forwarded_allow_ips=trusted) as server:
        assert (await told(server, "/x", [("x-forwarded-for", CLIENT)]))[0] == f"{client} http ['x']  /x /x"


@on_asyncio
@pytest.mark.parametrize("trusted", ["", "10.0.0.0/8"])
async def test_other_peers_are_not_trusted_over_a_socket_either(trusted):
    async with serving(tell, forwarded_allow_ips=trusted) as server:
        assert (await told(server, "/x"))[0] == "127.0.0.1 http ['x']  /x /x"


@on_asyncio
async def test_every_path_has_the_root_path_whether_a_proxy_removes_it_or_not():
    async with serving(tell, root_path="/api/") as server:
        for target, path, raw_path in (
            ("/", "/api/", "/api/"),
            ("/a%2Fb", "/api/a/b", "/api/a%2Fb"),
            ("/apix", "/api/apix", "/api/apix"),
            ("/api", "/api", "/api"),
            ("/api/", "/api/", "/api/"),
            ("/api/a%2Fb", "/api/a/b", "/api/a%2Fb"),
        ):
            paths = f"['x'] /api {path} {raw_path}"
            told_here = await told(server, target, [("x-forwarded-prefix", "/other")])
            assert told_here == (f"127.0.0.1 http {paths}", f"127.0.0.1 ws {paths}")


# In an app


def make_app():
    app = App()

    @app.post("/url")
    async def url(request):
        return {"url": str(request.url), "client": request.client.host, "link": request.url_for("url")}

    @app.get("/folder/")
    async def folder():
        return "folder"

    @app.websocket_route("/ws")
    async def ws(ws):
        async with ws:
            await ws.send(f"{ws.url} {ws.client.host}")

    return app


@on_asyncio
async def test_urls_and_redirects_have_the_outer_host_and_the_prefix():
    async with serving(make_app()) as server, httpx.AsyncClient(headers=dict(EVERYTHING)) as client:
        told = (await client.post(f"{server.url}/url?a=b")).json()
        redirect = await client.get(f"{server.url}/folder")
        forged = await client.get(f"{server.url}/folder", headers={"x-forwarded-prefix": "//evil.example"})
    assert told == {"url": "https://outer.example:8443/chat/url?a=b", "client": CLIENT, "link": "/chat/url"}
    assert (redirect.status_code, redirect.headers["location"]) == (308, "/chat/folder/")
    assert (forged.status_code, forged.headers["location"]) == (308, "/folder/")


@on_asyncio
@pytest.mark.parametrize("target", ["", "/chat"])
async def test_the_routes_of_an_app_are_below_the_root_path(target):
    async with serving(make_app(), root_path="/chat") as server, httpx.AsyncClient() as client:
        told = (await client.post(f"{server.url}{target}/url")).json()
        redirect = await client.get(f"{server.url}{target}/folder")
        doubled = await client.post(f"{server.url}/chat/chat/url")
    assert (told["url"], told["link"]) == (f"{server.url}/chat/url", "/chat/url")
    assert redirect.headers["location"] == "/chat/folder/"
    assert doubled.status_code == 404


ORIGINS = {
    "https://outer.example:8443": True,
    "https://outer.example": False,
    "http://127.0.0.1:8000": False,
    "https://evil.example": False,
}


@on_asyncio
@pytest.mark.parametrize(("origin", "passes"), ORIGINS.items())
async def test_the_same_origin_is_that_of_the_outer_host(origin, passes):
    headers = lines([*EVERYTHING, ("origin", origin)])
    async with serving(make_app()) as server, await server.connect() as client:
        answer = await client.ask(request(*headers, first="POST /url HTTP/1.1"))
        assert answer.status == (200 if passes else 403)
        await client.send(upgrade("/ws", *headers))
        assert (await client.read_head())[0] == (101 if passes else 403)
        if passes:
            assert (await client.read_frame()).payload == f"wss://outer.example:8443/chat/ws {CLIENT}".encode()


@on_asyncio
async def test_an_untrusted_peer_cannot_name_the_host_of_a_foreign_page():
    headers = {"x-forwarded-host": "evil.example", "origin": "http://evil.example"}
    async with serving(make_app(), forwarded_allow_ips="10.0.0.1") as server, httpx.AsyncClient() as client:
        assert (await client.post(f"{server.url}/url", headers=headers)).status_code == 403
