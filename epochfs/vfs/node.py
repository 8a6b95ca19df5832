"""Nodes of the tree: the questions that each answers, and what many kinds of them share.

A node answers which node a name below it means (`child`, pure), what it is (`attr`), what a
directory lists (`entries`), where a link points (`target`), and what is in a file (`open`). All but
the first may ask the `Context`. What a path means never depends on the registry; whether it exists
does.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from types import MappingProxyType
from typing import ClassVar

from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.errors import EpochfsError, NeverThere, NotFound
from epochfs.layers.layer_store import Layers
from epochfs.metadata.listings import Listings
from epochfs.oci.closure import Reachable
from epochfs.oci.manifests import Descriptor, Document, Manifest
from epochfs.oci.names import Digest, Repository
from epochfs.oci.platforms import Platform
from epochfs.vfs.composed import Composed, Composer, Readable
from epochfs.vfs.kernel_memory import Generated, KernelMemory

CONSTANT_TIME_NS = 1_000_000_000
"""1970-01-01T00:00:01Z, the time of what has none: never now, and never 0, which tools mistrust."""

REMEMBERED = 4
"""How many manifests a view keeps its results for: a walk stays with one at a time, and each holds
its document in memory."""

DIRECTORY = stat.S_IFDIR | 0o555
FILE = stat.S_IFREG | 0o444
LINK = stat.S_IFLNK | 0o777


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the nodes of a mount answer from, and what the kernel remembers of their answers.

    `timeout` bounds how long one operation waits for layers, in seconds. `status` returns the
    present content of `status.json`. `platform` chooses among the images of an index.
    """

    listings: Listings
    blobs: BlobStore
    layers: Layers
    composer: Composer
    kernel: KernelMemory
    status: Callable[[], bytes]
    timeout: float
    platform: Platform = field(default_factory=Platform.of_machine)


@dataclass(frozen=True, slots=True)
class Attr:
    """What stat(2) says of a node: `size` in bytes, time in epoch nanoseconds.

    Without a `uid` or `gid`, the mount's owner is shown. Two nodes of one `identity` are one file
    with two names; without one, the node's path is its identity.
    """

    mode: int
    size: int = 0
    time_ns: int = CONSTANT_TIME_NS
    uid: int | None = None
    gid: int | None = None
    rdev: int = 0
    links: int = 1
    identity: str = ""


Entries = Iterable[tuple[str, int]]
"""Names listed in a directory, each with its file type (an S_IF constant)."""

_NO_IDENTITIES: Mapping[str, str] = MappingProxyType({})

Xattrs = Mapping[str, str | bytes]


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that a node opened, and how the kernel may cache what it reads of it.

    `keep_cache`: pages of an earlier open are still right. `direct_io`: cache nothing. `backing`: a
    descriptor of a local file of the same, verified bytes, valid until `file` is closed.
    """

    file: Readable
    keep_cache: bool = False
    direct_io: bool = False
    backing: int | None = None


def inode(path: str) -> int:
    """Return the inode number of a canonical path, or of an identity (see `Attr`): 64 bits, never
    0, the same after a remount.
    """
    if path == "/":
        return 1
    number = int.from_bytes(
        blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big"
    )
    return number if number > 1 else number + 2


class Node:
    """One place in the tree. The base is a file or link: nothing below it, nothing listed.

    `foreign` places show another file system: names below them may be of any bytes.
    """

    foreign: ClassVar[bool] = False
    kind: ClassVar[int] = 0
    """The file type of every such node (an S_IF constant); 0 where only `attr` tells."""

    def child(self, name: str) -> Node:
        """Return the node that a name below this one means; raises NotFound or InvalidName."""
        raise NotFound(f"no {name} here")

    def attr(self, context: Context) -> Attr:
        """Return the attributes; raises NotFound where the node does not exist."""
        raise NotImplementedError

    def entries(self, context: Context) -> Entries:
        """Yield what this directory lists; then raise why that is not all, if it is not.

        A listing has those entries, and ends with the error.
        """
        raise NotImplementedError

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        """Return the entries, and the identity of each whose `Attr` has one (hard links)."""
        return self.entries(context), _NO_IDENTITIES

    def is_fixed(self, context: Context) -> bool:
        """Whether what this directory lists can never change, and is known without a request."""
        return False

    def basis(self, context: Context) -> tuple[object, ...] | None:
        """Return what the listing of this directory follows from, and what is known of its names:
        both are the same as long as these objects are. Takes no request; None if unknown.
        """
        return () if self.is_fixed(context) else None

    def known_attr(self, name: str, context: Context) -> Attr | None:
        """Return the attributes of a name that this directory lists, or None if that might take a
        request, or a look into a layer.
        """
        return None

    def known_attrs(self, names: Sequence[str], context: Context) -> dict[str, Attr]:
        """Return the attributes of those names that this directory lists, and of which they take no
        request.
        """
        found = {}
        for name in names:
            try:
                attr = self.known_attr(name, context)
            except EpochfsError:
                continue  # who asks for it is told why
            if attr is not None:
                found[name] = attr
        return found

    def target(self, context: Context) -> str:
        """Return where this link points, relative to the directory it is in."""
        raise NotImplementedError

    def open(self, context: Context) -> Opened:
        """Open this file; raises NotFound if it is none, Denied if it can only be looked at."""
        raise NotFound("no file here")

    def content(self, context: Context) -> Descriptor | None:
        """Describe the blob or manifest whose bytes this shows; None if it shows no single one."""
        return None

    def offers_xattr(self, name: str, context: Context) -> bool:
        """Whether this, or its like, can have an extended attribute outside of `user.`."""
        return False

    def xattrs(self, context: Context) -> Xattrs:
        """Return the extended attributes that are listed."""
        return {}

    def xattr(self, name: str, context: Context) -> str | bytes:
        """Return one extended attribute, listed or not; raises NotFound where it is not set."""
        try:
            return self.xattrs(context)[name]
        except KeyError:
            raise NotFound(f"no attribute {name}") from None


class GeneratedFile(Node):
    """A regular file whose bytes are written here. Its own key: two of one path are equal."""

    def generated(self, context: Context) -> Generated:
        """Return the file as it is now; raises NotFound where there is none."""
        raise NotImplementedError

    def attr(self, context: Context) -> Attr:
        found = context.kernel.tell(self, self.generated(context))
        return Attr(FILE, len(found.data), found.time_ns)

    def open(self, context: Context) -> Opened:
        file = context.kernel.open(self, lambda: self.generated(context))
        return Opened(file, direct_io=file.direct_io)


@dataclass(frozen=True)
class RepositoryNode(Node):
    """A node that belongs to one repository."""

    repository: Repository


class RepositoryDirectory(RepositoryNode):
    """A directory that every repository has."""

    def attr(self, context: Context) -> Attr:
        context.listings.check(self.repository)
        return Attr(DIRECTORY)


class ReachableDirectory(RepositoryDirectory):
    """A directory that lists what the repository's tags lead to."""

    def reached(self, found: Reachable) -> Entries:
        """Return how that is listed here."""
        raise NotImplementedError

    def entries(self, context: Context) -> Entries:
        found = context.listings.reachable(self.repository)
        yield from self.reached(found)
        found.complete()

    def basis(self, context: Context) -> tuple[object, ...] | None:
        found = context.listings.known_reachable(self.repository)
        return None if found is None else (found,)


