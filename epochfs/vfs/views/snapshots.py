"""`sparse/`: the files of a snapshot as the virtual machine had them, holes and all. Not listed.

What Epoch stores of a snapshot is told in `stored`. Every question here needs the snapshot's
config, which is a blob; so nothing that a walk of the tree comes by asks one.
"""

from __future__ import annotations

import stat

from epochfs.errors import NotFound, ProtocolViolation, TooLarge
from epochfs.metadata.listings import Listings
from epochfs.oci.kinds import is_snapshot
from epochfs.oci.manifests import Descriptor
from epochfs.oci.snapshot_config import MAX_CONFIG_BYTES
from epochfs.vfs.assembly import Made
from epochfs.vfs.node import DIRECTORY, FILE, LINK, Attr, Entries, Node
from epochfs.vfs.views.files import files_of
from epochfs.vfs.views.stored import stored
from epochfs.vfs.views.view import AssembledFile, ManifestNode, ManifestView


class SparseDirectory(ManifestView):
    """`sparse`: opens by name, and `files/` leads here."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, name)

    def exists(self, listings: Listings) -> bool:
        document = self.document(listings)
        return is_snapshot(document) and bool(files_of(document).files)

    def is_listed(self, listings: Listings) -> bool:
        return False

    def entries(self, listings: Listings) -> Entries:
        return _entries(self, "", listings)


class SparseNode(AssembledFile):
    """`sparse/<title>`: a link to the blob that the file is, or a file put together."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, f"{self.path}/{name}")

    def attr(self, listings: Listings) -> Attr:
        if self.path in files_of(self.document(listings)).directories:
            return Attr(DIRECTORY)
        found = self._stored(listings)
        if isinstance(found, Descriptor):
            return Attr(LINK, len(self._target(found)))
        return Attr(FILE, found.size)

    def entries(self, listings: Listings) -> Entries:
        return _entries(self, self.path, listings)

    def target(self, listings: Listings) -> str:
        found = self._stored(listings)
        if not isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is no link")
        return self._target(found)

    def made(self, listings: Listings) -> Made:
        found = self._stored(listings)
        if isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is a link")
        return found

    def _target(self, layer: Descriptor) -> str:
        up = "../" * (3 + self.path.count("/"))
        return f"{up}blobs/{layer.digest}"

    def _stored(self, listings: Listings) -> Descriptor | Made:
        document, config = self.document(listings), self.image(listings).config
        layer = files_of(document).find(self.path)
        if not isinstance(layer, Descriptor):
            raise NotFound(f"no file {self.path}")
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        if config.size > MAX_CONFIG_BYTES:
            raise TooLarge(f"a snapshot's config is {config.size} bytes, over {MAX_CONFIG_BYTES}")
        parsed = listings.snapshot_config(self.repository, config.digest)
        return stored(document, layer, parsed)


def _entries(node: ManifestNode, path: str, listings: Listings) -> Entries:
    """List a directory of titles, with the types that these have here."""
    for name, kind in files_of(node.document(listings)).listed(path).items():
        if kind != stat.S_IFDIR:
            below = SparseNode(node.repository, node.digest, f"{path}/{name}".lstrip("/"))
            kind = _kind(below, listings)
        yield name, kind


def _kind(node: SparseNode, listings: Listings) -> int:
    """Return the type of a file; of one that does not fit, a guess, for stat(2) is the error."""
    try:
        return stat.S_IFMT(node.attr(listings).mode)
    except ProtocolViolation:
        return stat.S_IFREG
