"""`<repo>/layout/`: the repository as an OCI image layout, for tools that read such directories.

::

    layout/oci-layout
    layout/index.json                 a descriptor for each tag, sorted
    layout/blobs/<algorithm>/<encoded> -> a blob, or the manifest.json of a manifest

Source: OCI Image specification 1.1, image-layout.md and annotations.md. Everything is a link but
the two documents, whose bytes are nowhere else.
"""

from __future__ import annotations

import json
import stat
from dataclasses import dataclass

from epochfs.errors import NotFound
from epochfs.oci.closure import Reachable
from epochfs.oci.manifests import OCI_INDEX, REF_NAME
from epochfs.oci.names import ALGORITHMS, Digest
from epochfs.vfs.kernel_memory import Generated
from epochfs.vfs.node import (
    CONSTANT_TIME_NS,
    LINK,
    Attr,
    Context,
    Entries,
    GeneratedFile,
    Node,
    ReachableDirectory,
    RepositoryDirectory,
    RepositoryNode,
    catalog_basis,
)

LAYOUT_FILE = "oci-layout"
INDEX_FILE = "index.json"
VERSION = b'{"imageLayoutVersion":"1.0.0"}'


class LayoutDirectory(RepositoryDirectory):
    """`layout`: the layout's own directory."""

    def child(self, name: str) -> Node:
        if name == LAYOUT_FILE:
            return LayoutFile(self.repository)
        if name == INDEX_FILE:
            return IndexFile(self.repository)
        if name == "blobs":
            return LayoutBlobsDirectory(self.repository)
        raise NotFound(f"no {name} in a layout")

    def entries(self, context: Context) -> Entries:
        if not context.listings.holds_tags(self.repository):
            raise NotFound(f"no repository {self.repository}")
        return [("blobs", stat.S_IFDIR), (INDEX_FILE, stat.S_IFREG), (LAYOUT_FILE, stat.S_IFREG)]

    def basis(self, context: Context) -> tuple[object, ...] | None:
        return catalog_basis(self.repository, context)


class LayoutFile(RepositoryNode, GeneratedFile):
    """`layout/oci-layout`: the version of the format."""

    def generated(self, context: Context) -> Generated:
        context.listings.check(self.repository)
        return Generated(VERSION, CONSTANT_TIME_NS)


class IndexFile(RepositoryNode, GeneratedFile):
    """`layout/index.json`: the tags as an image index, the same bytes for the same tags.

    Its time is when this cache first saw these bytes: it moves with every change of the tags, even
    if one is deleted or two swap their digests.
    """

    def generated(self, context: Context) -> Generated:
        manifests = [
            {
                "mediaType": descriptor.media_type,
                "digest": str(descriptor.digest),
                "size": descriptor.size,
                "annotations": {REF_NAME: tag.name},
            }
            for tag, _, descriptor in context.listings.tagged(self.repository)
        ]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
        data = json.dumps(index, separators=(",", ":")).encode() + b"\n"
        return Generated(data, context.listings.layout_since(self.repository, data))


class LayoutBlobsDirectory(ReachableDirectory):
    """`layout/blobs`: a directory for each digest algorithm; always one for sha256."""

    def child(self, name: str) -> Node:
        if name not in ALGORITHMS:
            raise NotFound(f"no algorithm {name}")
        return LayoutAlgorithmDirectory(self.repository, name)

    def reached(self, found: Reachable) -> Entries:
        digests = (*found.manifests, *found.blobs)
        algorithms = {"sha256", *(digest.algorithm for digest in digests)}
        return ((algorithm, stat.S_IFDIR) for algorithm in sorted(algorithms))


@dataclass(frozen=True)
class LayoutAlgorithmDirectory(ReachableDirectory):
    """`layout/blobs/<algorithm>`: all content reachable from tags, manifests included."""

    algorithm: str

    def child(self, name: str) -> Node:
        return ContentLink(self.repository, Digest.parse(f"{self.algorithm}:{name}"))

    def reached(self, found: Reachable) -> Entries:
        digests = sorted({*found.manifests, *found.blobs})
        mine = (digest for digest in digests if digest.algorithm == self.algorithm)
        return ((digest.encoded, stat.S_IFLNK) for digest in mine)

    def known_attr(self, name: str, context: Context) -> Attr | None:
        link = ContentLink(self.repository, Digest.parse(f"{self.algorithm}:{name}"))
        listings = context.listings
        is_known = listings.names_blob(self.repository, link.digest) or listings.knows_manifest(
            self.repository, link.digest
        )
        return link.attr(context) if is_known else None


@dataclass(frozen=True)
class ContentLink(RepositoryNode):
    """`layout/blobs/<algorithm>/<encoded>`: a link to where the content has its path."""

    digest: Digest

    def attr(self, context: Context) -> Attr:
        return Attr(LINK, len(self.target(context)))

    def target(self, context: Context) -> str:
        to_blob = f"../../../blobs/{self.digest}"
        if context.listings.names_blob(self.repository, self.digest):
            return to_blob
        try:
            context.listings.manifest(self.repository, self.digest)
        except NotFound:
            context.listings.descriptor(self.repository, self.digest)
            return to_blob
        return f"../../../manifests/{self.digest}/manifest.json"
