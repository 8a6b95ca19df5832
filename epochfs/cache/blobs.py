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

What is written to the mount is staged without a name (`cache.written_file`), and may get one in
`blobs/` once its digest is known.

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
from dataclasses import dataclass
from functools import partial

from epochfs.cache.directory import READ_FLAGS, CacheDirectory, cache_errors, is_ours, unnamed_file
from epochfs.cache.quota import BLOBS, PARTIAL, Quota
from epochfs.cache.staged_blob import StagedBlob, read_map
from epochfs.cache.written_file import WrittenFile
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

_STAGED_DESCRIPTORS = 2
_LEAST_ROOM = 1 << 20
"""With less free disk than this, or than the blob's size, no download to disk begins."""

_SHARE = 4
"""The cache holds up to a quarter of the files the process may have open. The rest is for
connections, the kernel's requests and short-lived files. A caller that gets no descriptor does
without one: no read fails because others have many files open."""

_WRITTEN_SHARE = 8
_FEWEST_WRITTEN = 4
"""A file that is written cannot do without a descriptor. An eighth more, and at least four, are for
such files alone, so that no reader keeps a writer from beginning."""

_MOMENTARY_SHARE = 32
_FEWEST = 2
"""A thirty-second more, and at least two, may be open for the time of a read."""


class BlobCache:
    """The blobs on disk. Raises CacheFailure, and nothing else, for errors of the disk."""

    def __init__(self, options: CacheOptions) -> None:
        self.directory = CacheDirectory(options.directory, off=options.off)
        self.quota = Quota(self.directory, options.size_limit)
        limit = open_files_limit()
        self._descriptors = threading.BoundedSemaphore(limit // _SHARE)
        self._momentary = threading.BoundedSemaphore(max(_FEWEST, limit // _MOMENTARY_SHARE))
        self._written = threading.BoundedSemaphore(max(_FEWEST_WRITTEN, limit // _WRITTEN_SHARE))
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
        fd = None
        if self._descriptors.acquire(blocking=False):
            fd = self.open(digest, size)
            if fd is None:
                self._descriptors.release()
                return None
        elif not self.is_complete(digest, size):
            return None
        return CachedBlob(
            fd, self._descriptors.release, partial(self.open, digest, size), self._momentary
        )

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
        with contextlib.ExitStack() as closing, cache_errors("staging a blob"):
            for _ in range(_STAGED_DESCRIPTORS):
                if not self._descriptors.acquire(blocking=False):
                    raise OSError(errno.EMFILE, "too many are open")
                closing.callback(self._descriptors.release)
            directory = closing.enter_context(self.directory.opened(PARTIAL, digest.algorithm))
            self.quota.make_room(0)
            self.quota.make_disk_room(directory, min(size, _LEAST_ROOM))
            return StagedBlob(self.directory, self.quota, directory, digest, size, closing)

    def scratch(self, size: int) -> int:
        """Return a new, empty file for `size` bytes that can be made again; the caller closes it.

        It has no name and ends with its last descriptor. Room is made for it, but it does not count
        towards the cache's size.
        """
        with cache_errors("making a file to work in"), self.directory.opened(PARTIAL) as directory:
            self.quota.make_room(size)
            return unnamed_file(directory)

    def new_file(self) -> WrittenFile:
        """Return a new, empty file for what is written to the mount; the caller closes it.

        Raises NoRoom where the disk is full, and CacheFailure where there is no cache, it cannot be
        written to, or too many such files are open.
        """
        if not self._written.acquire(blocking=False):
            raise CacheFailure(
                "too many files are being written at once: let more be open (ulimit -n)"
            ) from OSError(errno.EMFILE)
        with contextlib.ExitStack() as closing:
            closing.callback(self._written.release)
            return WrittenFile(self.directory, self.quota, closing)

    def room(self) -> tuple[int, int]:
        """Return how many bytes the cache's disk has in all, and how many are free to us."""
        with cache_errors("looking at the cache's disk"), self.directory.opened() as directory:
            disk = os.fstatvfs(directory)
        return disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """An open complete blob, read by a descriptor that keeps it from being evicted.

    Where there are too few descriptors to hold one, each read calls `open_file`, which returns None
    once the blob was evicted, with one of the `momentary` descriptors. `fd` is closed with this;
    then `release` is called. Raises CacheFailure.
    """

    fd: int | None
    release: Callable[[], None]
    open_file: Callable[[], int | None]
    momentary: threading.Semaphore

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes at `offset`."""
        if self.fd is not None:
            read_exactly(self.fd, view, offset)
            return
        with self.momentary:
            fd = self.open_file()
            if fd is None:
                raise CacheFailure("a cached blob was evicted")
            try:
                read_exactly(fd, view, offset)
            finally:
                os.close(fd)

    def close(self) -> None:
        if self.fd is not None:
            os.close(self.fd)
            self.release()


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the file's bytes at `offset`; raises CacheFailure if it has fewer."""
    with cache_errors("reading a blob"):
        while view:
            count = os.preadv(fd, [view], offset)
            if not count:
                raise CacheFailure("a cached blob is shorter than it was")
            view, offset = view[count:], offset + count


def check_size(fd: int, least: int) -> None:
    """Raise CacheFailure if a file has fewer bytes than this."""
    with cache_errors("reading a blob"):
        if os.fstat(fd).st_size < least:
            raise CacheFailure("a cached blob is shorter than it was")


def open_files_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 20
