"""The merge of layers into one file system, as layer.md of the OCI Image specification says.

Layers are merged at the lookup of a path. It is searched from the top layer down, until a layer has
it or hides it. A layer hides what is below a path by a whiteout, by an opaque directory on the way,
or by something that is no directory; both kinds of whiteouts act on lower layers only. A directory
is all layers' entries in it, with the attributes of the topmost that describes it.

So a file of the top layer is found without reading the others, and where the layers may be shown
before they are verified, without reading the rest of that one. For that, an entry below a path
which a lower layer has as a link makes a directory of it; tools that unpack follow the link.

A layer is a tar, or a run of layers that are one plain file each. What a tar that makes no sense
would hide is not known: below one, an image has nothing, and an artifact, whose layers are
independent files, what the others have.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from epochfs.errors import (
    ContentMismatch,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    TooLarge,
    printable,
)
from epochfs.layers.entry import join_path
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Repository
from epochfs.vfs.merge_layers import Contents, Layer, Operation
from epochfs.vfs.node import (
    CONSTANT_TIME_NS,
    LINK,
    Attr,
    Context,
    Entries,
    ManifestView,
    Node,
    Opened,
    Xattrs,
)

_SENSELESS = (ContentMismatch, ProtocolViolation, TooLarge)
"""What a layer raises that cannot be read and never will be."""

_MAX_ALIASES = 256
"""If a file has more names than this, those that higher layers hide are counted too."""

_IMPLIED = Inode(IMPLICIT, stat.S_IFDIR | 0o755, 0, 0, 0, 0, 0, b"", {}, b"")
_NOBODYS = replace(_IMPLIED, uid=None, gid=None, time_ns=CONSTANT_TIME_NS)
"""Directories that no layer describes: of an image, and of an artifact, which states no owner."""


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


class Merged:
    """Layers merged into one file system, for one operation, which waits until `deadline`.

    `independent` layers hide nothing by being unreadable.
    """

    def __init__(
        self,
        context: Context,
        repository: Repository,
        layers: Sequence[Layer],
        *,
        independent: bool = False,
    ) -> None:
        self._layers = layers
        self._independent = independent
        self._operation = Operation(context, repository, time.monotonic() + context.timeout)
        self._contents: dict[int, Contents] = {}
        self._skipped: set[int] = set()
        self._unreadable: EpochfsError | None = None

    def find(self, path: bytes, above: int | None = None) -> Found:
        """Find a path, in the layers below the one `above` only. Raises NotFound."""
        implied, is_linked = not path, False
        for number, layer in self._readable(len(self._layers) if above is None else above):
            try:
                seen = layer.see(path)
            except _SENSELESS as error:  # of a layer that still arrives
                self._skip(number, error)
                continue
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
            return Found(0, _NOBODYS if self._independent else _IMPLIED)
        raise self._unreadable or NotFound(f"no {printable(path)} here")

    def children(self, path: bytes) -> tuple[dict[bytes, Child], EpochfsError | None]:
        """Return what is in a directory, and why that is not all. Raises NotFound."""
        self._operation = replace(self._operation, whole=True)
        for one in self._layers:
            with contextlib.suppress(*_SENSELESS):  # which is raised when the layer is read
                one.begin(self._operation)
        children: dict[bytes, Child] = {}
        hidden: set[bytes] = set()
        exists = False
        for number, layer in self._readable(len(self._layers)):
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
            whiteouts = layer.hidden(path)
            if seen.hides_below or b"" in whiteouts:
                break
            hidden |= whiteouts
        if path and not exists:
            raise self._unreadable or NotFound(f"no directory {printable(path)}")
        return children, self._unreadable

    def plain(self, path: bytes, names: Sequence[bytes]) -> dict[bytes, Found]:
        """Find some of the names in a directory: those that one look into its layer describes."""
        found: dict[bytes, Found] = {}
        wanted = set(names)
        for number, layer in self._readable(len(self._layers)):
            if not isinstance(layer, LayerIndex):
                break
            seen = layer.see(path)
            if seen.inode is not None:
                if not stat.S_ISDIR(seen.mode):
                    break
                for name, inode in layer.described(path, [*wanted]).items():
                    wanted.discard(name)
                    if inode is not None and self._is_plain(number, inode):
                        found[name] = Found(number, inode)
            hidden = layer.hidden(path)
            wanted -= hidden
            if not wanted or seen.hides_below or b"" in hidden:
                break
        return found

    def offers_xattr(self, path: bytes, name: str) -> bool:
        """Whether any file of the layer that has a path has such an attribute."""
        found = self.find(path)
        if found.inode.id == IMPLICIT:
            return False
        layer = self._read(found.layer)
        known = layer.xattr_names if isinstance(layer, LayerIndex) else None
        return known is None or name in known

    def aliases(self, found: Found) -> list[bytes]:
        """Return the names of a file that has several: in its layer, and as links from above."""
        if stat.S_ISDIR(found.inode.mode) or not self._may_have_names(found.layer):
            return []
        names = self._read(found.layer).aliases(found.inode.id) or [found.inode.first]
        for _, layer in self._above(found.layer):
            if layer.has_foreign_links and len(names) <= _MAX_ALIASES:
                names += [link for name in names for link in layer.foreign_links(name)]
                names = list(dict.fromkeys(names))
        return names if len(names) > 1 else []

    def links(self, found: Found, aliases: list[bytes]) -> int:
        """Return how many paths show a file."""
        if len(aliases) > _MAX_ALIASES:
            return len(aliases)
        return sum(self._is_at(found, name) for name in aliases) or 1

    def open(self, found: Found, key: Hashable) -> Opened:
        """Open a regular file; `key` is what the kernel knows it by."""
        return self._layers[found.layer].open(self._operation, found.inode, key)

    def content(self, found: Found) -> Descriptor | None:
        """Describe the blob that a file is; None if it is none."""
        return self._layers[found.layer].content(found.inode)

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

    def _is_plain(self, layer: int, inode: Inode) -> bool:
        """Whether what a layer has is a file or directory that has no other name."""
        return stat.S_ISDIR(inode.mode) or bool(inode.mode and not self._may_have_names(layer))

    def _may_have_names(self, layer: int) -> bool:
        """Whether a file of a layer might have several names."""
        has_aliases = self._read(layer).has_aliases
        return has_aliases or any(one.has_foreign_links for _, one in self._above(layer))

    def _is_at(self, found: Found, path: bytes) -> bool:
        try:
            there = self.find(path)
        except NotFound:
            return False
        return (there.layer, there.inode.id) == (found.layer, found.inode.id)

    def _above(self, layer: int) -> Iterator[tuple[int, Contents]]:
        """Yield the layers above one that can be read, each with its number, from the bottom."""
        for number in range(layer + 1, len(self._layers)):
            if number not in self._skipped:
                yield number, self._read(number)

    def _readable(self, above: int) -> Iterator[tuple[int, Contents]]:
        """Yield the layers below a number, each with its own, from the top.

        One that makes no sense is left out where layers are independent, and else raised.
        """
        for number in reversed(range(above)):
            try:
                yield number, self._read(number)
            except _SENSELESS as error:
                self._skip(number, error)

    def _skip(self, number: int, error: EpochfsError) -> None:
        if not self._independent:
            raise error
        self._skipped.add(number)
        self._unreadable = self._unreadable or error

    def _read(self, number: int) -> Contents:
        if number not in self._contents:
            self._contents[number] = self._layers[number].contents(self._operation)
        return self._contents[number]


def _identity(found: Found, aliases: list[bytes], path: bytes) -> bytes:
    """Return what tells a file at a path from all others: all its names have the same.

    It is the path, unless the file has several names; then it is no path.
    """
    return b"%d//%s" % (found.layer, found.inode.first) if aliases else path


@dataclass(frozen=True)
class MergedNode(ManifestView):
    """A view that merges layers, and every place below it: `path` leads there from its root."""

    path: bytes = b""

    foreign = True

    def merged(self, context: Context) -> Merged:
        """Return the layers for one operation. Raises NotFound where there is no such view."""
        raise NotImplementedError

    def child(self, name: str) -> Node:
        return replace(self, path=join_path(self.path, os.fsencode(name)))

    def attr(self, context: Context) -> Attr:
        merged = self.merged(context)
        found = merged.find(self.path)
        aliases = merged.aliases(found)
        identity = _identity(found, aliases, self.path)
        shown = "" if identity == self.path else self._shown(identity)
        return _attr(found.inode, merged.links(found, aliases), shown)

    def known_attrs(self, names: Sequence[str], context: Context) -> dict[str, Attr]:
        found = self.merged(context).plain(self.path, [os.fsencode(name) for name in names])
        return {os.fsdecode(name): _attr(one.inode) for name, one in found.items()}

    def entries(self, context: Context) -> Entries:
        return self.listed(context)[0]

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        children, error = self.merged(context).children(self.path)
        identities = {
            os.fsdecode(name): self._shown(child.identity)
            for name, child in children.items()
            if child.identity != join_path(self.path, name)
        }
        return _named(children, error), identities

    def is_fixed(self, context: Context) -> bool:
        return self.is_known(context)

    def target(self, context: Context) -> str:
        return os.fsdecode(self.merged(context).find(self.path).inode.link)

    def content(self, context: Context) -> Descriptor | None:
        merged = self.merged(context)
        return merged.content(merged.find(self.path))

    def offers_xattr(self, name: str, context: Context) -> bool:
        return self.merged(context).offers_xattr(self.path, name)

    def xattrs(self, context: Context) -> Xattrs:
        return self.merged(context).find(self.path).inode.xattrs

    def open(self, context: Context) -> Opened:
        """Open the file; devices and FIFOs can only be looked at."""
        merged = self.merged(context)
        found = merged.find(self.path)
        if not stat.S_ISREG(found.inode.mode):
            raise Denied("devices and FIFOs of an image cannot be opened")
        return merged.open(found, self)

    def _shown(self, identity: bytes) -> str:
        """Return an identity among layers as one in the tree, where it is no path."""
        kind = type(self).__name__
        return f"{kind} of {self.repository}@{self.digest}: {os.fsdecode(identity)}"


def _attr(inode: Inode, links: int = 1, identity: str = "") -> Attr:
    is_link = stat.S_ISLNK(inode.mode)
    return Attr(
        # A link's permissions are ignored, and Linux always shows these.
        LINK if is_link else inode.mode,
        len(inode.link) if is_link else inode.size,
        inode.time_ns,
        uid=inode.uid,
        gid=inode.gid,
        rdev=inode.rdev,
        links=links,
        identity=identity,
    )


def _named(
    children: Mapping[bytes, Child], error: EpochfsError | None
) -> Iterator[tuple[str, int]]:
    for name, child in children.items():
        yield os.fsdecode(name), child.kind
    if error is not None:
        raise error
