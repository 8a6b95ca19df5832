"""eStargz and zstd:chunked: layers whose files are compressed one by one, with a table of contents.

Sources: stargz-snapshotter, docs/estargz.md; containers/storage, pkg/chunked. Both formats have the
same JSON. An eStargz table is the tar stream of one gzip member, near the end of the blob; a footer
of fixed length says where it begins. A zstd:chunked table is a frame within a skippable frame, and
annotations say where. The JSON is hostile until it is parsed here, though a digest vouches for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from io import BytesIO
from itertools import chain
from typing import Any

from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, ProtocolViolation, TooLarge
from epochfs.layers.decoders import GzipMember, read_range, read_up_to, zstd_decoder
from epochfs.layers.entry import Entry, Piece, checked_time, clean_path
from epochfs.layers.tar import TarReader, is_xattr
from epochfs.layers.tar_stream import TarStream
from epochfs.oci.manifests import Descriptor, load_json
from epochfs.oci.names import Digest
from epochfs.oci.times import time_ns

ESTARGZ, ZSTD_CHUNKED = "estargz", "zstd:chunked"

MAX_BYTES = 8 << 20
MAX_ROWS = 100_000
"""Maximum size of a table that is parsed; a layer with a larger one is read whole."""

MAX_CHUNK_BYTES = 64 << 20
"""Maximum size of a chunk, which is verified in memory before any of it is shown."""

_DIGESTS = {
    ESTARGZ: ("containerd.io/snapshot/stargz/toc.digest",),
    ZSTD_CHUNKED: (
        "io.github.containers.zstd-chunked.manifest-checksum",
        "io.containers.zstd-chunked.manifest-checksum",
    ),
}
"""The annotation with the digest of a table: of eStargz decompressed, of zstd:chunked compressed.
The last name is the one that skopeo 1.9 writes."""

_POSITIONS = (
    "io.github.containers.zstd-chunked.manifest-position",
    "io.containers.zstd-chunked.manifest-position",
)
"""The annotation with a zstd:chunked table's offset, length, decompressed length, and version."""

SOCI_INDEX = "com.amazon.soci.index-digest"
"""The annotation of an image's manifest that names the tables of its gzip layers (see `soci`)."""

SOCI_SUBJECT = "epochfs.soci.subject"
"""An annotation that only epochfs makes: the image whose referrers may be believed."""

_VOUCHER_DIGITS = 32

_TOC_FILE = b"stargz.index.json"
_OWN_FILES = frozenset({_TOC_FILE.decode(), ".prefetch.landmark", ".no.prefetch.landmark"})
_FOOTER_BYTES = 51
_FOOTER = re.compile(rb"\x1f\x8b.{8}\x1a\0SG\x16\0([0-9a-f]{16})STARGZ", re.DOTALL)
_TAR_OVERHEAD = 64 << 10
_POSITION = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18}):1\Z")

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

_Row = Mapping[str, Any]


def voucher(layer: Descriptor) -> str:
    """Return what tells a layer's index from other indexes of the same blob.

    The annotations in one manifest vouch for a table of contents, and another manifest need not
    believe it: the index is kept under them. Without any, the blob's digest is enough.
    """
    names = (*chain(*_DIGESTS.values()), *_POSITIONS, SOCI_INDEX, SOCI_SUBJECT)
    found = [(name, layer.annotations[name]) for name in names if name in layer.annotations]
    if not found:
        return "tar"
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:_VOUCHER_DIGITS]


def formats(layer: Descriptor) -> list[str]:
    """Return the formats of the tables of contents that an annotation vouches for."""
    return [
        name for name, keys in _DIGESTS.items() if any(key in layer.annotations for key in keys)
    ]


def read_entries(compression: str, layer: Descriptor, blob: BlobHandle) -> list[Entry]:
    """Return the entries of a layer by its table of contents, which is of one of its `formats`.

    Raises ProtocolViolation, InvalidName or TooLarge for a table that cannot be used.
    """
    digest = Digest.parse(_first(layer, _DIGESTS[compression]))
    if compression == ESTARGZ:
        return _parse(_verified(_estargz_table(blob), digest), _OWN_FILES)
    position = _POSITION.match(_first(layer, _POSITIONS))
    if position is None:
        raise ProtocolViolation("no annotation says where it is")
    offset, packed_size, size = (int(number) for number in position.groups())
    if max(packed_size, size) > MAX_BYTES:
        raise TooLarge(f"it has {size} bytes, compressed {packed_size}")
    packed = _verified(read_range(blob, offset, packed_size), digest)
    return _parse(read_up_to(zstd_decoder(BytesIO(packed)), size), frozenset())


def named_entry(kind: str, name: bytes, link: bytes) -> Entry:
    """Return the entry of a row of a table; of its mode the type alone.

    Raises InvalidName or ProtocolViolation.
    """
    mode = _TYPES.get(kind)
    if mode is None:
        raise ProtocolViolation("an entry has an unknown type")
    path = clean_path(name)
    if not path and mode != stat.S_IFDIR:
        raise ProtocolViolation("the root is not a directory")
    if kind == "hardlink":
        return Entry(path, mode, link=clean_path(link), is_hard_link=True)
    return Entry(path, mode, link=link if mode == stat.S_IFLNK else b"")


