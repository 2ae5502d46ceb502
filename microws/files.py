"""Responses that send a file, with conditional requests and ranges; and directories of static files."""

import errno
import os
import re
import stat
import time
from datetime import UTC
from functools import cache, partial
from io import FileIO
from mimetypes import MimeTypes
from pathlib import Path, PurePath
from typing import ClassVar
from urllib.parse import quote

from anyio.to_thread import run_sync

from microws.datastructures import URL, Headers
from microws.errors import HTTPException
from microws.handshake import HeadersLike
from microws.interfaces import Receive, Scope, Send
from microws.page_cache import is_cached
from microws.requests import Request
from microws.responses import BODILESS_STATUSES, RedirectResponse, Response
from microws.streams import send_until_disconnect

__all__ = ["FileResponse", "StaticFiles"]

# Bytes that are read at once; as in aiohttp.
CHUNK_SIZE = 256 * 1024
# A file of at most so many bytes is read by the worker thread that opens it.
SMALL_SIZE = 64 * 1024

# Content types that Python's table lacks, or has in an obsolete form.
_MORE_CONTENT_TYPES = {
    ".gz": "application/gzip",
    ".js": "text/javascript",
    ".m4a": "audio/mp4",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".ogg": "audio/ogg",
    ".otf": "font/otf",
    ".ttf": "font/ttf",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".yaml": "application/yaml",
}

# RFC 9110 §8.8.3. A mark W/ says that the tag is weak.
_ETAG = re.compile(r'(W/)?("[!#-~\x80-\xff]*")')
# RFC 9110 §14.1.1: one range, from a first to a last byte, or of the last bytes. int() refuses over 4,300 digits.
_RANGE = re.compile(r"bytes=[ \t]*(?:([0-9]{1,999})-([0-9]{0,999})|-([0-9]{1,999}))[ \t]*", re.IGNORECASE)

# Errors for a path that is not a readable file. RFC 9110 §15.5.4: a 404 may hide what is forbidden.
_ABSENT = {
    getattr(errno, name)
    # ENXIO: a socket.
    for name in ("ENOENT", "ENOTDIR", "EISDIR", "EACCES", "EPERM", "ELOOP", "ENAMETOOLONG", "ENXIO")
}


