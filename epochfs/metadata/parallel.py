"""Asks many questions: in parallel within one time limit, in turn, or ahead in the background.

Asking ahead: `ls -l` looks at each name that it has listed, and `find` at one repository after the
other; each time they wait for the registry. So a sign that was expected begins the rest: the first
tag of a listed directory that is resolved, or the repository right behind the one asked for before.

Locks: `Ahead._lock` guards `expected`; nothing is asked under it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from queue import Empty, SimpleQueue
from typing import ClassVar, Generic, TypeVar

from cachetools import LRUCache

from epochfs.errors import DeadlineExceeded, EpochfsError, Unavailable, printable

log = logging.getLogger(__name__)

_BATCH = 1000
"""How many wait for their turn at once, since one that waits costs a kilobyte."""

A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S", bound=Hashable)
K = TypeVar("K", bound=Hashable)


class InParallel:
    """Asks in the threads of a pool, until `seconds` from now.

    After that, DeadlineExceeded is raised. What asks is expected to remember the answers, those of
    requests under way then among them, so that another try gets further.
    """

    def __init__(self, pool: Executor, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds

    def __call__(self, ask: Callable[[A], B], items: Iterable[A], /) -> Iterator[B]:
        """Ask for all items; yield the answers in the order of the items."""
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
        """Ask for items and for those that their answers lead to; a slow item holds up none but
        those it leads to.

        `then` is called with each answer as it comes, in this thread, and returns what to ask for
        next. Return the items whose answers did not come in time.
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
        """Return the error that says that not all answers came in time."""
        return DeadlineExceeded(
            f"not all was asked for within {self._seconds:.0f} s: "
            "what has arrived is kept, another try goes on from there"
        )


def in_turn(ask: Callable[[A], B], items: Iterable[A], then: Callable[[A, B], Iterable[A]]) -> None:
    """Do what `InParallel.spread` does, in this thread and without a time limit."""
    waiting = deque(items)
    while waiting:
        item = waiting.popleft()
        waiting.extend(then(item, ask(item)))


class Ahead(Generic[S, K]):
    """Calls `ask` in the background for all that follows a sign, once, if the sign was expected.

    Up to `workers` threads of the pool share the items, in their order. One that gets no answer
    stops: the registry is down, and each further item would wait as long.
    """

    LIMIT: ClassVar = 1000
    """How many signs are expected, the latest ones."""

    def __init__(
        self,
        pool: Executor,
        following: Callable[[S], Sequence[K]],
        ask: Callable[[K], object],
        workers: int,
    ) -> None:
        self._pool = pool
        self._following = following
        self._ask = ask
        self._workers = workers
        self._lock = threading.Lock()
        self.expected: LRUCache[S, int] = LRUCache(self.LIMIT)
        """How many of the items that follow each sign were begun already; read without the lock
        only to see whether there is any."""

    def expect(self, sign: S) -> None:
        """Begin what follows a sign when it is next seen."""
        with self._lock:
            self.expected[sign] = 0

    def seen(self, sign: S) -> None:
        """Note a sign; begin what follows it if it was expected."""
        with self._lock:
            begun = self.expected.pop(sign, None)
        if begun is not None:
            self._begin(self._following(sign))

    def _begin(self, items: Sequence[K]) -> None:
        remaining = deque(items)  # shared, as taking one is atomic

        def work() -> None:
            for item in _taken(remaining):
                try:
                    self._ask(item)
                except EpochfsError as error:
                    log.debug("asking ahead for %s: %s", printable(item), error)
                    if isinstance(error, (Unavailable, DeadlineExceeded)):
                        return

        with contextlib.suppress(RuntimeError):  # the pool is shut down while unmounting
            for _ in items[: self._workers]:
                self._pool.submit(work)


class AheadOfWalk(Ahead[K, K]):
    """Asks ahead of walks in an order, where each item is a sign, a few items in advance.

    The first item is no sign of a walk, but who asks for the one right behind it will probably go
    on. A walk that stops leaves no more than `workers` items behind; several can go on at once.
    """

    LIMIT = 16

    def seen(self, sign: K) -> None:
        """Note that somebody asks for an item; begin those behind it, if that is a walk."""
        behind = self._following(sign)
        with self._lock:
            begun = self.expected.pop(sign, None)
            if behind and begun is None:
                self.expected.setdefault(behind[0], 0)
            elif behind:
                self.expected[behind[0]] = len(behind) - 1
        if begun is not None:
            self._begin(behind[begun:])


def _taken(items: deque[K]) -> Iterator[K]:
    """Take and yield items that others may take, too. Those of a long listing are not kept until
    its end, which is when `ls -l` takes the most memory.
    """
    with contextlib.suppress(IndexError):
        while True:
            yield items.popleft()
