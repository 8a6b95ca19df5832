"""Plans the fetching of a blob: the bytes present, the range to fetch next, the connections.

A blob is fetched **by chunks** while reads look random: each absent aligned chunk by itself, and of
a read that is itself as large exactly what it reads. It is fetched **whole** once a reader looks
sequential, or half of it is present, or it is small: segment after segment from where the readers
are, over as many connections as the `Window` says.

Whole does not mean all at once: what is fetched ahead of a reader is little, until it has read for
long, has said that it will, or is one of many that use up the connections; then as much as it has
read in sequence, so that it doubles as the reader goes on. The rest is wanted once half is present,
or a reader waits for the last byte, which is held back until all have been verified.

More connections help where each is slow (a rate limit, a long round trip) and hurt where the disk
or the processor is the limit: one that is fast stays alone. Otherwise the `Window` finds the
number by trying: doubled while that pays, taken back when it did not, halved when the registry
pushes back.

Locks: `FetchPlan` and `Window` are pure, and their caller locks. `Budget._lock` guards its count
and is a leaf.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from epochfs.cache.staged_blob import RangeSet
from epochfs.client import BlobStream

MIB = 1 << 20
SMALLEST_SEGMENT = MIB
LARGEST_SEGMENT = 256 * MIB
_FIRST_SEGMENT = 8 * MIB
_FIRST_TICK_SECONDS = 0.05
_SLOW_SIZE = 4
"""How many to try at once when the first connection proves slow."""

_FAST = 128 * MIB
"""Bytes a second at which a connection waits for us, not we for it."""

_TICK_SECONDS = 0.2
_SEGMENT_SECONDS = 0.25
_WORTH = 1.2
_HOLD_SECONDS = 5.0

CHUNK = MIB
"""What a random read fetches, aligned, in bytes; one of half as much or more only what it reads."""

PRECISE = 64 * 1024
"""What a `precise` read is widened to, aligned, in bytes."""

SMALL = 4 * MIB
"""A blob up to this many bytes is fetched whole, in one request, at its first read."""

FIRST_AHEAD = 3 * MIB // 2
"""How much is fetched ahead of a reader that begins to look sequential, in bytes."""

LONG_RUN = 12 * MIB
"""How much is read in sequence before that is no chance: more than a large tensor, and what the
kernel reads around it."""

_NEAR = 2 * MIB
"""How far behind a claim a reader may be for its worker to reach it next, in bytes."""

_ALONE = 16
"""How many segments a download asks for at once while others use up the connections."""

SEGMENT_ALONE = 64 * MIB
"""The most bytes these add up to, unless one segment is larger."""


class Budget:
    """How many connections the downloads of one registry use together.

    Each may have its first whatever the others do, and more only while `limit` is not used up, so
    that many readers of many blobs do not each open as many as one alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._lock = threading.Lock()

    @property
    def spare(self) -> bool:
        """Whether another connection may be opened beside a download's first."""
        return self._used < self.limit

    def take(self) -> None:
        """Count a connection as used."""
        with self._lock:
            self._used += 1

    def give_back(self) -> None:
        """Count a connection as no longer used."""
        with self._lock:
            self._used -= 1


