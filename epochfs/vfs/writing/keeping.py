"""Keeps the blobs that were sent in the cache, in the background, as far as there is time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from epochfs.cache.written_file import WrittenFile
from epochfs.oci.names import Digest
from epochfs.vfs.writing.local import LocalFile

_MOST_KEPT = 16
"""How many files may wait to be kept: each is open."""


class Keeper:
    """Keeps blobs in the cache. Any thread may call anything."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keeping")
        self._room = threading.BoundedSemaphore(_MOST_KEPT)

    def keep(self, file: LocalFile, digest: Digest) -> None:
        """Keep a file's bytes, if they still have this digest then; the caller holds the file."""
        staged = file.staged
        if isinstance(staged, WrittenFile) and self._room.acquire(blocking=False):
            file.hold()
            self._thread.submit(self._keep, file, staged, digest)

    def _keep(self, file: LocalFile, staged: WrittenFile, digest: Digest) -> None:
        try:
            staged.keep(digest)
        finally:
            file.let_go()
            self._room.release()

    def close(self) -> None:
        """Keep what was begun."""
        self._thread.shutdown(wait=True)
