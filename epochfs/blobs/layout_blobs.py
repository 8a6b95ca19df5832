"""The blobs of an OCI image layout, read where they are: no second copy is made.

As with a download, no reader comes to a clean end of wrong bytes: the read that takes the last byte
of a blob waits until the file has been hashed, once for as long as it stays the same file, and is
refused where it no longer is. Hashing begins when a reader looks set to read on, or at the end.

Locks: `LayoutBlobs._lock` guards `_checks` and `_opened`; no I/O happens under it.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

from cachetools import LRUCache

from epochfs.blobs.store import BlobCounters
from epochfs.cache.blobs import read_exactly
from epochfs.config import BlobOptions
from epochfs.errors import ContentMismatch, DeadlineExceeded, EpochfsError, Unavailable, fresh
from epochfs.metadata.layout_source import Identity, OciLayout, identity_of
from epochfs.oci.names import Digest, Repository

_HASHERS = 2
_HASH_SIZE = 1 << 20
_MAX_CHECKS = 50_000
_SET_TO_READ_ON = 8 << 20
"""A handle that has read so many bytes will probably come to the end of its blob."""

Check = Future[None]
"""The hashing of one file: done when it is right, failed when it is not."""


class LayoutBlobs:
    """The blobs of one layout. Any thread may call anything."""

    def __init__(self, layout: OciLayout, options: BlobOptions) -> None:
        self._layout = layout
        self.options = options
        self._pool = ThreadPoolExecutor(_HASHERS, thread_name_prefix="hashing")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._checks: LRUCache[tuple[Digest, Identity], Check] = LRUCache(_MAX_CHECKS)
        self._opened = 0

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> LayoutHandle:
        """Open the blob of `size` bytes; raises ContentMismatch if the file has another size.

        To be `precise` changes nothing: nothing is fetched.
        """
        fd = self._layout.open_blob(digest)
        identity = identity_of(fd)
        found = os.fstat(fd).st_size
        if found != size or (size == 0 and not digest.matches(b"")):
            os.close(fd)
            raise ContentMismatch(f"{digest} should have {size} bytes; its file has {found}")
        with self._lock:
            self._opened += 1
            check = self._checks.get((digest, identity))
        return LayoutHandle(self, digest, fd, identity, check)

    def was_spoiled(self, digest: Digest) -> bool:
        """Whether wrong bytes were served: to nobody's end, as a file that is wrong stays wrong."""
        return False

    def cached_percent(self, digest: Digest, size: int) -> int:
        """Return how much of a blob is here: all of it."""
        return 100

    def counters(self) -> BlobCounters:
        """Return what happened since the start: every blob that was opened was here."""
        with self._lock:
            return BlobCounters(self._opened, 0, 0, 0, 0)

    def check(self, digest: Digest, fd: int, identity: Identity) -> Check:
        """Return the hashing of a file, begun if it was not; one that failed begins anew."""
        key = (digest, identity)
        with self._lock:
            known = self._checks.get(key)
            if known is not None and not (known.done() and known.exception()):
                return known
            try:
                begun = self._pool.submit(self._hash, digest, os.dup(fd), identity)
            except RuntimeError:
                raise Unavailable("the mount is ending") from None
            self._checks[key] = begun
            return begun

    def close(self) -> None:
        """End the hashing under way; waiting readers get an error."""
        self._closing.set()
        self._pool.shutdown(wait=False)

    def _hash(self, digest: Digest, fd: int, identity: Identity) -> None:
        hasher = digest.hasher()
        with os.fdopen(fd, "rb", buffering=0) as file:
            buffer = memoryview(bytearray(_HASH_SIZE))
            offset, size = 0, os.fstat(fd).st_size
            while offset < size:
                if self._closing.is_set():
                    raise Unavailable("the mount is ending")
                piece = buffer[: min(_HASH_SIZE, size - offset)]
                read_exactly(fd, piece, offset)
                hasher.update(piece)
                offset += len(piece)
            unchanged = identity_of(file.fileno()) == identity
        if not unchanged or hasher.hexdigest() != digest.encoded:
            raise ContentMismatch(f"the layout's file does not have digest {digest}")


class LayoutHandle:
    """An open blob of a layout (a `BlobHandle`)."""

    def __init__(
        self, blobs: LayoutBlobs, digest: Digest, fd: int, identity: Identity, check: Check | None
    ) -> None:
        self.size = os.fstat(fd).st_size
        self._blobs = blobs
        self._digest = digest
        self._fd = fd
        self._identity = identity
        self._check = check
        self._read_bytes = 0

    @property
    def verified(self) -> bool:
        """Whether the file is right, and still the one that was found to be."""
        check = self._check
        is_right = check is not None and check.done() and check.exception() is None
        return is_right and identity_of(self._fd) == self._identity

    def fileno(self) -> int:
        return self._fd

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self.size - offset))
        if count and not self.verified:
            self._read_bytes += count
            if offset + count == self.size or self._blobs.options.verify_first:
                self._wait()
            elif self._read_bytes > _SET_TO_READ_ON and self._check is None:
                self._check = self._blobs.check(self._digest, self._fd, self._identity)
        read_exactly(self._fd, view[:count], offset)
        if offset + count == self.size:
            self._refuse_changed()
        return count

    def close(self) -> None:
        os.close(self._fd)

    def _wait(self) -> None:
        """Wait until the blob is known to be right; raises what is wrong with it."""
        self._check = self._blobs.check(self._digest, self._fd, self._identity)
        try:
            self._check.result(self._blobs.options.timeout)
        except TimeoutError:
            raise DeadlineExceeded(f"hashing {self._digest} takes its time") from None
        except EpochfsError as error:
            raise fresh(error) from error
        self._refuse_changed()

    def _refuse_changed(self) -> None:
        if identity_of(self._fd) != self._identity:
            raise ContentMismatch(f"the file of {self._digest} was changed")
