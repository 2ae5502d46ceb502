"""What an app signs with its secrets: the cookies of sessions, and tickets."""

import hmac
from collections.abc import Sequence
from hashlib import sha256
from typing import Any, Final

from microws.errors import FeatureUnavailable

try:
    from itsdangerous import Signer
    from itsdangerous.encoding import base64_decode, base64_encode
    from itsdangerous.signer import SigningAlgorithm
except ImportError:
    raise FeatureUnavailable("sessions and tickets need itsdangerous: pip install 'microws[sessions]'") from None

__all__ = ["MIN_SECRET", "Signatures", "Signing", "check_secret"]

# RFC 7518 §3.2: a key for HMAC-SHA256 is as long as its hash, or longer.
MIN_SECRET: Final = 32


def check_secret(value: Any) -> tuple[bytes, ...]:
    """
    The secrets of ``App(secret=…)``, the one that signs first.

    Raises:
        TypeError, ValueError: A secret is invalid or too short, or there is none. The text does not show it.
    """
    values = [value] if isinstance(value, str | bytes) else value
    if not isinstance(values, list | tuple) or not all(isinstance(each, str | bytes) for each in values):
        raise TypeError(f"secret: expected str, bytes or a list of them, got {type(value).__name__}")
    secrets = tuple(each.encode() if isinstance(each, str) else each for each in values)
    shortest = min((len(each) for each in secrets), default=0)
    if shortest < MIN_SECRET:
        raise ValueError(
            f"secret: expected {MIN_SECRET} bytes or more, got {shortest}; make one with: "
            "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    return secrets


class Signatures:
    """
    Signs texts for one purpose, and verifies them.

    Args:
        secrets: The first one signs, all verify.
        purpose: What is signed for one purpose is not valid for another.
    """

    __slots__ = ("_signers",)

    def __init__(self, secrets: Sequence[bytes], purpose: bytes) -> None:
        # With one key for each purpose, itsdangerous need not derive it again for each signature.
        keys = [hmac.digest(secret, purpose, "sha256") for secret in secrets]
        self._signers = [Signer(key, key_derivation="none", algorithm=_HMAC(key)) for key in keys]

    def sign(self, data: bytes, *, context: str) -> str:
        """
        Sign ``data``, which anyone can read.

        Args:
            context: Is signed too, but is not part of the result: ``verify`` must be given the same.
        """
        text = base64_encode(data)
        return (text + b"." + self._signers[0].get_signature(_signed(text, context))).decode("ascii")

    def verify(self, signed: str, *, context: str) -> bytes | None:
        """The data that ``sign`` was given; ``None`` if ``signed`` is not exactly what it has returned."""
        text, _, signature = signed.encode(errors="replace").rpartition(b".")
        # The text of a signature is compared. To decode it first would let other texts pass, because the last character
        # of base64 has bits that mean nothing.
        message = _signed(text, context)
        for signer in self._signers:
            if hmac.compare_digest(signature, signer.get_signature(message)):
                return base64_decode(text)
        return None


class _HMAC(SigningAlgorithm):
    """HMAC with SHA-256 and one key. Its key is hashed once, which otherwise is half of the time of a signature."""

    def __init__(self, key: bytes) -> None:
        self._keyed = hmac.new(key, digestmod=sha256)

    def get_signature(self, key: bytes, value: bytes) -> bytes:
        keyed = self._keyed.copy()
        keyed.update(value)
        return keyed.digest()


class Signing:
    """
    The signatures of an app.

    Attributes:
        session, ticket: One for each purpose.
    """

    __slots__ = ("session", "ticket")

    def __init__(self, secrets: Sequence[bytes]) -> None:
        self.session = Signatures(secrets, b"microws.session")
        self.ticket = Signatures(secrets, b"microws.ticket")


def _signed(text: bytes, context: str) -> bytes:
    # Base64 has no NUL.
    return text + b"\0" + context.encode(errors="replace")
