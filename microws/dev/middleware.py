"""What `microws dev` puts around an app: which hosts may ask, the page that says what is wrong, the reload of pages."""

import os
import re
import shlex
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import anyio

from microws.answers import error_of
from microws.closing import CloseCode, truncate_reason
from microws.connection.connection import Signal
from microws.connection.tasks import task_group
from microws.datastructures import Headers
from microws.dev.problem import SCRIPT, Problem, error_box, error_page, script_tag, secrets_of
from microws.handshake import check_handshake_origin, check_host
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send
from microws.server.request_line import method_of

__all__ = ["Development"]

# Reloads the page when another process answers than the one that made it, or when the supervisor says so. A message
# that begins with "<" is a traceback, which is laid over the page until Esc. At most 1 KB.
_SCRIPT: Final = """(() => {
  const own = document.currentScript, close = () => document.getElementById("microws-error")?.remove()
  const show = html => {
    close()
    const box = document.body.appendChild(document.createElement("div"))
    box.id = "microws-error"
    box.attachShadow({ mode: "open" }).innerHTML = html
  }
  const open = () => {
    const socket = new WebSocket(own.src.replace(/^http/, "ws"))
    socket.onmessage = ({ data }) => data[0] === "<" ? show(data) : data !== own.dataset.id && location.reload()
    socket.onclose = () => setTimeout(open, 100)
  }
  open()
  addEventListener("keydown", event => event.key === "Escape" && close())
})()
"""

_HTML: Final = re.compile(r"text/html\s*(;|$)", re.IGNORECASE)
_NONCE: Final = re.compile(r"'nonce-([A-Za-z0-9+/_=-]+)'")
# Statuses of parts of a page, and of no page.
_PARTIAL: Final = (204, 206, 304)

_POLICY: Final = b"default-src 'none'; style-src 'unsafe-inline'; script-src 'self'; connect-src 'self'"


