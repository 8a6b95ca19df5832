"""Reads FlatBuffers (the "FlatBuffer Internals" of its documentation) that may be hostile.

Each offset is checked before it is followed. Parts of a buffer may be shared, and a small one could
so describe endless content: all that is read of one is bounded by a multiple of its size.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from epochfs.errors import ProtocolViolation

_MAX_SHARING = 4
"""How often each byte may be read; writers share little but the descriptions of tables."""

_OFFSET = struct.Struct("<I")
_SIGNED_OFFSET = struct.Struct("<i")
_SLOT = struct.Struct("<H")
_FIRST_SLOT = 4


class FlatBuffer:
    """A buffer, and how much of it may still be read. Raises ProtocolViolation."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)
        self._left = _MAX_SHARING * len(data)

    def root(self) -> Table:
        """Return the table that the buffer is of."""
        return Table(self, self.follow(0))

    def number(self, kind: struct.Struct, position: int) -> int:
        """Return the number at a position."""
        return int(kind.unpack(self.part(position, kind.size))[0])

    def follow(self, position: int) -> int:
        """Return where the offset at a position leads."""
        return position + self.number(_OFFSET, position)

    def part(self, position: int, size: int) -> memoryview:
        """Return `size` bytes from a position."""
        if not 0 <= position <= len(self._data) - size:
            raise ProtocolViolation("an offset leads out of it")
        self._left -= size
        if self._left < 0:
            raise ProtocolViolation("its parts are shared too often")
        return self._data[position : position + size]

    def vector(self, position: int, width: int) -> tuple[int, int]:
        """Return the first position and the number of the elements of a vector."""
        count = self.number(_OFFSET, position)
        if count * width > len(self._data):
            raise ProtocolViolation("a vector is longer than it")
        return position + _OFFSET.size, count


class Table:
    """A table, whose fields are numbered as in the schema; one that is not there is empty."""

    def __init__(self, buffer: FlatBuffer, position: int) -> None:
        self._buffer = buffer
        self._position = position
        self._slots = position - buffer.number(_SIGNED_OFFSET, position)
        self._end = buffer.number(_SLOT, self._slots)

    def number(self, field: int, kind: struct.Struct, default: int = 0) -> int:
        """Return a number."""
        position = self._find(field)
        return default if position is None else self._buffer.number(kind, position)

    def table(self, field: int) -> Table | None:
        """Return a table."""
        position = self._find(field)
        return None if position is None else Table(self._buffer, self._buffer.follow(position))

    def octets(self, field: int) -> memoryview:
        """Return a string, or a vector of bytes, as it is."""
        position = self._find(field)
        return memoryview(b"") if position is None else self._octets(position)

    def texts(self, field: int) -> Iterator[bytes]:
        """Yield the strings of a vector."""
        return (bytes(self._octets(position)) for position in self._elements(field))

    def tables(self, field: int) -> Iterator[Table]:
        """Yield the tables of a vector."""
        follow = self._buffer.follow
        return (Table(self._buffer, follow(position)) for position in self._elements(field))

    def _find(self, field: int) -> int | None:
        """Return where a field is; None if the table lacks it."""
        slot = _FIRST_SLOT + _SLOT.size * field
        if slot + _SLOT.size > self._end:
            return None
        distance = self._buffer.number(_SLOT, self._slots + slot)
        return self._position + distance if distance else None

    def _octets(self, position: int) -> memoryview:
        return self._buffer.part(*self._buffer.vector(self._buffer.follow(position), 1))

    def _elements(self, field: int) -> Iterator[int]:
        """Yield the positions of the offsets in a vector."""
        position = self._find(field)
        if position is not None:
            first, count = self._buffer.vector(self._buffer.follow(position), _OFFSET.size)
            yield from range(first, first + _OFFSET.size * count, _OFFSET.size)
