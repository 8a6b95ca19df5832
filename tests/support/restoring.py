"""A registry as people have them, to be backed up and restored through a mount."""

from __future__ import annotations

from collections.abc import Mapping

from epochfs.oci.names import referrers_tag
from support.builders import (
    Content,
    docker_image,
    image,
    index,
    random_bytes,
    referrers_index,
    signature,
)
from support.integrity import push


def _repository(number: int) -> dict[str, Content]:
    """Return three tags of two images, which share a layer with those of every repository."""
    base = random_bytes(20_000, 100)
    old = image(base, random_bytes(5_000, number), b"of all")
    new = docker_image(base, random_bytes(1_000, 50 + number))
    return {"1.0": old, "1.1": new, "latest": new}


_SIGNED = index(image(b"for amd64", b"of all"), image(b"for arm64", b"of all"))
_SIGNATURES = (signature(_SIGNED), signature(_SIGNED.children[0]))
_COUNTERSIGNATURE = signature(_SIGNATURES[0], b"signed again")

REGISTRY: Mapping[str, Mapping[str, Content]] = {
    **{f"team{number % 3}/app{number}": _repository(number) for number in range(10)},
    "team0/signed": {
        "latest": _SIGNED,
        "1.0": _SIGNED,
        "amd64": _SIGNED.children[0],
        "nested": index(_SIGNED, image(b"beside")),
        str(referrers_tag(_SIGNED.digest)): referrers_index(_SIGNATURES[0]),
        str(referrers_tag(_SIGNED.children[0].digest)): referrers_index(_SIGNATURES[1]),
        str(referrers_tag(_SIGNATURES[0].digest)): referrers_index(_COUNTERSIGNATURE),
        "large": image(random_bytes(3_000_000, 99)),
    },
    "team0/signed/below": {"latest": image(b"below"), "none": image(b"")},
}
"""12 repositories and 40 tags: images of both kinds, indexes, an index of an index, signatures with
the tags that registries without a list of referrers have them by, an empty layer.
"""


def push_all(url: str) -> None:
    """Push it all."""
    for name, tags in REGISTRY.items():
        for tag, content in tags.items():
            push(url, name, tag, content)
