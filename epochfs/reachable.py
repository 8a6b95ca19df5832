"""What tags lead to: manifests through indexes and referrers, and the blobs they name. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from epochfs.errors import EpochfsError, ProtocolViolation, TooLarge, fresh
from epochfs.manifests import Descriptor, Document, Index, Manifest
from epochfs.names import Digest

_MAX_INDEX_DEPTH = 4

_MAX_MANIFESTS = 200_000
"""How many manifests are followed: a registry can make up referrers of referrers without end."""

_NOT_DISTRIBUTED = (
    "application/vnd.docker.image.rootfs.foreign.diff.",
    "application/vnd.oci.image.layer.nondistributable.",
)
"""Layers that are fetched from elsewhere; a registry need not have them (image-spec, layer.md)."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What could be had of one manifest: the document, and what refers to it.

    `error` is why something of it is missing. Without a document or an error the registry does not
    have it.
    """

    document: Document | None = None
    referrers: tuple[Digest, ...] = ()
    error: EpochfsError | None = None


Fetch = Callable[[Iterable[Digest]], Iterable[Fetched]]
"""Fetches manifests; the results are in their order."""


class Reachable:
    """The manifests and blobs that the tags of one repository lead to.

    `error` is the first of what kept others from being found; None if this is all there is.
    """

    def __init__(self) -> None:
        self.manifests: dict[Digest, None] = {}
        self.blobs: dict[Digest, None] = {}
        self.error: EpochfsError | None = None

    def fail(self, error: EpochfsError | None) -> None:
        """Take note of what is missing."""
        self.error = self.error or error

    def complete(self) -> None:
        """Return if this is all there is, else raise what is missing."""
        if self.error is not None:
            raise fresh(self.error)


def follow(start: Iterable[Digest], fetch: Fetch) -> Reachable:
    """Follow manifests through indexes, and to what refers to them, in any depth.

    A manifest that could not be had is one of those found: something names it. One that an index
    or a listing of referrers names, and that the registry does not have, is passed over.
    """
    found = Reachable()
    asked: set[Digest] = set()
    level = dict.fromkeys(start, 1)
    required = frozenset(level)
    while level:
        asked.update(level)
        below: dict[Digest, int] = {}
        for (digest, depth), fetched in zip(level.items(), fetch(level), strict=True):
            found.fail(fetched.error)
            if fetched.document is None and fetched.error is None:
                if digest not in required:
                    continue
                found.fail(ProtocolViolation(f"a tag leads to {digest}, which is not there"))
            found.manifests[digest] = None
            for child in _children(fetched.document, found):
                below.setdefault(child, depth + 1)
            for referrer in fetched.referrers:
                below.setdefault(referrer, depth)
        level = {digest: depth for digest, depth in below.items() if digest not in asked}
        too_deep = [digest for digest, depth in level.items() if depth > _MAX_INDEX_DEPTH]
        for digest in too_deep:
            del level[digest]
            nested = f"{digest} is below indexes within indexes, {_MAX_INDEX_DEPTH} deep"
            found.fail(TooLarge(nested))
        if len(asked) + len(level) > _MAX_MANIFESTS:
            found.fail(TooLarge(f"the tags lead to over {_MAX_MANIFESTS} manifests"))
            break
    return found


def named_blobs(view: Manifest | Index) -> tuple[Descriptor, ...]:
    """Return the config, if there is one, and the layers; nothing of an index."""
    if isinstance(view, Index):
        return ()
    return view.layers if view.config is None else (view.config, *view.layers)


def _children(document: Document | None, found: Reachable) -> tuple[Digest, ...]:
    """Return the manifests an index names; of a manifest, add the blobs it names to those found."""
    view = document.readable_view if document is not None else None
    if isinstance(view, Index):
        return tuple(descriptor.digest for descriptor in view.manifests)
    if view is not None:
        for descriptor in named_blobs(view):
            if not descriptor.media_type.startswith(_NOT_DISTRIBUTED):
                found.blobs[descriptor.digest] = None
        found.blobs.update(dict.fromkeys(view.unsized))
    return ()
