"""Layers as they are merged into one file system: tars, and files that are a layer each."""

from __future__ import annotations

import stat
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, replace

from epochfs.errors import EpochfsError, fresh
from epochfs.layers.arriving import Arriving
from epochfs.layers.entry import join_path, split_path
from epochfs.layers.index import IMPLICIT, Inode, LayerIndex, Seen
from epochfs.oci.artifact_files import FileMetadata, file_metadata
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Repository
from epochfs.vfs.composed import Composed
from epochfs.vfs.node import CONSTANT_TIME_NS, Context, Opened, open_blob, open_composed


@dataclass(frozen=True, slots=True)
class Operation:
    """An operation on layers of a repository, which waits for them until `deadline` (monotonic).

    One that is `whole` needs all that they have: nothing is known before a layer's end.
    """

    context: Context
    repository: Repository
    deadline: float
    whole: bool = False


@dataclass(frozen=True)
class TarLayer:
    """A layer that is a tar, unpacked into a directory; that is the root for an image's."""

    descriptor: Descriptor
    directory: bytes = b""

    def begin(self, operation: Operation) -> None:
        """Begin to read what `contents` will return."""
        operation.context.layers.begin(operation.repository, [self.descriptor])

    def contents(self, operation: Operation) -> Contents:
        """Return what the layer has. Raises DeadlineExceeded."""
        layers = operation.context.layers
        get = layers.index if operation.whole else layers.contents
        index = get(operation.repository, self.descriptor, operation.deadline)
        return _Moved(index, self.directory) if self.directory else index

    def open(self, operation: Operation, inode: Inode, key: Hashable) -> Opened:
        """Open a regular file of the layer; `key` is what the kernel knows it by."""
        context, repository = operation.context, operation.repository
        file = context.layers.open(repository, self.descriptor, inode, operation.deadline)
        return Opened(file, context.kernel.keeps_pages(key, verified=file.verified))

    def content(self, inode: Inode) -> Descriptor | None:
        """Describe the blob that a file of the layer is; None if it is none."""
        return None


PlainFile = Descriptor | Composed | EpochfsError
"""A file that is a blob, or is composed of blobs, or of which is told why it is neither."""


class PlainFiles:
    """Plain files as one layer, and its contents: of two at one path the later wins.

    A file takes the place of a directory, and a directory that of a file; what it hides is gone.
    """

    has_aliases = False
    has_foreign_links = False

    def __init__(self, files: Iterable[tuple[bytes, PlainFile]]) -> None:
        """`files` have their paths, the lowest layer's first."""
        found: dict[bytes, PlainFile] = {}
        taken: set[bytes] = set()
        above: set[bytes] = set()
        for path, file in reversed([*files]):
            parents = [*_parents(path)]
            if path not in taken and path not in above and taken.isdisjoint(parents):
                found[path] = file
            taken.add(path)
            above.update(parents)
        self._paths = [*reversed(found)]
        self._numbers = {path: number for number, path in enumerate(self._paths, start=1)}
        self._files = [found[path] for path in self._paths]
        self._children: dict[bytes, dict[bytes, int]] = {b"": {}}
        for path in self._paths:
            below, kind = path, stat.S_IFREG
            for parent in _parents(path):
                self._children.setdefault(parent, {})[split_path(below)[1]] = kind
                below, kind = parent, stat.S_IFDIR

    def begin(self, operation: Operation) -> None:
        """Nothing is read: the manifest tells it all."""

    def contents(self, operation: Operation) -> Contents:
        return self

    def open(self, operation: Operation, inode: Inode, key: Hashable) -> Opened:
        context, repository, file = operation.context, operation.repository, self._file(inode.id)
        if isinstance(file, Descriptor):
            return open_blob(context, repository, file.digest, file.size, key)
        return open_composed(context, repository, file)

    def content(self, inode: Inode) -> Descriptor | None:
        file = self._file(inode.id) if stat.S_ISREG(inode.mode) else None
        return file if isinstance(file, Descriptor) else None

    def see(self, path: bytes) -> Seen:
        number = self._numbers.get(path)
        if number is not None:
            return Seen(number, stat.S_IFREG, hides_below=True)
        if path in self._children:
            return Seen(IMPLICIT, stat.S_IFDIR)
        return Seen(None, hides_below=any(one in self._numbers for one in _parents(path)))

    def children(self, directory: bytes) -> list[tuple[bytes, int]]:
        return [*self._children.get(directory, {}).items()]

    def hidden(self, directory: bytes) -> set[bytes]:
        return set()

    def inode(self, number: int) -> Inode:
        file, path = self._file(number), self._paths[number - 1]
        stated = file_metadata(file) if isinstance(file, Descriptor) else FileMetadata()
        mode = stat.S_IFREG | (0o444 if stated.mode is None else stated.mode)
        time_ns = CONSTANT_TIME_NS if stated.time_ns is None else stated.time_ns
        return Inode(number, mode, stated.uid, stated.gid, file.size, time_ns, 0, b"", {}, path)

    def _file(self, number: int) -> Descriptor | Composed:
        file = self._files[number - 1]
        if isinstance(file, EpochfsError):
            raise fresh(file)
        return file

    def aliases(self, number: int) -> list[bytes]:
        return []

    def foreign_links(self, target: bytes) -> list[bytes]:
        return []


