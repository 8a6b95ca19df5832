"""The entries of a layer's tar stream, in order (OCI Image specification, layer.md).

The stream is hostile: it is read forwards only, and all that is taken into memory is bounded.
"""

from __future__ import annotations

import logging
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal

from epochfs.errors import InvalidName, ProtocolViolation, TooLarge, printable
from epochfs.layers import tarheaders, tarsparse
from epochfs.layers.entry import NO_XATTRS, Entry, PathCleaner, Piece, checked_time
from epochfs.layers.tar_stream import BLOCK, MAX_HEADER_BYTES, ForwardStream
from epochfs.layers.tarheaders import Header, Records, decimal, number

log = logging.getLogger(__name__)

_MAX_OWNER = 2**32 - 1
_MAX_SIZE = 2**63 - 1
_MAX_XATTR_NAME = 255
_MAX_XATTR_BYTES = 64 << 10
_XATTR = b"SCHILY.xattr."
_MAX_GLOBAL_HEADERS = 100

_PLAIN_TIME = re.compile(rb"([0-9]{1,10})\.([0-9]{1,9})\Z")
_MAX_SECONDS = 1e11
"""No 64-bit time in nanoseconds has so many; an exact one such as 1e999999 would take minutes to
make."""

_TYPES = {
    tarheaders.REGULAR: stat.S_IFREG,
    tarheaders.OLD_REGULAR: stat.S_IFREG,
    tarheaders.CONTIGUOUS: stat.S_IFREG,
    tarheaders.SPARSE: stat.S_IFREG,
    tarheaders.HARD_LINK: stat.S_IFREG,
    tarheaders.LINK: stat.S_IFLNK,
    tarheaders.CHARACTER_DEVICE: stat.S_IFCHR,
    tarheaders.BLOCK_DEVICE: stat.S_IFBLK,
    tarheaders.DIRECTORY: stat.S_IFDIR,
    tarheaders.FIFO: stat.S_IFIFO,
}
_WITH_DATA = (
    *(tarheaders.REGULAR, tarheaders.OLD_REGULAR, tarheaders.CONTIGUOUS, tarheaders.SPARSE),
)
_EXTENSIONS = (
    *(tarheaders.EXTENDED, tarheaders.SOLARIS_EXTENDED, tarheaders.GLOBAL),
    *(tarheaders.LONG_NAME, tarheaders.LONG_LINK),
)
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)
_NO_RECORDS: Mapping[bytes, bytes] = {}


@dataclass(frozen=True, slots=True)
class _Said:
    """What the headers before an entry's own say of it."""

    records: Records = field(default_factory=list)
    long_name: bytes = b""
    long_link: bytes = b""


_NOTHING = _Said()


def walk(stream: ForwardStream) -> Iterator[Entry]:
    """Yield the entries. Raises ProtocolViolation for what is no tar stream.

    What could not be a path is left out, with one log line. A stream of nothing has no entries.
    """
    return _Walker(stream).entries()