def stated_time(text: bytes) -> int:
    """Return a table's word for a time in epoch nanoseconds; an empty one is the epoch.

    Raises ProtocolViolation.
    """
    try:
        return checked_time(time_ns(text.decode("ascii"))) if text else 0
    except ValueError:
        raise ProtocolViolation("it has an invalid time") from None


def _first(layer: Descriptor, names: tuple[str, ...]) -> str:
    return next((layer.annotations[name] for name in names if name in layer.annotations), "")


def _verified(table: bytes, digest: Digest) -> bytes:
    if not digest.matches(table):
        raise ContentMismatch("it does not match the digest in its annotation")
    return table


def _estargz_table(blob: BlobHandle) -> bytes:
    end = blob.size - _FOOTER_BYTES
    footer = _FOOTER.match(read_range(blob, max(end, 0), _FOOTER_BYTES))
    start = int(footer[1], 16) if footer is not None else end
    if not 0 <= start < end:
        raise ProtocolViolation("there is no eStargz footer")
    if end - start > MAX_BYTES:
        raise TooLarge(f"it takes {end - start} bytes")
    packed = BytesIO(read_range(blob, start, end - start))
    stream = read_up_to(GzipMember(packed), MAX_BYTES + _TAR_OVERHEAD)
    file = next(iter(TarReader(TarStream(iter([memoryview(stream)]), len(stream)))), None)
    if file is None or file.path != _TOC_FILE:
        raise ProtocolViolation(f"there is no {_TOC_FILE.decode()}")
    if file.size > MAX_BYTES:
        raise TooLarge(f"it has {file.size} bytes")
    return b"".join(stream[piece.offset :][: piece.size] for piece in file.pieces)


def _parse(raw: bytes, own_files: frozenset[str]) -> list[Entry]:
    """Parse a table without `own_files`, which are the format's and not the image's."""
    if raw.count(b"{") + raw.count(b"[") > MAX_ROWS:
        # Counted in the text, for each `{}` would take a hundred times its memory as an object.
        raise TooLarge(f"it has more than {MAX_ROWS} rows")
    document = load_json(raw)
    rows = document.get("entries") if isinstance(document, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ProtocolViolation("it has no entries")
    try:
        return [
            _entry(group) for group in _groups(rows) if _text(group[0], "name") not in own_files
        ]
    except UnicodeEncodeError as error:
        raise ProtocolViolation(str(error)) from None


def _groups(rows: list[_Row]) -> list[list[_Row]]:
    """Return each entry with the chunks that follow it."""
    groups: list[list[_Row]] = []
    for row in rows:
        if groups and row.get("type") == "chunk":
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _entry(group: list[_Row]) -> Entry:
    row = group[0]
    entry = named_entry(
        _text(row, "type"), _text(row, "name").encode(), _text(row, "linkName").encode()
    )
    if entry.is_hard_link:
        return entry
    is_file = stat.S_ISREG(entry.mode)
    size = _number(row, "size") if is_file else 0
    return entry._replace(
        mode=entry.mode | stat.S_IMODE(_number(row, "mode")),
        uid=_number(row, "uid", 2**32 - 1),
        gid=_number(row, "gid", 2**32 - 1),
        size=size,
        time_ns=stated_time(_text(row, "modtime").encode()),
        rdev=os.makedev(_number(row, "devMajor", 0xFFF), _number(row, "devMinor", 0xFFFFF)),
        xattrs=_xattrs(row.get("xattrs")),
        pieces=tuple(_pieces(group, size)) if is_file else (),
    )


def _pieces(group: list[_Row], size: int) -> Iterator[Piece]:
    """Yield the chunks of a file, which must cover all of it."""
    position = 0
    for row in group if size else ():
        if _number(row, "chunkOffset") != position:
            raise ProtocolViolation("the chunks of a file are not in order")
        length = _number(row, "chunkSize") or size - position
        if not 0 < length <= size - position:
            raise ProtocolViolation("a chunk exceeds its file")
        if _text(row, "chunkType") != "zeros":
            if length > MAX_CHUNK_BYTES:
                raise ProtocolViolation(f"a chunk has {length} bytes")
            digest = _text(row, "chunkDigest")
            if not digest and length == size:
                digest = _text(row, "digest")
            # A chunk without a digest could not be verified.
            digest = str(Digest.parse(digest))
            skip = _number(row, "innerOffset", MAX_CHUNK_BYTES)
            yield Piece(position, length, _number(row, "offset"), skip, digest)
        position += length
    if position != size:
        raise ProtocolViolation("the chunks of a file do not cover it")


def _text(row: _Row, key: str) -> str:
    value = row.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ProtocolViolation(f"'{key}' is not text")
    return value


def _number(row: _Row, key: str, limit: int = _MAX_NUMBER) -> int:
    value = row.get(key)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= limit:
        raise ProtocolViolation(f"'{key}' is not a number up to {limit}")
    return value


def _xattrs(value: object) -> dict[str, bytes]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ProtocolViolation("'xattrs' is not a JSON object")
    try:
        found = {name: base64.b64decode(text, validate=True) for name, text in value.items()}
    except (binascii.Error, ValueError, TypeError):
        raise ProtocolViolation("'xattrs' is not in base64") from None
    return {
        name: raw
        for name, raw in found.items()
        if is_xattr(name.encode("utf-8", "surrogateescape"), raw)
    }
