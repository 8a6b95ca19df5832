"""A complete blob of the cache, open for reading."""

from __future__ import annotations

import os
from collections.abc import Callable

from epochfs.cache.blobs.blob_files import read_exactly
from epochfs.cache.blobs.descriptors import Descriptors
from epochfs.errors import CacheFailure


class CachedBlob:
    """An open blob: by a descriptor that holds it against eviction, or one for each read.

    The second where there are too few descriptors to keep one; then `open_file` opens the file, and
    returns None once it was evicted. Raises CacheFailure.
    """

    def __init__(
        self, descriptors: Descriptors, fd: int | None, open_file: Callable[[], int | None]
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
        with self._descriptors.moments:
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
