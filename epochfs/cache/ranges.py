"""Sets of byte ranges: which parts of a blob are present. Pure; the caller locks."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator


class RangeSet:
    """Disjoint half-open byte ranges `[start, stop)` in rising order, adjacent ones joined."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []
        for start, stop in ranges:
            self.add(start, stop)

    def add(self, start: int, stop: int) -> None:
        """Add `[start, stop)`; an empty one adds nothing. Raises ValueError below 0."""
        if start < 0:
            raise ValueError("a range starts before 0")
        if start >= stop:
            return
        first = bisect_left(self._stops, start)
        last = bisect_right(self._starts, stop)
        if first < last:
            start = min(start, self._starts[first])
            stop = max(stop, self._stops[last - 1])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]

    def end_of_run(self, offset: int) -> int:
        """Return where the present bytes that begin at `offset` end; `offset` if it is absent."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def covers(self, start: int, stop: int) -> bool:
        """Whether every byte of `[start, stop)` is present."""
        return self.end_of_run(start) >= stop

    def missing(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the absent parts of `[start, stop)` in rising order."""
        while start < stop:
            start = self.end_of_run(start)
            index = bisect_right(self._starts, start)
            until = min(stop, self._starts[index]) if index < len(self._starts) else stop
            if start < until:
                yield start, until
            start = until

    @property
    def total(self) -> int:
        """How many bytes are present."""
        return sum(self._stops) - sum(self._starts)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(zip(self._starts, self._stops, strict=True))

    def __repr__(self) -> str:
        return f"RangeSet({list(self)})"
