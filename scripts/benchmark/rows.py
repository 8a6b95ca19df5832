"""What a row of the table is: something measured again and again, and the bar it must reach."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Generator
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from scripts.benchmark.lab import Lab


@dataclass(frozen=True, slots=True)
class Sample:
    """One repetition: what epochfs took and, in a race, what its rival took."""

    ours: float
    rival: float | None = None


@dataclass(frozen=True, slots=True)
class Bar:
    """What the medians must reach.

    - "time": ours divided by the rival's is at most `value`;
    - "speed": the rival's divided by ours is at least `value`;
    - "limit": ours, in `unit`, is at most `value`; there is no rival;
    - "none": there is nothing to reach, and nothing of epochfs: it says what the machine does.
    """

    kind: Literal["time", "speed", "limit", "none"]
    value: float
    unit: str = "s"

    @property
    def speed(self) -> float:
        """How many times as fast as the rival epochfs must be."""
        return self.value if self.kind == "speed" else 1 / self.value


def time_at_most(times: float) -> Bar:
    """Epochfs may take at most so many times the rival's time."""
    return Bar("time", times)


def speed_at_least(times: float) -> Bar:
    """Epochfs must be at least so many times as fast as its rival."""
    return Bar("speed", times)


def at_most(value: float, unit: str) -> Bar:
    """Epochfs may take, or make, at most so much, whatever others do."""
    return Bar("limit", value, unit)


def no_bar() -> Bar:
    """What is measured, in seconds, is the machine's and not epochfs's."""
    return Bar("none", 0.0)


Samples = Generator[Sample, None, None]
"""One sample a repetition, for as long as it is asked; what it set up goes when it is closed."""

Measure = Callable[["Lab"], Samples]


RUNS, FEW_RUNS = 5, 3
"""How often a row is measured, and one that takes long."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    `rival` says whom it is against, `needs` names their programs, `runs` how often it is measured
    unless somebody wants it otherwise.
    """

    name: str
    title: str
    bar: Bar
    measure: Measure
    rival: str = ""
    needs: tuple[str, ...] = ()
    runs: int = RUNS


def row(
    name: str,
    title: str,
    bar: Bar,
    rival: str = "",
    needs: tuple[str, ...] = (),
    runs: int = RUNS,
) -> Callable[[Measure], Row]:
    """Make a row of the function that measures it."""

    def decorate(measure: Measure) -> Row:
        return Row(name, title, bar, measure, rival, needs, runs)

    return decorate


@dataclass(frozen=True, slots=True)
class Result:
    """A row as measured. Without samples, `note` says why there are none.

    `memory` is the most that any epochfs process of the row had resident, in bytes; 0: none ran
    under watch.
    """

    row: Row
    samples: tuple[Sample, ...] = ()
    memory: int = 0
    note: str = ""

    @property
    def ours(self) -> float:
        """The median of epochfs."""
        return median(sample.ours for sample in self.samples)

    @property
    def rival(self) -> float | None:
        """The median of the rival, where there is one."""
        values = [sample.rival for sample in self.samples if sample.rival is not None]
        return median(values) if values else None

    @property
    def speed(self) -> float | None:
        """How many times as fast as the rival epochfs was."""
        return self.rival / self.ours if self.rival is not None else None

    @property
    def score(self) -> float:
        """What is held against the bar: a ratio of medians, or the median itself."""
        if self.rival is None:
            return self.ours
        return self.ours / self.rival if self.row.bar.kind == "time" else self.rival / self.ours

    @property
    def verdict(self) -> str:
        """`ok`, `SHORT` of the bar, or why nothing was measured."""
        if not self.samples:
            return self.note
        if self.row.bar.kind == "none":
            return ""
        short = self.score < self.row.bar.value
        if self.row.bar.kind != "speed":
            short = self.score > self.row.bar.value
        return "SHORT" if short else "ok"


def race(ours: Callable[[], float], rival: Callable[[], float]) -> Samples:
    """Run both again and again, on a quiet disk each time, taking turns at going first."""
    for number in itertools.count():
        if number % 2 == 0:
            mine = quietly(ours)
            theirs = quietly(rival)
        else:
            theirs = quietly(rival)
            mine = quietly(ours)
        yield Sample(mine, theirs)


def repeat(ours: Callable[[], float]) -> Samples:
    """Run it again and again, on a quiet disk each time."""
    while True:
        yield Sample(quietly(ours))


def quietly(measure: Callable[[], float]) -> float:
    """Measure once nothing is left to be written to disk by what came before."""
    os.sync()
    return measure()
