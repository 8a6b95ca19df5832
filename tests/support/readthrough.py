"""A read-through and blobs opened in it, for the tests of reading through."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from epochfs.blobs.store import BlobHandle, Blobs
from epochfs.cache.blobs import BlobCache
from epochfs.config import BlobOptions, CacheOptions
from epochfs.oci.names import Digest, Repository
from support.builders import random_bytes
from support.sources import FakeClient

MIB = 1 << 20
APP = Repository("team/app")
SMALL = random_bytes(300_001, 1)
LARGE = random_bytes(12 * MIB + 17, 2)
TIMEOUT = 10.0

Opener = Callable[..., Blobs]

ranged_and_not = pytest.mark.parametrize("ranged", [True, False], ids=["range", "no range"])


def reading_through(tmp_path: Path) -> Iterator[Opener]:
    """A fixture: makes the read-through over a fake client and one cache directory."""
    with ExitStack() as closing:

        def make(
            client: FakeClient, *, limit: int = 1 << 30, timeout: float = TIMEOUT, **options: bool
        ) -> Blobs:
            cache = BlobCache(CacheOptions(tmp_path / "cache", limit))
            blobs = Blobs(client, cache, BlobOptions(timeout, **options))  # type: ignore[arg-type]
            closing.callback(blobs.close)
            return blobs

        yield make


@contextmanager
def opened(blobs: Blobs, data: bytes, *, precise: bool = False) -> Iterator[BlobHandle]:
    handle = blobs.open(APP, Digest.of(data), len(data), precise=precise)
    try:
        yield handle
    finally:
        handle.close()


def pread(handle: BlobHandle, offset: int, count: int) -> bytes:
    buffer = bytearray(count)
    return bytes(buffer[: handle.read_into(memoryview(buffer), offset)])


def read_all(handle: BlobHandle, step: int = 131_072) -> bytes:
    return b"".join(pread(handle, start, step) for start in range(0, handle.size, step))


def read(blobs: Blobs, data: bytes, step: int = 128 << 10) -> bytes:
    """Read a blob from start to end as a program does."""
    with opened(blobs, data) as handle:
        return read_all(handle, step)