class Window:
    """How many connections one download should use (`size`, at most `most`), by trying.

    `segment` is how many bytes one request should ask for: about a quarter of a second's worth.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.size = 1
        self._most = most
        self._clock = clock
        self._began = clock()
        self._idle_since: float | None = self._began
        self._asked: float | None = None
        self._tick = _FIRST_TICK_SECONDS
        self._bytes = 0
        self._best_rate = 0.0
        self._best_size = self.size
        self._held_until = 0.0
        self.segment = _FIRST_SEGMENT

    def idle(self) -> None:
        """Note that nothing is asked for any more."""
        self._idle_since = self._clock()

    def asked(self) -> None:
        """Note that something is asked for: the idle time before it does not count."""
        if self._idle_since is not None:
            self._asked = self._clock()
            self._began += self._asked - self._idle_since
            self._idle_since = None

    def answered(self) -> None:
        """Note that bytes are about to come.

        The time to the first answer is not their pace, unless it was long: then the round trip is
        long, and more connections help.
        """
        if self._asked is not None:
            took = self._clock() - self._asked
            self._began += took if took < _FIRST_TICK_SECONDS else 0.0
            self._asked = None

    def arrived(self, count: int) -> None:
        """Note `count` bytes, and once a tick how fast they come."""
        self._bytes += count
        now = self._clock()
        elapsed = now - self._began
        if elapsed < self._tick:
            return
        rate = self._bytes / elapsed
        self._began, self._bytes, self._tick = now, 0, _TICK_SECONDS
        wanted = rate / self.size * _SEGMENT_SECONDS
        self.segment = int(min(max(wanted, SMALLEST_SEGMENT), LARGEST_SEGMENT)) // MIB * MIB
        if rate / self.size >= _FAST:
            return
        if rate > self._best_rate * _WORTH:
            self._best_rate, self._best_size = rate, self.size
            self.size = min(max(self.size * 2, _SLOW_SIZE), self._most)
        elif self.size > self._best_size:
            self.size, self._held_until = self._best_size, now + _HOLD_SECONDS
        elif now > self._held_until:
            self._best_rate = rate
            self.size = min(self.size * 2, self._most)

    def refused(self) -> None:
        """Note that the registry pushed back or a connection broke."""
        self.size = self._best_size = max(1, self.size // 2)
        self._held_until = self._clock() + _HOLD_SECONDS


@dataclass(slots=True, eq=False)
class Claim:
    """A range `[start, stop)` that one worker has undertaken to fetch."""

    start: int
    stop: int
    stream: BlobStream | None = None
    present_before: int = 0
    """How many bytes of the blob were present when its stream was opened."""

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether it has some of the bytes `[start, stop)`."""
        return self.start < stop and start < self.stop


