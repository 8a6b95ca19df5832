"""The staged file of one download, and the digest of what is in it.

A `StagedFile` is opened by the first worker, saved from time to time, and put away once. What the
cache has of it is `StagedBlob`'s; which bytes are present is the download's to know.

Its `Verifier` hashes the bytes in order, each of them once. Whoever has just received the next ones
hashes them while the processor still has them at hand; reading them back costs a third of the
hashing again. What came out of order is read back from the file, some of it whenever a worker comes
by, and the rest at the end.

Locks, which no reader takes: `StagedFile._opening` lets one worker at a time open and allocate the
file, `_recording` lets one at a time change what is on record of it. Under either the download's
lock may be taken, by what it passes in (`resumed`, `snapshot`). `Verifier._turn` lets one thread at
a time hash. Workers pass by where it is taken; only `finish` waits for it. Nothing is taken under
it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from epochfs.blobs.buffers import page_aligned
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.cache.staged_blob import RangeSet, StagedBlob
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

_SAVE_SECONDS = 10.0

_BLOCK = 1 << 18
_TURN = 4 << 20
"""How much a worker reads back and hashes before it goes on receiving, in bytes."""


@dataclass(eq=False)
class StagedFile:
    """Where the bytes of one download go. For its workers; `prepare` comes first.

    Its methods raise CacheFailure, unless they say otherwise. `fd` is the file's descriptor and
    `verifier` hashes what is in it, from `prepare` on.
    """

    cache: BlobCache
    digest: Digest
    size: int
    fd: int = field(default=-1, init=False)
    verifier: Verifier = field(init=False)
    _staged: StagedBlob = field(init=False)
    _opening: threading.Lock = field(default_factory=threading.Lock, init=False)
    _recording: threading.Lock = field(default_factory=threading.Lock, init=False)
    _saved: float = field(default_factory=time.monotonic, init=False)

    def prepare(self, resumed: Callable[[RangeSet], object], *, whole: bool) -> None:
        """Open the file, and make room for the `whole` blob if all of it will come.

        `resumed` is called once, with what an earlier download left here.
        """
        with self._opening:
            if self.fd < 0:
                self.verifier = Verifier(self.digest)
                self._staged = self.cache.stage(self.digest, self.size)
                self.fd = self._staged.fd
                resumed(self._staged.resumed)
            if whole:
                self._staged.allocate()

    def allocate(self) -> None:
        """Make room for the whole blob before it is written."""
        with self._opening:
            self._staged.allocate()

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`; by many threads at once, of different ranges."""
        self._staged.write(offset, view)

    def save_now_and_then(self, snapshot: Callable[[], RangeSet]) -> None:
        """If it is time, make what `snapshot` says is present outlive a crash.

        A failure is only logged: nothing but a crash would show it.
        """
        if not self._recording.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._saved = time.monotonic()
                self._staged.checkpoint(snapshot())
        except CacheFailure as error:
            log.debug("what is here of %s would not survive a crash: %s", self.digest, error)
        finally:
            self._recording.release()

    def forget(self) -> None:
        """Let no later download take any byte here for present."""
        with self._recording:
            self._staged.forget()

    def promote(self) -> None:
        """Have the cache keep the verified blob; report that it cannot."""
        try:
            with self._recording:
                self._staged.promote()
        except CacheFailure as error:
            self.cache.directory.report(f"{self.digest}: {error}")

    def discard(self) -> None:
        """Remove the file's name; open readers keep what they have."""
        with self._recording:
            self._staged.discard()

    def put_away(self, present: RangeSet | None) -> None:
        """After the last worker: leave what is `present` to a later download, and close the file.

        Bytes that cannot be put on record, or are not wanted (None), would only fill the disk, and
        are removed; a blob that was promoted is no longer here.
        """
        if self.fd < 0:
            return
        try:
            if present is None:
                self._staged.discard()
            else:
                self._keep(present)
        except CacheFailure as error:
            self.cache.directory.report(f"what was fetched of {self.digest}: {error}")
        finally:
            self._staged.close()

    def _keep(self, present: RangeSet) -> None:
        try:
            self._staged.checkpoint(present)
        except CacheFailure:
            self._staged.discard()
            raise


class Verifier:
    """Hashes one blob. Any thread may call anything."""

    def __init__(self, digest: Digest) -> None:
        self._digest = digest
        self._turn = threading.Lock()
        self._hasher = digest.hasher()
        self._position = 0

    def received(self, start: int, data: memoryview, fd: int, present: int) -> None:
        """Hash on with `data`, the blob's bytes at `start`, or with others that wait in the file.

        `fd` is the staged file, whose first `present` bytes are there. Returns at once if another
        thread is hashing.
        """
        if not self._turn.acquire(blocking=False):
            return
        try:
            until = min(start, present, self._position + _TURN)
            self._read_back(fd, until)
            if start <= self._position < start + len(data):
                self._update(data[self._position - start :])
        finally:
            self._turn.release()

    def finish(self, fd: int, size: int, stopped: Callable[[], bool]) -> bool:
        """Hash what is left of `size` bytes; return whether the digest matches.

        False also if `stopped` says so before the end.
        """
        with self._turn:
            while self._position < size:
                if stopped():
                    return False
                self._read_back(fd, min(size, self._position + _TURN))
            return self._hasher.hexdigest() == self._digest.encoded

    def restart(self) -> None:
        """Begin anew: other bytes will come."""
        with self._turn:
            self._hasher = self._digest.hasher()
            self._position = 0

    def _read_back(self, fd: int, until: int) -> None:
        if self._position >= until:
            return
        buffer = page_aligned(min(_BLOCK, until - self._position))
        while self._position < until:
            block = buffer[: until - self._position]
            read_exactly(fd, block, self._position)
            self._update(block)

    def _update(self, data: memoryview) -> None:
        self._hasher.update(data)
        self._position += len(data)
