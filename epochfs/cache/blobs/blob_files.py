"""Single files of the cache: reading one whole, reserving its blocks, the map of a partial one."""

from __future__ import annotations

import ctypes
import json
import logging
import os

from epochfs.cache.directory import READ_FLAGS, cache_errors, is_ours
from epochfs.cache.ranges import RangeSet
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

MAP_SUFFIX = ".map"


def read_exactly(fd: int, view: memoryview, offset: int) -> None:
    """Fill `view` with the file's bytes at `offset`; raises CacheFailure if it has fewer."""
    with cache_errors("reading a blob"):
        while view:
            count = os.preadv(fd, [view], offset)
            if not count:
                raise CacheFailure("a cached blob is shorter than it was")
            view, offset = view[count:], offset + count


def allocate(fd: int, size: int) -> None:
    """Reserve the disk's blocks for a file of `size` bytes, where the file system can do that.

    Where it cannot, the writes themselves tell. By fallocate(2) itself: posix_fallocate(3) would
    then write into each block, over what others are writing there.
    """
    library = ctypes.CDLL(None)
    fallocate = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if fallocate is not None:
        fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size))


def read_map(directory: int, digest: Digest, size: int) -> RangeSet:
    """Return the ranges the map vouches for; none where it is absent, foreign or damaged."""
    try:
        fd = os.open(digest.encoded + MAP_SUFFIX, READ_FLAGS, dir_fd=directory)
        with os.fdopen(fd, encoding="ascii") as file:
            if not is_ours(os.fstat(fd)):
                return RangeSet()
            content = json.load(file)
        ranges = RangeSet((int(start), int(stop)) for start, stop in content["ranges"])
        if any(stop > size for _, stop in ranges):
            raise ValueError(f"a range ends beyond {size} bytes")
        return ranges
    except FileNotFoundError:
        return RangeSet()
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        log.debug("ignoring the range map of %s: %s", digest, error)
        return RangeSet()
