"""The settings whose default is another one under ``microws dev``."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

__all__ = ["DEFAULTS"]

# Seconds.
DEFAULTS: Final[Mapping[str, Any]] = MappingProxyType({"warn_blocked": 0.5})
