"""`rootfs/`: the root filesystem of a container image: which images have one, and what is shown of
a place in it. Which layer a place is seen in, `merge` tells.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass

from epochfs.errors import Denied, NotFound
from epochfs.layers.entry import join_path
from epochfs.oci.kinds import CONTAINER_IMAGE, kind_of
from epochfs.oci.manifests import Descriptor, Manifest
from epochfs.vfs.context import Context
from epochfs.vfs.merge import Image
from epochfs.vfs.node import LINK, Attr, Entries, Node, Opened, Xattrs
from epochfs.vfs.views.view import ManifestView

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_TAR = ".tar"


@dataclass(frozen=True, slots=True)
class RootfsNode(ManifestView):
    """`rootfs`, and every place below it: `names` lead there from the root."""

    names: tuple[str, ...] = ()

    foreign = True

    def child(self, name: str) -> Node:
        return RootfsNode(self.repository, self.digest, (*self.names, name))

    def exists(self, context: Context) -> bool:
        document = self.document(context)
        return (
            isinstance(document.view, Manifest)
            and kind_of(document) == CONTAINER_IMAGE
            and all(_is_changeset(layer) for layer in document.view.layers)
        )

    def is_listed(self, context: Context) -> bool:
        return context.listings.shows_rootfs and self.exists(context)

    def attr(self, context: Context) -> Attr:
        image = self._image(context)
        found = image.find(self._path)
        inode, identity = found.inode, image.identity(found, self._path)
        is_link = stat.S_ISLNK(inode.mode)
        return Attr(
            # A link's permissions are never looked at, and Linux always shows them so.
            LINK if is_link else inode.mode,
            len(inode.link) if is_link else inode.size,
            inode.time_ns,
            uid=inode.uid,
            gid=inode.gid,
            rdev=inode.rdev,
            links=len(image.names_of(found)) or 1,
            identity="" if identity == self._path else self._shown(identity),
        )

    def entries(self, context: Context) -> Entries:
        return self.listed(context)[0]

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        children = self._image(context).children(self._path)
        identities = {
            os.fsdecode(name): self._shown(child.identity)
            for name, child in children.items()
            if child.identity != join_path(self._path, name)
        }
        return ((os.fsdecode(name), child.kind) for name, child in children.items()), identities

    def target(self, context: Context) -> str:
        return os.fsdecode(self._image(context).find(self._path).inode.link)

    def xattrs(self, context: Context) -> Xattrs:
        return self._image(context).find(self._path).inode.xattrs

    def open(self, context: Context) -> Opened:
        """Open the file; a device or FIFO is only shown."""
        image = self._image(context)
        found = image.find(self._path)
        if not stat.S_ISREG(found.inode.mode):
            raise Denied("a device of an image is not opened")
        file = image.open(found)
        return Opened(file, context.kernel.keeps_pages(self, verified=file.verified))

    @property
    def _path(self) -> bytes:
        return os.fsencode("/".join(self.names))

    def _image(self, context: Context) -> Image:
        """Return the layers for one operation. Raises NotFound where the image has no root."""
        if not self.exists(context):
            raise NotFound(f"{self.digest} is no container image")
        deadline = time.monotonic() + context.timeout
        layers = self.image(context).layers
        return Image(context.layers, self.repository, layers, deadline)

    def _shown(self, identity: bytes) -> str:
        """Return an identity in an image as one in the tree, where it is no path."""
        return f"rootfs of {self.repository}@{self.digest}: {os.fsdecode(identity)}"


def _is_changeset(layer: Descriptor) -> bool:
    """Whether a layer is a tar of changes to a file system (layer.md; Docker's schema 2)."""
    return layer.media_type.startswith(_LAYERS) and _TAR in layer.media_type
