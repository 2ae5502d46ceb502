"""What ``send`` raises once the client has disconnected."""

__all__ = ["ClientDisconnected", "is_client_disconnected"]


class ClientDisconnected(OSError):
    """
    ``send`` was called after the connection ended.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html ("a server-specific subclass of OSError").
    """


def is_client_disconnected(error: BaseException | None) -> bool:
    """Whether ``error`` is a ``ClientDisconnected``, was raised because of one, or is a group of only such errors."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_client_disconnected(inner) for inner in error.exceptions)
    while error is not None and not isinstance(error, ClientDisconnected):
        error = error.__cause__ or error.__context__
    return error is not None
