"""Tells a writer's paths apart: a blob, a manifest, a tag, something derived, or a local name.

The tree's own nodes say it; what the tree has no node for is local, and so are names that tools use
for a moment.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from epochfs.errors import NotFound, NotPermitted, UsageError, printable
from epochfs.oci.names import Digest
from epochfs.vfs.manifest_directory import ManifestFile
from epochfs.vfs.node import ManifestNode, Node
from epochfs.vfs.tree import (
    CONTROL,
    BlobFile,
    BlobsDirectory,
    ManifestsDirectory,
    TagLink,
)
from epochfs.vfs.views.layout import ContentLink, IndexFile, LayoutFile

Place = BlobFile | ManifestFile | TagLink | ContentLink | IndexFile | LayoutFile | ManifestNode
"""A name that means something. A `ManifestNode` that is no `ManifestFile` is derived from it."""

_OF_LN = re.compile(r"Cu[A-Za-z0-9]{6}\Z")
"""How ln(1) of coreutils calls the link that it renames over another (gnulib, force-link.c)."""

_TARGET = re.compile(r"\.\./manifests/([^/]+)/?\Z")


def place_of(find: Callable[[str], Node], path: str) -> Place | None:
    """Return what a path means to a writer, or None for a local name.

    `find` returns the tree's node of a path. Raises UsageError for a name that the specification
    forbids where a digest or a tag belongs, and NotPermitted below `.epochfs`.
    """
    if path.split("/")[1:2] == [CONTROL]:
        raise NotPermitted(f"nothing can be written below {CONTROL}")
    parent, _, name = path.rpartition("/")
    if _is_temporary(name):
        return None
    try:
        node = find(path)
    except NotFound:
        if ":" in name and isinstance(_found(find, parent), BlobsDirectory | ManifestsDirectory):
            raise UsageError(f"not a digest that registries know: {printable(name)}") from None
        return None
    if isinstance(node, TagLink):
        if not node.tag.conforms:
            raise UsageError(f"not a tag that the specification allows: {printable(name)}")
        return None if _OF_LN.match(name) else node
    if isinstance(node, BlobFile | ContentLink | IndexFile | LayoutFile | ManifestNode):
        return node
    return None


def tagged_digest(target: str) -> Digest:
    """Return the manifest that the link of a tag leads to; raises UsageError if to none."""
    match = _TARGET.match(target)
    if match is not None:
        try:
            return Digest.parse(match[1])
        except ValueError:
            pass
    raise UsageError(f"a tag is a link to ../manifests/<digest>, and not to {printable(target)}")


def _is_temporary(name: str) -> bool:
    """Whether tools use such a name until they rename it: rsync, editors, and their like."""
    return name.startswith((".", "~")) or name.endswith("~")


def _found(find: Callable[[str], Node], path: str) -> Node | None:
    try:
        return find(path or "/")
    except NotFound:
        return None
