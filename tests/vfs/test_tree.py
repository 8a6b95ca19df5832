"""The paths of the design, what is at no path, and inode numbers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epochfs.errors import NameTooLong, NotFound
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.vfs.filesystem import Paths
from epochfs.vfs.manifest_directory import (
    ConfigLink,
    LayerLink,
    LayersDirectory,
    ManifestDirectory,
    ManifestFile,
)
from epochfs.vfs.node import Node, inode
from epochfs.vfs.tree import (
    BlobFile,
    BlobsDirectory,
    ControlDirectory,
    ManifestsDirectory,
    Namespace,
    StatusFile,
    TagLink,
    TagsDirectory,
    root,
)

TREE = Paths(root())
APP = Repository("library/nginx")
DIGEST = Digest.of(b"content")
CONTENT = f"sha256:{DIGEST.encoded}"


@pytest.mark.parametrize(
    ("path", "node"),
    [
        ("/", Namespace()),
        ("/library", Namespace(("library",))),
        ("/library/nginx", Namespace(("library", "nginx"))),
        ("/library/nginx/tags", TagsDirectory(APP)),
        ("/library/nginx/tags/latest", TagLink(APP, Tag("latest"))),
        ("/library/nginx/manifests", ManifestsDirectory(APP)),
        (f"/library/nginx/manifests/{CONTENT}", ManifestDirectory(APP, DIGEST)),
        (f"/library/nginx/manifests/{CONTENT}/manifest.json", ManifestFile(APP, DIGEST)),
        (f"/library/nginx/manifests/{CONTENT}/config", ConfigLink(APP, DIGEST)),
        (f"/library/nginx/manifests/{CONTENT}/layers", LayersDirectory(APP, DIGEST)),
        (f"/library/nginx/manifests/{CONTENT}/layers/00", LayerLink(APP, DIGEST, "00")),
        ("/library/nginx/blobs", BlobsDirectory(APP)),
        (f"/library/nginx/blobs/{CONTENT}", BlobFile(APP, DIGEST)),
        ("/_tags/tags", TagsDirectory(Repository("tags"))),
        (
            "/a/_tags/_blobs/_layout/_manifests",
            Namespace(("a", "tags", "blobs", "layout", "manifests")),
        ),
        ("/__tags", Namespace(("_tags",))),
        ("/_", None),
        ("/__", Namespace(("_",))),
        ("/a/tags/tags", TagLink(Repository("a"), Tag("tags"))),
        ("/a/tags/_x", TagLink(Repository("a"), Tag("_x"))),
    ],
)
def test_every_path_of_the_design_means_what_it_says(path: str, node: Node | None) -> None:
    if node is None:
        with pytest.raises(NotFound):
            TREE.node(path)
    else:
        assert TREE.node(path) == node


def test_the_control_directory_is_no_repository() -> None:
    assert isinstance(TREE.node("/.epochfs"), ControlDirectory)
    assert isinstance(TREE.node("/.epochfs/status.json"), StatusFile)
    assert TREE.node("/_.epochfs") == Namespace((".epochfs",))
    with pytest.raises(NotFound):
        TREE.node("/a/.epochfs")


@pytest.mark.parametrize(
    "path",
    [
        "/tags",
        "/blobs",
        "/manifests",
        "/layout",
        "/a/layout/x",
        "/a/layout/blobs/md5",
        "/a/layout/blobs/sha256/x",
        f"/a/layout/blobs/sha256/{CONTENT}",
        "/a/_b",
        "/.",
        "/..",
        "/a/../b",
        "//a",
        "/a//b",
        "/a/",
        "/a\0b",
        "/a\nb",
        "/a/\x1b[2J",
        "/a/\udcff",
        f"/{'a' * 255}",
        "/" + "/".join(["a" * 200] * 20),
        "/a/tags/latest/x",
        "/a/blobs/latest",
        "/a/blobs/sha256:abc",
        f"/a/blobs/sha256:{DIGEST.encoded.upper()}",
        f"/a/blobs/SHA256:{DIGEST.encoded}",
        f"/a/blobs/md5:{'0' * 32}",
        f"/a/blobs/{CONTENT}/x",
        "/a/manifests/latest",
        f"/a/manifests/{CONTENT}/other",
        f"/a/manifests/{CONTENT}/dir/{CONTENT}",
        f"/a/manifests/{CONTENT}/dir/{DIGEST.encoded[1:]}",
        f"/a/manifests/{CONTENT}/dir/.manifest.json",
        f"/a/manifests/{CONTENT}/dir/{DIGEST.encoded}.manifest.json.manifest.json",
        f"/a/manifests/{CONTENT}/dir/{DIGEST.encoded}/x",
        f"/a/manifests/{CONTENT}/manifest.json/x",
        f"/a/manifests/{CONTENT}/layers/0",
        f"/a/manifests/{CONTENT}/layers/x",
        f"/a/manifests/{CONTENT}/layers/-1",
        f"/a/manifests/{CONTENT}/layers/\u0660\u0661",
        f"/a/manifests/{CONTENT}/layers/{'0' * 255}",
        "/.epochfs/other",
        "/.epochfs/status.json/x",
    ],
    ids=lambda path: ascii(path[:40]),
)
def test_no_other_path_means_anything(path: str) -> None:
    with pytest.raises(NotFound):
        TREE.node(path)


@pytest.mark.parametrize("name", ["0" * 256, "ü" * 128, "0" * 5000, "\udcff" * 256])
@pytest.mark.parametrize("place", ["/{}", "/a/tags/{}", "/a/manifests/{}/layers", "/.epochfs/{}"])
def test_a_name_that_nothing_can_have_is_too_long(place: str, name: str) -> None:
    with pytest.raises(NameTooLong):
        TREE.node(place.format(name))


def test_a_prefix_becomes_the_root() -> None:
    tree = Paths(root(Repository("a/tags")))
    assert tree.node("/") == Namespace(("a", "tags"))
    assert tree.node("/b/tags/x") == TagLink(Repository("a/tags/b"), Tag("x"))
    assert tree.node("/tags/x") == TagLink(Repository("a/tags"), Tag("x"))
    assert isinstance(tree.node("/.epochfs"), ControlDirectory)


def test_inode_numbers_are_fixed_for_all_time() -> None:
    assert inode("/") == 1
    assert inode("/library/nginx/tags") == 0x509065A5754AD165


@given(st.lists(st.text(max_size=30), unique=True, min_size=2, max_size=50))
def test_inode_numbers_are_distinct_and_fit_the_kernel(texts: list[str]) -> None:
    paths = [f"/{text}" for text in texts if text.isprintable() and text]
    numbers = {inode(path) for path in paths}
    assert len(numbers) == len(set(paths))
    assert all(1 < number < 2**64 for number in numbers)


def test_a_directory_is_walked_to_once_however_many_of_its_names_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[str] = []
    parse = Repository.parse
    monkeypatch.setattr(Repository, "parse", lambda text: (parsed.append(text), parse(text))[1])
    tree = Paths(root())
    tags = [tree.node(f"/library/nginx/tags/{number}") for number in range(20)]
    assert tags == [TagLink(APP, Tag(str(number))) for number in range(20)]
    assert parsed == ["library", "library/nginx"]
