"""`rootfs/`: the layers of an image as one file system, whatever they are compressed with."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import stat
import tarfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from builders import load, random_bytes
from layers import (
    DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    LINK,
    MTIME,
    File,
    Layer,
    container,
    estargz,
    gzipped,
    tar,
    zstd,
    zstd_chunked,
)
from stacks import Stack, stack
from views import VfsView, names, read

from epochfs.blobcache import BlobCache
from epochfs.config import CacheOptions
from epochfs.errors import ContentMismatch, DeadlineExceeded, EpochfsError, Vanished
from epochfs.manifests import Descriptor
from epochfs.names import Digest, Repository
from epochfs.registry import EmbeddedRegistry, Request, Response
from epochfs.rootfs.content import ChunkCache, ChunkPieces
from epochfs.rootfs.entry import Piece
from epochfs.rootfs.merge import Image
from epochfs.rootfs.store import Layers

pytest.importorskip("indexed_gzip")

MIB = 1 << 20


def plain(*files: File) -> Layer:
    return Layer(tar(*files))


def gzipped_stream(stream: bytes) -> Layer:
    return Layer(gzip.compress(stream))


Make = Callable[..., Layer]
every_format = pytest.mark.parametrize(
    "make", [plain, gzipped, zstd, estargz, zstd_chunked], ids=lambda make: make.__name__
)


@dataclass
class Shown:
    """An image's root filesystem, at `path`, and all that is behind it."""

    view: VfsView
    path: str
    layers: Stack
    registry: EmbeddedRegistry

    def __truediv__(self, path: str) -> str:
        return f"{self.path}/{path}"

    def read(self, path: str) -> bytes:
        return read(self.view, self / path)

    def names(self, path: str = "") -> list[str]:
        return names(self.view, f"{self.path}/{path}".rstrip("/"))

    def moved(self) -> int:
        """Bytes that came from the registry."""
        return self.layers.client.stats.bytes_received


Show = Callable[..., Shown]


@pytest.fixture
def show(tmp_path: Path) -> Iterator[Show]:
    """Shows the root of an image of some layers, each time with the same cache."""
    with ExitStack() as closing:
        registry = closing.enter_context(EmbeddedRegistry())

        def build(*layers: Layer, **options: object) -> Shown:
            content = container(*layers)
            load(registry, "app", "latest", content)
            opened = closing.enter_context(stack(registry.url, tmp_path / "cache", **options))
            path = f"/app/manifests/{content.digest}/rootfs"
            return Shown(VfsView(opened.filesystem), path, opened, registry)

        yield build


# ---- one layer -----------------------------------------------------------------------------------


@every_format
def test_files_are_read_at_random_from_every_kind_of_layer(make: Make, show: Show) -> None:
    big = random_bytes(3 * MIB + 17)
    root = show(make(File("etc/", type=DIRECTORY), File("etc/small", b"small"), File("big", big)))
    assert root.read("etc/small") == b"small"
    assert root.read("big") == big
    with root.view.opened(root / "big") as file:
        for offset in (len(big) - 5, 2 * MIB - 3, 0, MIB):
            assert file.pread(1000, offset) == big[offset : offset + 1000]


@every_format
def test_an_entry_has_all_that_its_layer_says_of_it(make: Make, show: Show) -> None:
    root = show(
        make(
            File("su", b"x", mode=0o6755, owner=(12345, 54321), xattrs={"user.a": b"\0\xff"}),
            File("link", type=LINK, link="../target"),
            File("fifo", type=FIFO),
            File("tty", type=DEVICE, device=(5, 1), mode=0o620),
        )
    )
    attr = root.layers.filesystem.getattr(root / "su")
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o6755, 12345, 54321)
    assert attr.time_ns == MTIME * 10**9
    assert root.view.xattrs(root / "su") == {"user.a": b"\0\xff"}
    assert root.view.readlink(root / "link") == "../target"
    kinds = {name: kind for name, (kind, _) in root.view.entries(root.path).items()}
    assert (kinds["fifo"], kinds["tty"]) == (stat.S_IFIFO, stat.S_IFCHR)
    tty = root.layers.filesystem.getattr(root / "tty")
    assert (tty.mode, tty.rdev) == (stat.S_IFCHR | 0o620, os.makedev(5, 1))


