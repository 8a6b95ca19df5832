"""The store of blobs: opens complete ones and stages new ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets

from epochfs.cache.blobs.blob_files import read_map
from epochfs.cache.blobs.cached_blob import CachedBlob
from epochfs.cache.blobs.descriptors import Descriptors
from epochfs.cache.blobs.quota import BLOBS, PARTIAL, Quota
from epochfs.cache.blobs.staged_blob import StagedBlob
from epochfs.cache.directory import READ_FLAGS, CacheDirectory, cache_errors, is_ours, is_shortage
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

_STAGED_DESCRIPTORS = 2
_LEAST_ROOM = 1 << 20
"""With less free than this, or than the blob's size, no download to disk begins."""


class BlobCache:
    """The blobs on disk. Raises CacheFailure, and nothing else, for errors of the disk."""

    def __init__(self, options: CacheOptions) -> None:
        self.directory = CacheDirectory(options.directory)
        self.quota = Quota(self.directory, options.size_limit)
        self._descriptors = Descriptors()
        try:
            with cache_errors("opening the cache"):
                os.close(self.directory.open(BLOBS))
        except CacheFailure as error:
            if not is_shortage(error):
                raise
            self.directory.report(error)

    def open(self, digest: Digest, size: int) -> int | None:
        """Return a read-only descriptor of the complete blob, or None when it is not cached.

        The descriptor holds the blob against eviction until it is closed. A file of another size
        than `size` bytes, that others can write to, or that is no regular file counts as not
        cached.
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
        with contextlib.suppress(OSError):  # a disk that cannot be written to can be read
            os.utime(fd)
        return fd

    def open_blob(self, digest: Digest, size: int) -> CachedBlob | None:
        """Return the complete blob, or None when it is not cached.

        It is held against eviction until it is closed, unless too many are open already.
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
        """Whether the verified blob of `size` bytes is kept; asking does not count as a use."""
        with (
            contextlib.suppress(OSError),
            self.directory.opened(BLOBS, digest.algorithm) as directory,
        ):
            status = os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False)
            return is_ours(status) and status.st_size == size
        return False

    def cached_bytes(self, digest: Digest) -> int:
        """Return how many bytes of the blob the last sync left on disk, complete or partial."""
        with (
            contextlib.suppress(OSError),
            self.directory.opened(BLOBS, digest.algorithm) as directory,
        ):
            return os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False).st_size
        with (
            contextlib.suppress(OSError),
            self.directory.opened(PARTIAL, digest.algorithm) as directory,
        ):
            size = os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False).st_size
            return read_map(directory, digest, size).total
        return 0

    def stage(self, digest: Digest, size: int) -> StagedBlob:
        """Return a staged file for the blob's `size` bytes, with what an earlier try left in it."""
        if not self._descriptors.take(_STAGED_DESCRIPTORS):
            raise CacheFailure("staging a blob: too many are open") from OSError(errno.EMFILE)
        try:
            with cache_errors("staging a blob"):
                return self._stage(digest, size)
        except BaseException:
            self._descriptors.give_back(_STAGED_DESCRIPTORS)
            raise

    def _stage(self, digest: Digest, size: int) -> StagedBlob:
        self.quota.make_room(0)
        if not self.quota.has_disk(min(size, _LEAST_ROOM)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fd = self.directory.open(PARTIAL, digest.algorithm)
        try:
            return StagedBlob(
                self.directory,
                self.quota,
                fd,
                digest,
                size,
                lambda: self._descriptors.give_back(_STAGED_DESCRIPTORS),
            )
        except BaseException:
            os.close(fd)
            raise

    def scratch(self, size: int) -> int:
        """Return a new, empty file for `size` bytes that can be made again; the caller closes it.

        It has no name and ends with its last descriptor. Room is made for it, but it is not
        counted in what the cache holds.
        """
        with cache_errors("making a file to work in"), self.directory.opened(PARTIAL) as directory:
            self.quota.make_room(size)
            name = f"scratch.{secrets.token_hex(8)}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o600, dir_fd=directory)
            try:
                os.unlink(name, dir_fd=directory)
            except BaseException:
                os.close(fd)
                raise
            return fd
