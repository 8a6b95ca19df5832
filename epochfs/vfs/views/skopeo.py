"""`dir/`: a manifest with all it leads to, as skopeo's `dir:` transport reads it.

::

    dir/version                     what skopeo writes there
    dir/manifest.json               -> ../manifest.json
    dir/<encoded>.manifest.json     -> the manifest.json of a manifest that the index leads to
    dir/<encoded>                   -> a blob, of this manifest or of one that the index leads to

It is for what skopeo cannot restore from `layout/`: its `oci:` transport looks for tags among OCI's
media types only, so it finds no image that `docker push` made, and nothing without a tag, such as a
signature. Those have their `dir/` listed, so that a backup of the tree restores them. For any other
manifest it opens by name only, since listing it would make every walk a third longer.

If part of the content is unavailable, that is an error and not a shorter listing. An index within
an index is treated like any manifest, but skopeo pushes such an index only once the registry has
what it names (`--multi-arch index-only`). Foreign layers are left out, as skopeo does.
"""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass

from epochfs.errors import InvalidName, NotFound
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import ALGORITHMS, Digest
from epochfs.vfs.kernel_memory import Generated
from epochfs.vfs.node import (
    CONSTANT_TIME_NS,
    Context,
    Entries,
    GeneratedFile,
    ManifestLink,
    ManifestNode,
    ManifestView,
    Node,
)

VERSION_FILE = "version"
VERSION = b"Directory Transport Version: 1.1\n"
TOP_FILE = "manifest.json"
MANIFEST_SUFFIX = f".{TOP_FILE}"


class SkopeoDirectory(ManifestView):
    """`dir`: all that `skopeo copy --all dir:` needs to push a manifest."""

    def child(self, name: str) -> Node:
        if name == VERSION_FILE:
            return VersionFile(self.repository, self.digest)
        if name == TOP_FILE:
            return TopLink(self.repository, self.digest)
        return HeldLink(
            self.repository,
            self.digest,
            _parse(name.removesuffix(MANIFEST_SUFFIX)),
            is_manifest=name.endswith(MANIFEST_SUFFIX),
        )

    def is_listed(self, context: Context) -> bool:
        document = self.document(context)
        is_found_by_tag = document.own_type in (OCI_MANIFEST, OCI_INDEX)
        return not is_found_by_tag or document.view.subject is not None

    def entries(self, context: Context) -> Entries:
        yield VERSION_FILE, stat.S_IFREG
        yield TOP_FILE, stat.S_IFLNK
        held = context.listings.closure(self.repository, self.digest)
        for digest in sorted(held.manifests):
            if digest != self.digest:
                yield f"{digest.encoded}{MANIFEST_SUFFIX}", stat.S_IFLNK
        for digest in sorted(held.blobs):
            yield digest.encoded, stat.S_IFLNK
        held.complete()


class VersionFile(ManifestNode, GeneratedFile):
    """`dir/version`: the version of the format."""

    def generated(self, context: Context) -> Generated:
        self.document(context)
        return Generated(VERSION, CONSTANT_TIME_NS)


class TopLink(ManifestLink):
    """`dir/manifest.json`: a link to the manifest's own bytes."""

    def target(self, context: Context) -> str:
        self.document(context)
        return f"../{TOP_FILE}"


@dataclass(frozen=True)
class HeldLink(ManifestLink):
    """`dir/<encoded>`: a link to a blob the manifest leads to; with the suffix, to a manifest."""

    held: Digest
    is_manifest: bool

    def target(self, context: Context) -> str:
        found = context.listings.closure(self.repository, self.digest)
        held = found.manifests if self.is_manifest else found.blobs
        if self.held not in held or (self.is_manifest and self.held == self.digest):
            found.complete()
            raise NotFound(f"{self.digest} does not lead to {self.held}")
        if self.is_manifest:
            return f"../../{self.held}/{TOP_FILE}"
        return f"../../../blobs/{self.held}"


def _parse(encoded: str) -> Digest:
    """Return the digest of its encoded part: the length tells the algorithm."""
    for algorithm in ALGORITHMS:
        with suppress(InvalidName):
            return Digest.parse(f"{algorithm}:{encoded}")
    raise NotFound(f"no {encoded} here")
