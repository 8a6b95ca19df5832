"""Keeps the cache's blobs, complete and partial, below the maximum cache size and off a full disk.

Locks: `Quota._lock` guards the running total of bytes only, and no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from epochfs.cache.blobs.blob_files import MAP_SUFFIX
from epochfs.cache.directory import CacheDirectory
from epochfs.cache.eviction import cached_files, evict_oldest, remove_unused, shrink
from epochfs.errors import InvalidName
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

BLOBS = "blobs"
PARTIAL = "partial"

_ALGORITHMS = ("sha256", "sha512")
_RESCAN_SECONDS = 30.0
_HOPELESS_SECONDS = 2.0
_STEP = 64 << 20
"""How many bytes are evicted at a time after a write that failed."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache: `size` is what it takes on disk in bytes, `used` when last opened."""

    kind: str
    digest: Digest
    size: int
    used: float


class Quota:
    """Keeps the entries of a cache below `size_limit` bytes in all, or below what the disk has.

    New bytes take precedence over the least recently used: a writer makes room first, and evicts
    some when the disk takes no more.
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

    def has_disk(self, wanted: int) -> bool:
        """Whether the disk has `wanted` bytes and an inode free, if need be after evicting.

        Nothing is evicted where evicting everything would not be enough. Raises OSError.
        """
        while (lacking := self._lacking(wanted)) > 0:
            entries = list(self.entries())
            if sum(entry.size for entry in entries) < lacking:
                return False
            if not evict_oldest(lacking, entries, self.evict).count:
                return False
        return True

    def _lacking(self, wanted: int) -> int:
        """Return how many bytes the disk lacks; a missing inode counts as one byte."""
        with self._directory.opened() as fd:
            disk = os.fstatvfs(fd)
        no_inode = disk.f_files > 0 and disk.f_favail == 0
        return max(wanted - disk.f_bavail * disk.f_frsize, int(no_inode))

    def evict_some(self) -> bool:
        """Evict the least recently used after a write that failed for lack of room.

        Returns whether anything went, so that another try is worthwhile. If nothing could go, the
        next calls return False at once for a moment.
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
            for algorithm in _ALGORITHMS:
                try:
                    with self._directory.opened(kind, algorithm) as directory:
                        yield from _entries(directory, kind, algorithm)
                except OSError as error:
                    log.debug("listing %s/%s of the cache: %s", kind, algorithm, error)

    def evict(self, entry: Entry) -> bool:
        """Remove one entry unless somebody uses it; return whether it is gone."""
        try:
            return self.remove(entry)
        except OSError as error:
            log.debug("cannot evict %s from the cache: %s", entry.digest, error)
            return False

    def remove(self, entry: Entry) -> bool:
        """Remove one entry unless somebody uses it; return whether it is gone. Raises OSError."""
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
