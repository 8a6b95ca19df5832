"""`files/`: layers under their titles, whatever these are; split disks joined."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import Content, image, index, load, random_bytes
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import Opener, VfsView, View, names, read, walk

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.demo.samples import EMPTY, descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST, TITLE
from epochfs.oci.names import Digest

OS_IMAGE = "application/vnd.cocoonstack.os-image.v1+json"
WINDOWS_IMAGE = "application/vnd.cocoonstack.windows-image.v1+json"
SNAPSHOT = "application/vnd.cocoonstack.snapshot.v1+json"
DISK = "application/vnd.cocoonstack.disk.qcow2"
LENIENT = Behaviour(validates=False)

Layer = tuple[str | None, bytes, str]
"""A title, content, and a media type."""


def artifact(
    layers: list[Layer],
    artifact_type: str = "application/x-test",
    config: bytes = b"{}",
    config_type: str = EMPTY,
) -> Content:
    """Return an artifact of these layers."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": artifact_type,
        "config": descriptor(config, config_type),
        "layers": [
            descriptor(data, media_type, annotations={} if title is None else {TITLE: title})
            for title, data, media_type in layers
        ],
    }
    blobs = (config, *(data for _, data, _ in layers))
    return Content(encode(manifest), OCI_MANIFEST, blobs)


def plain(*titles: str | None) -> Content:
    """Return an artifact of layers so titled, whose contents are `0`, `1` and so on."""
    return artifact([(title, str(n).encode(), "text/plain") for n, title in enumerate(titles)])


