"""The table of contents of a layer: the JSON that eStargz and zstd:chunked have in common.

Source: stargz-snapshotter, docs/estargz.md, "TOC"; containers/storage, pkg/chunked. It is hostile
until parsed here, though a digest vouches for its bytes.
"""

from __future__ import annotations

import base64
import binascii
import os
import stat
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from epochfs.errors import InvalidName, ProtocolViolation, TooLarge
from epochfs.layers.entry import Entry, Piece, checked_time, clean_path
from epochfs.layers.tar import is_xattr
from epochfs.oci.manifests import load_json
from epochfs.oci.names import Digest

MAX_BYTES = 8 << 20
MAX_ROWS = 100_000
"""The longest table that is taken into memory; a layer with a longer one is read whole."""

MAX_CHUNK_BYTES = 64 << 20
"""The longest chunk: it is verified in memory before any of it is shown."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_NUMBER = 2**63 - 1

_TYPES = {
    "reg": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "dir": stat.S_IFDIR,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}

Row = Mapping[str, Any]


def parse(raw: bytes, own_files: frozenset[str]) -> list[Entry]:
    """Parse a table; leave out `own_files`, which are the format's and not the image's.

    Raises ProtocolViolation where anything is not as it should be, and TooLarge.
    """
    if raw.count(b"{") + raw.count(b"[") > MAX_ROWS:
        # Objects take a hundred times the memory of the text `{}`, and so they are counted in that.
        raise TooLarge(f"it has more than {MAX_ROWS} rows")
    document = load_json(raw)
    rows = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProtocolViolation("a table of contents without entries")
    entries = []
    for group in _groups(rows):
        if group[0].get("name") not in own_files:
            try:
                entries.append(_entry(group))
            except (InvalidName, UnicodeEncodeError) as error:
                raise ProtocolViolation(f"a table of contents: {error}") from None
    return entries


def _groups(rows: list[Row]) -> Iterator[list[Row]]:
    """Yield each entry with the chunks that follow it."""
    group: list[Row] = []
    for row in rows:
        if row.get("type") == "chunk":
            group.append(row)
            continue
        if group:
            yield group
        group = [row]
    if group:
        yield group


def _entry(group: list[Row]) -> Entry:
    row = group[0]
    kind = _TYPES.get(_text(row, "type"))
    if kind is None:
        raise ProtocolViolation("an entry of an unknown type in a table of contents")
    path = clean_path(_text(row, "name").encode())
    if not path and kind != stat.S_IFDIR:
        raise ProtocolViolation("a root that is no directory in a table of contents")
    link = _text(row, "linkName").encode()
    if row["type"] == "hardlink":
        return Entry(path, kind, link=clean_path(link), is_hard_link=True)
    is_file = kind == stat.S_IFREG
    size = _number(row, "size") if is_file else 0
    return Entry(
        path,
        kind | stat.S_IMODE(_number(row, "mode")),
        uid=_number(row, "uid", 2**32 - 1),
        gid=_number(row, "gid", 2**32 - 1),
        size=size,
        time_ns=_time_ns(_text(row, "modtime")),
        rdev=os.makedev(_number(row, "devMajor", 0xFFF), _number(row, "devMinor", 0xFFFFF)),
        link=link if kind == stat.S_IFLNK else b"",
        xattrs=_xattrs(row.get("xattrs")),
        pieces=tuple(_pieces(group, size)) if is_file else (),
    )


def _pieces(group: list[Row], size: int) -> Iterator[Piece]:
    """Yield the chunks of a file, which cover it from its beginning to its end."""
    position = 0
    for row in group if size else ():
        if _number(row, "chunkOffset") != position:
            raise ProtocolViolation("chunks of a file that do not follow one another")
        length = _number(row, "chunkSize") or size - position
        if not 0 < length <= size - position:
            raise ProtocolViolation("chunks of a file that are longer than it")
        if _text(row, "chunkType") != "zeros":
            if length > MAX_CHUNK_BYTES:
                raise ProtocolViolation(f"a chunk of {length} bytes")
            digest = _text(row, "chunkDigest")
            if not digest and length == size:
                digest = _text(row, "digest")
            # One that is absent or malformed could not be verified.
            digest = str(Digest.parse(digest))
            skip = _number(row, "innerOffset", MAX_CHUNK_BYTES)
            yield Piece(position, length, _number(row, "offset"), skip, digest)
        position += length
    if position != size:
        raise ProtocolViolation("chunks of a file that do not cover it")


def _text(row: Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolViolation(f"'{key}' of a table of contents is not text")
    return value


def _number(row: Row, key: str, limit: int = _MAX_NUMBER) -> int:
    value = row.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ProtocolViolation(f"'{key}' of a table of contents is no such number")
    return value


def _time_ns(text: str) -> int:
    """Parse a time (RFC 3339, to nanoseconds); the epoch where there is none."""
    if not text:
        return 0
    seconds, dot, rest = text.partition(".")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    try:
        elapsed = datetime.fromisoformat(seconds + rest[len(digits) :]) - _EPOCH
    except (ValueError, TypeError):
        raise ProtocolViolation("a time in a table of contents is none") from None
    fraction = int(digits[:9].ljust(9, "0")) if dot else 0
    return checked_time((elapsed.days * 86400 + elapsed.seconds) * 10**9 + fraction)


def _xattrs(value: object) -> dict[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProtocolViolation("'xattrs' of a table of contents is not a JSON object")
    try:
        found = {name: base64.b64decode(text, validate=True) for name, text in value.items()}
    except (binascii.Error, ValueError, TypeError):
        raise ProtocolViolation("'xattrs' of a table of contents are not in base64") from None
    return {name: raw for name, raw in found.items() if is_xattr(name, raw)}
