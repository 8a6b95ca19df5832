"""Keeps the answers to who lists small directories, to be given again while nothing changed.

Who walks a tree once does so again: every backup does. Most directories are small, and most of what
it takes to list one is to say each time anew what its few names are.

Locks: `Answers._lock` guards its table; nothing is listed under it.
"""

from __future__ import annotations

import threading
from typing import NamedTuple

from cachetools import LRUCache

from epochfs.fuse.libfuse import Answer
from epochfs.vfs.directories import Listing
from epochfs.vfs.filesystem import Basis

_MOST_ENTRIES = 60_000
"""How many entries are kept: each takes some 300 bytes, the directory's own among them."""


class Kept(NamedTuple):
    """The answer to who lists a directory; `basis` is what `listing` follows from."""

    basis: Basis
    listing: Listing
    answer: Answer


class Answers:
    """The last answers of one mount, by the paths of the directories."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[str, Kept] = LRUCache(_MOST_ENTRIES, lambda kept: len(kept.answer))

    def get(self, path: str) -> Kept | None:
        with self._lock:
            return self._kept.get(path)

    def put(self, path: str, kept: Kept) -> None:
        with self._lock:
            self._kept.pop(path, None)
            self._kept[path] = kept
