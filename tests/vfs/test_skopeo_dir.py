"""`dir/`: a manifest as skopeo's `dir:` transport reads it, restored by skopeo itself."""

from __future__ import annotations

import json
import posixpath
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo
from support.builders import (
    Content,
    docker_image,
    docker_list,
    image,
    index,
    load,
    random_bytes,
    signature,
)
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import Opener, VfsView, names, read

from epochfs.client import RegistryClient
from epochfs.demo.registry import Request, Response
from epochfs.demo.samples import encode
from epochfs.oci.manifests import OCI_INDEX
from epochfs.oci.names import Digest

SCHEMA2 = docker_image(random_bytes(50_000, 1), b"small")
LIST = docker_list(docker_image(b"amd64"), docker_image(b"arm64", b"shared"))
BOTH = index(image(b"one"), image(b"other"))
NESTED = index(BOTH, image(b"third"))


def untyped(content: Content) -> Content:
    """Return an index without `mediaType`, as older tools and Epoch have them."""
    document = {key: value for key, value in json.loads(content.raw).items() if key != "mediaType"}
    return replace(content, raw=encode(document))


CONTENTS = {
    "an image of Docker's": SCHEMA2,
    "a manifest list": LIST,
    "an image": image(b"layer"),
    "an index": BOTH,
    "an index of Docker's images": index(*LIST.children),
    "a manifest list of OCI images": docker_list(*BOTH.children),
    "an index without a media type": untyped(BOTH),
    "a signature": signature(SCHEMA2),
    "an index of indexes": NESTED,
}
each_content = pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
each_that_skopeo_copies = pytest.mark.parametrize(
    "content", [pytest.param(one, id=name) for name, one in CONTENTS.items() if one is not NESTED]
)


def held(content: Content) -> dict[str, bytes]:
    """Return the files that skopeo wants of content, as written down in its own documentation."""
    manifests = {
        "manifest.json" if one is content else f"{one.digest.encoded}.manifest.json": one.raw
        for one in content.every_manifest()
    }
    blobs = {Digest.of(blob).encoded: blob for blob in content.every_blob()}
    return {"version": b"Directory Transport Version: 1.1\n", **manifests, **blobs}


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        yield registry


def place(content: Content, repository: str = "team/app") -> str:
    return f"/{repository}/manifests/{content.digest}/dir"


@each_content
def test_it_holds_the_manifest_and_all_that_it_leads_to(
    registry: EmbeddedRegistry, through: Opener, content: Content
) -> None:
    load(registry, "team/app", "latest", content)
    with through(registry) as view:
        for name in held(content):
            view.stat(f"{place(content)}/{name}")  # before anything was listed
        assert names(view, place(content)) == sorted(held(content))
        for name, data in held(content).items():
            path = f"{place(content)}/{name}"
            if name != "version":
                path = posixpath.normpath(f"{place(content)}/{view.readlink(path)}")
            assert read(view, path) == data


@pytest.mark.parametrize(
    ("content", "listed"),
    [
        pytest.param(SCHEMA2, True, id="an image of Docker's"),
        pytest.param(LIST, True, id="a manifest list"),
        pytest.param(signature(BOTH), True, id="what refers to another manifest"),
        pytest.param(BOTH, False, id="an index"),
        pytest.param(image(b"layer"), False, id="an image"),
    ],
)
def test_it_is_listed_where_the_layout_is_not_enough(
    registry: EmbeddedRegistry, tmp_path: Path, content: Content, listed: bool
) -> None:
    load(registry, "team/app", "latest", content)
    with stack(registry.url, tmp_path) as layers:
        view = VfsView(layers.filesystem)
        assert ("dir" in names(view, posixpath.dirname(place(content)))) == listed
        assert view.stat(place(content))


