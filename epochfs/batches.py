"""What one operation asks many times: in parallel, and within one time limit for all of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from epochfs.errors import DeadlineExceeded, NotFound

_BATCH = 1000
"""So many wait for their turn at once, since one that waits costs a kilobyte."""

A = TypeVar("A")
B = TypeVar("B")


class Each(Protocol):
    """What `map` does: in this thread, or in several."""

    def __call__(self, ask: Callable[[A], B], items: Iterable[A], /) -> Iterable[B]:
        """Ask for all items; the answers are in their order."""


class InParallel:
    """Asks in the threads of a pool, until `seconds` from now.

    Who needs longer gets DeadlineExceeded. What asks is expected to remember the answers, those of
    requests under way then among them, so that another try gets further.
    """

    def __init__(self, pool: Executor, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def __call__(self, ask: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Ask for all items; the answers are in their order."""
        remaining = iter(items)
        while batch := list(itertools.islice(remaining, _BATCH)):
            left = self._deadline - time.monotonic()
            try:
                yield from self._pool.map(ask, batch, timeout=left)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"not all was asked for within {self._seconds:.0f} s: "
                    "what has arrived is kept, another try goes on from there"
                ) from None


def tolerant(ask: Callable[[A], B]) -> Callable[[A], B | None]:
    """Return `ask` with None for what the registry does not have."""

    def asking(item: A) -> B | None:
        try:
            return ask(item)
        except NotFound:
            return None

    return asking
