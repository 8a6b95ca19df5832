"""Keeps generated files as the kernel remembers them, and knows which files' pages it may keep.

The kernel remembers a file's size for some time, and programs that copy a file rely on it. A tag
that moves between `stat` and `open` must not leave a reader with the old size and the new bytes; so
for as long as the kernel may remember, a generated file opens as the bytes whose size it was last
told. Files are told apart by any hashable key.

Locks: `KernelMemory._lock` guards its tables and the fields of `_Held`; no I/O happens under it.
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
"""How long an answer may take to the kernel, whose time begins when it arrives."""

_MAX_VERIFIED = 100_000
"""How many files are remembered as verified when they were last opened."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A generated file: its bytes, and the time of the newest thing in it."""

    data: bytes
    time_ns: int


@dataclass(slots=True, eq=False)
class _Held:
    """The bytes whose pages open handles share: `file`, first opened so at `since`.

    `changed` once the kernel was told another size.
    """

    file: Generated
    since: float
    until: float = 0.0
    handles: int = 0
    changed: bool = False


class KernelMemory:
    """What the kernel was told about a mount's files. Any thread may call anything."""

    def __init__(self, ttl: float | None) -> None:
        """`ttl` is how long the kernel remembers a size, in seconds; None where it remembers none,
        as what is written to the mount is to be seen at once.
        """
        self._remembers = ttl is not None
        self._seconds = (ttl or 0.0) + _SLACK_SECONDS
        self._lock = threading.Lock()
        self._told: TTLCache[Hashable, Generated] = TTLCache(
            _MAX_TOLD_BYTES, self._seconds, getsizeof=lambda file: len(file.data)
        )
        self._held: dict[Hashable, _Held] = {}
        self._verified: LRUCache[Hashable, None] = LRUCache(_MAX_VERIFIED)

    def tell(self, key: Hashable, found: Generated) -> Generated:
        """Return what to tell the kernel that a generated file is, and note that it was told."""
        if not self._remembers:
            return found
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
        """Open the bytes that the kernel expects of a generated file, else the present ones."""
        with self._lock:
            told = self._told.get(key)
            held = None if told is None else self._hold(key, told)
        if told is None or held is None:
            return GeneratedHandle((told or present()).data)
        return GeneratedHandle(told.data, held, partial(self._let_go, key, held))

    def keeps_pages(self, key: Hashable, *, verified: bool) -> bool:
        """Whether all pages that the kernel has of a file being opened hold verified bytes.

        They do if it was verified at its last open too, which made the kernel drop older ones.
        """
        with self._lock:
            keeps = verified and key in self._verified
            if verified:
                self._verified[key] = None
            else:
                self._verified.pop(key, None)
            return keeps

    def _hold(self, key: Hashable, told: Generated) -> _Held | None:
        """Keep a file for a while as it was told; None if that cannot be. The lock is held.

        It can be opened so for half of the time that the kernel remembers, and stays for the other
        half: so every reader has time to read it, and none keeps the new version away for long.
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


class InMemory:
    """An open file whose content is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


class GeneratedHandle(InMemory):
    """An open generated file. Its pages may be kept and mapped unless it is `direct_io`."""

    def __init__(
        self, data: bytes, held: _Held | None = None, on_close: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(data)
        self.direct_io = held is None
        self._held = held
        self._on_close = on_close

    def read_into(self, view: memoryview, offset: int) -> int:
        if self._held is not None and self._held.changed:
            raise Vanished("the file has changed since it was opened: open it again")
        return super().read_into(view, offset)

    def close(self) -> None:
        self._on_close()
