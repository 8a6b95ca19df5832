"""The sample repositories of `epochfs demo`, built on the fly.

Every byte follows from this module alone (layers are uncompressed, times are fixed), so digests are
the same on every machine and documentation may quote them. Source: OCI Image specification 1.1,
config.md, layer.md, manifest.md ("Guidelines for Artifact Usage"), image-index.md.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from typing import Any

from epochfs.demo.registry import EmbeddedRegistry
from epochfs.oci.manifests import CREATED, OCI_INDEX, OCI_MANIFEST, TITLE
from epochfs.oci.names import Digest

CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
EMPTY = "application/vnd.oci.empty.v1+json"
ARTIFACT = "application/vnd.epochfs.sample.v1"

_CREATED_TEXT = "2024-02-29T12:00:00Z"
_CREATED_SECONDS = 1_709_208_000


def load(registry: EmbeddedRegistry) -> None:
    """Store the sample repositories in `registry`.

    - `library/hello`: one image, tagged `1.0` and `latest`.
    - `demo/team/app`: an index of two platforms, tagged `latest`, whose images share a layer.
    - `demo/artifact`: an artifact with three titled files, tagged `v1`.
    """
    _load_hello(registry)
    _load_app(registry)
    _load_artifact(registry)


def _load_hello(registry: EmbeddedRegistry) -> None:
    files = {"hello.txt": b"Hello from a registry that is a directory.\n"}
    raw = _image(registry, "library/hello", "amd64", tar_of(files))
    for tag in ("1.0", "latest"):
        registry.put_manifest("library/hello", tag, raw, OCI_MANIFEST)


def _load_app(registry: EmbeddedRegistry) -> None:
    name = "demo/team/app"
    shared = tar_of(
        {"etc/app.conf": b"greeting = hello\n", "usr/share/doc/app/README": b"An app.\n"}
    )
    images = []
    for architecture in ("amd64", "arm64"):
        own = tar_of({"usr/bin/app": f"built for linux/{architecture}\n".encode()})
        raw = _image(registry, name, architecture, shared, own)
        registry.put_manifest(name, "", raw, OCI_MANIFEST)
        platform = {"architecture": architecture, "os": "linux"}
        images.append(descriptor(raw, OCI_MANIFEST, platform=platform))
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": images}
    registry.put_manifest(name, "latest", encode(index), OCI_INDEX)


def _load_artifact(registry: EmbeddedRegistry) -> None:
    name = "demo/artifact"
    files = {
        "README.md": ("text/markdown", b"# Measurements\n\nOne CSV file, and its licence.\n"),
        "measurements.csv": ("text/csv", b"day,celsius\n1,4.5\n2,6.0\n3,5.5\n"),
        "LICENSE": ("text/plain", b"CC0-1.0\n"),
    }
    for _, data in files.values():
        registry.put_blob(name, data)
    registry.put_blob(name, b"{}")
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": ARTIFACT,
        "config": descriptor(b"{}", EMPTY),
        "layers": [
            descriptor(data, media_type, annotations={TITLE: title})
            for title, (media_type, data) in files.items()
        ],
        "annotations": {CREATED: _CREATED_TEXT},
    }
    registry.put_manifest(name, "v1", encode(manifest), OCI_MANIFEST)


def _image(registry: EmbeddedRegistry, name: str, architecture: str, *layers: bytes) -> bytes:
    """Store the blobs of an image in the repository `name`, and return its manifest's bytes."""
    config = encode(
        {
            "architecture": architecture,
            "os": "linux",
            "created": _CREATED_TEXT,
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
        }
    )
    for blob in (config, *layers):
        registry.put_blob(name, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [descriptor(layer, LAYER) for layer in layers],
        "annotations": {CREATED: _CREATED_TEXT},
    }
    return encode(manifest)


def descriptor(data: bytes, media_type: str, **fields: object) -> dict[str, Any]:
    """Return the descriptor of `data`, with more fields such as `annotations` or `platform`."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data), **fields}


def encode(document: Mapping[str, Any]) -> bytes:
    """Return a JSON document as the bytes that its digest is computed over."""
    return json.dumps(document, separators=(",", ":")).encode()


def tar_of(files: Mapping[str, bytes]) -> bytes:
    """Return an uncompressed layer that holds `files`, all made at one fixed time."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, data in files.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            member.mtime = _CREATED_SECONDS
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()
