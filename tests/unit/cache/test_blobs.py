"""The disk store: private, bounded, honest about what is on disk, and shared between processes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.builders import random_bytes
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
from epochfs.oci.names import Digest

directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)


class TestKeeping:
    def test_a_kept_blob_comes_back_also_after_a_restart(self, directory: Path) -> None:
        keep(opened(directory))
        assert content(opened(directory)) == DATA

    def test_what_was_never_kept_is_not_there(self, cache: BlobCache) -> None:
        assert content(cache) is None
        assert cache.cached_bytes(DIGEST) == 0

    def test_a_staged_blob_is_not_a_kept_one(self, cache: BlobCache) -> None:
        with staged(cache) as blob:
            blob.write(0, memoryview(DATA))
            assert content(cache) is None

    def test_only_a_kept_blob_is_complete(self, cache: BlobCache) -> None:
        with staged(cache) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, len(DATA))]))
            assert cache.cached_bytes(DIGEST) == len(DATA)
            assert not cache.is_complete(DIGEST, len(DATA))
            blob.promote()
        assert cache.is_complete(DIGEST, len(DATA))
        assert not cache.is_complete(DIGEST, len(DATA) + 1)

    def test_asking_whether_a_blob_is_complete_does_not_count_as_a_use(
        self, cache: BlobCache, directory: Path
    ) -> None:
        keep(cache)
        os.utime(place(directory, "blobs"), (7, 7))
        assert cache.is_complete(DIGEST, len(DATA))
        assert place(directory, "blobs").stat().st_mtime == 7

    def test_a_discarded_blob_leaves_nothing(self, cache: BlobCache, directory: Path) -> None:
        with staged(cache) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, len(DATA))]))
            blob.discard()
        assert [path for path in directory.rglob("*") if path.is_file()] == []

    def test_a_reader_keeps_its_bytes_when_the_blob_is_removed(self, cache: BlobCache) -> None:
        keep(cache)
        fd = cache.open(DIGEST, len(DATA))
        assert fd is not None
        shutil.rmtree(cache.directory.path)
        assert read(fd, len(DATA), 0) == DATA
        os.close(fd)
        assert content(cache) is None
        keep(cache)
        assert content(cache) == DATA

    def test_a_blob_is_synced_before_it_counts_as_kept(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = recorded(monkeypatch, "fsync", "replace")
        keep(cache)
        assert done == ["fsync", "replace", "fsync"]

    def test_a_blob_larger_than_the_cache_is_not_kept(self, directory: Path) -> None:
        cache = opened(directory, limit=PAGE)
        keep(cache)
        assert held(cache) == set()


class TestResuming:
    def test_what_was_fetched_is_there_after_a_restart(self, directory: Path) -> None:
        with staged(opened(directory)) as blob:
            blob.write(PAGE, memoryview(DATA)[PAGE : 2 * PAGE])
            blob.checkpoint(RangeSet([(PAGE, 2 * PAGE)]))
        cache = opened(directory)
        assert cache.cached_bytes(DIGEST) == PAGE
        with staged(cache) as blob:
            assert list(blob.resumed) == [(PAGE, 2 * PAGE)]
            assert read(blob.fd, PAGE, PAGE) == DATA[PAGE : 2 * PAGE]

    def test_bytes_that_were_not_synced_are_never_claimed(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with staged(opened(directory)) as blob:
            blob.write(0, memoryview(DATA))
            monkeypatch.setattr(os, "fdatasync", failing(errno.EIO))
            with pytest.raises(CacheFailure):
                blob.checkpoint(RangeSet([(0, len(DATA))]))
        with staged(opened(directory)) as blob:
            assert blob.resumed.total == 0

    def test_the_bytes_are_synced_before_the_map_and_the_map_before_it_counts(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = recorded(monkeypatch, "fdatasync", "fsync", "replace")
        with staged(cache) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, PAGE)]))
        assert done == ["fdatasync", "fsync", "replace"]

    def test_bytes_without_a_map_are_not_there(self, directory: Path) -> None:
        with staged(opened(directory)) as blob:
            blob.write(0, memoryview(DATA))
        with staged(opened(directory)) as blob:
            assert blob.resumed.total == 0
            assert read(blob.fd, len(DATA), 0) == bytes(len(DATA))

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            '{"ranges": 7}',
            '{"ranges": [[0]]}',
            '{"ranges": [["a", "b"]]}',
            '{"ranges": [[-4096, 4096]]}',
            '{"ranges": [[0, 1000000000000]]}',
            '{"ranges": [[0, 1e400]]}',
            "[" * 100_000,
            "\udcff",
        ],
        ids=lambda text: ascii(text[:30]),
    )
    def test_a_damaged_map_vouches_for_nothing(self, directory: Path, text: str) -> None:
        with staged(opened(directory)) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, PAGE)]))
        place(directory, "partial", ".map").write_bytes(text.encode("utf-8", "surrogateescape"))
        with staged(opened(directory)) as blob:
            assert blob.resumed.total == 0

    def test_a_partial_blob_of_another_size_is_not_resumed(self, directory: Path) -> None:
        with staged(opened(directory)) as blob:
            blob.write(0, memoryview(DATA))
            blob.checkpoint(RangeSet([(0, len(DATA))]))
        shorter = opened(directory).stage(DIGEST, PAGE)
        assert shorter.resumed.total == 0
        shorter.close()

    def test_a_size_that_no_file_can_have_leaves_nothing_open(self, cache: BlobCache) -> None:
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - of names, not paths
        for _ in range(3):
            with pytest.raises(CacheFailure):
                cache.stage(DIGEST, 1 << 62)
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


class TestEviction:
    @pytest.fixture
    def blobs(self) -> list[bytes]:
        return [random_bytes(4 * PAGE, seed) for seed in range(5)]

    def test_what_was_used_longest_ago_goes_first(
        self, directory: Path, blobs: list[bytes]
    ) -> None:
        cache = opened(directory, limit=13 * PAGE)
        for data in blobs[:3]:
            aged(cache, keep(cache, data), seconds=100)
        assert content(cache, blobs[0]) is not None
        keep(cache, blobs[3])
        keep(cache, blobs[4])
        assert held(cache) == {Digest.of(blobs[index]) for index in (0, 3, 4)}

    def test_the_limit_holds_however_much_comes(self, directory: Path, blobs: list[bytes]) -> None:
        cache = opened(directory, limit=9 * PAGE)
        for data in blobs * 3:
            keep(cache, data)
            assert sum(entry.size for entry in cache.quota.entries()) <= 9 * PAGE

    def test_blobs_that_came_together_are_within_the_limit_once_the_next_comes(
        self, directory: Path, blobs: list[bytes]
    ) -> None:
        cache = opened(directory, limit=9 * PAGE)
        with contextlib.ExitStack() as closing:
            together = [closing.enter_context(staged(cache, data)) for data in blobs]
            for blob, data in zip(together, blobs, strict=True):
                blob.allocate()
                blob.write(0, memoryview(data))
            for blob in together:
                blob.promote()
                blob.close = lambda: None  # type: ignore[method-assign]
                os.close(blob.fd)
        keep(cache)
        assert sum(entry.size for entry in cache.quota.entries()) <= 9 * PAGE

    def test_what_a_partial_blob_has_already_needs_no_room(
        self, directory: Path, blobs: list[bytes]
    ) -> None:
        cache = opened(directory, limit=9 * PAGE)
        keep(cache, blobs[0])
        with staged(cache, blobs[1]) as blob:
            blob.write(0, memoryview(blobs[1]))
            blob.allocate()
            blob.promote()
        assert held(cache) == {Digest.of(data) for data in blobs[:2]}

    def test_a_blob_in_use_stays(self, directory: Path, blobs: list[bytes]) -> None:
        cache = opened(directory, limit=5 * PAGE)
        fd = cache.open(keep(cache, blobs[0]), len(blobs[0]))
        assert fd is not None
        keep(cache, blobs[1])
        assert content(cache, blobs[0]) == blobs[0]
        os.close(fd)
        keep(cache, blobs[2])
        assert content(cache, blobs[0]) is None

    def test_another_process_may_use_it(self, directory: Path, blobs: list[bytes]) -> None:
        cache, other = opened(directory, limit=5 * PAGE), opened(directory)
        fd = other.open(keep(cache, blobs[0]), len(blobs[0]))
        assert fd is not None
        keep(cache, blobs[1])
        assert content(other, blobs[0]) == blobs[0]
        os.close(fd)

    def test_a_blob_on_its_way_stays(self, directory: Path, blobs: list[bytes]) -> None:
        cache = opened(directory, limit=5 * PAGE)
        with staged(cache, blobs[0]) as blob:
            blob.write(0, memoryview(blobs[0]))
            keep(cache, blobs[1])
            blob.promote()
        assert content(cache, blobs[0]) == blobs[0]

    def test_an_abandoned_partial_blob_goes_with_its_map(
        self, directory: Path, blobs: list[bytes]
    ) -> None:
        cache = opened(directory)
        with staged(cache, blobs[0]) as blob:
            blob.write(0, memoryview(blobs[0]))
            blob.checkpoint(RangeSet([(0, PAGE)]))
        aged(cache, Digest.of(blobs[0]), seconds=100)
        keep(opened(directory, limit=5 * PAGE), blobs[1])
        names = {path.name for path in directory.rglob("*") if path.is_file()}
        assert names == {Digest.of(blobs[1]).encoded}

    def test_files_that_the_cache_did_not_write_are_left_alone(self, directory: Path) -> None:
        cache = opened(directory, limit=PAGE)
        keep(cache, b"small")
        foreign = place(directory, "blobs").parent / "README"
        foreign.write_bytes(bytes(10 * PAGE))
        cache.quota._scanned = 0
        cache.quota.make_room(PAGE)
        assert foreign.exists()


class TestTwoCachesOnOneDirectory:
    def test_what_one_keeps_the_other_has(self, directory: Path) -> None:
        one, other = opened(directory), opened(directory)
        keep(one)
        assert content(other) == DATA

    def test_both_may_fetch_the_same_blob(self, directory: Path) -> None:
        one, other = opened(directory), opened(directory)
        with staged(one) as first, staged(other) as second:
            first.write(0, memoryview(DATA))
            second.write(0, memoryview(bytes(PAGE)))
            assert read(first.fd, len(DATA), 0) == DATA
            second.checkpoint(RangeSet([(0, PAGE)]))
            second.promote()
            assert content(one) is None
            first.promote()
            second.discard()
        assert content(other) == DATA

    def test_a_blob_kept_at_the_moment_it_is_staged_again_is_not_touched(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one, other = opened(directory), opened(directory)
        first = one.stage(DIGEST, len(DATA))
        first.write(0, memoryview(DATA))
        lock = fcntl.flock

        def late(fd: int, how: int) -> None:
            """Let the other process finish between our opening of the file and our lock on it."""
            monkeypatch.setattr(fcntl, "flock", lock)
            first.promote()
            first.close()
            lock(fd, how)

        monkeypatch.setattr(fcntl, "flock", late)
        with staged(other) as second:
            second.write(0, memoryview(bytes(len(DATA))))
            assert content(one) == DATA


def aged(cache: BlobCache, digest: Digest, seconds: float) -> None:
    """Make a file of the cache look as if it was last used some time before it was."""
    for path in cache.directory.path.rglob(f"{digest.encoded}*"):
        then = path.stat().st_mtime - seconds
        os.utime(path, (then, then))


def recorded(monkeypatch: pytest.MonkeyPatch, *names: str) -> list[str]:
    """Note the calls of functions of `os` in the list that is returned."""
    calls: list[str] = []

    def noting(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def call(*arguments: object, **named: object) -> Any:
            calls.append(name)
            return real(*arguments, **named)

        return call

    for name in names:
        monkeypatch.setattr(os, name, noting(name))
    return calls
