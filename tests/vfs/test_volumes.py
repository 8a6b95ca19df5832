"""`volume/`: artifacts, images and indexes as regular files, and the links that lead there."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.artifacts import (
    CHART,
    TAR_GZIP,
    artifact,
    on,
    packed,
    platform_index,
    raw,
)
from support.builders import Content, load, random_bytes
from support.layers import DIRECTORY, HARD_LINK, LINK, MTIME, File, container
from support.registries import EmbeddedRegistry
from support.roots import plain
from support.snapshots import FILES, FIRST, Draft, snapshot
from support.snapshots import File as StoredFile
from support.stacks import Stack, stack
from support.views import VfsView, names, read, walk

from epochfs.oci.artifact_files import TEKTON_KIND, TEKTON_NAME, UNPACK
from epochfs.oci.kinds import OS_IMAGE_TYPE as OS_IMAGE
from epochfs.oci.kinds import SNAPSHOT_2_TYPE as SNAPSHOT_2
from epochfs.oci.kinds import SNAPSHOT_TYPE as SNAPSHOT
from epochfs.oci.manifests import TITLE
from epochfs.oci.names import Digest
from epochfs.oci.platforms import Platform

pytest.importorskip("indexed_gzip")


@dataclass
class Volume:
    """A volume at `path`, and all that is behind it."""

    view: VfsView
    path: str
    layers: Stack

    def __truediv__(self, path: str) -> str:
        return f"{self.path}/{path}"

    def files(self) -> dict[str, bytes | str]:
        """Every file by its path, with its bytes, and every link with its target."""
        seen = walk(self.view, self.path)
        return {
            path.removeprefix(f"{self.path}/"): one.content
            for path, one in seen.items()
            if one.content is not None
        }

    def code(self, path: str) -> int | None:
        """The errno of reading a file."""
        with pytest.raises(OSError) as raised:
            read(self.view, self / path)
        return raised.value.errno


Show = Callable[..., Volume]


@pytest.fixture
def show(tmp_path: Path) -> Iterator[Show]:
    with ExitStack() as closing:
        registry = closing.enter_context(EmbeddedRegistry())

        def build(content: Content, **options: object) -> Volume:
            load(registry, "team/app", "v1", content)
            opened = closing.enter_context(stack(registry.url, tmp_path / "cache", **options))
            path = f"/team/app/manifests/{content.digest}/volume"
            return Volume(VfsView(opened.filesystem), path, opened)

        yield build


# ---- artifacts -----------------------------------------------------------------------------------


def test_files_and_tars_are_one_tree_and_the_later_layer_wins(show: Show) -> None:
    volume = show(
        artifact(
            raw("weights/model.safetensors", b"weights"),
            raw("config.json", b"first"),
            packed(File("src/", type=DIRECTORY), File("src/run.py", b"print()"), File("x", b"tar")),
            raw("config.json", b"second"),
            raw("x", b"file"),
        )
    )
    assert volume.files() == {
        "weights/model.safetensors": b"weights",
        "config.json": b"second",
        "src/run.py": b"print()",
        "x": b"file",
    }
    assert names(volume.view, volume.path) == ["config.json", "src", "weights", "x"]


def test_it_is_not_listed_and_is_regular_files_only(show: Show) -> None:
    volume = show(artifact(raw("a", b"a"), packed(File("b", b"b"))))
    assert "volume" not in names(volume.view, volume.path.removesuffix("/volume"))
    for path in ("a", "b"):
        assert stat.S_ISREG(volume.view.stat(volume / path).kind)


def test_what_a_layer_hides_is_gone(show: Show) -> None:
    volume = show(
        artifact(
            raw("a/b", b"hidden by a file"),
            raw("c", b"hidden by a directory"),
            raw("a", b"a file"),
            raw("c/d", b"below"),
            raw("e/f", b"hidden by a tar's file"),
            packed(File("e", b"from the tar")),
        )
    )
    assert volume.files() == {"a": b"a file", "c/d": b"below", "e": b"from the tar"}
    assert volume.code("a/b") == errno.ENOENT


def test_mode_owner_and_time_are_those_of_the_file_metadata(show: Show) -> None:
    metadata = {"mode": 0o100755, "uid": 7, "gid": 8, "mtime": "2023-11-14T22:13:20Z"}
    volume = show(artifact(raw("run", b"#!", metadata), raw("plain", b"")))
    attr = volume.layers.filesystem.getattr(volume / "run")
    assert (attr.mode, attr.uid, attr.gid) == (stat.S_IFREG | 0o755, 7, 8)
    assert attr.time_ns == MTIME * 10**9
    attr = volume.layers.filesystem.getattr(volume / "plain")
    assert (attr.mode, attr.uid, attr.gid, attr.time_ns) == (
        stat.S_IFREG | 0o444,
        None,
        None,
        10**9,
    )


@pytest.mark.expects_log("ignored the file metadata of")
def test_metadata_that_is_no_json_is_ignored(show: Show) -> None:
    assert show(artifact(raw("a", b"a", "{"))).files() == {"a": b"a"}


@pytest.mark.parametrize(
    "path", ["../up", "a/../../b", "a\0b", "a" * 300, "/".join("a" * 600), "line\nbreak"]
)
def test_a_path_that_is_not_harmless_is_shown_by_digest(show: Show, path: str) -> None:
    volume = show(artifact(raw(path, b"hostile"), raw("ok", b"neighbour")))
    assert volume.files() == {str(Digest.of(b"hostile")): b"hostile", "ok": b"neighbour"}


def test_a_chart_an_oras_directory_and_a_tekton_bundle_are_unpacked(show: Show) -> None:
    chart = packed(File("nginx/Chart.yaml", b"name: nginx"), media_type=CHART)
    assert show(artifact(chart)).files() == {"nginx/Chart.yaml": b"name: nginx"}
    notes = {TITLE: "site", UNPACK: "true"}
    directory = packed(File("site/index.html", b"<p>"), media_type=TAR_GZIP, **notes)
    assert show(artifact(directory)).files() == {"site/index.html": b"<p>"}
    objects = [
        packed(File("x", kind.encode()), **{TEKTON_KIND: kind, TEKTON_NAME: "build"})
        for kind in ("task", "pipeline")
    ]
    volume = show(artifact(*objects))
    assert volume.files() == {"task-build/x": b"task", "pipeline-build/x": b"pipeline"}
    assert names(volume.view, volume / "task-build") == ["x"]
    assert volume.code("task-build/y") == volume.code("other") == errno.ENOENT


def test_links_of_a_tar_stay_inside_it(show: Show) -> None:
    volume = show(
        artifact(
            packed(
                File("up", type=LINK, link="../../../etc/passwd"),
                File("d/../../outside", b"inside"),
                File("one", b"twice"),
                File("two", type=HARD_LINK, link="one"),
            )
        )
    )
    found = volume.files()
    assert found["outside"] == b"inside"
    assert found["one"] == found["two"] == b"twice"
    assert volume.view.readlink(volume / "up") == "../../../etc/passwd"


@pytest.mark.expects_log("EIO|epochfs")
@pytest.mark.parametrize("below", [True, False])
def test_a_tar_that_is_cut_short_leaves_its_neighbours(show: Show, below: bool) -> None:
    media_type, data, _ = packed(File("big", random_bytes(100_000)), media_type=TAR_GZIP)
    cut = media_type, data[: len(data) // 2], {}
    layers = [raw("ok", b"neighbour"), cut] if below else [cut, raw("ok", b"neighbour")]
    volume = show(artifact(*layers))
    assert read(volume.view, volume / "ok") == b"neighbour"
    assert volume.code("big") == errno.EIO
    listed = volume.view.listed(volume.path)
    assert list(listed.names) == ["ok"]
    assert listed.code == errno.EIO


def test_of_many_files_one_is_fetched_and_a_listing_fetches_none(show: Show) -> None:
    layers = [raw(f"d{n % 10}/{n}", random_bytes(1000, n)) for n in range(1000)]
    volume = show(artifact(*layers))
    volume.layers.filesystem.getattr(volume.path)
    moved = volume.layers.client.stats.bytes_received
    for n in range(1000):
        assert volume.view.stat(volume / f"d{n % 10}/{n}").size == 1000
    assert len(names(volume.view, volume / "d3")) == 100
    assert volume.layers.client.stats.bytes_received == moved
    assert read(volume.view, volume / "d3/33") == random_bytes(1000, 33)
    assert volume.layers.client.stats.bytes_received == moved + 1000


def test_a_cached_file_has_a_backing_file_like_a_blob(show: Show) -> None:
    volume = show(artifact(raw("model", b"weights")))
    assert read(volume.view, volume / "model") == b"weights"
    opened = volume.layers.filesystem.open(volume / "model")
    assert opened.backing is not None
    assert os.pread(opened.backing, 100, 0) == b"weights"
    volume.layers.filesystem.release(opened.handle)


def test_an_artifact_of_no_layers_is_an_empty_directory(show: Show) -> None:
    volume = show(artifact())
    assert names(volume.view, volume.path) == []


@pytest.mark.parametrize(
    ("version", "files"), [(SNAPSHOT, FIRST), (SNAPSHOT_2, FILES)], ids=["first", "second"]
)
def test_the_volume_of_a_snapshot_has_its_files_as_the_machine_had_them(
    show: Show, version: str, files: list[StoredFile]
) -> None:
    volume = show(snapshot(*files, version=version))
    assert volume.files() == {file.title: file.whole() for file in files}


def test_a_file_of_a_snapshot_that_does_not_fit_leaves_its_neighbours(show: Show) -> None:
    first, second = FIRST[:2]

    def change(draft: Draft) -> None:
        draft.file(first.title)["chunks"] = [str(Digest.of(b"no layer"))]

    volume = show(snapshot(first, second, version=SNAPSHOT, change=change))
    assert volume.code(first.title) == errno.EIO
    assert read(volume.view, volume / second.title) == second.whole()
    assert set(names(volume.view, volume.path)) == {first.title, second.title}


def test_the_volume_of_a_split_disk_has_the_disk(show: Show) -> None:
    kind = "application/vnd.cocoonstack.disk.qcow2.part"
    one, two = ({TITLE: f"disk.qcow2.{number:02}.part"} for number in range(2))
    volume = show(artifact((kind, b"a", one), (kind, b"b", two), artifactType=OS_IMAGE))
    assert read(volume.view, volume / "disk.qcow2") == b"ab"


# ---- images and indexes --------------------------------------------------------------------------


def test_the_volume_of_an_image_is_its_root_filesystem(show: Show) -> None:
    image = container(plain(File("etc/a", b"low"), File("b", b"b")), plain(File("etc/.wh.a")))
    volume = show(image)
    assert volume.files() == {"b": b"b"}
    assert names(volume.view, volume.path) == ["b", "etc"]


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        ([on("amd64"), on("arm64")], "linux/arm64", b"1"),
        ([on("amd64"), on("arm64", "v8")], "linux/arm64", b"1"),
        ([on("arm", "v5"), on("arm", "v7"), on("arm", "v6")], "linux/arm/v6", b"2"),
        ([on("arm", "v5"), on("arm", "v6")], "linux/arm", b"1"),
        ([on("amd64", "v3"), on("amd64", "v2"), on("amd64")], "linux/amd64/v2", b"1"),
        ([on("amd64", "v3"), on("amd64")], "linux/amd64", b"1"),
        ([{"os": "unknown", "architecture": "unknown"}, on("amd64")], "linux/amd64", b"1"),
        ([None], "linux/riscv64", b"0"),
    ],
)
def test_of_an_index_it_is_the_volume_for_the_platform(
    show: Show, offered: list[dict[str, str] | None], wanted: str, chosen: bytes
) -> None:
    volume = show(platform_index(*offered), platform=Platform.parse(wanted))
    assert read(volume.view, volume / "name") == chosen


def test_a_platform_that_an_index_does_not_have_is_not_found_and_told_what_there_is(
    show: Show,
) -> None:
    volume = show(
        platform_index(on("amd64"), on("arm", "v7")), platform=Platform.parse("linux/s390x")
    )
    with pytest.raises(FileNotFoundError, match="linux/s390x, only for: linux/amd64, linux/arm/v7"):
        volume.view.stat(volume.path)


# ---- names that everybody knows ------------------------------------------------------------------


def test_a_reference_is_a_link_to_the_volume(show: Show) -> None:
    content = artifact(raw("a", b"a"))
    view = show(content).view
    assert view.readlink("/team/app:v1") == "app/tags/v1/volume"
    for name in (f"app@{content.digest}", f"app:v1@{content.digest}"):
        assert view.readlink(f"/team/{name}") == f"app/manifests/{content.digest}/volume"
        assert view.stat(f"/team/{name}").kind == stat.S_IFLNK
    assert view.stat("/team/app:v1").size == len("app/tags/v1/volume")
    assert names(view, "/team") == ["app"]


@pytest.mark.parametrize(
    "name", ["app:nope", f"app@sha256:{'0' * 64}", "other:v1", "app:", ":v1", "app@v1", "app:a b"]
)
def test_a_reference_to_nothing_is_not_found(show: Show, name: str) -> None:
    view = show(artifact(raw("a", b"a"))).view
    with pytest.raises(FileNotFoundError):
        view.stat(f"/team/{name}")


def test_below_a_prefix_and_for_an_escaped_segment_too(tmp_path: Path) -> None:
    with EmbeddedRegistry() as registry:
        load(registry, "team/tags", "v1", artifact(raw("a", b"a")))
        with stack(registry.url, tmp_path, prefix="team") as layers:
            view = VfsView(layers.filesystem)
            assert view.readlink("/_tags:v1") == "_tags/tags/v1/volume"
