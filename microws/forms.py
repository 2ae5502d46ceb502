"""Parse a submitted form, urlencoded or multipart, into fields and files."""

from dataclasses import dataclass
from typing import Any

from microws.datastructures import Headers, MultiDict, parse_options, parse_query
from microws.errors import FeatureUnavailable

__all__ = ["FORM_TYPES", "MAX_FIELDS", "UploadFile", "parse_form"]

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data")

# Django's and Starlette's.
MAX_FIELDS = 1000


@dataclass(frozen=True, slots=True)
class UploadFile:
    """
    A file in a form.

    Attributes:
        filename: Its name on the client, without directories. Choose another one to store it.
        content_type: The media type that the client claims. Default: ``application/octet-stream``.
        headers: All headers of this part of the form.
        content: The whole file.
    """

    filename: str
    content_type: str
    headers: Headers
    content: bytes


def parse_form(body: bytes, *, content_type: str) -> MultiDict[str | UploadFile]:
    """
    Parse the fields of a form, in order. Text is decoded as UTF-8; invalid bytes become U+FFFD.

    Args:
        body: The whole body.
        content_type: The header; its media type is one of ``FORM_TYPES``.

    Raises:
        ValueError: The form is malformed, or has more than 1,000 fields.
        FeatureUnavailable: A multipart form needs the extra ``forms``.

    Source: https://url.spec.whatwg.org/#urlencoded-parsing, RFC 7578.
    """
    kind, options = parse_options(content_type)
    if kind == "multipart/form-data":
        return _parse_multipart(body, boundary=options.get("boundary", ""))
    return parse_query(body, max_fields=MAX_FIELDS)


def _parse_multipart(body: bytes, *, boundary: str) -> MultiDict[str | UploadFile]:
    try:
        from python_multipart import MultipartParser
    except ImportError:
        raise FeatureUnavailable("multipart forms need python-multipart: pip install python-multipart") from None
    if not boundary:
        raise ValueError("expected a boundary in its Content-Type")
    parts = _Parts()
    parser = MultipartParser(boundary.encode("latin-1"), parts.callbacks())
    parser.write(body)
    parser.finalize()
    if not parts.ended:
        raise ValueError("it ends before its last boundary")
    return MultiDict(parts.fields)


class _Parts:
    """Collects the parts of a multipart body from its parser's callbacks."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, str | UploadFile]] = []
        self.ended = False
        self._headers: list[tuple[bytes, bytes]] = []
        self._name = b""
        self._value = b""
        self._content: list[bytes] = []

    def callbacks(self) -> Any:
        """The callbacks of ``MultipartParser``; their type has no public name."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.fields) >= MAX_FIELDS:
            raise ValueError(f"it has more than {MAX_FIELDS} fields")
        self._headers = []
        self._content = []

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers.append((self._name, self._value))
        self._name = self._value = b""

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        self._content.append(data[start:end])

    def _end_part(self) -> None:
        headers = Headers(self._headers)
        # Browsers write names in the page's encoding, which is UTF-8.
        disposition = headers.get("content-disposition", "").encode("latin-1").decode(errors="replace")
        options = parse_options(disposition)[1]
        if "name" not in options:
            raise ValueError("one of its parts has no name")
        content = b"".join(self._content)
        if "filename" not in options:
            self.fields.append((options["name"], content.decode(errors="replace")))
            return
        file = UploadFile(
            # RFC 7578 §4.2: "do not use the file name blindly"; "drop path information".
            filename=options["filename"].replace("\\", "/").rpartition("/")[2],
            content_type=headers.get("content-type", "application/octet-stream"),
            headers=headers,
            content=content,
        )
        self.fields.append((options["name"], file))

    def _end(self) -> None:
        self.ended = True
