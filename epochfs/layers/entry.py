"""A layer's entry for one path, parsed once, and the cleaning of hostile paths.

The values are named tuples, since there may be a million of each: they take a fifth of the time of
a frozen dataclass to create.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from epochfs.errors import InvalidName, printable

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4095
"""NAME_MAX, and PATH_MAX without its NUL: nothing longer can be opened."""

_MAX_TIME_NS = 2**63 - 1
NO_XATTRS: Mapping[str, bytes] = MappingProxyType({})


class Piece(NamedTuple):
    """`size` bytes of a file, from `start` in it.

    In a tar stream they begin at `offset`. In a layer with a table of contents, decompression
    begins at `offset` in the blob, the first `skip` bytes that come out are skipped, and `digest`
    is that of all `size` bytes. What no piece covers is zeros.
    """

    start: int
    size: int
    offset: int
    skip: int = 0
    digest: str = ""


class Entry(NamedTuple):
    """One entry of a layer: `path` is clean (see `clean_path`), and `b""` is the root.

    `mode` has the file type. `link` is a symbolic link's target, or the clean path of which a hard
    link (`is_hard_link`) is another name; a hard link's other fields are ignored.
    """

    path: bytes
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    time_ns: int = 0
    rdev: int = 0
    link: bytes = b""
    is_hard_link: bool = False
    xattrs: Mapping[str, bytes] = NO_XATTRS
    pieces: tuple[Piece, ...] = ()


def clean_path(raw: bytes) -> bytes:
    """Return an entry's path relative to the root; `..` ends at the root, as in chroot(2).

    Raises InvalidName for a path that could not be looked up.
    """
    names = [name for name in raw.split(b"/") if name and name != b"."]
    if b".." in names:
        found: list[bytes] = []
        for name in names:
            if name == b"..":
                del found[-1:]
            else:
                found.append(name)
        names = found
    path = b"/".join(names)
    if len(path) > MAX_NAME_BYTES and (
        len(path) > MAX_PATH_BYTES or max(map(len, names)) > MAX_NAME_BYTES
    ):
        raise InvalidName(f"path too long: '{printable(raw, 60)}'")
    if b"\0" in path:
        raise InvalidName(f"path with a NUL: '{printable(raw, 60)}'")
    return path


def split_path(path: bytes) -> tuple[bytes, bytes]:
    """Split a clean path into parent and name; the root is the name `b""` in itself."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


def join_path(parent: bytes, name: bytes) -> bytes:
    """Return the clean path of a name in a directory."""
    return parent + b"/" + name if parent else name


def checked_time(time_ns: int) -> int:
    """Clamp a time to what fits into 64 bits."""
    return max(-_MAX_TIME_NS, min(time_ns, _MAX_TIME_NS))
