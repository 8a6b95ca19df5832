"""A node of the tree: the questions that it answers, and its description by stat(2)."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from epochfs.errors import NotFound
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.composed import Readable
from epochfs.vfs.context import Context

CONSTANT_TIME_NS = 1_000_000_000
"""1970-01-01T00:00:01Z, the time of what has none: never now, and never 0, which tools mistrust."""

DIRECTORY = stat.S_IFDIR | 0o555
FILE = stat.S_IFREG | 0o444
LINK = stat.S_IFLNK | 0o777


@dataclass(frozen=True, slots=True)
class Attr:
    """What stat(2) says of a node: `size` bytes, epoch nanoseconds.

    Where there is no `uid` or `gid`, the mount's owner is. Two nodes of one `identity` are one
    file with two names; without one, the node's path is its identity.
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


class InMemory:
    """An open file whose content is in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read_into(self, view: memoryview, offset: int) -> int:
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def close(self) -> None:
        pass


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

    `foreign` is what another file system's word is shown of: names below it may be of any bytes,
    and its extended attributes of any namespace.
    """

    foreign: ClassVar[bool] = False

    def child(self, name: str) -> Node:
        """Return the node that `name` means below this one; raises NotFound where none can be."""
        raise NotFound(f"no {name} here")

    def attr(self, context: Context) -> Attr:
        """Return the attributes; raises NotFound where the node does not exist."""
        raise NotImplementedError

    def entries(self, context: Context) -> Entries:
        """Yield what is listed in this directory; then raise what kept the rest from being known.

        Whoever lists the directory is given those entries, and the error behind the last of them.
        """
        raise NotImplementedError

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        """Return the entries, and the identity of each whose `Attr` has one (hard links)."""
        return self.entries(context), {}

    def target(self, context: Context) -> str:
        """Return where this link points, relative to the directory it is in."""
        raise NotImplementedError

    def open(self, context: Context) -> Opened:
        """Open this file; raises NotFound where the node is none, Denied where it only shows."""
        raise NotFound("no file here")

    def xattrs(self, context: Context) -> Xattrs:
        """Return the extended attributes that are listed."""
        return {}

    def xattr(self, name: str, context: Context) -> str | bytes:
        """Return one extended attribute, listed or not; raises NotFound where it is not set."""
        try:
            return self.xattrs(context)[name]
        except KeyError:
            raise NotFound(f"no attribute {name}") from None


@dataclass(frozen=True, slots=True)
class RepositoryDirectory(Node):
    """A directory that every repository has."""

    repository: Repository

    def attr(self, context: Context) -> Attr:
        context.listings.check(self.repository)
        return Attr(DIRECTORY)


def content_xattrs(digest: Digest, media_type: str, artifact_type: str) -> dict[str, str]:
    """Return the attributes that all content has, those that are known."""
    values = {
        "user.oci.digest": str(digest),
        "user.oci.mediaType": media_type,
        "user.oci.artifactType": artifact_type,
    }
    return {name: value for name, value in values.items() if value}
