"""`rootfs/`: the root filesystem of a container image. Here, which images have one, and which path
is meant; what is there, `epochfs.layers` tells.
"""

from __future__ import annotations

from dataclasses import dataclass

from epochfs.metadata.listings import Listings
from epochfs.oci.kinds import CONTAINER_IMAGE, kind_of
from epochfs.oci.manifests import Descriptor, Manifest
from epochfs.vfs.node import Node
from epochfs.vfs.views.view import ManifestView

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_TAR = ".tar"


@dataclass(frozen=True, slots=True)
class RootfsPlace(ManifestView):
    """`rootfs`, and every place below it: `names` lead there from the root."""

    names: tuple[str, ...] = ()

    foreign = True

    def child(self, name: str) -> Node:
        return RootfsPlace(self.repository, self.digest, (*self.names, name))

    def layers(self, listings: Listings) -> tuple[Descriptor, ...]:
        """Return the layers, from the bottom up."""
        return self.image(listings).layers

    def exists(self, listings: Listings) -> bool:
        document = self.document(listings)
        return (
            isinstance(document.view, Manifest)
            and kind_of(document) == CONTAINER_IMAGE
            and all(_is_changeset(layer) for layer in document.view.layers)
        )

    def is_listed(self, listings: Listings) -> bool:
        return listings.shows_rootfs and self.exists(listings)


def _is_changeset(layer: Descriptor) -> bool:
    """Whether a layer is a tar of changes to a file system (layer.md; Docker's schema 2)."""
    return layer.media_type.startswith(_LAYERS) and _TAR in layer.media_type
