"""Keeps the cache below its maximum size, and off a full disk, by evicting the least recently used.

The age of a file is its mtime, which is set at each use; its flock tells who uses it (see
`cache.blobs`).

Locks: `Quota._lock` guards the running total of bytes only, and no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from epochfs.cache.directory import READ_FLAGS, CacheDirectory, is_ours, unlink
from epochfs.errors import InvalidName
from epochfs.oci.names import ALGORITHMS, Digest

log = logging.getLogger(__name__)

BLOBS = "blobs"
PARTIAL = "partial"
MAP_SUFFIX = ".map"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_RESCAN_SECONDS = 30.0
_HOPELESS_SECONDS = 2.0
_STEP = 64 << 20
"""How many bytes are evicted at a time after a write that failed."""


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A file in an open directory: `size` is what it takes on disk in bytes, `used` when it was
    last used. Not `is_ours` if others could have written to it.
    """

    name: str
    size: int
    used: float
    is_ours: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """A blob in the cache, with its size and last use."""

    kind: str
    digest: Digest
    size: int
    used: float


E = TypeVar("E", CachedFile, Entry)
T = TypeVar("T")


@dataclass(slots=True)
class Tally:
    """How many entries, and how many bytes they take on disk."""

    count: int = 0
    size: int = 0

    def add(self, size: int) -> None:
        self.count += 1
        self.size += size


class Quota:
    """Keeps the blobs of a cache, complete and partial, below `size_limit` bytes in all.

    New bytes take precedence over the least recently used: a writer makes room first, and evicts
    more when the disk is full.
    """

    def __init__(self, directory: CacheDirectory, size_limit: int) -> None:
        self.size_limit = size_limit
        self._directory = directory
        self._lock = threading.Lock()
        self._total = 0
        self._scanned = 0.0
        self._hopeless_until = 0.0

    def make_room(self, wanted: int) -> None:
        """Evict the least recently used until `wanted` more bytes fit, or nothing is left.

        A blob that alone is over the limit evicts no other: it stays only while it is in use.
        """
        if wanted > self.size_limit:
            return
        if self._total + wanted <= self.size_limit and time.monotonic() < self._scanned:
            return
        entries = []
        for entry in self.entries():
            if entry.size <= self.size_limit:
                entries.append(entry)
            else:
                self.evict(entry)
        total = shrink(self.size_limit - wanted, entries, self.evict)
        with self._lock:
            self._total = total
            self._scanned = time.monotonic() + _RESCAN_SECONDS

    def make_disk_room(self, fd: int, wanted: int) -> None:
        """Evict until the disk that holds an open file has `wanted` bytes and an inode free.

        Raises OSError (ENOSPC) if that cannot be; nothing is evicted where evicting everything
        would not be enough.
        """
        while (lacking := _lacking(fd, wanted)) > 0:
            entries = list(self.entries())
            is_enough = sum(entry.size for entry in entries) >= lacking
            if not is_enough or not evict_oldest(lacking, entries, self.evict).count:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def evicting(self, call: Callable[[], T]) -> T:
        """Return what a call to the disk does, evicting for as long as that has no room for it."""
        while True:
            try:
                return call()
            except OSError as error:
                if error.errno not in NO_ROOM or not self.evict_some():
                    raise

    def evict_some(self) -> bool:
        """Evict the least recently used after a write that found no room.

        Returns whether anything went, so that another try is worthwhile. If nothing could go, calls
        in the next moments return False at once.
        """
        if time.monotonic() < self._hopeless_until:
            return False
        if evict_oldest(_STEP, self.entries(), self.evict).count:
            return True
        self._hopeless_until = time.monotonic() + _HOPELESS_SECONDS
        return False

    def account(self, size: int) -> None:
        """Count `size` more bytes as held."""
        with self._lock:
            self._total += size

    def held(self) -> int:
        """Return how many bytes the cache holds: as last scanned, plus what came since."""
        if not self._scanned:
            total = sum(entry.size for entry in self.entries())
            with self._lock:
                self._total = total
                self._scanned = time.monotonic()
        return self._total

    def entries(self) -> Iterator[Entry]:
        """Yield what the cache holds, in no order. Files it did not write are skipped."""
        for kind in (BLOBS, PARTIAL):
            for algorithm in ALGORITHMS:
                try:
                    with self._directory.opened(kind, algorithm, make=False) as directory:
                        yield from _entries(directory, kind, algorithm)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    log.debug("listing %s/%s of the cache: %s", kind, algorithm, error)

    def evict(self, entry: Entry) -> bool:
        """Remove an entry unless it is in use; return whether it is gone."""
        try:
            return self.remove(entry)
        except OSError as error:
            log.debug("cannot evict %s from the cache: %s", entry.digest, error)
            return False

    def remove(self, entry: Entry) -> bool:
        """Remove an entry unless it is in use; return whether it is gone. Raises OSError."""
        name = entry.digest.encoded
        suffixes = (MAP_SUFFIX, f"{MAP_SUFFIX}.new") if entry.kind == PARTIAL else ()
        try:
            with self._directory.opened(entry.kind, entry.digest.algorithm) as directory:
                gone = remove_unused(directory, name, *(name + suffix for suffix in suffixes))
        except FileNotFoundError:
            return True
        if gone:
            log.debug("evicted %s, %d bytes", entry.digest, entry.size)
        return gone


def _entries(directory: int, kind: str, algorithm: str) -> Iterator[Entry]:
    for file in cached_files(directory):
        with contextlib.suppress(InvalidName):
            if file.is_ours:
                digest = Digest.parse(f"{algorithm}:{file.name}")
                yield Entry(kind, digest, file.size, file.used)


def _lacking(fd: int, wanted: int) -> int:
    """Return how many bytes a file's disk lacks; a missing inode counts as one byte."""
    disk = os.fstatvfs(fd)
    no_inode = disk.f_files > 0 and disk.f_favail == 0
    return max(wanted - disk.f_bavail * disk.f_frsize, int(no_inode))


def evict_oldest(lacking: int, entries: Iterable[E], remove: Callable[[E], bool]) -> Tally:
    """Remove the oldest entries until `lacking` bytes are freed or none is left; return what went.

    `remove` returns False for one that stays, because it is in use.
    """
    gone = Tally()
    for entry in sorted(entries, key=lambda entry: entry.used):
        if gone.size >= lacking:
            break
        if remove(entry):
            gone.add(entry.size)
    return gone


def shrink(limit: int, entries: Iterable[E], remove: Callable[[E], bool]) -> int:
    """Remove the oldest entries until no more than `limit` bytes are left; return how many are."""
    found = list(entries)
    total = sum(entry.size for entry in found)
    return total - evict_oldest(total - limit, found, remove).size


def cached_files(directory: int) -> Iterator[CachedFile]:
    """Yield the files of an open directory, in no order. One that vanishes is skipped."""
    with os.scandir(directory) as found:
        for file in found:
            with contextlib.suppress(OSError):
                status = file.stat(follow_symlinks=False)
                size = status.st_blocks * 512
                yield CachedFile(file.name, size, status.st_mtime, is_ours(status))


def remove_unused(directory: int, name: str, *companions: str) -> bool:
    """Remove a file, after its companions, unless it is in use; return whether it is gone.

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
