"""Content for tests: random blobs, and images and indexes of them."""

from __future__ import annotations

import base64
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from epochfs.demo.samples import CONFIG, LAYER, descriptor, encode
from epochfs.oci.manifests import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest
from support.registries import EmbeddedRegistry

DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class Content:
    """A manifest or an index, with the blobs and manifests it refers to."""

    raw: bytes
    media_type: str
    blobs: tuple[bytes, ...] = ()
    children: tuple[Content, ...] = ()

    @property
    def digest(self) -> Digest:
        return Digest.of(self.raw)

    def every_blob(self) -> Iterator[bytes]:
        """Yield the blobs of this manifest and of all below it."""
        yield from self.blobs
        for child in self.children:
            yield from child.every_blob()

    def every_manifest(self) -> Iterator[Content]:
        """Yield what this index refers to, at every level, and then itself."""
        for child in self.children:
            yield from child.every_manifest()
        yield self


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Return `size` bytes that no compression shortens, the same for the same seed."""
    return random.Random(seed).randbytes(size)


def image(*layers: bytes, architecture: str = "amd64", **fields: object) -> Content:
    """Return an image of these layers (one small one if there are none)."""
    layers = layers or (random_bytes(1000),)
    config = encode(
        {
            "architecture": architecture,
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
    )
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(layer, LAYER) for layer in layers],
        **fields,
    }
    return Content(encode(manifest), OCI_MANIFEST, (config, *layers))


def index(*children: Content, **fields: object) -> Content:
    """Return an index of these manifests (of an amd64 and an arm64 image if there are none)."""
    children = children or (image(architecture="amd64"), image(architecture="arm64"))
    manifests = [
        descriptor(child.raw, child.media_type, platform={"os": "linux", "architecture": name})
        for child, name in zip(children, _architectures(), strict=False)
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests, **fields}
    return Content(encode(document), OCI_INDEX, (), children)


SCHEMA1 = {
    "schemaVersion": 1,
    "name": "library/old",
    "tag": "latest",
    "fsLayers": [{"blobSum": str(Digest.of(b"layer"))}],
    "history": [{"v1Compatibility": "{}"}],
}


def signed(
    document: dict[str, object] = SCHEMA1,
    besides: bytes = b"",
    tail: int = 2,
    signatures: int = 1,
    **headers: object,
) -> tuple[bytes, bytes]:
    """Return a signed manifest of Docker's schema 1, and its payload, which has its digest.

    The signatures themselves are none, as nobody knows the key. `besides` is put in beside them;
    `tail` bytes of the payload stand in the protected headers, which `headers` make a lie.
    """
    payload = json.dumps(document, indent=3).encode()
    length = len(payload) - tail
    protected = []
    for number in range(signatures):
        true = {"formatLength": length, "formatTail": _base64url(payload[length:])}
        protected.append(_base64url(encode({**true, "time": str(number), **headers})))
    listed = [{"header": {}, "signature": "c2ln", "protected": one} for one in protected]
    inserted = besides + b',\n   "signatures": ' + json.dumps(listed, indent=3).encode()
    return payload[:length] + inserted + b"\n}", payload


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def docker_image(*layers: bytes) -> Content:
    """Return an image of Docker's schema 2, as `docker push` makes them."""
    config = encode(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
    )
    packed = tuple(gzip.compress(layer, mtime=0) for layer in layers)
    manifest = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": descriptor(config, "application/vnd.docker.container.image.v1+json"),
        "layers": [descriptor(layer, DOCKER_LAYER) for layer in packed],
    }
    return Content(encode(manifest), DOCKER_MANIFEST, (config, *packed))


def docker_list(*children: Content) -> Content:
    """Return a manifest list of these images."""
    manifests = [
        descriptor(child.raw, child.media_type, platform={"os": "linux", "architecture": name})
        for child, name in zip(children, _architectures(), strict=False)
    ]
    document = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": manifests}
    return Content(encode(document), DOCKER_LIST, (), children)


def signature(of: Content, text: bytes = b"signed") -> Content:
    """Return a manifest that refers to other content."""
    subject = descriptor(of.raw, of.media_type)
    return image(text, subject=subject, artifactType="application/vnd.example.signature")


def referrers_index(*of: Content) -> Content:
    """Return the index that clients keep of what refers to a manifest, where registries do not."""
    referrers = [descriptor(one.raw, one.media_type) for one in of]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": referrers}
    return Content(encode(document), OCI_INDEX, (), of)


def _architectures() -> Iterator[str]:
    yield from ("amd64", "arm64", "riscv64", "s390x")
    number = 0
    while True:
        yield f"arch{number}"
        number += 1


def load(registry: EmbeddedRegistry, name: str, tag: str, content: Content) -> None:
    """Store content in the embedded registry, without HTTP."""
    for blob in content.every_blob():
        registry.put_blob(name, blob)
    for manifest in content.every_manifest():
        registry.put_manifest(
            name, tag if manifest is content else "", manifest.raw, manifest.media_type
        )


def layout(*tagged: tuple[str, Content]) -> dict[str, bytes]:
    """Return the files of an OCI image layout (image-layout.md), by their names in it."""
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    entries = []
    for tag, content in tagged:
        name = {"org.opencontainers.image.ref.name": tag}
        entries.append(descriptor(content.raw, content.media_type, annotations=name))
        manifests = (manifest.raw for manifest in content.every_manifest())
        for data in (*content.every_blob(), *manifests):
            files[f"blobs/sha256/{Digest.of(data).encoded}"] = data
    files["index.json"] = encode({"schemaVersion": 2, "manifests": entries})
    return files


def write_layout(directory: Path, tag: str, content: Content) -> None:
    """Write content as an OCI image layout, for other clients to push."""
    (directory / "blobs/sha256").mkdir(parents=True)
    for name, data in layout((tag, content)).items():
        (directory / name).write_bytes(data)


def write_directory(directory: Path, content: Content) -> None:
    """Write content as skopeo's `dir:` transport has it."""
    directory.mkdir(parents=True)
    (directory / "version").write_text("Directory Transport Version: 1.1\n")
    for manifest in content.every_manifest():
        name = "" if manifest is content else f"{manifest.digest.encoded}."
        (directory / f"{name}manifest.json").write_bytes(manifest.raw)
    for blob in content.every_blob():
        (directory / Digest.of(blob).encoded).write_bytes(blob)
