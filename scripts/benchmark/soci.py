"""The table (ztoc) of a gzip layer and the SOCI index that has it, as soci-snapshotter writes them.

Source: soci-snapshotter, docs/soci-index-manifest-v2.md and ztoc/fbs/ztoc.fbs. Making one needs
indexed_gzip, which reading the layer needs as well. The tests make theirs, which may lie, of the
same pieces.
"""

from __future__ import annotations

import hashlib
import io
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from epochfs.demo.samples import descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST
from scripts.benchmark.content import MIB, Blob

SPAN = 4 * MIB
"""How much of the stream is between two checkpoints: soci-snapshotter's default."""

_WINDOW = 32 << 10
_CONFIG_TYPE = "application/vnd.amazon.soci.index.v2+json"
_TABLE_TYPE = "application/octet-stream"
_LAYER_DIGEST = "com.amazon.soci.image-layer-digest"
_LAYER_TYPE = "com.amazon.soci.image-layer-mediaType"

_HEADER = struct.Struct("<5sBBQQIII")
_POINT = struct.Struct("<QQBB")
"""What indexed_gzip exports: a header, the points, and the windows of those that have one."""

_CHECKPOINT = struct.Struct("<qqB32768s")

Value = Any
"""What a field of a table has: a number with its format, bytes, a table, or a list of these."""

Fields = Mapping[int, Value]

Checkpoint = tuple[int, int, int, bytes]
"""Offset in the blob, offset in the stream, bits of the byte before, window."""


@dataclass(frozen=True, slots=True)
class File:
    """A regular file in a layer; `offset` is that of its first byte in the tar stream."""

    name: str
    offset: int
    size: int


def table(layer: Path, files: Sequence[File]) -> bytes:
    """Return the table of a gzip layer that has these files."""
    with layer.open("rb") as stream:
        points, size = checkpoints(stream, SPAN)
    packed = struct.pack("<iq", len(points), SPAN)
    packed += b"".join(_CHECKPOINT.pack(*point) for point in points)
    info = {0: ("b", 1), 1: ("i", len(points) - 1), 2: list(_digests(layer, points)), 3: packed}
    rows = [_row(file) for file in files]
    root = {
        0: b"0.9",
        1: b"epochfs",
        2: ("q", layer.stat().st_size),
        3: ("q", size),
        4: {0: rows},
        5: info,
    }
    return flatbuffer(root)


def index(layer: Blob, media_type: str, ztoc: bytes) -> bytes:
    """Return the manifest of a SOCI index that has the table of a layer; its config is `{}`."""
    about = {_LAYER_DIGEST: str(layer.digest), _LAYER_TYPE: media_type}
    return encode(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(b"{}", _CONFIG_TYPE),
            "layers": [descriptor(ztoc, _TABLE_TYPE, annotations=about)],
        }
    )


def _row(file: File) -> Fields:
    numbers = {2: ("q", file.offset), 3: ("q", file.size), 5: ("q", 0o644)}
    return {0: file.name.encode(), 1: b"reg", **numbers, 10: b"2024-02-29T12:00:00Z"}


def checkpoints(layer: BinaryIO, span: int) -> tuple[list[Checkpoint], int]:
    """Return where a gzip layer can be entered, every `span` bytes, and how long its stream is."""
    import indexed_gzip

    exported = io.BytesIO()
    with indexed_gzip.IndexedGzipFile(fileobj=layer, spacing=span, window_size=_WINDOW) as decoder:
        decoder.build_full_index()
        decoder.export_index(fileobj=exported)
    raw = exported.getvalue()
    _, _, _, _, size, _, _, count = _HEADER.unpack_from(raw)
    places = range(_HEADER.size, _HEADER.size + count * _POINT.size, _POINT.size)
    points = [_POINT.unpack_from(raw, place) for place in places]
    windows = io.BytesIO(raw[_HEADER.size + count * _POINT.size :])
    found = [
        (offset, start, bits, windows.read(_WINDOW) if has_window else bytes(_WINDOW))
        for offset, start, bits, has_window in points
    ]
    inside = [point for point in found if point[1] < size]  # the last may be the end
    return inside or found[:1], size


def _digests(layer: Path, points: Sequence[Checkpoint]) -> Iterator[bytes]:
    """Yield the digest of each span, which begins with the byte that has bits of it."""
    starts = [offset - bool(bits) for offset, _, bits, _ in points]
    stops = [offset for offset, _, _, _ in points[1:]] + [layer.stat().st_size]
    with layer.open("rb") as stream:
        for start, stop in zip(starts, stops, strict=True):
            stream.seek(start)
            yield f"sha256:{hashlib.sha256(stream.read(stop - start)).hexdigest()}".encode()


# ---- FlatBuffers ("FlatBuffer Internals" of its documentation) -----------------------------------


def flatbuffer(root: Fields) -> bytes:
    """Return a FlatBuffer of one table."""
    data = bytearray(4)
    _refer(data, 0, root)
    return bytes(data)


def _write(data: bytearray, value: Value) -> int:
    """Append a value and what it refers to; return where it is."""
    if isinstance(value, bytes):
        data += struct.pack("<I", len(value)) + value
        return len(data) - len(value) - 4
    if isinstance(value, list):
        start = len(data)
        data += struct.pack("<I", len(value)) + bytes(4 * len(value))
        for number, one in enumerate(value, start=1):
            _refer(data, start + 4 * number, one)
        return start
    return _write_table(data, value)


def _write_table(data: bytearray, fields: Fields) -> int:
    """Append the slots of a table, which say where in it each field is, and the table."""
    places, size = {}, 4
    for field, value in fields.items():
        places[field] = size
        size += struct.calcsize(f"<{value[0]}") if isinstance(value, tuple) else 4
    slots = [places.get(field, 0) for field in range(max(fields, default=-1) + 1)]
    data += struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), size, *slots)
    start = len(data)
    data += struct.pack("<i", 4 + 2 * len(slots)) + bytes(size - 4)
    for field, value in fields.items():
        if isinstance(value, tuple):
            struct.pack_into(f"<{value[0]}", data, start + places[field], value[1])
        else:
            _refer(data, start + places[field], value)
    return start


def _refer(data: bytearray, place: int, value: Value) -> None:
    """Append a value, and write at a place how far on it is."""
    struct.pack_into("<I", data, place, _write(data, value) - place)
