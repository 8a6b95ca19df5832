"""Memory for bulk data: page-aligned buffers, and one heap for what C allocates.

Files are cached by the page, so a copy between one and such a buffer keeps its place in the page.
With malloc(3), which starts large blocks 16 bytes into a page, AMD's processors take four times as
long.
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

    libfuse allocates a MiB for each READ. By default glibc gives every few threads a heap of their
    own, and each keeps the most its threads ever used: with 32 readers 25 MiB more in all.
    """
    _call("mallopt", _M_ARENA_MAX, 1)


def give_back() -> None:
    """Return free memory to the kernel, where the C library can do that (glibc).

    By default it returns the end of a heap only, and after 64 readers no end is free: 153 MiB of
    theirs stayed, with 64 in use.
    """
    _call("malloc_trim", 0)


def _call(function: str, *arguments: int) -> None:
    found = getattr(ctypes.CDLL(None), function, None)
    if found is not None:
        found(*arguments)
