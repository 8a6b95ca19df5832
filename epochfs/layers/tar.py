"""The tar reader: the entries of a layer's tar stream (OCI Image specification, layer.md).

The stream is hostile: it is read forwards only, and all that is held in memory is bounded.

The data map of a sparse file (GNU tar's manual, "Storing Sparse Files") comes in five formats: in
the header block and the blocks behind it; in an extended header, as a record per number or all in
one record; and as text before the data, of which GNU tar knows one version.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from epochfs.errors import InvalidName, ProtocolViolation, TooLarge, printable
from epochfs.layers.entry import NO_XATTRS, Entry, Piece, checked_time, clean_path
from epochfs.layers.tar_stream import (
    BLOCK,
    MAX_HEADER_BYTES,
    Header,
    Records,
    TarStream,
    decimal,
    number,
    parse_header,
    parse_records,
    text,
)

log = logging.getLogger(__name__)

_MAX_OWNER = 2**32 - 1
_MAX_SIZE = 2**63 - 1
_MAX_XATTR_NAME = 255
_MAX_XATTR_BYTES = 64 << 10
_MAX_GLOBAL_HEADERS = 100
_XATTR = b"SCHILY.xattr."

_PLAIN_TIME = re.compile(rb"([0-9]{1,10})\.([0-9]{1,9})\Z")
_MAX_SECONDS = 1e11
"""More than any 64-bit time in nanoseconds: an exact 1e999999 would take minutes to compute."""

_REGULAR, _OLD_REGULAR, _CONTIGUOUS, _SPARSE = b"0", b"\0", b"7", b"S"
_HARD_LINK, _LINK, _DIRECTORY = b"1", b"2", b"5"
_CHARACTER_DEVICE, _BLOCK_DEVICE, _FIFO = b"3", b"4", b"6"
_EXTENDED, _SOLARIS_EXTENDED, _GLOBAL = b"x", b"X", b"g"
_LONG_NAME, _LONG_LINK = b"L", b"K"

_EXTENSIONS = (_EXTENDED, _SOLARIS_EXTENDED, _GLOBAL, _LONG_NAME, _LONG_LINK)
_WITH_DATA = (_REGULAR, _OLD_REGULAR, _CONTIGUOUS, _SPARSE)
_TYPES = {
    **dict.fromkeys((*_WITH_DATA, _HARD_LINK), stat.S_IFREG),
    _LINK: stat.S_IFLNK,
    _CHARACTER_DEVICE: stat.S_IFCHR,
    _BLOCK_DEVICE: stat.S_IFBLK,
    _DIRECTORY: stat.S_IFDIR,
    _FIFO: stat.S_IFIFO,
}
_NO_RECORDS: Mapping[bytes, bytes] = {}

_MAP_IN_HEADER = struct.Struct("12s12s" * 4 + "c12s")
_MAP_OFFSET = 386
_MAP_BLOCK = struct.Struct("12s12s" * 21 + "c7x")
_MAP = b"GNU.sparse.map"
_MAP_NUMBERS = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
_MAP_VERSION = (b"GNU.sparse.major", b"GNU.sparse.minor")
_REAL_SIZES = (b"GNU.sparse.realsize", b"GNU.sparse.size")

_Spans = list[tuple[int, int]]
"""A sparse file's data map: the (offset, size) in the file of each stored span, in order."""


@dataclass(frozen=True, slots=True)
class _Extensions:
    """What the headers before an entry's own header add to it."""

    records: Records = field(default_factory=list)
    long_name: bytes = b""
    long_link: bytes = b""


_NONE = _Extensions()


