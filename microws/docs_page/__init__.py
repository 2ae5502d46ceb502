"""``App.docs``: a page that shows the routes of an app and tries them; in ``microws dev`` it also shows the hub."""

import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from html import escape
from pathlib import Path
from typing import Any, Final, Protocol

from microws.codec import loads_json
from microws.dev.problem import editor_link
from microws.errors import HTTPException, InvalidMessage
from microws.event_stream import EventStream, Stream
from microws.hub import Hub
from microws.requests import Request
from microws.responses import JSONResponse, Response

__all__ = ["DocsPage", "DocumentedApp"]

_ASSETS: Final = Path(__file__).parent / "assets"
# Each uses only those before it.
_SCRIPTS: Final = ("dom", "schema", "log", "python", "exchange", "live", "page")
_TYPES: Final = {
    "page.js": "text/javascript; charset=utf-8", "page.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml",
}  # fmt: skip

# Rows of each table of the hub.
_MOST: Final = 50

_NO_STORE: Final = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
# Inline styles are for the box with tracebacks of `microws dev`.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'{}; connect-src 'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class DocumentedApp(Protocol):
    """What the page needs of an app."""

    @property
    def hub(self) -> Hub:
        """Its hub."""
        ...

    def asyncapi(self) -> dict[str, Any]:
        """``App.asyncapi``."""
        ...

    def openapi(self) -> dict[str, Any]:
        """``App.openapi``."""
        ...

    def stream(self, *topics: str) -> Stream:
        """``App.stream``."""
        ...


class DocsPage:
    """
    The views of the page. ``App.docs`` documents it.

    In ``microws dev``, who has the data of the page may also publish. So it takes a token, which is another one for
    each process, and which only the page has: no page of another site can read that.

    Args:
        app: Returns the app that is shown: it may be another one when the app is included.
        describe: Describes it.
        public: Serve the page outside ``microws dev``, too: without the hub, and without places in the source.
    """

    def __init__(
        self, app: Callable[[], DocumentedApp], describe: Callable[[], dict[str, Any]], *, public: bool
    ) -> None:
        self._app = app
        self._describe = describe
        self._public = public
        self._token = secrets.token_urlsafe(16)

    async def page(self, request: Request) -> Response:
        """Respond with the page."""
        is_developing = self._check(request)
        # A page of another site may link to this one, but not read it, whatever ``App(origins=…)`` allows.
        if "origin" in request.headers or request.headers.get("sec-fetch-mode", "navigate") != "navigate":
            raise HTTPException(403, "open the page in a browser")
        values = {
            "title": self._describe()["title"],
            "pattern": request.path,
            "folder": request.path.rpartition("/")[2],
            "token": self._token if is_developing else "",
        }
        text = (_ASSETS / "page.html").read_text("utf-8")
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", escape(value))
        policy = _POLICY.format(" 'unsafe-inline'" if is_developing else "")
        headers = _NO_STORE | {"content-security-policy": policy, "referrer-policy": "no-referrer"}
        return Response(text, headers=headers, content_type="text/html; charset=utf-8")

    async def part(self, request: Request, name: str) -> Response:
        """Respond with a file of the page, or with data for it."""
        is_developing = self._check(request)
        request.scope["microws.is_probe"] = True  # the page asks each second, which is not worth a line
        if name in _TYPES:
            return Response(_asset(name), headers=_NO_STORE, content_type=_TYPES[name])
        if name == "asyncapi.json":
            return JSONResponse(self._app().asyncapi(), headers=_NO_STORE)
        if name == "openapi.json":
            return JSONResponse(self._app().openapi(), headers=_NO_STORE)
        if is_developing:
            self._check_token(request)
        if name == "app.json":
            described = self._describe()
            routes = [route for route in described["routes"] if not route["is_docs"]]
            place = _with_link if is_developing else _without_place
            return JSONResponse(described | {"routes": [place(route) for route in routes]}, headers=_NO_STORE)
        if is_developing and name == "live.json":
            return JSONResponse(await self._look(), headers=_NO_STORE)
        if is_developing and name == "watch":
            try:
                return EventStream(self._app().stream(request.query.get("topic", "")))
            except ValueError as error:
                raise HTTPException(400, str(error)) from None
        raise HTTPException(404)

    async def publish(self, request: Request) -> dict[str, Any]:
        """
        Publish what the page sends: JSON as a value, anything else as text.

        A mistake is no failed request: a browser would write that to the console of the page.
        """
        if not self._check(request):
            raise HTTPException(404)
        self._check_token(request)
        message = await request.json()
        topic, text = (message.get("topic"), message.get("text")) if isinstance(message, dict) else (None, None)
        if not (isinstance(topic, str) and isinstance(text, str)):
            return {"error": "expected topic and text as str"}
        value: Any = text
        with suppress(InvalidMessage):
            value = loads_json(text)
        try:
            receipt = await self._app().hub.publish(topic, value)
        except (TypeError, ValueError) as error:
            return {"error": str(error)}
        return {"subscribers": receipt.subscribers}

    def _check(self, request: Request) -> bool:
        """Whether it is `microws dev` that serves the page."""
        is_developing = "microws.is_development" in request.scope
        if not (is_developing or self._public):
            raise HTTPException(404, "this page is served by microws dev; for everybody: app.docs(public=True)")
        return is_developing

    def _check_token(self, request: Request) -> None:
        if not hmac.compare_digest(request.headers.get("microws-docs-token", "").encode(), self._token.encode()):
            raise HTTPException(403, "expected the token of the page; reload it")

    async def _look(self) -> dict[str, Any]:
        """What the hub does. Cut, so that it is short however many connections and topics there are."""
        hub = self._app().hub
        statistics = hub.statistics()
        return {
            "at": time.time(),
            "connections": statistics.connections,
            "delivered": statistics.delivered,
            "queued": statistics.queued,
            "dropped": sum(statistics.dropped.values()),
            # Without those of this package itself.
            "topics": [each._asdict() for each in await hub.largest_topics(_MOST) if not each.name.startswith("$")],
            "slowest": [each._asdict() for each in hub.open.slowest(_MOST)],
        }


def _with_link(route: dict[str, Any]) -> dict[str, Any]:
    return route | {"editor": editor_link(route["file"], route["line"])} if route.get("file") else route


def _without_place(route: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in route.items() if name not in ("file", "line", "view")}


@cache
def _asset(name: str) -> str:
    """
    A file of the page.

    All scripts are one, without indentation and comments, so that the page is small. So no string has a line end, and
    no two scripts have the same name.
    """
    if name != "page.js":
        return (_ASSETS / name).read_text("utf-8")
    scripts = ((_ASSETS / f"{script}.js").read_text("utf-8") for script in _SCRIPTS)
    lines = [line.strip() for script in scripts for line in script.splitlines()]
    return "".join(
        f"{line.removeprefix('export ')}\n" for line in lines if line and not line.startswith(("import ", "//"))
    )
