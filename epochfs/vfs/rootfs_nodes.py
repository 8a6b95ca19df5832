"""What the tree shows of one place in a root filesystem: attributes, names, targets, bytes."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from functools import cached_property

from epochfs.errors import Denied, NotFound
from epochfs.layers.content import LayerFile
from epochfs.layers.entry import join_path
from epochfs.layers.store import Layers
from epochfs.metadata.listings import Listings
from epochfs.vfs.merge import Child, Found, Image
from epochfs.vfs.node import LINK, Attr, Entries, Node, Xattrs
from epochfs.vfs.views.rootfs import RootfsPlace


class Rootfs:
    """The root filesystems of a registry's images. `timeout` bounds each operation, in seconds."""

    def __init__(self, layers: Layers, timeout: float) -> None:
        self._layers = layers
        self._timeout = timeout

    def node(self, place: RootfsPlace, listings: Listings) -> RootfsNode:
        """Return what is to be known of a place. Raises NotFound where the image has no root."""
        if not place.exists(listings):
            raise NotFound(f"{place.digest} is no container image")
        descriptors = place.layers(listings)
        deadline = time.monotonic() + self._timeout
        return RootfsNode(place, Image(self._layers, place.repository, descriptors, deadline))

    def close(self) -> None:
        """Give up what is being read; who waits for it gets an error."""
        self._layers.close()


class RootfsNode(Node):
    """A place in the root filesystem of an image. Made for one operation."""

    foreign = True

    def __init__(self, place: RootfsPlace, image: Image) -> None:
        self._place = place
        self._image = image
        self._path = os.fsencode("/".join(place.names))

    @cached_property
    def _found(self) -> Found:
        return self._image.find(self._path)

    @cached_property
    def _children(self) -> dict[bytes, Child]:
        return self._image.children(self._path)

    def attr(self, listings: Listings) -> Attr:
        inode = self._found.inode
        identity = self._image.identity(self._found, self._path)
        is_link = stat.S_ISLNK(inode.mode)
        return Attr(
            # A link's permissions are never looked at, and Linux always shows them so.
            LINK if is_link else inode.mode,
            len(inode.link) if is_link else inode.size,
            inode.time_ns,
            uid=inode.uid,
            gid=inode.gid,
            rdev=inode.rdev,
            links=len(self._image.names_of(self._found)) or 1,
            identity="" if identity == self._path else self._shown(identity),
        )

    def entries(self, listings: Listings) -> Entries:
        return ((os.fsdecode(name), child.kind) for name, child in self._children.items())

    def identities(self, listings: Listings) -> Mapping[str, str]:
        return {
            os.fsdecode(name): self._shown(child.identity)
            for name, child in self._children.items()
            if child.identity != join_path(self._path, name)
        }

    def target(self, listings: Listings) -> str:
        return os.fsdecode(self._found.inode.link)

    def xattrs(self, listings: Listings) -> Xattrs:
        return self._found.inode.xattrs

    def open(self) -> LayerFile:
        """Open the file; a device or FIFO is only shown."""
        if not stat.S_ISREG(self._found.inode.mode):
            raise Denied("a device of an image is not opened")
        return self._image.open(self._found)

    def _shown(self, identity: bytes) -> str:
        """Return an identity in an image as one in the tree, where it is no path."""
        return f"rootfs of {self._place.repository}@{self._place.digest}: {os.fsdecode(identity)}"
