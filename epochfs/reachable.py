"""What tags lead to: manifests through indexes, and the blobs that they name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from epochfs.errors import TooLarge
from epochfs.manifests import Descriptor, Document, Index, Manifest
from epochfs.names import Digest

_MAX_INDEX_DEPTH = 4

_NOT_DISTRIBUTED = (
    "application/vnd.docker.image.rootfs.foreign.diff.",
    "application/vnd.oci.image.layer.nondistributable.",
)
"""Layers that are fetched from elsewhere; a registry need not have them (image-spec, layer.md)."""


class Reachable:
    """The manifests and blobs that the tags of one repository lead to."""

    def __init__(self) -> None:
        self.manifests: dict[Digest, None] = {}
        self.blobs: dict[Digest, None] = {}


def follow(
    start: Iterable[Digest],
    fetch: Callable[[Iterable[Digest]], Iterable[Document | None]],
) -> Reachable:
    """Follow manifests through indexes; `fetch` returns documents, None for one to pass over.

    Raises TooLarge where indexes are nested deeper than makes sense.
    """
    found = Reachable()
    level = list(start)
    for _ in range(_MAX_INDEX_DEPTH):
        below: dict[Digest, None] = {}
        for document in fetch(level):
            if document is not None:
                found.manifests[document.digest] = None
                below.update(_children(document, found.blobs))
        level = [digest for digest in below if digest not in found.manifests]
    if level:
        raise TooLarge(f"{level[0]} is below indexes within indexes, {_MAX_INDEX_DEPTH} deep")
    return found


def named_blobs(view: Manifest | Index) -> tuple[Descriptor, ...]:
    """Return the config, if there is one, and the layers; nothing of an index."""
    if isinstance(view, Index):
        return ()
    return view.layers if view.config is None else (view.config, *view.layers)


def _children(document: Document, blobs: dict[Digest, None]) -> dict[Digest, None]:
    """Return the manifests an index names; of a manifest, add the blobs it names to `blobs`."""
    view = document.view
    if isinstance(view, Index):
        return {descriptor.digest: None for descriptor in view.manifests}
    for descriptor in named_blobs(view):
        if not descriptor.media_type.startswith(_NOT_DISTRIBUTED):
            blobs[descriptor.digest] = None
    return {}
