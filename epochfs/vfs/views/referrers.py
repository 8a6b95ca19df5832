"""`referrers/`: links to the manifests that refer to this one, such as signatures and SBOMs.

Source: OCI Distribution specification 1.1, "Listing Referrers". What refers to a manifest changes,
so this is the one view that the manifest does not tell: reading the directory asks the registry.
What a referrer is, its own directory tells, as `user.oci.artifactType`.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from epochfs.errors import NotFound
from epochfs.vfs.context import Context
from epochfs.vfs.node import Entries, Node
from epochfs.vfs.views.view import ManifestLink, ManifestView


class ReferrersDirectory(ManifestView):
    """`referrers`: a link for each manifest that refers to this one."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return ReferrerLink(self.repository, self.digest, name)

    def exists(self, context: Context) -> bool:
        self.document(context)
        return True

    def entries(self, context: Context) -> Entries:
        found = context.listings.referrers(self.repository, self.digest)
        return ((str(digest), stat.S_IFLNK) for digest in found)


@dataclass(frozen=True, slots=True)
class ReferrerLink(ManifestLink):
    """`referrers/<digest>`: a link to a manifest that refers to this one."""

    name: str

    def target(self, context: Context) -> str:
        found = map(str, context.listings.referrers(self.repository, self.digest))
        if self.name not in found:
            raise NotFound(f"{self.name} does not refer to {self.digest}")
        return f"../../{self.name}"
