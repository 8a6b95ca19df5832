"""FlatBuffers as they are written, and as they never should be."""

from __future__ import annotations

import struct

import pytest
from support.soci import flatbuffer

from epochfs.errors import ProtocolViolation
from epochfs.layers.flatbuffers import FlatBuffer

LONG, BYTE = struct.Struct("<q"), struct.Struct("<b")


def test_fields_are_read_by_their_numbers() -> None:
    root = FlatBuffer(
        flatbuffer(
            {0: b"text", 2: ("q", -(2**40)), 3: {1: b"inner"}, 5: [b"a", b""], 6: [{0: b"x"}]}
        )
    ).root()
    assert bytes(root.octets(0)) == b"text"
    assert root.number(2, LONG) == -(2**40)
    inner = root.table(3)
    assert inner is not None
    assert bytes(inner.octets(1)) == b"inner"
    assert list(root.texts(5)) == [b"a", b""]
    assert [bytes(row.octets(0)) for row in root.tables(6)] == [b"x"]


def test_what_a_table_lacks_is_empty() -> None:
    root = FlatBuffer(flatbuffer({3: b"only this"})).root()
    for field in (0, 1, 4, 1000):
        assert bytes(root.octets(field)) == b""
        assert root.number(field, BYTE, 7) == 7
        assert root.table(field) is None
        assert list(root.texts(field)) == []
        assert list(root.tables(field)) == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\0\0",
        b"\xff\xff\xff\xff",
        struct.pack("<Ii", 4, 2**31 - 1),
        struct.pack("<Ii", 4, -(2**31)),
        struct.pack("<IiHHH", 4, -4, 6, 4, 60_000),
        struct.pack("<IiHHHI", 4, -4, 6, 8, 10, 2**32 - 1),
        struct.pack("<IiHHHII", 4, -4, 6, 8, 10, 4, 2**32 - 1),
    ],
)
def test_an_offset_that_leads_out_is_an_error(data: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        list(FlatBuffer(data).root().texts(0))


def test_a_small_buffer_cannot_have_much_by_sharing() -> None:
    text = struct.pack("<I", 10_000) + bytes(10_000)
    count = 10_000
    vector = struct.pack("<I", count)
    vector += b"".join(struct.pack("<I", 4 * (count - n)) for n in range(count))
    data = struct.pack("<IiHHHI", 4, -4, 6, 8, 10, 4)[:14] + struct.pack("<I", 4) + vector + text
    with pytest.raises(ProtocolViolation, match="shared too often"):
        list(FlatBuffer(data).root().texts(0))
