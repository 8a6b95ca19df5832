"""`rootfs/`: layers over layers (layer.md): what one hides, replaces or links to of those below."""

from __future__ import annotations

import errno
import stat
import time

import pytest
from support.layers import DIRECTORY, HARD_LINK, File, gzipped
from support.roots import Make, Show, errno_of, every_format, showing

pytest.importorskip("indexed_gzip")


show = pytest.fixture(showing)


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


@pytest.mark.parametrize("below", ["", "d/", "d/e/"])
@every_format
def test_what_aufs_keeps_for_itself_is_the_source_of_links_and_not_shown(
    make: Make, show: Show, below: str
) -> None:
    root = show(
        make(
            File(f"{below}.wh..wh.aufs"),
            File(f"{below}.wh..wh.plnk/", type=DIRECTORY),
            File(f"{below}.wh..wh.plnk/12.34", b"linked", mode=0o755),
            File(f"{below}.wh..wh.plnk/56.78", b"by nobody"),
            File(f"{below}.wh..wh.orph/deep/.wh.x", b"lost"),
            File("a", type=HARD_LINK, link=f"{below}.wh..wh.plnk/12.34"),
            File("sub/b", type=HARD_LINK, link=f"{below}.wh..wh.plnk/12.34"),
            File("c", type=HARD_LINK, link="sub/b"),
            File("own", b"own"),
            File(f"{below}.wh..wh.plnk/own", type=HARD_LINK, link="own"),
            File("other", type=HARD_LINK, link=f"{below}.wh..wh.plnk/own"),
        ),
        make(File("from-above", type=HARD_LINK, link="sub/b")),
    )
    assert root.names() == ["a", "c", "from-above", "other", "own", "sub"]
    assert root.names("sub") == ["b"]
    linked = ("a", "sub/b", "c", "from-above")
    assert {root.read(name) for name in linked} == {b"linked"}
    assert {root.read(name) for name in ("own", "other")} == {b"own"}
    assert len({root.view.stat(root / name).inode for name in linked}) == 1
    assert len({root.view.stat(root / name).inode for name in ("own", "other")}) == 1
    assert root.layers.filesystem.getattr(root / "a").links == 4
    assert root.layers.filesystem.getattr(root / "own").links == 2
    for name in (".wh..wh.aufs", ".wh..wh.plnk", ".wh..wh.plnk/12.34", ".wh..wh.orph/deep"):
        with pytest.raises(FileNotFoundError):
            root.view.stat(root / f"{below}{name}")


def test_a_link_to_what_aufs_keeps_of_a_layer_below_leads_there(show: Show) -> None:
    root = show(
        gzipped(File("lower", b"lower")),
        gzipped(
            File(".wh..wh.plnk/1", type=HARD_LINK, link="lower"),
            File("upper", type=HARD_LINK, link=".wh..wh.plnk/1"),
            File("none", type=HARD_LINK, link=".wh..wh.plnk/2"),
        ),
    )
    assert root.names() == ["lower", "upper"]
    assert root.read("upper") == b"lower"
    assert root.layers.filesystem.getattr(root / "upper").links == 2


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
