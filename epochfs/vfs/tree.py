"""The tree: what is shown where, and under which names.

::

    /<repo>/tags/<tag>                          -> ../manifests/<digest>
    /<repo>/manifests/<digest>/manifest.json
    /<repo>/manifests/<digest>/config           -> ../../blobs/<digest>
    /<repo>/manifests/<digest>/layers/<NN>      -> ../../../blobs/<digest>
    /<repo>/manifests/<digest>/<view>/          see `manifest_directory`
    /<repo>/blobs/<digest>
    /<repo>/layout/                             see `views.layout`
    /<repo>:<tag>                               -> <repo>/tags/<tag>/volume
    /<repo>@<digest>                            -> <repo>/manifests/<digest>/volume
    /.epochfs/status.json

What is named by a digest is immutable: a regular file (or a directory) with exactly one path. What
can change is a link. Which names are reserved, and how a repository segment of such a name is
shown, is decided here.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from epochfs.errors import EpochfsError, InvalidName, NotFound
from epochfs.oci.closure import Reachable
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Catalog, Digest, Reference, Repository, Tag
from epochfs.vfs.kernel_memory import InMemory
from epochfs.vfs.manifest_directory import VOLUME, ManifestDirectory
from epochfs.vfs.node import (
    DIRECTORY,
    FILE,
    LINK,
    Attr,
    Context,
    Entries,
    Node,
    Opened,
    ReachableDirectory,
    RepositoryDirectory,
    RepositoryNode,
    Xattrs,
    catalog_basis,
    content_xattrs,
    open_blob,
)
from epochfs.vfs.views.layout import LayoutDirectory
from epochfs.vfs.views.volume import VolumeNode

CONTROL = ".epochfs"
STATUS_FILE = "status.json"

CACHED_XATTR = "user.epochfs.cached"
"""How much of a blob is cached, in percent. It is not listed: tools that save attributes would see
every blob change."""


def root(prefix: Repository | None = None) -> Namespace:
    """Return the root of a registry's tree, or of the repositories below `prefix` in it."""
    return Namespace(prefix.segments if prefix is not None else (), is_root=True)


class ArtifactRoot(VolumeNode):
    """The root of a mount that shows the volume of one artifact."""

    def child(self, name: str) -> Node:
        if name == CONTROL:
            return ControlDirectory()
        return VolumeNode(self.repository, self.digest).child(name)

    def attr(self, context: Context) -> Attr:
        """Return the attributes without reading a layer: the kernel asks before anybody does."""
        return Attr(DIRECTORY)


def shown_segment(segment: str) -> str:
    """Return how a repository segment appears in the tree: reserved names get one `_` in front."""
    return f"_{segment}" if segment in RESERVED or segment.startswith("_") else segment


def parsed_reference(name: str) -> tuple[str, Reference] | None:
    """Parse `NAME:TAG`, `NAME@DIGEST` or `NAME:TAG@DIGEST`; None for a name that is none."""
    name, at, digest = name.partition("@")
    segment, colon, tag = name.partition(":")
    if not segment or not (at or colon):
        return None
    try:
        parsed = Tag.parse(tag) if colon else None
        if parsed is not None and not parsed.conforms:
            return None
        reference = Digest.parse(digest) if at else parsed
    except InvalidName:
        return None
    return None if reference is None else (segment, reference)


def parsed_segment(name: str) -> str:
    """Return the repository segment that a name in the tree means; raises NotFound if none."""
    segment = name.removeprefix("_")
    if shown_segment(segment) != name:
        raise NotFound(f"no repository segment is shown as {name}")
    return segment