class FileResponse(Response):
    """
    Sends a file. Under ``microws run`` the operating system does it, except over TLS and if middleware wraps ``send``.

    In these cases, and on other servers, the app reads the file piece by piece: in the event loop if the operating
    system has the piece in memory, else in a worker thread.

    For GET and HEAD it honors ``If-None-Match``, ``If-Modified-Since``, ``If-Match`` and ``If-Unmodified-Since``; for
    GET also ``If-Range`` and ``Range`` with one range. For several ranges it sends the whole file, as RFC 9110 §14.2
    allows.

    Args:
        path: Path of a regular file, which is opened when the response is sent.
        status: HTTP status. With any but 200, conditions and ranges are ignored.
        headers: A mapping or ``(name, value)`` pairs. Your own ``ETag`` replaces the file's.
        content_type: Default: that of ``headers``, else by the file's suffix.
        filename: The browser saves the file under this name.
        etag: Whether to send an ``ETag`` made of the file's size and modification time.

    Raises:
        HTTPException: When called, before anything is sent: 404 if there is no such file, 412 if a precondition
            failed, 416 if the range is outside the file.
        RuntimeError: When called: the file became shorter while it was sent. The server then drops the connection.
        ValueError: An invalid status or header.

    Source: RFC 9110 §13 (conditions), §14 (ranges); RFC 6266 and RFC 8187 (Content-Disposition).
    """

    can_be_direct: ClassVar[bool] = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        status: int = 200,
        headers: HeadersLike | None = None,
        content_type: str | None = None,
        filename: str | None = None,
        etag: bool = True,
    ) -> None:
        if status in BODILESS_STATUSES:
            raise ValueError(f"a response with status {status} has no body; answer it without a file")
        super().__init__(b"", status, headers, content_type=content_type)
        self.path: str = os.fspath(path)
        self._etag = etag
        self.headers.setdefault("content-type", _content_type(self.path))
        # https://fetch.spec.whatwg.org/#x-content-type-options-header: browsers must not guess another type.
        self.headers.setdefault("x-content-type-options", "nosniff")
        self.headers.setdefault("accept-ranges", "bytes")
        if filename is not None:
            self.headers["content-disposition"] = _attachment(filename)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the file, or the requested part of it. Closes the file if cancelled."""
        file, info, content = await run_sync(_open, self.path)
        with file:
            size = info.st_size if content is None else len(content)
            # RFC 9110 §8.8.2.1: not later than the response.
            modified = int(min(info.st_mtime, time.time()))
            from email.utils import formatdate  # here, as in `_parse_date`, because it takes 5 ms to import

            self.headers.setdefault("last-modified", formatdate(modified, usegmt=True))
            if self._etag:
                self.headers.setdefault("etag", f'"{info.st_mtime_ns:x}-{info.st_size:x}"')
            part = None
            if self.status == 200 and scope["method"] in ("GET", "HEAD"):
                request = Headers(scope["headers"])
                if self._is_unchanged(request, modified):
                    await self._send_unchanged(send)
                    return
                # RFC 9110 §14.2: ranges are defined for GET alone.
                if scope["method"] == "GET" and self._may_send_part(request):
                    part = _requested_part(request.get("range", ""), size=size)
            first, length = part or (0, size)
            start = self._start(content_length=length)
            if part is not None:
                start["status"] = 206
                start["headers"].append((b"content-range", b"bytes %d-%d/%d" % (first, first + length - 1, size)))
            await send(start)
            if scope["method"] == "HEAD":
                content = b""
            if content is not None:
                await send({"type": "http.response.body", "body": content[first : first + length]})
            else:
                await self._send_large(file, first, length, scope, receive, send)

    def _is_unchanged(self, request: Headers, modified: int) -> bool:
        """Whether the client has this file already. Raises ``HTTPException`` 412 if a precondition fails."""
        # In the order of RFC 9110 §13.2.2.
        if "if-match" in request:
            wanted = ", ".join(request.getlist("if-match"))
            if wanted != "*" and not self._has_etag_of(wanted, weak=False):
                raise HTTPException(412)
        elif (date := _parse_date(request.get("if-unmodified-since"))) is not None and modified > date:
            raise HTTPException(412)
        if "if-none-match" in request:
            known = ", ".join(request.getlist("if-none-match"))
            return known == "*" or self._has_etag_of(known, weak=True)
        date = _parse_date(request.get("if-modified-since"))
        return date is not None and modified <= date

    def _may_send_part(self, request: Headers) -> bool:
        condition = request.get("if-range")
        # RFC 9110 §13.1.5: the date exactly as it was sent, or the same strong ETag.
        return (
            condition is None or condition == self.headers["last-modified"] or self._has_etag_of(condition, weak=False)
        )

    def _has_etag_of(self, listed: str, *, weak: bool) -> bool:
        # RFC 9110 §8.8.3.2: the weak comparison ignores the mark W/, the strong one fails if either tag has it.
        own = _ETAG.fullmatch(self.headers.get("etag", ""))
        return own is not None and any(
            opaque == own[2] and (weak or not (mark or own[1])) for mark, opaque in _ETAG.findall(listed)
        )

    async def _send_unchanged(self, send: Send) -> None:
        # RFC 9110 §15.4.5: a 304 repeats what a cache needs, and does not describe the content.
        headers = [(name, value) for name, value in self.headers.raw() if not name.startswith(b"content-")]
        await send({"type": "http.response.start", "status": 304, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def _send_large(
        self, file: FileIO, first: int, length: int, scope: Scope, receive: Receive, send: Send
    ) -> None:
        exchange = scope.get("microws.exchange")
        sent = 0
        if exchange is not None and exchange.is_received and exchange.is_own(send):
            sent = await exchange.send_file(file.fileno(), first, length)
        if sent < length:
            file.seek(first + sent)
            await send_until_disconnect(receive, send, partial(self._send_bytes, file, length - sent))

    async def _send_bytes(self, file: FileIO, remaining: int, send: Send) -> None:
        while remaining:
            size = min(CHUNK_SIZE, remaining)
            chunk = file.read(size) if is_cached(file.fileno(), file.tell(), size) else await run_sync(file.read, size)
            if not chunk:
                raise RuntimeError(
                    f"{self.path} became shorter while it was sent: {remaining} bytes were still to come"
                )
            remaining -= len(chunk)
            await send({"type": "http.response.body", "body": chunk, "more_body": remaining > 0})


class StaticFiles:
    """
    Serves the files of a directory and its subdirectories. Never serves a file outside of it, nor a directory listing.

    Args:
        directory: Its path. Symbolic links in it are followed unless they lead out of it.

    Raises:
        ValueError: There is no such directory.

    Source: CWE-22 (path traversal), CWE-59 (links).
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        path = Path(directory).absolute()
        if not path.is_dir():
            raise ValueError(f"there is no directory {path}; create it or name another")
        self.directory: Path = path.resolve()

    async def response(self, path: str, *, url: URL | None = None) -> Response:
        """
        The response for a file, or for the ``index.html`` of a directory.

        Args:
            path: Relative and decoded, as ``{path:path}`` matches it.
            url: URL of the request. If given, a directory without a trailing slash is redirected to the path with one,
                so that relative links on its page work.

        Raises:
            HTTPException: 404: there is no such file in the directory.
        """
        found, is_index = await run_sync(self._find, path)
        if found is None:
            raise HTTPException(404)
        if url is not None and is_index and path and not path.endswith("/"):
            # A Location that begins with two slashes would name a host.
            location = "/" + url.path.lstrip("/") + "/"
            return RedirectResponse(f"{location}?{url.query}" if url.query else location, 308)
        return FileResponse(found)

    async def static(self, request: Request, path: str) -> Response:
        """``response`` as a view, for a pattern that ends in ``{path:path}``."""
        return await self.response(path, url=request.url)

    def _find(self, path: str) -> tuple[Path | None, bool]:
        """The file, if it is in the directory, and whether it is the ``index.html`` of what ``path`` names."""
        # Before the file system sees the path: no way up, no root, no separators of other systems.
        segments = path.removesuffix("/").split("/") if path else []
        if "\\" in path or any(segment in ("", ".", "..") for segment in segments):
            return None, False
        target = _resolve(self.directory.joinpath(*segments))
        is_index = target is not None and target.is_dir()
        if target is not None and is_index:
            target = _resolve(target / "index.html")
        # Only the resolved path shows where links, and names on other drives, lead.
        if target is None or not target.is_relative_to(self.directory) or (path.endswith("/") and not is_index):
            return None, False
        return target, is_index

    def __repr__(self) -> str:
        return f"StaticFiles({str(self.directory)!r})"


