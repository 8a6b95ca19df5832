"""Files that are kept and that nobody has open: a few stay open on disk, small ones go to memory.

A restore may have thousands of manifests wait for their blobs, and each file that is staged on disk
takes a descriptor.

Locks: `Idle._lock` guards its tables, and is a leaf; no I/O happens under it.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from typing import BinaryIO

from epochfs.cache.written_file import WrittenFile
from epochfs.errors import CacheFailure, TooLarge
from epochfs.oci.names import Digest
from epochfs.vfs.kernel_memory import InMemory
from epochfs.vfs.writing.local import LocalFile

_MOST_OPEN = 32
"""A part of what `BlobCache.new_file` gives out where few files may be open."""

_LARGEST = 64 * 1024
"""The largest file in bytes that goes to memory."""

_MOST_BYTES = 64 * 1024 * 1024
"""How many bytes may be in memory; beyond, files stay on disk."""


class StagedInMemory(InMemory):
    """The bytes of a local file that nobody writes to (see `Staged`)."""

    is_whole = True

    def __init__(self, data: bytes, on_close: Callable[[], None] = lambda: None) -> None:
        super().__init__(data)
        self._on_close = on_close

    @property
    def size(self) -> int:
        """The file's size in bytes."""
        return len(self._data)

    def read_all(self, limit: int) -> bytes:
        """Return all bytes; raises TooLarge if there are more than `limit`."""
        if self.size > limit:
            raise TooLarge(f"a document of {self.size} bytes was written: the limit is {limit}")
        return self._data

    def reader(self) -> BinaryIO:
        """Return the file to read from its first byte."""
        return io.BytesIO(self._data)

    def digest(self, algorithm: str) -> Digest:
        """Return the digest of all bytes."""
        return Digest.of(self._data, algorithm)

    def close(self) -> None:
        """Give the memory back."""
        self._on_close()


class Idle:
    """The files of one mount that nobody has open. Any thread may call anything."""

    def __init__(self, new_file: Callable[[], WrittenFile]) -> None:
        self._new_file = new_file
        self._lock = threading.Lock()
        self._open: dict[LocalFile, None] = {}
        self._bytes = 0

    def add(self, file: LocalFile) -> None:
        """Note that nobody has a file open; those that were not for longest go to memory."""
        with self._lock:
            self._open.pop(file, None)
            self._open[file] = None
            if len(self._open) <= _MOST_OPEN:
                return
            oldest = next(iter(self._open))
            del self._open[oldest]
        self._rest(oldest)

    def wake(self, file: LocalFile) -> None:
        """Have a file on disk again, as it is to be written to; the caller holds it."""
        staged = file.staged
        if not isinstance(staged, StagedInMemory):
            return
        anew = self._new_file()
        try:
            anew.write(memoryview(staged.read_all(_LARGEST)), 0)
            woken = file.exchange(staged, anew)
        except BaseException:
            anew.close()
            raise
        (staged if woken else anew).close()

    def _rest(self, file: LocalFile) -> None:
        staged = file.staged
        if not isinstance(staged, WrittenFile) or not (staged.is_whole and staged.size <= _LARGEST):
            return
        try:
            data = staged.read_all(_LARGEST)
        except (CacheFailure, TooLarge):
            return  # it was closed, or is written to
        with self._lock:
            if self._bytes + len(data) > _MOST_BYTES:
                return
            self._bytes += len(data)
        resting = StagedInMemory(data, lambda: self._give_back(len(data)))
        rests = file.exchange(staged, resting, if_unused=True)
        (staged if rests else resting).close()

    def _give_back(self, count: int) -> None:
        with self._lock:
            self._bytes -= count
