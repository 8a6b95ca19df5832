"""A tar stream, read forwards in large pieces, and its headers parsed: ustar, pax and GNU.

Sources: pax(1); tar(5) of libarchive. Where writers deviate from these, a header means what Go's
archive/tar takes it to mean, since that is what container runtimes read layers with.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from epochfs.errors import ProtocolViolation, TooLarge, printable

BLOCK = 512

MAX_HEADER_BYTES = 1 << 20
"""Maximum size of all headers of one entry: names, attributes of up to 64 KiB, sparse map."""

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_CHECKSUM = slice(148, 156)
_SPACES = sum(b" " * 8)
_ADLER = 65521
_GNU_MAGIC = b"ustar  \0"
_GNU_TIME = slice(0, 12)
_CACHED_NUMBERS = 4096

_RECORD = re.compile(rb"([0-9]{1,8}) ")
_LONG_NUMBER = re.compile(rb"[0-9]{20,}")
_MAX_SQUARES = 2_000_000
"""Maximum sum of the squared lengths of the long numbers in one extended header. No writer comes
near it; some parsers take that many steps over them (CVE-2024-6232)."""

Records = list[tuple[bytes, bytes]]
"""The records of an extended header, in order."""


class TarStream:
    """Reads a stream that comes in pieces, each valid until the next.

    Raises TooLarge beyond `limit` bytes. `position` is that of the next byte.
    """

    def __init__(self, pieces: Iterator[memoryview], limit: int) -> None:
        self.position = 0
        self._pieces = pieces
        self._limit = limit
        self._piece = memoryview(b"")
        self._start = self._stop = 0
        self._read = 0
        self._header_bytes = 0

    def take(self, count: int) -> bytes:
        """Return `count` bytes of a header, fewer at the end of the stream."""
        self._header_bytes += count
        if self._header_bytes > MAX_HEADER_BYTES:
            raise TooLarge(f"a tar header of more than {MAX_HEADER_BYTES} bytes")
        parts = []
        while count and (self._start < self._stop or self._fill()):
            part = bytes(self._piece[self._start : self._start + count])
            self._start += len(part)
            self.position += len(part)
            count -= len(part)
            parts.append(part)
        return b"".join(parts)

    def next_entry(self, position: int) -> None:
        """Skip to the headers of the next entry.

        Raises ProtocolViolation if a lying header has put that behind us or beyond the end.
        """
        self._header_bytes = 0
        left = position - self.position
        if left < 0:
            raise ProtocolViolation("a tar stream that leads backwards")
        while left > self._stop - self._start:
            left -= self._stop - self._start
            if not self._fill():
                raise ProtocolViolation("a tar stream that ends within a file")
        self._start += left
        self.position = position

    def drain(self) -> int:
        """Read on to the end; return the length of the whole stream."""
        while self._fill():
            pass
        return self._read

    def _fill(self) -> int:
        """Go on to the next piece; return its length, and 0 at the end."""
        self._piece = next(self._pieces, memoryview(b""))
        self._start, self._stop = 0, len(self._piece)
        self._read += self._stop
        if self._read > self._limit:
            raise TooLarge(f"a layer that decompresses to more than {self._limit} bytes")
        return self._stop


class Header(NamedTuple):
    """A header block, its numbers not yet parsed (see `number`)."""

    name: bytes
    mode: bytes
    uid: bytes
    gid: bytes
    size: bytes
    mtime: bytes
    kind: bytes
    link: bytes
    major: bytes
    minor: bytes


def parse_header(block: bytes) -> Header | None:
    """Parse a block; return None at the end of the archive, which is zeros or nothing.

    Raises ProtocolViolation if it is damaged or cut short.
    """
    if not block or (not block[0] and not block.strip(b"\0")):
        return None
    if len(block) < BLOCK:
        raise ProtocolViolation("not a tar stream: it ends within a header")
    if not _has_checksum(block):
        raise ProtocolViolation("not a tar stream: bad header checksum")
    name, mode, uid, gid, size, mtime, _, kind, link, magic, major, minor, prefix = _FIELDS.unpack(
        block
    )
    name = text(name)
    if prefix[0] and _has_prefix(magic, prefix):
        name = text(prefix) + b"/" + name
    return Header(name, mode, uid, gid, size, mtime, kind, text(link), major, minor)


def _has_checksum(block: bytes) -> bool:
    """Whether a block's checksum is right: the sum of its bytes, with spaces for the checksum.

    Adler-32 is fast, and its lower half is the sum of all bytes plus 1, modulo a prime.
    """
    field = block[_CHECKSUM]
    checksum = number.__wrapped__(field) - _SPACES
    if (zlib.adler32(block) & 0xFFFF) == (checksum + sum(field) + 1) % _ADLER:
        return True
    # Some old writers summed signed bytes.
    signed = memoryview(block).cast("b")
    return sum(signed) == checksum + sum(signed[_CHECKSUM])


def _has_prefix(magic: bytes, prefix: bytes) -> bool:
    """Whether a header's name begins in its prefix field.

    GNU tar has times there. But Go before 1.8 wrote names there, under GNU's magic.
    """
    if magic != _GNU_MAGIC:
        return True
    try:
        number(prefix[_GNU_TIME])
    except ProtocolViolation:
        return True
    return False


def text(field: bytes) -> bytes:
    """Return a text field up to its NUL."""
    return field.partition(b"\0")[0]


@lru_cache(maxsize=_CACHED_NUMBERS)
def number(field: bytes) -> int:
    """Parse a numeric field: octal digits or, if the first bit is set, two's complement."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & (1 << bits) - 1
        return value - (1 << bits) if value >> bits - 1 else value
    digits = text(field).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise ProtocolViolation(f"not a tar stream: not a number: {printable(digits)}") from None


def decimal(digits: bytes) -> int:
    """Parse a number in a record of an extended header."""
    try:
        return int(digits)
    except ValueError:
        raise ProtocolViolation(
            f"not a number in a tar stream's extended header: {printable(digits, 40)}"
        ) from None


def parse_records(body: bytes) -> Records:
    """Parse an extended header (pax, "pax Extended Header"): each is `LENGTH KEY=VALUE\\n`."""
    if sum(len(digits) ** 2 for digits in _LONG_NUMBER.findall(body)) > _MAX_SQUARES:
        raise ProtocolViolation("a tar header with numbers that are too long")
    found: Records = []
    position = 0
    while record := _RECORD.match(body, position):
        end = position + int(record[1])
        # The key has at least one character, and the last one is a newline.
        equals = body.find(b"=", record.end() + 1, end - 1)
        if equals < 0 or body[end - 1 : end] != b"\n":
            break
        found.append((body[record.end() : equals], body[equals + 1 : end - 1]))
        position = end
    if body[position:].strip(b"\0"):
        raise ProtocolViolation("a malformed extended header in a tar stream")
    return found