@dataclass(frozen=True)
class Namespace(Node):
    """A repository, a parent of repositories, or both; without segments, the whole registry."""

    segments: tuple[str, ...] = ()
    is_root: bool = field(default=False, compare=False)

    @property
    def repository(self) -> Repository:
        """The repository of that name, if it is one."""
        return Repository("/".join(self.segments))

    def child(self, name: str) -> Node:
        if name in RESERVED:
            if self.segments and name in _REPOSITORY:
                return _REPOSITORY[name](Repository("/".join(self.segments)))
            if self.is_root and name == CONTROL:
                return ControlDirectory()
            raise NotFound(f"no {name} here")
        referred = parsed_reference(name) if ":" in name or "@" in name else None
        if referred is None:
            segments = (*self.segments, parsed_segment(name) if name.startswith("_") else name)
            Repository.parse("/".join(segments))
            return Namespace(segments)
        try:
            listed = self._below(parsed_segment(name))
        except NotFound:
            listed = None
        repository = self._below(parsed_segment(referred[0])).repository
        return VolumeLink(repository, *referred, listed)

    def _below(self, segment: str) -> Namespace:
        """Return a namespace below this one; raises InvalidName."""
        segments = (*self.segments, segment)
        Repository.parse("/".join(segments))
        return Namespace(segments)

    def attr(self, context: Context) -> Attr:
        if self.segments:
            context.listings.check(self.repository, or_parent=True)
        return Attr(DIRECTORY)

    def entries(self, context: Context) -> Entries:
        missing: EpochfsError | None = None
        found = False
        if self.segments:
            try:
                found = context.listings.holds_tags(self.repository)
            except EpochfsError as error:
                missing = error
        if found:
            yield from ((name, stat.S_IFDIR) for name in _REPOSITORY)
        catalog: Catalog | None
        try:
            catalog = context.listings.catalog()
        except EpochfsError as error:
            catalog, missing = context.listings.known_catalog(), missing or error
        children = catalog.children(self.segments) if catalog is not None else []
        for segment in children:
            yield shown_segment(segment), stat.S_IFDIR
        if missing is not None:
            raise missing
        if self.segments and not found and not children:
            raise NotFound(f"no repository {self.repository}")

    def basis(self, context: Context) -> tuple[object, ...] | None:
        return catalog_basis(self.repository, context) if self.segments else None

    def known_attr(self, name: str, context: Context) -> Attr | None:
        catalog, child = context.listings.known_catalog(), self.child(name)
        if catalog is None or not isinstance(child, Namespace | RepositoryDirectory):
            return None
        is_listed = child.repository in catalog
        if isinstance(child, Namespace):
            is_listed = is_listed or catalog.is_parent(child.segments)
        return Attr(DIRECTORY) if is_listed else None


class TagsDirectory(RepositoryDirectory):
    """`<repo>/tags`: a link for each tag."""

    def child(self, name: str) -> Node:
        return TagLink(self.repository, Tag.parse(name))

    def entries(self, context: Context) -> Entries:
        tags = context.listings.tags(self.repository)
        context.listings.expect_resolves(self.repository)
        return ((tag.name, stat.S_IFLNK) for tag in tags)


class ManifestsDirectory(ReachableDirectory):
    """`<repo>/manifests`: lists the manifests reachable from tags, opens any the registry has."""

    def child(self, name: str) -> Node:
        return ManifestDirectory(self.repository, Digest.parse(name))

    def reached(self, found: Reachable) -> Entries:
        return ((str(digest), stat.S_IFDIR) for digest in sorted(found.manifests))

    def known_attr(self, name: str, context: Context) -> Attr | None:
        child = ManifestDirectory(self.repository, Digest.parse(name))
        return child.known(context) if child.is_known(context) else None


class BlobsDirectory(ReachableDirectory):
    """`<repo>/blobs`: lists the blobs reachable from tags, opens any the registry has."""

    def child(self, name: str) -> Node:
        return BlobFile(self.repository, Digest.parse(name))

    def reached(self, found: Reachable) -> Entries:
        return ((str(digest), stat.S_IFREG) for digest in sorted(found.blobs))

    def known_attr(self, name: str, context: Context) -> Attr | None:
        blob = BlobFile(self.repository, Digest.parse(name))
        named = context.listings.names_blob(self.repository, blob.digest)
        return blob.attr(context) if named else None


@dataclass(frozen=True)
class TagLink(RepositoryNode):
    """`<repo>/tags/<tag>`: a link to the manifest the tag names now."""

    tag: Tag

    def attr(self, context: Context) -> Attr:
        resolved = context.listings.resolve(self.repository, self.tag)
        return Attr(LINK, len(f"../manifests/{resolved.digest}"), resolved.since_ns)

    def target(self, context: Context) -> str:
        return f"../manifests/{context.listings.resolve(self.repository, self.tag).digest}"


