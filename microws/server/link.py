"""The connection of an exchange, as the exchange sees it."""

from typing import Protocol

from microws.server.send_file import FileLink

__all__ = ["Link"]


class Link(FileLink, Protocol):
    """The connection of an exchange. Only what says so waits."""

    @property
    def is_writable(self) -> bool:
        """Whether the client takes what is sent: otherwise it piles up here."""
        ...

    @property
    def is_last(self) -> bool:
        """Whether no request after this one is answered, because the server is about to stop."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether the server stops: an event stream ends."""
        ...

    def write(self, data: bytes | memoryview, /) -> None:
        """Send. Not after the end."""
        ...

    def await_body(self) -> None:
        """The client has been told to send the body."""
        ...

    def pause_body(self) -> None:
        """The app does not keep up with the body."""
        ...

    def resume_body(self) -> None:
        """It has caught up."""
        ...

    def answered(self, *, keep_alive: bool) -> None:
        """The response is complete."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...
