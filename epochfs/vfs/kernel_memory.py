"""The kernel's memory of one mount's regular files, and how these stay as it has them.

The kernel remembers a file's size for some time, and who copies a file believes it. A tag that
moves between `stat` and `open` must not leave a reader with the old size and the new bytes; so for
as long as the kernel may remember, a generated file opens as the bytes whose size it was last told.

Files are told apart by any key that is hashable.

Locks: `KernelMemory._lock` guards its tables, and the fields of what is held; no I/O happens under
it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import partial

from cachetools import LRUCache, TTLCache

from epochfs.errors import Vanished

_MAX_TOLD_BYTES = 32 * 1024 * 1024
_SLACK_SECONDS = 0.5
"""How long an answer may be on its way to the kernel, whose time begins when it is there."""

_MAX_VERIFIED = 100_000
"""Of how many files it is remembered that they were verified when they were last opened."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A document that is written here: its bytes, and the time of the newest thing in it."""

    data: bytes
    time_ns: int


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


class KernelMemory:
    """What the kernel was told of a mount's files. Any thread may call anything."""

    def __init__(self, ttl: float) -> None:
        """`ttl` is for how many seconds the kernel remembers a size."""
        self._seconds = ttl + _SLACK_SECONDS
        self._lock = threading.Lock()
        self._told: TTLCache[Hashable, Generated] = TTLCache(
            _MAX_TOLD_BYTES, self._seconds, getsizeof=lambda file: len(file.data)
        )
        self._held: dict[Hashable, _Held] = {}
        self._verified: LRUCache[Hashable, None] = LRUCache(_MAX_VERIFIED)

    def tell(self, key: Hashable, found: Generated) -> Generated:
        """Return what the kernel is to be told a generated file is, and note that it is told."""
        with self._lock:
            held = self._held.get(key)
            if held is not None and time.monotonic() < held.until:
                found = held.file
            elif held is not None and len(held.file.data) != len(found.data):
                held.changed = True
            self._told.pop(key, None)
            if len(found.data) <= _MAX_TOLD_BYTES:
                self._told[key] = found
        return found

    def open(self, key: Hashable, present: Callable[[], Generated]) -> GeneratedHandle:
        """Open the bytes that the kernel expects of a generated file, or else the present ones."""
        with self._lock:
            told = self._told.get(key)
            held = None if told is None else self._hold(key, told)
        if told is None or held is None:
            return GeneratedHandle((told or present()).data)
        return GeneratedHandle(told.data, held, partial(self._let_go, key, held))

    def keeps_pages(self, key: Hashable, *, verified: bool) -> bool:
        """Whether the kernel's pages of a file that is opened now are all of verified bytes.

        They are if it was verified at the last open too, which had it drop those from before.
        """
        with self._lock:
            keeps = verified and key in self._verified
            if verified:
                self._verified[key] = None
            else:
                self._verified.pop(key, None)
            return keeps

    def _hold(self, key: Hashable, told: Generated) -> _Held | None:
        """Have a file stay for a while as it was told; None if it cannot. The lock is held.

        It stays for half of the time that it may, and may be opened so for the other half: then all
        who did have time to read it, and whoever keeps it open keeps it from nobody for long.
        """
        now, half = time.monotonic(), self._seconds / 2
        held = self._held.setdefault(key, _Held(told, now))
        if held.changed or held.file.data != told.data or now > held.since + half:
            return None
        held.until = now + half
        held.handles += 1
        return held

    def _let_go(self, key: Hashable, held: _Held) -> None:
        with self._lock:
            held.handles -= 1
            if not held.handles:
                self._held.pop(key, None)


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
