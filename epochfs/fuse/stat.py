"""The answer to stat(2), and how it gets into libfuse's `struct stat`."""

from __future__ import annotations

from typing import Any, NamedTuple

from epochfs.config import MAX_READ

_BLOCK = 512
"""The unit of `st_blocks` (stat(2))."""


class Stat(NamedTuple):
    """What stat(2) says of a file: `size` in bytes, its one time in nanoseconds.

    In a listing, where only the file type in `mode` and `inode` may be known, `links` is 0 then.
    """

    mode: int
    inode: int
    links: int = 0
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    size: int = 0
    time_ns: int = 0


def fill(stat: Any, known: Stat) -> None:  # noqa: ANN401
    """Fill the binding's `struct stat`, all but what is always 0."""
    stat.st_mode = known.mode
    stat.st_ino = known.inode
    if not known.links:
        return
    stat.st_nlink = known.links
    stat.st_uid = known.uid
    stat.st_gid = known.gid
    stat.st_rdev = known.rdev
    stat.st_size = known.size
    stat.st_blocks = -(-known.size // _BLOCK)
    stat.st_blksize = MAX_READ
    seconds, nanoseconds = divmod(known.time_ns, 1_000_000_000)
    for time in (stat.st_atimespec, stat.st_mtimespec, stat.st_ctimespec):
        time.tv_sec, time.tv_nsec = seconds, nanoseconds
