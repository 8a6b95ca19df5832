"""A digest computed while bytes arrive, in whatever order they do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import random_bytes

from epochfs.blobs.staged_file import Verifier
from epochfs.oci.names import Digest

DATA = random_bytes(9_000_001, 3)
PIECE = 1_000_000


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    """A descriptor of a file that has the bytes."""
    (tmp_path / "staged").write_bytes(DATA)
    fd = os.open(tmp_path / "staged", os.O_RDONLY)
    yield fd
    os.close(fd)


def piece(start: int) -> memoryview:
    return memoryview(DATA)[start : start + PIECE]


def test_bytes_in_order_need_not_be_read_back() -> None:
    verifier = Verifier(Digest.of(DATA))
    for start in range(0, len(DATA), PIECE):
        verifier.received(start, piece(start), -1, start + PIECE)  # there is no such file
    assert verifier.finish(-1, len(DATA), lambda: False)


def test_bytes_out_of_order_are_read_back(file: int) -> None:
    verifier = Verifier(Digest.of(DATA))
    starts = list(range(0, len(DATA), PIECE))
    for start in [*starts[3:], *starts[:3]]:
        verifier.received(start, piece(start), file, 0 if start else PIECE)
    assert verifier.finish(file, len(DATA), lambda: False)


def test_what_was_there_before_is_hashed_too(file: int) -> None:
    verifier = Verifier(Digest.of(DATA))
    verifier.received(5 * PIECE, piece(5 * PIECE), file, 6 * PIECE)
    assert verifier.finish(file, len(DATA), lambda: False)


def test_one_wrong_byte_is_seen(file: int) -> None:
    verifier = Verifier(Digest.of(DATA))
    wrong = bytearray(piece(0))
    wrong[17] ^= 1
    verifier.received(0, memoryview(wrong), file, PIECE)
    assert not verifier.finish(file, len(DATA), lambda: False)
    verifier.restart()
    assert verifier.finish(file, len(DATA), lambda: False)


def test_it_stops_when_it_is_told_to(file: int) -> None:
    verifier = Verifier(Digest.of(DATA))
    assert not verifier.finish(file, len(DATA), lambda: True)
