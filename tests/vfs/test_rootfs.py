"""`rootfs/`: the layers of an image as one file system, whatever they are compressed with."""

from __future__ import annotations

import errno
import gzip
import os
import stat
from pathlib import Path

import pytest
import zstandard
from support.builders import random_bytes
from support.layers import (
    DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    LINK,
    MTIME,
    File,
    Layer,
    estargz,
    gzipped,
    zstd,
    zstd_chunked,
)
from support.roots import MIB, Make, Show, errno_of, every_format, plain, showing
from support.views import names

pytest.importorskip("indexed_gzip")


show = pytest.fixture(showing)


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
def test_the_kernel_keeps_pages_only_of_what_was_verified_at_the_open_before(
    make: Make, show: Show
) -> None:
    root = show(make(File("etc", b"small")))
    filesystem, kept = root.layers.filesystem, []
    for _ in range(4):
        opened = filesystem.open(root / "etc")
        assert filesystem.read(opened.handle, 0, 100) == b"small"
        filesystem.release(opened.handle)
        kept.append(opened.keep_cache)
    assert (kept[0], kept[-1]) == (False, True)
    assert kept == sorted(kept)


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


def test_a_listing_has_the_attributes_of_what_one_look_at_a_layer_tells(show: Show) -> None:
    below = plain(
        File("d/", type=DIRECTORY, mode=0o750),
        File("d/old", b"old"),
        File("d/gone", b"gone"),
        File("d/sub/", type=DIRECTORY, mode=0o711),
        File("d/link", type=LINK, link="old"),
    )
    above = plain(
        File("d/new", b"newer", owner=(1, 2)), File("d/.wh.gone"), File("d/sub/x"), File("d/i/x")
    )
    root = show(below, above)
    path, filesystem = root / "d", root.layers.filesystem
    found = filesystem.known_attrs(path, root.names("d"))
    assert found.keys() == {"old", "new", "link"}, "sub and i are only implied by what is in them"
    assert found == {name: filesystem.getattr(f"{path}/{name}") for name in found}


def test_what_may_have_several_names_is_looked_up_for_its_attributes(show: Show) -> None:
    root = show(
        plain(File("d/a", b"a"), File("d/s/", type=DIRECTORY, mode=0o700)),
        plain(File("d/b", type=HARD_LINK, link="d/a")),
    )
    found = root.layers.filesystem.known_attrs(root / "d", root.names("d"))
    assert found.keys() == {"s"}


def test_attributes_that_no_file_of_a_layer_has_are_not_offered(show: Show) -> None:
    root = show(
        plain(File("a", xattrs={"security.capability": b"x"}), File("b"), File("i/x")),
        plain(File("c"), File("d", xattrs={"trusted.c": b"y"})),
    )
    offers = root.layers.filesystem.offers_xattr
    asked = ["security.capability", "trusted.c", "user.a"]
    assert [offers(root / "b", name) for name in asked] == [True, False, True]
    assert [offers(root / "c", name) for name in asked] == [False, True, True]
    assert [offers(root / "i", name) for name in asked] == [False, False, True]


def test_a_time_keeps_its_nanoseconds(show: Show) -> None:
    root = show(gzipped(File("new", mtime="1700000000.123456789"), File("old", mtime="-5.5")))
    assert root.view.stat(root / "new").time_ns == 1_700_000_000_123_456_789
    assert root.view.stat(root / "old").time_ns == -5_500_000_000


@pytest.mark.parametrize("name", ["new\nline", "tab\t", "bad\udcff", "ünï", " ", "-"])
def test_a_name_may_be_of_any_bytes(name: str, show: Show) -> None:
    root = show(gzipped(File(f"d/{name}", b"odd")))
    assert root.names("d") == [name]
    assert root.read(f"d/{name}") == b"odd"


@pytest.mark.parametrize(
    "nothing",
    [b"", gzip.compress(b""), zstandard.ZstdCompressor().compress(b""), bytes(1024)],
    ids=["of no bytes", "gzip", "zstd", "tar"],
)
def test_a_layer_of_nothing_changes_nothing(nothing: bytes, show: Show) -> None:
    root = show(gzipped(File("a", b"A")), Layer(nothing), plain(File("b", b"B")), Layer(nothing))
    assert root.names() == ["a", "b"]
    assert (root.read("a"), root.read("b")) == (b"A", b"B")
    assert show(Layer(nothing)).names() == []


@pytest.mark.parametrize("name", ["./a", "/a", "../../a", "x/../a", "x//./..//a"])
def test_a_path_never_leaves_the_root(name: str, show: Show) -> None:
    assert show(gzipped(File(name, b"in"))).names() == ["a"]


@pytest.mark.expects_log("invalid paths")
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
            File("same", type=HARD_LINK, link="lib"),
            File("same/five", b"5"),
        )
    )
    assert root.names() == ["lib", "made", "new", "same", "usr"]
    assert root.names("usr/lib") == ["deep", "five", "one", "two"]
    assert root.view.readlink(root / "lib") == "usr/lib"
    assert root.layers.filesystem.getattr(root / "usr/lib/two").links == 2
    assert (root.read("usr/lib/two"), root.read("usr/lib/deep/three")) == (b"1", b"3")
    assert root.read("made/here/four") == b"4"


def test_a_whiteout_below_a_link_of_its_layer_is_where_that_leads(show: Show) -> None:
    above = gzipped(File("lib", type=LINK, link="usr/lib"), File("lib/.wh.gone"))
    root = show(gzipped(File("usr/lib/gone"), File("usr/lib/kept")), above)
    assert root.names("usr/lib") == ["kept"]
    with pytest.raises(FileNotFoundError):
        root.view.stat(root / "usr/lib/gone")


def test_a_directory_that_becomes_a_link_with_its_whiteouts_makes_nothing_where_that_leads(
    show: Show,
) -> None:
    below = gzipped(File("share/a"), File("share/b"))
    above = gzipped(File("share", type=LINK, link="/nowhere"), File("share/.wh.a"))
    root = show(below, above)
    assert root.names() == ["share"]
    assert root.view.readlink(root / "share") == "/nowhere"


def test_an_entry_below_a_file_makes_a_directory_of_it(show: Show) -> None:
    root = show(gzipped(File("d", b"file"), File("d/x", b"in it")))
    assert (root.names(), root.names("d"), root.read("d/x")) == (["d"], ["x"], b"in it")


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
    first.layers.blobs.close()
    again = show(layer)
    assert (again.read("b"), again.read("a")) == (b"second", random_bytes(5 * MIB))
    assert again.moved() < 10_000  # the catalog, the manifest


def test_a_file_of_the_top_layer_does_not_need_the_others(show: Show) -> None:
    root = show(gzipped(File("low", random_bytes(5 * MIB))), gzipped(File("top", b"here")))
    assert root.read("top") == b"here"
    assert root.moved() < MIB


def test_inode_numbers_and_links_survive_a_remount(show: Show) -> None:
    layer = gzipped(File("a"), File("b", type=HARD_LINK, link="a"), File("c"))
    first, again = show(layer), show(layer)
    for name in ("a", "b", "c"):
        assert first.view.stat(first / name) == again.view.stat(again / name)


@pytest.mark.expects_log("is damaged and will be rebuilt")
def test_a_damaged_index_is_made_anew(show: Show, tmp_path: Path) -> None:
    layer = gzipped(File("a", b"right"))
    first = show(layer)
    assert first.read("a") == b"right"
    first.layers.blobs.close()
    (kept,) = (tmp_path / "cache/v1/layers/sha256").iterdir()
    kept.write_bytes(b"not an index")
    assert show(layer).read("a") == b"right"


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
