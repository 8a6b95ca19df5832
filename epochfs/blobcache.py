"""Content-addressed blobs on the local disk: stage, verify elsewhere, sync, rename, evict.

::

    <directory>/v1/blobs/<algorithm>/<encoded>        complete and verified
    <directory>/v1/partial/<algorithm>/<encoded>      staged bytes, sparse
    <directory>/v1/partial/<algorithm>/<encoded>.map  which of those bytes were on disk at a sync

A file under `blobs/` has had its digest checked before it was renamed there, so its presence is
its proof. A map is written only after the bytes it names were synced. Directories are opened
without following links, one component at a time, so a link planted in the cache leads nowhere.

Several processes may share a directory. A file's `flock` tells who uses it: a reader of a complete
blob holds it shared, and eviction takes only what it can lock alone; the writer of a partial blob
holds it exclusively, and a second writer stages privately instead.

Locks: `BlobCache._lock` guards the running total of bytes only, and no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure, InvalidName
from epochfs.names import Digest
from epochfs.ranges import RangeSet

log = logging.getLogger(__name__)

FORMAT = "v1"
_MAP_SUFFIX = ".map"
_RESCAN_SECONDS = 30.0
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the cache: `size` is what it takes on disk in bytes, `used` when last opened."""

    kind: str
    digest: Digest
    size: int
    used: float


class BlobCache:
    """The disk store. Raises CacheFailure, and nothing else, when the disk does not cooperate."""

    def __init__(self, options: CacheOptions) -> None:
        self._options = options
        self._lock = threading.Lock()
        self._total = 0
        self._scanned = 0.0
        with _cache_errors("opening the cache"):
            options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(self.open_directory("blobs"))

    @property
    def size_limit(self) -> int:
        """How many bytes the cache may hold."""
        return self._options.size_limit

    def open(self, digest: Digest, size: int) -> int | None:
        """Return a read-only descriptor of the complete blob, or None when it is not cached.

        The descriptor holds the blob against eviction until it is closed. A file of another size
        than `size` bytes, of another owner, or that is no regular file counts as not cached.
        """
        try:
            with self._directory("blobs", digest.algorithm) as directory:
                fd = os.open(digest.encoded, _READ_FLAGS, dir_fd=directory)
        except OSError:
            return None
        try:
            status = os.fstat(fd)
            if not _is_ours(status) or status.st_size != size:
                raise OSError("not what the cache wrote")
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            os.utime(fd)
        except OSError:
            os.close(fd)
            return None
        return fd

    def is_complete(self, digest: Digest, size: int) -> bool:
        """Whether the verified blob of `size` bytes is kept; asking does not count as a use."""
        with contextlib.suppress(OSError), self._directory("blobs", digest.algorithm) as directory:
            status = os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False)
            return _is_ours(status) and status.st_size == size
        return False

    def cached_bytes(self, digest: Digest) -> int:
        """Return how many bytes of the blob the last sync left on disk, complete or partial."""
        with contextlib.suppress(OSError), self._directory("blobs", digest.algorithm) as directory:
            return os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False).st_size
        with (
            contextlib.suppress(OSError),
            self._directory("partial", digest.algorithm) as directory,
        ):
            size = os.stat(digest.encoded, dir_fd=directory, follow_symlinks=False).st_size
            return _read_map(directory, digest, size).total
        return 0

    def stage(self, digest: Digest, size: int) -> StagedBlob:
        """Return a staged file for the blob's `size` bytes, with what an earlier try left in it."""
        with _cache_errors("staging a blob"):
            self.make_room(0)
            directory = self.open_directory("partial", digest.algorithm)
            try:
                return StagedBlob(self, directory, digest, size)
            except BaseException:
                os.close(directory)
                raise

    def make_room(self, wanted: int) -> None:
        """Evict what was used longest ago until `wanted` more bytes fit, or nothing is left to."""
        if self._total + wanted <= self.size_limit and time.monotonic() < self._scanned:
            return
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        total = sum(entry.size for entry in entries)
        for entry in entries:
            if total + wanted <= self.size_limit:
                break
            if self.evict(entry):
                total -= entry.size
        with self._lock:
            self._total = total
            self._scanned = time.monotonic() + _RESCAN_SECONDS

    def entries(self) -> Iterator[Entry]:
        """Yield what the cache holds, in no order. Files it did not write are passed over."""
        for kind in ("blobs", "partial"):
            for algorithm in ("sha256", "sha512"):
                try:
                    with self._directory(kind, algorithm) as directory:
                        yield from _entries(directory, kind, algorithm)
                except OSError as error:
                    log.debug("listing %s/%s of the cache: %s", kind, algorithm, error)

    def evict(self, entry: Entry) -> bool:
        """Remove one entry unless somebody uses it; return whether it is gone."""
        digest = entry.digest
        try:
            with self._directory(entry.kind, digest.algorithm) as directory:
                fd = os.open(digest.encoded, _READ_FLAGS, dir_fd=directory)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if entry.kind == "partial":
                        _unlink(directory, digest.encoded + _MAP_SUFFIX)
                    _unlink(directory, digest.encoded)
                finally:
                    os.close(fd)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            return True
        except OSError as error:
            log.warning("cannot evict %s from the cache: %s", digest, error)
            return False
        log.debug("evicted %s, %d bytes", digest, entry.size)
        return True

    def account(self, size: int) -> None:
        """Count `size` more bytes as held."""
        with self._lock:
            self._total += size

    @contextlib.contextmanager
    def _directory(self, *parts: str) -> Iterator[int]:
        fd = self.open_directory(*parts)
        try:
            yield fd
        finally:
            os.close(fd)

    def open_directory(self, *parts: str) -> int:
        """Open (and make, where missing) a directory of the cache; the caller closes it.

        Its mode is 0700 whatever the umask. Raises OSError.
        """
        self._options.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self._options.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in (FORMAT, *parts):
            parent = fd
            try:
                try:
                    fd = os.open(part, _DIRECTORY_FLAGS, dir_fd=parent)
                except FileNotFoundError:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, 0o700, dir_fd=parent)
                    fd = os.open(part, _DIRECTORY_FLAGS, dir_fd=parent)
                    os.fchmod(fd, 0o700)
            finally:
                os.close(parent)
        return fd


