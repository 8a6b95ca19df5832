"""The digest of a blob that is still arriving: its bytes hashed in order, each of them once.

Whoever has just received the next bytes hashes them while the processor still has them at hand;
reading them back costs a third of the hashing again. What came out of order is read back from the
staged file, some of it whenever a worker comes by, and the rest at the end.

Locks: `Verifier._turn` lets one thread at a time hash. Workers pass by where it is taken; only
`finish` waits for it. Nothing is taken under it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from epochfs.blobs.buffers import page_aligned
from epochfs.cache.blobs import read_exactly
from epochfs.oci.names import Digest

_BLOCK = 1 << 18
_TURN = 4 << 20
"""How much a worker reads back and hashes before it goes on receiving, in bytes."""


class Verifier:
    """Hashes one blob. Any thread may call anything."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._turn = threading.Lock()
        self._hasher = digest.hasher()
        self._position = 0

    def received(self, start: int, data: memoryview, fd: int, present: int) -> None:
        """Hash on with `data`, the blob's bytes at `start`, or with others that wait in the file.

        `fd` is the staged file, whose first `present` bytes are there. Returns at once if another
        thread is hashing.
        """
        if not self._turn.acquire(blocking=False):
            return
        try:
            until = min(start, present, self._position + _TURN)
            self._read_back(fd, until)
            if start <= self._position < start + len(data):
                self._update(data[self._position - start :])
        finally:
            self._turn.release()

    def finish(self, fd: int, size: int, stopped: Callable[[], bool]) -> bool:
        """Hash what is left of `size` bytes; return whether the digest matches.

        False also if `stopped` says so before the end.
        """
        with self._turn:
            while self._position < size:
                if stopped():
                    return False
                self._read_back(fd, min(size, self._position + _TURN))
            return self._hasher.hexdigest() == self._digest.encoded

    def restart(self) -> None:
        """Begin anew: other bytes will come."""
        with self._turn:
            self._hasher = self._digest.hasher()
            self._position = 0

    def _read_back(self, fd: int, until: int) -> None:
        if self._position >= until:
            return
        buffer = page_aligned(min(_BLOCK, until - self._position))
        while self._position < until:
            block = buffer[: until - self._position]
            read_exactly(fd, block, self._position)
            self._update(block)

    def _update(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._position += len(data)