Open = Callable[[Content], tuple[VfsView, str]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Returns a view of a registry that holds one artifact, and the artifact's directory."""
    with ExitStack() as closing:

        def build(content: Content) -> tuple[VfsView, str]:
            registry = closing.enter_context(EmbeddedRegistry(LENIENT))
            load(registry, "app", "latest", content)
            layers = closing.enter_context(stack(registry.url, tmp_path))
            return VfsView(layers.filesystem), f"/app/manifests/{content.digest}"

        yield build


def shown(view: View, directory: str) -> dict[str, bytes]:
    """Return the content of each file below `files/` by its path there; digests are cut short."""
    found = {}
    for path, one in walk(view, f"{directory}/files").items():
        if isinstance(one.content, str):
            target = os.path.normpath(f"{path}/../{one.content}")
            assert target.startswith("/app/blobs/sha256:")
            name = path.removeprefix(f"{directory}/files/")
            content = read(view, target)
            found[name.replace(str(Digest.of(content)), "<digest>")] = content
    return found


class TestTitles:
    def test_each_title_is_a_link_to_its_blob(self, opened: Open) -> None:
        found = shown(*opened(plain("README.md", None, "b")))
        assert found == {"README.md": b"0", "<digest>.txt": b"1", "b": b"2"}

    def test_slashes_make_directories(self, opened: Open) -> None:
        view, directory = opened(plain("docs/a.txt", "docs/more/b.txt", "c"))
        assert names(view, f"{directory}/files") == ["c", "docs"]
        assert shown(view, directory) == {"docs/a.txt": b"0", "docs/more/b.txt": b"1", "c": b"2"}

    @pytest.mark.parametrize(
        "title",
        [
            "..",
            "../../etc/x",
            "a/../../../../etc/x",
            "\0",
            "line\nbreak",
            "\x1b[31m",
            "\ud800",
            "a" * 256,
            "a" * 2**20,
            "/".join("a" * 1000),
            f"sha256:{'0' * 64}",
        ],
        ids=lambda title: ascii(title)[:30],
    )
    def test_a_title_that_is_no_harmless_path_is_shown_by_digest(
        self, opened: Open, title: str
    ) -> None:
        assert shown(*opened(plain("ok", title))) == {"ok": b"0", "<digest>": b"1"}

    @pytest.mark.parametrize(
        ("title", "path"),
        [
            ("./a", "a"),
            ("/etc/passwd", "etc/passwd"),
            ("a//b", "a/b"),
            ("a/", "a"),
            ("", "<digest>.txt"),
            (".", "<digest>.txt"),
        ],
    )
    def test_a_title_is_normalized(self, opened: Open, title: str, path: str) -> None:
        assert shown(*opened(plain("ok", title))) == {"ok": b"0", path: b"1"}

    def test_of_several_with_one_title_all_but_the_first_have_their_digest(
        self, opened: Open
    ) -> None:
        assert shown(*opened(plain("a", "a", "a" * 250, "a" * 250))) == {
            "a": b"0",
            "a@<digest>": b"1",
            "a" * 250: b"2",
            "<digest>": b"3",
        }

    def test_a_file_in_the_way_of_a_directory_and_the_reverse(self, opened: Open) -> None:
        assert shown(*opened(plain("a", "a/b"))) == {"a": b"0", "<digest>": b"1"}
        assert shown(*opened(plain("a/b", "a"))) == {"a/b": b"0", "a@<digest>": b"1"}

    def test_a_title_cannot_take_the_name_that_another_layer_needs(self, opened: Open) -> None:
        second = Digest.of(b"2")
        found = shown(*opened(plain("a", f"a@{second}", "a")))
        assert found == {"a": b"0", f"a@{second}": b"1", "<digest>": b"2"}

    def test_one_layer_listed_twice_is_one_link(self, opened: Open) -> None:
        twice = artifact([("a", b"same", "text/plain")] * 2)
        assert shown(*opened(twice)) == {"a": b"same"}

    def test_without_titles_there_are_no_files(self, opened: Open) -> None:
        for content in (image(), index()):
            view, directory = opened(content)
            assert "files" not in names(view, directory)
            with pytest.raises(FileNotFoundError):
                view.stat(f"{directory}/files")
            with pytest.raises(FileNotFoundError):
                view.entries(f"{directory}/files")

    def test_what_no_layer_is_titled_is_not_there(self, opened: Open) -> None:
        view, directory = opened(plain("docs/a"))
        for path in ("b", "docs/b", "docs/a/b", "docs/a/b/c"):
            with pytest.raises(FileNotFoundError):
                view.stat(f"{directory}/files/{path}")


class TestKinds:
    @pytest.mark.parametrize(
        ("content", "kind"),
        [
            (image(), "container-image"),
            (index(), "image-index"),
            (plain("a"), "artifact"),
            (artifact([], OS_IMAGE), "cloud-image"),
            (artifact([], WINDOWS_IMAGE), "cloud-image"),
            (artifact([], SNAPSHOT), "snapshot"),
            (artifact([], SNAPSHOT.replace("v1", "v2")), "snapshot"),
            (index(artifactType=OS_IMAGE), "cloud-image"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_a_manifest_tells_its_kind_by_epochs_rules(
        self, opened: Open, content: Content, kind: str
    ) -> None:
        view, directory = opened(content)
        assert view.xattr(directory, "user.epochfs.kind") == kind
        assert view.xattr(f"{directory}/manifest.json", "user.epochfs.kind") == kind


class TestSplitDisks:
    WHOLE = random_bytes(5_000_000, 7)
    CUTS = (0, 1_000_001, 1_000_002, 2_500_000, 4_999_999, 5_000_000)

    def parts(self, pattern: str, media_type: str = f"{DISK}.part") -> list[Layer]:
        """Return the disk in five parts, in an order that is not the one of their titles."""
        cuts = list(zip(self.CUTS, self.CUTS[1:], strict=False))
        layers: list[Layer] = [
            (pattern.format(n), self.WHOLE[start:stop], media_type)
            for n, (start, stop) in enumerate(cuts)
        ]
        return layers[::-1]

    @pytest.mark.parametrize("artifact_type", [OS_IMAGE, WINDOWS_IMAGE])
    def test_the_parts_are_links_and_the_disk_is_a_file(
        self, through: Opener, artifact_type: str
    ) -> None:
        extra: Layer = ("SHA256SUMS", b"sums", "text/plain")
        content = artifact([*self.parts("disk.qcow2.part{}"), extra], artifact_type)
        with EmbeddedRegistry() as registry:
            load(registry, "app", "latest", content)
            with through(registry) as view:
                files = f"/app/manifests/{content.digest}/files"
                kinds = {name: kind for name, (kind, _) in view.entries(files).items()}
                assert kinds.pop("disk.qcow2") == stat.S_IFREG
                assert set(kinds) == {"SHA256SUMS", *(f"disk.qcow2.part{n}" for n in range(5))}
                assert set(kinds.values()) == {stat.S_IFLNK}
                assert view.stat(f"{files}/disk.qcow2").size == len(self.WHOLE)
                assert read(view, f"{files}/disk.qcow2") == self.WHOLE
                with view.opened(f"{files}/disk.qcow2") as file:
                    for start, stop in ((999_990, 1_000_010), (0, 1), (4_999_998, 6_000_000)):
                        assert file.pread(stop - start, start) == self.WHOLE[start:stop]
                    assert file.pread(10, 5_000_000) == b""

    @pytest.mark.parametrize(
        ("pattern", "media_type", "name"),
        [
            ("win11.qcow2.0{}.qcow2.part", f"{DISK}.part", "win11.qcow2"),
            ("disk.qcow2.part-a{}", f"{DISK}.part", "disk.qcow2"),
            ("disk-{}.qcow2", DISK, "disk.qcow2"),
            ("sub/os.part0{}.raw", DISK.replace("qcow2", "raw.part"), "sub/os.raw"),
            ("{}", DISK.replace("disk.qcow2", "windows.disk.raw.part"), "disk.raw"),
            ("disk.qcow2{}", f"{DISK}.part", "disk.qcow2"),
        ],
    )
    def test_the_disk_is_named_after_what_the_titles_have_in_common(
        self, opened: Open, pattern: str, media_type: str, name: str
    ) -> None:
        view, directory = opened(artifact(self.parts(pattern, media_type), OS_IMAGE))
        assert read(view, f"{directory}/files/{name}") == self.WHOLE

    @pytest.mark.parametrize("pattern", ["../../disk.{}", "/x/{}", "\0{}"])
    def test_hostile_titles_leave_the_disk_in_its_place(self, opened: Open, pattern: str) -> None:
        view, directory = opened(artifact(self.parts(pattern), OS_IMAGE))
        found = walk(view, f"{directory}/files")
        files = [path for path, one in found.items() if isinstance(one.content, bytes)]
        assert len(files) == 1
        assert found[files[0]].content == self.WHOLE

    def test_a_disk_in_one_layer_is_a_link_and_nothing_is_joined(self, opened: Open) -> None:
        content = artifact([("disk.qcow2", b"all of it", DISK)], OS_IMAGE)
        assert shown(*opened(content)) == {"disk.qcow2": b"all of it"}

    def test_parts_of_anything_but_a_cloud_image_are_not_joined(self, opened: Open) -> None:
        view, directory = opened(artifact(self.parts("disk.qcow2.{}")))
        assert names(view, f"{directory}/files") == [f"disk.qcow2.{n}" for n in range(5)]

    def test_parts_that_add_up_to_more_than_can_be_are_not_joined(self, opened: Open) -> None:
        content = artifact(self.parts("disk.qcow2.{}"), OS_IMAGE)
        document = json.loads(content.raw)
        for layer in document["layers"]:
            layer["size"] = 2**50 - 1
        view, directory = opened(replace(content, raw=encode(document)))
        assert names(view, f"{directory}/files") == [f"disk.qcow2.{n}" for n in range(5)]

    def test_a_random_read_fetches_the_part_it_needs_and_no_other(self, tmp_path: Path) -> None:
        content = artifact(self.parts("disk.qcow2.{}"), OS_IMAGE)
        with EmbeddedRegistry() as registry, stack(registry.url, tmp_path) as layers:
            load(registry, "app", "latest", content)
            view = VfsView(layers.filesystem)
            path = f"/app/manifests/{content.digest}/files/disk.qcow2"
            with view.opened(path) as file:
                assert registry.count("GET", "/blobs/") == 0
                assert file.pread(100, 1_500_000) == self.WHOLE[1_500_000:1_500_100]
            part = Digest.of(self.WHOLE[1_000_002:2_500_000])
            assert registry.count("GET", "/blobs/") == registry.count("GET", f"/blobs/{part}") > 0

    def test_a_part_with_wrong_bytes_gives_no_clean_end(self, tmp_path: Path) -> None:
        content = artifact(self.parts("disk.qcow2.{}"), OS_IMAGE)
        with Flipped(content.blobs[2]) as registry, stack(registry.url, tmp_path) as layers:
            load(registry, "app", "latest", content)
            path = f"/app/manifests/{content.digest}/files/disk.qcow2"
            assert not layers.filesystem.open(path).direct_io
            with pytest.raises(OSError, match="digest") as caught:
                read(VfsView(layers.filesystem), path)
            assert caught.value.errno == errno.EIO
            # From now on no reader's pages may end what another reads.
            assert layers.filesystem.open(path).direct_io

    def test_parts_of_one_digest_and_two_sizes_are_not_taken_for_one_another(
        self, opened: Open
    ) -> None:
        content = artifact([(f"disk.qcow2.{n}", b"0123456789", DISK) for n in range(2)], OS_IMAGE)
        document = json.loads(content.raw)
        document["layers"][1]["size"] = 1000
        view, directory = opened(replace(content, raw=encode(document)))
        with view.opened(f"{directory}/files/disk.qcow2") as file:
            assert file.pread(10, 0) == b"0123456789"
            with pytest.raises(OSError) as caught:
                file.pread(1010, 0)
            assert caught.value.errno == errno.EIO


class Flipped(EmbeddedRegistry):
    """Sends one blob with its last byte changed."""

    def __init__(self, blob: bytes) -> None:
        super().__init__(Behaviour(ranges=False))
        self.blob = blob

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        if request.method == "GET" and str(Digest.of(self.blob)) in request.path:
            return replace(response, body=self.blob[:-1] + bytes([self.blob[-1] ^ 1]))
        return response
