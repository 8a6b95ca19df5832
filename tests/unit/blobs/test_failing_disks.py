"""A disk that fills up, or fails, while a blob is on its way into the cache."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.diskcache import failing
from support.readthrough import (
    LARGE,
    MIB,
    Opener,
    opened,
    pread,
    ranged_and_not,
    read_all,
    reading_through,
)
from support.scripted import until
from support.sources import FakeClient

from epochfs.cache.staged_blob import StagedBlob
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

pytestmark = pytest.mark.expects_log("cannot keep everything")

blobs_of = pytest.fixture(reading_through)


@ranged_and_not
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("after", [0, 1, 5, 13])
def test_a_write_that_fails_costs_no_reader_a_byte(
    blobs_of: Opener,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    after: int,
    *,
    ranged: bool,
) -> None:
    written = 0
    honest = os.pwrite

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        nonlocal written
        if written >= after * MIB:
            raise OSError(number, os.strerror(number))
        written += len(data)
        return honest(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    blobs = blobs_of(FakeClient(LARGE, ranged=ranged))
    with (
        opened(blobs, LARGE) as one,
        opened(blobs, LARGE) as two,
        ThreadPoolExecutor(2) as pool,
    ):
        assert list(pool.map(read_all, (one, two))) == [LARGE, LARGE]


def test_what_is_on_disk_is_not_fetched_again(
    blobs_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = FakeClient(LARGE)
    blobs = blobs_of(client)
    with opened(blobs, LARGE) as handle:
        for offset in (0, MIB, 2 * MIB):
            assert pread(handle, offset, MIB) == LARGE[offset : offset + MIB]
        monkeypatch.setattr(os, "pwrite", failing(errno.ENOSPC))
        assert read_all(handle) == LARGE
    start, end = client.asked[-1]
    assert (start >= 3 * MIB, end) == (True, None)


def test_a_blob_larger_than_what_the_disk_has_is_not_begun_on_it(
    blobs_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = os.fstatvfs

    def nearly_full(fd: int) -> os.statvfs_result:
        found = list(honest(fd))
        found[4] = 3 * MIB // found[1]
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "fstatvfs", nearly_full)
    with opened(blobs_of(FakeClient(LARGE)), LARGE) as handle:
        assert read_all(handle) == LARGE
        held = sum(
            path.stat().st_blocks * 512
            for path in (tmp_path / "cache/v1/partial").rglob("*")
            if path.is_file()
        )
    assert held <= 3 * MIB


def test_a_cached_blob_that_cannot_be_read_is_read_from_the_registry(
    blobs_of: Opener, tmp_path: Path
) -> None:
    blobs = blobs_of(FakeClient(LARGE))
    with opened(blobs, LARGE) as handle:
        assert read_all(handle) == LARGE
    file = tmp_path / "cache/v1/blobs/sha256" / Digest.of(LARGE).encoded
    until(file.exists)
    with opened(blobs, LARGE) as handle:
        assert handle.verified
        assert pread(handle, 0, 10) == LARGE[:10]
        os.truncate(file, 5 * MIB)
        assert read_all(handle) == LARGE


def test_a_blob_that_cannot_be_kept_is_read_all_the_same(
    blobs_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CacheFailure("keeping a blob: No space left on device")

    monkeypatch.setattr(StagedBlob, "promote", fail)
    with opened(blobs_of(FakeClient(LARGE)), LARGE) as handle:
        assert read_all(handle) == LARGE
