"""Rows: cold blobs on memory that was touched, beside rivals that verify; what the machine can do.

Which pages the kernel hands out next decides much on a virtual machine: one that has never been
touched, or was given back to the host, takes several times as long. So before each repetition of
these rows, of epochfs and of its rival alike, a process maps `_TOUCHED` bytes, writes to every page
of them, and ends: the pages that follow are among those.

The rows of the machine have no bar. They say how fast it does by itself what nobody can avoid, so
that the others can be judged on another machine.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from collections.abc import Callable

from scripts.benchmark.content import MIB
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, timed
from scripts.benchmark.rows import Samples, no_bar, race, repeat, row, time_at_most

_NEEDS = ("docker-registry", "curl")
_TOUCHED = 4096 * MIB
_GIB = 1024 * MIB
_HASH_AT_A_TIME = MIB

_TOUCH = """
import mmap, sys, time
size = int(sys.argv[1])
memory = mmap.mmap(-1, size)
if hasattr(mmap, "MADV_NOHUGEPAGE"):
    memory.madvise(mmap.MADV_NOHUGEPAGE)
began = time.perf_counter()
for offset in range(0, size, mmap.PAGESIZE):
    memory[offset] = 1
print(time.perf_counter() - began)
"""
"""Writes to every page of so many bytes of new memory; prints how many seconds that took."""

_FETCH_AND_CHECK = 'curl -sSf -o "$0" "$1" && sha256sum "$0"'


def _touch(size: int) -> float:
    """Touch so many bytes of memory, page by page, and give it back; return the seconds."""
    command = [sys.executable, "-c", _TOUCH, str(size)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise Failed(f"touching {size // MIB} MiB of memory failed: {result.stderr.strip()}")
    return float(result.stdout)


def _touched_race(ours: Callable[[], float], rival: Callable[[], float]) -> Samples:
    def touched(measure: Callable[[], float]) -> float:
        _touch(_TOUCHED)
        return measure()

    return race(lambda: touched(ours), lambda: touched(rival))


@row("cold-touched", "1 GiB cold, memory touched", time_at_most(1.2), "curl -o", _NEEDS)
def _cold(lab: Lab) -> Samples:
    blob, url = lab.big, lab.registry.url
    return _touched_race(lambda: lab.cold_cat(url, blob), lambda: lab.curl(url, blob))


@row(
    "cold-verified",
    "1 GiB cold, memory touched",
    time_at_most(0.45),
    "curl -o F && sha256sum F",
    (*_NEEDS, "sha256sum"),
)
def _cold_verified(lab: Lab) -> Samples:
    blob, url = lab.big, lab.registry.url
    return _touched_race(
        lambda: lab.cold_cat(url, blob),
        lambda: lab.fetched(1, ["sh", "-c", _FETCH_AND_CHECK], url, [blob]),
    )


@row(
    "32-blobs-touched",
    "32 x 64 MiB cold, memory touched",
    time_at_most(1.6),
    "xargs -P32 curl -o",
    _NEEDS,
)
def _many(lab: Lab) -> Samples:
    blobs, url = lab.dozens, lab.registry.url
    return _touched_race(
        lambda: lab.cold_cats(url, blobs),
        lambda: lab.fetched(len(blobs), ["curl", "-sSf", "-o"], url, blobs),
    )


@row(
    "32-blobs-verified",
    "32 x 64 MiB cold, memory touched",
    time_at_most(0.8),
    "xargs -P2 of curl and sha256sum",
    (*_NEEDS, "sha256sum"),
)
def _many_verified(lab: Lab) -> Samples:
    blobs, url = lab.dozens, lab.registry.url
    return _touched_race(
        lambda: lab.cold_cats(url, blobs),
        lambda: lab.fetched(2, ["sh", "-c", _FETCH_AND_CHECK], url, blobs),
    )


@row("machine-touch", "the machine: 1 GiB of new pages touched", no_bar())
def _machine_touch(lab: Lab) -> Samples:
    return repeat(lambda: _touch(_GIB))


@row("machine-dd", "the machine: 1 GiB into a new file, dd", no_bar())
def _machine_dd(lab: Lab) -> Samples:
    blob = lab.big

    def copy() -> float:
        with lab.fresh_directory() as directory:
            return timed("dd", f"if={blob.file}", f"of={directory / 'copy'}", "bs=1M")

    return repeat(copy)


@row("machine-sha256", "the machine: 1 GiB hashed, hashlib", no_bar())
def _machine_sha256(lab: Lab) -> Samples:
    piece = bytes(_HASH_AT_A_TIME)

    def hashed() -> float:
        hasher = hashlib.sha256()
        began = time.perf_counter()
        for _ in range(_GIB // len(piece)):
            hasher.update(piece)
        return time.perf_counter() - began

    return repeat(hashed)


ROWS = (
    _cold,
    _cold_verified,
    _many,
    _many_verified,
    _machine_touch,
    _machine_dd,
    _machine_sha256,
)
