"""What `microws dev` puts around an app: which hosts may ask, the page that says what is wrong, the reload of pages."""

import os
import re
import shlex
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final

import anyio

from microws.closing import CloseCode, truncate_reason
from microws.connection.connection import Signal
from microws.connection.tasks import task_group
from microws.datastructures import Headers
from microws.dev.problem import SCRIPT, Problem, error_page
from microws.handshake import check_handshake_origin, check_host
from microws.interfaces import ASGIApplication, Event, Receive, Scope, Send

__all__ = ["Development"]

# Reloads the page when another process answers than the one that made it, or when the supervisor says so.
_SCRIPT: Final = b"""(() => {
  const own = document.currentScript
  const open = () => {
    const socket = new WebSocket(own.src.replace(/^http/, "ws"))
    socket.onmessage = event => { if (event.data !== own.dataset.id) location.reload() }
    socket.onclose = () => setTimeout(open, 100)
  }
  open()
  addEventListener("keydown", event => {
    if (event.key === "Escape") document.getElementById("microws-error")?.remove()
  })
})()
"""

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
        on_problem: Called with the problem if the start-up of the app fails.
        follow: Runs as long as the lifespan of the app, with this object as its argument.

    Attributes:
        max_message_size: As of the app, if it has it.
        pages: Set it to reload all pages.
    """

    def __init__(
        self,
        app: ASGIApplication | None,
        problem: Problem | None,
        *,
        hosts: Sequence[str] | None,
        folder: Path,
        show_locals: bool,
        on_problem: Callable[[Problem], None],
        follow: Callable[["Development"], Coroutine[Any, Any, None]],
    ) -> None:
        self._app = app
        self._problem = problem
        self._hosts = hosts
        self._folder = folder
        self._show_locals = show_locals
        self._on_problem = on_problem
        self._follow = follow
        self._process = os.urandom(6).hex()
        self.max_message_size: object = getattr(app, "max_message_size", None)
        self.pages: Signal = Signal()

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
        elif self._problem is not None:
            await self._refuse(self._problem, scope, receive, send)
        else:
            assert self._app is not None
            await self._app(scope, receive, send)

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
            await self._answer(scope, receive, send, 200, _SCRIPT.decode(), "text/javascript")
            return
        if check_handshake_origin(Headers(scope["headers"]), allowed=None, any_localhost=True):
            await self._answer(scope, receive, send, 403, "origin not allowed\n")
            return
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": self._process})

        async def notify() -> None:
            while True:
                await self.pages.wait()
                await send({"type": "websocket.send", "text": "pages"})

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


def _accepts_html(scope: Scope) -> bool:
    """Whether a request is for a page, and not for a part of one."""
    headers = Headers(scope["headers"])
    return "text/html" in headers.get("accept", "") and headers.get("sec-fetch-dest", "document") in (
        "document",
        "iframe",
    )
