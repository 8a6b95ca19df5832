"""`files/`: the layers of an artifact under their titles, and what is put together from layers.

A title (`org.opencontainers.image.title`) is the registry's word: one that is no harmless path is
shown by its digest, and of several that want the same path all but the first have it appended.

The parts of a split disk are there, each as a link, and the disk itself as a file. The files of a
snapshot lead on into `sparse/`, which is not listed: only the snapshot's config, a blob, can tell
how a file is stored, and so whether it is a link or a file of its own and how large that is.
Walking the tree must not fetch blobs, and so must not ask; whoever follows the link does. All
layers that a snapshot of the second version has of one title are one file, in chunks.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from epochfs.errors import NotFound
from epochfs.oci import kinds
from epochfs.oci.manifests import TITLE, Descriptor, Document, Manifest
from epochfs.oci.names import labels
from epochfs.vfs.composed import Composed, Joined
from epochfs.vfs.node import (
    DIRECTORY,
    FILE,
    LINK,
    REMEMBERED,
    Attr,
    ComposedFile,
    Context,
    Entries,
    ManifestView,
    Node,
)

SPARSE = "sparse"

_Shown = Descriptor | kinds.SplitDisk


@dataclass(frozen=True)
class TitledFiles:
    """The files of a manifest by their paths, and what each directory that these are in lists."""

    files: dict[str, _Shown] = field(default_factory=dict)
    directories: dict[str, dict[str, int]] = field(default_factory=dict)

    def find(self, path: str) -> _Shown:
        """Return what is shown as a file or link at a path; raises NotFound."""
        if path not in self.files:
            raise NotFound(f"no file {path}")
        return self.files[path]

    def listed(self, path: str) -> dict[str, int]:
        """Return what a directory lists, "" being that of all files; raises NotFound."""
        if path not in self.directories:
            raise NotFound(f"no directory {path}")
        return self.directories[path]

    def add(self, path: str, shown: _Shown) -> bool:
        """Show something at a path, unless something else is in the way; return whether it is."""
        if path in self.files or path in self.directories:
            return self.files.get(path) == shown
        parents = list(_parents(path))
        if any(parent in self.files for parent in parents):
            return False
        self.files[path] = shown
        kind = stat.S_IFLNK if isinstance(shown, Descriptor) else stat.S_IFREG
        for parent in parents:
            self.directories.setdefault(parent, {})[path.removeprefix(f"{parent}/")] = kind
            path, kind = parent, stat.S_IFDIR
        return True


def _parents(path: str) -> Iterator[str]:
    """Yield the directories above a path, the nearest first and last "", the one of all files."""
    while path:
        path = path.rpartition("/")[0]
        yield path


@lru_cache(maxsize=REMEMBERED)
def files_of(document: Document) -> TitledFiles:
    """Return what a manifest shows under titles; the disks first, whose names are made here."""
    found = TitledFiles()
    for disk in kinds.split_disks(document):
        for path in labels(disk.name, disk.parts[0].digest):
            if found.add(path, disk):
                break
    for layer in _titled(document):
        for path in labels(layer.annotations[TITLE], layer.digest):
            if found.add(path, layer):
                break
    return found


def _titled(document: Document) -> Iterator[Descriptor]:
    """Yield the layers that have titles; of those that are chunks of one file, the first."""
    seen: set[str] = set()
    for layer in document.view.layers if isinstance(document.view, Manifest) else ():
        if TITLE in layer.annotations and layer.annotations[TITLE] not in seen:
            yield layer
            if kinds.may_be_chunked(document):
                seen.add(layer.annotations[TITLE])


class FilesDirectory(ManifestView):
    """`files`: what a manifest's layers are titled."""

    def child(self, name: str) -> Node:
        return TitledNode(self.repository, self.digest, name)

    def exists(self, context: Context) -> bool:
        return bool(files_of(self.document(context)).files)

    def entries(self, context: Context) -> Entries:
        return files_of(self.document(context)).listed("").items()


class TitledNode(ComposedFile):
    """`files/<title>`: a link to a layer's blob, a joined disk, or a directory that titles make."""

    def child(self, name: str) -> Node:
        return TitledNode(self.repository, self.digest, f"{self.path}/{name}")

    def attr(self, context: Context) -> Attr:
        found = files_of(self.document(context))
        if self.path in found.directories:
            return Attr(DIRECTORY)
        shown = found.find(self.path)
        if isinstance(shown, Descriptor):
            return Attr(LINK, len(self.target(context).encode()))
        return Attr(FILE, shown.size)

    def entries(self, context: Context) -> Entries:
        return files_of(self.document(context)).listed(self.path).items()

    def target(self, context: Context) -> str:
        document = self.document(context)
        shown = files_of(document).find(self.path)
        if not isinstance(shown, Descriptor):
            raise NotFound(f"{self.path} is no link")
        up = "../" * (1 + self.path.count("/"))
        if kinds.is_snapshot(document):
            return f"{up}{SPARSE}/{self.path}"
        return f"{up}../../blobs/{shown.digest}"

    def composed(self, context: Context) -> Composed:
        shown = files_of(self.document(context)).find(self.path)
        if isinstance(shown, Descriptor):
            raise NotFound(f"{self.path} is a link")
        return Joined(shown.parts)
