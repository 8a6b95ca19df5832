"""A model of the mount of a registry, worked out from design §1 and from nothing else.

Kept apart from the code on purpose: no name of the package's tree is imported here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from epochfs.demo.samples import descriptor, encode
from epochfs.oci.manifests import OCI_INDEX
from support.builders import Content

World = Mapping[str, Mapping[str, Content]]
"""Repositories, their tags, and what these name."""

Untagged = Mapping[str, Sequence[Content]]
"""Repositories, and what no tag names in them: signatures and the like, each with its `subject`."""

Tree = dict[str, bytes | str | None]
"""Each path: a file's bytes, where a link points, or None for a directory."""

_RESERVED = {"tags", "manifests", "blobs", "layout", ".epochfs"}
_CONSTANT_NS = 10**9


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def shown(repository: str) -> str:
    """Return the path at which a repository is found."""
    words = repository.split("/")
    return "".join(f"/_{w}" if w in _RESERVED or w[0] == "_" else f"/{w}" for w in words)


def tree(world: World, untagged: Untagged | None = None) -> Tree:
    """Return everything that is listed."""
    found: Tree = {"/": None}
    for repository, tags in world.items():
        path = shown(repository)
        found |= dict.fromkeys(_prefixes(path))
        found |= dict.fromkeys(f"{path}/{name}" for name in ("tags", "manifests", "blobs"))
        for tag, content in tags.items():
            found[f"{path}/tags/{tag}"] = f"../manifests/{digest(content.raw)}"
        held = (*tags.values(), *(untagged or {}).get(repository, ()))
        for content in held:
            for manifest in content.every_manifest():
                found |= _manifest(path, manifest)
            found |= {f"{path}/blobs/{digest(blob)}": blob for blob in content.every_blob()}
        found |= _layout(f"{path}/layout", tags, held)
    return found


def _prefixes(path: str) -> Iterator[str]:
    words = path.split("/")[1:]
    for count in range(1, len(words) + 1):
        yield "/" + "/".join(words[:count])


def _manifest(repository: str, manifest: Content) -> Tree:
    path = f"{repository}/manifests/{digest(manifest.raw)}"
    found: Tree = {path: None, f"{path}/manifest.json": manifest.raw, f"{path}/referrers": None}
    document = json.loads(manifest.raw)
    if "layers" in document:
        found[f"{path}/config"] = f"../../blobs/{document['config']['digest']}"
        found[f"{path}/layers"] = None
        for number, layer in enumerate(document["layers"]):
            found[f"{path}/layers/{number:02}"] = f"../../../blobs/{layer['digest']}"
    if "manifests" in document:
        found |= _platforms(path, document["manifests"])
    if "subject" in document:
        subject = document["subject"]["digest"]
        name = digest(manifest.raw)
        found[f"{repository}/manifests/{subject}/referrers/{name}"] = f"../../{name}"
        found |= _skopeo(f"{path}/dir", manifest)
    return found


def _skopeo(path: str, image: Content) -> Tree:
    """Return what skopeo's `dir:` transport reads of an image without a tag."""
    found: Tree = {path: None, f"{path}/version": b"Directory Transport Version: 1.1\n"}
    found[f"{path}/manifest.json"] = "../manifest.json"
    blobs = map(digest, image.every_blob())
    return found | {f"{path}/{blob[7:]}": f"../../../blobs/{blob}" for blob in blobs}


def _layout(layout: str, tags: Mapping[str, Content], held: Sequence[Content]) -> Tree:
    """Return the layout of a repository, which has all that is `held`."""
    blobs = f"{layout}/blobs/sha256"
    found: Tree = dict.fromkeys((layout, f"{layout}/blobs", blobs))
    found[f"{layout}/oci-layout"] = b'{"imageLayoutVersion":"1.0.0"}'
    manifests = []
    for tag, content in sorted(tags.items()):
        name = {"org.opencontainers.image.ref.name": tag}
        manifests.append(descriptor(content.raw, content.media_type, annotations=name))
    for content in held:
        for manifest in content.every_manifest():
            path = f"../../../manifests/{digest(manifest.raw)}/manifest.json"
            found[f"{blobs}/{digest(manifest.raw)[7:]}"] = path
        for blob in content.every_blob():
            found[f"{blobs}/{digest(blob)[7:]}"] = f"../../../blobs/{digest(blob)}"
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    found[f"{layout}/index.json"] = encode(index) + b"\n"
    return found


def _platforms(manifest: str, children: list[dict[str, Any]]) -> Tree:
    """Return the platforms of an index whose platforms all have plain names."""
    found: Tree = {f"{manifest}/platforms": None}
    for child in children:
        path = f"{manifest}/platforms/{child['platform']['os']}-{child['platform']['architecture']}"
        found[path] = f"../../{child['digest']}"
    return found


def time_ns(path: str, files: Tree) -> int | None:
    """Return the time that a path must have; None for what has the time a tag was seen at."""
    words = path.split("/")
    if (len(words) > 2 and words[-2] == "tags") or words[-2:] == ["layout", "index.json"]:
        return None
    raw = files.get(path if words[-1] == "manifest.json" else f"{path}/manifest.json")
    if not isinstance(raw, bytes):
        return _CONSTANT_NS
    made = json.loads(raw).get("annotations", {}).get("org.opencontainers.image.created")
    return _CONSTANT_NS if made is None else int(datetime.fromisoformat(made).timestamp()) * 10**9