class FetchPlan:
    """The state of one blob's fetching.

    `ranged` is None until the server has shown whether it honours Range. Before it is True, one
    worker at a time is enough: the first answer tells. `precise` is for a reader that knows what
    it needs: a chunk is then no larger than the range it waits for.
    """

    def __init__(
        self,
        size: int,
        budget: Budget,
        *,
        whole: bool,
        ranged: bool | None,
        precise: bool = False,
    ) -> None:
        self.size = size
        self.window = Window(budget.limit)
        self._budget = budget
        self.precise = precise
        self.whole = whole or size <= SMALL
        self._at_once = self.whole
        self.ranged = ranged
        self.present = RangeSet()
        self.claims: list[Claim] = []
        self._cursor = 0
        self._reach = 0
        self.announced = False
        """Whether a reader has said that it will read on: requests are then never small."""

    @property
    def prefix(self) -> int:
        """How many bytes from the start are present without a gap."""
        return self.present.end_of_run(0)

    @property
    def complete(self) -> bool:
        """Whether every byte is present."""
        return self.prefix >= self.size

    @property
    def half_present(self) -> bool:
        """Whether so much is here that the rest is worth having."""
        return 2 * self.present.total >= self.size

    @property
    def all_wanted(self) -> bool:
        """Whether all that is absent is to be fetched, wherever the readers are."""
        return self._at_once or self.ranged is False or self.half_present

    def add(self, start: int, stop: int) -> None:
        """Take `[start, stop)` as present."""
        self.present.add(start, stop)
        self.whole = self.whole or self.half_present

    def reads(self, start: int, stop: int, run: int) -> int:
        """Note a reader at `[start, stop)` that has read `run` bytes in sequence, or 0 if that may
        be chance. Return how far it may go on before this is to be called again.
        """
        if not run:
            return self.size
        self.whole = True
        ahead = FIRST_AHEAD
        if run > LONG_RUN or self.announced:
            ahead = max(ahead, self.window.size * MIB, run)
        elif not self._budget.spare:
            ahead = max(ahead, run)  # among many readers, many small requests cost more
        self._cursor, self._reach = start, min(stop + ahead, self.size)
        return stop + ahead // 2

    def next_claim(self, spans: list[tuple[int, int]]) -> Claim | None:
        """Claim the most urgent absent range: one of the `spans` that readers wait for, or else
        what a blob fetched whole lacks."""
        enough = self._enough_workers()
        if enough:
            if self.ranged is not True or len(self.claims) > self.window.size:
                return None
            spans = [span for span in spans if self._is_far_off(span[0])]
            if not spans:
                return None
        taken = RangeSet(self.present)
        for claim in self.claims:
            taken.add(claim.start, claim.stop)
        if self.whole and not enough:
            self._at_once = self._at_once or any(stop >= self.size for _, stop in spans)
            if self.all_wanted:
                spans += [(self._cursor, self.size), (0, self._cursor)]
            else:
                spans.append((self._cursor, self._reach))
        for start, stop in spans:
            for begin, until in taken.missing(start, stop):
                claim = Claim(*self._widen(taken, begin, until))
                self.window.asked()
                self.claims.append(claim)
                self._budget.take()
                return claim
        return None

    def release(self, claim: Claim) -> None:
        """End a claim, whether its range was fetched or not."""
        self.claims.remove(claim)
        if not self.claims:
            self.window.idle()
        self._budget.give_back()

    def take_all(self, claim: Claim) -> bool:
        """Grow a claim to the blob whose server sends all of it; False if another did already."""
        self.whole = True
        others = [other for other in self.claims if other is not claim]
        if any(other.stop - other.start == self.size for other in others):
            return False
        claim.start, claim.stop = 0, self.size
        return True

    def _is_far_off(self, position: int) -> bool:
        """Whether a reader there would wait for more than the end of what is being fetched.

        Sparing it that is worth one extra worker.
        """
        return not any(claim.start <= position < claim.stop + _NEAR for claim in self.claims)

    def _enough_workers(self) -> bool:
        if not self.claims:
            return False
        if self.ranged is not True:
            return True
        if not self.whole:
            return False  # a chunk for each reader that waits
        return len(self.claims) >= self.window.size or not self._budget.spare

    @property
    def _segment(self) -> int:
        """How much one request asks for: more where no other connection could take a part."""
        segment = self.window.segment
        if not self.all_wanted:
            # So that what is ahead is not left to one connection where others would help.
            share = (self._reach - self._cursor) // self.window.size
            segment = min(segment, max(MIB, share - share % MIB))
        if self.announced:
            segment = max(segment, _FIRST_SEGMENT)
        alone = not self.claims and not self._budget.spare
        return max(segment, min(_ALONE * segment, SEGMENT_ALONE)) if alone else segment

    def _reach_from(self, position: int) -> int:
        """Return how far a segment at a position may reach; 0 if its chunk is fetched alone."""
        if self.all_wanted:
            return self.size
        return self._reach if self._cursor - _NEAR <= position else 0

    def _just_before(self, taken: RangeSet, begin: int) -> int:
        """Return where what is absent up to `begin` starts, or `begin` unless that is near.

        The kernel reads ahead with several requests at once, and one may overtake another. What it
        has overtaken would be a second request, and all that follows be hashed from the file.
        """
        nearest = begin
        for start, stop in taken.missing(max(0, begin - _NEAR), begin):
            nearest = start if stop == begin and start > begin - _NEAR else begin
        return nearest

    def _widen(self, taken: RangeSet, begin: int, until: int) -> tuple[int, int]:
        """Turn absent bytes into a request worth making: a segment, or a chunk."""
        if self.size <= SMALL:
            return next(taken.missing(0, self.size))
        if self.whole and self.ranged and begin < (reach := self._reach_from(begin)):
            begin = self._just_before(taken, begin)
            return next(taken.missing(begin, min(begin + self._segment, reach)))
        if until - begin >= CHUNK // 2:
            return begin, min(begin + CHUNK, until)
        grain = PRECISE if self.precise else CHUNK
        start = begin - begin % grain
        stop = min(start + CHUNK, until + -until % grain, self.size)
        return next(span for span in taken.missing(start, stop) if span[1] > begin)
