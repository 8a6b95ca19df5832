"""One blob on its way from the registry into the cache, shared by all who read it.

A `Download` knows which bytes of its staged file are present. Readers wait for the range they need.
Workers each fetch one claimed range at a time and hash what they can of the contiguous bytes from
the start; the one that finds all bytes present hashes the rest, and when the digest matches, the
blob is kept. What is hashed as it arrives must be what the file has: bytes that were there before
are read back, and if two streams may have written the same range, all are.

What to fetch next is `FetchPlan`'s to say. While a blob is fetched whole, the read that would take
its last byte is held back until the digest has matched. A server that ignores Range is given one
worker, which streams the whole blob whatever was asked.

Locks: `Download._lock` guards every underscored field; no I/O happens under it, and only `Budget`'s
lock, a leaf, is taken under it. Read without it are `verified`, `_closing` and `_failure`, which
change once, `_readable`, which moves forward until a failure resets it, and `_mark`, a hint.
`Staging`'s lock comes before it, `Verifier`'s is never taken with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from epochfs.blobs.buffers import page_aligned
from epochfs.blobs.connections import Budget
from epochfs.blobs.fetch_plan import Claim, FetchPlan
from epochfs.blobs.staged_file import Staging
from epochfs.blobs.verifier import Verifier
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.cache.staged_blob import RangeSet
from epochfs.client import BlobStream
from epochfs.config import BlobOptions
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    NeverThere,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    Vanished,
    fresh,
)
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

_READ_SIZE = 1 << 19
_BREAKS_WITHOUT_PROGRESS = 4
_PAUSE_SECONDS = 0.2
_OTHERS_SECONDS = 0.05

Source = Callable[[int, int | None], BlobStream]
"""Opens a stream of the blob's bytes `[start, end)`; to its end where `end` is None."""


@dataclass(slots=True, eq=False)
class _Waiter:
    """A thread that waits for a range, and how its wait ended."""

    start: int
    stop: int
    done: threading.Event = field(default_factory=threading.Event)
    error: EpochfsError | None = None


