"""Regular files whose bytes are written here, from what the registry says at the moment.

The kernel remembers a file's size for some time, and who copies a file believes it. A tag that
moves between `stat` and `open` must not leave a reader with the old size and the new bytes; so for
as long as the kernel may remember, a file opens as the bytes whose size it was last told.

Locks: `GeneratedFiles._lock` guards `_told`; no I/O happens under it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from cachetools import TTLCache

from epochfs.metadata.listings import Listings
from epochfs.vfs.node import CONSTANT_TIME_NS, FILE, Attr, Node

_MAX_TOLD_BYTES = 32 * 1024 * 1024
_SLACK_SECONDS = 0.5
"""How long an answer may be on its way to the kernel, whose time begins when it is there."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A document that is written here: its bytes, and the time of the newest thing in it."""

    data: bytes
    time_ns: int = CONSTANT_TIME_NS

    @property
    def attr(self) -> Attr:
        """What stat(2) says of it."""
        return Attr(FILE, len(self.data), self.time_ns)


class GeneratedFile(Node):
    """A node that is such a file. It is its own key, so two of one path are equal."""

    __slots__ = ()

    def generated(self, listings: Listings) -> Generated:
        """Return the file as it is now; raises NotFound where there is none."""
        raise NotImplementedError

    def attr(self, listings: Listings) -> Attr:
        return self.generated(listings).attr


class GeneratedFiles:
    """The generated files of a mount, as the kernel was told they are."""

    def __init__(self, listings: Listings) -> None:
        self._listings = listings
        self._lock = threading.Lock()
        self._told: TTLCache[GeneratedFile, bytes] = TTLCache(
            _MAX_TOLD_BYTES, listings.kernel_ttl + _SLACK_SECONDS, getsizeof=len
        )

    def attr(self, node: GeneratedFile) -> Attr:
        """Return the attributes, and remember what they are of."""
        found = node.generated(self._listings)
        with self._lock:
            self._told.pop(node, None)
            if len(found.data) <= _MAX_TOLD_BYTES:
                self._told[node] = found.data
        return found.attr

    def read(self, node: GeneratedFile) -> bytes:
        """Return the bytes that the kernel expects, or the present ones."""
        with self._lock:
            told = self._told.get(node)
        return node.generated(self._listings).data if told is None else told
