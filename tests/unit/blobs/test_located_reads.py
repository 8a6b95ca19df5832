"""Reads that are answered with a file: it has the bytes of the read, and they may be read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.readthrough import LARGE, MIB, Opener, opened, pread, read, reading_through
from support.scripted import until
from support.sources import FakeClient, Turnstile, flip

from epochfs.blobs.open_blob import OpenBlob
from epochfs.blobs.store import BlobHandle
from epochfs.cache.staged_blob import StagedBlob
from epochfs.errors import CacheFailure, ContentMismatch, DeadlineExceeded
from epochfs.oci.names import Digest

blobs_of = pytest.fixture(reading_through)


def located(handle: BlobHandle, offset: int, size: int) -> bytes | None:
    """Return the bytes of a read from the file that has them; None if none has."""
    assert isinstance(handle, OpenBlob)
    where = handle.locate(offset, size)
    return None if where is None else os.pread(where[0], where[1], offset)


def test_a_cold_blob_is_read_to_its_end_from_its_staged_file(blobs_of: Opener) -> None:
    client = FakeClient(LARGE)
    with opened(blobs_of(client), LARGE) as handle:
        pieces = [located(handle, offset, MIB) for offset in range(0, len(LARGE), MIB)]
        assert b"".join(piece or b"" for piece in pieces) == LARGE
        assert handle.verified
    assert client.sent == len(LARGE)


def test_a_cached_blob_is_read_from_its_file(blobs_of: Opener) -> None:
    blobs = blobs_of(FakeClient(LARGE))
    read(blobs, LARGE)
    with opened(blobs, LARGE) as handle:
        assert located(handle, 5, MIB) == LARGE[5 : MIB + 5]
        assert located(handle, len(LARGE) - 3, MIB) == LARGE[-3:]


def test_there_is_no_file_for_what_is_behind_the_end(blobs_of: Opener) -> None:
    with opened(blobs_of(FakeClient(LARGE)), LARGE) as handle:
        assert located(handle, len(LARGE), MIB) is None


def test_no_file_is_named_before_the_bytes_are_in_it(blobs_of: Opener) -> None:
    gate = Turnstile(MIB)
    blobs = blobs_of(FakeClient(LARGE, ranged=False, before=gate), timeout=0.3)
    with opened(blobs, LARGE) as handle:
        assert located(handle, 0, MIB // 2) == LARGE[: MIB // 2]
        with pytest.raises(DeadlineExceeded):
            located(handle, 4 * MIB, MIB)
        gate.open()


def test_no_file_is_named_for_the_last_byte_of_wrong_bytes(blobs_of: Opener) -> None:
    client = FakeClient(LARGE, alter=flip(range(1000), 7 * MIB))
    with opened(blobs_of(client), LARGE) as handle:
        for offset in range(0, 7 * MIB, MIB):
            assert located(handle, offset, MIB) == LARGE[offset : offset + MIB]
        with pytest.raises(ContentMismatch):
            located(handle, len(LARGE) - MIB, MIB)


@pytest.mark.expects_log("shorter than it was")
def test_a_file_that_lacks_the_bytes_is_not_named_and_they_come_from_the_registry(
    blobs_of: Opener, tmp_path: Path
) -> None:
    blobs = blobs_of(FakeClient(LARGE))
    read(blobs, LARGE)
    file = tmp_path / "cache/v1/blobs/sha256" / Digest.of(LARGE).encoded
    until(file.exists)
    with opened(blobs, LARGE) as handle:
        os.truncate(file, 5 * MIB)
        assert located(handle, 4 * MIB, MIB) == LARGE[4 * MIB : 5 * MIB]
        assert located(handle, 5 * MIB - 1, MIB) is None
        assert pread(handle, 5 * MIB - 1, MIB) == LARGE[5 * MIB - 1 : 6 * MIB - 1]


@pytest.mark.expects_log("Input/output error")
def test_there_is_no_file_where_the_cache_cannot_be_written_to(
    blobs_of: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise CacheFailure("writing a blob: Input/output error")

    monkeypatch.setattr(StagedBlob, "write", fail)
    with opened(blobs_of(FakeClient(LARGE)), LARGE) as handle:
        assert located(handle, 0, MIB) is None
        assert pread(handle, 0, MIB) == LARGE[:MIB]
