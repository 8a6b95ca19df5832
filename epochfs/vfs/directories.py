"""Listings of directories, kept for each reader while it may go on reading.

The kernel asks for a long listing in parts, and who reads it sees no name twice and misses none,
whatever changes meanwhile. It need not say when it stops: for most directories one part is all, and
to be told of each that is opened and closed would take as long as to list it. So a listing is kept
until many others were begun, a long one until its end was read. Of one that had to go a hash is
kept, by which it is known whether the same is listed still.

Locks: `Readers._lock` guards its tables; nothing is listed under it.
"""

from __future__ import annotations

import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple

from cachetools import LRUCache

from epochfs.errors import EpochfsError, Vanished, fresh
from epochfs.vfs.node import Entries, inode

_MOST_NAMES = 500_000
"""How many names are kept: some 50 MB, if so many directories are only read half."""

_OVERHEAD = 100
"""A listing without names takes as much memory as so many names."""

_LONG = 1000
"""A listing of so many names goes once its end was read."""

_MOST_GONE = 10_000


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One name in a directory, with its file type and inode number."""

    name: str
    mode: int
    inode: int


class Listing:
    """What a directory listed at one moment: 12 bytes a name, besides the name.

    `error` is why the listing is incomplete, or None; iterating ends by raising it.
    """

    __slots__ = ("_below", "_identities", "_modes", "error", "names", "path")

    def __init__(self, path: str, entries: Entries, identities: Mapping[str, str]) -> None:
        """`path` is the directory's; `identities` are of the names that have one (see `Attr`)."""
        self.path = path
        self._below = path.rstrip("/")
        self._identities = identities
        self.names: list[str] = []
        self._modes = array("I")
        self.error: EpochfsError | None = None
        try:
            for name, mode in entries:
                self.names.append(name)
                self._modes.append(mode)
        except EpochfsError as error:
            self.error = error

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[DirectoryEntry]:
        yield from (self[number] for number in range(len(self)))
        if self.error is not None:
            raise fresh(self.error)

    def __getitem__(self, index: int) -> DirectoryEntry:
        name = self.names[index]
        identity = self._identities.get(name, f"{self._below}/{name}")
        return DirectoryEntry(name, self._modes[index], inode(identity))


class _Gone(NamedTuple):
    """A listing that had to go."""

    path: str
    names: int
    """Their hash."""


class Readers:
    """The listings of those who read directories, each known by a number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, Listing] = OrderedDict()
        self._size = 0
        self._gone: LRUCache[int, _Gone] = LRUCache(_MOST_GONE)

    def begin(self, reader: int, listing: Listing) -> None:
        """Keep what a reader has begun with; a number may be that of another before."""
        with self._lock:
            self._forget(reader)
            self._keep(reader, listing)

    def go_on(self, reader: int, path: str, anew: Callable[[], Listing]) -> Listing:
        """Return what a reader has begun with. Lists the directory `anew` if that is not kept.

        Raises Vanished if another listing is all that there is now.
        """
        with self._lock:
            listing = self._kept.get(reader)
            if listing is not None and listing.path == path:
                self._kept.move_to_end(reader)
                return listing
            gone = self._gone.get(reader)
        listing = anew()
        if gone is not None and gone.path == path and gone != _gone(listing):
            raise Vanished("the directory changed while it was read: read it again")
        self.begin(reader, listing)
        return listing

    def end(self, reader: int) -> None:
        """Note that a reader was told that there is no more; it may go back, though."""
        with self._lock:
            listing = self._kept.get(reader)
            if listing is not None and len(listing) >= _LONG:
                self._drop(reader)
            elif listing is not None:
                self._kept.move_to_end(reader, last=False)

    def _keep(self, reader: int, listing: Listing) -> None:
        self._kept[reader] = listing
        self._size += len(listing) + _OVERHEAD
        while self._size > _MOST_NAMES and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def _drop(self, reader: int) -> None:
        listing = self._kept[reader]
        self._forget(reader)
        self._gone[reader] = _gone(listing)

    def _forget(self, reader: int) -> None:
        listing = self._kept.pop(reader, None)
        if listing is not None:
            self._size -= len(listing) + _OVERHEAD
        self._gone.pop(reader, None)


def _gone(listing: Listing) -> _Gone:
    # One by one: a copy of the names would be made just when a long listing takes the most memory.
    names = reduce(lambda before, name: hash((before, name)), listing.names, 0)
    return _Gone(listing.path, names)
