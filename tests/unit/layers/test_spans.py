"""Spans of gzip layers: decompressed from any bit on, and never without their digests."""

from __future__ import annotations

import gzip
import zlib

import pytest
from support.builders import random_bytes
from support.soci import SPAN, checkpoints, mixed

from epochfs.errors import ProtocolViolation
from epochfs.layers.index import Span
from epochfs.layers.spans import decompress


def spans_of(blob: bytes) -> list[tuple[Span, bytes, bytes]]:
    """Return the spans of a blob, each with its compressed bytes and its window."""
    points, size = checkpoints(blob)
    found = []
    for number, (offset, start, bits, window) in enumerate(points):
        is_last = number + 1 == len(points)
        stop, end = (len(blob), size) if is_last else points[number + 1][:2]
        begin = offset - bool(bits)
        packed = blob[begin:stop]
        found.append((Span(start, end - start, begin, len(packed), bits, ""), packed, window))
    return found


def test_a_span_may_begin_at_any_bit_of_a_byte() -> None:
    data = mixed(6 << 20)
    spans = spans_of(gzip.compress(data, 6))
    assert {span.bits for span, _, _ in spans} == set(range(8))
    for span, packed, window in spans:
        assert decompress(span, packed, window) == data[span.start : span.start + span.size]


@pytest.mark.parametrize("level", [1, 9])
def test_blocks_that_are_stored_keep_to_the_bytes_of_the_blob(level: int) -> None:
    data = random_bytes(1 << 20) + mixed(1 << 20)
    for span, packed, window in spans_of(gzip.compress(data, level)):
        assert decompress(span, packed, window) == data[span.start : span.start + span.size]


def test_a_span_may_go_on_in_the_next_members() -> None:
    first, second, third = mixed(100_000), mixed(200_000, 2), mixed(50_000, 3)
    blob = b"".join(map(gzip.compress, (first, second, b"", third)))
    whole = first + second + third
    span = Span(0, len(whole), 10, len(blob) - 10, 0, "")
    assert decompress(span, blob[10:], bytes(32 << 10)) == whole


def test_a_span_never_has_more_than_its_table_says() -> None:
    packed = zlib.compress(bytes(100 << 20), 9, -15)
    assert decompress(Span(0, 1000, 10, len(packed), 0, ""), packed, b"") == bytes(1000)
    members = gzip.compress(b"a") + gzip.compress(bytes(100 << 20))
    content = decompress(Span(0, 1000, 10, len(members), 0, ""), members[10:], b"")
    assert content == b"a" + bytes(999)


@pytest.mark.parametrize("packed", [b"\xff" * 100, b"\x07", gzip.compress(b"x") + b"no member"])
def test_a_span_that_makes_no_sense_is_an_error(packed: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        decompress(Span(0, SPAN, 10, len(packed), 3, ""), packed, bytes(32 << 10))
    with pytest.raises(ProtocolViolation):
        decompress(Span(0, SPAN, 10, len(packed), 0, ""), packed[10:], bytes(32 << 10))
