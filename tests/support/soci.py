"""Tables of SOCI (ztocs) for tests, written as soci-snapshotter's schema says."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from support.layers import File, Layer, gzipped, sha256

WINDOW = 32 << 10
SPAN = 64 << 10

_HEADER = struct.Struct("<5sBBQQIII")
_POINT = struct.Struct("<QQBB")

_TYPES = {
    tarfile.REGTYPE: b"reg",
    tarfile.AREGTYPE: b"reg",
    tarfile.DIRTYPE: b"dir",
    tarfile.SYMTYPE: b"symlink",
    tarfile.LNKTYPE: b"hardlink",
    tarfile.FIFOTYPE: b"fifo",
    tarfile.CHRTYPE: b"char",
}

Number = tuple[str, int]
"""A number in a table, with the format that struct has for it."""

Value = Any
"""What a field has: a `Number`, bytes, a table (a dictionary by fields), or a list of these."""

Fields = dict[int, Value]
Checkpoint = tuple[int, int, int, bytes]
"""Offset in the blob, offset in the stream, bits, window."""


def mixed(size: int, seed: int = 1) -> bytes:
    """Return bytes of which some compress and some do not, so that blocks end at any bit."""
    chosen = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        data += chosen.randbytes(chosen.randrange(2000)) + b"the same text " * 20
        data += bytes(chosen.choices(b"abcdefgh", k=3000))
    return bytes(data[:size])


def flatbuffer(root: Fields) -> bytes:
    """Return a FlatBuffer of one table."""
    data = bytearray(4)
    struct.pack_into("<I", data, 0, _write(data, root))
    return bytes(data)


def _write(data: bytearray, value: Value) -> int:
    """Append a value, and what it refers to; return where it is."""
    if isinstance(value, bytes):
        data += struct.pack("<I", len(value))
        data += value
        return len(data) - len(value) - 4
    if isinstance(value, list):
        return _write_vector(data, value)
    return _write_table(data, value)


def _write_vector(data: bytearray, values: Sequence[Value]) -> int:
    start = len(data)
    data += struct.pack("<I", len(values)) + bytes(4 * len(values))
    for number, value in enumerate(values, start=1):
        place = start + 4 * number
        struct.pack_into("<I", data, place, _write(data, value) - place)
    return start


def _write_table(data: bytearray, fields: Mapping[int, Value]) -> int:
    places, size = {}, 4
    for field, value in fields.items():
        places[field] = size
        size += struct.calcsize(f"<{value[0]}") if isinstance(value, tuple) else 4
    slots = [places.get(field, 0) for field in range(max(fields, default=-1) + 1)]
    data += struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), size, *slots)
    start = len(data)
    data += struct.pack("<i", 4 + 2 * len(slots)) + bytes(size - 4)
    for field, value in fields.items():
        place = start + places[field]
        if isinstance(value, tuple):
            struct.pack_into(f"<{value[0]}", data, place, value[1])
        else:
            struct.pack_into("<I", data, place, _write(data, value) - place)
    return start


def checkpoints(blob: bytes, span: int = SPAN) -> tuple[list[Checkpoint], int]:
    """Return the checkpoints of a gzip blob, and the length of its stream."""
    indexed_gzip = pytest.importorskip("indexed_gzip")
    decoder = indexed_gzip.IndexedGzipFile(
        fileobj=io.BytesIO(blob), spacing=span, window_size=WINDOW
    )
    decoder.build_full_index()
    exported = io.BytesIO()
    decoder.export_index(fileobj=exported)
    raw = exported.getvalue()
    _, _, _, _, size, _, _, count = _HEADER.unpack_from(raw)
    points = [_POINT.unpack_from(raw, _HEADER.size + _POINT.size * n) for n in range(count)]
    window = _HEADER.size + _POINT.size * count
    found: list[Checkpoint] = []
    for offset, start, bits, has_window in points:
        content = raw[window : window + WINDOW] if has_window else bytes(WINDOW)
        window += WINDOW if has_window else 0
        if start < size or not found:  # the last point is the end
            found.append((offset, start, bits, content))
    return found, size


def entries(stream: bytes) -> list[Fields]:
    """Return the rows of a tar's entries."""
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        return [_row(info) for info in archive]


def _row(info: tarfile.TarInfo) -> Fields:
    records = {key: value for key, value in info.pax_headers.items() if key != "mtime"}
    moment = datetime.fromtimestamp(int(info.mtime // 1), UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = str(info.pax_headers.get("mtime", "")).partition(".")[2]
    return {
        0: _raw(info.name),
        1: _TYPES[info.type],
        2: ("q", info.offset_data),
        3: ("q", info.size),
        4: _raw(info.linkname),
        5: ("q", info.mode),
        6: ("I", info.uid),
        7: ("I", info.gid),
        8: _raw(info.uname),
        9: _raw(info.gname),
        10: (f"{moment}.{fraction}Z" if fraction else f"{moment}Z").encode(),
        11: ("q", info.devmajor),
        12: ("q", info.devminor),
        13: [{0: _raw(key), 1: _raw(value)} for key, value in records.items()],
    }


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def ztoc(blob: bytes, rows: list[Fields], span: int = SPAN, **lies: Value) -> bytes:
    """Return the table of a gzip blob; `lies` replace what is true of it, by the schema's names."""
    points, size = checkpoints(blob, span)
    stops = [point[0] for point in points[1:]] + [len(blob)]
    starts = [offset - bool(bits) for offset, _, bits, _ in points]
    digests = [sha256(blob[a:b]).encode() for a, b in zip(starts, stops, strict=True)]
    said = {
        "version": b"0.9",
        "compressed_archive_size": ("q", len(blob)),
        "uncompressed_archive_size": ("q", size),
        "metadata": rows,
        "algorithm": ("b", 1),
        "span_digests": digests,
        "checkpoints": points,
    } | lies
    packed = struct.pack("<iq", len(said["checkpoints"]), span) + b"".join(
        struct.pack("<qqB", *place) + window for *place, window in said["checkpoints"]
    )
    info = {0: said["algorithm"], 1: ("i", len(points) - 1), 2: said["span_digests"], 3: packed}
    return flatbuffer(
        {
            0: said["version"],
            1: b"epochfs' tests",
            2: said["compressed_archive_size"],
            3: said["uncompressed_archive_size"],
            4: {0: said["metadata"]},
            5: info,
        }
    )


def with_table(layer: Layer, **lies: Value) -> Layer:
    """Return a gzip layer with a table; `lies` are as in `ztoc`."""
    return replace(layer, ztoc=ztoc(layer.blob, entries(gzip.decompress(layer.blob)), **lies))


def soci(*files: File) -> Layer:
    """Return a gzip layer that a SOCI index has a table of."""
    return with_table(gzipped(*files))
