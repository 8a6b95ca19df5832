"""Lets one process at a time download a whole blob that several want; the others then have it.

A turn is a lock on one byte of the file `v1/turns`, which a digest chooses. It belongs to an open
file description (fcntl(2), "Open file description locks"), so it ends with its process, however
that ends. Who waits goes on as soon as the blob is complete, nobody has the turn, or nothing more
of the blob has come for a while: a turn saves a download, and is no promise.

Locks: `_lock` guards which turns this process has; no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

from epochfs.cache.blobs import BlobCache
from epochfs.cache.quota import PARTIAL
from epochfs.oci.names import Digest

TURNS = "turns"

_POLL_SECONDS = 0.05
_KEPT_SECONDS = 10.0
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_OFFSETS = 1 << 62

_lock = threading.Lock()
_ours: dict[Digest, int] = {}
"""How many threads of this process have the turn, or share it: they share a download anyway."""


@contextlib.contextmanager
def turn(cache: BlobCache, digest: Digest, size: int, patience: float) -> Iterator[None]:
    """Wait until a blob is complete, or it is this process's turn to download it; keep that.

    Gives up waiting when nothing more of it has come for `patience` seconds.
    """
    with _lock:
        _ours[digest] = _ours.get(digest, 0) + 1
        shares = _ours[digest] > 1
    try:
        with ExitStack() as ending:
            has_turn = False
            if not shares and not cache.is_complete(digest, size):
                with contextlib.suppress(OSError):  # no cache, or a full disk: there are no turns
                    has_turn = _wait(cache, digest, size, patience, ending)
            yield
            if has_turn and not cache.is_complete(digest, size):
                # The last byte was read, and is not yet kept: nobody should begin anew meanwhile.
                what = (ending.pop_all(), cache, digest, size)
                Thread(target=_release_later, args=what, name="turn", daemon=True).start()
    finally:
        with _lock:
            _ours[digest] -= 1
            if not _ours[digest]:
                del _ours[digest]


def _release_later(ending: ExitStack, cache: BlobCache, digest: Digest, size: int) -> None:
    """End a turn once the blob is complete, or after a while."""
    until = time.monotonic() + _KEPT_SECONDS
    while time.monotonic() < until and not cache.is_complete(digest, size):
        time.sleep(_POLL_SECONDS)
    ending.close()


def _wait(cache: BlobCache, digest: Digest, size: int, patience: float, ending: ExitStack) -> bool:
    """Wait for the turn, which ends with `ending`; return whether there is one."""
    with cache.directory.opened() as directory:
        fd = os.open(TURNS, _FLAGS, 0o600, dir_fd=directory)
    ending.callback(os.close, fd)
    offset = int(digest.encoded, 16) % _OFFSETS
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)
    held, since = -1, time.monotonic()
    while not cache.is_complete(digest, size):
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
        except BlockingIOError:
            came = _staged(cache, digest)
            if came != held:
                held, since = came, time.monotonic()
            elif time.monotonic() - since > patience:
                return False
            time.sleep(_POLL_SECONDS)
        else:
            return True
    return False


def _staged(cache: BlobCache, digest: Digest) -> int:
    """Return how much the disk has of a blob that is being downloaded: it grows while that goes on.

    Where the file is allocated as a whole first, its time of change tells.
    """
    status = cache.directory.status(PARTIAL, digest.algorithm, digest.encoded)
    return status.st_mtime_ns ^ status.st_blocks if status else 0
