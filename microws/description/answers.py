"""What microws itself answers: statuses of responses and handshakes, and close codes, each with its cause."""

from typing import Final

from microws.description.model import RouteDescription
from microws.handshake import SAFE_METHODS

__all__ = ["close_codes", "handshake_errors", "http_errors"]


# Of these, only the kind of frame can be wrong.
_FRAMES: Final = ("text", "bytes", "auto")


def http_errors(route: RouteDescription, method: str) -> dict[int, str]:
    """The statuses of errors that microws responds with for a request to ``route``, and when."""
    return _shared_errors(route) | {
        **({400: "The body is not valid."} if route.body is not None else {}),
        **({400: "The query is not valid."} if route.query is not None else {}),
        **({400: "The body or the query is not valid."} if None not in (route.body, route.query) else {}),
        **({403: "A page of another site has sent the request."} if method not in SAFE_METHODS else {}),
        **({413: f"The body has more than {route.max_size:,} bytes."} if route.body is not None else {}),
        500: "The view failed.",
    }


def handshake_errors(route: RouteDescription) -> dict[int, str]:
    """The statuses of the handshakes that microws refuses, and when."""
    return _shared_errors(route) | {
        400: "The handshake is not valid.",
        **({401: "The ticket is not valid."} if "ticket" in route.credentials else {}),
        403: "A page of another site opens the WebSocket.",
        426: "The request does not ask for a WebSocket.",
        500: "The view failed before it accepted.",
        503: "The view did not accept in time.",
    }


def close_codes(route: RouteDescription) -> dict[str, str]:
    """The close codes of a WebSocket besides those of its view, and when microws closes with them."""
    refuses = route.on_invalid == "close"
    policy = [
        *(["the login failed, or took too long"] if route.login else []),
        *(["the client sends more messages than it may"] if route.rate and route.rate.endswith("close") else []),
        *(["100 messages in a row were not valid"] if route.on_invalid == "error" else []),
    ]
    return {
        **({"1003": "A message is in the wrong kind of frame."} if refuses and route.receives != "auto" else {}),
        "1007": "A message is not valid." if refuses and route.receives not in _FRAMES else "A text is not UTF-8.",
        **({"1008": f"{'; or '.join(policy).capitalize()}."} if policy else {}),
        "1009": f"A message has more than {route.max_size:,} bytes.",
        str(route.error_close_code): "The view failed.",
        "1012": "The server stops or restarts: connect again.",
        "1013": "The client does not keep up: connect again later.",
        "3400-3599": "3000, and the status of an error of the view.",
    }


def _shared_errors(route: RouteDescription) -> dict[int, str]:
    narrow = [each["name"] for each in route.parameters if each["converter"] not in ("str", "path")]
    return {
        **({404: f"The path is not valid: see {', '.join(narrow)}."} if narrow else {}),
        **({421: "The server does not have this host name."} if route.checks_host else {}),
    }
