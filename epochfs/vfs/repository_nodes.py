"""The kinds of nodes in the tree. Each knows what the names below it mean.

A node answers five questions: which node a name below it means (`child`, pure), what it is
(`attr`), what is listed in it (`entries`, directories), where it points (`target`, links), what is
in it (`open`, files). All but the first may ask the `Context`. What a path means never depends on
the registry; whether it exists does. Which names are reserved, and how a repository segment of that
name is shown, is decided here.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from epochfs.blobs.store import BlobHandle
from epochfs.errors import EpochfsError, InvalidName, NeverThere, NotFound
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Catalog, Digest, Repository, Tag
from epochfs.vfs.context import Context
from epochfs.vfs.manifest_nodes import ManifestDirectory
from epochfs.vfs.node import (
    DIRECTORY,
    FILE,
    LINK,
    Attr,
    Entries,
    InMemory,
    Node,
    Opened,
    RepositoryDirectory,
    Xattrs,
    content_xattrs,
)
from epochfs.vfs.views.layout import LayoutDirectory

CONTROL = ".epochfs"
STATUS_FILE = "status.json"

CACHED_XATTR = "user.epochfs.cached"
"""How much of a blob is cached, in percent. It is not listed: tools that save attributes would see
every blob change."""

RESERVED = frozenset({"tags", "manifests", "blobs", "layout", CONTROL})
"""Names in the tree that are not repository segments."""


def shown_segment(segment: str) -> str:
    """Return how a repository segment appears in the tree: reserved words get one `_` in front."""
    return f"_{segment}" if segment in RESERVED or segment.startswith("_") else segment


def parsed_segment(name: str) -> str:
    """Return the repository segment a name in the tree stands for; raises NotFound for none."""
    segment = name.removeprefix("_")
    is_escaped = segment != name
    if is_escaped != (segment in RESERVED or segment.startswith("_")):
        raise NotFound(f"no repository segment is shown as {name}")
    return segment


@dataclass(frozen=True, slots=True)
class Namespace(Node):
    """A repository, a parent of repositories, or both; the root where there are no segments."""

    segments: tuple[str, ...] = ()

    def child(self, name: str) -> Node:
        if name in RESERVED:
            return self._reserved(name)
        segments = (*self.segments, parsed_segment(name))
        try:
            Repository.parse("/".join(segments))
        except InvalidName as error:
            raise NotFound(str(error)) from None
        return Namespace(segments)

    def _reserved(self, name: str) -> Node:
        if self.segments:
            repository = Repository("/".join(self.segments))
            if name == "tags":
                return TagsDirectory(repository)
            if name == "manifests":
                return ManifestsDirectory(repository)
            if name == "blobs":
                return BlobsDirectory(repository)
            if name == "layout":
                return LayoutDirectory(repository)
        raise NotFound(f"no {name} here")

    def attr(self, context: Context) -> Attr:
        if self.segments:
            context.listings.check(Repository("/".join(self.segments)), or_parent=True)
        return Attr(DIRECTORY)

    def entries(self, context: Context) -> Entries:
        missing: EpochfsError | None = None
        found = False
        if self.segments:
            try:
                found = context.listings.holds_tags(Repository("/".join(self.segments)))
            except EpochfsError as error:
                missing = error
        if found:
            for name in ("blobs", "layout", "manifests", "tags"):
                yield name, stat.S_IFDIR
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
            raise NotFound(f"no repository {'/'.join(self.segments)}")


class TagsDirectory(RepositoryDirectory):
    """`<repo>/tags`: a link for each tag."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        try:
            return TagLink(self.repository, Tag.parse(name))
        except InvalidName as error:
            raise NotFound(str(error)) from None

    def entries(self, context: Context) -> Entries:
        tags = context.listings.tags(self.repository)
        context.listings.expect_resolves(self.repository)
        return ((tag.name, stat.S_IFLNK) for tag in tags)


class ManifestsDirectory(RepositoryDirectory):
    """`<repo>/manifests`: lists the manifests reachable from tags, opens any the registry has."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return ManifestDirectory(self.repository, _digest(name))

    def entries(self, context: Context) -> Entries:
        reachable = context.listings.reachable(self.repository)
        yield from ((str(digest), stat.S_IFDIR) for digest in sorted(reachable.manifests))
        reachable.complete()


class BlobsDirectory(RepositoryDirectory):
    """`<repo>/blobs`: lists the blobs reachable from tags, opens any the registry has."""

    __slots__ = ()

    def child(self, name: str) -> Node:
        return BlobFile(self.repository, _digest(name))

    def entries(self, context: Context) -> Entries:
        reachable = context.listings.reachable(self.repository)
        yield from ((str(digest), stat.S_IFREG) for digest in sorted(reachable.blobs))
        reachable.complete()


@dataclass(frozen=True, slots=True)
class TagLink(Node):
    """`<repo>/tags/<tag>`: a link to the manifest the tag names now."""

    repository: Repository
    tag: Tag

    def attr(self, context: Context) -> Attr:
        resolved = context.listings.resolve(self.repository, self.tag)
        return Attr(LINK, len(_to_manifest(resolved.digest)), resolved.since_ns)

    def target(self, context: Context) -> str:
        return _to_manifest(context.listings.resolve(self.repository, self.tag).digest)


def _to_manifest(digest: Digest) -> str:
    return f"../manifests/{digest}"


@dataclass(frozen=True, slots=True)
class BlobFile(Node):
    """`<repo>/blobs/<digest>`: the blob."""

    repository: Repository
    digest: Digest

    def descriptor(self, context: Context) -> Descriptor:
        """Return what is known of the blob; that it is known proves that it may be read."""
        return context.listings.descriptor(self.repository, self.digest)

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
        blob = context.blobs.open(self.repository, self.digest, self.descriptor(context).size)
        if context.blobs.was_spoiled(self.digest):
            return Opened(blob, direct_io=True)
        verified = blob.verified
        backing = blob.fileno() if verified else None
        keep_cache = context.kernel.keeps_pages(self, verified=verified)
        named = context.listings.names_blob(self.repository, self.digest)
        return Opened(_NamedBlob(blob) if named else blob, keep_cache, backing=backing)


class _NamedBlob:
    """An open blob that a manifest names, which is no proof that the registry ever had it."""

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob

    def read_into(self, view: memoryview, offset: int) -> int:
        try:
            return self._blob.read_into(view, offset)
        except NeverThere as error:
            raise NotFound(str(error)) from error

    def close(self) -> None:
        self._blob.close()


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
    """`/.epochfs/status.json`: as in /proc, its size is 0 and reading gives the moment's state."""

    def attr(self, context: Context) -> Attr:
        return Attr(FILE)

    def open(self, context: Context) -> Opened:
        return Opened(InMemory(context.status()), direct_io=True)


def _digest(name: str) -> Digest:
    try:
        return Digest.parse(name)
    except InvalidName as error:
        raise NotFound(str(error)) from None
