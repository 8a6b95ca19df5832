"""`files/`: the layers of an artifact under their names, and files composed of layers.

A name (`oci.artifact_files`) is the registry's word: a layer whose name is no harmless path is
shown by its digest; if several want one path, all but the first have it appended.

The parts of a split disk are links, and the disk itself is a file. The files of a snapshot lead on
into `sparse/`, which is not listed: only the snapshot's config, a blob, tells how a file is stored,
and so whether it is a link or a file of its own, and how large. Walking the tree must not fetch
blobs; following the link does. In a snapshot of the second version, all layers of one title are one
file, in chunks.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Self

from epochfs.errors import NotFound
from epochfs.oci import kinds
from epochfs.oci.artifact_files import ArtifactFile, artifact_files
from epochfs.oci.manifests import TITLE, Descriptor, Document, Manifest
from epochfs.oci.names import labels
from epochfs.vfs.composed import Composed, Joined
from epochfs.vfs.node import (
    DIRECTORY,
    FILE,
    LINK,
    REMEMBERED,
    Attr,
    Context,
    Entries,
    ManifestView,
    Opened,
    open_composed,
)

SPARSE = "sparse"

_Shown = Descriptor | Joined


@dataclass(frozen=True)
class TitledFiles:
    """The files of a manifest by their paths, and what each directory lists; "" is their root."""

    files: dict[str, _Shown] = field(default_factory=dict)
    directories: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, path: str, shown: _Shown) -> bool:
        """Show something at a path unless something else is in the way; return whether it is."""
        if path in self.files or path in self.directories:
            return self.files.get(path) == shown
        parents = [path[:end] for end, letter in enumerate(path) if letter == "/"]
        if any(parent in self.files for parent in parents):
            return False
        self.files[path] = shown
        kind = stat.S_IFLNK if isinstance(shown, Descriptor) else stat.S_IFREG
        for parent in ("", *parents)[::-1]:
            self.directories.setdefault(parent, {})[path.removeprefix(f"{parent}/")] = kind
            path, kind = parent, stat.S_IFDIR
        return True


@lru_cache(maxsize=REMEMBERED)
def files_of(document: Document) -> TitledFiles:
    """Return what a manifest shows as files; the disks first, whose names are made here."""
    found = TitledFiles()
    for disk in kinds.split_disks(document):
        for path in labels(disk.name, disk.parts[0].digest):
            if found.add(path, Joined(disk.parts)):
                break
    for file in _files(document):
        for path in labels(file.name, file.layer.digest):
            if found.add(path, file.layer):
                break
    return found


def _files(document: Document) -> Iterator[ArtifactFile]:
    """Yield the layers that are files; of those that are chunks of one file, the first.

    Those of a container image are its root filesystem, and files only where they are titled.
    """
    view = document.view
    if not isinstance(view, Manifest):
        return
    is_image = kinds.kind_of(document) == kinds.CONTAINER_IMAGE
    seen: set[str] = set()
    for file in artifact_files(view):
        if file.name in seen or (is_image and TITLE not in file.layer.annotations):
            continue
        if kinds.may_be_chunked(document):
            seen.add(file.name)
        yield file


@dataclass(frozen=True)
class FilesNode(ManifestView):
    """`files`, and what is below it at `path`: a link to a layer's blob, a joined disk, or a
    directory that names make.
    """

    path: str = ""

    def child(self, name: str) -> Self:
        path = f"{self.path}/{name}" if self.path else name
        return type(self)(self.repository, self.digest, path)

    def exists(self, context: Context) -> bool:
        return bool(files_of(self.document(context)).files)

    def attr(self, context: Context) -> Attr:
        if not self.path:
            return super().attr(context)
        if self.path in files_of(self.document(context)).directories:
            return Attr(DIRECTORY)
        shown = self.shown(context)
        if isinstance(shown, Descriptor):
            return Attr(LINK, len(self.link(shown, context).encode()))
        return Attr(FILE, shown.size)

    def entries(self, context: Context) -> Entries:
        directories = files_of(self.document(context)).directories
        if self.path not in directories:
            raise NotFound(f"no directory {self.path}")
        return directories[self.path].items()

    def is_fixed(self, context: Context) -> bool:
        return self.is_known(context)

    def shown(self, context: Context) -> Descriptor | Composed:
        """Return the layer that this is a link to, or what the file is composed of."""
        files = files_of(self.document(context)).files
        if self.path not in files:
            raise NotFound(f"no file {self.path}")
        return files[self.path]

    def target(self, context: Context) -> str:
        shown = self.shown(context)
        if not isinstance(shown, Descriptor):
            raise NotFound(f"{self.path} is not a link")
        return self.link(shown, context)

    def link(self, layer: Descriptor, context: Context) -> str:
        """Return where a link to a layer points."""
        up = "../" * (1 + self.path.count("/"))
        if kinds.is_snapshot(self.document(context)):
            return f"{up}{SPARSE}/{self.path}"
        return f"{up}../../blobs/{layer.digest}"

    def open(self, context: Context) -> Opened:
        composed = self.shown(context)
        if isinstance(composed, Descriptor):
            raise NotFound(f"{self.path} is a link")
        return open_composed(context, self.repository, composed)
