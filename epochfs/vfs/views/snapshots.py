"""`sparse/`: the files of a snapshot as the virtual machine had them, holes and all. Not listed.

What Epoch stores of a snapshot is told in `stored`. Every question here needs the snapshot's
config, which is a blob; so nothing that a walk of the tree comes by asks one.
"""

from __future__ import annotations

import stat

from epochfs.errors import NotFound, ProtocolViolation, TooLarge
from epochfs.oci.kinds import MAX_CONFIG_BYTES, is_snapshot
from epochfs.oci.manifests import Descriptor
from epochfs.vfs.composed import Composed
from epochfs.vfs.context import Context
from epochfs.vfs.node import DIRECTORY, FILE, LINK, Attr, Entries, Node
from epochfs.vfs.views.files import files_of
from epochfs.vfs.views.stored import stored
from epochfs.vfs.views.view import ComposedFile, ManifestNode, ManifestView


class SparseDirectory(ManifestView):
    """`sparse`: opens by name, and `files/` leads here."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, name)

    def exists(self, context: Context) -> bool:
        document = self.document(context)
        return is_snapshot(document) and bool(files_of(document).files)

    def is_listed(self, context: Context) -> bool:
        return False

    def entries(self, context: Context) -> Entries:
        return _entries(self, "", context)


class SparseNode(ComposedFile):
    """`sparse/<title>`: a link to the blob that the file is, or a file put together."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, f"{self.path}/{name}")

    def attr(self, context: Context) -> Attr:
        if self.path in files_of(self.document(context)).directories:
            return Attr(DIRECTORY)
        found = self._stored(context)
        if isinstance(found, Descriptor):
            return Attr(LINK, len(self._target(found)))
        return Attr(FILE, found.size)

    def entries(self, context: Context) -> Entries:
        return _entries(self, self.path, context)

    def target(self, context: Context) -> str:
        found = self._stored(context)
        if not isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is no link")
        return self._target(found)

    def composed(self, context: Context) -> Composed:
        found = self._stored(context)
        if isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is a link")
        return found

    def _target(self, layer: Descriptor) -> str:
        up = "../" * (3 + self.path.count("/"))
        return f"{up}blobs/{layer.digest}"

    def _stored(self, context: Context) -> Descriptor | Composed:
        document, config = self.document(context), self.image(context).config
        layer = files_of(document).find(self.path)
        if not isinstance(layer, Descriptor):
            raise NotFound(f"no file {self.path}")
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        if config.size > MAX_CONFIG_BYTES:
            raise TooLarge(f"a snapshot's config is {config.size} bytes, over {MAX_CONFIG_BYTES}")
        parsed = context.listings.snapshot_config(self.repository, config.digest)
        return stored(document, layer, parsed)


def _entries(node: ManifestNode, path: str, context: Context) -> Entries:
    """List a directory of titles, with the types that these have here."""
    for name, kind in files_of(node.document(context)).listed(path).items():
        if kind != stat.S_IFDIR:
            below = SparseNode(node.repository, node.digest, f"{path}/{name}".lstrip("/"))
            kind = _kind(below, context)
        yield name, kind


def _kind(node: SparseNode, context: Context) -> int:
    """Return the type of a file; of one that does not fit, a guess, for stat(2) is the error."""
    try:
        return stat.S_IFMT(node.attr(context).mode)
    except ProtocolViolation:
        return stat.S_IFREG
