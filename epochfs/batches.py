"""What is asked many times: by one operation, within one time limit for all of it, or ahead.

Locks: each call of an `Ahead` has one, which guards its iterator over the items.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from epochfs.errors import DeadlineExceeded, EpochfsError, NotFound, Unavailable

log = logging.getLogger(__name__)

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


class Ahead:
    """Begins to ask in the background, by so many `workers` of a pool, for what nobody waits for.

    A worker that gets no answer stops: the registry is away, and each further item would wait as
    long. Nothing is begun once the pool is shut down.
    """

    def __init__(self, pool: Executor, workers: int) -> None:
        self._pool = pool
        self._workers = workers

    def __call__(self, ask: Callable[[A], object], items: Iterable[A], what: str) -> None:
        """Begin to ask for all items, in their order; `what` is asked, as a log line may say."""
        remaining = iter(items)
        lock = threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    item = next(remaining, None)
                if item is None:
                    return
                try:
                    ask(item)
                except (Unavailable, DeadlineExceeded):
                    return
                except EpochfsError as error:
                    log.debug("%s ahead, %s: %s", what, item, error)

        with contextlib.suppress(RuntimeError):
            for _ in range(self._workers):
                self._pool.submit(work)


def tolerant(ask: Callable[[A], B]) -> Callable[[A], B | None]:
    """Return `ask` with None for what the registry does not have."""

    def asking(item: A) -> B | None:
        try:
            return ask(item)
        except NotFound:
            return None

    return asking
