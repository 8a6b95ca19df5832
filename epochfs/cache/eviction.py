"""Evicts files of the cache until the rest fits: the oldest first, and none that somebody uses.

The age of a file is its mtime, which is set whenever it is used. A file's flock tells who uses it:
a user of whatever process holds it shared or exclusively, and eviction takes only what it can lock
alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from epochfs.cache.directory import READ_FLAGS, is_ours, unlink


class Evictable(Protocol):
    """What can be evicted: `size` is what it takes on disk in bytes, `used` when it last was."""

    @property
    def size(self) -> int: ...

    @property
    def used(self) -> float: ...


E = TypeVar("E", bound=Evictable)


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file by its name in its directory; `is_ours` unless others could have written to it."""

    name: str
    size: int
    used: float
    is_ours: bool


@dataclass(slots=True)
class Tally:
    """How many entries, and how many bytes they take on disk."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        """Count one more."""
        self.count += 1
        self.size += size


def evict_oldest(lacking: int, entries: Iterable[E], remove: Callable[[E], bool]) -> Tally:
    """Remove entries until `lacking` bytes are freed or none is left; return what went.

    `remove` returns False for one that stays, because somebody uses it.
    """
    gone = Tally()
    for entry in sorted(entries, key=lambda entry: entry.used):
        if gone.size >= lacking:
            break
        if remove(entry):
            gone.add(entry.size)
    return gone


def shrink(limit: int, entries: Iterable[E], remove: Callable[[E], bool]) -> int:
    """Remove entries until no more than `limit` bytes are left; return how many are."""
    found = list(entries)
    total = sum(entry.size for entry in found)
    return total - evict_oldest(total - limit, found, remove).size


def cached_files(directory: int) -> Iterator[CachedFile]:
    """Yield what is in an open directory, in no order. What goes away meanwhile is passed over."""
    with os.scandir(directory) as found:
        for file in found:
            with contextlib.suppress(OSError):
                status = file.stat(follow_symlinks=False)
                size = status.st_blocks * 512
                yield CachedFile(file.name, size, status.st_mtime, is_ours(status))


def remove_unused(directory: int, name: str, *companions: str) -> bool:
    """Remove a file, after its companions, unless somebody uses it; return whether it is gone.

    Raises OSError.
    """
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for one in (*companions, name):
            unlink(directory, one)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