class _Walker:
    """One walk through a stream."""

    def __init__(self, stream: ForwardStream) -> None:
        self._stream = stream
        self._globals: dict[bytes, bytes] = {}
        self._clean = PathCleaner()

    def entries(self) -> Iterator[Entry]:
        """Yield the entries."""
        stream, said = self._stream, _NOTHING
        refused: list[InvalidName] = []
        while header := tarheaders.parse(block := stream.block()):
            if header.kind in _EXTENSIONS:
                said = self._extended(header, said)
                continue
            records = _NO_RECORDS
            if said is not _NOTHING or self._globals:
                records = self._records(said)
                header = _completed(header, said, records)
            if header.kind == tarheaders.OLD_REGULAR and header.name.endswith(b"/"):
                header = header._replace(kind=tarheaders.DIRECTORY)
            size, pieces, end = self._data(header, block, said, records)
            try:
                entry = self._entry(header, records, size, pieces)
                if entry is not None:
                    yield entry
            except InvalidName as error:
                refused = [*refused[:1], error]
            stream.skip_to(end)
            stream.next_entry()
            said = _NOTHING
        if 0 < stream.position < BLOCK:
            raise ProtocolViolation("not a tar stream: it is shorter than a header")
        if said is not _NOTHING:
            raise ProtocolViolation("not a tar stream: it ends behind an extended header")
        if block and stream.block().strip(b"\0"):
            raise ProtocolViolation("not a tar stream: one block of zeros, and more behind it")
        if refused:
            log.warning("left out of a layer what could not be a path: %s", refused[0])

    def _extended(self, header: Header, said: _Said) -> _Said:
        """Read a header that says more of the entry that follows; return all that is said."""
        body = self._body(number(header.size))
        if header.kind == tarheaders.GLOBAL:
            self._globals.update(tarheaders.records(body))
            _check_global(self._globals)
            return said
        if header.kind == tarheaders.LONG_NAME:
            return replace(said, long_name=tarheaders.text(body))
        if header.kind == tarheaders.LONG_LINK:
            return replace(said, long_link=tarheaders.text(body))
        return replace(said, records=tarheaders.records(body))

    def _body(self, size: int) -> bytes:
        if size < 0:
            raise ProtocolViolation(f"not the size of a tar header: {size}")
        body = self._stream.take(_padded(size))
        if len(body) < size:
            raise ProtocolViolation("a tar stream that ends within a header")
        return body[:size]

    def _records(self, said: _Said) -> Mapping[bytes, bytes]:
        """Return what extended headers say; an empty value takes back a global one."""
        if not said.records and not self._globals:
            return _NO_RECORDS
        merged = {**self._globals, **dict(said.records)}
        return {key: value for key, value in merged.items() if value}

    def _data(
        self, header: Header, block: bytes, said: _Said, records: Mapping[bytes, bytes]
    ) -> tuple[int, tuple[Piece, ...], int]:
        """Return the size of a file, its pieces, and where what comes after it begins."""
        stream = self._stream
        if header.kind in _TYPES and header.kind not in _WITH_DATA:
            return 0, (), stream.position
        stored = decimal(records[b"size"]) if b"size" in records else number(header.size)
        spans, size = None, stored
        if header.kind == tarheaders.SPARSE:
            spans, size = tarsparse.in_header(block, stream)
        start = stream.position
        if spans is None and records:
            spans = tarsparse.in_records(records, said.records, stream)
            size = stored if spans is None else tarsparse.real_size(records, stored)
        if not (0 <= stored <= _MAX_SIZE and 0 <= size <= _MAX_SIZE):
            raise ProtocolViolation(f"not the size of a file: {min(stored, size)}")
        end = start + _padded(stored)
        if spans is not None:
            return size, tarsparse.pieces(spans, size, stream.position, start + stored), end
        return size, (Piece(0, size, start),) if size else (), end

    def _entry(
        self,
        header: Header,
        records: Mapping[bytes, bytes],
        size: int,
        pieces: tuple[Piece, ...],
    ) -> Entry | None:
        """Return an entry, None for one that is no file; raises InvalidName."""
        kind = _TYPES.get(header.kind)
        if kind is None:
            return None
        path = self._clean(header.name)
        if not path and kind != stat.S_IFDIR:
            raise InvalidName("a root that is no directory")
        if header.kind == tarheaders.HARD_LINK:
            return Entry(path, kind, link=self._clean(header.link), is_hard_link=True)
        uid, gid = number(header.uid), number(header.gid)
        time_ns, xattrs = number(header.mtime) * 10**9, NO_XATTRS
        if records:
            uid = _owner(records[b"uid"]) if b"uid" in records else uid
            gid = _owner(records[b"gid"]) if b"gid" in records else gid
            time_ns = _time_ns(records[b"mtime"]) if b"mtime" in records else time_ns
            xattrs = _xattrs(records)
        return Entry(
            path,
            kind | number(header.mode) & 0o7777,
            min(max(uid, 0), _MAX_OWNER),
            min(max(gid, 0), _MAX_OWNER),
            size,
            checked_time(time_ns),
            _device(header) if kind in _DEVICES else 0,
            header.link if kind == stat.S_IFLNK else b"",
            xattrs=xattrs,
            pieces=pieces,
        )


def _padded(size: int) -> int:
    """Return how many bytes so many take, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def _check_global(headers: Mapping[bytes, bytes]) -> None:
    """Refuse more headers of the whole layer than anybody writes: they count for each entry."""
    size = sum(len(key) + len(value) for key, value in headers.items())
    if len(headers) > _MAX_GLOBAL_HEADERS or size > MAX_HEADER_BYTES:
        raise TooLarge(f"a layer with {len(headers)} global headers, of {size} bytes")


def _completed(header: Header, said: _Said, records: Mapping[bytes, bytes]) -> Header:
    """Return a header with the names that do not fit into it."""
    path = records.get(b"GNU.sparse.name") or records.get(b"path") or header.name
    link = records.get(b"linkpath") or header.link
    return header._replace(name=said.long_name or path, link=said.long_link or link)


def _device(header: Header) -> int:
    return os.makedev(number(header.major) & 0xFFF, number(header.minor) & 0xFFFFF)


def _time_ns(value: bytes) -> int:
    """Return a time in seconds as one in nanoseconds: exactly, as a float could not be."""
    if plain := _PLAIN_TIME.match(value):
        return int(plain[1]) * 10**9 + int(plain[2].ljust(9, b"0"))
    try:
        seconds = float(value)
    except ValueError:
        return 0
    if not math.isfinite(seconds):
        raise ProtocolViolation(f"a time in a tar stream that is none: {printable(value, 40)}")
    if abs(seconds) >= _MAX_SECONDS:
        return int(math.copysign(_MAX_SIZE, seconds))
    return int(Decimal(value.decode("ascii")) * 10**9)


def _owner(value: bytes) -> int:
    return int(value) if value.isdigit() and len(value) < 20 else 0


def _xattrs(records: Mapping[bytes, bytes]) -> dict[str, bytes]:
    found = {}
    for key, value in records.items():
        if key.startswith(_XATTR):
            name = os.fsdecode(key[len(_XATTR) :])
            if is_xattr(name, value):
                found[name] = value
    return found


def is_xattr(name: str, value: bytes) -> bool:
    """Whether Linux could have such an extended attribute (xattr(7))."""
    encoded = name.encode("utf-8", "surrogateescape")
    is_name = 0 < len(encoded) <= _MAX_XATTR_NAME and b"\0" not in encoded
    return is_name and len(value) <= _MAX_XATTR_BYTES
