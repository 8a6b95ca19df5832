"""One blob on its way from the registry into the cache, shared by all who read it.

Readers wait until the range they need is present in the staged file. Workers each fetch one claimed
range at a time and hash what they can of the contiguous bytes from the start; the one that finds
all bytes present hashes the rest, and when the digest matches, the blob is kept. What is hashed as
it arrives must be what the file has: bytes that were there before are read back, and if two streams
may have written the same range, all are.

While a blob is fetched whole, the read that would take its last byte is held back until the digest
has matched. A server that ignores Range is given one worker, which streams the whole blob whatever
was asked.

Locks: `Download` has none, and does all the I/O. What is shared is in three parts, each with its
own: `DownloadState` (bytes, readers, workers), `StagedFile` (the file) and its `Verifier` (the
hash). A lock of `StagedFile` comes before the state's; the `Verifier`'s is taken with no other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from epochfs.blobs.buffers import page_aligned
from epochfs.blobs.download_state import DownloadState
from epochfs.blobs.fetch_plan import Budget, Claim, FetchPlan
from epochfs.blobs.origin import Origin
from epochfs.blobs.staged_file import StagedFile
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.config import BlobOptions
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
)

log = logging.getLogger(__name__)

_READ_SIZE = 1 << 19
_OTHERS_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class DownloadContext:
    """What the downloads of one registry have in common."""

    cache: BlobCache
    options: BlobOptions
    budget: Budget


class Download:
    """One blob on its way into the cache. Any thread may call anything.

    `on_end` is called once, from a worker, when no later reader should join: after the blob was
    kept, or after it failed for good. A `precise` reader knows what it needs (see `FetchPlan`).
    """

    def __init__(
        self,
        origin: Origin,
        context: DownloadContext,
        on_end: Callable[[], None],
        *,
        precise: bool = False,
    ) -> None:
        self.digest = origin.digest
        self.size = origin.size
        self._origin = origin
        self._on_end = on_end
        verify_first = context.options.verify_first
        plan = FetchPlan(
            origin.size, context.budget, whole=verify_first, ranged=origin.ranged, precise=precise
        )
        self.state = DownloadState(origin.digest, plan, self._run, verify_first=verify_first)
        self._staged = StagedFile(context.cache, origin.digest, origin.size)
        self._idle = threading.Event()

    # ---- for readers -------------------------------------------------------------------------

    def read_into(self, view: memoryview, offset: int, *, run: int, timeout: float) -> None:
        """Fill `view` with the bytes at `offset`, inside the blob, once they may be read.

        Takes and raises what `locate` does.
        """
        read_exactly(self.locate(offset, len(view), run=run, timeout=timeout), view, offset)

    def locate(self, offset: int, count: int, *, run: int, timeout: float) -> int:
        """Wait until bytes inside the blob may be read; return a descriptor of their file.

        `run` is how many bytes a reader that looks set to read on has read in sequence, else 0.
        Raises DeadlineExceeded when the bytes do not arrive within `timeout` seconds, or the error
        that kept them away.
        """
        stop = offset + count
        state = self.state
        asks = stop > state.readers.readable or (run > 0 and stop > state.mark)
        if asks and not state.wait(offset, stop, run, timeout):
            # One that trickles on for ever would keep everybody from those bytes. A stream without
            # Range is left alone: what it has brought would have to come again.
            if state.plan.ranged:
                self._close_streams(offset, stop)
            raise DeadlineExceeded(
                f"bytes {offset}-{stop - 1} of {self.digest} did not arrive in time"
            )
        return self._staged.fd

    def expect(self, *, ahead: bool) -> None:
        """Note that a reader will read on, or that it will jump; the latest counts for all."""
        self.state.plan.announced = ahead
        self.state.plan.precise = not ahead

    def fileno(self) -> int:
        """Return the descriptor of the staged file, which exists once anything was read."""
        return self._staged.fd

    def read_present(self, view: memoryview, offset: int) -> bool:
        """Fill `view` with the bytes at `offset`, if all are here; return whether. Unverified."""
        if self.state.absent(offset, offset + len(view)):
            return False
        try:
            read_exactly(self._staged.fd, view, offset)
        except CacheFailure:
            return False
        return True

    @property
    def verified(self) -> bool:
        """Whether the digest has matched."""
        return self.state.readers.verified

    def rest(self) -> None:
        """Stop what is under way until somebody reads again, unless half of it is here.

        A stream without Range is kept, though not read from: another would begin at the start.
        """
        if self.state.rest() and self.state.plan.ranged is not False:
            self._close_streams(0, self.size)

    def close(self) -> None:
        """Stop. What is present is kept for a later download once the last worker has ended."""
        last = self.state.close()
        self._close_streams(0, self.size)
        if last:
            self._put_away()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until a closed download has put everything away; return whether it has."""
        return self._idle.wait(seconds)

    def _close_streams(self, start: int, stop: int) -> None:
        """Close the streams that bring any of a range; their workers will notice."""
        for stream in self.state.streams(start, stop):
            stream.close()

    # ---- for workers -------------------------------------------------------------------------

    def _run(self, claim: Claim) -> None:
        """Be a worker; tell the readers whatever goes wrong, and leave nothing behind."""
        finishing = False
        try:
            try:
                self._work(claim)
                finishing = self.state.is_last()
                if finishing:
                    self._finish()
            except EpochfsError as error:
                self._fail(error, for_good=finishing)
            except Exception:
                log.exception("unforeseen failure while fetching %s", self.digest)
                self._fail(ProtocolViolation("unforeseen failure, see the log"), for_good=True)
        finally:
            if self.state.leave_work():
                self._put_away()

    def _fail(self, error: EpochfsError, *, for_good: bool) -> None:
        if self.state.fail(error, for_good=for_good):
            if isinstance(self.state.failure, ContentMismatch):
                self._origin.spoiled()
            self._on_end()

    def _work(self, claim: Claim) -> None:
        """Fetch one claimed range after another until there is nothing left to claim."""
        buffer = page_aligned(_READ_SIZE)
        following: Claim | None = claim
        while following is not None:
            claim = following
            try:
                self._staged.prepare(self.state.add, whole=self.state.plan.whole)
                self._fetch(claim, buffer)
            except (Unavailable, DeadlineExceeded):
                if self.state.release(claim, refused=True):
                    return  # the others go on
                raise
            except BaseException:
                self.state.release(claim)
                raise
            following = self.state.next_claim(claim)

    def _fetch(self, claim: Claim, buffer: memoryview) -> None:
        """Fetch what a claimed range lacks, resuming where the stream breaks."""
        while (span := self.state.lacking(claim)) is not None:
            try:
                if not self._fetch_span(claim, buffer, *span):
                    return
            except ProtocolViolation:
                if not self._origin.distrust():
                    raise

    def _fetch_span(self, claim: Claim, buffer: memoryview, start: int, stop: int) -> bool:
        """Fetch a range as far as its stream goes; False if another worker already gets it all."""
        end = None if self.state.plan.ranged is False else stop
        with self._origin.source(start, end) as stream:
            self._origin.check_size(stream)
            position, stop, whole = self.state.accept(claim, stream, start, stop)
            if whole:
                self._staged.allocate()
            if position == stop:
                return False
            try:
                while position < stop and self.state.goes_on(ranged=stream.ranged):
                    data = buffer[: stream.read_into(buffer)]
                    if stream.ranged:
                        data = data[: stop - position]
                    self._store(position, data)
                    position += len(data)
            except (Unavailable, DeadlineExceeded) as error:
                if self.state.goes_on():
                    self._origin.pause(error, self.state.broke(claim))
        return True

    def _store(self, position: int, data: memoryview) -> None:
        """Write what is not present of `data`, let the readers know, and hash on.

        The hash takes `data` only if all of it was written; else what the file has is read back.
        """
        if not data:
            raise Unavailable(f"the stream of {self.digest} ended early")
        stop = position + len(data)
        if stop > self.size:
            raise ContentMismatch(f"{self.digest} has more than its {self.size} bytes")
        absent = self.state.absent(position, stop)
        for begin, end in absent:
            self._staged.write(begin, data[begin - position : end - position])
        prefix = self.state.add([(position, stop)], len(data))
        if prefix is not None:
            written = data if absent == [(position, stop)] else data[:0]
            self._staged.verifier.received(position, written, self._staged.fd, prefix)
        self._staged.save_now_and_then(self.state.snapshot)

    # ---- the end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Once all bytes are here: keep them if the digest matches, refuse them if not."""
        verifier = self._staged.verifier
        if self.state.overlapped:
            self._await_others()
            verifier.restart()
        if not verifier.finish(self._staged.fd, self.size, lambda: self.state.stopped):
            if self.state.stopped:
                return
            self._origin.distrust()
            self._give_up_bytes()
            return
        self.state.confirm()
        self._staged.promote()
        self._on_end()

    def _await_others(self) -> None:
        """Wait until nobody writes any more: what they write may be hashed already."""
        self._close_streams(0, self.size)
        while self.state.progress[1] and not self.state.stopped:
            time.sleep(_OTHERS_SECONDS)

    def _give_up_bytes(self) -> None:
        """After a mismatch: fetch all once more if that is allowed, else raise ContentMismatch."""
        try:
            self._staged.forget()
            self._staged.verifier.restart()
            if self.state.start_over():
                log.warning(
                    "the bytes sent for %s have another digest, fetching again", self.digest
                )
                return
            self._staged.discard()
        except CacheFailure as error:
            log.warning(
                "cannot remove the wrong bytes of %s from the cache: %s", self.digest, error
            )
        raise ContentMismatch(f"the bytes sent for {self.digest} have another digest")

    def _put_away(self) -> None:
        """After the last worker: leave what is present to a later download, and close the file."""
        wanted = not self.verified and self.state.failure is None
        try:
            self._staged.put_away(self.state.plan.present if wanted else None)
        finally:
            self._idle.set()
