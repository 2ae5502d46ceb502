"""Small containers without I/O: headers, query strings, URLs, and the state that views share."""

import re
from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, ValuesView
from typing import Any, Generic, TypeVar
from urllib.parse import parse_qsl, unquote_plus, urlsplit

__all__ = ["URL", "Headers", "MultiDict", "State", "is_secret", "mask_secrets", "parse_options", "parse_query"]

V_co = TypeVar("V_co", covariant=True)


class MultiDict(Mapping[str, V_co], Generic[V_co]):
    """
    A read-only mapping in which a key may have several values.

    ``m[key]`` and ``get`` give the **first** value; ``getlist`` gives all, in order; ``multi_items`` every pair. For a
    log, ``repr`` has ``***`` in place of passwords, tokens and other secrets, which it knows by their keys.

    Args:
        items: ``(key, value)`` pairs in order.
    """

    __slots__ = ("_items",)

    def __init__(self, items: Iterable[tuple[str, V_co]] = ()) -> None:
        self._items: list[tuple[str, V_co]] = list(items)

    @staticmethod
    def _key(key: str) -> str:
        return key

    def __getitem__(self, key: str) -> V_co:
        key = self._key(key)
        for name, value in self._items:
            if name == key:
                return value
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and any(name == self._key(key) for name, _ in self._items)

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._items))

    def __len__(self) -> int:
        return len(dict(self._items))

    def getlist(self, key: str) -> list[V_co]:
        """All values of ``key``, in order; an empty list if there are none."""
        key = self._key(key)
        return [value for name, value in self._items if name == key]

    def multi_items(self) -> list[tuple[str, V_co]]:
        """All ``(key, value)`` pairs, in order."""
        return list(self._items)

    def keys(self) -> KeysView[str]:
        """The keys, each once."""
        return dict(self._items).keys()

    def values(self) -> ValuesView[V_co]:
        """The first value of each key."""
        return self._first().values()

    def items(self) -> ItemsView[str, V_co]:
        """Each key with its first value."""
        return self._first().items()

    def _first(self) -> dict[str, V_co]:
        first: dict[str, V_co] = {}
        for key, value in self._items:
            first.setdefault(key, value)
        return first

    def __eq__(self, other: object) -> bool:
        if isinstance(other, MultiDict):
            return sorted(self._items, key=lambda item: item[0]) == sorted(other._items, key=lambda item: item[0])
        return Mapping.__eq__(self, other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        items = [(name, "***" if value and is_secret(name) else value) for name, value in self._items]
        return f"{type(self).__name__}({items!r})"


class Headers(MultiDict[str]):
    """
    HTTP headers: a read-only multi-dict with case-insensitive names. Values are decoded as Latin-1.

    Args:
        raw: ``(name, value)`` pairs of bytes, as in an ASGI scope.

    Source: RFC 9110 §5.1 (names), §5.5 (values).
    """

    __slots__ = ()

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        super().__init__([(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw])

    @staticmethod
    def _key(key: str) -> str:
        return key.lower()


class URL:
    """
    The URL of a request.

    Attributes:
        scheme: ``http``, ``https``, ``ws`` or ``wss``.
        netloc: Host, and port if it is not the default of the scheme, as in the ``Host`` header.
        path: Percent-encoded, with the root path.
        query: The query string without ``?``.
    """

    __slots__ = ("netloc", "path", "query", "scheme")

    def __init__(self, *, scheme: str, netloc: str, path: str, query: str = "") -> None:
        self.scheme: str = scheme
        self.netloc: str = netloc
        self.path: str = path
        self.query: str = query

    @property
    def host(self) -> str:
        """The host without port or brackets; empty if ``netloc`` is malformed."""
        try:
            return urlsplit(f"//{self.netloc}").hostname or ""
        except ValueError:
            return ""

    @property
    def port(self) -> int | None:
        """The port; ``None`` if there is none or it is not a number."""
        try:
            return urlsplit(f"//{self.netloc}").port
        except ValueError:
            return None

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.path}" + (f"?{self.query}" if self.query else "")

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, URL | str) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"URL({mask_secrets(str(self))!r})"