class TarReader:
    """Iterates over the entries of a stream; an empty stream has none.

    Raises ProtocolViolation if it is no tar stream. Entries with invalid paths are left out, with
    one log line for all of them.
    """

    def __init__(self, stream: TarStream) -> None:
        self._stream = stream
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Entry]:
        stream, extensions = self._stream, _NONE
        refused: InvalidName | None = None
        while header := parse_header(block := stream.take(BLOCK)):
            if header.kind in _EXTENSIONS:
                extensions = self._extended(header, extensions)
                continue
            records = _NO_RECORDS
            if extensions is not _NONE or self._globals:
                # An empty value takes back a global one.
                merged = {**self._globals, **dict(extensions.records)}
                records = {key: value for key, value in merged.items() if value}
                header = _with_long_names(header, extensions, records)
            if header.kind == _OLD_REGULAR and header.name.endswith(b"/"):
                header = header._replace(kind=_DIRECTORY)
            size, pieces, end = self._data(header, block, extensions, records)
            try:
                entry = self._entry(header, records, size, pieces)
                if entry is not None:
                    yield entry
            except InvalidName as error:
                refused = refused or error
            stream.next_entry(end)
            extensions = _NONE
        if 0 < stream.position < BLOCK:
            raise ProtocolViolation("not a tar stream: it is shorter than a header")
        if extensions is not _NONE:
            raise ProtocolViolation("not a tar stream: it ends after an extended header")
        if block and stream.take(BLOCK).strip(b"\0"):
            raise ProtocolViolation("not a tar stream: one block of zeros, then more data")
        if refused is not None:
            log.warning("left entries with invalid paths out of a layer, such as: %s", refused)

    def _extended(self, header: Header, extensions: _Extensions) -> _Extensions:
        """Read a header that extends the next entry's; return all its extensions so far."""
        size = number(header.size)
        if size < 0:
            raise ProtocolViolation(f"not the size of a tar header: {size}")
        body = self._stream.take(_padded(size))
        if len(body) < size:
            raise ProtocolViolation("a tar stream that ends within a header")
        body = body[:size]
        if header.kind == _GLOBAL:
            self._globals.update(parse_records(body))
            # They are part of each entry's headers.
            total = sum(len(key) + len(value) for key, value in self._globals.items())
            if len(self._globals) > _MAX_GLOBAL_HEADERS or total > MAX_HEADER_BYTES:
                raise TooLarge(f"{len(self._globals)} global headers in a layer, of {total} bytes")
            return extensions
        if header.kind == _LONG_NAME:
            return replace(extensions, long_name=text(body))
        if header.kind == _LONG_LINK:
            return replace(extensions, long_link=text(body))
        return replace(extensions, records=parse_records(body))

    def _data(
        self, header: Header, block: bytes, extensions: _Extensions, records: Mapping[bytes, bytes]
    ) -> tuple[int, tuple[Piece, ...], int]:
        """Return a file's size, its pieces, and the position behind it."""
        stream = self._stream
        if header.kind in _TYPES and header.kind not in _WITH_DATA:
            return 0, (), stream.position
        stored = decimal(records[b"size"]) if b"size" in records else number(header.size)
        spans, size = None, stored
        if header.kind == _SPARSE:
            spans, size = _spans_in_header(block, stream)
        start = stream.position
        if spans is None and records:
            spans = _spans_in_records(records, extensions.records, stream)
            sizes = [records[key] for key in _REAL_SIZES if key in records]
            size = decimal(sizes[0]) if spans is not None and sizes else stored
        if not (0 <= stored <= _MAX_SIZE and 0 <= size <= _MAX_SIZE):
            raise ProtocolViolation(f"not the size of a file: {min(stored, size)}")
        end = start + _padded(stored)
        if spans is not None:
            return size, _sparse_pieces(spans, size, stream.position, start + stored), end
        return size, (Piece(0, size, start),) if size else (), end

    def _entry(
        self, header: Header, records: Mapping[bytes, bytes], size: int, pieces: tuple[Piece, ...]
    ) -> Entry | None:
        """Return an entry; None if it is not a file. Raises InvalidName."""
        kind = _TYPES.get(header.kind)
        if kind is None:
            return None
        path = clean_path(header.name)
        if not path and kind != stat.S_IFDIR:
            raise InvalidName("the root is not a directory")
        if header.kind == _HARD_LINK:
            return Entry(path, kind, link=clean_path(header.link), is_hard_link=True)
        uid, gid = number(header.uid), number(header.gid)
        time_ns, xattrs, rdev = number(header.mtime) * 10**9, NO_XATTRS, 0
        if records:
            uid = _owner(records[b"uid"]) if b"uid" in records else uid
            gid = _owner(records[b"gid"]) if b"gid" in records else gid
            time_ns = _time_ns(records[b"mtime"]) if b"mtime" in records else time_ns
            xattrs = pax_xattrs(records)
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            rdev = os.makedev(number(header.major) & 0xFFF, number(header.minor) & 0xFFFFF)
        return Entry(
            path,
            kind | number(header.mode) & 0o7777,
            min(max(uid, 0), _MAX_OWNER),
            min(max(gid, 0), _MAX_OWNER),
            size,
            checked_time(time_ns),
            rdev,
            header.link if kind == stat.S_IFLNK else b"",
            xattrs=xattrs,
            pieces=pieces,
        )


