"""What a progress bar shows: percentage, rate and time left that are true, and not too often."""

from __future__ import annotations

import io
import logging
from types import SimpleNamespace

import pytest
import tqdm.std

from epochfs.cli import output
from epochfs.cli.output import AboveBars, ProgressBar, notify, shown_size
from epochfs.cli.prefetch import show_transfer, summary, transfer_bar
from epochfs.session.prefetcher import Progress

MIB = 1 << 20


class Terminal(io.StringIO):
    """Keeps what is written, and says that it is a terminal."""

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """What was shown, line by line, without the bars themselves and what wipes them."""
        shown = (line.partition("|") for line in self.getvalue().split("\r"))
        parts = [(head, tail.rpartition("|")[2]) for head, _, tail in shown if head.strip()]
        return [f"{head.strip()}{tail.rstrip()}" for head, tail in parts]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(tqdm.std, "time", clock)
    return clock


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    terminal = Terminal()
    monkeypatch.setattr(output, "sys", SimpleNamespace(stderr=terminal))
    return terminal


def after(moved: int, *, there: int = 0, size: int = 400 * MIB) -> Progress:
    """The progress when `moved` bytes were fetched and `there` bytes were there from the start."""
    left = size - there - moved
    return Progress(blobs=8, size=size, left=left, fetched=2, there=1)


def test_the_rate_is_that_of_the_last_seconds(clock: Clock, terminal: Terminal) -> None:
    with transfer_bar(after(0)) as bar:
        for second in range(1, 41):
            clock.now = 100.0 + second
            show_transfer(bar, after(second * MIB if second <= 10 else (4 * second - 30) * MIB))
            if second == 10:
                assert terminal.lines[-1] == (
                    "epochfs: 2 % 10.0 MiB of 400 MiB, 1.0 MiB/s, 06:30 left, 3/8 blobs"
                )
    assert terminal.lines[-1] == (
        "epochfs: 32 % 130 MiB of 400 MiB, 4.0 MiB/s, 01:07 left, 3/8 blobs"
    )


def test_bytes_that_were_there_count_as_done_but_not_as_speed(
    clock: Clock, terminal: Terminal
) -> None:
    with transfer_bar(after(0, there=200 * MIB)) as bar:
        assert terminal.lines == ["epochfs: 50 % 200 MiB of 400 MiB, 0 B/s, ? left"]
        clock.now += 2
        show_transfer(bar, after(20 * MIB, there=200 * MIB))
    assert terminal.lines[-1] == (
        "epochfs: 55 % 220 MiB of 400 MiB, 10.0 MiB/s, 00:18 left, 3/8 blobs"
    )


def test_a_terminal_is_written_to_ten_times_a_second_at_most(
    clock: Clock, terminal: Terminal
) -> None:
    with transfer_bar(after(0)) as bar:
        for hundredth in range(100):
            clock.now += 0.01
            show_transfer(bar, after(hundredth))
    assert 9 <= len(terminal.lines) <= 11


def test_a_bar_leaves_nothing_behind(terminal: Terminal) -> None:
    with transfer_bar(after(0)):
        pass
    assert terminal.getvalue().rpartition("\r")[0].rpartition("\r")[2].strip() == ""


def test_a_bar_that_is_not_due_yet_is_not_shown(clock: Clock, terminal: Terminal) -> None:
    with ProgressBar("waiting, {elapsed_s:.0f} s{bar}", delay=1.0) as bar:
        clock.now += 0.9
        bar.update(0)
        assert terminal.lines == []
        clock.now += 0.2
        bar.update(0)
        assert terminal.lines == ["epochfs: waiting, 1 s"]


@pytest.mark.expects_log("be warned")
def test_lines_that_stay_are_written_above_the_bar(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = logging.getLogger("epochfs.test")
    monkeypatch.setattr(logger, "handlers", [AboveBars(terminal)])
    with transfer_bar(after(0)):
        notify("lost one")
        logger.warning("be warned")
    stays = [line.rpartition("\r")[2] for line in terminal.getvalue().split("\n")]
    assert stays[0] == "epochfs: lost one"
    assert stays[1].endswith("be warned")


def test_where_nobody_watches_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with transfer_bar(after(0)) as bar:
        show_transfer(bar, after(MIB))
        notify("lost one")
    assert capsys.readouterr() == ("", "epochfs: lost one\n")


def test_what_takes_hours_is_shown_in_hours(clock: Clock, terminal: Terminal) -> None:
    with transfer_bar(after(0, size=20_000 * MIB)) as bar:
        clock.now += 1
        show_transfer(bar, after(2 * MIB, size=20_000 * MIB))
    assert ", 2:46:39 left, " in terminal.lines[-1]


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
    assert summary(progress) == "12 blobs, 1.3 GiB: 9 fetched, 2 already cached, 1 failed"
