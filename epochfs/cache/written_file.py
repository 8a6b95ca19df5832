"""A file that somebody writes to the mount: staged in the cache directory, hashed as it comes.

It is made without a name (O_TMPFILE), so that nothing of it survives the process, or a crash. Once
its bytes are known to be a blob's, `keep` links it among the complete blobs: no byte is copied.

The digest of what comes in order is ready with the last byte. What was written out of order is read
again when the digest is asked for, from the first byte that was not hashed; what was written twice,
from the first byte.

Locks: `_lock` guards the bookkeeping, and is a leaf; no I/O and no hashing happens under it.
`_moving` is taken before it, and held while the file becomes a blob of the cache, or is copied
because somebody writes to it after that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, BinaryIO

from epochfs.cache.directory import CacheDirectory, is_ours, unlink, unnamed_file
from epochfs.cache.quota import BLOBS, NO_ROOM, PARTIAL, Quota
from epochfs.cache.staged_blob import RangeSet, allocate
from epochfs.errors import CacheFailure, EpochfsError, NoRoom, TooLarge
from epochfs.oci.names import Digest

if TYPE_CHECKING:
    from hashlib import _Hash

    from _typeshed import WriteableBuffer

log = logging.getLogger(__name__)

_HASHED = "sha256"
_PIECE = 1 << 20
_NO_UNNAMED_FILES = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})
_END = 1 << 63
"""Beyond the end of any file."""


@dataclass(slots=True, eq=False)
class _Prefix:
    """The bytes hashed so far: those before `stop`. While `busy`, a thread hashes up to `end`."""

    hasher: _Hash = field(default_factory=lambda: hashlib.new(_HASHED))
    stop: int = 0
    end: int = 0
    busy: bool = False


class WrittenFile:
    """A file being written, from its first byte to the last. Any thread may call anything.

    It may be larger than the cache's limit, which holds for what is kept. Raises NoRoom where the
    disk is full though every cached blob that is not in use was evicted, TooLarge beyond what a
    file of the disk may have, and CacheFailure for any other error of the disk, or after `close`.
    """

    def __init__(self, cache: CacheDirectory, quota: Quota, closing: ExitStack) -> None:
        """What `closing` is to end is taken over from it, and ended with this."""
        self._cache = cache
        self._quota = quota
        self._lock = threading.Lock()
        self._moving = threading.Lock()
        self._size = 0
        self._reserved = 0
        self._written = RangeSet()
        self._prefix = _Prefix()
        self._digests: dict[str, Digest] = {}
        self._changes = 0
        self._changing_now: list[tuple[int, int]] = []
        self._kept = False
        self._uses = 0
        self._closed = False
        self._fd = self._new_file()
        closing.callback(os.close, self._fd)
        self._closing = closing.pop_all()

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        with self._lock:
            return self._size

    @property
    def is_whole(self) -> bool:
        """Whether all bytes that were reserved have been written."""
        with self._lock:
            return self._written.covers(0, self._reserved)

    def write(self, view: memoryview, offset: int) -> None:
        """Write all of `view` at `offset`, evicting cached blobs if there is no room."""
        stop = offset + len(view)
        if stop >= _END:
            raise TooLarge(f"a file cannot have {stop} bytes")
        with self._changing(offset, stop) as prefix:
            done = offset
            while done < stop:
                rest = view[done - offset :]
                written = self._quota.evicting(partial(os.pwrite, self._fd, rest, done))
                with self._lock:
                    self._written.add(done, done + written)
                    self._size = max(self._size, done + written)
                done += written
            if prefix is not None:
                prefix.hasher.update(view)
                prefix.stop = stop

    def truncate(self, size: int) -> None:
        """Cut the file to `size` bytes, or fill it with zeros up to there.

        Cutting it below what was reserved reserves no more than it then has.
        """
        with self._changing(size, _END):
            self._quota.evicting(partial(os.ftruncate, self._fd, size))
            with self._lock:
                self._size = size
                self._reserved = min(self._reserved, size)
                self._written = RangeSet(
                    (start, min(stop, size)) for start, stop in self._written if start < size
                )

    def reserve(self, stop: int) -> None:
        """Make room for all bytes before `stop`, which are to be written; the size stays.

        Raises NoRoom if they cannot fit, whatever is evicted.
        """
        with self._using("making room"):
            lacking = max(0, stop - os.fstat(self._fd).st_blocks * 512)
            # Checked first, as ext4 keeps what it allocated for a file that did not fit.
            self._quota.make_disk_room(self._fd, lacking)
            allocate(self._fd, stop, keep_size=True)
        with self._lock:
            self._reserved = max(self._reserved, stop)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` with the bytes at `offset`; return how many there were."""
        done = 0
        with self._using("reading"):
            while done < len(view):
                count = os.preadv(self._fd, [view[done:]], offset + done)
                if not count:
                    break
                done += count
        return done

    def read_all(self, limit: int) -> bytes:
        """Return all bytes; raises TooLarge if there are more than `limit`."""
        size = self.size
        if size > limit:
            raise TooLarge(f"a document of {size} bytes was written: the limit is {limit}")
        data = bytearray(size)
        return bytes(data[: self.read_into(memoryview(data), 0)])

    def reader(self) -> BinaryIO:
        """Return the file to read from its first byte, seekable, with a position of its own."""
        return io.BufferedReader(_Reader(self), _PIECE)

    def digest(self, algorithm: str) -> Digest:
        """Return the digest of all bytes, by sha256 or sha512.

        It is that of no moment if somebody writes meanwhile.
        """
        with self._lock:
            if algorithm in self._digests:
                return self._digests[algorithm]
            changes, size, prefix = self._changes, self._size, self._prefix
            hasher, hashed = hashlib.new(algorithm), 0
            if algorithm == _HASHED and not prefix.busy:
                hasher, hashed = prefix.hasher.copy(), prefix.stop
        buffer = memoryview(bytearray(min(_PIECE, size - hashed)))
        while hashed < size:
            count = self.read_into(buffer[: size - hashed], hashed)
            if not count:
                break
            hasher.update(buffer[:count])
            hashed += count
        found = Digest(algorithm, hasher.hexdigest())
        with self._lock:
            if changes == self._changes and not self._changing_now:
                self._digests[algorithm] = found
                if algorithm == _HASHED:
                    self._prefix = _Prefix(hasher, size, size)
        return found

    def keep(self, digest: Digest) -> None:
        """Make the file a complete blob of the cache if it has this digest and there is room.

        A file over the cache's limit is not kept. Failure is logged. What is written later goes to
        a copy.
        """
        try:
            if self.digest(digest.algorithm) != digest:
                log.debug("what was written is not kept: it does not have the digest %s", digest)
                return
            with self._moving, self._using("keeping"):
                with self._lock:
                    is_still = self._digests.get(digest.algorithm) == digest
                    if self._kept or not is_still or self._size > self._quota.size_limit:
                        return
                    self._kept, size = True, self._size
                try:
                    self._link(digest, size)
                except BaseException:
                    with self._lock:
                        self._kept = False
                    raise
        except CacheFailure as error:
            log.debug("%s was written and is not kept in the cache: %s", digest, error)

    def close(self) -> None:
        """Close the file; readers of it fail from then on."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            is_unused = not self._uses
        if is_unused:
            self._closing.close()

    # ---- the file ----------------------------------------------------------------------------

    def _new_file(self) -> int:
        """Open a new file, in a directory that no link leads out of."""
        with (
            _errors("a file cannot be staged in --cache-dir"),
            self._cache.opened(PARTIAL) as directory,
        ):
            fd = self._quota.evicting(partial(_unnamed, directory))
            os.fchmod(fd, 0o600)
            return fd

    def _link(self, digest: Digest, size: int) -> None:
        """Give the file its name among the complete blobs. Nothing else is left by a crash."""
        self._quota.make_room(size)
        os.fsync(self._fd)
        fcntl.flock(self._fd, fcntl.LOCK_SH)  # as readers of blobs do: it is not evicted yet
        with self._cache.opened(BLOBS, digest.algorithm) as blobs:
            source = f"/proc/self/fd/{self._fd}"
            try:
                os.link(source, digest.encoded, dst_dir_fd=blobs, follow_symlinks=True)
            except FileExistsError:
                status = os.stat(digest.encoded, dir_fd=blobs, follow_symlinks=False)
                if is_ours(status) and status.st_size == size:
                    return
                unlink(blobs, digest.encoded)
                os.link(source, digest.encoded, dst_dir_fd=blobs, follow_symlinks=True)
            os.fsync(blobs)
        self._quota.account(size)

    def _leave(self) -> None:
        """Go on with a copy, as the file is a blob of the cache, which may not change."""
        with self._moving, self._using("copying"):
            if not self._kept:
                return
            copy = self._new_file()
            try:
                buffer, done = memoryview(bytearray(_PIECE)), 0
                while count := os.preadv(self._fd, [buffer], done):
                    done += self._quota.evicting(partial(os.pwrite, copy, buffer[:count], done))
                # Reads under way end in the old file, whose bytes are the same.
                os.dup2(copy, self._fd, inheritable=False)
            finally:
                os.close(copy)
            with self._lock:
                self._kept = False

    # ---- who does what -----------------------------------------------------------------------

    @contextlib.contextmanager
    def _using(self, doing: str) -> Iterator[None]:
        """Keep the descriptor open until the end, and turn the disk's errors into ours."""
        with self._lock:
            if self._closed:
                raise CacheFailure(f"{doing} what was written: it was closed")
            self._uses += 1
        try:
            with _errors(f"{doing} what was written"):
                yield
        finally:
            with self._lock:
                self._uses -= 1
                is_last = self._closed and not self._uses
            if is_last:
                self._closing.close()

    @contextlib.contextmanager
    def _changing(self, start: int, stop: int) -> Iterator[_Prefix | None]:
        """Change `[start, stop)` meanwhile; yield the hashed prefix if they are what follows it.

        It is begun anew if some of it changes. Where two threads write the same bytes, nobody knows
        which will be there: they are read again.
        """
        with self._using("writing"):
            prefix = self._begin(start, stop)
            try:
                yield prefix
            finally:
                with self._lock:
                    self._changing_now.remove((start, stop))
                    self._changes += 1
                    if prefix is not None:
                        prefix.busy, prefix.end = False, prefix.stop

    def _begin(self, start: int, stop: int) -> _Prefix | None:
        while True:
            with self._lock:
                if not self._kept:
                    return self._claim(start, stop)
            self._leave()

    def _claim(self, start: int, stop: int) -> _Prefix | None:
        """Begin a change; return the prefix if the caller is to hash on. The lock is held."""
        is_shared = any(one < stop and start < end for one, end in self._changing_now)
        if start < self._prefix.end:
            self._prefix = _Prefix()
        self._digests.clear()
        self._changing_now.append((start, stop))
        prefix = self._prefix
        if is_shared or prefix.busy or prefix.stop != start:
            return None
        prefix.busy, prefix.end = True, stop
        return prefix


class _Reader(io.RawIOBase):
    """Reads a WrittenFile from a position of its own."""

    def __init__(self, file: WrittenFile) -> None:
        self._file = file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        count = self._file.read_into(memoryview(buffer).cast("B"), self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = max(0, start + offset)
        return self._position


def _unnamed(directory: int) -> int:
    """Open a new file without a name, one that can be linked where the file system has such."""
    try:
        return os.open(".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
    return unnamed_file(directory)


@contextlib.contextmanager
def _errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the disk into the error that a writer is to get."""
    try:
        yield
    except OSError as error:
        kind: type[EpochfsError] = CacheFailure
        if error.errno in NO_ROOM:
            kind = NoRoom
        elif error.errno == errno.EFBIG:
            kind = TooLarge
        raise kind(f"{doing}: {error.strerror or error}") from error