class StagedBlob:
    """A blob on its way into the cache: a sparse file of its size, and what is present in it.

    Used by one download. `write` and `read` may be called by many threads at once for ranges that
    do not overlap; the other methods by one thread at a time. Raises CacheFailure.
    """

    def __init__(self, cache: BlobCache, directory: int, digest: Digest, size: int) -> None:
        self._cache = cache
        self._directory = directory
        self._digest = digest
        self._size = size
        self._allocated = False
        self._fd, self._named = self._open()
        self.resumed = _read_map(directory, digest, size) if self._named else RangeSet()
        if os.fstat(self._fd).st_size != size or not self.resumed.total:
            self.resumed = RangeSet()
            self._reset()

    def _open(self) -> tuple[int, bool]:
        """Open the staged file: the blob's own, or one without a name while another writes that."""
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self._digest.encoded, flags, 0o600, dir_fd=self._directory)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(fd)
            # Before it was locked, its writer may have kept it: then the name is another's by now.
            named = os.stat(self._digest.encoded, dir_fd=self._directory, follow_symlinks=False)
            if _is_ours(status) and status.st_nlink == 1 and os.path.samestat(status, named):
                os.fchmod(fd, 0o600)
                return fd, True
        except (BlockingIOError, FileNotFoundError):
            pass
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
        with _cache_errors("staging a blob"):
            os.ftruncate(self._fd, 0)
            os.ftruncate(self._fd, self._size)

    def forget(self) -> None:
        """Let no later download take any byte here for present."""
        with _cache_errors("staging a blob"):
            self._unlink(_MAP_SUFFIX)

    def allocate(self) -> None:
        """Make room for the whole blob, on disk and in the cache's limit, before it is written."""
        if self._allocated or not self._size:
            return
        with _cache_errors(f"making room for {self._size} bytes"):
            self._cache.make_room(self._size)
            try:
                os.posix_fallocate(self._fd, 0, self._size)
            except OSError:
                # Full, or a file system without fallocate: evict all that can go and let the
                # writes themselves tell.
                self._cache.make_room(self._cache.size_limit)
            self._allocated = True

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`."""
        with _cache_errors("writing a blob"):
            while view:
                written = os.pwrite(self._fd, view, offset)
                view, offset = view[written:], offset + written

    def checkpoint(self, present: RangeSet) -> None:
        """Make what is present outlive a crash: sync the bytes, then the map that names them."""
        if not self._named or not present.total:
            return
        with _cache_errors("saving a partial blob"):
            os.fdatasync(self._fd)
            name = self._digest.encoded + _MAP_SUFFIX
            text = json.dumps({"ranges": list(present)})
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(f"{name}.new", flags, 0o600, dir_fd=self._directory)
            with os.fdopen(fd, "w", encoding="ascii") as file:
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
        if self._size > self._cache.size_limit:
            self.discard()
        if not self._named:
            return
        name = self._digest.encoded
        with _cache_errors("keeping a blob"):
            os.fsync(self._fd)
            blobs = self._cache.open_directory("blobs", self._digest.algorithm)
            try:
                os.replace(name, name, src_dir_fd=self._directory, dst_dir_fd=blobs)
                os.fsync(blobs)
            finally:
                os.close(blobs)
            fcntl.flock(self._fd, fcntl.LOCK_SH)
            self._unlink(_MAP_SUFFIX)
            self._named = False
            self._cache.account(self._size)

    def discard(self) -> None:
        """Remove the staged file's name and map; open readers keep what they have."""
        with _cache_errors("discarding a blob"):
            self._unlink(_MAP_SUFFIX)
            self._unlink()
            self._named = False

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
        os.close(self._directory)

    def _unlink(self, suffix: str = "") -> None:
        if self._named:
            _unlink(self._directory, self._digest.encoded + suffix)


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the file's bytes at `offset`; raises CacheFailure if it has fewer."""
    with _cache_errors("reading a blob"):
        while view:
            count = os.preadv(fd, [view], offset)
            if not count:
                raise CacheFailure("a cached blob is shorter than it was")
            view, offset = view[count:], offset + count


@contextlib.contextmanager
def _cache_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of the local disk into CacheFailure."""
    try:
        yield
    except OSError as error:
        raise CacheFailure(f"{doing}: {error.strerror or error}") from error


def _is_ours(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()


def _unlink(directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _read_map(directory: int, digest: Digest, size: int) -> RangeSet:
    """Return the ranges the map vouches for; none where it is absent, foreign or damaged."""
    try:
        fd = os.open(digest.encoded + _MAP_SUFFIX, _READ_FLAGS, dir_fd=directory)
        with os.fdopen(fd, encoding="ascii") as file:
            if not _is_ours(os.fstat(fd)):
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


def _entries(directory: int, kind: str, algorithm: str) -> Iterator[Entry]:
    with os.scandir(directory) as found:
        for file in found:
            try:
                digest = Digest.parse(f"{algorithm}:{file.name}")
                status = file.stat(follow_symlinks=False)
            except (InvalidName, OSError):
                continue
            if _is_ours(status):
                yield Entry(kind, digest, status.st_blocks * 512, status.st_mtime)
