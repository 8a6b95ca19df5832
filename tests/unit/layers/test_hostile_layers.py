"""Layers that are not what they should be: an error, or left out, and bounded in all they take."""

from __future__ import annotations

import errno
import gzip
import stat
import tarfile
import time
import zlib
from collections.abc import Callable

import pytest
from support.layers import (
    HARD_LINK,
    LINK,
    File,
    Layer,
    gzipped,
    tar,
    zstd,
)
from support.roots import MIB, Make, Show, errno_of, every_format, gzipped_stream, plain, showing

pytest.importorskip("indexed_gzip")

DEEP = "d/" * 1999


show = pytest.fixture(showing)


@pytest.mark.parametrize("make", [gzipped, zstd], ids=lambda make: make.__name__)
def test_a_layer_that_decompresses_without_end_is_too_large(
    make: Make, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.decoders._FREE_BYTES", 4 * MIB)
    monkeypatch.setattr("epochfs.layers.decoders._MAX_RATIO", 2)
    root = show(make(File("zeros", bytes(5 * MIB))))
    assert errno_of(root, "zeros") == errno.EFBIG
    moved = root.moved()
    assert errno_of(root, "zeros") == errno.EFBIG
    assert root.moved() == moved  # that it is so is remembered


def test_a_layer_of_too_many_entries_is_too_large(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.index_writer.MAX_ENTRIES", 10)
    assert errno_of(show(gzipped(*(File(str(n)) for n in range(11)))), "0") == errno.EFBIG
    assert show(gzipped(*(File(str(n)) for n in range(10)))).read("0") == b""


def test_a_layer_of_too_many_bytes_of_names_is_too_large(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.index_writer.MAX_BYTES", 10_000)
    root = show(gzipped(*(File(f"{n:0200}") for n in range(100))))
    assert errno_of(root, "0") == errno.EFBIG


def test_directories_that_are_only_implied_are_counted_too(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.index_writer.MAX_BYTES", MIB)
    assert errno_of(show(gzipped(File("a/" * 2000))), "a") == errno.EFBIG


def test_a_header_that_never_ends_is_too_large(show: Show) -> None:
    root = show(gzipped(File("a", xattrs={"user.big": bytes(5 * MIB)})))
    assert errno_of(root, "a") == errno.EFBIG


@pytest.mark.parametrize("mtime", ["1e99999", "-1e99999", "inf", "nan"])
def test_a_time_that_is_none_is_an_error(mtime: str, show: Show) -> None:
    started = time.monotonic()
    assert errno_of(show(gzipped(File("a", mtime=mtime))), "a") == errno.EIO
    assert time.monotonic() - started < 5


def test_a_time_beyond_64_bits_is_the_last_one(show: Show) -> None:
    root = show(gzipped(File("a", mtime="1e15"), File("b", mtime="-99999999999.5")))
    assert root.view.stat(root / "a").time_ns == 2**63 - 1
    assert root.view.stat(root / "b").time_ns == 1 - 2**63


def test_very_long_numbers_in_a_header_are_an_error(show: Show) -> None:
    root = show(gzipped(File("a", xattrs={"user.n": b"1" * 5000})))
    assert errno_of(root, "a") == errno.EIO
    usual = {"user.n": b"1" * 1000, **{f"user.{n}": b"0123456789" * 10 for n in range(50)}}
    assert show(gzipped(File("a", b"x", xattrs=usual))).read("a") == b"x"


@pytest.mark.parametrize(
    "blob",
    [
        b"no tar" * 1000,
        gzip.compress(b"no tar" * 1000),
        gzip.compress(tar(File("a", b"x" * 5000)))[:-200] + bytes(200),
        tar(File("a", b"x" * 5000))[:2000],
        b"\x28\xb5\x2f\xfd" + b"no zstd",
    ],
    ids=["text", "packed text", "damaged gzip", "cut short", "damaged zstd"],
)
def test_what_is_no_layer_is_an_error(blob: bytes, show: Show) -> None:
    assert errno_of(show(Layer(blob)), "a") == errno.EIO


def block(file: File) -> bytes:
    """Return an empty file as one block without extended headers."""
    return tarfile.TarInfo(file.name).tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize("make", [Layer, gzipped_stream])
def test_a_damaged_header_is_not_taken_for_the_end(make: Make, show: Show) -> None:
    first, second = block(File("a")), block(File("b"))
    damaged = second[:10] + b"x" + second[11:]
    assert errno_of(show(make(first + damaged + bytes(1024))), "a") == errno.EIO
    assert errno_of(show(make(first + second[:300])), "a") == errno.EIO
    for end in (bytes(1024), bytes(512), bytes(300), b""):
        assert show(make(first + second + end)).names() == ["a", "b"]


def extended(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return an extended header with this body."""
    info = tarfile.TarInfo("extended")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % 512)


@pytest.mark.parametrize(
    "body",
    [
        b"2 " * 500 + b"=",  # records that overlap, which would each be as long as all that follow
        b"9 a=b\n",
        b"6 a=b",
        b"5 =b\n",
        b"4 a\n",
        b"0 a=b\n",
        b"a=b\n",
        b"000000006 a=b\n",
    ],
    ids=lambda body: ascii(body)[:20],
)
def test_a_malformed_extended_header_is_an_error(body: bytes, show: Show) -> None:
    root = show(gzipped_stream(extended(body) + block(File("a")) + bytes(1024)))
    assert errno_of(root, "a") == errno.EIO


BLOCKS = tar(*(File(f"{n:04}") for n in range(1024)))  # the ends of pieces are those of entries


def cut(blob: bytes, left: Callable[[int], int]) -> Layer:
    return Layer(blob[: left(len(blob))])


def flushed(stream: bytes) -> bytes:
    """Return two parts of a stream as one gzip member that may be cut between them."""
    packer = zlib.compressobj(wbits=31)
    half = len(stream) // 2 // 512 * 512
    first = packer.compress(stream[:half]) + packer.flush(zlib.Z_SYNC_FLUSH)
    return first + packer.compress(stream[half:]) + packer.flush()


@pytest.mark.parametrize("left", [lambda n: n - 50, lambda n: n // 2, lambda n: n - 1])
def test_a_zstd_layer_that_was_cut_short_is_an_error(
    left: Callable[[int], int], show: Show
) -> None:
    whole = zstd(*(File(f"{n:04}") for n in range(1024)))
    assert len(show(whole).names()) == 1024
    root = show(cut(whole.blob, left))
    with pytest.raises(OSError) as refused:
        root.names()
    assert refused.value.errno == errno.EIO
    moved = root.moved()
    assert errno_of(root, "0000") == errno.EIO
    assert root.moved() == moved  # that it is so is remembered


def test_a_gzip_layer_that_was_cut_short_is_an_error_wherever(show: Show) -> None:
    whole = flushed(BLOCKS)
    assert len(show(Layer(whole)).names()) == 1024
    seam = whole.index(b"\0\0\xff\xff") + 4
    for left in (seam, len(whole) - 1, len(whole) - 8, len(whole) - 9):
        with pytest.raises(OSError) as refused:
            show(Layer(whole[:left])).names()
        assert refused.value.errno == errno.EIO


def test_gzip_members_behind_each_other_are_one_layer_and_the_last_must_be_whole(
    show: Show,
) -> None:
    half = len(BLOCKS) // 2 // 512 * 512
    first, second = gzip.compress(BLOCKS[:half]), flushed(BLOCKS[half:])
    assert len(show(Layer(first + second)).names()) == 1024
    assert len(show(Layer(first + second + bytes(512))).names()) == 1024
    seam = second.index(b"\0\0\xff\xff") + 4
    with pytest.raises(OSError) as refused:
        show(Layer(first + second[:seam])).names()
    assert refused.value.errno == errno.EIO


def one_block(stream: bytes) -> bytes:
    """Compress ASCII and then zeros to gzip of one block (RFC 1951, section 3.2.6)."""
    content = stream.rstrip(b"\0") + b"\0"
    runs = -(-(len(stream) - len(content)) // 258)
    bits = "110" + "".join(f"{0x30 + one:08b}" for one in content)
    bits += ("11000101" + "00000") * runs + "0000000"
    size = len(content) + 258 * runs
    crc = zlib.crc32(bytes(258 * runs), zlib.crc32(content))
    body = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    header = gzip.compress(b"")[:10]
    return header + body + crc.to_bytes(4, "little") + size.to_bytes(4, "little")


def test_a_block_that_is_too_long_for_memory_is_read_all_the_same(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.indexing.MAX_SPAN_BYTES", 8 * MIB)
    stream = tar(File("text", b"in the block"), File("zeros", bytes(9 * MIB)))
    root = show(Layer(one_block(stream)))
    assert root.read("text") == b"in the block"
    assert root.read("zeros") == bytes(9 * MIB)


def test_names_that_look_like_headers_are_taken_for_names(show: Show) -> None:
    name = "d" * 100 + "/" + "x" * 250
    bodies = [
        extended(name.encode() + b"\0", tarfile.GNUTYPE_LONGNAME),
        extended(b"6 a=b\n10 b=\n\n=\n\n"),
        extended(b"512 comment=" + b"x" * 499 + b"\n"),
        extended(b""),
    ]
    for number, body in enumerate(bodies):
        root = show(gzipped_stream(body + block(File(f"{number}", b"")) + bytes(1024)))
        assert root.names() == (["d" * 100] if number == 0 else [f"{number}"])


def test_global_headers_of_one_entry_are_bounded(show: Show) -> None:
    records = b"".join(b"8 %04d=\n" % n for n in range(1000))
    headers = extended(records, tarfile.XGLTYPE) + extended(b"6 a=b\n") * 100
    root = show(gzipped_stream(headers + block(File("a")) + bytes(1024)))
    assert errno_of(root, "a") == errno.EFBIG


def test_headers_of_the_whole_layer_do_not_add_up_without_end(show: Show) -> None:
    def layer(count: int, size: int) -> Layer:
        headers = (
            tarfile.TarInfo.create_pax_global_header({f"key{n}": "v" * size}) + block(File(f"{n}"))
            for n in range(count)
        )
        return gzipped_stream(b"".join(headers) + bytes(1024))

    assert len(show(layer(90, 1000)).names()) == 90
    assert errno_of(show(layer(9, MIB)), "0") == errno.EFBIG
    assert errno_of(show(layer(200, 10)), "0") == errno.EFBIG


@pytest.mark.expects_log("invalid paths|is read whole")
@every_format
def test_a_hard_link_does_not_take_the_place_of_the_root(make: Make, show: Show) -> None:
    root = show(make(File("a", b"1"), File("./", type=HARD_LINK, link="a")))
    assert "a" in root.names()
    assert root.view.stat(root.path).kind == stat.S_IFDIR


def test_an_attribute_that_linux_could_not_have_is_left_out(show: Show) -> None:
    long, good = {f"user.{'n' * 300}": b"1"}, {"user.a": b"2", "user.big": bytes(70_000)}
    root = show(gzipped(File("a", xattrs={**long, **good})))
    assert root.view.xattrs(root / "a") == {"user.a": b"2"}


def test_without_its_decoder_a_layer_says_what_to_install(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.decoders.indexed_gzip", None)
    root = show(gzipped(File("a")))
    with pytest.raises(OSError, match="install indexed_gzip and zstandard") as raised:
        root.view.stat(root / "a")
    assert raised.value.errno == errno.EIO
    assert show(plain(File("a", b"no need"))).read("a") == b"no need"


@pytest.mark.parametrize(
    ("one", "other"),
    [("b", "a"), ("a/x", "a/x"), ("/" * 5000, "x"), ("n" * 300, "x"), (f"b/{DEEP}", DEEP)],
)
def test_links_that_lead_nowhere_are_an_error(one: str, other: str, show: Show) -> None:
    links = [File("a", type=LINK, link=one), File("b", type=LINK, link=other)]
    assert show(gzipped(*links, File("c"))).names() == ["a", "b", "c"]
    assert errno_of(show(gzipped(*links, File("a/x"))), "c") == errno.EIO


def test_what_links_lead_to_is_counted_too(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.layers.index_writer.MAX_BYTES", 100_000)
    link = File("l", type=LINK, link="/".join("d" * 500))
    for files in (
        [File(f"l/{n}") for n in range(99)],
        [File(f"{n}", type=HARD_LINK, link="l/x") for n in range(99)],
    ):
        assert errno_of(show(gzipped(link, *files)), "l") == errno.EFBIG


def test_the_ways_to_entries_are_bounded(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.layers.index_writer.MAX_STEPS", 1000)
    far = "/".join("d" * 100)
    files = [File(f"{far}/{n}/x") for n in range(20)]
    assert errno_of(show(gzipped(File("l", type=LINK, link="x"), *files)), "l") == errno.EFBIG
