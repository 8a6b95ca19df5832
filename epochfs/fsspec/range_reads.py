"""Ranges of files: merged where they are near, read in parallel, a bounded number at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Thread
from typing import Protocol, TypeVar

NEAR = 1 << 20
"""Up to this many bytes between two ranges, fetching them costs less than another request."""

_SHARE = 16
"""Nor does it matter if what lies between is at most such a part of all that is wanted."""

MOST_AT_ONCE = 8

_PIECE = 1 << 20

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True)
class Range:
    """The bytes `[start, stop)` of a file, as the `number`th that was asked for."""

    number: int
    start: int
    stop: int


def bounded(start: int | None, end: int | None, size: int) -> tuple[int, int]:
    """Return what a slice of a file means: None and negative numbers as in Python's."""
    first, last, _ = slice(start, end).indices(size)
    return first, max(first, last)


def near_ranges(ranges: Sequence[Range], gap: int | None) -> Iterator[Sequence[Range]]:
    """Yield runs of ranges in rising order, with at most `gap` bytes from one to the next.

    Without a gap it is `NEAR`, or more where much is wanted.
    """
    if gap is None:
        gap = max(NEAR, sum(one.stop - one.start for one in ranges) // _SHARE)
    run: list[Range] = []
    end = 0
    for one in sorted(ranges, key=lambda one: (one.start, one.stop)):
        if run and one.start - end > gap:
            yield run
            run, end = [], 0
        run.append(one)
        end = max(end, one.stop)
    if run:
        yield run


class Reader(Protocol):
    """An open file; see `Handle`."""

    def expect(self, start: int, stop: int) -> None: ...

    def read_into(self, view: memoryview, offset: int) -> int: ...


def read_run(file: Reader, ranges: Sequence[Range]) -> Iterator[tuple[int, bytes]]:
    """Read ranges in rising order, with what is between them; yield each with its number.

    All is read in sequence, a piece at a time: a stream from the registry then goes on.
    """
    stop = max(one.stop for one in ranges)
    file.expect(ranges[0].start, stop)
    piece = memoryview(bytearray(min(_PIECE, stop - ranges[0].start)))
    begun: dict[Range, bytearray] = {}
    waiting = deque(ranges)
    position = ranges[0].start
    while position < stop:
        count = file.read_into(piece[: stop - position], position)
        end = position + count
        while waiting and (waiting[0].start < end or not count):
            one = waiting.popleft()
            begun[one] = bytearray()
        for one in list(begun):
            begun[one] += piece[max(0, one.start - position) : min(count, one.stop - position)]
            if one.stop <= end or not count:
                yield one.number, bytes(begun.pop(one))
        if not count:
            return
        position = end


def in_parallel(do: Callable[[A], B], items: Sequence[A]) -> list[B]:
    """Do it for each item, up to `MOST_AT_ONCE` at a time; return the results in their order.

    The first that raises ends it: what has not begun is left undone. The threads are daemons: an
    interpreter that ends, or a caller that is interrupted, does not wait for a silent registry.
    """
    if len(items) < 2:
        return [do(item) for item in items]
    results: dict[int, B] = {}
    failed: list[BaseException] = []
    remaining = iter(range(len(items)))  # whose `next` is atomic

    def work() -> None:
        for number in remaining:
            if failed:
                return
            try:
                results[number] = do(items[number])
            except BaseException as error:
                failed.append(error)

    count = min(MOST_AT_ONCE, len(items))
    threads = [Thread(target=work, name="epochfs-reads", daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException as error:
        failed.append(error)
        raise
    if failed:
        raise failed[0]
    return [results[number] for number in range(len(items))]


def requests(
    paths: list[str], starts: list[int | None] | int | None, ends: list[int | None] | int | None
) -> dict[str, list[tuple[int, int | None, int | None]]]:
    """Return what `cat_ranges` is asked for: of each path the number, start and end of its slices.

    Raises TypeError or ValueError as fsspec does.
    """
    if not isinstance(paths, list):
        raise TypeError("paths must be a list")
    firsts = starts if isinstance(starts, list) else [starts] * len(paths)
    lasts = ends if isinstance(ends, list) else [ends] * len(paths)
    if not len(paths) == len(firsts) == len(lasts):
        raise ValueError("as many starts and ends as paths are needed")
    found: dict[str, list[tuple[int, int | None, int | None]]] = {}
    for number, path in enumerate(paths):
        found.setdefault(path, []).append((number, firsts[number], lasts[number]))
    return found
