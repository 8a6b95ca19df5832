"""A view of a manifest, and what the nodes of one manifest have in common."""

from __future__ import annotations

from dataclasses import dataclass

from epochfs.errors import NotFound
from epochfs.oci.manifests import Document, Manifest
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.composed import Composed
from epochfs.vfs.context import Context
from epochfs.vfs.node import DIRECTORY, LINK, Attr, Node, Opened

REMEMBERED = 4
"""How many manifests a view keeps what it worked out for: a walk stays with one at a time, and each
holds its document in memory."""


@dataclass(frozen=True, slots=True)
class ManifestNode(Node):
    """A node that belongs to one manifest."""

    repository: Repository
    digest: Digest

    def document(self, context: Context) -> Document:
        """Return the manifest the node belongs to."""
        return context.listings.manifest(self.repository, self.digest)

    def image(self, context: Context) -> Manifest:
        """Return the view of the manifest; raises NotFound for an index."""
        view = self.document(context).view
        if not isinstance(view, Manifest):
            raise NotFound(f"{self.digest} is an index")
        return view


class ManifestLink(ManifestNode):
    """A link whose target the manifest tells."""

    __slots__ = ()

    def attr(self, context: Context) -> Attr:
        return Attr(LINK, len(self.target(context).encode()))


@dataclass(frozen=True, slots=True)
class ComposedFile(ManifestNode):
    """A node that may be a regular file put together from blobs; `path` is below its view."""

    path: str

    def composed(self, context: Context) -> Composed:
        """Return what the file is made of; raises NotFound where the node is no such file."""
        raise NotImplementedError

    def open(self, context: Context) -> Opened:
        composed = self.composed(context)
        spoiled = any(context.blobs.was_spoiled(blob.digest) for blob in composed.blobs)
        return Opened(context.composer.open(self.repository, composed), direct_io=spoiled)


class ManifestView(ManifestNode):
    """A directory below a manifest's own, that shows what is inside it in one more way."""

    __slots__ = ()

    def exists(self, context: Context) -> bool:
        """Whether the manifest is one that there is such a view of."""
        raise NotImplementedError

    def is_listed(self, context: Context) -> bool:
        """Whether the manifest's directory lists the view; opening it by name works if it exists.

        Answers from the manifest alone: a listing of the directory asks this of every view.
        """
        return self.exists(context)

    def attr(self, context: Context) -> Attr:
        if not self.exists(context):
            raise NotFound(f"no such view of {self.digest}")
        return Attr(DIRECTORY)
