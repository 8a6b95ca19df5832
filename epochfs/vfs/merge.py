"""The merge of the layers of an image, as layer.md says, at the lookup of a path.

A path is searched from the top layer down, until a layer has it or hides it. A layer hides what is
below a path by a whiteout, by an opaque directory on the way, or by something that is no directory;
both kinds of whiteouts act on lower layers only. A directory is all layers' entries in it, with
the attributes of the topmost that describes it.

So a file of the top layer is found without reading the others. For that, an entry below a path
which a lower layer has as a link makes a directory of it; tools that unpack follow the link.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from epochfs.errors import NotFound, printable
from epochfs.layers.entry import join_path
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex
from epochfs.layers.layer_store import LayerFile, Layers
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Repository

_MAX_ALIASES = 256
"""Of how many names of one file it is asked whether a higher layer hides them."""

_IMPLIED = Inode(IMPLICIT, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, b"", {}, b"")


@dataclass(frozen=True, slots=True)
class Found:
    """A file of an image: its inode in the layer of that number, counted from the bottom."""

    layer: int
    inode: Inode


@dataclass(frozen=True, slots=True)
class Child:
    """A name in a directory: its file type, and its identity (see `Image.identity`)."""

    kind: int
    identity: bytes


class Image:
    """The layers of one image, for one operation, which waits for them until `deadline`."""

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

    def find(self, path: bytes) -> Found:
        """Find a path. Raises NotFound."""
        return self._find(path, len(self._descriptors))

    def children(self, path: bytes) -> dict[bytes, Child]:
        """Return what is in a directory. Raises NotFound."""
        self._layers.begin(self._repository, self._descriptors)
        children: dict[bytes, Child] = {}
        hidden: set[bytes] = set()
        exists = False
        for number in self._downwards(len(self._descriptors)):
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

    def names_of(self, found: Found) -> list[bytes]:
        """Return the paths that a file of several names is seen at; none for one of one name.

        Where there are very many of them, all that layers give it count as seen, and no more are
        looked for.
        """
        names = self._given_names(found)
        if len(names) > _MAX_ALIASES:
            return names
        return [name for name in names if self._is_at(found, name)]

    def open(self, found: Found) -> LayerFile:
        """Open a regular file."""
        layer = self._descriptors[found.layer]
        return self._layers.open(self._repository, layer, found.inode, self._deadline)

    def _find(self, path: bytes, above: int) -> Found:
        """Find a path in the layers below the one of a number."""
        implied, is_linked = not path, False
        for number in self._downwards(above):
            layer = self._index(number)
            seen = layer.see(path)
            if seen.inode == IMPLICIT:
                implied = True
            elif seen.inode is not None:
                inode = layer.inode(seen.inode)
                if implied and not stat.S_ISDIR(seen.mode):
                    break
                if seen.mode == 0:
                    # What it is another name of is in the layers below, and is no directory.
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

    def _child(self, layer: int, path: bytes, mode: int) -> Child | None:
        """Describe a name in a directory; None for a hard link to what is not there."""
        if stat.S_ISDIR(mode):
            return Child(stat.S_IFDIR, path)
        if mode and not self._may_have_names(layer):
            return Child(stat.S_IFMT(mode), path)
        try:
            found = self._find(path, layer + 1)
        except NotFound:
            return None
        return Child(stat.S_IFMT(found.inode.mode), self.identity(found, path))

    def identity(self, found: Found, path: bytes) -> bytes:
        """Return what a file at a path is told from all others by: all its names have the same.

        It is the path, unless the file has several names; and no other file's path then.
        """
        if not self._given_names(found):
            return path
        return b"%d//%s" % (found.layer, found.inode.first)

    def _may_have_names(self, layer: int) -> bool:
        """Whether a file of a layer might have several names."""
        above = range(layer + 1, len(self._descriptors))
        return self._index(layer).has_aliases or any(
            self._index(number).has_foreign_links for number in above
        )

    def _given_names(self, found: Found) -> list[bytes]:
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

    def _is_at(self, found: Found, path: bytes) -> bool:
        try:
            there = self.find(path)
        except NotFound:
            return False
        return (there.layer, there.inode.id) == (found.layer, found.inode.id)

    def _downwards(self, above: int) -> range:
        return range(above - 1, -1, -1)

    def _index(self, number: int) -> LayerIndex:
        return self._layers.index(self._repository, self._descriptors[number], self._deadline)
