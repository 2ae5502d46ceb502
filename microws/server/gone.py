"""What ``send`` raises when nobody is there any more."""

__all__ = ["Gone", "is_gone"]


class Gone(OSError):
    """
    ``send`` after the connection has ended.

    Source: https://asgi.readthedocs.io/en/latest/specs/www.html ("a server-specific subclass of OSError").
    """


def is_gone(error: BaseException | None) -> bool:
    """Whether it comes from ``Gone``: itself, what a framework made of it, or a group of such."""
    if isinstance(error, BaseExceptionGroup):
        return all(is_gone(inner) for inner in error.exceptions)
    while error is not None and not isinstance(error, Gone):
        error = error.__cause__ or error.__context__
    return error is not None
