"""Eviction: the oldest goes first, no more than has to, and nothing that somebody uses."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from epochfs.cache.quota import CachedFile, cached_files, evict_oldest, remove_unused, shrink


def entries(*sizes: int) -> list[CachedFile]:
    """Return files of these sizes, the one used last first."""
    return [CachedFile(f"{size}", size, -age, True) for age, size in enumerate(sizes)]


def removing(gone: list[int], *, staying: int = -1) -> Callable[[CachedFile], bool]:
    """Return what removes files, but for those of one size, and notes the sizes that went."""

    def remove(file: CachedFile) -> bool:
        if file.size != staying:
            gone.append(file.size)
        return file.size != staying

    return remove


@pytest.mark.parametrize(
    ("lacking", "went"),
    [(-1, []), (0, []), (1, [8]), (8, [8]), (9, [8, 4]), (12, [8, 4]), (99, [8, 4, 2, 1])],
)
def test_the_oldest_go_until_enough_is_free(lacking: int, went: list[int]) -> None:
    gone: list[int] = []
    tally = evict_oldest(lacking, entries(1, 2, 4, 8), removing(gone))
    assert gone == went
    assert (tally.count, tally.size) == (len(went), sum(went))


def test_what_stays_frees_nothing_and_the_next_goes_instead() -> None:
    gone: list[int] = []
    assert evict_oldest(5, entries(1, 2, 4, 8), removing(gone, staying=8)).size == 6
    assert gone == [4, 2]


@pytest.mark.parametrize(("limit", "left"), [(99, 15), (15, 15), (14, 7), (6, 3), (0, 0), (-1, 0)])
def test_the_rest_is_within_the_limit(limit: int, left: int) -> None:
    assert shrink(limit, entries(1, 2, 4, 8), removing([])) == left


def test_what_is_in_use_is_counted_as_left() -> None:
    assert shrink(0, entries(1, 2, 4, 8), removing([], staying=4)) == 4


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    for name in ("blob", "blob.map"):
        (tmp_path / name).write_bytes(b"1")
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def names(directory: int) -> set[str]:
    return {file.name for file in cached_files(directory)}


@pytest.mark.parametrize("lock", [fcntl.LOCK_SH, fcntl.LOCK_EX])
def test_a_file_that_somebody_has_locked_stays_with_its_companions(
    directory: int, lock: int
) -> None:
    fd = os.open("blob", os.O_RDONLY, dir_fd=directory)
    fcntl.flock(fd, lock)
    assert not remove_unused(directory, "blob", "blob.map")
    assert names(directory) == {"blob", "blob.map"}
    os.close(fd)
    assert remove_unused(directory, "blob", "blob.map", "blob.map.new")
    assert names(directory) == set()


def test_a_file_that_is_gone_already_is_removed(directory: int) -> None:
    assert remove_unused(directory, "another")
