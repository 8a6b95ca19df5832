"""What every node of the tree is: the questions it answers, and how it is described by stat(2)."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import ClassVar

from epochfs.errors import NotFound
from epochfs.metadata.listings import Listings
from epochfs.oci.names import Digest, Repository

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

    def attr(self, listings: Listings) -> Attr:
        """Return the attributes; raises NotFound where the node does not exist."""
        raise NotImplementedError

    def entries(self, listings: Listings) -> Entries:
        """Yield what is listed in this directory; then raise what kept the rest from being known.

        Whoever lists the directory is given those entries, and the error behind the last of them.
        """
        raise NotImplementedError

    def identities(self, listings: Listings) -> Mapping[str, str]:
        """Return the identity of each listed name whose `Attr` has one (hard links)."""
        return {}

    def target(self, listings: Listings) -> str:
        """Return where this link points, relative to the directory it is in."""
        raise NotImplementedError

    def xattrs(self, listings: Listings) -> Xattrs:
        """Return the extended attributes, without the blob cache's own."""
        return {}


@dataclass(frozen=True, slots=True)
class RepositoryDirectory(Node):
    """A directory that every repository has."""

    repository: Repository

    def attr(self, listings: Listings) -> Attr:
        listings.check(self.repository)
        return Attr(DIRECTORY)


def content_xattrs(digest: Digest, media_type: str, artifact_type: str) -> dict[str, str]:
    """Return the attributes that all content has, those that are known."""
    values = {
        "user.oci.digest": str(digest),
        "user.oci.mediaType": media_type,
        "user.oci.artifactType": artifact_type,
    }
    return {name: value for name, value in values.items() if value}