def _requested_part(header: str, *, size: int) -> tuple[int, int] | None:
    """
    First byte and length of the part that a ``Range`` header asks for; ``None`` if it is malformed or has several.

    Raises:
        HTTPException: 416: the range is outside the file.

    Source: RFC 9110 §14.1.1, §14.1.2, §14.2, §15.5.17.
    """
    match = _RANGE.fullmatch(header)
    # A range cannot name anything of an empty file; Go's net/http sends the whole, too.
    if match is None or not size:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise HTTPException(416, headers={"content-range": f"bytes */{size}"})
    return start, end - start


def _parse_date(value: str | None) -> float | None:
    """The time of an HTTP date; ``None`` if it is missing or malformed, which RFC 9110 §13.1.3 has servers ignore."""
    if value is None:
        return None
    from email.utils import parsedate_to_datetime

    try:
        date = parsedate_to_datetime(value)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


@cache
def _content_types() -> dict[str, str]:
    """Content types by suffix, from Python's own table alone: a file has the same type on every machine."""
    # Not at import: creating MimeTypes first reads the machine's tables.
    return MimeTypes().types_map[True] | _MORE_CONTENT_TYPES


def _content_type(path: str) -> str:
    content_type = _content_types().get(PurePath(path).suffix.lower(), "application/octet-stream")
    return f"{content_type}; charset=utf-8" if content_type.startswith("text/") else content_type


def _attachment(filename: str) -> str:
    # RFC 6266 appendix D: characters that recipients interpret differently go into the form of RFC 8187 only.
    plain = re.sub(r"[^ !#-$&-\[\]-~]", "_", filename)
    header = f'attachment; filename="{plain}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe='!#$&+^`|~', errors='replace')}"
    return header


def _open(path: str) -> tuple[FileIO, os.stat_result, bytes | None]:
    """
    Open a regular file: the open file, its ``stat`` result, and its content if it is small.

    Raises:
        HTTPException: 404: there is no such file.
    """
    try:
        file = FileIO(path, opener=_open_without_waiting)
    except (OSError, ValueError) as error:
        if not _is_absent(error):
            raise
        raise HTTPException(404) from None
    info = os.fstat(file.fileno())
    if not stat.S_ISREG(info.st_mode):
        file.close()
        raise HTTPException(404)
    if info.st_size > SMALL_SIZE:
        return file, info, None
    return file, info, file.read(info.st_size)


def _open_without_waiting(path: str, flags: int) -> int:
    # Opening a pipe would wait for its other end. The flag changes nothing for a regular file; Windows lacks it.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _resolve(path: Path) -> Path | None:
    """``path`` without links; ``None`` if nothing is there. (``Path.resolve`` gives no errno for a loop of links.)"""
    try:
        return Path(os.path.realpath(path, strict=True))
    except (OSError, ValueError) as error:
        if not _is_absent(error):
            raise
        return None


def _is_absent(error: OSError | ValueError) -> bool:
    # ValueError: a NUL, or a character that this file system has no encoding for.
    return not isinstance(error, OSError) or error.errno in _ABSENT
