"""What an app raises: its failures, which are logged and answered, and what is for others to catch."""

__all__ = ["is_failure"]


def is_failure(error: BaseException) -> bool:
    """
    Whether ``error`` is the app's failure: an ``Exception``, or a ``SystemExit``, which would end the server for all.

    A cancellation and a ``KeyboardInterrupt`` are none. A group is one where all in it are.

    Source: uvicorn answers a ``SystemExit`` with 500, too.
    """
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_failure, error.exceptions))
    return isinstance(error, (Exception, SystemExit))
