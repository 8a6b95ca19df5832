"""The bytes of a blob that are present, and those to fetch next. Pure; the caller locks.

A blob is fetched **by chunks** while reads look random: each absent aligned chunk by itself. It is
fetched **whole** once a reader looks sequential, or half of it is present, or it is small: segment
after segment from where the readers are, over as many connections as the `Window` says.

Whole does not mean all at once: what is fetched ahead of a reader is as much as it has read in
sequence, so that it doubles as the reader goes on, and the first megabytes of a large blob cost the
registry twice that. The rest is wanted once half is present, or a reader waits for the last byte,
which is held back until all have been verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from epochfs.blobs.connections import MIB, Budget, Window
from epochfs.cache.staged_blob import RangeSet

CHUNK = MIB
"""What a random read fetches, aligned, in bytes."""

PRECISE = 64 * 1024
"""To what the range of a read is widened where its reader knows what it needs, in bytes."""

SMALL = 4 * MIB
"""A blob up to this many bytes is fetched whole, in one request, at its first read."""


FIRST_AHEAD = 2 * MIB
"""How much is fetched ahead of a reader that begins to look sequential, in bytes."""

_NEAR = 2 * MIB
"""How far behind a claim a reader may be for its worker to come to him next, in bytes."""

_ALONE = 16
"""How many segments a download asks for at a time while others use up the connections."""

SEGMENT_ALONE = 64 * MIB
"""The most that this comes to, in bytes, if a segment is not larger."""


class Closeable(Protocol):
    """A stream that another thread may close."""

    def close(self) -> None:
        """Close it, waking whoever reads from it."""


@dataclass(slots=True, eq=False)
class Claim:
    """A range `[start, stop)` that one worker has undertaken to fetch."""

    start: int
    stop: int
    stream: Closeable | None = None

    def overlaps(self, start: int, stop: int) -> bool:
        """Whether it has some of the bytes `[start, stop)`."""
        return self.start < stop and start < self.stop


class FetchPlan:
    """The state of one blob's fetching.

    `ranged` is None until the server has shown whether it honours Range. Before it is True, one
    worker at a time is enough: the first answer tells. `precise` is for a reader that knows what
    it needs: a chunk is then no larger than the range that is waited for.
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
        self._precise = precise
        self.whole = whole or size <= SMALL
        self._at_once = self.whole
        self.ranged = ranged
        self.present = RangeSet()
        self.claims: list[Claim] = []
        self._cursor = 0
        self._reach = 0

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
        """Take note of a reader at `[start, stop)` that has read `run` bytes in sequence, or 0 if
        that may be chance. Return how far it may go on before this is to be called again.
        """
        if not run:
            return self.size
        self.whole = True
        ahead = max(FIRST_AHEAD, self.window.size * MIB, run)
        self._cursor, self._reach = start, min(stop + ahead, self.size)
        return stop + ahead // 2

    def next_claim(self, waiting: Iterable[tuple[int, int]]) -> Claim | None:
        """Claim the most urgent absent range: one that is waited for, else what a whole lacks."""
        spans = list(waiting)
        enough = self._enough_workers()
        if enough:
            spans = [span for span in spans if self._is_far_off(span[0])]
            if not spans or self.ranged is not True or len(self.claims) > self.window.size:
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
        if any(other is not claim and self._is_all(other) for other in self.claims):
            return False
        claim.start, claim.stop = 0, self.size
        return True

    def _is_all(self, claim: Claim) -> bool:
        return (claim.start, claim.stop) == (0, self.size)

    def _is_far_off(self, position: int) -> bool:
        """Whether a reader there would wait for more than the end of what is being fetched.

        One worker more than there should be is worth that he need not.
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
        """How much one request asks for: much where no other connection could have taken a part."""
        segment = self.window.segment
        if not self.all_wanted:
            # So that what is ahead is not left to one connection where others would help.
            share = (self._reach - self._cursor) // self.window.size
            segment = min(segment, max(MIB, share - share % MIB))
        alone = not self.claims and not self._budget.spare
        return max(segment, min(_ALONE * segment, SEGMENT_ALONE)) if alone else segment

    def _reach_from(self, position: int) -> int:
        """Return up to where may be fetched with what is at a position; 0 if that is by itself."""
        if self.all_wanted:
            return self.size
        return self._reach if self._cursor - _NEAR <= position else 0

    def _widen(self, taken: RangeSet, begin: int, until: int) -> tuple[int, int]:
        """Turn an absent byte into a request worth making: a segment, or an aligned chunk."""
        if self.size <= SMALL:
            return next(taken.missing(0, self.size))
        if self.whole and self.ranged and begin < (reach := self._reach_from(begin)):
            return next(taken.missing(begin, min(begin + self._segment, reach)))
        grain = PRECISE if self._precise else CHUNK
        start = begin - begin % grain
        stop = min(start + CHUNK, until + -until % grain, self.size)
        return next(span for span in taken.missing(start, stop) if span[1] > begin)
