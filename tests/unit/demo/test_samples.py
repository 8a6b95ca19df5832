"""The sample images of `epochfs demo`."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import Skopeo
from support.registries import EmbeddedRegistry
from support.wire import ask

from epochfs.demo import samples
from epochfs.oci.manifests import TITLE
from epochfs.oci.names import Digest

HELLO = "sha256:7513c65f316e922afbe622b61c2d644253b57b2b67cec177d576e06bf8b0fb01"
APP = "sha256:944f7b4c954474595acc2452e3649e2a31390bacbf89c91974ee13fd313a04fc"
SHEET = "sha256:8fd0a2bcbf68931f1e843211c741a520546aa2b6834195c5675d3bc0d21558ed"

MANIFESTS = {
    ("library/hello", "1.0"): HELLO,
    ("library/hello", "latest"): HELLO,
    ("demo/team/app", "latest"): APP,
    ("demo/artifact", "v1"): SHEET,
}


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        yield registry


def test_digests_are_the_same_on_every_machine(registry: EmbeddedRegistry) -> None:
    digests = {
        (name, tag): ask(registry, "HEAD", f"/v2/{name}/manifests/{tag}").headers[
            "Docker-Content-Digest"
        ]
        for name, tag in MANIFESTS
    }
    assert digests == MANIFESTS


@pytest.mark.parametrize(("name", "tag"), list(MANIFESTS))
def test_all_that_a_sample_refers_to_is_there(
    registry: EmbeddedRegistry, name: str, tag: str
) -> None:
    """Push it once more over HTTP: that checks its references and its media type."""
    path = f"/v2/{name}/manifests/{tag}"
    got = ask(registry, "GET", path)
    again = ask(registry, "PUT", path, got.body, Content_Type=got.headers["Content-Type"])
    assert again.status == 201


@pytest.mark.parametrize(("name", "tag"), list(MANIFESTS))
def test_skopeo_pulls_it(registry: EmbeddedRegistry, skopeo: Skopeo, name: str, tag: str) -> None:
    layout = skopeo.pull(registry.host, name, tag)
    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert entry["digest"] == MANIFESTS[name, tag]


def manifest(registry: EmbeddedRegistry, name: str, reference: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        ask(registry, "GET", f"/v2/{name}/manifests/{reference}").body
    )
    return document


def test_the_index_names_two_platforms_whose_images_share_a_layer(
    registry: EmbeddedRegistry,
) -> None:
    children = manifest(registry, "demo/team/app", "latest")["manifests"]
    assert [child["platform"]["architecture"] for child in children] == ["amd64", "arm64"]
    layers = [
        [
            layer["digest"]
            for layer in manifest(registry, "demo/team/app", child["digest"])["layers"]
        ]
        for child in children
    ]
    assert layers[0][0] == layers[1][0]
    assert layers[0][1] != layers[1][1]


def test_a_layer_is_a_tar_archive(registry: EmbeddedRegistry) -> None:
    (layer,) = manifest(registry, "library/hello", "latest")["layers"]
    data = ask(registry, "GET", f"/v2/library/hello/blobs/{layer['digest']}").body
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["hello.txt"]


def test_the_artifact_titles_its_files(registry: EmbeddedRegistry) -> None:
    document = manifest(registry, "demo/artifact", "v1")
    assert document["artifactType"] == samples.ARTIFACT
    titles = [layer["annotations"][TITLE] for layer in document["layers"]]
    assert titles == ["README.md", "measurements.csv", "LICENSE"]


def test_encode_and_descriptor_agree() -> None:
    raw = samples.encode({"a": 1})
    assert raw == b'{"a":1}'
    assert samples.descriptor(raw, "text/plain", annotations={}) == {
        "mediaType": "text/plain",
        "digest": str(Digest.of(raw)),
        "size": 7,
        "annotations": {},
    }
