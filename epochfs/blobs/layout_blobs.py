"""The blobs of an OCI image layout, read in place: no second copy is made.

As with a download, no reader comes to a clean end of wrong bytes: the read that takes the last byte
of a blob waits until the file has been hashed, once for as long as it stays the same file, and
fails if it no longer is. Hashing begins when a reader looks set to read on, or at the end.

Locks: `LayoutBlobs._lock` guards `_right`, `_opened` and, in `PooledFlight`, what is being hashed;
no I/O happens under it.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from functools import partial

from cachetools import LRUCache

from epochfs.blobs.store import BlobCounters
from epochfs.cache.blobs import read_exactly
from epochfs.client.single_flight import PooledFlight
from epochfs.config import BlobOptions
from epochfs.errors import ContentMismatch, Unavailable
from epochfs.metadata.layout_source import Identity, OciLayout, identity_of
from epochfs.oci.names import Digest, Repository

_HASHERS = 2
_HASH_SIZE = 1 << 20
_MAX_RIGHT = 50_000
_SET_TO_READ_ON = 8 << 20
"""A handle that has read so many bytes will probably read its blob to the end."""

_Key = tuple[Digest, Identity]


class LayoutFile:
    """An open file of a layout, closed with the last reference to it: a reader's or a hasher's."""

    def __init__(self, digest: Digest, fd: int) -> None:
        self.digest = digest
        self.fd = fd
        weakref.finalize(self, os.close, fd).atexit = False
        self.key = (digest, identity_of(fd))
        self.size = os.fstat(fd).st_size

    @property
    def unchanged(self) -> bool:
        """Whether it is still what it was when opened."""
        return (self.digest, identity_of(self.fd)) == self.key


class LayoutBlobs:
    """The blobs of one layout, a `BlobStore`. Nothing is fetched, so `precise` changes nothing."""

    def __init__(self, layout: OciLayout, options: BlobOptions) -> None:
        self._layout = layout
        self.options = options
        self._closing = threading.Event()
        self._lock = threading.Lock()
        # Only what is right: other files are hashed again for the next reader.
        self._right: LRUCache[_Key, bool] = LRUCache(_MAX_RIGHT)
        self._hashing = PooledFlight[_Key, bool](
            self._lock,
            self._right.__setitem__,
            lambda key: f"hashing {key[0]} takes its time",
            name="hashing",
            workers=_HASHERS,
            ended=Unavailable("the mount is shutting down"),
        )
        self._opened = 0

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> LayoutHandle:
        file = LayoutFile(digest, self._layout.open_blob(digest))
        if file.size != size or (size == 0 and not digest.matches(b"")):
            raise ContentMismatch(f"{digest} should have {size} bytes; its file has {file.size}")
        with self._lock:
            self._opened += 1
        return LayoutHandle(self, file)

    def was_spoiled(self, digest: Digest) -> bool:
        return False  # a file that is wrong stays wrong, and no reader comes to its end

    def cached_percent(self, digest: Digest, size: int) -> int:
        return 100

    def counters(self) -> BlobCounters:
        with self._lock:
            return BlobCounters(self._opened, 0, 0, 0, 0)

    def is_right(self, file: LayoutFile) -> bool:
        """Whether a file has been hashed and has its digest."""
        with self._lock:
            return self._right.get(file.key, False)

    def check(self, file: LayoutFile, *, wait: bool) -> None:
        """Begin to hash a file, unless that is done or under way; with `wait`, until that ends.

        Raises ContentMismatch, or DeadlineExceeded.
        """
        look, work = partial(self._right.get, file.key), partial(self._hash, file)
        if wait:
            self._hashing.do(file.key, look, work, time.monotonic() + self.options.timeout)
        else:
            self._hashing.begin(file.key, look, work)

    def close(self) -> None:
        self._closing.set()
        self._hashing.close()

    def _hash(self, file: LayoutFile) -> bool:
        hasher = file.digest.hasher()
        buffer = memoryview(bytearray(_HASH_SIZE))
        offset, size = 0, os.fstat(file.fd).st_size
        while offset < size:
            if self._closing.is_set():
                raise Unavailable("the mount is shutting down")
            piece = buffer[: min(_HASH_SIZE, size - offset)]
            read_exactly(file.fd, piece, offset)
            hasher.update(piece)
            offset += len(piece)
        if not file.unchanged or hasher.hexdigest() != file.digest.encoded:
            raise ContentMismatch(f"the layout's file does not have digest {file.digest}")
        return True


class LayoutHandle:
    """An open blob of a layout (a `BlobHandle`)."""

    def __init__(self, blobs: LayoutBlobs, file: LayoutFile) -> None:
        self.size = file.size
        self._blobs = blobs
        self._file = file
        self._is_begun = False
        self._read_bytes = 0

    @property
    def verified(self) -> bool:
        """Whether the file was found right, and is still the same."""
        return self._blobs.is_right(self._file) and self._file.unchanged

    def fileno(self) -> int:
        return self._file.fd

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self.size - offset))
        if count and not self.verified:
            self._read_bytes += count
            if offset + count == self.size or self._blobs.options.verify_first:
                self._blobs.check(self._file, wait=True)
                self._refuse_changed()
            elif self._read_bytes > _SET_TO_READ_ON and not self._is_begun:
                self._is_begun = True
                self._blobs.check(self._file, wait=False)
        read_exactly(self._file.fd, view[:count], offset)
        if offset + count == self.size:
            self._refuse_changed()
        return count

    def close(self) -> None:
        del self._file

    def _refuse_changed(self) -> None:
        if not self._file.unchanged:
            raise ContentMismatch(f"the file of {self._file.digest} was changed")
