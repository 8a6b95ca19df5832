"""Asks many questions for one operation: in parallel within one time limit, or in turn."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import TypeVar

from epochfs.errors import DeadlineExceeded, NotFound

_BATCH = 1000
"""So many wait for their turn at once, since one that waits costs a kilobyte."""

A = TypeVar("A")
B = TypeVar("B")


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
                raise self.late() from None

    def spread(
        self, ask: Callable[[A], B], items: Iterable[A], then: Callable[[A, B], Iterable[A]]
    ) -> list[A]:
        """Ask for items and for those that their answers lead to; nobody waits for a slow item but
        who is behind it.

        `then` is told of each answer as it comes, by this thread, and returns what is to be asked
        for next. Return the items whose answers did not come in time.
        """
        answered: SimpleQueue[Future[B]] = SimpleQueue()
        under_way: dict[Future[B], A] = {}
        waiting = deque(items)
        while waiting or under_way:
            while waiting and len(under_way) < _BATCH:
                item = waiting.popleft()
                future = self._pool.submit(ask, item)
                under_way[future] = item
                future.add_done_callback(answered.put)
            try:
                future = answered.get(timeout=max(0.0, self._deadline - time.monotonic()))
            except Empty:
                for future in under_way:
                    future.cancel()
                return [*under_way.values(), *waiting]
            waiting.extend(then(under_way.pop(future), future.result()))
        return []

    def late(self) -> DeadlineExceeded:
        """Return the error of one whose answers did not all come in time."""
        return DeadlineExceeded(
            f"not all was asked for within {self._seconds:.0f} s: "
            "what has arrived is kept, another try goes on from there"
        )


def in_turn(
    ask: Callable[[A], B], items: Iterable[A], then: Callable[[A, B], Iterable[A]]
) -> list[A]:
    """Do the same as `InParallel.spread`, in this thread and without a time limit."""
    waiting = deque(items)
    while waiting:
        item = waiting.popleft()
        waiting.extend(then(item, ask(item)))
    return []


def tolerant(ask: Callable[[A], B]) -> Callable[[A], B | None]:
    """Return `ask` with None for what the registry does not have."""

    def asking(item: A) -> B | None:
        try:
            return ask(item)
        except NotFound:
            return None

    return asking
