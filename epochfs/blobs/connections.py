"""The number of connections that feed one download, and the size of their requests.

More connections help where each is slow (a rate limit, a long round trip) and hurt where the disk
or the processor is the limit: one that is fast stays alone. Otherwise the number is found by
trying: doubled while that pays, taken back when it did not, halved when the registry pushes back.
`Window` is not safe under threads by itself.

Locks: `Budget._lock` guards its count and is a leaf.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MIB = 1 << 20
SMALLEST_SEGMENT = MIB
LARGEST_SEGMENT = 256 * MIB
_FIRST_SEGMENT = 8 * MIB
_FIRST_TICK_SECONDS = 0.05
_SLOW_SIZE = 4
"""How many to try at once when the first connection proves slow."""

_FAST = 128 * MIB
"""Bytes a second that show that a connection waits for us, not we for it."""

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
        self.size = 1
        self._most = most
        self._clock = clock
        self._began = clock()
        self._idle_since: float | None = self._began
        self._asked: float | None = None
        self._tick = _FIRST_TICK_SECONDS
        self._bytes = 0
        self._best_rate = 0.0
        self._best_size = self.size
        self._held_until = 0.0
        self._segment = _FIRST_SEGMENT

    def idle(self) -> None:
        """Take note that nothing is asked for any more."""
        self._idle_since = self._clock()

    def asked(self) -> None:
        """Take note that something is asked for; that nothing came before says nothing."""
        if self._idle_since is not None:
            self._asked = self._clock()
            self._began += self._asked - self._idle_since
            self._idle_since = None

    def answered(self) -> None:
        """Take note that bytes are about to come.

        What an answer took that nothing else came beside is not their pace, unless it took long:
        then it is the way that is long, and more connections help.
        """
        if self._asked is not None:
            took = self._clock() - self._asked
            self._began += took if took < _FIRST_TICK_SECONDS else 0.0
            self._asked = None

    def arrived(self, count: int) -> None:
        """Take note of `count` bytes, and once a tick of how fast they come."""
        self._bytes += count
        now = self._clock()
        elapsed = now - self._began
        if elapsed < self._tick:
            return
        rate = self._bytes / elapsed
        self._began, self._bytes, self._tick = now, 0, _TICK_SECONDS
        wanted = rate / self.size * _SEGMENT_SECONDS
        self._segment = int(min(max(wanted, SMALLEST_SEGMENT), LARGEST_SEGMENT)) // MIB * MIB
        if rate / self.size >= _FAST:
            return
        if rate > self._best_rate * _WORTH:
            self._best_rate, self._best_size = rate, self.size
            self.size = min(max(self.size * 2, _SLOW_SIZE), self._most)
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
