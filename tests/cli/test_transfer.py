"""What a transfer shows: percentage, rate and time left that are true, and not too often."""

from __future__ import annotations

import pytest

from epochfs.cli.progress import LiveLine
from epochfs.cli.transfer import TransferView, shown_size, summary
from epochfs.session.prefetcher import Progress

MIB = 1 << 20


class Recorded(LiveLine):
    """Keeps what would be written."""

    def __init__(self, *, is_live: bool) -> None:
        super().__init__()
        self._is_live = is_live
        self.shown: list[str] = []
        self.said: list[str] = []

    @property
    def is_live(self) -> bool:
        return self._is_live

    def show(self, text: str) -> None:
        self.shown.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def after(moved: int, *, there: int = 0, size: int = 400 * MIB) -> Progress:
    """The progress when `moved` bytes were fetched and `there` bytes were there from the start."""
    left = size - there - moved
    return Progress(blobs=8, size=size, left=left, moved=moved, fetched=2, there=1)


def test_the_rate_is_that_of_the_last_ten_seconds(clock: Clock) -> None:
    line = Recorded(is_live=True)
    view = TransferView(line, clock)
    view.fetching(after(0))
    for second in range(1, 21):
        clock.now = 100.0 + second
        view.fetching(after(second * MIB if second <= 10 else (10 + 4 * (second - 10)) * MIB))
    assert line.shown[10] == "2 %  10.0 MiB of 400 MiB  1.0 MiB/s  6:30 left  3/8 blobs"
    assert line.shown[-1] == "12 %  50.0 MiB of 400 MiB  4.0 MiB/s  1:28 left  3/8 blobs"


def test_bytes_that_were_there_count_as_done_but_not_as_speed(clock: Clock) -> None:
    line = Recorded(is_live=True)
    view = TransferView(line, clock)
    view.fetching(after(0, there=200 * MIB))
    assert line.shown == ["50 %  200 MiB of 400 MiB  0 B/s  -:-- left  3/8 blobs"]
    clock.now += 2
    view.fetching(after(20 * MIB, there=200 * MIB))
    assert line.shown[-1] == "55 %  220 MiB of 400 MiB  10.0 MiB/s  0:18 left  3/8 blobs"


def test_a_terminal_is_written_to_ten_times_a_second_at_most(clock: Clock) -> None:
    line = Recorded(is_live=True)
    view = TransferView(line, clock)
    for _ in range(100):
        clock.now += 0.01
        view.finding(after(0))
    assert 9 <= len(line.shown) <= 10
    assert line.said == []


def test_where_nobody_watches_there_is_a_line_every_ten_seconds(clock: Clock) -> None:
    line = Recorded(is_live=False)
    view = TransferView(line, clock)
    for second in range(26):
        clock.now = 100.0 + second
        view.fetching(after(second * MIB))
    assert [said.split("  ")[1] for said in line.said] == [
        "10.0 MiB of 400 MiB",
        "20.0 MiB of 400 MiB",
    ]
    assert line.shown == []


def test_what_took_hours_is_shown_in_hours(clock: Clock) -> None:
    line = Recorded(is_live=True)
    view = TransferView(line, clock)
    view.fetching(after(0, size=20_000 * MIB))
    clock.now += 1
    view.fetching(after(2 * MIB, size=20_000 * MIB))
    assert "  2:46:39 left  " in line.shown[-1]


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 KiB"),
        (150 * 1024, "150 KiB"),
        (1.3 * 1024**3, "1.3 GiB"),
        (5000 * 1024**4, "5000.0 TiB"),
    ],
)
def test_sizes_are_read_at_a_glance(size: float, shown: str) -> None:
    assert shown_size(size) == shown


def test_the_summary_says_what_became_of_all() -> None:
    progress = Progress(blobs=12, size=int(1.3 * 1024**3), fetched=9, there=2, failed=1)
    assert summary(progress) == "12 blobs, 1.3 GiB: 9 fetched, 2 were there, 1 failed"
