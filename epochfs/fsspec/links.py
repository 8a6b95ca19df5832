"""Follows links anywhere in a path, as the kernel does for a mount.

The kernel looks at every directory on the way, and each look may ask the registry. Here a path is
asked for as a whole first, and only where that is nothing are the places above it, the nearest
first: a link among them takes the path elsewhere. So `/team/data:v1/train.parquet` lists no tags
and needs no catalog.
"""

from __future__ import annotations

import posixpath
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from epochfs.errors import NotFound
from epochfs.fuse import errnos

if TYPE_CHECKING:
    from epochfs.vfs.filesystem import FileSystem
    from epochfs.vfs.node import Attr

_MOST_LINKS = 40
"""As many as Linux follows in one path (path_resolution(7))."""

_IMAGE_ROOT = re.compile(r"/(?:[^/]+/)*manifests/[^/]+/(?:volume|rootfs)(?=/)")
"""Where the absolute links of an image begin: in a container, that is its root."""


@dataclass(frozen=True, slots=True)
class Place:
    """A place that is no link: its path, and its attributes."""

    path: str
    attr: Attr


def followed(filesystem: FileSystem, path: str) -> Place:
    """Return the place that a normal path leads to. Raises NotFound, or OSError (ELOOP)."""
    current = path
    for _ in range(_MOST_LINKS + 1):
        found = _nearest(filesystem, current)
        if not stat.S_ISLNK(found.attr.mode):
            return found
        target = leads_to(found.path, filesystem.readlink(found.path))
        current = posixpath.normpath(target + current[len(found.path) :])
    raise OSError(errnos.LOOP, "too many links", path)


def leads_to(link: str, target: str) -> str:
    """Return the path that a link means."""
    if target.startswith("/"):
        image = _IMAGE_ROOT.match(link)
        return posixpath.normpath(f"{image[0] if image else ''}/{target.lstrip('/')}")
    return posixpath.normpath(posixpath.join(posixpath.dirname(link), target))


def _nearest(filesystem: FileSystem, path: str) -> Place:
    """Return what is at a path, or if nothing is, the link above it that leads elsewhere."""
    try:
        return Place(path, filesystem.getattr(path))
    except NotFound:
        above = path
        while (above := posixpath.dirname(above)) != "/":
            try:
                found = Place(above, filesystem.getattr(above))
            except NotFound:
                continue
            if stat.S_ISLNK(found.attr.mode):
                return found
            break
        raise
