"""Buffers for bulk data, at the beginning of a page.

Files are cached by the page, so a copy between one and such a buffer goes from and to the same
place in a page. It must not go to a place a few bytes further on, as it does with what malloc(3)
gives out for large sizes (16 bytes into a page): AMD's processors then take four times as long.
"""

from __future__ import annotations

import mmap


def page_aligned(size: int) -> memoryview:
    """Return a writable buffer of `size` zero bytes, given back with the last view of it."""
    return memoryview(mmap.mmap(-1, size))
