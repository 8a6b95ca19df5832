"""Whatever its names are, a node is found at its path and at no other."""

from __future__ import annotations

import os
import re
import string

from hypothesis import example, given
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
from epochfs.vfs.node import Node
from epochfs.vfs.tree import (
    RESERVED,
    BlobFile,
    BlobsDirectory,
    ControlDirectory,
    ManifestsDirectory,
    Namespace,
    StatusFile,
    TagLink,
    TagsDirectory,
    VolumeLink,
    parsed_segment,
    root,
    shown_segment,
)
from epochfs.vfs.views.files import FilesNode
from epochfs.vfs.views.layout import (
    ContentLink,
    IndexFile,
    LayoutAlgorithmDirectory,
    LayoutBlobsDirectory,
    LayoutDirectory,
    LayoutFile,
)
from epochfs.vfs.views.related import (
    PlatformLink,
    PlatformsDirectory,
    ReferrerLink,
    ReferrersDirectory,
    UnknownDirectory,
)
from epochfs.vfs.views.skopeo import HeldLink, SkopeoDirectory, TopLink, VersionFile
from epochfs.vfs.views.snapshots import SparseNode
from epochfs.vfs.views.volume import VolumeNode

TREE = Paths(root())
DIGEST = Digest.of(b"content")
HEX = DIGEST.encoded
WORDS = [
    "dir",
    "version",
    HEX,
    f"{HEX}.manifest.json",
    "layers",
    "00",
    "manifest.json",
    "platforms",
    "unknown",
    "files",
    "referrers",
]
_TAG, _DIGEST = r":[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", "@(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
REFERENCE = re.compile(rf"[^:@]+({_TAG}|{_DIGEST}|{_TAG}{_DIGEST})\Z")


def is_harmless(text: str) -> bool:
    """Whether text can be one segment of a path (written down here once more, on purpose)."""
    return (
        text not in ("", ".", "..")
        and "/" not in text
        and text.isprintable()
        and len(text.encode("utf-8", "surrogatepass")) <= 254
    )


awkward = st.sampled_from(
    [
        *RESERVED,
        *(f"_{word}" for word in RESERVED),
        "__tags",
        "_",
        "__",
        "config",
        ".epochfs",
        "...",
        "app:v1",
        f"app@{DIGEST}",
        f"app:v1@{DIGEST}",
        f"app:{DIGEST}",
    ]
)


anything = st.text(max_size=20).filter(is_harmless)


ordinary = st.text(string.ascii_lowercase + "_", min_size=1, max_size=6)


segments = st.one_of(awkward, ordinary, anything)


repositories = st.lists(segments, min_size=1, max_size=5).map("/".join).map(Repository)


titles = st.lists(segments, min_size=1, max_size=3).map("/".join)


digests = st.tuples(st.sampled_from(["sha256", "sha512"]), st.binary(max_size=4)).map(
    lambda pair: Digest.of(pair[1], pair[0])
)


nodes = st.one_of(
    repositories.filter(lambda one: not REFERENCE.match(one.segments[-1])).map(
        lambda repository: Namespace(repository.segments)
    ),
    st.builds(TagsDirectory, repositories),
    st.builds(ManifestsDirectory, repositories),
    st.builds(BlobsDirectory, repositories),
    st.builds(TagLink, repositories, segments.map(Tag)),
    st.builds(BlobFile, repositories, digests),
    st.builds(ManifestDirectory, repositories, digests),
    st.builds(ManifestFile, repositories, digests),
    st.builds(ConfigLink, repositories, digests),
    st.builds(LayersDirectory, repositories, digests),
    st.builds(LayerLink, repositories, digests, st.integers(0, 99).map("{:02}".format)),
    st.builds(PlatformsDirectory, repositories, digests),
    st.builds(PlatformLink, repositories, digests, segments.filter(lambda name: name != "unknown")),
    st.builds(UnknownDirectory, repositories, digests),
    st.builds(PlatformLink, repositories, digests, segments.map("unknown/{}".format)),
    st.builds(FilesNode, repositories, digests),
    st.builds(FilesNode, repositories, digests, titles),
    st.builds(LayoutDirectory, repositories),
    st.builds(LayoutFile, repositories),
    st.builds(IndexFile, repositories),
    st.builds(LayoutBlobsDirectory, repositories),
    st.builds(LayoutAlgorithmDirectory, repositories, st.sampled_from(["sha256", "sha512"])),
    st.builds(ContentLink, repositories, digests),
    st.builds(ReferrersDirectory, repositories, digests),
    st.builds(ReferrerLink, repositories, digests, segments),
    st.builds(SparseNode, repositories, digests),
    st.builds(SparseNode, repositories, digests, titles),
    st.builds(SkopeoDirectory, repositories, digests),
    st.builds(VersionFile, repositories, digests),
    st.builds(TopLink, repositories, digests),
    st.builds(HeldLink, repositories, digests, digests, st.booleans()),
    st.builds(VolumeNode, repositories, digests),
    st.builds(VolumeNode, repositories, digests, titles.map(os.fsencode)),
    st.builds(
        lambda repository, reference: TREE.node(f"{shown(repository.segments)}{reference}"),
        repositories,
        digests.map("@{}".format) | st.sampled_from([":v1", ":1.0", ":_x"]),
    ),
)


