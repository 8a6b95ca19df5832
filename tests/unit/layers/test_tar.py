"""Tar streams as people's tools write them, in every format, and entries that are hard to tell."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import random_bytes

from epochfs.errors import ProtocolViolation, TooLarge
from epochfs.layers.entry import Entry
from epochfs.layers.tar import TarReader
from epochfs.layers.tar_stream import TarStream, number

END = bytes(1024)
LONG = "/".join(["long" * 20] * 4)


def entries(stream: bytes, piece: int = 1 << 30) -> list[Entry]:
    """Return the entries of a stream that is given `piece` bytes at a time."""
    pieces = (memoryview(stream)[at : at + piece] for at in range(0, len(stream), piece))
    return list(TarReader(TarStream(pieces, 1 << 40)))


def content(entry: Entry, stream: bytes) -> bytes:
    found = bytearray(entry.size)
    for piece in entry.pieces:
        found[piece.start : piece.start + piece.size] = stream[piece.offset :][: piece.size]
    return bytes(found)


def header(name: bytes = b"a", **fields: bytes) -> bytes:
    """Return a header block of version 7 with some fields in place of the usual ones."""
    places = {
        "name": (0, 100),
        "mode": (100, 8),
        "uid": (108, 8),
        "gid": (116, 8),
        "size": (124, 12),
        "mtime": (136, 12),
        "kind": (156, 1),
        "link": (157, 100),
        "magic": (257, 8),
        "prefix": (345, 155),
    }
    usual = {"mode": b"0000644\0", "uid": b"0000000\0", "gid": b"0000000\0"}
    usual |= {"size": b"00000000000\0", "mtime": b"00000000000\0", "kind": b"0", "name": name}
    block = bytearray(512)
    for key, value in {**usual, **fields}.items():
        start, length = places[key]
        assert len(value) <= length
        block[start : start + len(value)] = value
    return summed(bytes(block))


def summed(block: bytes, total: Callable[[bytes], int] = sum) -> bytes:
    """Return a header block with its checksum, which is written as GNU tar does."""
    spaces = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % total(spaces) + block[156:]


def extended(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        rest = b" %b=%b\n" % (key, value)
        length = next(n for n in range(len(rest), len(rest) + 9) if len(str(n)) + len(rest) == n)
        body += b"%d%b" % (length, rest)
    return header(b"x", kind=kind, size=b"%011o\0" % len(body)) + padded(body)


def long(text: bytes, kind: bytes = b"L") -> bytes:
    return header(b"././@LongLink", kind=kind, size=b"%011o\0" % (len(text) + 1)) + padded(
        text + b"\0"
    )


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


# ---- what GNU tar writes -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with all that tar can keep."""
    top = tmp_path_factory.mktemp("tree") / "top"
    (top / LONG).mkdir(parents=True)
    (top / LONG / ("f" * 120)).write_text("hello")
    (top / "link").symlink_to("x" * 200)
    (top / "short").symlink_to("plain")
    (top / "plain").write_bytes(random_bytes(3000))
    (top / "hard").hardlink_to(top / "plain")
    (top / "ünï\n").write_bytes(b"odd")
    os.mkfifo(top / "fifo")
    for count in (1, 4, 5, 30, 200):
        with (top / f"sparse{count}").open("wb") as file:
            for piece in range(count):
                file.seek(100_000 * piece + 50_000)
                file.write(random_bytes(5000, piece))
            file.truncate(100_000 * count + 70_000)
    (top / "hole").touch()
    os.truncate(top / "hole", 1 << 20)
    os.utime(top / "plain", ns=(1, 1_700_000_000_123_456_789))
    return top