@dataclass(frozen=True)
class ManifestNode(RepositoryNode):
    """A node that belongs to one manifest."""

    digest: Digest

    def document(self, context: Context) -> Document:
        """Return the manifest the node belongs to."""
        return context.listings.manifest(self.repository, self.digest)

    def is_known(self, context: Context) -> bool:
        """Whether the manifest is remembered; while access to it is denied, it is not."""
        return context.listings.knows_manifest(self.repository, self.digest)

    def image(self, context: Context) -> Manifest:
        """Return the view of the manifest; raises NotFound for an index."""
        view = self.document(context).view
        if not isinstance(view, Manifest):
            raise NotFound(f"{self.digest} is an index")
        return view


class ManifestLink(ManifestNode):
    """A link whose target the manifest tells."""

    def attr(self, context: Context) -> Attr:
        return Attr(LINK, len(self.target(context).encode()))


class ManifestView(ManifestNode):
    """A directory that shows the content of a manifest in one more way."""

    def exists(self, context: Context) -> bool:
        """Whether the manifest has such a view; if not overridden, every manifest does."""
        self.document(context)
        return True

    def is_listed(self, context: Context) -> bool:
        """Whether the manifest's directory lists the view; it opens by name whenever it exists.

        Answers from the manifest alone: a listing of the directory asks every view.
        """
        return self.exists(context)

    def attr(self, context: Context) -> Attr:
        if not self.exists(context):
            raise NotFound(f"no such view of {self.digest}")
        return Attr(DIRECTORY)


def catalog_basis(repository: Repository, context: Context) -> tuple[object, ...] | None:
    """Return the `Node.basis` of a directory whose listing the catalog tells."""
    catalog = context.listings.current_catalog()
    return (catalog,) if catalog is not None and repository in catalog else None


def content_xattrs(digest: Digest, media_type: str, artifact_type: str) -> dict[str, str]:
    """Return the attributes that all content has, those that are known."""
    values = {
        "user.oci.digest": str(digest),
        "user.oci.mediaType": media_type,
        "user.oci.artifactType": artifact_type,
    }
    return {name: value for name, value in values.items() if value}


def open_blob(
    context: Context, repository: Repository, digest: Digest, size: int, key: Hashable
) -> Opened:
    """Open a blob of `size` bytes as a file; `key` is what the kernel knows it by."""
    blob = context.blobs.open(repository, digest, size)
    if context.blobs.was_spoiled(digest):
        return Opened(blob, direct_io=True)
    verified = blob.verified
    backing = blob.fileno() if verified else None
    keep_cache = context.kernel.keeps_pages(key, verified=verified)
    named = context.listings.names_blob(repository, digest)
    return Opened(_NamedBlob(blob) if named else blob, keep_cache, backing=backing)


def open_composed(context: Context, repository: Repository, composed: Composed) -> Opened:
    """Open a file that is composed of blobs."""
    spoiled = any(context.blobs.was_spoiled(blob.digest) for blob in composed.blobs)
    return Opened(context.composer.open(repository, composed), direct_io=spoiled)


class _NamedBlob:
    """An open blob that a manifest names, which is no proof that the registry ever had it."""

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob

    def read_into(self, view: memoryview, offset: int) -> int:
        try:
            return self._blob.read_into(view, offset)
        except NeverThere as error:
            raise NotFound(str(error)) from error

    def locate(self, offset: int, size: int) -> tuple[int, int] | None:
        locate = getattr(self._blob, "locate", None)
        try:
            return None if locate is None else locate(offset, size)
        except NeverThere as error:
            raise NotFound(str(error)) from error

    def expect(self, start: int, stop: int) -> None:
        expect = getattr(self._blob, "expect", None)
        if expect is not None:
            expect(start, stop)

    def close(self) -> None:
        self._blob.close()
