"""The headers of a tar stream, taken apart: ustar, pax and GNU ones (pax(1); tar(5) of libarchive).

Where writers differ from the specification, what counts is what Go's archive/tar makes of them, as
container runtimes read layers with it.
"""

from __future__ import annotations

import re
import struct
import zlib
from functools import lru_cache
from typing import NamedTuple

from epochfs.errors import ProtocolViolation, printable
from epochfs.layers.tar_stream import BLOCK

REGULAR, OLD_REGULAR, CONTIGUOUS = b"0", b"\0", b"7"
HARD_LINK, LINK, DIRECTORY = b"1", b"2", b"5"
CHARACTER_DEVICE, BLOCK_DEVICE, FIFO = b"3", b"4", b"6"
SPARSE, LONG_NAME, LONG_LINK = b"S", b"L", b"K"
EXTENDED, SOLARIS_EXTENDED, GLOBAL = b"x", b"X", b"g"

_FIELDS = struct.Struct("100s8s8s8s12s12s8sc100s8s64x8s8s155s12x")
_CHECKSUM = slice(148, 156)
_SPACES = sum(b" " * 8)
_ADLER = 65521
_GNU_MAGIC = b"ustar  \0"
_GNU_TIME = slice(0, 12)
_NUMBERS = 4096

_RECORD = re.compile(rb"([0-9]{1,8}) ")
_LONG_NUMBER = re.compile(rb"[0-9]{20,}")
_MAX_SQUARES = 2_000_000
"""The squares of the lengths of long numbers in one extended header, together. Nobody writes such;
there are parsers that take so many steps to look through it (CVE-2024-6232)."""

Records = list[tuple[bytes, bytes]]
"""What an extended header says, in its order."""


class Header(NamedTuple):
    """A header block: numbers are still as they stand there (see `number`)."""

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


def parse(block: bytes) -> Header | None:
    """Parse a block; None for the end of the archive: zeros, or nothing.

    Raises ProtocolViolation for what is damaged or cut short.
    """
    if not block or (not block[0] and not block.strip(b"\0")):
        return None
    if len(block) < BLOCK:
        raise ProtocolViolation("not a tar stream: it ends within a header")
    if not _is_sound(block):
        raise ProtocolViolation("not a tar stream: a header does not have its checksum")
    name, mode, uid, gid, size, mtime, _, kind, link, magic, major, minor, prefix = _FIELDS.unpack(
        block
    )
    name = text(name)
    if prefix[0] and _has_prefix(magic, prefix):
        name = text(prefix) + b"/" + name
    return Header(name, mode, uid, gid, size, mtime, kind, text(link), major, minor)


def _is_sound(block: bytes) -> bool:
    """Whether a block has its checksum: the sum of its bytes, those of the checksum being spaces.

    Adler-32 has the sum of all bytes, modulo a prime, in its lower half, and is quickly had.
    """
    field = block[_CHECKSUM]
    stated = _number(field) + sum(field) - _SPACES
    if (zlib.adler32(block) & 0xFFFF) == (stated + 1) % _ADLER:
        return True
    # Some old writers took bytes for signed.
    return sum(block) - _excess(block) == stated - _excess(field)


def _excess(field: bytes) -> int:
    """How much less the sum of bytes is where they are taken for signed."""
    return sum(256 for byte in field if byte > 127)


def _has_prefix(magic: bytes, prefix: bytes) -> bool:
    """Whether a header's name begins in the field of that name.

    GNU tar has times in its place. But Go before 1.8 wrote names there, under GNU's magic.
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


def _number(field: bytes) -> int:
    """Return the number in a field: octal digits, or two's complement behind a bit that is set."""
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        value = int.from_bytes(field, "big") & (1 << bits) - 1
        return value - (1 << bits) if value >> bits - 1 else value
    digits = text(field).strip()
    try:
        return int(digits or b"0", 8)
    except ValueError:
        raise ProtocolViolation(f"not a tar stream: no number: {printable(digits)}") from None


number = lru_cache(maxsize=_NUMBERS)(_number)
"""The same, for fields that often have the same numbers."""


def decimal(digits: bytes) -> int:
    """Return the number in a record of an extended header."""
    try:
        return int(digits)
    except ValueError:
        raise ProtocolViolation(
            f"an extended header of a tar stream with no number: {printable(digits, 40)}"
        ) from None


def records(body: bytes) -> Records:
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
        raise ProtocolViolation("an extended header of a tar stream that is malformed")
    return found
