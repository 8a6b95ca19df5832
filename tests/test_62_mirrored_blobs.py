"""Reading through hosts that do not all behave alike: what a mirror may do to a download."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from builders import random_bytes
from sources import FakeClient, FakeStream

from epochfs.blobcache import BlobCache
from epochfs.blobs import Blobs
from epochfs.config import BlobOptions, CacheOptions
from epochfs.names import Digest, Repository

MIB = 1 << 20
APP = Repository("team/app")
LARGE = random_bytes(48 * MIB + 17, 2)


def read(directory: Path, client: FakeClient, data: bytes) -> bytes:
    """Read a cold blob from start to end as a program does."""
    blobs = Blobs(client, BlobCache(CacheOptions(directory)), BlobOptions(10.0))  # type: ignore[arg-type]
    try:
        handle = blobs.open(APP, Digest.of(data), len(data))
        buffer = bytearray(len(data))
        for offset in range(0, len(data), MIB):
            handle.read_into(memoryview(buffer)[offset : offset + MIB], offset)
        handle.close()
        return bytes(buffer)
    finally:
        blobs.close()


@dataclass
class Wholesale(FakeStream):
    """A stream of all of a blob, whatever was asked."""

    def __post_init__(self) -> None:
        self.start, self.stop = 0, len(self.client.data)
        super().__post_init__()

    @property
    def ranged(self) -> bool:
        return False


class Changing(FakeClient):
    """Honours Range for the first few requests only."""

    def get_blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> FakeStream:
        stream = super().get_blob(repository, digest, start, end)
        return stream if stream.number < 3 else Wholesale(self, stream.number, 0, 0)


def test_a_blob_whose_next_host_ignores_range_is_streamed_once(tmp_path: Path) -> None:
    client = Changing(LARGE, before=lambda _: time.sleep(0.0005))
    assert read(tmp_path, client, LARGE) == LARGE
    assert len(client.asked) < 10
