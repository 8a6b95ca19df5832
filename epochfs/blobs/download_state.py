"""The state of one download: the bytes present, the readers that wait, the workers' claims.

`DownloadState` opens no file and no stream: it starts the worker threads of a `Download` as they
are needed, and what they bring wakes the readers. What to fetch next is `FetchPlan`'s to say.

Locks: `DownloadState._lock` guards every field, `Readers` and the plan; no I/O happens under it,
and only `Budget`'s lock, a leaf, is taken under it. Read without it are `closing`, `failure` and
`verified`, which change once, `readable`, which moves forward until a failure resets it, `mark`, a
hint, `overlapped`, once all is present, and of the plan `whole`, which turns true once, and
`ranged`, which the first answer settles.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from epochfs.blobs.fetch_plan import Claim, FetchPlan
from epochfs.cache.staged_blob import RangeSet
from epochfs.client import BlobStream
from epochfs.errors import (
    CacheFailure,
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

_GIVEN_BYTES = 1 << 20
"""What was given to readers is noted in blocks of so many bytes: they may read here and there."""


@dataclass(slots=True, eq=False)
class Waiter:
    """A thread that waits for a range, and the error that ended its wait."""

    start: int
    stop: int
    done: threading.Event = field(default_factory=threading.Event)
    error: EpochfsError | None = None


class Readers:
    """Who waits for which bytes of a blob, and what may be read. The caller locks.

    `readable` is how many bytes from the start may be read without waiting. Once a reader was
    `served`, a mismatch can only be an error. `settled` is how the download ends.

    The kernel may keep what one reader was given, and give it to another. So what was given of the
    bytes behind `readable` is noted, and the read after which all of the blob would have been given
    waits for the digest, whoever reads it.
    """

    def __init__(self, plan: FetchPlan, *, verify_first: bool) -> None:
        self.waiters: list[Waiter] = []
        self.readable = 0
        self.served = False
        self.verified = False
        self.settled = False
        self._given = RangeSet()
        self._plan = plan
        self._verify_first = verify_first

    def may_read(self, start: int, stop: int) -> bool:
        """Whether `[start, stop)` is present, and need not wait for the digest."""
        if self.verified:
            return True
        if self._verify_first or not self._plan.present.covers(start, stop):
            return False
        if stop == self._plan.size and (self._plan.whole or self._plan.complete):
            return False
        return not self._plan.complete or self._leaves_some(start, stop)

    def _leaves_some(self, start: int, stop: int) -> bool:
        """Whether some bytes have been given to nobody once `[start, stop)` is."""
        kept_back = self._given.missing(self.readable, self._plan.size)
        return any(begin < start or end > stop for begin, end in kept_back)

    def wake(self, error: EpochfsError | None = None) -> None:
        """Wake those whose range may be read now; with an error, everybody."""
        for waiter in list(self.waiters):
            if error is not None or self.may_read(waiter.start, waiter.stop):
                waiter.error = error
                if error is None:
                    self.serve(waiter.start, waiter.stop)
                self.waiters.remove(waiter)
                waiter.done.set()

    def serve(self, start: int, stop: int) -> None:
        """Note that a reader gets `[start, stop)`."""
        self.served = True
        if stop > self.readable:
            stop = min(-(-stop // _GIVEN_BYTES) * _GIVEN_BYTES, self._plan.size)
            self._given.add(start // _GIVEN_BYTES * _GIVEN_BYTES, stop)
        self.publish()

    def publish(self) -> None:
        """Let readers take the contiguous bytes without the lock, once any has been served."""
        if self.served and not self.settled and not self._verify_first:
            readable = self._plan.prefix
            if self._plan.complete:
                kept_back = self._given.missing(self.readable, readable)
                readable = max((end - 1 for _, end in kept_back), default=self.readable)
            self.readable = readable

    def settle(self, *, verified: bool) -> None:
        """Let everything be read from now on, or nothing more without asking."""
        self.settled, self.verified = True, verified
        self.readable = self._plan.size if verified else 0


class DownloadState:
    """The state of one download, shared by its readers and workers. Any thread may call anything.

    `mark` is where a sequential reader should `wait` even for readable bytes, so that more is
    fetched ahead. Where streams `overlapped`, two may have written the same range, so the file must
    be hashed from its start.
    """

    def __init__(
        self, digest: Digest, plan: FetchPlan, work: Callable[[Claim], None], *, verify_first: bool
    ) -> None:
        """`work` is what a worker thread does, given its first claim."""
        self.plan = plan
        self.readers = Readers(plan, verify_first=verify_first)
        self.closing = False
        self.failure: EpochfsError | None = None
        self.mark = 0
        self.overlapped = False
        self._digest = digest
        self._work = work
        self._lock = threading.Lock()
        self._awake = threading.Event()
        self._awake.set()
        self._threads = 0
        self._breaks = 0
        self._unused = False
        self._finishing = False
        self._refetched = False

    # ---- for readers -------------------------------------------------------------------------

    def wait(self, start: int, stop: int, run: int, timeout: float) -> bool:
        """Wait until `[start, stop)` may be read; return whether that was within `timeout` seconds.

        Raises the error that keeps the bytes away.
        """
        readers = self.readers
        with self._lock:
            mark = self.plan.reads(start, stop, run)
            if run:
                self.mark = mark
            self._unused = False
            self._awake.set()
            if self.failure is not None:
                raise fresh(self.failure)
            if readers.may_read(start, stop):
                readers.serve(start, stop)
                if run:
                    self._start_workers()
                return True
            waiter = Waiter(start, stop)
            readers.waiters.append(waiter)
            self._start_workers()
        in_time = waiter.done.wait(timeout)
        with self._lock:
            if waiter in readers.waiters:
                readers.waiters.remove(waiter)
            if waiter.error is not None:
                raise fresh(waiter.error)
        return in_time

    @property
    def progress(self) -> tuple[int, int]:
        """Bytes present, and connections at work."""
        with self._lock:
            return self.plan.present.total, len(self.plan.claims)

    def streams(self, start: int, stop: int) -> list[BlobStream]:
        with self._lock:
            claims = [claim for claim in self.plan.claims if claim.overlaps(start, stop)]
            return [claim.stream for claim in claims if claim.stream is not None]

    def leave(self) -> None:
        """Note that nobody has it open."""
        with self._lock:
            self._unused = True

    def rest(self) -> bool:
        """Have workers stop until somebody reads again; False if the blob is still wanted."""
        with self._lock:
            if self._is_wanted():
                return False
            self._awake.clear()
            return True

    def close(self) -> bool:
        """Have workers stop for good; return whether none is left. False if closed before."""
        with self._lock:
            if self.closing:
                return False
            self.closing = True
            self._awake.set()
            self.readers.wake(Unavailable("the mount is shutting down"))
            return self._threads == 0

    # ---- for workers -------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """Whether nothing is fetched any more."""
        return self.closing or self.failure is not None

    def goes_on(self, *, ranged: bool = True) -> bool:
        """Whether to go on fetching. A stream that is not `ranged` waits for the next reader."""
        if not ranged:
            self._awake.wait()
        return not self.stopped and (self._awake.is_set() or self.plan.ranged is False)

    def lacking(self, claim: Claim) -> tuple[int, int] | None:
        """Return the first absent part of a claimed range."""
        with self._lock:
            if not self.goes_on():
                return None
            claim.present_before = self.plan.present.total
            return next(self.plan.present.missing(claim.start, claim.stop), None)

    def accept(
        self, claim: Claim, stream: BlobStream, start: int, stop: int
    ) -> tuple[int, int, bool]:
        """Take a stream for `[start, stop)`; return what to read of it, and whether all is wanted.

        A server without Range sends the whole blob whatever was asked, so the claim grows to it,
        and the download is whole from then on. Nothing is to be read if another worker already
        gets all of it.
        """
        with self._lock:
            claim.stream = stream
            self.plan.window.answered()
            self.plan.ranged = stream.ranged
            if not stream.ranged:
                first = self.plan.take_all(claim)
                self.overlapped = self.overlapped or len(self.plan.claims) > 1
                start, stop = (0, self.plan.size) if first else (stop, stop)
            self._start_workers()
            return start, stop, self.plan.whole

    def absent(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of `[start, stop)` that are still to be written."""
        with self._lock:
            return list(self.plan.present.missing(start, stop))

    def add(self, ranges: Iterable[tuple[int, int]], received: int = 0) -> int | None:
        """Count ranges of the file as present, after so many bytes were `received`; wake readers.

        Returns how many are present from the start without a gap; None if not all are wanted.
        """
        with self._lock:
            if received:
                self.plan.window.arrived(received)
            was_whole = self.plan.whole
            for start, stop in ranges:
                self.plan.add(start, stop)
            self.readers.publish()
            self.readers.wake()
            if self.plan.whole and not was_whole:
                self._start_workers()
            return self.plan.prefix if self.plan.whole else None

    def snapshot(self) -> RangeSet:
        with self._lock:
            return RangeSet(self.plan.present)

    def broke(self, claim: Claim) -> int:
        """Count a broken stream; return how many in a row broke without progress."""
        with self._lock:
            progressed = self.plan.present.total > claim.present_before
            self._breaks = 0 if progressed else self._breaks + 1
            return self._breaks

    def release(self, claim: Claim, *, refused: bool = False) -> bool:
        """End the claim of a worker that failed; return whether others are at work.

        `refused` if the registry pushed back or could not be reached.
        """
        with self._lock:
            if refused:
                self.plan.window.refused()
            self.plan.release(claim)
            return bool(self.plan.claims)

    def next_claim(self, claim: Claim) -> Claim | None:
        """End a claim that was fetched; return the worker's next one."""
        with self._lock:
            self.plan.release(claim)
            following = self._next_claim()
            self._start_workers()
            return following

    def leave_work(self) -> bool:
        """Note that a worker ends; return whether it is the last of a closed download."""
        with self._lock:
            self._threads -= 1
            return self.closing and self._threads == 0

    # ---- the end -----------------------------------------------------------------------------

    def is_last(self) -> bool:
        """Whether all bytes are present, and this thread is the first to notice."""
        with self._lock:
            last = self.plan.complete and not self._finishing and not self.stopped
            self._finishing = self._finishing or last
            return last

    def confirm(self) -> None:
        """Let everything be read: the digest has matched."""
        with self._lock:
            self.readers.settle(verified=True)
            self.readers.wake()

    def start_over(self) -> bool:
        """Forget all bytes and fetch them once more, if none has been served; return whether.

        In one step, so that no reader sees the bytes that are given up.
        """
        with self._lock:
            if self.readers.served or self._refetched:
                return False
            self._refetched = True
            self._finishing = self.overlapped = False
            self.plan.present = RangeSet()
            self._start_workers()
            return True

    def fail(self, error: EpochfsError, *, for_good: bool) -> bool:
        """Give an error to all who wait; return whether it is final: retrying could not help."""
        with self._lock:
            if self.closing:
                return False
            if isinstance(error, UnconfirmedNotFound):
                error = Unavailable(str(error))  # what answered may not be the registry
            elif isinstance(error, NotFound):
                known = self.plan.present.total
                error = Vanished(str(error)) if known else NeverThere(str(error))
            for_good = for_good or isinstance(error, Vanished | ProtocolViolation | CacheFailure)
            if for_good:
                self.failure = error
                self.readers.settle(verified=False)
            self.readers.wake(error)
        log.debug("fetching %s failed: %s", self._digest, error)
        return for_good

    # ---- all below: with the lock held -------------------------------------------------------

    def _start_workers(self) -> None:
        """Start as many workers as there is work for."""
        while (claim := self._next_claim()) is not None:
            name = f"fetch {self._digest.encoded[:8]}"
            worker = threading.Thread(target=self._work, args=(claim,), name=name, daemon=True)
            try:
                worker.start()
            except RuntimeError as error:
                self.plan.release(claim)
                if not self.plan.claims:
                    self.readers.wake(Unavailable(f"no thread to fetch {self._digest}: {error}"))
                return
            self._threads += 1

    def _next_claim(self) -> Claim | None:
        if self.stopped or not self._is_wanted():
            return None
        waiters = self.readers.waiters
        return self.plan.next_claim([(waiter.start, waiter.stop) for waiter in waiters])

    def _is_wanted(self) -> bool:
        """Whether it has a reader, or is worth finishing."""
        return not self._unused or bool(self.readers.waiters) or self.plan.half_present