class Download:
    """One blob on its way into the cache. `read_into` is for any thread; `close` is called once.

    `distrust` is called when what came cannot be the blob; it returns whether `source` will ask
    another host from then on. `on_end` is called once, from one of its threads, when no later
    reader should join: after the blob was kept, or after it failed for good.
    """

    def __init__(
        self,
        digest: Digest,
        size: int,
        source: Source,
        cache: BlobCache,
        options: BlobOptions,
        budget: Budget,
        distrust: Callable[[], bool],
        on_end: Callable[[], None],
        *,
        ranged: bool | None,
        precise: bool = False,
    ) -> None:
        self.digest = digest
        self.size = size
        self.verified = False
        self._source = source
        self._options = options
        self._distrust = distrust
        self._on_end = on_end
        self._lock = threading.Lock()
        self._plan = FetchPlan(
            size, budget, whole=options.verify_first, ranged=ranged, precise=precise
        )
        self._staging = Staging(cache, digest, size)
        self._readable = 0
        self._mark = 0
        self._unused = False
        self._awake = threading.Event()
        self._awake.set()
        self._waiters: list[_Waiter] = []
        self._verifier = Verifier(digest)
        self._finishing = False
        self._overlapped = False
        self._threads = 0
        self._breaks = 0
        self._served = False
        self._refetched = False
        self._failure: EpochfsError | None = None
        self._closing = False
        self._idle = threading.Event()

    # ---- what readers call -------------------------------------------------------------------

    def read_into(self, view: memoryview, offset: int, *, run: int, timeout: float) -> None:
        """Fill `view` with the bytes at `offset`, inside the blob, once they may be read.

        `run` is how many bytes a reader that looks set to read on has read in sequence, else 0.
        Raises DeadlineExceeded when the bytes do not arrive within `timeout` seconds, or the error
        that kept them away.
        """
        stop = offset + len(view)
        if stop > self._readable:
            self._wait(offset, stop, run, timeout)
        elif run and stop > self._mark:
            self._look_ahead(offset, stop, run)
        read_exactly(self.fileno(), view, offset)

    def fileno(self) -> int:
        """Return the descriptor of the staged file, which exists once anything was read."""
        return self._staging.fileno()

    def read_present(self, view: memoryview, offset: int) -> bool:
        """Fill `view` with the bytes at `offset`, if all of them are here; return whether.

        Also after it failed, and unverified.
        """
        with self._lock:
            if not self._plan.present.covers(offset, offset + len(view)):
                return False
        try:
            read_exactly(self.fileno(), view, offset)
        except CacheFailure:
            return False
        return True

    @property
    def spoiled(self) -> bool:
        """Whether it ended on bytes of another digest, which readers may have been given."""
        return isinstance(self._failure, ContentMismatch)

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes present, and connections at work."""
        with self._lock:
            return self._plan.present.total, len(self._plan.claims)

    @property
    def ranged(self) -> bool | None:
        """Whether the server has proved Range; None while that is not known."""
        return self._plan.ranged

    def leave(self) -> None:
        """Take note that nobody has it open: no more is asked for, unless half of it is here."""
        with self._lock:
            self._unused = True

    def rest(self) -> None:
        """Stop what is under way until somebody reads again, unless half of it is here.

        A stream without Range is kept, though not read from: another would begin at the start.
        """
        with self._lock:
            if not self._is_unwanted:
                return
            self._awake.clear()
        if self._plan.ranged is not False:
            self._close_streams(0, self.size)

    def close(self) -> None:
        """Stop. What is present is kept for a later download once the last thread has ended."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            self._awake.set()
            last = self._threads == 0
            error = Unavailable("the mount is shutting down")
            self._end_waits(error)
        self._close_streams(0, self.size)
        if last:
            self._put_away()

    def wait_until_idle(self, seconds: float) -> bool:
        """Wait until a closed download has put everything away; return whether it has."""
        return self._idle.wait(seconds)

    def _look_ahead(self, start: int, stop: int, run: int) -> None:
        """Have more fetched for a reader that goes on."""
        with self._lock:
            self._take_note(start, stop, run)
            self._employ()

    def _wait(self, start: int, stop: int, run: int, timeout: float) -> None:
        with self._lock:
            self._take_note(start, stop, run)
            if self._failure is not None:
                raise fresh(self._failure)
            if self._may_read(start, stop):
                self._serve()
                if run:
                    self._employ()
                return
            waiter = _Waiter(start, stop)
            self._waiters.append(waiter)
            self._employ()
        in_time = waiter.done.wait(timeout)
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if waiter.error is not None:
                raise fresh(waiter.error)
        if not in_time:
            self._abandon(start, stop)
            raise DeadlineExceeded(
                f"bytes {start}-{stop - 1} of {self.digest} did not arrive in time"
            )

    def _abandon(self, start: int, stop: int) -> None:
        """Close the streams of a range that were too slow for a reader, so that it is asked anew.

        Otherwise one that trickles on for ever would keep everybody from those bytes. A stream
        without Range is left alone: what it has brought so far would have to come again.
        """
        if self._plan.ranged:
            self._close_streams(start, stop)

    def _close_streams(self, start: int, stop: int) -> None:
        """Close the streams of all claims on a range; their workers will come upon that."""
        with self._lock:
            claims = [claim for claim in self._plan.claims if claim.overlaps(start, stop)]
        for claim in claims:
            if claim.stream is not None:
                claim.stream.close()

    # ---- bookkeeping, all with the lock held -------------------------------------------------

    def _take_note(self, start: int, stop: int, run: int) -> None:
        """Take note of where a reader is, and that there is one."""
        mark = self._plan.reads(start, stop, run)
        if run:
            self._mark = mark
        self._unused = False
        self._awake.set()

    def _may_read(self, start: int, stop: int) -> bool:
        if self.verified:
            return True
        if self._options.verify_first or not self._plan.present.covers(start, stop):
            return False
        return stop < self.size or not (self._plan.whole or self._plan.complete)

    def _end_waits(self, error: EpochfsError | None = None) -> None:
        """Wake those whose range may be read now; with an error, wake everybody."""
        for waiter in list(self._waiters):
            if error is not None or self._may_read(waiter.start, waiter.stop):
                waiter.error = error
                if error is None:
                    self._serve()
                self._waiters.remove(waiter)
                waiter.done.set()

    def _employ(self) -> None:
        """Start as many workers as there is work for."""
        while (claim := self._next_claim()) is not None:
            name = f"fetch {self.digest.encoded[:8]}"
            worker = threading.Thread(target=self._run, args=(claim,), name=name, daemon=True)
            try:
                worker.start()
            except RuntimeError as error:
                self._plan.release(claim)
                if not self._plan.claims:
                    self._end_waits(Unavailable(f"no thread to fetch {self.digest}: {error}"))
                return
            self._threads += 1

    def _next_claim(self) -> Claim | None:
        if self._stopped or self._is_unwanted:
            return None
        return self._plan.next_claim((waiter.start, waiter.stop) for waiter in self._waiters)

    @property
    def _stopped(self) -> bool:
        return self._closing or self._failure is not None

    @property
    def _is_unwanted(self) -> bool:
        """Whether nobody is known to read it, and it is not worth finishing."""
        return self._unused and not self._waiters and not self._plan.half_present

    @property
    def _halted(self) -> bool:
        """Whether no more is to be fetched now."""
        rests = not self._awake.is_set() and self._plan.ranged is not False
        return rests or self._stopped

    # ---- workers -----------------------------------------------------------------------------

    def _run(self, claim: Claim) -> None:
        """Be a worker; whatever goes wrong, tell the readers, and leave nothing behind."""
        finishing = False
        try:
            try:
                self._work(claim)
                finishing = self._is_last()
                if finishing:
                    self._finish()
            except EpochfsError as error:
                self._fail(error, for_good=finishing)
            except Exception:
                log.exception("unforeseen failure while fetching %s", self.digest)
                self._fail(ProtocolViolation("unforeseen failure, see the log"), for_good=True)
        finally:
            with self._lock:
                self._threads -= 1
                last = self._closing and self._threads == 0
            if last:
                self._put_away()

    def _fail(self, error: EpochfsError, *, for_good: bool = False) -> None:
        """Give the error to all who wait; for good when trying again could not mend it."""
        if isinstance(error, NotFound):
            error = self._absent(error)
        for_good = for_good or isinstance(error, Vanished | ProtocolViolation | CacheFailure)
        with self._lock:
            if self._closing:
                return
            if for_good:
                self._failure = error
                self._readable = 0
            self._end_waits(error)
        log.debug("fetching %s failed: %s", self.digest, error)
        if for_good:
            self._on_end()

    def _absent(self, error: NotFound) -> EpochfsError:
        """Return what it means for a blob that is known that it is not found."""
        if isinstance(error, UnconfirmedNotFound):
            return Unavailable(str(error))  # who has answered may not be the registry
        return Vanished(str(error)) if self._plan.present.total else NeverThere(str(error))

    def _work(self, claim: Claim) -> None:
        """Fetch one claimed range after another until there is nothing left to claim."""
        buffer = page_aligned(_READ_SIZE)
        following: Claim | None = claim
        while following is not None:
            claim = following
            try:
                self._staging.prepare(self._resume, whole=self._plan.whole)
                self._fetch(claim, buffer)
            except (Unavailable, DeadlineExceeded):
                with self._lock:
                    self._plan.window.refused()
                    self._plan.release(claim)
                    if self._plan.claims:
                        return  # the others will see to it
                raise
            except BaseException:
                with self._lock:
                    self._plan.release(claim)
                raise
            with self._lock:
                self._plan.release(claim)
                following = self._next_claim()
                self._employ()

    def _is_last(self) -> bool:
        """Whether all bytes are here, and this thread is the first to come upon that."""
        with self._lock:
            last = self._plan.complete and not self._finishing and not self._stopped
            self._finishing = self._finishing or last
            return last

    def _resume(self, present: RangeSet) -> None:
        """Take over what an earlier download left."""
        with self._lock:
            for start, stop in present:
                self._add(start, stop)
            self._end_waits()

    def _fetch(self, claim: Claim, buffer: memoryview) -> None:
        """Fetch what a claimed range lacks, resuming where the stream breaks."""
        while (span := self._lacking(claim)) is not None:
            try:
                if not self._fetch_span(claim, buffer, *span):
                    return
            except ProtocolViolation:
                if not self._distrust():
                    raise

    def _fetch_span(self, claim: Claim, buffer: memoryview, start: int, stop: int) -> bool:
        """Fetch a range as far as its stream goes; False if another worker is sent all already."""
        before = self._plan.present.total
        with self._source(start, None if self._plan.ranged is False else stop) as stream:
            position, stop = self._accept(claim, stream, start, stop)
            if position == stop:
                return False
            try:
                while position < stop and self._goes_on(stream):
                    data = buffer[: stream.read_into(buffer)]
                    if stream.ranged:
                        data = data[: stop - position]
                    self._look_after(position, self._store(position, data))
                    position += len(data)
            except (Unavailable, DeadlineExceeded) as error:
                if not self._halted:
                    self._pause(error, progressed=self._plan.present.total > before)
        return True

    def _goes_on(self, stream: BlobStream) -> bool:
        """Return whether to read on from a stream; wait where it is kept for the next reader."""
        if not stream.ranged:
            self._awake.wait()
        return not self._halted

    def _lacking(self, claim: Claim) -> tuple[int, int] | None:
        """Return the first absent part of a claimed range."""
        with self._lock:
            if self._halted:
                return None
            return next(self._plan.present.missing(claim.start, claim.stop), None)

    def _accept(self, claim: Claim, stream: BlobStream, start: int, stop: int) -> tuple[int, int]:
        """Hold a stream's headers against what was asked; return the range to read from it.

        A server without Range sends the whole blob whatever was asked, so the claim grows to it,
        and everything will be there soon: the download is whole from then on.
        """
        if stream.total is not None and stream.total != self.size:
            raise ContentMismatch(
                f"{self.digest} has {stream.total} bytes, its descriptor says {self.size}"
            )
        with self._lock:
            claim.stream = stream
            self._plan.window.answered()
            self._plan.ranged = stream.ranged
            if not stream.ranged:
                first = self._plan.take_all(claim)
                self._overlapped = self._overlapped or len(self._plan.claims) > 1
                start, stop = (0, self.size) if first else (stop, stop)
            self._employ()
        if self._plan.whole:
            self._staging.allocate()
        return start, stop

    def _store(self, position: int, data: memoryview) -> memoryview:
        """Write what of `data` is not present yet, and let the readers know.

        Returns what the file has got of it, if that is all; else nothing.
        """
        if not data:
            raise Unavailable(f"the stream of {self.digest} ended early")
        stop = position + len(data)
        if stop > self.size:
            raise ContentMismatch(f"{self.digest} has more than its {self.size} bytes")
        with self._lock:
            absent = list(self._plan.present.missing(position, stop))
        for begin, end in absent:
            self._staging.write(begin, data[begin - position : end - position])
        with self._lock:
            self._plan.window.arrived(len(data))
            self._add(position, stop)
            self._end_waits()
        return data if absent == [(position, stop)] else data[:0]

    def _look_after(self, position: int, data: memoryview) -> None:
        """After the readers have been served: hash on, and now and then save what is here.

        `data` is what the file has at `position`, as far as it is known without reading it back.
        """
        if self._plan.whole:
            self._verifier.received(position, data, self.fileno(), self._plan.prefix)
        self._staging.save_now_and_then(self._snapshot)

    def _snapshot(self) -> RangeSet:
        with self._lock:
            return RangeSet(self._plan.present)

    def _add(self, start: int, stop: int) -> None:
        """Take `[start, stop)` as present. The lock is held."""
        was_whole = self._plan.whole
        self._plan.add(start, stop)
        self._publish()
        if self._plan.whole and not was_whole:
            self._employ()

    def _serve(self) -> None:
        """Take note that a reader gets bytes: from now on a mismatch can only be an error."""
        self._served = True
        self._publish()

    def _publish(self) -> None:
        """Let readers take the contiguous bytes without the lock, once any has been served."""
        settled = self.verified or self._failure is not None
        if self._served and not settled and not self._options.verify_first:
            self._readable = min(self._plan.prefix, self.size - 1)

    def _pause(self, error: EpochfsError, *, progressed: bool) -> None:
        """After a broken stream, wait a moment before it is resumed; give up when none helps."""
        with self._lock:
            self._breaks = 0 if progressed else self._breaks + 1
            breaks = self._breaks
        if breaks > _BREAKS_WITHOUT_PROGRESS:
            raise error
        log.debug("the stream of %s broke, resuming: %s", self.digest, error)
        time.sleep(_PAUSE_SECONDS * breaks)

    # ---- the end -----------------------------------------------------------------------------

    def _finish(self) -> None:
        """Once all bytes are here: keep them if the digest matches, refuse them if not."""
        if self._overlapped:
            self._await_others()
            self._verifier.restart()
        if not self._verifier.finish(self.fileno(), self.size, lambda: self._stopped):
            if self._stopped:
                return
            self._distrust()
            self._give_up_bytes()
            return
        with self._lock:
            self.verified = True
            self._readable = self.size
            self._end_waits()
        self._staging.promote()
        self._on_end()

    def _await_others(self) -> None:
        """Wait until nobody writes any more, since what they write may be here already."""
        self._close_streams(0, self.size)
        while self._plan.claims and not self._stopped:
            time.sleep(_OTHERS_SECONDS)

    def _give_up_bytes(self) -> None:
        """After a mismatch: fetch all once more if that may be, else raise ContentMismatch."""
        try:
            if self._start_over():
                return
            self._staging.discard()
        except CacheFailure as error:
            log.warning("wrong bytes of %s stay in the cache's way: %s", self.digest, error)
        raise ContentMismatch(f"the bytes sent for {self.digest} have another digest")

    def _start_over(self) -> bool:
        """Forget all bytes and fetch them once more, if none has been served; return whether.

        In one step, so that no reader comes upon the bytes that are given up.
        """
        self._staging.forget()
        self._verifier.restart()
        with self._lock:
            if self._served or self._refetched:
                return False
            self._refetched = True
            self._finishing = self._overlapped = False
            self._plan.present = RangeSet()
            self._employ()
        log.warning("the bytes sent for %s have another digest, fetching again", self.digest)
        return True

    def _put_away(self) -> None:
        """After the last thread: leave what is present to a later download, and close the file."""
        wanted = not self.verified and self._failure is None
        try:
            self._staging.put_away(self._plan.present if wanted else None)
        finally:
            self._idle.set()
