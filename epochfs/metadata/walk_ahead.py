"""Doing ahead what a walk in a known order will ask for next.

`find` asks for one repository after the other, and waits for the registry each time. The first is
no sign of a walk, but who asks for the one right behind it will probably go on: from then on the
next `depth` are begun in the background, and the window moves with the walk. A walk that stops
leaves no more than those behind; several walks at once each have their own.

Locks: `Lookahead._lock` guards `_expected` and `_begun`; no work is done under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

from cachetools import LRUCache

from epochfs.errors import EpochfsError, printable

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)

_WALKS = 16
"""So many places where a walk may go on are remembered."""


class Lookahead(Generic[K]):
    """Calls `work` in the background for what is `following` in a walk, up to `depth` items on."""

    def __init__(
        self,
        pool: Executor,
        following: Callable[[K, int], Sequence[K]],
        work: Callable[[K], object],
        depth: int,
    ) -> None:
        self._pool = pool
        self._following = following
        self._work = work
        self._depth = depth
        self._lock = threading.Lock()
        self._expected: LRUCache[K, None] = LRUCache(_WALKS)
        self._begun: LRUCache[K, None] = LRUCache(_WALKS * depth)

    def asked(self, item: K) -> None:
        """Take note that somebody asks for an item; begin those behind it, if that is a walk."""
        ahead = self._following(item, self._depth)
        with self._lock:
            walking = item in self._expected
            self._expected.pop(item, None)
            if ahead:
                self._expected[ahead[0]] = None
            # What was asked for is done with: a later walk may begin it again.
            self._begun.pop(item, None)
            new = [one for one in ahead if one not in self._begun] if walking else []
            self._begun.update(dict.fromkeys(new))
        with contextlib.suppress(RuntimeError):  # the pool is shut down while unmounting
            for one in new:
                self._pool.submit(self._do, one)

    def _do(self, item: K) -> None:
        try:
            self._work(item)
        except EpochfsError as error:
            log.debug("looking ahead at %s: %s", printable(item), error)