class Development:
    """
    An ASGI app around another one.

    Args:
        app: The app; ``None`` if there is a problem.
        problem: Why the app cannot be served. All requests then get 503.
        hosts: Names and addresses that ``Host`` may have; ``None``: any.
        folder: Of the app.
        show_locals: Show the variables of each frame of a traceback.
        is_stale: Whether the code has changed. Called for each request.
        on_problem: Called with the problem if the start-up of the app fails.
        follow: Runs as long as the lifespan of the app, with this object as its argument.

    Attributes:
        max_message_size: As of the app, if it has it.
    """

    def __init__(
        self,
        app: ASGIApplication | None,
        problem: Problem | None,
        *,
        hosts: Sequence[str] | None,
        folder: Path,
        show_locals: bool,
        is_stale: Callable[[], bool],
        on_problem: Callable[[Problem], None],
        follow: Callable[["Development"], Coroutine[Any, Any, None]],
    ) -> None:
        self._app = app
        self._problem = problem
        self._hosts = hosts
        self._folder = folder
        self._show_locals = show_locals
        self._is_stale = is_stale
        self._on_problem = on_problem
        self._follow = follow
        self._process = os.urandom(6).hex()
        self.max_message_size: object = getattr(app, "max_message_size", None)
        self._answered: WeakSet[Any] = WeakSet()
        self._news = ""
        self._change = Signal()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if scope["type"] == "lifespan":
            async with task_group() as tasks:
                tasks.start_soon(self._follow, self)
                await self._run(scope, receive, send)
                tasks.cancel_scope.cancel()
        elif (text := self._check_host(scope)) is not None:
            await self._answer(scope, receive, send, 421, text)
        elif scope["path"] == scope["root_path"] + SCRIPT:
            scope["microws.is_probe"] = True
            await self._serve_script(scope, receive, send)
        elif self._is_stale() and self._is_redirectable(scope):
            # On a connection from before the change. The next one is answered by the next process.
            target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
            more = (b"location", target), (b"connection", b"close")
            await self._answer(scope, receive, send, 307, "the code has changed\n", "text/plain", *more)
        elif self._problem is not None:
            await self._refuse(self._problem, scope, receive, send)
        elif scope["type"] == "http" and _accepts_html(scope):
            scope["microws.is_development"] = True
            await self._serve_page(scope, receive, send)
        else:
            scope["microws.is_development"] = True
            assert self._app is not None
            if (exchange := scope.get("microws.exchange")) is not None:
                self._answered.add(exchange.connection)
            try:
                await self._app(scope, receive, send)
            except Exception as error:
                self._show(error_box(self._problem_of(error, scope), show_locals=self._show_locals))
                raise

    async def _serve_page(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the script to a page; answer with the traceback if the app fails."""
        assert self._app is not None
        # So that the app does not compress the page.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept-encoding"]
        page = _Page(send, self._process, is_head=scope["method"] == "HEAD")
        try:
            await self._app({**scope, "headers": headers}, receive, page.send)
        except Exception as error:
            if not page.has_begun:
                text = error_page(self._problem_of(error, scope), process=self._process, show_locals=self._show_locals)
                await self._answer(scope, receive, send, 500, text, "text/html", (b"content-security-policy", _POLICY))
            raise
        await page.release()

    def _is_redirectable(self, scope: Scope) -> bool:
        """
        Whether the client goes to a new connection: a browser, and who has had an answer on this one. Others have just
        connected, before the change.
        """
        connection = getattr(scope.get("microws.exchange"), "connection", None)
        return connection in self._answered or any(name == b"sec-fetch-mode" for name, _ in scope["headers"])

    def _problem_of(self, error: Exception, scope: Scope) -> Problem:
        return Problem(f"{method_of(scope)} {scope['path']} failed", error_of(error), self._folder, secrets_of(scope))

    def _show(self, text: str) -> None:
        self._news = text
        self._change.set()

    def reload_pages(self) -> None:
        """Have all open pages reload."""
        self._show("pages")

    def _check_host(self, scope: Scope) -> str | None:
        """Why the host of a request is not allowed; ``None`` if it is."""
        if self._hosts is None or not check_host(
            scope["headers"], allowed=self._hosts, received=scope.get("microws.received_host")
        ):
            return None
        host = Headers(scope["headers"]).get("host", "")
        name = host if host.endswith("]") else re.sub(r":\d*$", "", host)
        return f"expected localhost as Host, got {host!r}; to allow it: microws dev --allow-host {shlex.quote(name)}\n"

    # The lifespan

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the lifespan of the app; if its start-up fails, go on without the app."""
        failure: str | None = None

        async def watch(event: Event) -> None:
            nonlocal failure
            if event["type"] == "lifespan.startup.failed":
                failure = str(event.get("message") or "it sent no message")
            else:
                await send(event)

        error: BaseException | None = None
        if self._app is not None:
            try:
                await self._app(scope, receive, watch)
            except (Exception, SystemExit) as raised:
                if failure is None and isinstance(raised, Exception):
                    raise
                error = raised
            if failure is None and error is None:
                return
            title = "the start-up of the app failed" + (f": {failure.strip()}" if error is None and failure else "")
            self._problem = Problem(title, error, self._folder)
            self._on_problem(self._problem)
        else:
            await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    # Own answers

    async def _refuse(self, problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            # Accepted, so that a page sees the code.
            await receive()
            await send({"type": "websocket.accept"})
            reason = truncate_reason(problem.line)
            await send({"type": "websocket.close", "code": int(CloseCode.TRY_AGAIN_LATER), "reason": reason})
        elif _accepts_html(scope):
            page = error_page(problem, process=self._process, show_locals=self._show_locals)
            await self._answer(scope, receive, send, 503, page, "text/html", (b"content-security-policy", _POLICY))
        else:
            await self._answer(scope, receive, send, 503, problem.text)

    async def _serve_script(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._answer(scope, receive, send, 200, _SCRIPT, "text/javascript")
            return
        if check_handshake_origin(Headers(scope["headers"]), allowed=None, any_localhost=True):
            await self._answer(scope, receive, send, 403, "origin not allowed\n")
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": self._process})

        async def notify() -> None:
            while True:
                await self._change.wait()
                await send({"type": "websocket.send", "text": self._news})

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(notify)
            while (await receive())["type"] != "websocket.disconnect":
                pass
            tasks.cancel_scope.cancel()

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, status: int, text: str, kind: str = "text/plain", *more: Any
    ) -> None:
        body = text.encode(errors="replace")
        headers = [
            (b"content-type", f"{kind}; charset=utf-8".encode()), (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"), *more,
        ]  # fmt: skip
        prefix = "http"
        if scope["type"] == "websocket":
            await receive()
            prefix = "websocket.http"
        await send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
        await send({"type": f"{prefix}.response.body", "body": body})


class _Page:
    """
    ``send`` that adds the script to an HTML response, and keeps a response with status 500 until ``release``.

    Args:
        send: Of the server.
        process: As of ``script_tag``.
        is_head: The response has no body.
    """

    def __init__(self, send: Send, process: str, *, is_head: bool) -> None:
        self.has_begun: bool = False
        self._send = send
        self._process = process
        self._is_head = is_head
        self._kept: list[Event] = []
        self._keeps = False
        self._tag = b""

    async def send(self, event: Event) -> None:
        kind = event["type"]
        if kind == "http.response.start":
            self._keeps = event["status"] == 500
            event = self._begin(event)
        elif kind == "http.response.body" and self._tag and not self._is_head:
            event = self._add_tag(event)
        if self._keeps:
            self._kept.append(event)
        else:
            self.has_begun = True
            await self._send(event)

    async def release(self) -> None:
        """The app has not failed: send what was kept."""
        for event in self._kept:
            await self._send(event)

    def _begin(self, event: Event) -> Event:
        pairs = [(bytes(name).lower(), bytes(value)) for name, value in event.get("headers") or ()]
        headers = Headers(pairs)
        if (
            event["status"] in _PARTIAL
            or "content-encoding" in headers
            or not _HTML.match(headers.get("content-type", ""))
        ):
            return event
        nonce = _NONCE.search(headers.get("content-security-policy", ""))
        self._tag = script_tag(self._process, nonce[1] if nonce else "").encode()
        if (length := headers.get("content-length", "")).isdigit():
            pairs = [pair for pair in pairs if pair[0] != b"content-length"]
            pairs.append((b"content-length", b"%d" % (int(length) + len(self._tag))))
        return {**event, "headers": pairs}

    def _add_tag(self, event: Event) -> Event:
        body = bytes(event.get("body", b""))
        place = body.lower().rfind(b"</body>")
        if place < 0:
            if event.get("more_body", False):
                return event
            place = len(body)  # browsers accept it behind the end, too
        tag, self._tag = self._tag, b""
        return {**event, "body": body[:place] + tag + body[place:]}


def _accepts_html(scope: Scope) -> bool:
    """Whether a request is for a page, and not for a part of one."""
    headers = Headers(scope["headers"])
    return "text/html" in headers.get("accept", "") and headers.get("sec-fetch-dest", "document") in (
        "document",
        "iframe",
    )
