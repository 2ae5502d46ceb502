"""One system call that writes the same bytes to many sockets: Linux's ``io_submit``."""

import ctypes
import os
import platform
import sys
import weakref
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, final

__all__ = ["MAX_SOCKETS", "BulkWriter"]

# In one call. More would save next to nothing, and keep the kernel from other work on this core for too long. Each
# writer also takes as many of the 65,536 requests that Linux allows in all, /proc/sys/fs/aio-max-nr.
MAX_SOCKETS: Final = 128


class _Numbers(NamedTuple):
    """Of system calls."""

    setup: int
    destroy: int
    submit: int
    get_events: int


# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
_NUMBERS: Final = {"x86_64": _Numbers(206, 207, 209, 208), "aarch64": _Numbers(0, 1, 2, 4)}
_PWRITEV: Final = 8


class _Vector(ctypes.Structure):
    """``struct iovec``, include/uapi/linux/uio.h."""

    _fields_: ClassVar[Any] = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Request(ctypes.LittleEndianStructure):
    """``struct iocb``, include/uapi/linux/aio_abi.h. An event has the ``mark`` of its request."""

    _fields_: ClassVar[Any] = [
        ("mark", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("write_flags", ctypes.c_int32),
        ("operation", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("socket", ctypes.c_uint32),
        ("vectors", ctypes.c_uint64),
        ("vector_count", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("event_descriptor", ctypes.c_uint32),
    ]


class _Event(ctypes.LittleEndianStructure):
    """``struct io_event``, beside it."""

    _fields_: ClassVar[Any] = [
        ("mark", ctypes.c_int64),
        ("request", ctypes.c_int64),
        ("result", ctypes.c_int64),
        ("second_result", ctypes.c_int64),
    ]


class _Requests(dict[int, bytes]):
    """By socket: the request to write to it what the vector names."""

    def __init__(self, vector: _Vector) -> None:
        super().__init__()
        self._vectors = ctypes.addressof(vector)

    def __missing__(self, socket: int) -> bytes:
        request = _Request(mark=socket, operation=_PWRITEV, socket=socket, vectors=self._vectors, vector_count=1)
        self[socket] = bytes(request)
        return self[socket]


@final
class BulkWriter:
    """
    Writes the same bytes to many sockets.

    Raises:
        OSError: This system has no such call, or no room for one more writer.

    Source: io_submit(2). What is for a socket that does not block, the kernel writes within the call.
    """

    __slots__ = (
        "__weakref__",
        "_context",
        "_events",
        "_get_events",
        "_memory",
        "_pointers",
        "_requests",
        "_results",
        "_submit",
        "_vector",
    )

    def __init__(self) -> None:
        numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
        if numbers is None:
            raise OSError("writing to many sockets at once is for Linux on x86_64 and aarch64")
        context = ctypes.c_ulong()
        if _system_call(numbers.setup, ctypes.c_uint, ctypes.c_void_p)(MAX_SOCKETS, ctypes.byref(context)):
            error = ctypes.get_errno()
            raise OSError(error, f"io_setup: {os.strerror(error)}")
        weakref.finalize(self, _system_call(numbers.destroy, ctypes.c_ulong), context.value)
        self._context = context.value
        self._submit = _system_call(numbers.submit, ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
        self._get_events = _system_call(
            numbers.get_events, ctypes.c_ulong, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
        )
        self._vector = _Vector()
        self._requests = _Requests(self._vector)
        self._memory = (_Request * MAX_SOCKETS)()
        self._pointers = (ctypes.c_void_p * MAX_SOCKETS)(*map(ctypes.addressof, self._memory))
        self._events = (_Event * MAX_SOCKETS)()
        # Of each event; words, of which an event has four.
        self._results = memoryview(self._events).cast("B").cast("q")[2::4]

    def write(self, data: bytes, sockets: Sequence[int]) -> list[int] | None:
        """
        Write as much of ``data`` to each of ``sockets`` as it takes now. Never waits.

        Args:
            data: One byte or more.
            sockets: Descriptors of sockets that do not block, at most ``MAX_SOCKETS``, none of them twice.

        Returns:
            ``None``: each has taken everything. Else the bytes that each has taken: 0 also where writing failed, as the
            next write to that socket will.
        """
        count, size = len(sockets), len(data)
        requests = b"".join(map(self._requests.__getitem__, sockets))
        ctypes.memmove(self._memory, requests, len(requests))
        self._vector.data, self._vector.size = data, size
        done: int = max(0, self._submit(self._context, count, self._pointers))
        self._vector.data = None
        if done and self._get_events(self._context, done, done, self._events, None) != done:
            raise OSError("io_getevents: what became of some writes is unknown")
        if done == count and self._results[:count] == array("q", (size,)) * count:
            return None
        taken = {event.mark: max(0, event.result) for event in self._events[:done]}
        return [taken.get(socket, 0) for socket in sockets]


def _system_call(number: int, *types: Any) -> Callable[..., int]:
    # It keeps the GIL, as a transport's write does: a busy thread would else have its turn at each call. Each library
    # object has a function of its own, so that the types are of this call only.
    function = ctypes.PyDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, *types)
    function.restype = ctypes.c_long
    return partial(function, number)
