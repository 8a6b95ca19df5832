"""`rootfs/`: the root filesystem of a container image, merged from its layers.

The layers are merged as layer.md of the OCI Image specification says, at the lookup of a path. A
path is searched from the top layer down, until a layer has it or hides it. A layer hides what is
below a path by a whiteout, by an opaque directory on the way, or by something that is no directory;
both kinds of whiteouts act on lower layers only. A directory is all layers' entries in it, with
the attributes of the topmost that describes it.

So a file of the top layer is found without reading the others. For that, an entry below a path
which a lower layer has as a link makes a directory of it; tools that unpack follow the link.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from epochfs.errors import Denied, NotFound, printable
from epochfs.layers.entry import join_path
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex
from epochfs.layers.layer_store import LayerFile, Layers
from epochfs.oci.kinds import CONTAINER_IMAGE, kind_of
from epochfs.oci.manifests import Descriptor, Document, Manifest
from epochfs.oci.names import Repository
from epochfs.vfs.node import (
    LINK,
    REMEMBERED,
    Attr,
    Context,
    Entries,
    ManifestView,
    Node,
    Opened,
    Xattrs,
)

_LAYERS = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_TAR = ".tar"

_MAX_ALIASES = 256
"""If a file has more names than this, those that higher layers hide are counted too."""

_IMPLIED = Inode(IMPLICIT, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, b"", {}, b"")


@dataclass(frozen=True, slots=True)
class Found:
    """A file of an image: its inode, and the number of its layer, counted from the bottom."""

    layer: int
    inode: Inode


@dataclass(frozen=True, slots=True)
class Child:
    """A name in a directory: its file type, and its identity (see `_identity`)."""

    kind: int
    identity: bytes


class Image:
    """The merged layers of one image, for one operation, which waits for them until `deadline`."""

    def __init__(
        self,
        layers: Layers,
        repository: Repository,
        descriptors: tuple[Descriptor, ...],
        deadline: float,
    ) -> None:
        self._layers = layers
        self._repository = repository
        self._descriptors = descriptors
        self._deadline = deadline
        self._indexes: dict[int, LayerIndex] = {}

    def find(self, path: bytes, above: int | None = None) -> Found:
        """Find a path, in the layers below the one `above` only. Raises NotFound."""
        implied, is_linked = not path, False
        for number in reversed(range(len(self._descriptors) if above is None else above)):
            layer = self._index(number)
            seen = layer.see(path)
            if seen.inode == IMPLICIT:
                implied = True
            elif seen.inode is not None:
                inode = layer.inode(seen.inode)
                if implied and not stat.S_ISDIR(seen.mode):
                    break
                if seen.mode == 0:
                    # A link to what is in the layers below, and is no directory.
                    path, is_linked = inode.link, True
                    continue
                if is_linked and stat.S_ISDIR(seen.mode):
                    break
                return Found(number, inode)
            if seen.hides_below:
                break
        if implied and not is_linked:
            return Found(0, _IMPLIED)
        raise NotFound(f"no {printable(path)} in the image")

    def children(self, path: bytes) -> dict[bytes, Child]:
        """Return what is in a directory. Raises NotFound."""
        self._layers.begin(self._repository, self._descriptors)
        children: dict[bytes, Child] = {}
        hidden: set[bytes] = set()
        exists = False
        for number in reversed(range(len(self._descriptors))):
            layer = self._index(number)
            seen = layer.see(path)
            if seen.inode is not None:
                if not stat.S_ISDIR(seen.mode):
                    break
                exists = True
                for name, mode in layer.children(path):
                    if name not in hidden and name not in children:
                        child = self._child(number, join_path(path, name), mode)
                        if child is not None:
                            children[name] = child
                        else:
                            hidden.add(name)
            hidden |= layer.hidden(path)
            if seen.hides_below or layer.is_opaque(path):
                break
        if path and not exists:
            raise NotFound(f"no directory {printable(path)} in the image")
        return children

    def aliases(self, found: Found) -> list[bytes]:
        """Return the names of a file that has several: in its layer, and as links from above."""
        if stat.S_ISDIR(found.inode.mode) or not self._may_have_names(found.layer):
            return []
        names = self._index(found.layer).aliases(found.inode.id) or [found.inode.first]
        for number in range(found.layer + 1, len(self._descriptors)):
            layer = self._index(number)
            if layer.has_foreign_links and len(names) <= _MAX_ALIASES:
                names += [link for name in names for link in layer.foreign_links(name)]
                names = list(dict.fromkeys(names))
        return names if len(names) > 1 else []

    def links(self, found: Found, aliases: list[bytes]) -> int:
        """Return how many paths show a file."""
        if len(aliases) > _MAX_ALIASES:
            return len(aliases)
        return sum(self._is_at(found, name) for name in aliases) or 1

    def open(self, found: Found) -> LayerFile:
        """Open a regular file."""
        layer = self._descriptors[found.layer]
        return self._layers.open(self._repository, layer, found.inode, self._deadline)

    def _child(self, layer: int, path: bytes, mode: int) -> Child | None:
        """Describe a name in a directory; None for a hard link whose target is not there."""
        if stat.S_ISDIR(mode):
            return Child(stat.S_IFDIR, path)
        if mode and not self._may_have_names(layer):
            return Child(stat.S_IFMT(mode), path)
        try:
            found = self.find(path, layer + 1)
        except NotFound:
            return None
        return Child(stat.S_IFMT(found.inode.mode), _identity(found, self.aliases(found), path))

    def _may_have_names(self, layer: int) -> bool:
        """Whether a file of a layer might have several names."""
        above = range(layer + 1, len(self._descriptors))
        return self._index(layer).has_aliases or any(
            self._index(number).has_foreign_links for number in above
        )

    def _is_at(self, found: Found, path: bytes) -> bool:
        try:
            there = self.find(path)
        except NotFound:
            return False
        return (there.layer, there.inode.id) == (found.layer, found.inode.id)

    def _index(self, number: int) -> LayerIndex:
        index = self._indexes.get(number)
        if index is None:
            layer = self._descriptors[number]
            index = self._layers.index(self._repository, layer, self._deadline)
            self._indexes[number] = index
        return index


def _identity(found: Found, aliases: list[bytes], path: bytes) -> bytes:
    """Return what tells a file from all others: all its names have the same identity.

    It is the path, unless the file has several names; then it is no path.
    """
    return b"%d//%s" % (found.layer, found.inode.first) if aliases else path


@lru_cache(maxsize=REMEMBERED)
def _layers_of(document: Document) -> tuple[Descriptor, ...] | None:
    """Return the layers of a container image; None for any other manifest.

    Each is a tar of changes to a file system (layer.md; Docker's schema 2).
    """
    view = document.view
    if not isinstance(view, Manifest) or kind_of(document) != CONTAINER_IMAGE:
        return None
    types = (layer.media_type for layer in view.layers)
    return view.layers if all(one.startswith(_LAYERS) and _TAR in one for one in types) else None


@dataclass(frozen=True)
class RootfsNode(ManifestView):
    """`rootfs`, and every place below it: `path` leads there from the root."""

    path: bytes = b""

    foreign = True

    def child(self, name: str) -> Node:
        path = join_path(self.path, os.fsencode(name))
        return RootfsNode(self.repository, self.digest, path)

    def exists(self, context: Context) -> bool:
        return _layers_of(self.document(context)) is not None

    def is_listed(self, context: Context) -> bool:
        return context.listings.shows_rootfs and self.exists(context)

    def attr(self, context: Context) -> Attr:
        image = self._image(context)
        found = image.find(self.path)
        inode, aliases = found.inode, image.aliases(found)
        identity = _identity(found, aliases, self.path)
        is_link = stat.S_ISLNK(inode.mode)
        return Attr(
            # A link's permissions are ignored, and Linux always shows these.
            LINK if is_link else inode.mode,
            len(inode.link) if is_link else inode.size,
            inode.time_ns,
            uid=inode.uid,
            gid=inode.gid,
            rdev=inode.rdev,
            links=image.links(found, aliases),
            identity="" if identity == self.path else self._shown(identity),
        )

    def entries(self, context: Context) -> Entries:
        return self.listed(context)[0]

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        children = self._image(context).children(self.path)
        entries: list[tuple[str, int]] = []
        identities: dict[str, str] = {}
        for encoded, child in children.items():
            name = os.fsdecode(encoded)
            entries.append((name, child.kind))
            if child.identity != join_path(self.path, encoded):
                identities[name] = self._shown(child.identity)
        return entries, identities

    def target(self, context: Context) -> str:
        return os.fsdecode(self._image(context).find(self.path).inode.link)

    def xattrs(self, context: Context) -> Xattrs:
        return self._image(context).find(self.path).inode.xattrs

    def open(self, context: Context) -> Opened:
        """Open the file; devices and FIFOs can only be looked at."""
        image = self._image(context)
        found = image.find(self.path)
        if not stat.S_ISREG(found.inode.mode):
            raise Denied("devices and FIFOs of an image cannot be opened")
        file = image.open(found)
        return Opened(file, context.kernel.keeps_pages(self, verified=file.verified))

    def _image(self, context: Context) -> Image:
        """Return the layers for one operation. Raises NotFound where the image has no root."""
        layers = _layers_of(self.document(context))
        if layers is None:
            raise NotFound(f"{self.digest} is not a container image")
        deadline = time.monotonic() + context.timeout
        return Image(context.layers, self.repository, layers, deadline)

    def _shown(self, identity: bytes) -> str:
        """Return an identity in an image, if it is no path, as one in the tree."""
        return f"rootfs of {self.repository}@{self.digest}: {os.fsdecode(identity)}"
