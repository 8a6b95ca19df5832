"""The data map of a sparse file in a tar stream (GNU tar's manual, "Storing Sparse Files").

Five formats: in the header block and blocks behind it; in an extended header, one record for each
number, or all in one; and as text before the data, of which GNU tar knows one version.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping

from epochfs.errors import ProtocolViolation
from epochfs.layers.entry import Piece
from epochfs.layers.tar_stream import BLOCK, ForwardStream
from epochfs.layers.tarheaders import Records, decimal, number

Spans = list[tuple[int, int]]
"""(offset, size) in the file of what is stored, in the order in which it is."""

_SPANS = struct.Struct("12s12s" * 4 + "c12s")
_SPANS_AT = 386
_MORE_SPANS = struct.Struct("12s12s" * 21 + "c7x")
_OFFSET, _SIZE = b"GNU.sparse.offset", b"GNU.sparse.numbytes"
_MAP = b"GNU.sparse.map"
_VERSION = (b"GNU.sparse.major", b"GNU.sparse.minor")
_REAL_SIZES = (b"GNU.sparse.realsize", b"GNU.sparse.size")
_NO_NUMBER = re.compile(rb"[^0-9]")


def in_header(block: bytes, stream: ForwardStream) -> tuple[Spans, int]:
    """Return the spans and the size of a file whose header is a block of GNU's own type."""
    *numbers, more, size = _SPANS.unpack_from(block, _SPANS_AT)
    while more != b"\0":
        block = stream.block()
        if len(block) < BLOCK:
            raise ProtocolViolation("a tar stream that ends within a header")
        *further, more = _MORE_SPANS.unpack(block)
        numbers += further
    # What is not used has no digits.
    used = [field for field in numbers if field[0]]
    return _pairs([number(field) for field in used]), number(size)


def in_records(
    records: Mapping[bytes, bytes], said: Records, stream: ForwardStream
) -> Spans | None:
    """Return the spans by an extended header, or by what it says is in the data before them.

    `records` are the last of each key, `said` are all. None for a file that is not sparse.
    """
    if _MAP in records:
        return _pairs([decimal(digits) for digits in records[_MAP].split(b",") if digits])
    if any(key == _OFFSET for key, _ in said):
        return _pairs([decimal(value) for key, value in said if key in (_OFFSET, _SIZE)])
    if tuple(records.get(key) for key in _VERSION) == (b"1", b"0"):
        return _in_data(stream)
    return None


def real_size(records: Mapping[bytes, bytes], stored: int) -> int:
    """Return the size of a sparse file with its holes."""
    for key in _REAL_SIZES:
        if key in records:
            return decimal(records[key])
    return stored


def pieces(spans: Spans, size: int, offset: int, stop: int) -> tuple[Piece, ...]:
    """Return the spans of a file of `size` bytes as its pieces, stored from `offset` to `stop`."""
    found, end = [], 0
    for start, length in spans:
        if length < 0 or start < end or start + length > size or offset + length > stop:
            raise ProtocolViolation("a sparse file whose map makes no sense")
        if length:
            found.append(Piece(start, length, offset))
        offset, end = offset + length, start + length
    return tuple(found)


def _in_data(stream: ForwardStream) -> Spans:
    """Read a map that is text: how many spans there are, and their numbers, each on a line."""
    lines, wanted = [b""], 1
    while len(lines) <= wanted:
        block = stream.block()
        if len(block) < BLOCK:
            raise ProtocolViolation("a tar stream that ends within a sparse file's map")
        first, *rest = block.split(b"\n")
        lines[-1] += first
        lines += rest
        if len(lines) > 1:
            wanted = 1 + 2 * _count(lines[0])
    return _pairs([_count(line) for line in lines[1:wanted]])


def _count(digits: bytes) -> int:
    if not digits or _NO_NUMBER.search(digits):
        raise ProtocolViolation("a sparse file whose map has no number")
    return decimal(digits)


def _pairs(numbers: list[int]) -> Spans:
    if len(numbers) % 2:
        raise ProtocolViolation("a sparse file whose map has an odd number of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