@dataclass(frozen=True)
class VolumeLink(RepositoryNode):
    """`<repo>:<tag>` or `<repo>@<digest>`: a link to a volume; `shown` is the repository's name.

    The catalog may list a namespace under the same name, as a layout whose names begin with
    `localhost:5000/` does: then it is that.
    """

    shown: str
    reference: Reference
    namespace: Namespace | None

    def child(self, name: str) -> Node:
        if self.namespace is None:
            raise NotFound(f"no {name} in a link")
        return self.namespace.child(name)

    def attr(self, context: Context) -> Attr:
        namespace = self._listed(context)
        if namespace is not None:
            return namespace.attr(context)
        length = len(self.target(context).encode())
        if isinstance(self.reference, Digest):
            context.listings.manifest(self.repository, self.reference)
            return Attr(LINK, length)
        since_ns = context.listings.resolve(self.repository, self.reference).since_ns
        return Attr(LINK, length, since_ns)

    def entries(self, context: Context) -> Entries:
        namespace = self._listed(context)
        if namespace is None:
            raise NotFound("a link lists nothing")
        return namespace.entries(context)

    def target(self, context: Context) -> str:
        kind = "manifests" if isinstance(self.reference, Digest) else "tags"
        return f"{self.shown}/{kind}/{self.reference}/{VOLUME}"

    def _listed(self, context: Context) -> Namespace | None:
        """Return the namespace, if the catalog lists it."""
        known, namespace = context.listings.known_catalog(), self.namespace
        if known is None or namespace is None:
            return None
        is_listed = namespace.repository in known or known.is_parent(namespace.segments)
        return namespace if is_listed else None


@dataclass(frozen=True)
class BlobFile(RepositoryNode):
    """`<repo>/blobs/<digest>`: the blob."""

    digest: Digest

    kind = stat.S_IFREG

    def descriptor(self, context: Context) -> Descriptor:
        """Return what is known of the blob. That it is known proves that it may be read."""
        return context.listings.descriptor(self.repository, self.digest)

    def content(self, context: Context) -> Descriptor:
        return self.descriptor(context)

    def attr(self, context: Context) -> Attr:
        return Attr(FILE, self.descriptor(context).size)

    def xattrs(self, context: Context) -> Xattrs:
        known = self.descriptor(context)
        return content_xattrs(self.digest, known.media_type, known.artifact_type)

    def xattr(self, name: str, context: Context) -> str | bytes:
        if name == CACHED_XATTR:
            size = self.descriptor(context).size
            return str(context.blobs.cached_percent(self.digest, size))
        return Node.xattr(self, name, context)

    def open(self, context: Context) -> Opened:
        size = context.listings.descriptor(self.repository, self.digest).size
        return open_blob(context, self.repository, self.digest, size, self)


class ControlDirectory(Node):
    """`/.epochfs`: not listed in the root; opens by name."""

    def child(self, name: str) -> Node:
        if name == STATUS_FILE:
            return StatusFile()
        raise NotFound(f"no {name} in {CONTROL}")

    def attr(self, context: Context) -> Attr:
        return Attr(DIRECTORY)

    def entries(self, context: Context) -> Entries:
        return [(STATUS_FILE, stat.S_IFREG)]


class StatusFile(Node):
    """`/.epochfs/status.json`: the present state; as in /proc, its size is 0."""

    def attr(self, context: Context) -> Attr:
        return Attr(FILE)

    def open(self, context: Context) -> Opened:
        return Opened(InMemory(context.status()), direct_io=True)


_REPOSITORY: Mapping[str, type[RepositoryDirectory]] = {
    "blobs": BlobsDirectory,
    "layout": LayoutDirectory,
    "manifests": ManifestsDirectory,
    "tags": TagsDirectory,
}
"""The directories that every repository has."""

RESERVED = frozenset({*_REPOSITORY, CONTROL})
"""Names in the tree that are not repository segments."""
