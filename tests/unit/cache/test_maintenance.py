"""Looking after a cache: what is counted, found bad, removed, and left because it is in use."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from pathlib import Path

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
    staged,
)

from epochfs.cache import maintenance
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import CacheUser, announced, users
from epochfs.cache.maintenance import BadBlob
from epochfs.cache.quota import BLOBS
from epochfs.cache.staged_blob import RangeSet
from epochfs.oci.names import Digest

OTHER = random_bytes(2 * PAGE, 7)
DAY = 86400.0


directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)


@pytest.fixture
def user(cache: BlobCache) -> Iterator[CacheUser]:
    """A mount that uses the cache."""
    one = CacheUser(os.getpid(), "/mnt", "http://registry", 1 << 30)
    with announced(cache.directory, one):
        yield one


def index_of_a_layer(cache: BlobCache) -> Path:
    """Return where the index of a layer may be."""
    with cache.directory.opened("layers", DIGEST.algorithm):
        return cache.directory.path / "v1/layers" / DIGEST.algorithm / f"{DIGEST.encoded}.1"


def leave_partial(cache: BlobCache, data: bytes, age: float) -> None:
    """Leave a partial blob that was last written to `age` seconds ago."""
    with staged(cache, data) as blob:
        blob.write(0, memoryview(data)[:PAGE])
        blob.checkpoint(RangeSet([(0, PAGE)]))
    then = time.time() - age
    file = cache.directory.path / "v1" / "partial" / "sha256" / Digest.of(data).encoded
    os.utime(file, (then, then))


def verify(cache: BlobCache) -> tuple[list[BadBlob], int]:
    """The bad blobs, and how many bytes were hashed."""
    counts: list[int] = []
    entries = [entry for entry in cache.quota.entries() if entry.kind == BLOBS]
    return list(maintenance.verify(cache, entries, counts.append)), sum(counts)


def test_a_survey_counts_complete_and_partial_blobs(cache: BlobCache) -> None:
    keep(cache)
    leave_partial(cache, OTHER, age=DAY)
    found = maintenance.survey(cache)
    assert (found.complete.count, found.complete.size) == (1, 3 * PAGE)
    assert (found.partial.count, found.partial.size) == (1, PAGE)
    assert found.oldest == pytest.approx(time.time() - DAY, abs=60)
    assert found.users == []
    assert found.indexes.size == 0


def test_a_survey_counts_the_indexes_of_layers(cache: BlobCache) -> None:
    index_of_a_layer(cache).write_bytes(b"x")
    found = maintenance.survey(cache)
    assert (found.indexes.count, found.indexes.size) == (1, PAGE)
    assert found.complete.count == 0


def test_a_survey_names_the_mounts(cache: BlobCache, user: CacheUser) -> None:
    assert maintenance.survey(cache).users == [user]


def files_of_mounts(cache: BlobCache) -> list[str]:
    return sorted(path.name for path in (cache.directory.path / "v1" / "mounts").iterdir())


def leave_a_killed_mount(cache: BlobCache) -> None:
    with cache.directory.opened("mounts"):
        (cache.directory.path / "v1" / "mounts" / "1.00000000").write_text("{}")


def test_a_mount_that_was_killed_is_forgotten(cache: BlobCache) -> None:
    leave_a_killed_mount(cache)
    assert users(cache.directory) == []
    assert files_of_mounts(cache) == []


def test_a_mount_that_ends_leaves_no_file(cache: BlobCache) -> None:
    with announced(cache.directory, CacheUser(os.getpid(), "/mnt", "", 0)):
        assert len(files_of_mounts(cache)) == 1
    assert files_of_mounts(cache) == []


def test_the_next_mount_removes_what_killed_ones_have_left(
    cache: BlobCache, user: CacheUser
) -> None:
    leave_a_killed_mount(cache)
    with announced(cache.directory, CacheUser(os.getpid(), "/mnt2", "", 0)):
        assert "1.00000000" not in files_of_mounts(cache)
        assert len(users(cache.directory)) == 2
    assert users(cache.directory) == [user]


def test_users_of_a_cache_that_cannot_be_written_to_are_told(
    cache: BlobCache, user: CacheUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_a_killed_mount(cache)
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    assert users(cache.directory) == [user]


def test_what_cannot_be_removed_is_counted_with_its_reason(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(cache)
    monkeypatch.setattr(os, "unlink", failing(errno.EROFS))
    for removal in (maintenance.prune(cache, PAGE, DAY), maintenance.prune(cache, 0, DAY)):
        assert (removal.removed.count, removal.in_use.count) == (0, 0)
        assert (removal.failed.count, removal.failed.size) == (1, 3 * PAGE)
        assert removal.problem == "Read-only file system"
    assert removal.lacking == 3 * PAGE


def test_a_mount_whose_file_says_nothing_sensible_still_counts(
    cache: BlobCache, user: CacheUser
) -> None:
    [file] = (cache.directory.path / "v1" / "mounts").iterdir()
    for nonsense in ("", "[]", '{"pid": "x"}', "[" * 100_000):
        file.write_text(nonsense)
        assert len(users(cache.directory)) == 1


class TestVerify:
    def test_right_blobs_are_hashed_whole_and_stay(self, cache: BlobCache) -> None:
        for data in (DATA, OTHER):
            keep(cache, data)
        assert verify(cache) == ([], len(DATA) + len(OTHER))
        assert held(cache) == {DIGEST, Digest.of(OTHER)}

    @pytest.mark.parametrize("damage", ["flipped", "longer", "shorter"])
    def test_a_damaged_blob_is_named_and_removed(
        self, cache: BlobCache, directory: Path, damage: str
    ) -> None:
        keep(cache)
        keep(cache, OTHER)
        changed = {
            "flipped": DATA[:-1] + bytes([DATA[-1] ^ 1]),
            "longer": DATA + b"x",
            "shorter": DATA[:-1],
        }[damage]
        place(directory, BLOBS).write_bytes(changed)
        [bad], _ = verify(cache)
        assert bad == BadBlob(DIGEST, f"its bytes hash to {Digest.of(changed)}")
        assert held(cache) == {Digest.of(OTHER)}
        assert verify(cache)[0] == []

    def test_a_bad_blob_goes_also_under_a_reader(self, cache: BlobCache, directory: Path) -> None:
        keep(cache)
        fd = cache.open(DIGEST, len(DATA))
        assert fd is not None
        with place(directory, BLOBS).open("r+b") as file:
            file.write(b"wrong")
        assert [bad.digest for bad in verify(cache)[0]] == [DIGEST]
        os.close(fd)
        assert content(cache) is None

    def test_a_blob_that_was_evicted_meanwhile_is_not_bad(self, cache: BlobCache) -> None:
        keep(cache)
        entries = list(cache.quota.entries())
        assert cache.quota.evict(entries[0])
        assert list(maintenance.verify(cache, entries, lambda _: None)) == []


class TestPrune:
    def test_partial_blobs_that_nobody_came_back_for_go(self, cache: BlobCache) -> None:
        keep(cache)
        leave_partial(cache, OTHER, age=8 * DAY)
        leave_partial(cache, OTHER[1:], age=6 * DAY)
        removal = maintenance.prune(cache, None, 7 * DAY)
        assert (removal.removed.count, removal.removed.size) == (1, PAGE)
        assert held(cache) == {DIGEST, Digest.of(OTHER[1:])}

    def test_a_size_is_reached_by_what_was_used_longest_ago(self, cache: BlobCache) -> None:
        for age, data in enumerate((DATA, OTHER, OTHER[1:])):
            keep(cache, data)
            file = cache.directory.path / "v1" / BLOBS / "sha256" / Digest.of(data).encoded
            os.utime(file, (1000 + age, 1000 + age))
        removal = maintenance.prune(cache, 4 * PAGE, DAY)
        assert (removal.removed.count, removal.removed.size) == (1, 3 * PAGE)
        assert held(cache) == {Digest.of(OTHER), Digest.of(OTHER[1:])}

    def test_what_is_in_use_stays_and_is_counted(self, cache: BlobCache) -> None:
        keep(cache)
        fd = cache.open(DIGEST, len(DATA))
        assert fd is not None
        with staged(cache, OTHER) as blob:
            blob.write(0, memoryview(OTHER))
            removal = maintenance.prune(cache, 0, -DAY)
            assert (removal.removed.count, removal.in_use.count) == (0, 2)
            blob.promote()
        os.close(fd)
        assert content(cache, OTHER) == OTHER
        assert content(cache) == DATA


class TestClear:
    def test_everything_goes_but_what_is_another_versions(
        self, cache: BlobCache, directory: Path
    ) -> None:
        keep(cache)
        leave_partial(cache, OTHER, age=0)
        cache.directory.private_file("tags.sqlite")
        (directory / "v2").mkdir()
        (directory / "v2" / "blob").write_bytes(DATA)
        (directory / "notes.sqlite").touch()
        index_of_a_layer(cache).write_bytes(DATA)
        removal = maintenance.clear(cache)
        assert (removal.removed.count, removal.in_use.count) == (2, 0)
        left = {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}
        assert left == {"v2/blob", "notes.sqlite"}

    def test_a_mount_keeps_its_databases_and_what_it_has_open(
        self, cache: BlobCache, user: CacheUser
    ) -> None:
        keep(cache)
        keep(cache, OTHER)
        file, index = cache.directory.private_file("tags.sqlite"), index_of_a_layer(cache)
        index.touch()
        fd = cache.open(DIGEST, len(DATA))
        assert fd is not None
        removal = maintenance.clear(cache)
        os.close(fd)
        assert (removal.removed.count, removal.in_use.count) == (1, 1)
        assert removal.users == [user]
        assert file.exists()
        assert index.exists()
        assert held(cache) == {DIGEST}
