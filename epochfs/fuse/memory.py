"""Memory that libfuse and Python pass to each other without a copy."""

from __future__ import annotations

import ctypes

IN_FILE = 1 << 1 | 1 << 2 | 1 << 3
"""FUSE_BUF_IS_FD, FUSE_BUF_FD_SEEK, FUSE_BUF_FD_RETRY: of a descriptor, from a position, all."""


_LIBC = ctypes.CDLL(None)
_LIBC.malloc.argtypes = [ctypes.c_size_t]
_LIBC.malloc.restype = ctypes.c_void_p
_LIBC.free.argtypes = [ctypes.c_void_p]
_LIBC.free.restype = None


class Vector(ctypes.Structure):
    """libfuse's `struct fuse_bufvec` of one buffer, which the binding takes for a pointer.

    The last field is there since libfuse 3.17, and 0.
    """

    _fields_ = (
        ("count", ctypes.c_size_t),
        ("index", ctypes.c_size_t),
        ("offset", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
        ("memory", ctypes.c_void_p),
        ("fd", ctypes.c_int),
        ("position", ctypes.c_int64),
        ("memory_size", ctypes.c_size_t),
    )


def allocate(size: int) -> int:
    """Return the address of `size` bytes of anything, which libfuse gives back with free(3)."""
    address = _LIBC.malloc(max(size, 1))
    if not address:
        raise MemoryError(f"no memory for {size} bytes")
    return int(address)


def view_of(address: int, size: int) -> memoryview:
    """Return `size` bytes of memory, for as long as libfuse keeps them."""
    return memoryview((ctypes.c_char * size).from_address(address)).cast("B")


def free(address: int) -> None:
    """Give back what `allocate` returned."""
    _LIBC.free(address)
