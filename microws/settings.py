"""The checked settings of an app."""

import inspect
from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, Self

from microws.closing import check_close
from microws.codec import JSONDefault, check_json_default
from microws.cors import CORS
from microws.handshake import check_hosts_setting, check_origins_setting
from microws.hub import MIN_BYTES
from microws.hub_url import check_hub
from microws.interfaces import Limits

__all__ = ["AppSettings", "check_seconds"]


class AppSettings:
    """
    The settings of ``App``, which documents them.

    Args:
        arguments: The arguments of ``App``, among others.

    Raises:
        TypeError, ValueError: Names the setting, what was expected and what it got.
    """

    max_message_size: int
    max_fragments: int
    receive_queue: int
    max_subscriptions: int
    max_body_size: int
    send_timeout: float
    accept_timeout: float
    close_timeout: float
    compression: bool
    origins: Sequence[str] | None
    allowed_hosts: Sequence[str] | None
    error_close_code: int
    hub: str
    history_bytes: int
    debug: bool
    json_default: JSONDefault | None
    threads: int
    redirect_slashes: bool
    secret: tuple[bytes, ...] | None
    session_max_age: int
    leave_after: float
    presence_limit: int

    # Set by ``microws dev``: every localhost origin passes.
    any_localhost = False

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        values = {name: arguments[name] for name in AppSettings.__annotations__}
        for name in ("max_message_size", "max_fragments", "receive_queue", "max_subscriptions", "threads"):
            _check_count(name, values[name], minimum=1)
        _check_count("session_max_age", values["session_max_age"], minimum=1)
        _check_count("presence_limit", values["presence_limit"], minimum=0)
        _check_count("max_body_size", values["max_body_size"], minimum=0)
        for name in ("send_timeout", "accept_timeout", "close_timeout", "leave_after"):
            check_seconds(name, values[name])
        _check_count("history_bytes", values["history_bytes"], minimum=MIN_BYTES)
        if values["history_bytes"] % 4096:
            raise ValueError(f"history_bytes: expected a multiple of 4096, got {values['history_bytes']}")
        _check_count("error_close_code", values["error_close_code"], minimum=1000)
        check_close(values["error_close_code"], "")
        if not isinstance(values["compression"], bool):
            raise TypeError(f"compression: expected True or False, got {values['compression']!r}")
        if not isinstance(values["hub"], str):
            raise TypeError(f'hub: expected the name of a backplane, such as "memory", got {values["hub"]!r}')
        check_hub(values["hub"])
        if values["json_default"] is not None:
            check_json_default(values["json_default"])
        if values["secret"] is not None:
            from microws.signing import check_secret

            values["secret"] = check_secret(values["secret"])
        values["origins"] = check_origins_setting(values["origins"])
        values["allowed_hosts"] = check_hosts_setting(values["allowed_hosts"])
        vars(self).update(values)
        self.limits: Limits = Limits(**{name: values[name] for name in Limits._fields})

    def check_included(self, included: Self, app_class: type[Any]) -> None:
        """
        Refuse to include an app whose settings would be lost.

        Args:
            included: The settings of the included app. They may be equal to these, or be the defaults.
            app_class: Its arguments have the defaults.

        Raises:
            RuntimeError: Names each other setting.
        """
        defaults = {name: each.default for name, each in inspect.signature(app_class).parameters.items()}
        lost = ", ".join(
            f"{name}=…"
            for name in AppSettings.__annotations__
            if getattr(included, name) not in (getattr(self, name), defaults[name])
        )
        if lost:
            raise RuntimeError(
                f"expected an included app without settings of its own, got App({lost}): give them to the app that "
                "includes it, or mount this one"
            )

    @property
    def cors(self) -> CORS | None:
        """The CORS headers of responses; ``None`` without ``origins``."""
        return None if self.origins is None else CORS(self.origins)

    @property
    def test_host(self) -> str:
        """A host that tests may send."""
        return self.allowed_hosts[0].replace("*", "test") if self.allowed_hosts else "testserver"


def _check_count(name: str, value: Any, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name}: expected a whole number, {minimum} or more, got {value!r}")


def check_seconds(name: str, value: Any) -> None:
    """Raise ``ValueError`` unless the setting ``name`` is a number of seconds greater than 0."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
        raise ValueError(f"{name}: expected a number of seconds greater than 0, got {value!r}")
