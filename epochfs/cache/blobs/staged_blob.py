"""A blob being downloaded into the cache: the bytes on disk so far, and the step that keeps it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable

from epochfs.cache.blobs.blob_files import MAP_SUFFIX, allocate, read_map
from epochfs.cache.blobs.quota import BLOBS, Quota
from epochfs.cache.directory import CacheDirectory, cache_errors, is_ours, unlink
from epochfs.cache.ranges import RangeSet
from epochfs.oci.names import Digest

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


class StagedBlob:
    """A blob on its way into the cache: a sparse file of its size, and what is present in it.

    Used by one download. `write` may be called by many threads at once for ranges that do not
    overlap; the other methods by one thread at a time. Raises CacheFailure.
    """

    def __init__(
        self,
        cache: CacheDirectory,
        quota: Quota,
        directory: int,
        digest: Digest,
        size: int,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        """`directory` is the descriptor of the staged file's directory, and closed with it."""
        self._cache = cache
        self._quota = quota
        self._directory = directory
        self._digest = digest
        self._size = size
        self._on_close = on_close
        self._allocated = False
        self._fd, self._named = self._open()
        try:
            self.resumed = read_map(directory, digest, size) if self._named else RangeSet()
            if os.fstat(self._fd).st_size != size or not self.resumed.total:
                self.resumed = RangeSet()
                self._reset()
        except BaseException:
            os.close(self._fd)
            raise

    def _open(self) -> tuple[int, bool]:
        """Open the staged file: the blob's own, or one without a name while another writes that."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._digest.encoded, flags, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            # Before it was locked, its writer may have kept it: then the name is another's by now.
            named = os.stat(self._digest.encoded, dir_fd=self._directory, follow_symlinks=False)
            if is_ours(status) and status.st_nlink == 1 and os.path.samestat(status, named):
                os.fchmod(fd, 0o600)
                return fd, True
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        name = f"{self._digest.encoded}.{secrets.token_hex(8)}"
        fd = os.open(name, flags | os.O_EXCL, 0o600, dir_fd=self._directory)
        os.unlink(name, dir_fd=self._directory)
        return fd, False

    def fileno(self) -> int:
        """Return the descriptor of the staged file, valid until `close`."""
        return self._fd

    def _reset(self) -> None:
        self.forget()
        with cache_errors("staging a blob"):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._size)

    def forget(self) -> None:
        """Let no later download take any byte here for present."""
        with cache_errors("staging a blob"):
            self._unlink(MAP_SUFFIX)

    def allocate(self) -> None:
        """Make room for the whole blob, on disk and in the cache's limit, before it is written.

        Raises CacheFailure where the disk has no room for it, whatever is evicted.
        """
        if self._allocated or not self._size:
            return
        with cache_errors(f"making room for {self._size} bytes"):
            self._quota.make_room(max(0, self._size - self._held()))
            # Counted first: ext4 keeps what it found for a file that did not fit, and a size that
            # a registry made up would fill the disk.
            if not self._quota.has_disk(max(0, self._size - self._held())):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            allocate(self._fd, self._size)
            self._allocated = True

    def _held(self) -> int:
        """Return how many bytes the file takes on disk."""
        return os.fstat(self._fd).st_blocks * 512

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`; what was used long ago goes where there is no room."""
        with cache_errors("writing a blob"):
            while view:
                try:
                    written = os.pwrite(self._fd, view, offset)
                except OSError as error:
                    if error.errno not in _NO_ROOM or not self._quota.evict_some():
                        raise
                else:
                    view, offset = view[written:], offset + written

    def checkpoint(self, present: RangeSet) -> None:
        """Make what is present outlive a crash: sync the bytes, then the map that names them."""
        if not self._named or not present.total:
            return
        with cache_errors("saving a partial blob"):
            os.fdatasync(self._fd)
            name = self._digest.encoded + MAP_SUFFIX
            text = json.dumps({"ranges": list(present)})
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(f"{name}.new", flags, 0o600, dir_fd=self._directory)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                os.fchmod(fd, 0o600)
                file.write(text)
                file.flush()
                os.fsync(fd)
            os.replace(f"{name}.new", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.utime(self._fd)

    def promote(self) -> None:
        """Move the verified blob among the complete ones, synced first; readers keep their bytes.

        A blob larger than the cache's whole limit is not kept, nor one that has no name because
        another process keeps it.
        """
        if self._size > self._quota.size_limit:
            self.discard()
        if not self._named:
            return
        name = self._digest.encoded
        with cache_errors("keeping a blob"):
            os.fsync(self._fd)
            blobs = self._cache.open(BLOBS, self._digest.algorithm)
            try:
                os.replace(name, name, src_dir_fd=self._directory, dst_dir_fd=blobs)
                os.fsync(blobs)
            finally:
                os.close(blobs)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            self._unlink(MAP_SUFFIX)
            self._named = False
            self._quota.account(self._size)

    def discard(self) -> None:
        """Remove the staged file's name and map; open readers keep what they have."""
        with cache_errors("discarding a blob"):
            self._unlink(MAP_SUFFIX)
            self._unlink()
            self._named = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        os.close(self._directory)
        self._on_close()

    def _unlink(self, suffix: str = "") -> None:
        if self._named:
            unlink(self._directory, self._digest.encoded + suffix)
