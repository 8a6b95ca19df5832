"""How many connections a download uses: as many as pay, and one where that is fast."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from epochfs.blobs.fetch_plan import (
    LARGEST_SEGMENT,
    MIB,
    SMALLEST_SEGMENT,
    Budget,
    FetchPlan,
    Window,
)


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


def fed(window: Window, clock: Clock, rate_of_one: float, seconds: float) -> None:
    """Let each of the window's connections bring so many bytes a second for a while."""
    for _ in range(round(seconds / 0.01)):
        clock.now += 0.01
        window.arrived(int(rate_of_one * window.size * 0.01))


def test_a_fast_connection_stays_alone_and_asks_for_much() -> None:
    clock = Clock()
    window = Window(8, clock)
    fed(window, clock, 600 * MIB, 3)
    assert window.size == 1
    assert window.segment > 100 * MIB


def test_slow_connections_become_as_many_as_are_allowed_within_a_second() -> None:
    clock = Clock()
    window = Window(8, clock)
    fed(window, clock, 20 * MIB, 1)
    assert window.size == 8


def test_connections_that_bring_nothing_more_are_given_up() -> None:
    clock = Clock()
    window = Window(8, clock)
    sizes = []
    for _ in range(200):
        clock.now += 0.01
        window.arrived(int(30 * MIB * 0.01))  # together, however many they are
        sizes.append(window.size)
    assert max(sizes) > 1
    assert sizes[-1] == 1


def test_a_refusal_halves_them_and_holds_them_there_for_a_while() -> None:
    clock = Clock()
    window = Window(8, clock)
    fed(window, clock, 20 * MIB, 1)
    window.refused()
    fed(window, clock, 20 * MIB, 1)
    assert window.size == 4


def test_a_segment_is_never_absurd() -> None:
    clock = Clock()
    window = Window(8, clock)
    fed(window, clock, 10.0, 1)
    assert window.segment == SMALLEST_SEGMENT
    fed(window, clock, 1e12, 1)
    assert window.segment == LARGEST_SEGMENT


def in_steps(window: Window, clock: Clock, *, answers_after: float, reads_for: float) -> None:
    """Let a connection of 600 MiB/s be asked for 4 MiB at a time, with time to read in between."""
    for _ in range(40):
        window.asked()
        clock.now += answers_after
        window.answered()
        fed(window, clock, 600 * MIB, 0.01)
        window.idle()
        clock.now += reads_for


def test_what_a_connection_waits_for_its_reader_says_nothing_of_its_pace() -> None:
    clock = Clock()
    window = Window(8, clock)
    in_steps(window, clock, answers_after=0.03, reads_for=2.0)
    assert window.size == 1
    assert window.segment > 100 * MIB


def test_a_long_way_to_the_registry_is_worth_more_connections() -> None:
    clock = Clock()
    window = Window(8, clock)
    in_steps(window, clock, answers_after=0.1, reads_for=0.0)
    assert window.size > 1


@pytest.mark.parametrize(
    ("present", "start"),
    [(6 * MIB, 6 * MIB), (5 * MIB, 5 * MIB), (3 * MIB, 6 * MIB), (7 * MIB - 1, 7 * MIB - 1)],
)
def test_a_request_begins_with_what_a_read_has_overtaken_if_that_is_little(
    present: int, start: int
) -> None:
    plan = FetchPlan(64 * MIB, Budget(8), whole=False, ranged=True)
    plan.add(0, present)
    plan.reads(6 * MIB, 7 * MIB, 5 * MIB)
    claim = plan.next_claim([(6 * MIB, 7 * MIB)])
    assert claim is not None
    assert claim.start == start
    assert claim.stop >= 7 * MIB