@every_format
def test_the_names_of_a_file_are_one_file(make: Make, show: Show) -> None:
    root = show(make(File("a", b"one"), File("d/b", type=HARD_LINK, link="a"), File("c", b"two")))
    first, second, other = (root.view.stat(root / name) for name in ("a", "d/b", "c"))
    assert first.inode == second.inode != other.inode
    assert root.layers.filesystem.getattr(root / "d/b").links == 2
    assert root.view.entries(root / "d")["b"] == (stat.S_IFREG, first.inode)
    assert root.read("d/b") == b"one"


def test_a_time_keeps_its_nanoseconds(show: Show) -> None:
    root = show(gzipped(File("new", mtime="1700000000.123456789"), File("old", mtime="-5.5")))
    assert root.view.stat(root / "new").time_ns == 1_700_000_000_123_456_789
    assert root.view.stat(root / "old").time_ns == -5_500_000_000


@pytest.mark.parametrize("name", ["new\nline", "tab\t", "bad\udcff", "ünï", " ", "-"])
def test_a_name_may_be_of_any_bytes(name: str, show: Show) -> None:
    root = show(gzipped(File(f"d/{name}", b"odd")))
    assert root.names("d") == [name]
    assert root.read(f"d/{name}") == b"odd"


@pytest.mark.parametrize("name", ["./a", "/a", "../../a", "x/../a", "x//./..//a"])
def test_a_path_never_leaves_the_root(name: str, show: Show) -> None:
    assert show(gzipped(File(name, b"in"))).names() == ["a"]


@pytest.mark.expects_log("could not be a path")
def test_what_could_not_be_a_path_is_left_out(show: Show) -> None:
    assert show(gzipped(File("n" * 256), File("a"))).names() == ["a"]


def test_a_later_entry_of_a_path_counts(show: Show) -> None:
    root = show(
        gzipped(
            File("a", b"old"),
            File("link", type=HARD_LINK, link="a"),
            File("a", b"new"),
            File("d/x"),
            File("d", b"a file now"),
        )
    )
    assert (root.read("a"), root.read("link"), root.read("d")) == (b"new", b"old", b"a file now")
    assert root.layers.filesystem.getattr(root / "link").links == 1
    with pytest.raises(FileNotFoundError):
        root.view.stat(root / "d/x")


@every_format
def test_an_entry_below_a_link_of_its_layer_is_where_that_leads(make: Make, show: Show) -> None:
    root = show(
        make(
            File("usr/lib/", type=DIRECTORY, mode=0o700),
            File("lib", type=LINK, link="usr/lib"),
            File("lib/one", b"1"),
            File("lib/two", type=HARD_LINK, link="lib/one"),
            File("usr/lib64", type=LINK, link="/../lib"),
            File("usr/lib64/deep/three", b"3"),
            File("new", type=LINK, link="made/here"),
            File("new/four", b"4"),
        )
    )
    assert root.names() == ["lib", "made", "new", "usr"]
    assert root.names("usr/lib") == ["deep", "one", "two"]
    assert root.view.readlink(root / "lib") == "usr/lib"
    assert root.layers.filesystem.getattr(root / "usr/lib/two").links == 2
    assert (root.read("usr/lib/two"), root.read("usr/lib/deep/three")) == (b"1", b"3")
    assert root.read("made/here/four") == b"4"


def test_a_whiteout_below_a_link_of_its_layer_is_where_that_leads(show: Show) -> None:
    above = gzipped(File("lib", type=LINK, link="usr/lib"), File("lib/.wh.gone"))
    root = show(gzipped(File("usr/lib/gone"), File("usr/lib/kept")), above)
    assert root.names("usr/lib") == ["kept"]


def test_an_entry_below_a_file_makes_a_directory_of_it(show: Show) -> None:
    root = show(gzipped(File("d", b"file"), File("d/x", b"in it")))
    assert (root.names(), root.names("d"), root.read("d/x")) == (["d"], ["x"], b"in it")


