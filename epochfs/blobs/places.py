"""The blobs that pass through with a stream, and what was proved of their bytes.

A stream takes a connection, a descriptor and a few MiB of memory, and a program may have opened
thousands of files: so few blobs have one at a time, those that are read.

Locks: `Places._lock` guards which blobs have a place, and the proofs; no I/O happens under it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from cachetools import LRUCache

from epochfs.errors import DeadlineExceeded, Unavailable
from epochfs.oci.names import Digest

SUM_BYTES = 32
"""The size of a piece's SHA-256 in a proof."""

_PROOF_BYTES = 64 << 20
_IDLE_SECONDS = 0.5
_BUSY = float("inf")

Key = tuple[Digest, int]
"""A blob, and its size in bytes."""


class Seated(Protocol):
    """An open blob that has a place."""

    def suspend(self) -> bool:
        """Give up the stream and what is in memory, unless somebody reads; return whether.

        Does not wait.
        """


class Places:
    """At most `most` blobs have a stream at a time; their reads have a thread each.

    Whoever reads takes the place of a blob that has not been read for a moment, which then loses
    its stream and begins anew when it is next read.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="passing")
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._seated: OrderedDict[Seated, float] = OrderedDict()
        self._proofs: LRUCache[Key, bytes] = LRUCache(_PROOF_BYTES, len)

    def proof(self, key: Key) -> bytes | None:
        """Return the sums of a blob's pieces, one after the other, if it has been verified."""
        with self._lock:
            return self._proofs.get(key)

    def prove(self, key: Key, sums: bytes) -> None:
        """Keep the sums of a blob whose digest has matched."""
        with self._lock:
            if len(sums) <= _PROOF_BYTES:
                self._proofs[key] = sums

    def seat(self, blob: Seated, deadline: float) -> None:
        """Give a blob a place; raises DeadlineExceeded where none becomes free in time."""
        with self._freed:
            while blob not in self._seated and len(self._seated) >= self._most:
                if not self._evict():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise DeadlineExceeded("too many blobs are read through at once")
                    self._freed.wait(min(left, _IDLE_SECONDS))
            self._seated[blob] = _BUSY

    def rest(self, blob: Seated) -> None:
        """Take note that a blob is not being read any more."""
        with self._freed:
            if blob in self._seated:
                self._seated[blob] = time.monotonic()
                self._seated.move_to_end(blob)
                self._freed.notify()

    def leave(self, blob: Seated) -> None:
        """Give the place of a blob to others."""
        with self._freed:
            self._seated.pop(blob, None)
            self._freed.notify()

    def begin(self, read: Callable[[], bytes]) -> Future[bytes]:
        """Have a thread read; raises Unavailable at the end."""
        try:
            return self._pool.submit(read)
        except RuntimeError:
            raise Unavailable("the mount is shutting down") from None

    def close(self) -> None:
        """Begin no read any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _evict(self) -> bool:
        """Take the place of the blob that was read longest ago. The lock is held."""
        limit = time.monotonic() - _IDLE_SECONDS
        for blob, since in self._seated.items():
            if since < limit and blob.suspend():
                del self._seated[blob]
                return True
        return False
