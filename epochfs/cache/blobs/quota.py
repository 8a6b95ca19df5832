"""How much the cache holds, and what goes when it would be too much.

Locks: `Room._lock` guards the running total of bytes only, and no I/O happens under it.
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


class Room:
    """The entries of a cache's directory, kept below `size_limit` bytes together.

    And fewer where the disk has no more for them: what is to come goes before what was used long
    ago, and whoever writes first asks for room, or for another try.
    """

    def __init__(self, directory: CacheDirectory, size_limit: int) -> None:
        self.size_limit = size_limit
        self._directory = directory
        self._lock = threading.Lock()
        self._total = 0
        self._scanned = 0.0
        self._hopeless_until = 0.0

    def make(self, wanted: int) -> None:
        """Evict what was used longest ago until `wanted` more bytes fit, or nothing is left to.

        What alone is over the limit makes nothing else go: it is here for as long as it is in use.
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
        """Whether the disk has `wanted` bytes free, and an inode, or has after evicting for it.

        Nothing goes where all that could go would not be enough. Raises OSError.
        """
        while (lacking := self._lacking(wanted)) > 0:
            entries = list(self.entries())
            if sum(entry.size for entry in entries) < lacking:
                return False
            if not evict_oldest(lacking, entries, self.evict).count:
                return False
        return True

    def _lacking(self, wanted: int) -> int:
        """Return how many bytes the disk has too few; one inode too few counts as one byte."""
        with self._directory.opened() as fd:
            disk = os.fstatvfs(fd)
        no_inode = disk.f_files > 0 and disk.f_favail == 0
        return max(wanted - disk.f_bavail * disk.f_frsize, int(no_inode))

    def give_way(self) -> bool:
        """After a write that the disk did not take, evict what was used longest ago.

        Returns whether anything went, so that it is worth another try. Where nothing could, that is
        not looked into again for a moment.
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
        """Return how many bytes the cache held when it was last looked at, and came since."""
        if not self._scanned:
            total = sum(entry.size for entry in self.entries())
            with self._lock:
                self._total = total
                self._scanned = time.monotonic()
        return self._total

    def entries(self) -> Iterator[Entry]:
        """Yield what the cache holds, in no order. Files it did not write are passed over."""
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
