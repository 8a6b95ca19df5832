"""The entries of a layer's tar stream, in order (OCI Image specification, layer.md).

`tarfile` reads the headers: ustar, pax and GNU ones, sparse files too. The stream is hostile: it is
read forwards only, and what `tarfile` would take into memory at once is bounded.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import stat
import struct
import tarfile
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal, InvalidOperation
from typing import Protocol, Self, cast

from epochfs.errors import InvalidName, ProtocolViolation, TooLarge, printable
from epochfs.rootfs.entry import Entry, Piece, checked_time, clean_path

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 1 << 20
"""The longest headers of one entry together: names, attributes of at most 64 KiB each, and where a
sparse file has its data, of which `tarfile` makes a hundred times as much."""

_SKIP_BYTES = 1 << 20
_MAX_OWNER = 2**32 - 1
_MAX_XATTR_NAME = 255
_MAX_XATTR_BYTES = 64 << 10
_XATTR = "SCHILY.xattr."

_MAX_GLOBAL_HEADERS = 100
_RECORD = re.compile(rb"([0-9]{1,8}) ")
_RECORDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)

_LONG_NUMBER = re.compile(rb"[0-9]{20,}")
_MAX_SQUARES = 2_000_000
"""The squares of the lengths of long numbers in one header, together: `tarfile` before Python
3.11.10 and 3.12.6 takes so many steps to look through it, during which no other thread runs
(CVE-2024-6232)."""

_MAX_TIME_DIGITS = 12
"""So many seconds no 64-bit time in nanoseconds has; an integer of a time such as 1e999999 would
take minutes to make."""

_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.GNUTYPE_SPARSE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class _Member(tarfile.TarInfo):
    """A header. A damaged one is an error, where `tarfile` would take it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf.strip(b"\0"):
                raise ProtocolViolation(f"not a tar stream: {printable(error)}") from error
            raise  # nothing but zeros: the end of the archive


class Source(Protocol):
    """Gives the bytes of a tar stream one after the other."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill some of `buffer`; return how much, and 0 at the end."""