class _Moved:
    """The contents of a layer whose root is a directory of the file system."""

    def __init__(self, index: LayerIndex | Arriving, directory: bytes) -> None:
        self._index = index
        self._directory = directory

    @property
    def has_aliases(self) -> bool:
        return self._index.has_aliases

    @property
    def has_foreign_links(self) -> bool:
        return self._index.has_foreign_links

    def see(self, path: bytes) -> Seen:
        inner = self._inner(path)
        if inner is not None:
            return self._index.see(inner)
        return Seen(IMPLICIT, stat.S_IFDIR) if self._next(path) else Seen(None)

    def children(self, directory: bytes) -> list[tuple[bytes, int]]:
        inner = self._inner(directory)
        if inner is not None:
            return self._index.children(inner)
        name = self._next(directory)
        return [(name, stat.S_IFDIR)] if name else []

    def hidden(self, directory: bytes) -> set[bytes]:
        inner = self._inner(directory)
        return self._index.hidden(inner) if inner is not None else set()

    def inode(self, number: int) -> Inode:
        found = self._index.inode(number)
        is_link_below = found.mode == 0
        link = join_path(self._directory, found.link) if is_link_below else found.link
        return replace(found, link=link, first=join_path(self._directory, found.first))

    def aliases(self, number: int) -> list[bytes]:
        return [join_path(self._directory, path) for path in self._index.aliases(number)]

    def foreign_links(self, target: bytes) -> list[bytes]:
        inner = self._inner(target)
        links = self._index.foreign_links(inner) if inner is not None else []
        return [join_path(self._directory, path) for path in links]

    def _inner(self, path: bytes) -> bytes | None:
        """Return a path as the layer has it; None for one that is not in the directory."""
        if path == self._directory:
            return b""
        begins = self._directory + b"/"
        return path.removeprefix(begins) if path.startswith(begins) else None

    def _next(self, path: bytes) -> bytes:
        """Return the name that leads from a path towards the directory, "" if none does."""
        begins = path + b"/" if path else b""
        below = self._directory.removeprefix(begins)
        return below.partition(b"/")[0] if self._directory.startswith(begins) else b""


Contents = LayerIndex | Arriving | PlainFiles | _Moved
"""What a layer has at its paths, as `LayerIndex` tells it of a tar."""

Layer = TarLayer | PlainFiles
"""A layer of a repository, as it is merged with others."""


def _parents(path: bytes) -> Iterator[bytes]:
    """Yield the directories above a path, the nearest first and the root, b"", last."""
    while path:
        path = split_path(path)[0]
        yield path
