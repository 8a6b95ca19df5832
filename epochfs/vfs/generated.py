"""Regular files whose bytes are written here, from what the registry says at the moment.

The kernel remembers a file's size for some time, and who copies a file believes it. A tag that
moves between `stat` and `open` must not leave a reader with the old size and the new bytes; so for
as long as the kernel may remember, a file opens as the bytes whose size it was last told.

Locks: `GeneratedFiles._lock` guards `_told`; no I/O happens under it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from cachetools import TTLCache

from epochfs.errors import Vanished
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


@dataclass(slots=True, eq=False)
class _Held:
    """The bytes that open handles share the pages of: `file`, first opened so at `since`.

    `changed` once the kernel was told of another size.
    """

    file: Generated
    since: float
    until: float = 0.0
    handles: int = 0
    changed: bool = False


class GeneratedFiles:
    """The generated files of a mount, as the kernel was told they are."""

    def __init__(self, listings: Listings) -> None:
        self._listings = listings
        self._seconds = listings.kernel_ttl + _SLACK_SECONDS
        self._lock = threading.Lock()
        self._told: TTLCache[GeneratedFile, Generated] = TTLCache(
            _MAX_TOLD_BYTES, self._seconds, getsizeof=lambda file: len(file.data)
        )
        self._held: dict[GeneratedFile, _Held] = {}

    def attr(self, node: GeneratedFile) -> Attr:
        """Return the attributes, and remember what they are of."""
        found = node.generated(self._listings)
        with self._lock:
            held = self._held.get(node)
            if held is not None and time.monotonic() < held.until:
                found = held.file
            elif held is not None and len(held.file.data) != len(found.data):
                held.changed = True
            self._told.pop(node, None)
            if len(found.data) <= _MAX_TOLD_BYTES:
                self._told[node] = found
        return found.attr

    def open(self, node: GeneratedFile) -> GeneratedHandle:
        """Open the bytes that the kernel expects, or else the present ones."""
        with self._lock:
            told = self._told.get(node)
            held = None if told is None else self._hold(node, told)
        if told is None or held is None:
            return GeneratedHandle((told or node.generated(self._listings)).data)
        return GeneratedHandle(told.data, held, partial(self._let_go, node, held))

    def _hold(self, node: GeneratedFile, told: Generated) -> _Held | None:
        """Have a file stay for a while as it was told; None if it cannot. The lock is held.

        It stays for half of the time that it may, and may be opened so for the other half: then all
        who did have time to read it, and whoever keeps it open keeps it from nobody for long.
        """
        now, half = time.monotonic(), self._seconds / 2
        held = self._held.setdefault(node, _Held(told, now))
        if held.changed or held.file.data != told.data or now > held.since + half:
            return None
        held.until = now + half
        held.handles += 1
        return held

    def _let_go(self, node: GeneratedFile, held: _Held) -> None:
        with self._lock:
            held.handles -= 1
            if not held.handles:
                self._held.pop(node, None)


class GeneratedHandle:
    """An open generated file. Its pages may be kept and mapped unless it is `direct_io`."""

    def __init__(
        self, data: bytes, held: _Held | None = None, on_close: Callable[[], None] = lambda: None
    ) -> None:
        self.direct_io = held is None
        self._data = data
        self._held = held
        self._on_close = on_close

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise Vanished."""
        if self._held is not None and self._held.changed:
            raise Vanished("the file has changed since it was opened: open it anew")
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        """Give it back; once."""
        self._on_close()
