"""Limits how many files the cache keeps open, to a share of what the process may have open.

The rest is for connections, the kernel's requests and short-lived files. A caller that gets no
descriptor does without one, and no read fails because others have many files open.

Locks: `Descriptors._lock` guards the count.
"""

from __future__ import annotations

import resource
import threading

_SHARE = 4
_MOMENTS_SHARE = 32
_FEWEST = 2


def open_files_limit() -> int:
    """Return how many files this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return soft if soft > 0 else 1 << 20


class Descriptors:
    """A quarter of the descriptors there may be. `moments` lets a few more be open for a read."""

    def __init__(self, limit: int | None = None) -> None:
        limit = open_files_limit() if limit is None else limit
        self._lock = threading.Lock()
        self._left = limit // _SHARE
        self.moments = threading.BoundedSemaphore(max(_FEWEST, limit // _MOMENTS_SHARE))

    def take(self, count: int = 1) -> bool:
        """Take some, if there are as many; return whether."""
        with self._lock:
            if self._left < count:
                return False
            self._left -= count
            return True

    def give_back(self, count: int = 1) -> None:
        """Give back what was taken."""
        with self._lock:
            self._left += count
