"""The staged file of one download: opened by the first worker, saved now and then, put away once.

What the cache has of it is `StagedBlob`'s; which bytes are present is the download's to know.

Locks, which no reader takes: `Staging._opening` makes one worker at a time open and allocate the
file, `_recording` makes one at a time change what is on record of it. Under either the download's
lock may be taken, by what it passes in (`resumed`, `snapshot`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from epochfs.cache.blobs import BlobCache
from epochfs.cache.staged_blob import RangeSet, StagedBlob
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

_SAVE_SECONDS = 10.0


class Staging:
    """Where the bytes of one download go. Workers call it, and `fileno` who reads.

    `prepare` comes first. Raises CacheFailure, unless it says otherwise.
    """

    def __init__(self, cache: BlobCache, digest: Digest, size: int) -> None:
        self._cache = cache
        self._digest = digest
        self._size = size
        self._opening = threading.Lock()
        self._recording = threading.Lock()
        self._staged: StagedBlob | None = None
        self._saved = time.monotonic()

    def prepare(self, resumed: Callable[[RangeSet], None], *, whole: bool) -> None:
        """Open the file, and make room for the `whole` blob if all of it will come.

        `resumed` is called once, with what an earlier download left here.
        """
        with self._opening:
            if self._staged is None:
                self._staged = self._cache.stage(self._digest, self._size)
                resumed(self._staged.resumed)
            if whole:
                self._staged.allocate()

    def allocate(self) -> None:
        """Make room for the whole blob before it is written."""
        with self._opening:
            self._file.allocate()

    def fileno(self) -> int:
        """Return the descriptor of the file."""
        return self._file.fileno()

    def write(self, offset: int, view: memoryview) -> None:
        """Write all of `view` at `offset`; by many threads at once, of different ranges."""
        self._file.write(offset, view)

    def save_now_and_then(self, snapshot: Callable[[], RangeSet]) -> None:
        """If it is time, make what `snapshot` says is present outlive a crash.

        Where that fails, only a crash would show it, and only the log says so.
        """
        if not self._recording.acquire(blocking=False):
            return
        try:
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._saved = time.monotonic()
                self._file.checkpoint(snapshot())
        except CacheFailure as error:
            log.debug("what is here of %s would not survive a crash: %s", self._digest, error)
        finally:
            self._recording.release()

    def forget(self) -> None:
        """Let no later download take any byte here for present."""
        with self._recording:
            self._file.forget()

    def promote(self) -> None:
        """Have the cache keep the verified blob, or log that it cannot."""
        try:
            with self._recording:
                self._file.promote()
        except CacheFailure as error:
            self._cache.directory.report(f"{self._digest}: {error}")

    def discard(self) -> None:
        """Remove the file's name; open readers keep what they have."""
        with self._recording:
            self._file.discard()

    def put_away(self, present: RangeSet | None) -> None:
        """After the last worker: leave what is `present` to a later download, and close the file.

        Bytes that cannot be put on record, or are not wanted, would only fill the disk, and are
        removed; a blob that was promoted is no longer here.
        """
        if self._staged is None:
            return
        try:
            if present is not None:
                self._keep(present)
            else:
                self._file.discard()
        except CacheFailure as error:
            self._cache.directory.report(f"what was fetched of {self._digest}: {error}")
        finally:
            self._staged.close()

    def _keep(self, present: RangeSet) -> None:
        try:
            self._file.checkpoint(present)
        except CacheFailure:
            self._file.discard()
            raise

    @property
    def _file(self) -> StagedBlob:
        assert self._staged is not None
        return self._staged
