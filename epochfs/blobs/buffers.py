"""Memory for bulk data: buffers at the beginning of a page, and one heap for what C allocates.

Files are cached by the page, so a copy between one and such a buffer goes from and to the same
place in a page. It must not go to a place a few bytes further on, as it does with what malloc(3)
gives out for large sizes (16 bytes into a page): AMD's processors then take four times as long.
"""

from __future__ import annotations

import ctypes
import mmap

_M_ARENA_MAX = -8
"""Of glibc's malloc.h: how many heaps there may be."""


def page_aligned(size: int) -> memoryview:
    """Return a writable buffer of `size` zero bytes, given back with the last view of it."""
    return memoryview(mmap.mmap(-1, size))


def clear(view: memoryview) -> None:
    """Fill a buffer with zeros."""
    view[:] = bytes(len(view))


def share_one_heap() -> None:
    """Have all threads allocate from one heap, where the C library can do that (glibc).

    libfuse allocates a MiB for each READ. By itself glibc gives each few threads a heap of their
    own, and each keeps what its threads once used at most: with 32 readers 25 MiB more in all.
    """
    _call("mallopt", _M_ARENA_MAX, 1)


def give_back() -> None:
    """Give the kernel back what is free, where the C library can do that (glibc).

    By itself it gives back the end of a heap only, and after a while of 64 readers at work no end
    is free: 153 MiB of theirs stayed, where 64 are in use.
    """
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    found = getattr(ctypes.CDLL(None), function, None)
    if found is not None:
        found(*arguments)
