"""Reads a gzip layer span by span, as its index divides it.

An index has them from a table of contents (see `soci`), or from when the layer was read whole. Then
the digest of each was taken of verified bytes, so what has been evicted since need not come whole
again.

A span is fetched alone, verified, and only then decompressed, by the standard library: it resumes
with a window, but only from whole bytes. A span that begins within a byte is therefore led up to by
empty blocks whose bits fill the rest of that byte (RFC 1951, sections 3.2.3, 3.2.6 and 3.2.7).
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from functools import partial

from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, ProtocolViolation
from epochfs.layers.chunks import ChunkCache
from epochfs.layers.decoders import gzip_content, read_range
from epochfs.layers.entry import Piece
from epochfs.layers.index import LayerIndex, Span
from epochfs.oci.names import Digest

SPANS = "spans"
"""What the index of a layer that is read by spans says is its compression."""

MAX_SPAN_BYTES = 64 << 20
"""Maximum size of a span, compressed or not: it is verified and decompressed in memory."""

_POINTS = struct.Struct("<5sBBQQIII")
"""The header of indexed_gzip's points: magic, version, flags, sizes of the blob and of the stream,
spacing, size of a window, number of points."""

_POINT = struct.Struct("<QQBB")
"""Offset in the blob, offset in the stream, bits of the byte before, whether it has a window."""

_WINDOW_BYTES = 32 << 10

_TRAILER_BYTES = 8
_BYTE = 8


def _number(value: int, width: int) -> str:
    """Return a number as its bits, in the order of the stream: the lowest first."""
    return f"{value:0{width}b}"[::-1]


_FIXED = _number(0, 1) + _number(1, 2) + "0000000"
"""An empty block of 10 bits: the last one? which kind? the end."""

_LENGTHS = {18: 2, 0: 1, 1: 2}
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1)
_DYNAMIC = (
    _number(0, 1)
    + _number(2, 2)
    + _number(0, 5)
    + _number(0, 5)
    + _number(len(_ORDER) - 4, 4)
    + "".join(_number(_LENGTHS.get(symbol, 0), 3) for symbol in _ORDER)
    + ("11" + _number(138 - 11, 7))
    + ("11" + _number(118 - 11, 7))
    + "10"
    + "0"
    + "0"
)
"""An empty block of 93 bits. Its code has the end alone, of length 1, after 256 lengths of 0, which
are written as two runs; then one distance, of length 0; and then comes the end."""


def _lead(bits: int) -> bytes:
    """Return empty blocks that leave the last `bits` bits of a byte free; those are 0."""
    text = "" if bits % 2 == 0 else _DYNAMIC
    while (len(text) + bits) % _BYTE:
        text += _FIXED
    text += "0" * bits
    return int(text[::-1] or "0", 2).to_bytes(len(text) // _BYTE, "little")


_LEADS = [_lead(bits) for bits in range(_BYTE)]


@dataclass(frozen=True)
class SpanArchive:
    """A gzip layer whose index has its spans (an `Archive`); each is verified by itself.

    `key` tells the layer, and who vouches for its spans.
    """

    key: Hashable
    index: LayerIndex
    open_blob: Callable[[], BlobHandle]
    cache: ChunkCache

    verified = True

    def read_piece(self, piece: Piece, offset: int, view: memoryview) -> None:
        start = piece.offset + offset
        for span in self.index.spans(start, start + len(view)):
            content = self.cache.get(self.key, span, partial(self._read, span))
            part = content[start - span.start :][: len(view)]
            view[: len(part)] = part
            view, start = view[len(part) :], start + len(part)
        if view:
            raise ContentMismatch("the spans of a layer do not cover a file")

    def _read(self, span: Span) -> bytes:
        with contextlib.closing(self.open_blob()) as blob:
            packed = read_range(blob, span.offset, span.packed)
        if not Digest.parse(span.digest).matches(packed):
            raise ContentMismatch("a span of a layer does not match the digest in its table")
        return decompress(span, packed, self.index.window(span))


def spans_of(points: memoryview, blob_size: int) -> Iterator[tuple[Span, bytes]]:
    """Yield the spans between the points of `gzip_points`, each with its window, but no digest."""
    *_, size, _, _, count = _POINTS.unpack_from(points)
    windows = _POINTS.size + count * _POINT.size
    found = [_POINT.unpack_from(points, _POINTS.size + n * _POINT.size) for n in range(count)]
    for number, (offset, start, bits, has_window) in enumerate(found):
        window = bytes(points[windows:][: _WINDOW_BYTES * has_window])
        windows += len(window)
        stop, end = blob_size, size
        if number + 1 < count:
            stop, end, _, _ = found[number + 1]
        if start < end:
            begin = offset - bool(bits)
            yield Span(start, end - start, begin, stop - begin, bits, ""), window


def decompress(span: Span, packed: bytes, window: bytes) -> bytes:
    """Return the bytes of a span. Raises ProtocolViolation unless `packed` has them."""
    body, lead = memoryview(packed), bytearray(_LEADS[span.bits])
    if span.bits:
        # The lower bits of the first byte are the end of the span before.
        lead[-1] |= packed[0] >> (_BYTE - span.bits) << (_BYTE - span.bits)
        body = body[1:]
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS, zdict=window)
    try:
        content = unpacker.decompress(lead)
        content += unpacker.decompress(body, span.size - len(content))
    except zlib.error as error:
        raise ProtocolViolation(f"a span of a layer cannot be decompressed: {error}") from None
    members = gzip_content(io.BytesIO(unpacker.unused_data[_TRAILER_BYTES:]))
    while len(content) < span.size and (piece := next(members, None)):
        content += piece[: span.size - len(content)]
    if len(content) < span.size:
        raise ProtocolViolation("a span of a layer is shorter than its table says")
    return content
