"""Tables of SOCI: what is in them, and what makes them useless."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import random
import stat

import pytest
from support.builders import random_bytes
from support.layers import DIRECTORY, HARD_LINK, LINK, File, tar
from support.soci import Checkpoint, Value, checkpoints, entries, ztoc

from epochfs.errors import EpochfsError, InvalidName, ProtocolViolation, TooLarge
from epochfs.layers.soci import MAX_SPAN_BYTES, SociTable

DATA = random_bytes(300_000)
STREAM = tar(
    File("d/", type=DIRECTORY, mode=0o750),
    File("d/a", DATA, owner=(7, 8), xattrs={"user.x": b"\0\xff"}),
    File("b", type=LINK, link="d/a"),
    File("c", type=HARD_LINK, link="./d/a"),
)
BLOB = gzip.compress(STREAM)
ROWS = entries(STREAM)
POINTS = checkpoints(BLOB)[0]


def table(**lies: Value) -> SociTable:
    return SociTable(ztoc(BLOB, ROWS, **lies), len(BLOB))


def row(**lies: Value) -> list[dict[int, Value]]:
    """Return the row of `d/a` alone, with some fields changed: `f2` is the third."""
    return [ROWS[1] | {int(name[1:]): value for name, value in lies.items()}]


def point(number: int, change: tuple[int, int, int]) -> list[Checkpoint]:
    """Return the checkpoints with one moved: its offset, start and bits."""
    offset, start, bits, window = POINTS[number]
    moved = (offset + change[0], start + change[1], bits + change[2], window)
    return [*POINTS[:number], moved, *POINTS[number + 1 :]]


def test_a_table_tells_the_entries_and_the_spans_of_a_layer() -> None:
    directory, file, link, hard_link = table().entries()
    assert (directory.path, stat.filemode(directory.mode)) == (b"d", "drwxr-x---")
    assert (file.path, file.size, file.uid, file.gid) == (b"d/a", len(DATA), 7, 8)
    assert file.xattrs == {"user.x": b"\0\xff"}
    assert STREAM[file.pieces[0].offset :].startswith(DATA)
    assert (link.link, link.pieces) == (b"d/a", ())
    assert (hard_link.is_hard_link, hard_link.link) == (True, b"d/a")
    spans = [span for span, _ in table().spans()]
    assert len(spans) == len(POINTS) > 2
    assert spans[0].start == 0
    for span, following in itertools.pairwise(spans):
        assert span.start + span.size == following.start
        assert span.offset + span.packed == following.offset + bool(following.bits)
    assert spans[-1].start + spans[-1].size == len(STREAM)
    assert spans[-1].offset + spans[-1].packed == len(BLOB)


@pytest.mark.parametrize(
    "lies",
    [
        {"version": b"7.0"},
        {"compressed_archive_size": ("q", len(BLOB) - 1)},
        {"uncompressed_archive_size": ("q", 10_000)},
        {"uncompressed_archive_size": ("q", -1)},
        {"uncompressed_archive_size": ("q", 2**62)},
        {"algorithm": ("b", 2)},
        {"span_digests": []},
        {"span_digests": [b"sha256:" + b"0" * 64]},
        {"span_digests": [b"md5:0"] * len(POINTS)},
        {"span_digests": [b"\xff"] * len(POINTS)},
        {"checkpoints": POINTS[1:]},
        {"checkpoints": point(0, (0, 1, 0))},
        {"checkpoints": point(0, (-11, 0, 0))},
        {"checkpoints": point(1, (0, -(2**40), 0))},
        {"checkpoints": point(1, (len(BLOB), 0, 0))},
        {"checkpoints": point(1, (-len(BLOB), 0, 0))},
        {"checkpoints": point(1, (0, 0, 8))},
        {"checkpoints": [POINTS[0]] * len(POINTS)},
        {"metadata": row(f1=b"socket")},
        {"metadata": row(f0=b"x" * 5000)},
        {"metadata": row(f0=b"a\0b")},
        {"metadata": row(f0=b".")},
        {"metadata": row(f2=("q", len(STREAM)))},
        {"metadata": row(f2=("q", -1))},
        {"metadata": row(f3=("q", -1))},
        {"metadata": row(f3=("q", 2**62))},
        {"metadata": row(f10=b"yesterday")},
        {"metadata": row(f10=b"\xff")},
        {"metadata": row(f13=[{0: b"GNU.sparse.major", 1: b"1"}])},
    ],
    ids=lambda lies: "-".join(lies),
)
def test_a_table_that_cannot_be_right_is_refused(lies: dict[str, Value]) -> None:
    with pytest.raises((InvalidName, ProtocolViolation, TooLarge)):
        table(**lies)


def test_a_span_that_does_not_fit_into_memory_is_refused() -> None:
    size = MAX_SPAN_BYTES + 1
    points = [(10, 0, 0, bytes(32 << 10))]
    data = ztoc(
        BLOB,
        [],
        checkpoints=points,
        span_digests=[b"sha256:" + b"0" * 64],
        uncompressed_archive_size=("q", size),
    )
    with pytest.raises(TooLarge, match=f"{size} bytes"):
        SociTable(data, len(BLOB))


def test_damage_anywhere_raises_nothing_unforeseen() -> None:
    chosen, whole = random.Random(3), ztoc(BLOB, ROWS)
    head = whole[:2000] + whole[-2000:]
    for _ in range(1500):
        data = bytearray(whole if chosen.randrange(4) else head)
        for _ in range(chosen.choice((1, 3, 30))):
            position = chosen.choice((chosen.randrange(2000), len(data) - chosen.randrange(1, 500)))
            data[position] = chosen.randrange(256)
        with contextlib.suppress(EpochfsError):
            SociTable(data, len(BLOB))
