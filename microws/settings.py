"""The settings of an app, each of them checked."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import inf
from typing import Any, Self

from microws.closing import check_close
from microws.codec import JSONDefault, check_json_default
from microws.cors import CORS
from microws.handshake import check_hosts_setting, check_origins_setting
from microws.interfaces import Limits

__all__ = ["AppSettings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AppSettings:
    """
    What ``App`` takes, and documents.

    Raises:
        TypeError, ValueError: Names the setting, what was expected and what came.
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
    debug: bool
    json_default: JSONDefault | None
    threads: int
    redirect_slashes: bool

    def __post_init__(self) -> None:
        for name in ("max_message_size", "max_fragments", "receive_queue", "max_subscriptions", "threads"):
            _check_count(name, getattr(self, name), minimum=1)
        _check_count("max_body_size", self.max_body_size, minimum=0)
        for name in ("send_timeout", "accept_timeout", "close_timeout"):
            _check_seconds(name, getattr(self, name))
        _check_count("error_close_code", self.error_close_code, minimum=1000)
        check_close(self.error_close_code, "")
        if not isinstance(self.compression, bool):
            raise TypeError(f"compression is True or False, not {self.compression!r}")
        if not isinstance(self.hub, str):
            raise TypeError(f'hub is the name of a backplane, such as "memory", not {self.hub!r}')
        if self.json_default is not None:
            check_json_default(self.json_default)
        object.__setattr__(self, "origins", check_origins_setting(self.origins))
        object.__setattr__(self, "allowed_hosts", check_hosts_setting(self.allowed_hosts))

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """The settings among the arguments of ``App``, which has one of the same name for each. Raises as the class."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def check_included(self, included: Self, app_class: type[Any]) -> None:
        """
        Refuse to include an app whose settings would be lost.

        Args:
            included: Settings of the app that is included. Those that are as here, or defaults, may stay.
            app_class: Its arguments have the defaults.

        Raises:
            RuntimeError: Names each of the others.
        """
        defaults = self.of({name: each.default for name, each in inspect.signature(app_class).parameters.items()})
        names = [field.name for field in fields(self)]
        own = [name for name in names if getattr(included, name) != getattr(defaults, name)]
        lost = ", ".join(f"{name}=…" for name in own if getattr(included, name) != getattr(self, name))
        if lost:
            raise RuntimeError(
                f"expected an included app without settings of its own, got App({lost}): give them to the app that "
                "includes it, or mount this one"
            )

    @property
    def cors(self) -> CORS | None:
        """What answers say to browsers; ``None`` where there are no ``origins``."""
        return None if self.origins is None else CORS(self.origins)

    @property
    def test_host(self) -> str:
        """A host that the app answers for, for tests."""
        return self.allowed_hosts[0].replace("*", "test") if self.allowed_hosts else "testserver"

    @property
    def limits(self) -> Limits:
        """Those of each WebSocket."""
        return Limits(
            max_message_size=self.max_message_size,
            max_fragments=self.max_fragments,
            receive_queue=self.receive_queue,
            send_timeout=self.send_timeout,
            accept_timeout=self.accept_timeout,
            close_timeout=self.close_timeout,
            compression=self.compression,
        )


def _check_count(name: str, value: Any, *, minimum: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ValueError(f"{name} is a whole number, {minimum} or more, not {value!r}")


def _check_seconds(name: str, value: Any) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < inf:
        raise ValueError(f"{name} is a number of seconds greater than 0, not {value!r}")
