"""Linux's asynchronous I/O: one system call that writes the same bytes to many sockets."""

import ctypes
import os
import platform
import struct
import sys
import weakref
from array import array
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final, final

__all__ = ["AioContext"]

# What the kernel does here, and what this module relies on:
#
# - io_submit(2) takes an array of pointers to ``struct iocb``, one for each socket, and runs the writes one after the
#   other within the call. A socket in non-blocking mode never waits: it takes what fits in its send buffer, or fails
#   with EAGAIN. So when the call returns, every result is there, and io_getevents(2) does not wait for any of them.
# - The call stops at the first request that it cannot start, such as one for a closed descriptor, and returns how many
#   it started. The sockets after that one got nothing.
# - All requests of a call share one ``struct iovec``: the kernel reads it while it starts a request, not later.
# - A context (io_setup) counts its requests towards the 65,536 that /proc/sys/fs/aio-max-nr allows for the whole
#   machine. It belongs to the address space: a forked process does not have it. io_destroy is slow, so a context
#   is made once and kept.
# - Containers may forbid these calls (seccomp): io_setup then fails, and each socket is written to on its own.

# Numbers of the system calls io_setup, io_destroy, io_submit, io_getevents.
# Source: arch/x86/entry/syscalls/syscall_64.tbl and include/uapi/asm-generic/unistd.h of Linux.
_NUMBERS: Final = {"x86_64": (206, 207, 209, 208), "aarch64": (0, 1, 2, 4)}
# ``struct iocb``: data, key, rw_flags, opcode, priority, descriptor, iovec, number of iovecs, offset, reserved, flags,
# event descriptor. ``struct io_event``: data (that of the request), request, result, second result.
# Source: include/uapi/linux/aio_abi.h.
_IOCB: Final = struct.Struct("<QIiHhIQQqQII")
_EVENT_WORDS: Final = 4
_PWRITEV: Final = 8


class _Vector(ctypes.Structure):
    """``struct iovec``, include/uapi/linux/uio.h."""

    _fields_: ClassVar[Any] = [("data", ctypes.c_char_p), ("size", ctypes.c_size_t)]


class _Requests(dict[int, bytes]):
    """The encoded request of each socket, made when the socket is first written to."""

    def __init__(self, vector: _Vector) -> None:
        super().__init__()
        self._vector = ctypes.addressof(vector)

    def __missing__(self, socket: int) -> bytes:
        self[socket] = _IOCB.pack(socket, 0, 0, _PWRITEV, 0, socket, self._vector, 1, 0, 0, 0, 0)
        return self[socket]


@final
class AioContext:
    """
    A context of the kernel that writes the same bytes to many sockets.

    Args:
        size: Maximum sockets of one call.

    Raises:
        OSError: This system has no such call, forbids it, or has no room for one more context.

    Source: io_submit(2).
    """

    def __init__(self, size: int) -> None:
        numbers = _NUMBERS.get(platform.machine()) if sys.platform == "linux" and sys.maxsize > 1 << 32 else None
        if numbers is None:
            raise OSError("writing to many sockets at once is for Linux on x86_64 and aarch64")
        setup, destroy, submit, get_events = numbers
        context = ctypes.c_ulong()
        if _system_call(setup, ctypes.c_uint, ctypes.c_void_p)(size, ctypes.byref(context)):
            error = ctypes.get_errno()
            raise OSError(error, f"io_setup: {os.strerror(error)}")
        weakref.finalize(self, _system_call(destroy, ctypes.c_ulong), context.value)
        self._context = context.value
        self._submit = _system_call(submit, ctypes.c_ulong, ctypes.c_long, ctypes.c_void_p)
        self._get_events = _system_call(
            get_events, ctypes.c_ulong, ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p
        )
        self._vector = _Vector()
        self._requests = _Requests(self._vector)
        self._memory = ctypes.create_string_buffer(_IOCB.size * size)
        start = ctypes.addressof(self._memory)
        self._pointers = (ctypes.c_void_p * size)(*range(start, start + _IOCB.size * size, _IOCB.size))
        self._events = (ctypes.c_int64 * (_EVENT_WORDS * size))()
        words = memoryview(self._events).cast("B").cast("q")
        self._marks, self._results = words[0::_EVENT_WORDS], words[2::_EVENT_WORDS]

    def write(self, data: bytes, sockets: Sequence[int]) -> list[int] | None:
        """
        Write as much of ``data`` to each of ``sockets`` as it takes now. Never waits.

        Args:
            data: One byte or more.
            sockets: Descriptors of sockets in non-blocking mode, at most ``size``, each once.

        Returns:
            ``None``: each took everything. Else the number of bytes that each took: 0 also where writing failed; the
            next write to that socket reports the error.

        Raises:
            OSError: The kernel did not report all results.
        """
        count, size = len(sockets), len(data)
        requests = b"".join(map(self._requests.__getitem__, sockets))
        ctypes.memmove(self._memory, requests, len(requests))
        self._vector.data, self._vector.size = data, size
        done: int = max(0, self._submit(self._context, count, self._pointers))
        self._vector.data = None
        if done and self._get_events(self._context, done, done, self._events, None) != done:
            raise OSError("io_getevents: the result of some writes is unknown")
        if done == count and self._results[:count] == array("q", (size,)) * count:
            return None
        taken = dict(zip(self._marks[:done], self._results[:done], strict=True))
        return [max(0, taken.get(socket, 0)) for socket in sockets]


def _system_call(number: int, *types: Any) -> Callable[..., int]:
    # PyDLL keeps the GIL, as a transport's write does: otherwise a busy thread would get its turn at each call. Each
    # library object has a function object of its own, so that the argument types are of this call only.
    function = ctypes.PyDLL(None, use_errno=True).syscall
    function.argtypes = (ctypes.c_long, *types)
    function.restype = ctypes.c_long
    return partial(function, number)
