"""Memory for bulk data."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from epochfs.blobs.buffers import give_back, page_aligned

PIECE = 100 << 10
"""Small enough for malloc(3) to take it from its heap."""


def resident() -> int:
    """Return this process's resident memory in bytes."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def test_a_buffer_begins_with_a_page() -> None:
    view = page_aligned(10_000)
    assert ctypes.addressof(ctypes.c_char.from_buffer(view)) % 4096 == 0
    assert bytes(view) == bytes(10_000)


def test_what_is_free_goes_back_to_the_kernel_wherever_it_is() -> None:
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("this C library is not glibc")
    libc.malloc.restype = ctypes.c_void_p
    pieces = [ctypes.c_void_p(libc.malloc(PIECE)) for _ in range(300)]
    for piece in pieces:
        ctypes.memset(piece, 1, PIECE)
    *rest, last = pieces  # the last one keeps the end of the heap in use
    for piece in rest:
        libc.free(piece)
    before = resident()
    give_back()
    assert resident() < before - 200 * PIECE
    libc.free(last)
