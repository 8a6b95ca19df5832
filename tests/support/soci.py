"""Tables of SOCI (ztocs) for tests, written as soci-snapshotter's schema says."""

from __future__ import annotations

import gzip
import io
import random
import struct
import tarfile
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from scripts.benchmark.soci import Checkpoint, Fields, Value, flatbuffer
from scripts.benchmark.soci import checkpoints as checkpoints_of
from support.layers import File, Layer, gzipped, sha256

SPAN = 64 << 10

_TYPES = {
    tarfile.REGTYPE: b"reg",
    tarfile.AREGTYPE: b"reg",
    tarfile.DIRTYPE: b"dir",
    tarfile.SYMTYPE: b"symlink",
    tarfile.LNKTYPE: b"hardlink",
    tarfile.FIFOTYPE: b"fifo",
    tarfile.CHRTYPE: b"char",
}


def mixed(size: int, seed: int = 1) -> bytes:
    """Return bytes of which some compress and some do not, so that blocks end at any bit."""
    chosen = random.Random(seed)
    data = bytearray()
    while len(data) < size:
        data += chosen.randbytes(chosen.randrange(2000)) + b"the same text " * 20
        data += bytes(chosen.choices(b"abcdefgh", k=3000))
    return bytes(data[:size])


def checkpoints(blob: bytes, span: int = SPAN) -> tuple[list[Checkpoint], int]:
    """Return the checkpoints of a gzip blob, and the length of its stream."""
    pytest.importorskip("indexed_gzip")
    return checkpoints_of(io.BytesIO(blob), span)


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
