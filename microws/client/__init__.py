"""``App.client_js``: the client of ``microws.v1`` for browsers, and its types."""

from pathlib import Path
from typing import Any, Final

from microws.files import FileResponse

__all__ = ["ClientFiles"]

_HERE: Final = Path(__file__).parent
# Checked against the ETag each time, so that a page has the client of its server.
_HEADERS: Final = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}


class ClientFiles:
    """The views of the two files."""

    async def script(self, **_: Any) -> FileResponse:
        """Respond with microws.js."""
        return FileResponse(_HERE / "microws.js", headers=_HEADERS)

    async def types(self, **_: Any) -> FileResponse:
        """Respond with microws.d.ts."""
        return FileResponse(_HERE / "microws.d.ts", headers=_HEADERS, content_type="text/plain; charset=utf-8")
