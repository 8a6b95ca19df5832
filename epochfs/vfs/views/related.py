"""`platforms/` and `referrers/`: links to the manifests that are related to one.

`platforms/` has the manifests of an index by their platforms (OCI Image specification 1.1,
image-index.md). Attestations, which BuildKit puts into an index as manifests of the platform
`unknown/unknown`, and manifests whose platform cannot be a name, are found by digest under
`unknown/`.

`referrers/` has the manifests that refer to this one, such as signatures and SBOMs (OCI
Distribution specification 1.1, "Listing Referrers"). They change, and the manifest does not tell
them: reading the directory asks the registry. What a referrer is, its own directory tells, as
`user.oci.artifactType`.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from epochfs.errors import NotFound
from epochfs.oci.manifests import Descriptor, Document, Index
from epochfs.oci.names import Digest, labels
from epochfs.oci.platforms import platform_of
from epochfs.vfs.node import REMEMBERED, Context, Entries, ManifestLink, ManifestView, Node

UNKNOWN = "unknown"
"""The directory of what has no platform; no platform is shown so, for each has a `-`."""

_ATTESTATION = "vnd.docker.reference.type"


class PlatformsDirectory(ManifestView):
    """`platforms`: a link for each platform of an index, and a directory of what has none."""

    def child(self, name: str) -> Node:
        if name == UNKNOWN:
            return UnknownDirectory(self.repository, self.digest)
        return PlatformLink(self.repository, self.digest, name)

    def exists(self, context: Context) -> bool:
        return isinstance(self.document(context).view, Index)

    def is_fixed(self, context: Context) -> bool:
        return self.is_known(context)

    def entries(self, context: Context) -> Entries:
        found = _platforms(self.document(context))
        if any("/" in path for path in found):
            yield UNKNOWN, stat.S_IFDIR
        yield from ((path, stat.S_IFLNK) for path in found if "/" not in path)


class UnknownDirectory(ManifestView):
    """`platforms/unknown`: links to the manifests without a platform, by digest."""

    def child(self, name: str) -> Node:
        return PlatformLink(self.repository, self.digest, f"{UNKNOWN}/{name}")

    def exists(self, context: Context) -> bool:
        return any(True for _ in self.entries(context))

    def entries(self, context: Context) -> Entries:
        paths = (path for path in _platforms(self.document(context)) if "/" in path)
        return ((path.removeprefix(f"{UNKNOWN}/"), stat.S_IFLNK) for path in paths)


@dataclass(frozen=True)
class PlatformLink(ManifestLink):
    """A link to one manifest of an index; `path` is below `platforms`."""

    path: str

    def target(self, context: Context) -> str:
        found = _platforms(self.document(context))
        if self.path not in found:
            raise NotFound(f"no platform {self.path} in {self.digest}")
        return f"{'../' * (2 + self.path.count('/'))}{found[self.path]}"


@lru_cache(maxsize=REMEMBERED)
def _platforms(document: Document) -> Mapping[str, Digest]:
    """Return the manifests of an index by their paths below `platforms`; none of a manifest."""
    found: dict[str, Digest] = {}
    if isinstance(document.view, Index):
        for child in document.view.manifests:
            for path in labels(_platform(child), child.digest):
                shown = path if path != str(child.digest) else f"{UNKNOWN}/{path}"
                if found.setdefault(shown, child.digest) == child.digest:
                    break
    return found


def _platform(child: Descriptor) -> str:
    """Return how a platform is shown; empty text where it is unknown or could not be a name."""
    found = platform_of(child)
    if found is None or _ATTESTATION in child.annotations:
        return ""
    words = (found.os, found.architecture, found.variant)
    name = "-".join(word for word in words if word)
    return name if "/" not in name else ""


class ReferrersDirectory(ManifestView):
    """`referrers`: a link for each manifest that refers to this one."""

    def child(self, name: str) -> Node:
        return ReferrerLink(self.repository, self.digest, name)

    def entries(self, context: Context) -> Entries:
        found = context.listings.referrers(self.repository, self.digest)
        return ((str(digest), stat.S_IFLNK) for digest in found)

    def basis(self, context: Context) -> tuple[object, ...] | None:
        found = context.listings.known_referrers(self.repository, self.digest)
        return None if found is None else (found,)


@dataclass(frozen=True)
class ReferrerLink(ManifestLink):
    """`referrers/<digest>`: a link to a manifest that refers to this one."""

    name: str

    def target(self, context: Context) -> str:
        found = map(str, context.listings.referrers(self.repository, self.digest))
        if self.name not in found:
            raise NotFound(f"{self.name} does not refer to {self.digest}")
        return f"../../{self.name}"