def _padded(size: int) -> int:
    """Round a size up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _with_long_names(
    header: Header, extensions: _Extensions, records: Mapping[bytes, bytes]
) -> Header:
    """Return a header with the names that did not fit into it."""
    path = records.get(b"GNU.sparse.name") or records.get(b"path") or header.name
    link = records.get(b"linkpath") or header.link
    return header._replace(name=extensions.long_name or path, link=extensions.long_link or link)


def _time_ns(value: bytes) -> int:
    """Convert seconds to nanoseconds, exactly, which a float could not do."""
    if plain := _PLAIN_TIME.match(value):
        return int(plain[1]) * 10**9 + int(plain[2].ljust(9, b"0"))
    try:
        seconds = float(value)
    except ValueError:
        return 0
    if not math.isfinite(seconds):
        raise ProtocolViolation(f"not a time in a tar stream: {printable(value, 40)}")
    if abs(seconds) >= _MAX_SECONDS:
        return int(math.copysign(_MAX_SIZE, seconds))
    return int(Decimal(value.decode("ascii")) * 10**9)


def _owner(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 20 else 0


def pax_xattrs(records: Mapping[bytes, bytes]) -> dict[str, bytes]:
    """Return the extended attributes among an extended header's records, those Linux allows."""
    return {
        os.fsdecode(key[len(_XATTR) :]): value
        for key, value in records.items()
        if key.startswith(_XATTR) and is_xattr(key[len(_XATTR) :], value)
    }


def is_xattr(name: bytes, value: bytes) -> bool:
    """Whether Linux allows such an extended attribute (xattr(7))."""
    is_name = 0 < len(name) <= _MAX_XATTR_NAME and b"\0" not in name
    return is_name and len(value) <= _MAX_XATTR_BYTES


def _spans_in_header(block: bytes, stream: TarStream) -> tuple[_Spans, int]:
    """Return the spans and the size of a file of GNU's own sparse type."""
    *numbers, more, size = _MAP_IN_HEADER.unpack_from(block, _MAP_OFFSET)
    while more != b"\0":
        block = stream.take(BLOCK)
        if len(block) < BLOCK:
            raise ProtocolViolation("a tar stream that ends within a header")
        *further, more = _MAP_BLOCK.unpack(block)
        numbers += further
    # Unused fields have no digits.
    return _pairs([number(field) for field in numbers if field[0]]), number(size)


def _spans_in_records(
    records: Mapping[bytes, bytes], in_order: Records, stream: TarStream
) -> _Spans | None:
    """Return the spans that an extended header has or points to; None for an ordinary file.

    `records` has the last of each key, `in_order` all of them.
    """
    if _MAP in records:
        return _pairs([decimal(digits) for digits in records[_MAP].split(b",") if digits])
    if any(key == _MAP_NUMBERS[0] for key, _ in in_order):
        return _pairs([decimal(value) for key, value in in_order if key in _MAP_NUMBERS])
    if tuple(records.get(key) for key in _MAP_VERSION) == (b"1", b"0"):
        return _spans_in_data(stream)
    return None


def _spans_in_data(stream: TarStream) -> _Spans:
    """Read a map that is text: a line for the number of spans, then a line per number."""
    lines, wanted = [b""], 1
    while len(lines) <= wanted:
        block = stream.take(BLOCK)
        if len(block) < BLOCK:
            raise ProtocolViolation("a tar stream that ends within a sparse file's map")
        first, *rest = block.split(b"\n")
        lines[-1] += first
        lines += rest
        if len(lines) > 1:
            wanted = 1 + 2 * _map_number(lines[0])
    return _pairs([_map_number(line) for line in lines[1:wanted]])


def _map_number(digits: bytes) -> int:
    if not digits.isdigit():
        raise ProtocolViolation("not a number in a sparse file's map")
    return decimal(digits)


def _pairs(numbers: list[int]) -> _Spans:
    if len(numbers) % 2:
        raise ProtocolViolation("a sparse file's map with an odd number of numbers")
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _sparse_pieces(spans: _Spans, size: int, offset: int, stop: int) -> tuple[Piece, ...]:
    """Return the pieces of a sparse file of `size` bytes, stored from `offset` to `stop`."""
    found, end = [], 0
    for start, length in spans:
        if length < 0 or start < end or start + length > size or offset + length > stop:
            raise ProtocolViolation("a sparse file with an impossible map")
        if length:
            found.append(Piece(start, length, offset))
        offset, end = offset + length, start + length
    return tuple(found)
