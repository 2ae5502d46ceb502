"""What ``App(hub=)``, ``--hub`` and ``MICROWS_HUB`` take: the name of what carries published messages."""

from microws.errors import FeatureUnavailable

__all__ = ["check_hub", "directory_of"]


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
