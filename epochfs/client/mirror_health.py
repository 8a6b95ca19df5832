"""The health of mirrors: one that failed is left alone for a while, then tried again.

How long grows with each failure in a row, and with what the last one cost, so that a mirror that is
silent takes little of the time of those who could be served elsewhere. When the while is over, one
caller tries it; the others go on without it until that one knows.

Locks: `Health._lock` guards every underscored field; nothing is called under it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 300.0
_COST_FACTOR = 4.0
"""A mirror is left alone for so many times what its failure took: a fifth of the time, at most, is
lost on it."""


@dataclass(frozen=True, slots=True)
class Condition:
    """How a mirror does, and `since` when, in Unix time; `trouble` is how it failed last, or ""."""

    trouble: str
    since: float


class Health:
    """What is known of one mirror; safe under threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._condition = Condition("", time.time())
        self._failures = 0
        self._tried_at = 0.0
        self._trying = False

    @property
    def condition(self) -> Condition:
        """How the mirror does."""
        with self._lock:
            return self._condition

    def begin(self, seconds: float) -> bool:
        """Return whether to ask the mirror; the caller then says how it went within `seconds`."""
        now = time.monotonic()
        with self._lock:
            if not self._failures:
                return True
            if now < self._tried_at:
                return False
            self._tried_at, self._trying = now + seconds, True
            return True

    def succeeded(self) -> bool:
        """Take note of an answer; return whether it is the first after a failure."""
        with self._lock:
            recovered = self._failures > 0
            self._failures, self._trying = 0, False
            if recovered:
                self._condition = Condition("", time.time())
            return recovered

    def failed(self, trouble: str, cost: float) -> bool:
        """Take note of a failure that took `cost` seconds; return whether it is the first.

        Requests that were under way together, and fail together, are one failure.
        """
        now = time.monotonic()
        with self._lock:
            if self._failures and now < self._tried_at and not self._trying:
                return False
            self._failures += 1
            doubled = _FIRST_PAUSE * 2.0 ** min(self._failures - 1, 16)
            pause = min(max(doubled, _COST_FACTOR * cost), _LONGEST_PAUSE)
            self._tried_at, self._trying = now + pause, False
            first = self._failures == 1
            since = time.time() if first else self._condition.since
            self._condition = Condition(trouble, since)
            return first
