"""The disk store on a disk that is shared, full, damaged, or laid out to trap it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from support.diskcache import (
    DATA,
    DIGEST,
    PAGE,
    content,
    failing,
    held,
    keep,
    not_yet_there,
    opened,
    place,
    read,
    staged,
)

from epochfs.cache.blobs import BlobCache
from epochfs.cache.staged_blob import RangeSet
from epochfs.errors import CacheFailure

SECRET = b"not for the cache to read"


directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)


def test_everything_is_for_its_owner_alone_whatever_the_umask(directory: Path) -> None:
    before = os.umask(0)
    try:
        cache = opened(directory)
        keep(cache)
        with staged(cache, DATA[1:]) as blob:
            blob.checkpoint(RangeSet([(0, PAGE)]))
    finally:
        os.umask(before)
    everything = [directory, *directory.rglob("*")]
    modes = {path: path.stat().st_mode & 0o777 for path in everything}
    assert {modes[path] for path in everything if path.is_dir()} == {0o700}
    assert {modes[path] for path in everything if path.is_file()} == {0o600}
    assert sum(path.is_file() for path in everything) == 3


def test_a_link_in_the_place_of_a_blob_is_not_followed(
    cache: BlobCache, directory: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.write_bytes(DATA)
    keep(cache)
    place(directory, "blobs").unlink()
    place(directory, "blobs").symlink_to(copy)
    assert content(cache) is None
    keep(cache)
    assert content(cache) == DATA
    assert not place(directory, "blobs").is_symlink()


@pytest.mark.parametrize("suffix", ["", ".map", ".map.new"])
def test_a_link_in_the_place_of_a_partial_blob_is_not_written_through(
    cache: BlobCache, directory: Path, tmp_path: Path, suffix: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(SECRET)
    place(directory, "partial").parent.mkdir(parents=True)
    place(directory, "partial", suffix).symlink_to(victim)
    try:
        with staged(cache) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, len(DATA))]))
    except CacheFailure:
        pass
    assert victim.read_bytes() == SECRET


def test_a_hard_link_in_the_place_of_a_partial_blob_is_not_written_through(
    cache: BlobCache, directory: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(SECRET)
    place(directory, "partial").parent.mkdir(parents=True)
    os.link(victim, place(directory, "partial"))
    keep(cache)
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("kind", ["blobs", "partial"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(
    cache: BlobCache, directory: Path, tmp_path: Path, kind: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "sha256").mkdir(parents=True)
    (elsewhere / "sha256" / DIGEST.encoded).write_bytes(DATA)
    shutil.rmtree(directory / "v1" / kind, ignore_errors=True)
    (directory / "v1" / kind).symlink_to(elsewhere)
    assert content(cache) is None
    with pytest.raises(CacheFailure):
        keep(cache)
    assert [path.name for path in elsewhere.rglob("*")] == ["sha256", DIGEST.encoded]


def test_a_file_of_another_size_is_ignored(cache: BlobCache, directory: Path) -> None:
    keep(cache)
    os.truncate(place(directory, "blobs"), len(DATA) - 1)
    assert content(cache) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("kind", ["blobs", "partial"])
def test_a_file_of_another_user_is_ignored(cache: BlobCache, directory: Path, kind: str) -> None:
    place(directory, kind).parent.mkdir(parents=True, exist_ok=True)
    place(directory, kind).write_bytes(DATA)
    os.chown(place(directory, kind), 65534, 65534)
    assert content(cache) is None
    assert held(cache) == set()
    with staged(cache) as blob:
        assert blob.resumed.total == 0
        blob.write(0, memoryview(bytes(len(DATA))))
    assert place(directory, kind).read_bytes() == DATA


@pytest.mark.parametrize("call", ["pwrite", "ftruncate"])
def test_a_full_disk_is_a_cache_failure(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(os, call, failing(errno.ENOSPC))
    with pytest.raises(CacheFailure, match="No space left"):
        keep(cache)


def test_a_size_beyond_the_disk_is_not_even_asked_of_it(
    cache: BlobCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A registry that makes a size up would fill the disk: ext4 keeps what it could allocate."""
    monkeypatch.setattr("epochfs.cache.staged_blob.allocate", lambda *_: pytest.fail("asked for"))
    blob = cache.stage(DIGEST, shutil.disk_usage(tmp_path).total + 1)
    try:
        with pytest.raises(CacheFailure, match="No space left"):
            blob.allocate()
        assert os.fstat(blob.fd).st_blocks * 512 <= PAGE
    finally:
        blob.close()


def test_a_directory_that_cannot_be_made_is_a_cache_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheFailure):
        opened(tmp_path / "file" / "cache")


def test_a_file_that_was_cut_under_a_reader_is_a_cache_failure(
    cache: BlobCache, directory: Path
) -> None:
    keep(cache)
    fd = cache.open(DIGEST, len(DATA))
    assert fd is not None
    os.truncate(place(directory, "blobs"), PAGE)
    with pytest.raises(CacheFailure, match="shorter than it was"):
        read(fd, len(DATA), 0)
    os.close(fd)
