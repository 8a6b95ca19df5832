"""`rootfs/`: the root filesystem of a container image, merged from its layers."""

from __future__ import annotations

from functools import lru_cache

from epochfs.errors import NotFound
from epochfs.layers.soci import vouched
from epochfs.oci.kinds import CONTAINER_IMAGE, kind_of
from epochfs.oci.manifests import Document, Manifest
from epochfs.vfs.merge_layers import TarLayer
from epochfs.vfs.merged import Merged, MergedNode
from epochfs.vfs.node import REMEMBERED, Context

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")


@lru_cache(maxsize=REMEMBERED)
def layers_of(document: Document, *, believes_soci: bool) -> tuple[TarLayer, ...] | None:
    """Return the layers of a container image; None for what is none.

    Each is a tar of changes to a file system (layer.md; Docker's schema 2). `believes_soci`: also a
    SOCI index that only refers to the image.
    """
    view = document.view
    if not isinstance(view, Manifest) or kind_of(document) != CONTAINER_IMAGE:
        return None
    types = (layer.media_type for layer in view.layers)
    if not all(one.startswith(_LAYERS) and ".tar" in one for one in types):
        return None
    subject = document.digest if believes_soci else None
    return tuple(TarLayer(vouched(layer, view, subject)) for layer in view.layers)


class RootfsNode(MergedNode):
    """`rootfs`, and every place below it."""

    def exists(self, context: Context) -> bool:
        return self._layers(context) is not None

    def is_listed(self, context: Context) -> bool:
        return context.listings.shows_rootfs and self.exists(context)

    def merged(self, context: Context) -> Merged:
        layers = self._layers(context)
        if layers is None:
            raise NotFound(f"{self.digest} is not a container image")
        return Merged(context, self.repository, layers)

    def _layers(self, context: Context) -> tuple[TarLayer, ...] | None:
        document = self.document(context)
        return layers_of(document, believes_soci=context.listings.believes_soci)
