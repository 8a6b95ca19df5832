"""Asks in the background for what somebody will probably ask for next.

`ls -l` looks at each name that it has listed, and `find` at one repository after the other; each
time they wait for the registry. A sign that was expected begins the rest: the first tag of a listed
directory that is resolved, or the repository right behind the one asked for before.

Locks: `Ahead._lock` guards `_expected`; each beginning has a lock for its iterator over the items.
Nobody takes one of them inside the other, and nothing is asked under either.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import ClassVar, Generic, TypeVar

from cachetools import LRUCache

from epochfs.errors import DeadlineExceeded, EpochfsError, Unavailable, printable

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Hashable)
K = TypeVar("K", bound=Hashable)


class Ahead(Generic[S, K]):
    """Calls `ask` in the background for all that is `following` a sign, once, if it was expected.

    Up to `workers` threads of the pool share the items, in their order. One that gets no answer
    stops: the registry is away, and each further item would wait as long.
    """

    LIMIT: ClassVar = 1000
    """So many signs are expected, those noted last."""

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
        # To each sign how many of the items that follow it are begun already.
        self._expected: LRUCache[S, int] = LRUCache(self.LIMIT)

    def expect(self, sign: S) -> None:
        """Begin what follows a sign when it is next seen."""
        with self._lock:
            self._expected[sign] = 0

    def seen(self, sign: S) -> None:
        """Take note of a sign; begin what follows it if it was expected."""
        with self._lock:
            begun = self._expected.pop(sign, None)
        if begun is not None:
            self._begin(self._following(sign))

    def _begin(self, items: Sequence[K]) -> None:
        remaining, lock = iter(items), threading.Lock()

        def work() -> None:
            while True:
                with lock:
                    item = next(remaining, None)
                if item is None:
                    return
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
    """Does so for walks in an order, where each item is a sign: its window moves with the walk.

    The first is no sign of a walk, but who asks for the one right behind it will probably go on. A
    walk that stops leaves no more than one window behind; several at once each have their own.
    """

    LIMIT = 16

    def seen(self, sign: K) -> None:
        """Take note that somebody asks for an item; begin those behind it, if that is a walk."""
        window = self._following(sign)
        with self._lock:
            begun = self._expected.pop(sign, None)
            if window and begun is None:
                self._expected.setdefault(window[0], 0)
            elif window:
                self._expected[window[0]] = len(window) - 1
        if begun is not None:
            self._begin(window[begun:])
