"""``Message``: a Struct of msgspec with a tag."""

import re

from microws.errors import FeatureUnavailable

try:
    from msgspec import Struct
except ImportError:
    raise FeatureUnavailable("Message needs msgspec: pip install 'microws[typed]'") from None

__all__ = ["Message"]


def _tag(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


class Message(Struct, tag_field="type", tag=_tag):
    """
    A class of messages, with a tag that tells it from others: a ``msgspec.Struct`` whose JSON has its name as ``type``.

    ::

        class UserJoined(Message):      # {"type": "user_joined", "name": …}
            name: str

    Annotate the WebSocket of a view with such classes: ``ws: WebSocket[Say | Move, Said]``.

    It needs ``pip install 'microws[typed]'``.

    Source: https://jcristharif.com/msgspec/structs.html#tagged-unions
    """