@pytest.mark.parametrize(
    ("one", "other"),
    [("b", "a"), ("a/x", "a/x"), ("/" * 5000, "x"), ("n" * 300, "x"), ("b/" + "d/" * 999, "d/" * 1999)],
)
def test_links_that_lead_nowhere_are_an_error(one: str, other: str, show: Show) -> None:
    links = [File("a", type=LINK, link=one), File("b", type=LINK, link=other)]
    assert show(gzipped(*links, File("c"))).names() == ["a", "b", "c"]
    assert errno_of(show(gzipped(*links, File("a/x"))), "c") == errno.EIO


def test_what_links_lead_to_is_counted_too(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.rootfs.indexwriter.MAX_BYTES", 100_000)
    link = File("l", type=LINK, link="/".join("d" * 500))
    for files in (
        [File(f"l/{n}") for n in range(99)],
        [File(f"{n}", type=HARD_LINK, link="l/x") for n in range(99)],
    ):
        assert errno_of(show(gzipped(link, *files)), "l") == errno.EFBIG


def test_the_ways_to_entries_are_bounded(show: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.rootfs.indexwriter.MAX_STEPS", 1000)
    far = "/".join("d" * 100)
    files = [File(f"{far}/{n}/x") for n in range(20)]
    assert errno_of(show(gzipped(File("l", type=LINK, link="x"), *files)), "l") == errno.EFBIG


# ---- layers over layers (layer.md) ---------------------------------------------------------------


def test_a_whiteout_hides_what_is_below_and_not_what_is_beside_it(show: Show) -> None:
    below = gzipped(File("d/gone", b"1"), File("d/kept", b"1"), File("tree/x"), File("both", b"1"))
    above = gzipped(File("both", b"2"), File(".wh.both"), File("d/.wh.gone"), File(".wh.tree"))
    root = show(below, above)
    assert root.names() == ["both", "d"]
    assert root.names("d") == ["kept"]
    assert root.read("both") == b"2"
    for path in ("d/gone", "tree", "tree/x", ".wh.tree"):
        with pytest.raises(FileNotFoundError):
            root.view.stat(root / path)


def test_an_opaque_directory_hides_all_below_and_nothing_beside_it(show: Show) -> None:
    below = gzipped(File("d/", type=DIRECTORY, mode=0o700), File("d/x"), File("d/sub/y"))
    above = gzipped(File("d/new"), File("d/.wh..wh..opq"), File("d/sub/z"))
    root = show(below, above)
    assert root.names("d") == ["new", "sub"]
    assert root.names("d/sub") == ["z"]
    assert root.layers.filesystem.getattr(root / "d").mode == stat.S_IFDIR | 0o700


def test_a_file_takes_the_place_of_a_directory_for_good(show: Show) -> None:
    root = show(gzipped(File("d/x")), gzipped(File("d", b"file")), gzipped(File("d/y")))
    assert root.names("d") == ["y"]


def test_a_directory_has_the_attributes_of_the_topmost_layer_that_tells_them(show: Show) -> None:
    layers = [File("d/", type=DIRECTORY, mode=0o700), File("d/", type=DIRECTORY, mode=0o755)]
    root = show(*map(gzipped, layers), gzipped(File("d/x")))
    assert root.layers.filesystem.getattr(root / "d").mode == stat.S_IFDIR | 0o755


def test_a_hard_link_may_name_a_file_of_a_lower_layer(show: Show) -> None:
    below = gzipped(File("low", b"low"), File("gone"))
    above = gzipped(
        File("high", type=HARD_LINK, link="low"), File("broken", type=HARD_LINK, link="absent")
    )
    root = show(below, above, gzipped(File(".wh.gone")))
    assert root.names() == ["high", "low"]
    assert root.read("high") == b"low"
    assert root.view.stat(root / "high") == root.view.stat(root / "low")
    assert root.layers.filesystem.getattr(root / "low").links == 2


def test_an_opaque_root_hides_all_below(show: Show) -> None:
    root = show(gzipped(File("x"), File("d/x")), gzipped(File(".wh..wh..opq"), File("d/y")))
    assert (root.names(), root.names("d")) == (["d"], ["y"])
    for path in ("x", "d/x"):
        assert errno_of(root, path) == errno.ENOENT


def test_a_hard_link_to_what_is_not_there_hides_what_it_is_over(show: Show) -> None:
    above = gzipped(
        File("a", type=HARD_LINK, link="absent"),
        File("b", type=HARD_LINK, link="d"),
        File("kept", b"2"),
    )
    root = show(gzipped(File("a"), File("b"), File("d/x")), above)
    assert root.names() == ["d", "kept"]
    assert {errno_of(root, path) for path in "ab"} == {errno.ENOENT}


def test_a_directory_over_a_hard_link_is_a_directory(show: Show) -> None:
    link = gzipped(File("link", type=HARD_LINK, link="a"))
    root = show(gzipped(File("a", b"1")), link, gzipped(File("link/x")))
    assert root.names("link") == ["x"]
    assert root.view.stat(root / "link").kind == stat.S_IFDIR


def test_hard_links_over_hundreds_of_layers_are_counted_once_each(show: Show) -> None:
    crossed = gzipped(File("b", type=HARD_LINK, link="a"), File("a", type=HARD_LINK, link="b"))
    root = show(gzipped(File("a", b"1"), File("b", b"2")), *[crossed] * 1200)
    started = time.monotonic()
    assert root.layers.filesystem.getattr(root / "a").links == 2
    assert root.read("a") == b"1"
    assert time.monotonic() - started < 10


def test_a_name_that_a_higher_layer_hides_is_not_counted(show: Show) -> None:
    below = gzipped(File("a", b"1"), File("b", type=HARD_LINK, link="a"))
    root = show(below, gzipped(File("a", b"new")))
    assert root.layers.filesystem.getattr(root / "b").links == 1
    assert root.view.stat(root / "a").inode != root.view.stat(root / "b").inode


# ---- what is fetched, and what is kept -----------------------------------------------------------


@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_small_file_of_a_large_layer_moves_little_more_than_itself(
    make: Make, show: Show
) -> None:
    files = [File(f"usr/{n}", random_bytes(4 * MIB, n)) for n in range(8)]
    root = show(make(*files[:4], File("etc/os-release", b"ID=debian\n"), *files[4:]))
    assert root.read("etc/os-release") == b"ID=debian\n"
    assert root.moved() < MIB // 2


@pytest.mark.parametrize("make", [plain, gzipped, zstd], ids=lambda make: make.__name__)
def test_after_a_remount_a_layer_moves_nothing(make: Make, show: Show) -> None:
    layer = make(File("a", random_bytes(5 * MIB)), File("b", b"second"))
    first = show(layer)
    assert first.read("a") == random_bytes(5 * MIB)
    assert first.moved() > 5 * MIB
    first.layers.filesystem.close()
    again = show(layer)
    assert (again.read("b"), again.read("a")) == (b"second", random_bytes(5 * MIB))
    assert again.moved() < 10_000  # the catalogue, the manifest


def test_a_file_of_the_top_layer_does_not_need_the_others(show: Show) -> None:
    root = show(gzipped(File("low", random_bytes(5 * MIB))), gzipped(File("top", b"here")))
    assert root.read("top") == b"here"
    assert root.moved() < MIB


def test_inode_numbers_and_links_survive_a_remount(show: Show) -> None:
    layer = gzipped(File("a"), File("b", type=HARD_LINK, link="a"), File("c"))
    first, again = show(layer), show(layer)
    for name in ("a", "b", "c"):
        assert first.view.stat(first / name) == again.view.stat(again / name)


@pytest.mark.expects_log("is damaged and made anew")
def test_a_damaged_index_is_made_anew(show: Show, tmp_path: Path) -> None:
    layer = gzipped(File("a", b"right"))
    first = show(layer)
    assert first.read("a") == b"right"
    first.layers.filesystem.close()
    (kept,) = (tmp_path / "cache/v1/layers/sha256").iterdir()
    kept.write_bytes(b"not an index")
    assert show(layer).read("a") == b"right"


# ---- hostile layers ------------------------------------------------------------------------------


def errno_of(root: Shown, path: str) -> int | None:
    with pytest.raises(OSError) as raised:
        root.view.stat(root / path)
    return raised.value.errno


@pytest.mark.parametrize("make", [gzipped, zstd], ids=lambda make: make.__name__)
def test_a_layer_that_decompresses_without_end_is_too_large(
    make: Make, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.archive._FREE_BYTES", 4 * MIB)
    monkeypatch.setattr("epochfs.rootfs.archive._MAX_RATIO", 2)
    root = show(make(File("zeros", bytes(5 * MIB))))
    assert errno_of(root, "zeros") == errno.EFBIG
    moved = root.moved()
    assert errno_of(root, "zeros") == errno.EFBIG
    assert root.moved() == moved  # that it is so is remembered


def test_a_layer_of_too_many_entries_is_too_large(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.indexwriter.MAX_ENTRIES", 10)
    assert errno_of(show(gzipped(*(File(str(n)) for n in range(11)))), "0") == errno.EFBIG
    assert show(gzipped(*(File(str(n)) for n in range(10)))).read("0") == b""


def test_a_layer_of_too_many_bytes_of_names_is_too_large(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.indexwriter.MAX_BYTES", 10_000)
    root = show(gzipped(*(File(f"{n:0200}") for n in range(100))))
    assert errno_of(root, "0") == errno.EFBIG


def test_directories_that_are_only_implied_are_counted_too(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.indexwriter.MAX_BYTES", MIB)
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


@pytest.mark.expects_log("is read whole")
def test_headers_without_end_before_a_table_are_an_error(show: Show) -> None:
    layer = gzipped(File("a", b"in the stream"))
    start = len(layer.blob)
    nested = gzip.compress(File("x").header()[:1024] * 3000)
    footer = estargz().blob[-51:]
    footer = footer[:16] + b"%016x" % start + footer[32:]
    annotations = {"containerd.io/snapshot/stargz/toc.digest": f"sha256:{'0' * 64}"}
    root = show(replace(layer, blob=layer.blob + nested + footer, annotations=annotations))
    assert root.read("a") == b"in the stream"


@pytest.mark.parametrize(
    "blob",
    [
        b"no tar" * 1000,
        gzip.compress(b"no tar" * 1000),
        gzip.compress(tar(File("a", b"x" * 5000)))[:-200] + bytes(200),
        tar(File("a", b"x" * 5000))[:2000],
        b"\x28\xb5\x2f\xfd" + b"no zstd",
        b"",
    ],
    ids=["text", "packed text", "damaged gzip", "cut short", "damaged zstd", "empty"],
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


@pytest.mark.expects_log("could not be a path|is read whole")
@every_format
def test_a_hard_link_does_not_take_the_place_of_the_root(make: Make, show: Show) -> None:
    root = show(make(File("a", b"1"), File("./", type=HARD_LINK, link="a")))
    assert "a" in root.names()
    assert root.view.stat(root.path).kind == stat.S_IFDIR


def test_an_attribute_that_linux_could_not_have_is_left_out(show: Show) -> None:
    long, good = {f"user.{'n' * 300}": b"1"}, {"user.a": b"2", "user.big": bytes(70_000)}
    root = show(gzipped(File("a", xattrs={**long, **good})))
    assert root.view.xattrs(root / "a") == {"user.a": b"2"}


@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_chunk_of_other_bytes_than_the_table_says_is_an_error(make: Make, show: Show) -> None:
    data = random_bytes(50_000)
    layer = make(File("a", data))
    blob = bytearray(layer.blob)
    blob[blob.index(data[20_000:20_100])] ^= 1
    root = show(replace(layer, blob=bytes(blob)))
    assert root.view.stat(root / "a").size == 50_000
    with pytest.raises(OSError, match="does not have the digest") as raised:
        root.read("a")
    assert raised.value.errno == errno.EIO


def lie(registry: EmbeddedRegistry, blob: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a registry send a blob with some of its bytes changed, until that is undone."""
    wrong = blob[: len(blob) // 2] + bytes(100) + blob[len(blob) // 2 + 100 :]
    honest = registry.respond

    def respond(request: Request) -> Response:
        if request.method == "GET" and str(Digest.of(blob)) in request.path:
            return Response(200, body=wrong)
        return honest(request)

    monkeypatch.setattr(registry, "respond", respond)


@pytest.mark.parametrize("make", [plain, gzipped, zstd], ids=lambda make: make.__name__)
def test_where_only_the_index_was_kept_no_wrong_bytes_are_shown(
    make: Make, show: Show, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = random_bytes(3 * MIB)
    layer = make(File("before", random_bytes(9 * MIB, 2)), File("a", data))
    first = show(layer)
    assert first.read("a") == data
    first.layers.filesystem.close()
    shutil.rmtree(tmp_path / "cache/v1/blobs")
    root = show(layer)
    with monkeypatch.context() as lying:
        lie(root.registry, layer.blob, lying)
        assert root.view.stat(root / "a").size == len(data)
        with pytest.raises(OSError, match="digest") as raised:
            root.read("a")
        assert raised.value.errno == errno.EIO
    assert root.read("a") == data


class Stored:
    """A blob that is here (a `BlobHandle`), and fails as long as its store does."""

    verified = True

    def __init__(self, data: bytes, store: Store | None = None) -> None:
        self.data = data
        self.size = len(data)
        self.failure = store.failure if store else None

    def fileno(self) -> int:
        raise NotImplementedError

    def read_into(self, view: memoryview, offset: int) -> int:
        if self.failure is not None:
            raise self.failure
        found = self.data[offset : offset + len(view)]
        view[: len(found)] = found
        return len(found)

    def close(self) -> None:
        """Nothing to close."""


class Store:
    """Gives one blob, whatever is asked for; from what was opened during a `failure` comes that."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.failure: EpochfsError | None = None
        self.opened: list[bool] = []

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> Stored:
        self.opened.append(precise)
        return Stored(self.data, self)


def of_store(store: Store, layer: Layer, directory: Path) -> Callable[[], Image]:
    """Return what gives an image of one layer, whose blob is the store's."""
    layers = Layers(store, BlobCache(CacheOptions(directory, 1 << 30)))
    digest = Digest.of(layer.blob)
    one = Descriptor(layer.media_type, digest, len(layer.blob), annotations=layer.annotations)
    return lambda: Image(layers, Repository("app"), (one,), time.monotonic() + 20)


@pytest.mark.parametrize("failure", [ContentMismatch("wrong"), Vanished("gone")])
def test_a_layer_whose_blob_failed_is_opened_anew(failure: EpochfsError, tmp_path: Path) -> None:
    layer = plain(File("a", b"well"))
    store = Store(layer.blob)
    image = of_store(store, layer, tmp_path)
    found = image().find(b"a")

    def content() -> bytes:
        buffer = bytearray(4)
        image().open(found).read_into(memoryview(buffer), 0)
        return bytes(buffer)

    store.failure = failure
    with pytest.raises(type(failure)):
        content()
    store.failure = None
    assert content() == b"well"


@pytest.mark.expects_log("is read whole")
def test_a_layer_that_is_read_whole_is_opened_for_that(tmp_path: Path) -> None:
    layer = estargz(File("a", b"in the stream"))
    wrong = dict.fromkeys(layer.annotations, f"sha256:{'0' * 64}")
    store = Store(layer.blob)
    image = of_store(store, replace(layer, annotations=wrong), tmp_path)
    assert image().find(b"a").inode.size == 13
    assert store.opened == [True, False]  # precise for the table, and then not


def test_a_copy_that_was_not_finished_leaves_nothing(tmp_path: Path) -> None:
    layer = zstd(File("a", random_bytes(8 * MIB)))
    store = Store(layer.blob)
    image = of_store(store, layer, tmp_path)
    found = image().find(b"a")
    store.failure = DeadlineExceeded("a silent registry")
    with pytest.raises(DeadlineExceeded):
        image().open(found)
    assert list((tmp_path / "v1/partial/sha256").iterdir()) == []


def test_a_chunk_that_is_shorter_than_the_table_says_is_an_error() -> None:
    blob = Stored(gzip.compress(b"short"))
    pieces = ChunkPieces(Digest.of(blob.data), "estargz", lambda: blob, ChunkCache())
    piece = Piece(0, 1000, 0, 0, str(Digest.of(b"short")))
    with pytest.raises(ContentMismatch):
        pieces.read_piece(piece, 0, memoryview(bytearray(1000)))


def test_a_chunk_is_made_once_for_all_who_want_it_and_few_at_once() -> None:
    data = random_bytes(1000)
    piece = Piece(0, 1000, 0, 0, str(Digest.of(data)))
    opened: list[int] = []
    done: list[int] = []
    under_way: list[int] = []
    cache = ChunkCache()

    def make(number: int) -> bytes:
        opened.append(number)
        under_way.append(len(opened) - len(done))
        time.sleep(0.05)
        done.append(number)
        return data

    with ThreadPoolExecutor(24) as pool:
        layers = [Digest.of(b"%d" % (n % 8)) for n in range(24)]
        found = pool.map(lambda n: cache.get(layers[n], piece, lambda: make(n % 8)), range(24))
        assert list(found) == [data] * 24
    assert sorted(opened) == list(range(8))
    assert max(under_way) <= 4


def test_a_chunk_that_could_not_be_made_is_made_anew() -> None:
    piece, cache = Piece(0, 1, 0), ChunkCache()

    def fail() -> bytes:
        time.sleep(0.1)
        raise ContentMismatch("wrong")

    def wanted(_: int) -> bytes:
        return cache.get(Digest.of(b""), piece, fail)

    with ThreadPoolExecutor(3) as pool:
        for failed in [pool.submit(wanted, n) for n in range(3)]:
            with pytest.raises(ContentMismatch):
                failed.result()
    assert cache.get(Digest.of(b""), piece, lambda: b"x") == b"x"


@pytest.mark.expects_log("is read whole")
@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_table_that_nothing_vouches_for_is_not_believed(make: Make, show: Show) -> None:
    layer = make(File("a", b"from the tar stream"))
    wrong = {
        name: value if "position" in name else f"sha256:{'0' * 64}"
        for name, value in layer.annotations.items()
    }
    for vouchers in ({}, wrong):
        root = show(replace(layer, annotations=vouchers))
        assert root.read("a") == b"from the tar stream"


@pytest.mark.expects_log("is read whole: its table of contents: it has more than")
@pytest.mark.parametrize("make", [estargz, zstd_chunked], ids=lambda make: make.__name__)
def test_a_table_of_too_many_rows_is_not_parsed(
    make: Make, show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.toc.MAX_ROWS", 100)
    root = show(make(*(File(f"d/{n}", b"x") for n in range(200))))
    assert len(root.names("d")) == 200
    assert root.read("d/7") == b"x"


def two_faced() -> Layer:
    """Return a layer whose tar stream has `real`, and whose table of contents has `other`."""
    stream = gzipped(File("real", b"real")).blob
    layer = estargz(File("other", b"other"))
    start = layer.blob.rindex(b"STARGZ") - 16
    offset = int(layer.blob[start : start + 16], 16)
    moved = layer.blob[:start] + b"%016x" % (offset + len(stream)) + layer.blob[start + 16 :]
    return replace(layer, blob=stream + moved)


@pytest.mark.parametrize("first", ["believed", "not believed"])
def test_a_table_is_believed_only_by_the_manifest_that_vouches_for_it(
    first: str, show: Show
) -> None:
    layer = two_faced()
    expected = {True: ["other"], False: ["real"]}
    shown = {}
    for believed in (first == "believed", first != "believed"):
        annotations = layer.annotations if believed else {}
        shown[believed] = show(replace(layer, annotations=annotations)).names()
    assert shown == expected


def test_without_its_decoder_a_layer_says_what_to_install(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.rootfs.decoders.indexed_gzip", None)
    root = show(gzipped(File("a")))
    with pytest.raises(OSError, match=r"pip install 'epochfs\[rootfs\]'") as raised:
        root.view.stat(root / "a")
    assert raised.value.errno == errno.EIO
    assert show(plain(File("a", b"no need"))).read("a") == b"no need"


# ---- the tree around it --------------------------------------------------------------------------


def test_it_opens_by_name_and_is_listed_only_where_that_was_asked_for(show: Show) -> None:
    for wanted in (False, True):
        root = show(gzipped(File("a")), show_rootfs=wanted)
        assert ("rootfs" in names(root.view, root.path.removesuffix("/rootfs"))) is wanted
        assert root.view.stat(root.path).kind == stat.S_IFDIR


def test_what_is_no_container_image_has_none(show: Show) -> None:
    root = show(Layer(b"{}", media_type="application/vnd.in-toto+json"), show_rootfs=True)
    assert errno_of(root, "") == errno.ENOENT
    assert "rootfs" not in names(root.view, root.path.removesuffix("/rootfs"))