# Nearly every URL has none of these, and need not be split. The other one is compiled at its first use.
_MAY_HOLD_SECRET = re.compile(r"token|ticket|key|secret|password|%", re.IGNORECASE)
# A page sends a token as a subprotocol.
_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "sec-websocket-protocol", "set-cookie"})
_SECRET = r"(?is)(?:.*[^a-z0-9])?(?:token|ticket|key|secret|password)"


def mask_secrets(url: str) -> str:
    """
    A URL or request target for the log, with ``***`` as the value of each query parameter that is a secret.

    A secret is a parameter whose name ends with the word ``token``, ``ticket``, ``key``, ``secret`` or ``password``,
    such as ``access_token`` and ``api-key``, in any case and percent-encoded or not.

    Source: RFC 6750 §2.3 (``access_token`` in the query ends up in logs); CWE-532.
    """
    before, mark, query = url.partition("?")
    if not query or not _MAY_HOLD_SECRET.search(query):
        return url
    return before + mark + "&".join([_masked(pair) for pair in query.split("&")])


def _masked(pair: str) -> str:
    name, _, value = pair.partition("=")
    return f"{name}=***" if value and is_secret(unquote_plus(name)) else pair


def is_secret(name: str) -> bool:
    """Whether a header, a query parameter or a field of a form of that name has a secret as its value."""
    return name.lower() in _SECRET_HEADERS or re.fullmatch(_SECRET, name) is not None


class State:
    """
    Values that views share, as attributes: ``state.name = value``.

    Args:
        values: Used without a copy, so two states with one dict share their values.
    """

    __slots__ = ("_values",)

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        object.__setattr__(self, "_values", {} if values is None else values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            known = ", ".join(sorted(self._values)) or "nothing"
            raise AttributeError(f"state has no {name!r}; it has {known}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self._values[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self._values[name]
        except KeyError:
            raise AttributeError(f"state has no {name!r}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __repr__(self) -> str:
        return f"State({self._values!r})"


def parse_query(query: str | bytes, *, max_fields: int | None = None) -> MultiDict[str]:
    """
    Parse a query string, or an urlencoded form. Blank values are kept; invalid UTF-8 becomes U+FFFD.

    Args:
        query: Without ``?``; ``bytes`` are decoded as UTF-8.
        max_fields: Most ``&``-separated fields. Default: unlimited.

    Raises:
        ValueError: There are more than ``max_fields``.

    Source: https://url.spec.whatwg.org/#urlencoded-parsing
    """
    text = query.decode(errors="replace") if isinstance(query, bytes) else query
    return MultiDict(parse_qsl(text, keep_blank_values=True, errors="replace", max_num_fields=max_fields))


# `re` compiles and keeps a `str` at its first use, which few apps have.
_OPTION = r"""(?s);\s*([^\s=;"]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^;]*)"""
_ESCAPED = r"""\\(["\\])"""


def parse_options(value: str) -> tuple[str, dict[str, str]]:
    """
    Split a header such as ``text/html; charset="utf-8"`` into its first word and its parameters, names in lower case.

    Never fails: invalid parameters are ignored, and of two with one name the first wins. Only ``\\"`` and ``\\\\``
    are unescaped, because browsers do not escape a backslash in the name of a file.

    Source: RFC 9110 §5.6.6, RFC 7578 §4.2.
    """
    word, separator, rest = value.partition(";")
    options: dict[str, str] = {}
    for name, text in re.findall(_OPTION, separator + rest):
        quoted = len(text) >= 2 and text.startswith('"') and text.endswith('"')
        options.setdefault(name.lower(), re.sub(_ESCAPED, r"\1", text[1:-1]) if quoted else text.strip())
    return word.strip().lower(), options