def test_a_walk_of_it_fetches_no_blob(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    load(registry, "team/app", "latest", LIST)
    with stack(registry.url, tmp_path) as layers:
        view = VfsView(layers.filesystem)
        for name in names(view, place(LIST)):
            view.stat(f"{place(LIST)}/{name}")
    assert registry.count("", "/blobs/") == 0
    assert registry.count("GET", "/manifests/") == 3


def test_what_it_does_not_lead_to_is_not_there(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    load(registry, "team/app", "latest", LIST)
    load(registry, "team/app", "other", SCHEMA2)
    with stack(registry.url, tmp_path) as layers:
        view = VfsView(layers.filesystem)
        for path in (
            f"{place(LIST)}/{Digest.of(SCHEMA2.blobs[0]).encoded}",
            f"{place(LIST)}/{SCHEMA2.digest.encoded}.manifest.json",
            f"{place(LIST)}/{LIST.digest.encoded}.manifest.json",
            f"{place(LIST)}/{LIST.children[0].digest.encoded}",
            f"{place(BOTH)}/version",
            place(BOTH),
        ):
            with pytest.raises(FileNotFoundError):
                view.stat(path)


def test_digests_of_another_algorithm_are_held_by_their_own_length(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    blob = b"a blob named by sha512"
    digest = Digest.of(blob, "sha512")
    document = json.loads(SCHEMA2.raw)
    document["layers"].append({**document["layers"][0], "digest": str(digest), "size": len(blob)})
    content = replace(SCHEMA2, raw=encode(document))
    load(registry, "team/app", "latest", content)
    with stack(registry.url, tmp_path) as layers:
        view = VfsView(layers.filesystem)
        assert digest.encoded in names(view, place(content))
        target = view.readlink(f"{place(content)}/{digest.encoded}")
        assert target == f"../../../blobs/{digest}"


class Lacking(EmbeddedRegistry):
    """Answers for one manifest as it is told to."""

    broken: Digest
    answer: Response

    def respond(self, request: Request) -> Response:
        if request.path.endswith(f"/manifests/{self.broken}"):
            return self.answer
        return super().respond(request)


@pytest.mark.parametrize(
    ("status", "error"), [(403, PermissionError), (500, OSError), (200, OSError)]
)
def test_an_instance_that_cannot_be_had_is_an_error_behind_what_there_is(
    tmp_path: Path, status: int, error: type[OSError]
) -> None:
    first, second = LIST.children
    with Lacking() as registry:
        load(registry, "team/app", "latest", LIST)
        registry.broken = first.digest
        registry.answer = Response(status, {"Content-Type": first.media_type}, b"no manifest")
        with stack(registry.url, tmp_path, retries=0) as layers:
            view = VfsView(layers.filesystem)
            with pytest.raises(error):
                names(view, place(LIST))
            listing = layers.filesystem.listdir(place(LIST))
            shown = {listing[number].name for number in range(len(listing))}
            assert shown == held(LIST).keys() - {Digest.of(blob).encoded for blob in first.blobs}
            for name in shown:
                assert view.stat(f"{place(LIST)}/{name}")
            with pytest.raises(error):
                view.stat(f"{place(LIST)}/{Digest.of(first.blobs[0]).encoded}")
            assert names(view, place(second))


def test_an_instance_that_nobody_pushed_is_left_out(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    load(registry, "team/app", "latest", LIST)
    with stack(registry.url, tmp_path) as layers:
        layers.client.delete_manifest("team/app", LIST.children[0].digest)
        held_now = names(VfsView(layers.filesystem), place(LIST))
        assert f"{LIST.children[1].digest.encoded}.manifest.json" in held_now
        assert f"{LIST.children[0].digest.encoded}.manifest.json" not in held_now


class TestSkopeo:
    @each_that_skopeo_copies
    def test_a_copy_of_it_restores_equal_digests(
        self,
        registry: EmbeddedRegistry,
        docker_registry: DockerRegistry,
        skopeo: Skopeo,
        mounts: Mounts,
        tmp_path: Path,
        content: Content,
    ) -> None:
        if shutil.which("rsync") is None:
            pytest.skip("rsync is not installed")
        load(registry, "team/app", "latest", content)
        mount = mounts(registry.url)
        link = mount.path / "team/app/tags/latest/dir"
        copy = tmp_path / "copy"
        subprocess.run(["rsync", "-aL", f"{link}/", copy], check=True)
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == held(content)
        mount.unmount()
        registry.stop()
        name = f"restored/{content.digest.encoded[:12]}"
        for reference in (":latest", f"@{content.digest}"):
            target = f"docker://{docker_registry.host}/{name}{reference}"
            skopeo.copy("--dest-tls-verify=false", f"dir:{copy}", target)
        self._check(docker_registry, name, content)

    def test_an_index_of_indexes_is_restored_from_the_bottom_up(
        self,
        registry: EmbeddedRegistry,
        docker_registry: DockerRegistry,
        skopeo: Skopeo,
        mounts: Mounts,
    ) -> None:
        load(registry, "team/app", "latest", NESTED)
        root = mounts(registry.url).path
        target = f"docker://{docker_registry.host}/restored/nested"
        for child in NESTED.children:
            source = f"dir:{root}{place(child)}"
            skopeo.copy("--dest-tls-verify=false", source, f"{target}@{child.digest}")
        command = ["skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false"]
        command += ["--preserve-digests", "--multi-arch", "index-only"]
        subprocess.run([*command, f"dir:{root}{place(NESTED)}", f"{target}:latest"], check=True)
        self._check(docker_registry, "restored/nested", NESTED)

    def _check(self, registry: DockerRegistry, name: str, content: Content) -> None:
        """Check that a registry has content byte for byte, under the tag `latest` and by digest."""
        client = RegistryClient(registry.url)
        assert client.resolve(name, "latest").digest == content.digest
        for manifest in content.every_manifest():
            assert client.get_manifest(name, manifest.digest).raw == manifest.raw
        for blob in content.every_blob():
            assert client.read_blob(name, Digest.of(blob), 1 << 20) == blob


def test_an_empty_index_is_no_reason_for_an_error(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    raw = encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []})
    content = Content(raw, OCI_INDEX)
    load(registry, "team/app", "latest", content)
    with stack(registry.url, tmp_path) as layers:
        found = names(VfsView(layers.filesystem), place(content))
        assert found == ["manifest.json", "version"]