FORMATS = {
    "v7": (),
    "ustar": (),
    "oldgnu": ("-S",),
    "gnu": ("-S",),
    "posix": ("-S",),
    "posix 0.0": ("-S", "--sparse-version=0.0"),
    "posix 0.1": ("-S", "--sparse-version=0.1"),
    "posix 1.0": ("-S", "--sparse-version=1.0"),
    "gnu incremental": ("-S", "--listed-incremental=/dev/null"),
    "posix global": ("--pax-option=comment=of all",),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("piece", [1 << 30, 1000], ids=["whole", "in-pieces"])
def test_all_that_gnu_tar_keeps_is_found(kind: str, piece: int, tree: Path) -> None:
    if shutil.which("tar") is None:
        pytest.skip("tar is not installed")
    style = kind.partition(" ")[0]
    command = ["tar", "-C", str(tree.parent), f"--format={style}", *FORMATS[kind], "-cf-", "top"]
    made = subprocess.run(command, capture_output=True, check=False)
    found = {entry.path.decode(): entry for entry in entries(made.stdout, piece)}
    expected = [tree, *tree.rglob("*")]
    if style in ("v7", "ustar"):  # which have no room for such names
        expected = [path for path in expected if "long" not in str(path) and path.name != "link"]
        expected = [path for path in expected if style != "v7" or path.name != "fifo"]
    if "incremental" in kind:  # which has directories in a way of its own
        expected = [path for path in expected if not path.is_dir()]
    assert set(found) >= {str(path.relative_to(tree.parent)) for path in expected}
    for path in expected:
        entry, status = found[str(path.relative_to(tree.parent))], path.lstat()
        if entry.is_hard_link:
            assert {entry.path, entry.link} == {b"top/plain", b"top/hard"}
            continue
        assert entry.mode == status.st_mode
        assert (entry.uid, entry.gid) == (status.st_uid, status.st_gid)
        exact = style == "posix"
        assert entry.time_ns == (status.st_mtime_ns if exact else int(status.st_mtime) * 10**9)
        if path.is_symlink():
            assert entry.link.decode() == str(path.readlink())
        elif path.is_file():
            assert content(entry, made.stdout) == path.read_bytes()
            if "-S" in FORMATS[kind] and path.name.startswith("sparse"):
                assert sum(one.size for one in entry.pieces) < entry.size / 2


# ---- what is hard to tell ------------------------------------------------------------------------


def only(stream: bytes) -> Entry:
    [entry] = entries(stream + END)
    return entry


def test_a_name_begins_in_the_prefix() -> None:
    assert only(header(b"b", magic=b"ustar\x0000", prefix=b"a")).path == b"a/b"
    assert only(header(b"b", prefix=b"a")).path == b"a/b"


def test_under_gnus_magic_there_are_times_in_its_place_unless_go_wrote_it() -> None:
    gnu = b"ustar  \0"
    assert only(header(b"b", magic=gnu, prefix=b"14526717263\x0014526717263\0")).path == b"b"
    assert only(header(b"b", magic=gnu, prefix=b"usr/lib/long")).path == b"usr/lib/long/b"


@pytest.mark.parametrize(
    ("stream", "mode"),
    [
        (header(b"d/", kind=b"\0"), stat.S_IFDIR),
        (header(b"d", kind=b"\0"), stat.S_IFREG),
        (long(b"d" * 99 + b"/e") + header(b"d" * 99 + b"/", kind=b"\0"), stat.S_IFREG),
        (long(b"d" * 120 + b"/") + header(b"d" * 99, kind=b"\0"), stat.S_IFDIR),
        (extended((b"path", b"d/")) + header(b"d", kind=b"\0"), stat.S_IFDIR),
        (header(b"d", kind=b"7"), stat.S_IFREG),
        (header(b"d", kind=b"5", size=b"00000001000\0"), stat.S_IFDIR),
        (header(b"d", kind=b"2", link=b"x", size=b"00000001000\0"), stat.S_IFLNK),
    ],
)
def test_a_type_is_told_by_the_whole_name(stream: bytes, mode: int) -> None:
    first, second = entries(stream + header(b"next") + END)
    assert stat.S_IFMT(first.mode) == mode
    assert second.path == b"next"


def test_a_long_name_counts_before_any_other() -> None:
    stream = long(b"long") + extended((b"path", b"extended")) + header(b"short")
    assert only(stream).path == b"long"
    stream = long(b"long", b"K") + extended((b"linkpath", b"extended")) + header(kind=b"2")
    assert only(stream).link == b"long"


def test_global_headers_hold_until_they_are_taken_back() -> None:
    stream = extended((b"uid", b"7"), (b"mtime", b"3"), kind=b"g")
    stream += header(b"a") + extended((b"uid", b"8"), (b"mtime", b"")) + header(b"b")
    stream += extended((b"uid", b""), kind=b"g") + header(b"c")
    found = [(entry.uid, entry.time_ns // 10**9) for entry in entries(stream + END)]
    assert found == [(7, 3), (8, 0), (0, 3)]


@pytest.mark.parametrize("end", [b"", END])
def test_a_stream_without_entries_has_none(end: bytes) -> None:
    assert entries(end) == []
    assert entries(extended((b"comment", b"x"), kind=b"g") + end) == []


@pytest.mark.parametrize(
    "stream",
    [
        bytes(200),
        b"x" * 200,
        b"x" * 2000,
        header()[:511],
        header() + header()[:100],
        header()[:10] + b"x" + header()[11:],
        header(size=b"00000001000\0"),
        header(size=b"00000001000\0") + bytes(511),
        header(size=b"\x80" + b"\xff" * 11),
        header(size=b"\xff" * 12),
        header(size=b"0000000000x\0"),
        header(size=b"\xe2\x88\x9e"),
        extended((b"a", b"b")),
        extended((b"a", b"b")) + END,
        long(b"x") + bytes(512),
        header(kind=b"x", size=b"00000001000\0") + b"x" * 100,
        extended((b"size", b"x")) + header(),
        extended((b"size", b"-1")) + header(),
        extended((b"size", b"9" * 5000)) + header(),
        extended((b"mtime", b"inf")) + header(),
        extended((b"GNU.sparse.map", b"0,5,3,4"), (b"GNU.sparse.size", b"9")) + header(),
        extended((b"GNU.sparse.map", b"0,5,7"), (b"GNU.sparse.size", b"9")) + header(),
        extended((b"GNU.sparse.map", b"0,50"), (b"GNU.sparse.size", b"9")) + header(),
        extended((b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"9")) + header() + header(),
        extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + header() + b"9" * 512,
        extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
        + header()
        + padded(b"1\nx\n5\n"),
        extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
        + header()
        + padded(b"0\n"),
        summed(header(kind=b"S")[:482] + b"\1" + header()[483:]),
        header() + bytes(512) + header(),
        bytes(512) + header() + END,
    ],
    ids=range(30),
)
def test_what_is_damaged_or_cut_short_is_an_error(stream: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        entries(stream)


def test_a_map_without_end_is_too_large() -> None:
    version = extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    with pytest.raises(TooLarge):
        entries(version + header() + padded(b"999999999\n" + b"0\n" * 2_000_000))
    block = summed(header(kind=b"S")[:482] + b"\1" + header()[483:])
    more = bytes(504) + b"\1" + bytes(7)
    with pytest.raises(TooLarge):
        entries(block + more * 4000)


def test_a_checksum_may_be_of_signed_bytes() -> None:
    def signed(block: bytes) -> int:
        return sum(struct.unpack("512b", block))

    entry = only(summed(header("ünï".encode()), signed))
    assert entry.path.decode() == "ünï"


@given(st.integers(-(2**62), 2**62))
def test_numbers_of_either_kind_are_what_python_wrote(value: int) -> None:
    field = bytes(tarfile.itn(value, 12, tarfile.GNU_FORMAT))  # type: ignore[attr-defined]
    assert number(field) == value


@pytest.mark.parametrize(
    ("field", "value"),
    [(b"0000644\0", 0o644), (b"   644 \0", 0o644), (b"\0junk\0\0\0", 0), (b"        ", 0)],
)
def test_octal_numbers_are_read_as_loosely_as_they_are_written(field: bytes, value: int) -> None:
    assert number(field) == value


def test_what_is_no_file_is_passed_over_with_its_data() -> None:
    kinds = (b"V", b"M", b"N", b"D", b"A", b"Z")
    stream = b"".join(header(kind=kind, size=b"00000001000\0") + b"x" * 512 for kind in kinds)
    assert [entry.path for entry in entries(stream + header(b"next") + END)] == [b"next"]


def test_what_is_before_and_behind_the_end_is_told_apart() -> None:
    assert [one.path for one in entries(header(b"a") + END + header(b"b"))] == [b"a"]
