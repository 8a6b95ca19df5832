"""A blob being downloaded into the cache: which bytes are on disk, and the step that keeps it."""

from __future__ import annotations

import ctypes
import fcntl
import json
import logging
import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from functools import partial

from epochfs.cache.directory import (
    READ_FLAGS,
    CacheDirectory,
    cache_errors,
    is_ours,
    unlink,
    unnamed_file,
)
from epochfs.cache.quota import BLOBS, MAP_SUFFIX, Quota
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)


class RangeSet:
    """Disjoint half-open byte ranges `[start, stop)` in rising order, adjacent ones joined.

    They tell which parts of a blob are present. Pure; the caller locks.
    """

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        if isinstance(ranges, RangeSet):
            self._starts += ranges._starts
            self._stops += ranges._stops
        else:
            for start, stop in ranges:
                self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add `[start, stop)`; an empty one adds nothing. Raises ValueError below 0."""
        if start < 0:
            raise ValueError("a range starts before 0")
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def end_of_run(self, offset: int) -> int:
        """Return where the present bytes that begin at `offset` end; `offset` if it is absent."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of `[start, stop)` is present."""
        index = bisect_right(self._starts, start) - 1
        return start >= stop or (index >= 0 and self._stops[index] >= stop)

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the absent parts of `[start, stop)` in rising order."""
        index = bisect_right(self._stops, start)
        while start < stop:
            begin, end = stop, stop
            if index < len(self._starts):
                begin, end = self._starts[index], self._stops[index]
            if start < begin:
                yield start, min(begin, stop)
            start, index = end, index + 1

    @property
    def total(self) -> int:
        """How many bytes are present."""
        return sum(self._stops) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))


class StagedBlob:
    """A blob on its way into the cache: a sparse file of its size, open as `fd` until `close`.

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
        closing: ExitStack,
    ) -> None:
        """`directory` is the descriptor of the staged file's directory. What `closing` is to end is
        taken over from it, and ended with this."""
        self._cache = cache
        self._quota = quota
        self._directory = directory
        self._digest = digest
        self._size = size
        self._allocated = False
        self.fd, self._named = self._open()
        closing.callback(os.close, self.fd)
        self.resumed = read_map(directory, digest, size) if self._named else RangeSet()
        if os.fstat(self.fd).st_size != size or not self.resumed.total:
            self.resumed = RangeSet()
            self.forget()
            os.ftruncate(self.fd, 0)
            os.ftruncate(self.fd, size)
        self._closing = closing.pop_all()

    def _open(self) -> tuple[int, bool]:
        """Open the blob's staged file, or one without a name while another process writes that."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._digest.encoded, flags, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            # Its writer may have promoted it before it was locked: then another file has the name.
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
        return unnamed_file(self._directory), False

    def forget(self) -> None:
        """Make later downloads fetch every byte here again."""
        with cache_errors("staging a blob"):
            self._unlink(MAP_SUFFIX)

    def allocate(self) -> None:
        """Make room for the whole blob, on disk and within the cache's limit, before it is written.

        Raises CacheFailure if the disk has no room for it, whatever is evicted.
        """
        if self._allocated or not self._size:
            return
        with cache_errors(f"making room for {self._size} bytes"):
            lacking = max(0, self._size - os.fstat(self.fd).st_blocks * 512)
            self._quota.make_room(lacking)
            # Checked first: ext4 keeps what it allocated for a file that did not fit, and a size
            # that a registry made up would fill the disk.
            self._quota.make_disk_room(self.fd, lacking)
            allocate(self.fd, self._size)
            self._allocated = True

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`, evicting other blobs if there is no room."""
        with cache_errors("writing a blob"):
            while view:
                written = self._quota.evicting(partial(os.pwrite, self.fd, view, offset))
                view, offset = view[written:], offset + written

    def checkpoint(self, present: RangeSet) -> None:
        """Make what is present survive a crash: sync the bytes, then the map that names them."""
        if not self._named or not present.total:
            return
        with cache_errors("saving a partial blob"):
            os.fdatasync(self.fd)
            name = self._digest.encoded + MAP_SUFFIX
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(f"{name}.new", flags, 0o600, dir_fd=self._directory)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                os.fchmod(fd, 0o600)
                file.write(json.dumps({"ranges": list(present)}))
                file.flush()
                os.fsync(fd)
            os.replace(f"{name}.new", name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
            os.utime(self.fd)

    def promote(self) -> None:
        """Sync the verified blob and move it among the complete ones; readers keep their bytes.

        A blob larger than the cache's whole limit is not kept, nor one without a name, which
        another process keeps.
        """
        if self._size > self._quota.size_limit:
            self.discard()
        if not self._named:
            return
        name = self._digest.encoded
        with cache_errors("keeping a blob"):
            os.fsync(self.fd)
            with self._cache.opened(BLOBS, self._digest.algorithm) as blobs:
                os.replace(name, name, src_dir_fd=self._directory, dst_dir_fd=blobs)
                os.fsync(blobs)
            fcntl.flock(self.fd, fcntl.LOCK_SH)
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
        self._closing.close()

    def _unlink(self, suffix: str = "") -> None:
        if self._named:
            unlink(self._directory, self._digest.encoded + suffix)


def read_map(directory: int, digest: Digest, size: int) -> RangeSet:
    """Return the ranges the map vouches for; none where it is absent, foreign or damaged."""
    try:
        fd = os.open(digest.encoded + MAP_SUFFIX, READ_FLAGS, dir_fd=directory)
        with os.fdopen(fd, encoding="ascii") as file:
            if not is_ours(os.fstat(fd)):
                return RangeSet()
            content = json.load(file)
        ranges = RangeSet((int(start), int(stop)) for start, stop in content["ranges"])
        if any(stop > size for _, stop in ranges):
            raise ValueError(f"a range ends beyond {size} bytes")
        return ranges
    except FileNotFoundError:
        return RangeSet()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        log.debug("ignoring the range map of %s: %s", digest, error)
        return RangeSet()


def allocate(fd: int, size: int, *, keep_size: bool = False) -> None:
    """Reserve the disk's blocks for a file of `size` bytes, where the file system can do that.

    The file then has that size, unless it is to `keep_size`.

    Where it cannot, the writes themselves tell. Calls fallocate(2) itself: posix_fallocate(3) would
    then write into each block, over what others are writing there.
    """
    library = ctypes.CDLL(None)
    fallocate = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if fallocate is not None:
        # FALLOC_FL_KEEP_SIZE is 1.
        fallocate(fd, int(keep_size), ctypes.c_int64(0), ctypes.c_int64(size))
