"""Artifacts for tests, as tools push them: layers with annotations."""

from __future__ import annotations

import gzip
import json
from typing import Any

from epochfs.demo.samples import descriptor, encode
from epochfs.oci.artifact_files import FILE_METADATA, FILE_PATHS
from epochfs.oci.manifests import OCI_MANIFEST
from support.builders import Content, index
from support.layers import File, Layer, container, tar, zstd

MODELPACK = "application/vnd.cncf.model.config.v1+json"
WEIGHT = "application/vnd.cncf.model.weight.v1.raw"
TAR = "application/vnd.cncf.model.code.v1.tar"
TAR_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
CHART = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"

Given = tuple[str, bytes, dict[str, str]]
"""A layer: its media type, its bytes, and its annotations."""


def artifact(*layers: Given, config_type: str = MODELPACK, **fields: Any) -> Content:
    """Return an artifact of these layers."""
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(b"{}", config_type),
        "layers": [
            descriptor(data, media_type, annotations=notes) for media_type, data, notes in layers
        ],
        **fields,
    }
    return Content(encode(manifest), OCI_MANIFEST, (b"{}", *(data for _, data, _ in layers)))


def raw(path: str, data: bytes, metadata: object = None) -> Given:
    notes = {FILE_PATHS[0]: path}
    if metadata is not None:
        notes[FILE_METADATA[0]] = metadata if isinstance(metadata, str) else json.dumps(metadata)
    return WEIGHT, data, notes


def packed(*files: File, media_type: str = TAR, **notes: str) -> Given:
    data = tar(*files)
    if "gzip" in media_type:
        data = gzip.compress(data, mtime=0)
    elif "zstd" in media_type:
        data = zstd(*files).blob
    return media_type, data, notes


def platform_index(*platforms: dict[str, str] | None) -> Content:
    """Return an index of an image for each platform; each has a file `name` of its number."""
    children = [container(Layer(tar(File("name", str(n).encode())))) for n in range(len(platforms))]
    document = json.loads(index(*children).raw)
    document["manifests"] = [
        {**descriptor(child.raw, child.media_type), **({"platform": one} if one else {})}
        for child, one in zip(children, platforms, strict=True)
    ]
    return Content(encode(document), index(*children).media_type, (), tuple(children))


def on(architecture: str, variant: str = "") -> dict[str, str]:
    stated = {"os": "linux", "architecture": architecture}
    return {**stated, "variant": variant} if variant else stated
