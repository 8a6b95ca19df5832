"""Rows: reads of a part of a cold blob, and many readers at once.

What the registry sent is read from its own access log.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable

from scripts.benchmark.content import MIB, Blob
from scripts.benchmark.lab import Lab
from scripts.benchmark.mounts import Mount
from scripts.benchmark.origins import Request
from scripts.benchmark.programs import Failed, in_parallel, timed
from scripts.benchmark.rows import Samples, at_most, race, repeat, row, time_at_most

_REGISTRY = "docker-registry"
_RANDOM_READS = 200
_RANDOM_SIZE = 4096
_READERS = 64
_LITTLE = 4 * MIB
_LATER_SECONDS = 5.0


@row("random-bytes", "200 random 4 KiB reads cold: bytes", at_most(200, "MiB"), needs=(_REGISTRY,))
def _random_bytes(lab: Lab) -> Samples:
    return repeat(lambda: _size(_fetched(lab, lab.big, _read_at_random)) / MIB)


@row(
    "random-requests",
    "200 random 4 KiB reads cold: requests",
    at_most(_RANDOM_READS, "requests"),
    needs=(_REGISTRY,),
)
def _random_requests(lab: Lab) -> Samples:
    return repeat(lambda: len(_fetched(lab, lab.big, _read_at_random)))


def _read_at_random(mount: Mount, blob: Blob) -> None:
    """Read pages of a blob here and there, and hold them against what was pushed."""
    source = random.Random(blob.size)
    with mount.blob(blob).open("rb", buffering=0) as ours, blob.file.open("rb") as pushed:
        for _ in range(_RANDOM_READS):
            offset = source.randrange(blob.size // _RANDOM_SIZE) * _RANDOM_SIZE
            data = os.pread(ours.fileno(), _RANDOM_SIZE, offset)
            if data != os.pread(pushed.fileno(), _RANDOM_SIZE, offset):
                raise Failed(f"wrong bytes at {offset}")


@row("few-bytes", "4 MiB of 1 GiB cold, 5 s later: bytes", at_most(16, "MiB"), needs=(_REGISTRY,))
def _few_bytes(lab: Lab) -> Samples:
    def read_a_little(mount: Mount, blob: Blob) -> None:
        timed("head", "-c", str(_LITTLE), mount.blob(blob))
        time.sleep(_LATER_SECONDS)

    return repeat(lambda: _size(_fetched(lab, lab.big, read_a_little)) / MIB)


@row(
    "64-readers",
    "64 readers of 256 MiB cold: bytes",
    at_most(1.05, "x the blob"),
    needs=(_REGISTRY,),
)
def _many_readers(lab: Lab) -> Samples:
    def read_often(mount: Mount, blob: Blob) -> None:
        in_parallel(_READERS, ["cat"], [str(mount.blob(blob))] * _READERS)

    return repeat(lambda: _size(_fetched(lab, lab.medium, read_often)) / lab.medium.size)


@row(
    "32-blobs",
    "32 readers, 32 x 64 MiB cold",
    time_at_most(1.3),
    "xargs -P32 curl -o",
    (_REGISTRY, "curl"),
)
def _many_blobs(lab: Lab) -> Samples:
    blobs, url = lab.dozens, lab.registry.url
    return race(
        lambda: lab.cold_cats(url, blobs),
        lambda: lab.fetched(len(blobs), ["curl", "-sSf", "-o"], url, blobs),
    )


def _fetched(lab: Lab, blob: Blob, read: Callable[[Mount, Blob], None]) -> list[Request]:
    """Let `read` read a cold blob through a mount; return what was fetched of it meanwhile."""
    mark = lab.registry.mark()
    with lab.epochfs(lab.registry.url) as mount:
        read(mount, blob)
    address = blob.url("")
    requests = lab.registry.requests_since(mark)
    return [request for request in requests if request.method == "GET" and request.path == address]


def _size(requests: list[Request]) -> int:
    return sum(request.size for request in requests)


ROWS = (_random_bytes, _random_requests, _few_bytes, _many_readers, _many_blobs)
