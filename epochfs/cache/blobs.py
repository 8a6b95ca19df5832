"""Content-addressed blobs on the local disk: staged, verified, synced, renamed, evicted.

::

    <directory>/v1/blobs/<algorithm>/<encoded>        complete and verified
    <directory>/v1/partial/<algorithm>/<encoded>      staged bytes, sparse
    <directory>/v1/partial/<algorithm>/<encoded>.map  which of those bytes were on disk at a sync

A blob's digest is checked before it is renamed into `blobs/`, so a file there needs no other proof.
A map is written only after the bytes it names were synced. `cache.directory` decides who may enter,
and follows no planted link.

Several processes may share a directory. A file's `flock` tells who uses it: readers of a complete
blob hold a shared lock, and eviction takes only what it can lock exclusively; the writer of a
partial blob holds it exclusively, and a second writer stages privately instead.

A cache that cannot store something raises CacheFailure, and the caller does without it: cached
blobs stay readable, and others come from the registry each time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import threading
from collections.abc import Callable

from epochfs.cache.directory import (
    READ_FLAGS,
    CacheDirectory,
    cache_errors,
    is_ours,
    unnamed_file,
)
from epochfs.cache.quota import BLOBS, PARTIAL, Quota
from epochfs.cache.staged_blob import StagedBlob, read_map
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

_STAGED_DESCRIPTORS = 2
_LEAST_ROOM = 1 << 20
"""With less free disk than this, or than the blob's size, no download to disk begins."""

_SHARE = 4
_MOMENTARY_SHARE = 32
_FEWEST = 2


class BlobCache:
    """The blobs on disk. Raises CacheFailure, and nothing else, for errors of the disk."""

    def __init__(self, options: CacheOptions) -> None:
        self.directory = CacheDirectory(options.directory, off=options.off)
        self.quota = Quota(self.directory, options.size_limit)
        self._descriptors = _Descriptors()
        with self.directory.short_reported(), cache_errors("opening the cache"):
            os.close(self.directory.open(BLOBS))

    def open(self, digest: Digest, size: int) -> int | None:
        """Return a read-only descriptor of the complete blob, or None if it is not cached.

        The blob is not evicted until the descriptor is closed. A file whose size is not `size`
        bytes, that others can write to, or that is not a regular file counts as not cached.
        """
        try:
            with self.directory.opened(BLOBS, digest.algorithm) as directory:
                fd = os.open(digest.encoded, READ_FLAGS, dir_fd=directory)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if not is_ours(status) or status.st_size != size:
                raise OSError("not what the cache wrote")
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return None
        with contextlib.suppress(OSError):  # a read-only disk can still be read
            os.utime(fd)
        return fd

    def open_blob(self, digest: Digest, size: int) -> CachedBlob | None:
        """Return the complete blob, or None if it is not cached.

        It is not evicted until it is closed, unless too many are open already.
        """
        kept = self._descriptors.take()
        if not kept and not self.is_complete(digest, size):
            return None
        fd = self.open(digest, size) if kept else None
        if kept and fd is None:
            self._descriptors.give_back()
            return None
        return CachedBlob(self._descriptors, fd, lambda: self.open(digest, size))

    def is_complete(self, digest: Digest, size: int) -> bool:
        """Whether the verified blob of `size` bytes is cached; asking does not count as a use."""
        status = self.directory.status(BLOBS, digest.algorithm, digest.encoded)
        return status is not None and is_ours(status) and status.st_size == size

    def cached_bytes(self, digest: Digest) -> int:
        """Return how many bytes of the blob the last sync left on disk, complete or partial."""
        for kind in (BLOBS, PARTIAL):
            with (
                contextlib.suppress(OSError),
                self.directory.opened(kind, digest.algorithm) as directory,
            ):
                size = os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False).st_size
                return size if kind == BLOBS else read_map(directory, digest, size).total
        return 0

    def stage(self, digest: Digest, size: int) -> StagedBlob:
        """Return a staged file for the blob's `size` bytes, with what an earlier try left in it."""
        if not self._descriptors.take(_STAGED_DESCRIPTORS):
            raise CacheFailure("staging a blob: too many are open") from OSError(errno.EMFILE)
        with contextlib.ExitStack() as closing, cache_errors("staging a blob"):
            closing.callback(self._descriptors.give_back, _STAGED_DESCRIPTORS)
            directory = closing.enter_context(self.directory.opened(PARTIAL, digest.algorithm))
            self.quota.make_room(0)
            if not self.quota.has_disk(directory, min(size, _LEAST_ROOM)):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return StagedBlob(self.directory, self.quota, directory, digest, size, closing)

    def scratch(self, size: int) -> int:
        """Return a new, empty file for `size` bytes that can be made again; the caller closes it.

        It has no name and ends with its last descriptor. Room is made for it, but it does not count
        towards the cache's size.
        """
        with cache_errors("making a file to work in"), self.directory.opened(PARTIAL) as directory:
            self.quota.make_room(size)
            return unnamed_file(directory)


class CachedBlob:
    """An open complete blob, read by a descriptor that keeps it from being evicted.

    Where there are too few descriptors to hold one, each read calls `open_file`, which returns None
    once the blob was evicted. Raises CacheFailure.
    """

    def __init__(
        self, descriptors: _Descriptors, fd: int | None, open_file: Callable[[], int | None]
    ) -> None:
        """`fd` was taken from `descriptors`, and is closed with this."""
        self._descriptors = descriptors
        self._fd = fd
        self._open_file = open_file

    def fileno(self) -> int | None:
        """Return the descriptor, if there is one; valid until `close`."""
        return self._fd

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes at `offset`."""
        if self._fd is not None:
            read_exactly(self._fd, view, offset)
            return
        with self._descriptors.momentary:
            fd = self._open_file()
            if fd is None:
                raise CacheFailure("a cached blob was evicted")
            try:
                read_exactly(fd, view, offset)
            finally:
                os.close(fd)

    def close(self) -> None:
        """Close it; once."""
        if self._fd is not None:
            os.close(self._fd)
            self._descriptors.give_back()


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the file's bytes at `offset`; raises CacheFailure if it has fewer."""
    with cache_errors("reading a blob"):
        while view:
            count = os.preadv(fd, [view], offset)
            if not count:
                raise CacheFailure("a cached blob is shorter than it was")
            view, offset = view[count:], offset + count


def open_files_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 20


class _Descriptors:
    """Limits the cache to a quarter of the files the process may have open.

    The rest is for connections, the kernel's requests and short-lived files. A caller that gets no
    descriptor does without one: no read fails because others have many files open. `momentary` lets
    a few more be open for the time of a read.

    Locks: `_lock` guards the count, and is a leaf.
    """

    def __init__(self) -> None:
        limit = open_files_limit()
        self._lock = threading.Lock()
        self._left = limit // _SHARE
        self.momentary = threading.BoundedSemaphore(max(_FEWEST, limit // _MOMENTARY_SHARE))

    def take(self, count: int = 1) -> bool:
        """Take `count` descriptors, if that many are left; return whether."""
        with self._lock:
            if self._left < count:
                return False
            self._left -= count
            return True

    def give_back(self, count: int = 1) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += count
