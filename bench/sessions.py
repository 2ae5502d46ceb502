#!/usr/bin/env python
"""
What a session adds to a request: CPU time, measured in memory, of microws and of Starlette's SessionMiddleware.

The request has a cookie with three values. "read" takes one of them; "change" also sets it, so that the response has a
new cookie. In brackets: the difference to a request that leaves the session alone. For that one, Starlette verifies the
cookie, too.
"""

import argparse
import asyncio
from time import process_time

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import HTMLResponse
from starlette.routing import Route

from microws import App

SECRET = "a secret of the benchmark, of 32 bytes or more"
VALUES = {"user": "anna", "visits": 1, "cart": [1, 2, 3]}
HEADERS = [
    (b"host", b"example.org"),
    (
        b"user-agent",
        b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/130.0 Safari/537.36",
    ),
    (b"accept", b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    (b"accept-language", b"en-GB,en;q=0.7"),
]


async def leave(request):
    return "hello"


async def read(request):
    return request.session["user"]


async def change(request):
    request.session["visits"] += 1
    return "hello"


async def begin(request):
    request.session.update(VALUES)
    return "hello"


VIEWS = {"none": leave, "read": read, "change": change, "begin": begin}


def microws_app():
    app = App(secret=SECRET)
    for name, view in VIEWS.items():
        app.add_route(view, f"/{name}")
    return app


def starlette_app():
    def endpoint(view):
        async def answer(request):
            return HTMLResponse(await view(request))

        return answer

    routes = [Route(f"/{name}", endpoint(view)) for name, view in VIEWS.items()]
    return Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, secret_key=SECRET)])


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def get(app, path, headers, n=1):
    """``n`` requests. Returns the headers of the last response."""
    sent = []

    async def send(event):
        sent.append(event)

    for _ in range(n):
        sent.clear()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8000),
            "extensions": {},
        }
        await app(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    return dict(sent[0]["headers"])


async def measure(app, n, rounds):
    """``{view: microseconds}``, the minimum of all rounds, because noise only adds."""
    cookie = (await get(app, "/begin", HEADERS))[b"set-cookie"].partition(b";")[0]
    headers = [*HEADERS, (b"cookie", b"theme=dark; " + cookie)]
    assert b"set-cookie" in await get(app, "/change", headers)
    figures = {}
    for _ in range(rounds):
        for name in ("none", "read", "change"):
            began = process_time()
            await get(app, f"/{name}", headers, n)
            microseconds = (process_time() - began) / n * 1e6
            figures[name] = min(microseconds, figures.get(name, microseconds))
    return figures


def main():
    parser = argparse.ArgumentParser(description="What a session adds to a request, measured in memory.")
    parser.add_argument("-n", type=int, default=3000, help="requests a sample (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="samples of each; the minimum counts (%(default)s)")
    arguments = parser.parse_args()
    print("| app | session left alone, µs | read, µs | changed, µs |\n|---|---:|---:|---:|")
    for name, app in {"microws": microws_app(), "starlette": starlette_app()}.items():
        figures = asyncio.run(measure(app, arguments.n, arguments.rounds))
        read, changed = (f"{figures[view]:.1f} ({figures[view] - figures['none']:+.1f})" for view in ("read", "change"))
        print(f"| {name} | {figures['none']:.1f} | {read} | {changed} |")


if __name__ == "__main__":
    main()
