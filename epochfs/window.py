"""How many connections feed one download, and how much each asks for at a time.

More connections help where each is slow (a rate limit, a long round trip) and hurt where the disk
or the processor is the limit, so the number is found by trying: doubled while that pays, taken back
when it did not, halved when the registry pushes back. `Window` is not safe under threads by itself.

Locks: `Budget._lock` guards its count and is a leaf.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MIB = 1 << 20
SMALLEST_SEGMENT = MIB
LARGEST_SEGMENT = 32 * MIB
_FIRST_SIZE = 4
_TICK_SECONDS = 0.2
_SEGMENT_SECONDS = 0.25
_WORTH = 1.2
_HOLD_SECONDS = 5.0


class Budget:
    """How many connections the downloads of one registry use together.

    Each may have its first whatever the others do; more than that only while `limit` is not used
    up, so that many readers of many blobs do not each open as many as one alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()

    @property
    def spare(self) -> bool:
        """Whether another connection may be opened beside a download's first."""
        return self._used < self.limit

    def take(self) -> None:
        """Count a connection as used."""
        with self._lock:
            self._used += 1

    def give_back(self) -> None:
        """Count a connection as no longer used."""
        with self._lock:
            self._used -= 1


class Window:
    """The number of connections in `size`, at most `most`."""

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = min(_FIRST_SIZE, most)
        self._most = most
        self._clock = clock
        self._began = clock()
        self._bytes = 0
        self._best_rate = 0.0
        self._best_size = self.size
        self._held_until = 0.0
        self._segment = 2 * SMALLEST_SEGMENT

    def arrived(self, count: int) -> None:
        """Take note of `count` bytes, and once a tick of how fast they come."""
        self._bytes += count
        now = self._clock()
        elapsed = now - self._began
        if elapsed < _TICK_SECONDS:
            return
        rate = self._bytes / elapsed
        self._began, self._bytes = now, 0
        wanted = rate / self.size * _SEGMENT_SECONDS
        self._segment = int(min(max(wanted, SMALLEST_SEGMENT), LARGEST_SEGMENT)) // MIB * MIB
        if rate > self._best_rate * _WORTH:
            self._best_rate, self._best_size = rate, self.size
            self.size = min(self.size * 2, self._most)
        elif self.size > self._best_size:
            self.size, self._held_until = self._best_size, now + _HOLD_SECONDS
        elif now > self._held_until:
            self._best_rate = rate
            self.size = min(self.size * 2, self._most)

    def refused(self) -> None:
        """Take note that the registry pushed back or a connection broke."""
        self.size = self._best_size = max(1, self.size // 2)
        self._held_until = self._clock() + _HOLD_SECONDS

    @property
    def segment(self) -> int:
        """How many bytes one request should ask for: about a quarter of a second's worth."""
        return self._segment