def shown(segments: tuple[str, ...]) -> str:
    """Return the path of a repository, after design §1 and not after the code."""
    reserved = ("tags", "manifests", "blobs", "layout", ".epochfs")
    return "".join(
        f"/_{segment}" if segment in reserved or segment.startswith("_") else f"/{segment}"
        for segment in segments
    )


def path_of(node: Node) -> str:
    """Return the one path of a node, after design §1 and not after the code."""
    if isinstance(node, Namespace):
        return shown(node.segments) or "/"
    assert not isinstance(node, ControlDirectory | StatusFile)
    repository = shown(node.repository.segments)  # type: ignore[attr-defined]
    match node:
        case TagsDirectory():
            return f"{repository}/tags"
        case VolumeLink():
            parent = repository.rpartition("/")[0]
            mark = "@" if isinstance(node.reference, Digest) else ":"
            return f"{parent}/{node.shown}{mark}{node.reference}"
        case VolumeNode():
            below = f"/{os.fsdecode(node.path)}" if node.path else ""
            return f"{repository}/manifests/{node.digest}/volume{below}"
        case TagLink():
            return f"{repository}/tags/{node.tag}"
        case BlobsDirectory():
            return f"{repository}/blobs"
        case BlobFile():
            return f"{repository}/blobs/{node.digest}"
        case ManifestsDirectory():
            return f"{repository}/manifests"
        case ManifestDirectory():
            return f"{repository}/manifests/{node.digest}"
        case ManifestFile():
            return f"{repository}/manifests/{node.digest}/manifest.json"
        case ConfigLink():
            return f"{repository}/manifests/{node.digest}/config"
        case LayersDirectory():
            return f"{repository}/manifests/{node.digest}/layers"
        case LayerLink():
            return f"{repository}/manifests/{node.digest}/layers/{node.name}"
        case PlatformsDirectory():
            return f"{repository}/manifests/{node.digest}/platforms"
        case UnknownDirectory():
            return f"{repository}/manifests/{node.digest}/platforms/unknown"
        case PlatformLink():
            return f"{repository}/manifests/{node.digest}/platforms/{node.path}"
        case SparseNode(path=""):
            return f"{repository}/manifests/{node.digest}/sparse"
        case SparseNode():
            return f"{repository}/manifests/{node.digest}/sparse/{node.path}"
        case FilesNode(path=""):
            return f"{repository}/manifests/{node.digest}/files"
        case FilesNode():
            return f"{repository}/manifests/{node.digest}/files/{node.path}"
        case LayoutDirectory():
            return f"{repository}/layout"
        case LayoutFile():
            return f"{repository}/layout/oci-layout"
        case IndexFile():
            return f"{repository}/layout/index.json"
        case LayoutBlobsDirectory():
            return f"{repository}/layout/blobs"
        case LayoutAlgorithmDirectory():
            return f"{repository}/layout/blobs/{node.algorithm}"
        case ContentLink():
            return f"{repository}/layout/blobs/{node.digest.algorithm}/{node.digest.encoded}"
        case ReferrersDirectory():
            return f"{repository}/manifests/{node.digest}/referrers"
        case ReferrerLink():
            return f"{repository}/manifests/{node.digest}/referrers/{node.name}"
        case SkopeoDirectory():
            return f"{repository}/manifests/{node.digest}/dir"
        case VersionFile():
            return f"{repository}/manifests/{node.digest}/dir/version"
        case TopLink():
            return f"{repository}/manifests/{node.digest}/dir/manifest.json"
        case HeldLink():
            suffix = ".manifest.json" if node.is_manifest else ""
            return f"{repository}/manifests/{node.digest}/dir/{node.held.encoded}{suffix}"
    raise AssertionError(node)


@given(nodes)
def test_every_node_is_found_at_its_path(node: Node) -> None:
    assert TREE.node(path_of(node)) == node


@given(
    st.lists(
        st.one_of(segments, digests.map(str), st.sampled_from(WORDS)),
        max_size=7,
    )
)
def test_what_is_found_at_a_path_has_no_other_path(names: list[str]) -> None:
    path = "/" + "/".join(names)
    try:
        node = TREE.node(path)
    except NotFound:
        return
    if not isinstance(node, ControlDirectory | StatusFile | VolumeLink):
        assert path_of(node) == path


@given(
    st.text(max_size=300), st.sampled_from(["/", "/a/tags/", "/a/blobs/", "/a/manifests/", "/a/"])
)
@example("x" * 256, "/a/")
def test_no_path_at_all_does_worse_than_not_being_found(text: str, before: str) -> None:
    try:
        node = TREE.node(f"{before}{text}")
    except (NotFound, NameTooLong):
        return
    assert isinstance(node, Node)


@given(segments)
def test_segments_come_back_from_how_they_are_shown(segment: str) -> None:
    name = shown_segment(segment)
    assert parsed_segment(name) == segment
    assert name not in RESERVED
    assert len(name.encode()) <= 255


@given(nodes, nodes)
def test_two_nodes_do_not_share_a_path(one: Node, other: Node) -> None:
    assert (path_of(one) == path_of(other)) == (one == other)
