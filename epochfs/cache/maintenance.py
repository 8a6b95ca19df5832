"""Maintains a cache, even while mounts use it: survey, verify, prune, clear.

Removal follows the rules of `cache.quota`: a blob that a reader or a download has open stays.
Only `verify` removes a name all the same, because its bytes are wrong.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import LAYERS, READ_FLAGS, CacheUser, cache_errors, users
from epochfs.cache.quota import BLOBS, PARTIAL, CachedFile, Entry, Tally, cached_files, shrink
from epochfs.oci.names import Digest

_READ_SIZE = 1 << 20
_DATABASES = ".sqlite"


@dataclass(slots=True)
class Survey:
    """What a cache holds. `oldest` is the last use of the least recently used, epoch seconds."""

    complete: Tally = field(default_factory=Tally)
    partial: Tally = field(default_factory=Tally)
    databases: Tally = field(default_factory=Tally)
    indexes: Tally = field(default_factory=Tally)
    oldest: float | None = None
    users: list[CacheUser] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class BadBlob:
    """A blob whose bytes are wrong, and was removed."""

    digest: Digest
    problem: str


@dataclass(slots=True)
class Removal:
    """What was removed, and what stayed because it is in use, by which `users` if known.

    `failed` could not be removed, for the reason in `problem`. `lacking` is how many bytes are
    still over the requested size.
    """

    removed: Tally = field(default_factory=Tally)
    in_use: Tally = field(default_factory=Tally)
    failed: Tally = field(default_factory=Tally)
    problem: str = ""
    lacking: int = 0
    users: list[CacheUser] = field(default_factory=list)


def survey(cache: BlobCache) -> Survey:
    """Count what is there. Raises CacheFailure."""
    found = Survey()
    for entry in cache.quota.entries():
        (found.complete if entry.kind == BLOBS else found.partial).add(entry.size)
        found.oldest = entry.used if found.oldest is None else min(found.oldest, entry.used)
    with cache_errors("looking at the cache"), cache.directory.alone() as top:
        for file in _databases(top):
            found.databases.add(file.size)
        for _, file in _indexes(cache):
            found.indexes.add(file.size)
        found.users = users(cache.directory)
    return found


def verify(
    cache: BlobCache, entries: Iterable[Entry], progress: Callable[[int], None]
) -> Iterator[BadBlob]:
    """Hash complete blobs, on all processors, and yield those whose bytes are wrong, removed.

    `progress` is called, from several threads, with the number of bytes just hashed. A blob that is
    evicted meanwhile is skipped. Partial blobs are hashed once complete, before they are kept.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        checks = [pool.submit(_check, cache, entry, progress) for entry in entries]
        try:
            for check in as_completed(checks):
                if (bad := check.result()) is not None:
                    yield bad
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def prune(cache: BlobCache, size: int | None, partial_age: float) -> Removal:
    """Remove partial blobs not written to for `partial_age` seconds; then, where `size` is given,
    the least recently used until no more than `size` bytes are left.
    """
    removal = Removal()
    abandoned = time.time() - partial_age
    kept = []
    for entry in cache.quota.entries():
        if entry.kind == PARTIAL and entry.used < abandoned:
            _evict(cache, removal, entry)
        else:
            kept.append(entry)
    if size is not None:
        left = shrink(size, kept, partial(_evict, cache, removal))
        removal.lacking = max(0, left - size)
    return removal


def clear(cache: BlobCache) -> Removal:
    """Remove everything that no reader or download has open; if there is no mount, also the
    databases and the indexes of layers. Raises CacheFailure.
    """
    removal = Removal()
    for entry in list(cache.quota.entries()):
        _evict(cache, removal, entry)
    with cache_errors("clearing the cache"), cache.directory.alone() as top:
        removal.users = users(cache.directory)
        if not removal.users:
            for file in list(_databases(top)):
                os.unlink(file.name, dir_fd=top)
            for directory, file in _indexes(cache):
                os.unlink(file.name, dir_fd=directory)
    return removal


def _evict(cache: BlobCache, removal: Removal, entry: Entry) -> bool:
    try:
        gone = cache.quota.remove(entry)
    except OSError as error:
        removal.failed.add(entry.size)
        removal.problem = error.strerror or str(error)
        return False
    (removal.removed if gone else removal.in_use).add(entry.size)
    return gone


def _databases(top: int) -> Iterator[CachedFile]:
    return (file for file in cached_files(top) if _DATABASES in file.name)


def _indexes(cache: BlobCache) -> Iterator[tuple[int, CachedFile]]:
    """Yield the indexes of layers, each with the directory it is in, open."""
    with (
        contextlib.suppress(FileNotFoundError),
        cache.directory.opened(LAYERS, make=False) as layers,
    ):
        for algorithm in cached_files(layers):
            with cache.directory.opened(LAYERS, algorithm.name) as directory:
                yield from ((directory, file) for file in cached_files(directory))


def _check(cache: BlobCache, entry: Entry, progress: Callable[[int], None]) -> BadBlob | None:
    """Hash one blob; if it is wrong, remove it and say what is wrong with it."""
    name = entry.digest.encoded
    with (
        cache_errors(f"verifying {entry.digest}"),
        cache.directory.opened(BLOBS, entry.digest.algorithm) as directory,
    ):
        try:
            fd = os.open(name, READ_FLAGS, dir_fd=directory)
        except FileNotFoundError:
            return None
        try:
            problem = _problem(fd, entry.digest, progress)
            # It may have been replaced by a right one meanwhile.
            with contextlib.suppress(FileNotFoundError):
                named = os.stat(name, dir_fd=directory, follow_symlinks=False)
                if problem and os.path.samestat(os.fstat(fd), named):
                    os.unlink(name, dir_fd=directory)
        finally:
            os.close(fd)
    return BadBlob(entry.digest, problem) if problem else None


def _problem(fd: int, digest: Digest, progress: Callable[[int], None]) -> str:
    hasher = digest.hasher()
    buffer = memoryview(bytearray(_READ_SIZE))
    try:
        while count := os.readv(fd, [buffer]):
            hasher.update(buffer[:count])
            progress(count)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if hasher.hexdigest() == digest.encoded:
        return ""
    return f"its bytes hash to {digest.algorithm}:{hasher.hexdigest()}"
