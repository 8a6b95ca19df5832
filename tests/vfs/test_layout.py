"""`<repo>/layout/`: a repository as an OCI image layout, read by the tools that know such."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Skopeo, serve_docker_registry
from support.builders import Content, image, index, load, random_bytes
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import MountView, Opener, Seen, VfsView, names, read, walk

from epochfs.client import RegistryClient
from epochfs.demo.registry import Request, Response
from epochfs.oci.names import Digest, Tag
from epochfs.vfs.tree import CACHED_XATTR

APP = image(random_bytes(200_000, 1), b"small")
BOTH = index(image(b"one"), image(b"other"))


def apart_from_the_cache(seen: dict[str, Seen]) -> dict[str, Seen]:
    """Leave out how much of a blob was cached at the moment: after a read it is soon all."""
    return {
        path: replace(one, xattrs={**one.xattrs, CACHED_XATTR: ""}) for path, one in seen.items()
    }


def run(*command: str | Path) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        load(registry, "team/app", "1.0", APP)
        load(registry, "team/app", "latest", BOTH)
        yield registry


class TestTheDirectory:
    def test_the_index_has_a_descriptor_for_each_tag(
        self, registry: EmbeddedRegistry, through: Opener
    ) -> None:
        with through(registry) as view:
            found = json.loads(read(view, "/team/app/layout/index.json"))
            size = view.stat("/team/app/layout/index.json").size
            assert size == len(read(view, "/team/app/layout/index.json"))
            assert read(view, "/team/app/layout/oci-layout") == b'{"imageLayoutVersion":"1.0.0"}'
        assert [
            (
                one["annotations"]["org.opencontainers.image.ref.name"],
                one["digest"],
                one["size"],
                one["mediaType"],
            )
            for one in found["manifests"]
        ] == [
            (tag, str(content.digest), len(content.raw), content.media_type)
            for tag, content in (("1.0", APP), ("latest", BOTH))
        ]

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param({}, id="nothing"),
            pytest.param({"1.0": BOTH, "latest": APP}, id="two tags swap"),
            pytest.param({"latest": None}, id="the newest tag is deleted"),
            pytest.param({"1.0": None}, id="an older tag is deleted"),
            pytest.param({"new": APP}, id="a tag is made"),
            pytest.param({"1.0": BOTH}, id="a tag moves"),
        ],
    )
    def test_its_time_moves_with_every_change_of_the_tags_and_with_nothing_else(
        self, registry: EmbeddedRegistry, tmp_path: Path, change: Mapping[str, Content | None]
    ) -> None:
        path = "/team/app/layout/index.json"
        with stack(registry.url, tmp_path) as layers:
            view = VfsView(layers.filesystem)
            before = view.stat(path).time_ns
            for tag, content in change.items():
                if content is None:
                    layers.client.delete_manifest("team/app", Tag(tag))
                else:
                    load(registry, "team/app", tag, content)
            layers.filesystem.drop_listings()
            assert (view.stat(path).time_ns > before) == bool(change)
            before = view.stat(path).time_ns
        with stack(registry.url, tmp_path) as layers:
            assert VfsView(layers.filesystem).stat(path).time_ns == before

    def test_every_blob_is_a_link_to_what_has_its_digest(
        self, registry: EmbeddedRegistry, through: Opener
    ) -> None:
        with through(registry) as view:
            blobs = "/team/app/layout/blobs/sha256"
            for name in names(view, blobs):
                target = os.path.normpath(f"{blobs}/{view.readlink(f'{blobs}/{name}')}")
                assert Digest.of(read(view, target)).encoded == name
            assert len(names(view, blobs)) == 4 + 7

    def test_a_blob_opens_before_anything_was_listed(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        blobs = "/team/app/layout/blobs/sha256"
        layer, manifest = Digest.of(APP.blobs[1]).encoded, APP.digest.encoded
        for name, target in (
            (layer, f"../../../blobs/sha256:{layer}"),
            (manifest, f"../../../manifests/sha256:{manifest}/manifest.json"),
        ):
            with stack(registry.url, tmp_path) as layers:
                view = VfsView(layers.filesystem)
                assert view.readlink(f"{blobs}/{name}") == target
                assert view.stat(f"{blobs}/{name}").size == len(target)
        with stack(registry.url, tmp_path) as layers, pytest.raises(FileNotFoundError):
            VfsView(layers.filesystem).stat(f"{blobs}/{Digest.of(b'nobody').encoded}")

    def test_digests_of_another_algorithm_have_their_own_directory(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        blob = b"a blob named by sha512"
        digest = Digest.of(blob, "sha512")
        document = json.loads(APP.raw)
        document["layers"].append(
            {**document["layers"][0], "digest": str(digest), "size": len(blob)}
        )
        content = replace(APP, raw=json.dumps(document).encode())
        load(registry, "team/app", "sha512", content)
        with stack(registry.url, tmp_path) as layers:
            view = VfsView(layers.filesystem)
            blobs = "/team/app/layout/blobs"
            assert names(view, blobs) == ["sha256", "sha512"]
            assert names(view, f"{blobs}/sha512") == [digest.encoded]

    def test_a_repository_that_is_not_there_has_no_layout(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        with stack(registry.url, tmp_path) as layers:
            view = VfsView(layers.filesystem)
            for path in ("/nobody/layout", "/team/layout/oci-layout", "/nobody/layout/index.json"):
                with pytest.raises(FileNotFoundError):
                    view.stat(path)

    def test_a_repository_without_tags_has_an_empty_index(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        with stack(registry.url, tmp_path) as layers:
            for tag in ("1.0", "latest"):
                layers.client.delete_manifest("team/app", Tag(tag))
            found = read(VfsView(layers.filesystem), "/team/app/layout/index.json")
            assert json.loads(found)["manifests"] == []


class Moving(EmbeddedRegistry):
    """Has one more tag at each request for them."""

    def respond(self, request: Request) -> Response:
        if request.path.endswith("/tags/list"):
            load(self, "team/app", f"tag{self.count('GET', '/tags/list')}", APP)
        return super().respond(request)


def test_the_index_opens_as_the_bytes_whose_size_was_told(tmp_path: Path) -> None:
    with Moving() as registry, stack(registry.url, tmp_path, metadata_ttl=0) as layers:
        load(registry, "team/app", "latest", APP)
        view = VfsView(layers.filesystem)
        path = "/team/app/layout/index.json"
        for _ in range(3):
            size = view.stat(path).size
            before = registry.count("GET", "/tags/list")
            with view.opened(path) as file:
                assert len(file.pread(1 << 20, 0)) == size
            assert registry.count("GET", "/tags/list") == before
        assert len(json.loads(read(view, path))["manifests"]) > 3


class TestTools:
    def test_skopeo_finds_the_digest_that_the_registry_has(
        self, registry: EmbeddedRegistry, skopeo: Skopeo, mounts: Mounts
    ) -> None:
        layout = mounts(registry.url).path / "team/app/layout"
        raw = run("skopeo", "inspect", "--raw", f"oci:{layout}:latest")
        assert raw.encode() == BOTH.raw
        found = json.loads(run("skopeo", "inspect", f"oci:{layout}:1.0"))
        assert found["Digest"] == str(APP.digest)
        with EmbeddedRegistry() as other:
            for tag, content in (("1.0", APP), ("latest", BOTH)):
                skopeo.copy(
                    "--dest-tls-verify=false",
                    f"oci:{layout}:{tag}",
                    f"docker://{other.host}/copy:{tag}",
                )
                copied = RegistryClient(other.url).resolve("copy", tag)
                assert copied.digest == content.digest

    def test_a_backup_of_the_layout_restores_the_same_tree(
        self, skopeo: Skopeo, mounts: Mounts, tmp_path: Path
    ) -> None:
        if shutil.which("rsync") is None:
            pytest.skip("rsync is not installed")
        storage, backup = tmp_path / "registry", tmp_path / "backup"
        storage.mkdir()
        cache = tmp_path / "cache"
        with serve_docker_registry(storage) as docker:
            skopeo.push(APP, docker.host, "team/app", "1.0")
            skopeo.push(BOTH, docker.host, "team/app", "latest")
            mount = mounts(docker.url, cache=cache)
            before = apart_from_the_cache(walk(MountView(mount.path)))
            run("rsync", "-aL", f"{mount.path}/team/app/layout/", backup)
            mount.unmount()
        shutil.rmtree(storage / "storage")
        port = int(docker.host.partition(":")[2])
        with serve_docker_registry(storage, port) as docker:
            for tag in ("1.0", "latest"):
                skopeo.copy(
                    "--dest-tls-verify=false",
                    f"oci:{backup}:{tag}",
                    f"docker://{docker.host}/team/app:{tag}",
                )
            mount = mounts(docker.url, cache=cache)
            assert apart_from_the_cache(walk(MountView(mount.path))) == before
            mount.unmount()


def test_a_walk_fetches_no_blob_and_counts_the_same_files(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    root = mounts(registry.url).path
    first, second = (run("find", root, "-type", "f").splitlines() for _ in range(2))
    run("find", root, "-ls")
    assert registry.count("GET", "/blobs/") == 0
    assert first == second
    views = [path for path in first if path.rpartition("/")[2] in ("index.json", "oci-layout")]
    plain = [path for path in first if "/blobs/" in path or path.endswith("/manifest.json")]
    assert len(views) == 2
    assert len(plain) + len(views) == len(first)
    assert len(plain) == 4 + 7
