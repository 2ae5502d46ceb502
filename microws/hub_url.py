"""What ``App(hub=)``, ``--hub`` and ``MICROWS_HUB`` take: the name of what carries published messages."""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Final, Protocol

from microws.errors import FeatureUnavailable

__all__ = ["HUB_VARIABLE", "INHERITED_VARIABLE", "OPEN_HUB", "HubOpener", "check_hub", "directory_of", "inherits_hub"]

# The option of a server. Workers also set it, for ``connect_hub`` in the programs that the app starts. The second
# variable has the same value then, so that a server among these programs does not take it for its own option.
HUB_VARIABLE: Final = "MICROWS_HUB"
INHERITED_VARIABLE: Final = "MICROWS_INHERITED_HUB"


class HubOpener(Protocol):
    """Has the server run the hub process that an app needs."""

    def __call__(self, url: str, history_bytes: int, name: str, owner: object, /) -> str | None:
        """
        Open the hub.

        Args:
            url, history_bytes: The app's.
            name: Of the app in the hub process; empty for the outermost one.
            owner: What has this name alone.

        Returns:
            The path of the hub process's socket; ``None`` if this process is alone.
        """


# That of the server around this. Not in the scope of a lifespan, because another framework may serve the app.
OPEN_HUB: Final[ContextVar[HubOpener | None]] = ContextVar("OPEN_HUB", default=None)


def inherits_hub(environ: Mapping[str, str]) -> bool:
    """Whether ``MICROWS_HUB`` names the hub of a server that started this program, and is not its own option."""
    return environ.get(HUB_VARIABLE) is not None and environ[HUB_VARIABLE] == environ.get(INHERITED_VARIABLE)


def check_hub(url: str) -> str:
    """
    Refuse an invalid ``hub=``.

    Raises:
        FeatureUnavailable: This version does not have that backplane.
        ValueError: There is none of that name.
    """
    scheme, _, path = url.partition(":")
    if url in ("memory", "local") or (scheme == "local" and path):
        return url
    if scheme in ("redis", "rediss", "valkey", "nats"):
        raise FeatureUnavailable(f"this version has no {scheme!r} backplane; use memory, local or local:PATH")
    raise ValueError(f"expected memory, local or local:PATH, got {url!r}")


def directory_of(url: str) -> str | None:
    """The directory of ``local:PATH``; ``None`` of the others."""
    return url.partition(":")[2] or None
