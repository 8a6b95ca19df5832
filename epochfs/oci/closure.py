"""The closure of tags: every manifest and blob they lead to, through indexes and referrers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from epochfs.errors import EpochfsError, ProtocolViolation, TooLarge, fresh
from epochfs.oci.manifests import Descriptor, Document, Index, Manifest
from epochfs.oci.names import Digest

_MAX_INDEX_DEPTH = 4

_MAX_MANIFESTS = 200_000
"""Most manifests followed: a registry can make up referrers of referrers without end."""

_NOT_DISTRIBUTED = (
    "application/vnd.docker.image.rootfs.foreign.diff.",
    "application/vnd.oci.image.layer.nondistributable.",
)


@dataclass(frozen=True, slots=True)
class Step:
    """A manifest to fetch or, if `referrers` is set, to list the referrers of.

    `depth` counts the indexes it is nested in, from 1. It is `required` if a tag leads to it.
    """

    digest: Digest
    depth: int = 1
    required: bool = False
    referrers: bool = False


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was fetched of one manifest: the document, and its referrers.

    `error` is why something is missing. With neither document nor error, the registry does not have
    the manifest. If `referrers` is None, they are asked for in a step of their own.
    """

    document: Document | None = None
    referrers: tuple[Digest, ...] | None = ()
    error: EpochfsError | None = None


class Reachable:
    """The manifests and blobs that the tags of one repository lead to.

    `error` is the first thing that kept more from being found; None if this is all there is.
    """

    def __init__(self) -> None:
        self.manifests: dict[Digest, None] = {}
        self.blobs: dict[Digest, None] = {}
        self.error: EpochfsError | None = None

    def fail(self, error: EpochfsError | None) -> None:
        """Record that something is missing, and why."""
        self.error = self.error or error

    def complete(self) -> None:
        """Raise `error` unless this is all there is."""
        if self.error is not None:
            raise fresh(self.error)


class Walk:
    """A walk from some manifests through all that they lead to and all that refers to them.

    A manifest that could not be fetched counts as found: something names it. One that an index or a
    listing of referrers names, and that the registry does not have, is skipped.
    """

    def __init__(self) -> None:
        self._found = Reachable()
        self._taken: dict[Digest, Step] = {}
        self._too_deep: dict[Digest, None] = {}

    def begin(self, digests: Iterable[Digest], *, required: bool) -> list[Step]:
        """Return the first steps; they are `required` where tags lead to them."""
        return self._new(Step(digest, required=required) for digest in digests)

    def take(self, step: Step, fetched: Fetched) -> list[Step]:
        """Record the result of a step; return the steps that it leads to."""
        self._found.fail(fetched.error)
        if step.referrers:
            return self._new(Step(one, step.depth) for one in fetched.referrers or ())
        if fetched.document is None and fetched.error is None:
            if not step.required:
                return []
            absent = f"a tag leads to {step.digest}, which the registry does not have"
            self._found.fail(ProtocolViolation(absent))
        self._found.manifests[step.digest] = None
        children = _children(fetched.document, self._found)
        following = self._new(Step(child, step.depth + 1) for child in children)
        if fetched.referrers is None:
            following.append(replace(step, referrers=True))
        else:
            following += self._new(Step(one, step.depth) for one in fetched.referrers)
        return following

    def miss(self, steps: Iterable[Step], error: EpochfsError) -> None:
        """Record steps that were not taken, and why."""
        for step in steps:
            self._found.fail(error)
            self._found.manifests[step.digest] = None

    def end(self) -> Reachable:
        """Return what was found, once there is no step left."""
        for digest in self._too_deep:
            if digest not in self._taken:
                nested = f"{digest} is nested more than {_MAX_INDEX_DEPTH} indexes deep"
                self._found.fail(TooLarge(nested))
        return self._found

    def _new(self, steps: Iterable[Step]) -> list[Step]:
        """Return the steps that lead further than those taken before."""
        return [step for step in steps if self._leads_on(step)]

    def _leads_on(self, step: Step) -> bool:
        earlier = self._taken.get(step.digest)
        # A missing manifest is skipped if an index names it, but not if a tag leads there too.
        is_news = earlier is None or (step.required and not earlier.required)
        if earlier is not None and earlier.depth <= step.depth and not is_news:
            return False
        if step.depth > _MAX_INDEX_DEPTH:
            self._too_deep[step.digest] = None
            return False
        if earlier is None and len(self._taken) >= _MAX_MANIFESTS:
            self._found.fail(TooLarge(f"the tags lead to over {_MAX_MANIFESTS} manifests"))
            return False
        self._taken[step.digest] = step
        return True


def is_distributed(layer: Descriptor) -> bool:
    """Whether a registry must have a layer: some come from elsewhere (image-spec, layer.md)."""
    return not layer.media_type.startswith(_NOT_DISTRIBUTED)


def named_blobs(view: Manifest | Index | None) -> tuple[Descriptor, ...]:
    """Return the config, if there is one, and the layers; nothing for what is no manifest."""
    if not isinstance(view, Manifest):
        return ()
    return view.layers if view.config is None else (view.config, *view.layers)


def _children(document: Document | None, found: Reachable) -> tuple[Digest, ...]:
    """Return the manifests that an index names; add the blobs that a manifest names to `found`."""
    view = document.readable_view if document is not None else None
    if isinstance(view, Index):
        return tuple(descriptor.digest for descriptor in view.manifests)
    if view is not None:
        for descriptor in named_blobs(view):
            if is_distributed(descriptor):
                found.blobs[descriptor.digest] = None
        found.blobs.update(dict.fromkeys(view.unsized))
    return ()