class ForwardStream(io.RawIOBase):
    """What `tarfile` reads from: goes forwards only, and ends in TooLarge beyond `limit` bytes.

    `observe` is given every byte.
    """

    def __init__(self, source: Source, limit: int, observe: Callable[[memoryview], None]) -> None:
        self._source = source
        self._limit = limit
        self._observe = observe
        self._position = 0
        self._taken = 0
        self._globals = 0
        self._body = b""
        self._buffer = memoryview(bytearray(_SKIP_BYTES))

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        """Read on to a later position; the end of the stream may come first."""
        if whence != os.SEEK_SET or position < self._position:
            raise ProtocolViolation("a tar stream that leads backwards")
        while self._position < position:
            if not self._fill(self._buffer[: position - self._position]):
                break
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer at the end: of a header, which is all that is taken."""
        self._taken += size
        if size < 0 or self._taken > MAX_HEADER_BYTES:
            raise TooLarge(f"a tar header of more than {MAX_HEADER_BYTES} bytes")
        data = bytearray(size)
        view = memoryview(data)
        while view:
            count = self._fill(view)
            if not count:
                break
            view = view[count:]
        header = bytes(data[: size - len(view)])
        self._check(header)
        return header

    def next_entry(self) -> None:
        """Begin to count the bytes of headers anew."""
        self._taken = self._globals = 0

    def _check(self, header: bytes) -> None:
        """Refuse what would cost `tarfile` much more than its own length."""
        if sum(len(number) ** 2 for number in _LONG_NUMBER.findall(header)) > _MAX_SQUARES:
            raise ProtocolViolation("a tar header with numbers that are too long")
        body, self._body = self._body, b""
        if body in _RECORDS:
            count = _count_records(header)
            self._globals += count if body == tarfile.XGLTYPE else 0
            if self._globals > _MAX_GLOBAL_HEADERS:
                raise TooLarge(f"{self._globals} global headers in a layer, one after the other")
        elif not body and len(header) == tarfile.BLOCKSIZE:
            kind = header[156:157]
            self._body = kind if kind in (*_RECORDS, *_LONG_NAMES) else b""

    def drain(self) -> int:
        """Read on to the end; return how many bytes there were."""
        while self._fill(self._buffer):
            pass
        return self._position

    def _fill(self, view: memoryview) -> int:
        count = self._source.readinto(view) or 0
        self._position += count
        if self._position > self._limit:
            raise TooLarge(f"a layer that decompresses to more than {self._limit} bytes")
        self._observe(view[:count])
        return count


def _count_records(body: bytes) -> int:
    """Count the records of an extended header (pax, "pax Extended Header").

    `tarfile` takes one that does not have the length it says for many that overlap, each of them
    as long as all that follows.
    """
    count = position = 0
    while record := _RECORD.match(body, position):
        end = position + int(record[1])
        # The key has at least one character, and the last one is a newline.
        if body.find(b"=", record.end() + 1, end - 1) < 0 or body[end - 1 : end] != b"\n":
            break
        count, position = count + 1, end
    if body[position:].strip(b"\0"):
        raise ProtocolViolation("an extended header of a tar stream that is malformed")
    return count


def walk(stream: ForwardStream) -> Iterator[Entry]:
    """Yield the entries. Raises ProtocolViolation for what is no tar stream.

    What could not be a path is left out, with one log line.
    """
    refused: list[InvalidName] = []
    try:
        with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Member, errorlevel=2) as archive:
            while (member := archive.next()) is not None:
                stream.next_entry()
                archive.members.clear()  # type: ignore[attr-defined] # it keeps them
                _check_global(archive.pax_headers)
                try:
                    entry = _entry(member)
                except InvalidName as error:
                    refused.append(error)
                    del refused[1:-1]
                    continue
                if entry is not None:
                    yield entry
    except (tarfile.TarError, ValueError, ArithmeticError, RecursionError, struct.error) as error:
        raise ProtocolViolation(f"not a tar stream: {printable(error)}") from error
    if refused:
        log.warning("left out of a layer what could not be a path: %s", refused[0])


def _check_global(headers: Mapping[str, str]) -> None:
    """Refuse more headers of the whole layer than anybody writes: each entry gets a copy."""
    size = sum(len(key) + len(value) for key, value in headers.items())
    if len(headers) > _MAX_GLOBAL_HEADERS or size > MAX_HEADER_BYTES:
        raise TooLarge(f"a layer with {len(headers)} global headers, of {size} characters")


def _entry(member: tarfile.TarInfo) -> Entry | None:
    kind = _TYPES.get(member.type)
    if kind is None:
        return None
    path = clean_path(os.fsencode(member.name))
    link = os.fsencode(member.linkname)
    if not path and kind != stat.S_IFDIR:
        raise InvalidName("a root that is no directory")
    if member.islnk():
        return Entry(path, kind, link=clean_path(link), is_hard_link=True)
    is_file = kind == stat.S_IFREG
    is_device = kind in (stat.S_IFCHR, stat.S_IFBLK)
    return Entry(
        path,
        kind | stat.S_IMODE(member.mode),
        uid=min(max(member.uid, 0), _MAX_OWNER),
        gid=min(max(member.gid, 0), _MAX_OWNER),
        size=_size(member.size) if is_file else 0,
        time_ns=_time_ns(member),
        rdev=_device(member) if is_device else 0,
        link=link if kind == stat.S_IFLNK else b"",
        xattrs=_xattrs(member.pax_headers),
        pieces=tuple(_pieces(member)) if is_file else (),
    )


def _size(size: int) -> int:
    if not 0 <= size < 2**63:
        raise ProtocolViolation(f"not the size of a file: {size}")
    return size


def _device(member: tarfile.TarInfo) -> int:
    return os.makedev(member.devmajor & 0xFFF, member.devminor & 0xFFFFF)


def _pieces(member: tarfile.TarInfo) -> Iterator[Piece]:
    if member.sparse is None:
        if member.size:
            yield Piece(0, member.size, member.offset_data)
        return
    offset, end = member.offset_data, 0
    for start, size in cast("list[tuple[int, int]]", member.sparse):
        if size < 0 or start < end or start + size > member.size:
            raise ProtocolViolation("a sparse file whose map makes no sense")
        if size:
            yield Piece(start, size, offset)
        offset, end = offset + size, start + size


def _time_ns(member: tarfile.TarInfo) -> int:
    """Return the time as the layer has it; as a float, which `tarfile` makes of it, it is not."""
    with contextlib.suppress(KeyError, InvalidOperation, ValueError, OverflowError):
        seconds = Decimal(member.pax_headers["mtime"])
        if seconds.adjusted() < _MAX_TIME_DIGITS:
            return checked_time(int(seconds * 10**9))
    return checked_time(int(member.mtime) * 10**9)


def _xattrs(headers: Mapping[str, str]) -> dict[str, bytes]:
    found = {}
    for key, value in headers.items():
        name = key.removeprefix(_XATTR)
        raw = value.encode("utf-8", "surrogateescape")
        if name != key and is_xattr(name, raw):
            found[name] = raw
    return found


def is_xattr(name: str, value: bytes) -> bool:
    """Whether Linux could have such an extended attribute (xattr(7))."""
    encoded = name.encode("utf-8", "surrogateescape")
    is_name = 0 < len(encoded) <= _MAX_XATTR_NAME and b"\0" not in encoded
    return is_name and len(value) <= _MAX_XATTR_BYTES
