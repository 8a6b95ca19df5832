"""`sparse/`: the files of a snapshot as the virtual machine had them, holes and all. Not listed.

What Epoch stores of a snapshot is told in `artifacts`. Every question here needs the snapshot's
config, which is a blob; so nothing that a walk of the tree comes by asks one.
"""

from __future__ import annotations

import stat

from epochfs.artifacts import SparseMap, has_sparse_files, sparse_map
from epochfs.assembly import Assembly, Extent
from epochfs.errors import NotFound
from epochfs.listings import Listings
from epochfs.manifests import Descriptor
from epochfs.node import DIRECTORY, FILE, LINK, Attr, Entries, Node
from epochfs.views.files import files_of
from epochfs.views.view import AssembledFile, ManifestNode, ManifestView


class SparseDirectory(ManifestView):
    """`sparse`: opens by name, and `files/` leads here."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, name)

    def exists(self, listings: Listings) -> bool:
        document = self.document(listings)
        return has_sparse_files(document) and bool(files_of(document).files)

    def is_listed(self, listings: Listings) -> bool:
        return False

    def entries(self, listings: Listings) -> Entries:
        return _entries(self, "", listings)


class SparseNode(AssembledFile):
    """`sparse/<title>`: a file with holes, at its true size; a link to the blob of any other."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, f"{self.path}/{name}")

    def attr(self, listings: Listings) -> Attr:
        if self.path in files_of(self.document(listings)).directories:
            return Attr(DIRECTORY)
        found = self._map(listings)
        return Attr(LINK, len(self.target(listings))) if found is None else Attr(FILE, found.size)

    def entries(self, listings: Listings) -> Entries:
        return _entries(self, self.path, listings)

    def target(self, listings: Listings) -> str:
        up = "../" * (3 + self.path.count("/"))
        return f"{up}blobs/{self._layer(listings).digest}"

    def assembly(self, listings: Listings) -> Assembly:
        found, layer = self._map(listings), self._layer(listings)
        if found is None:
            raise NotFound(f"{self.path} is a link")
        extents = []
        stored = 0
        for offset, length in found.pieces:
            extents.append(Extent(offset, offset + length, layer.digest, layer.size, stored))
            stored += length
        return Assembly(found.size, tuple(extents))

    def _layer(self, listings: Listings) -> Descriptor:
        shown = files_of(self.document(listings)).find(self.path)
        if not isinstance(shown, Descriptor):
            raise NotFound(f"no file {self.path}")
        return shown

    def _map(self, listings: Listings) -> SparseMap | None:
        """Return where the file has its data; None where it is stored as it is."""
        layer, config = self._layer(listings), self.image(listings).config
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        return sparse_map(listings.content(self.repository, config.digest), layer)


def _entries(node: ManifestNode, path: str, listings: Listings) -> Entries:
    """List a directory of titles, with the types that these have here."""
    for name, kind in files_of(node.document(listings)).listed(path).items():
        if kind != stat.S_IFDIR:
            below = SparseNode(node.repository, node.digest, f"{path}/{name}".lstrip("/"))
            kind = stat.S_IFMT(below.attr(listings).mode)
        yield name, kind
