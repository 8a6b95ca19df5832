"""`--unverified-layers`: layers over layers, and tars in volumes, while one of them arrives."""

from __future__ import annotations

import errno
import gzip
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.arriving import FILES, LAYER, SMALL, Slow, coming_slowly, gzipped, unverified
from support.artifacts import artifact, packed, raw
from support.builders import Content, load
from support.layers import DIRECTORY, HARD_LINK, LINK, File
from support.roots import MIB, Show, Shown, errno_of, plain, showing
from support.views import names, read

from epochfs.oci.artifact_files import TEKTON_KIND, TEKTON_NAME

pytest.importorskip("indexed_gzip")

showing_all = pytest.fixture(showing)
show = pytest.fixture(unverified)
slow = pytest.fixture(coming_slowly)

TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


# ---- several layers ------------------------------------------------------------------------------


def test_below_a_layer_that_is_whole_one_may_arrive(show: Show) -> None:
    root = show(LAYER, gzipped(File("top", b"the top")))
    assert root.read("etc/first") == SMALL
    assert root.read("top") == b"the top"
    assert root.moved() < 0.05 * len(LAYER.blob)


def test_a_directory_without_an_entry_is_there_with_what_is_in_it(show: Show) -> None:
    root = show(gzipped(*FILES[1:]))
    assert root.view.stat(root / "etc").permissions == 0o755
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.05 * len(LAYER.blob)
    lower = gzipped(File("etc/", type=DIRECTORY, mode=0o711), File("etc/lower", b"L"))
    root = show(lower, gzipped(*FILES[1:], File("top", b"top")))
    assert root.view.stat(root / "etc").permissions == 0o711
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.05 * len(LAYER.blob)
    assert root.names("etc") == ["first", "lower"]


def test_what_an_upper_layer_hides_at_its_end_was_never_shown(show: Show) -> None:
    lower = gzipped(File("gone", b"gone"), File("kept", b"kept"), File("etc/first", b"lower"))
    root = show(lower, gzipped(*FILES, File(".wh.gone")))
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.05 * len(LAYER.blob)
    assert errno_of(root, "gone") == errno.ENOENT
    assert root.read("kept") == b"kept"


def test_an_entry_may_come_behind_a_whiteout_of_its_name(slow: Slow) -> None:
    files = (File("d/.wh..wh..opq"), File(".wh.a"), *FILES, File("a", b"new"), File("d/b", b"B"))
    root, gate = slow(gzipped(File("a", b"old"), File("d/b", b"old")), gzipped(*files))
    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(root.read, path) for path in ("a", "d/b")]
        assert root.read("etc/first") == SMALL
        assert not any(one.done() for one in found)
        gate.open()
        assert [one.result(20) for one in found] == [b"new", b"B"]


def test_links_lead_where_they_should(show: Show) -> None:
    root = show(
        gzipped(File("low", b"low")),
        gzipped(
            File("symbolic", type=LINK, link="etc/first"),
            *FILES[:2],
            File("name", type=HARD_LINK, link="etc/first"),
            File("link", type=HARD_LINK, link="low"),
            *FILES[2:],
        ),
    )
    assert root.view.readlink(root / "symbolic") == "etc/first"
    assert root.read("name") == SMALL
    assert root.layers.filesystem.getattr(root / "name").links == 1
    assert root.moved() < 0.05 * len(LAYER.blob)
    assert root.layers.filesystem.getattr(root / "low").links == 2
    assert root.read("link") == b"low"
    first, second = (root.view.stat(root / path) for path in ("etc/first", "name"))
    assert first.inode == second.inode
    assert root.layers.filesystem.getattr(root / "name").links == 2


def test_a_listing_is_of_the_whole_layers(show: Show) -> None:
    root = show(
        gzipped(File("etc/lower", b"L"), File("etc/hidden", b"H"), File("new/old", b"old")),
        gzipped(File(".wh.new"), File("new/", type=DIRECTORY), *FILES, File("etc/.wh.hidden")),
    )
    assert root.read("etc/first") == SMALL
    assert root.names("new") == []
    assert root.names("etc") == ["first", "lower"]


# ---- volumes -------------------------------------------------------------------------------------


def volume(root: Shown, content: Content) -> str:
    load(root.registry, "app", "", content)
    return f"/app/manifests/{content.digest}/volume"


def test_a_tar_in_a_volume_may_arrive(show: Show) -> None:
    root = show()
    files = (*FILES, File("name", type=HARD_LINK, link="etc/first"))
    tarred = packed(*files, media_type=TAR_GZIP, **{TEKTON_KIND: "task", TEKTON_NAME: "build"})
    path = volume(root, artifact(tarred))
    root.view.stat(path)
    root.view.stat(f"{path}/task-build")
    assert read(root.view, f"{path}/task-build/etc/first") == SMALL
    assert root.moved() < 0.05 * len(LAYER.blob)
    assert names(root.view, f"{path}/task-build") == ["etc", "large", "last", "name"]
    assert root.layers.filesystem.getattr(f"{path}/task-build/etc/first").links == 2


@pytest.mark.expects_log("EIO|epochfs")
def test_a_tar_that_is_cut_short_hides_no_neighbour(show: Show) -> None:
    root = show()
    cut = gzip.compress(plain(*FILES[2:]).blob[: 9 * MIB], 1)
    path = volume(root, artifact(raw("ok", b"neighbour"), (TAR_GZIP, cut, {})))
    assert read(root.view, f"{path}/ok") == b"neighbour"
    with pytest.raises(OSError) as raised:
        root.view.stat(f"{path}/last")
    assert raised.value.errno == errno.EIO
