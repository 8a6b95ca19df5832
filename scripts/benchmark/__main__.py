"""The command line of `scripts/bench`."""

from __future__ import annotations

import fnmatch
import importlib.util
import itertools
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from epochfs.errors import EpochfsError
from scripts.benchmark import (
    blobrows,
    linkrows,
    namerows,
    report,
    sharedrows,
    touchedrows,
    volumerows,
)
from scripts.benchmark.content import MIB
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, Missing, find
from scripts.benchmark.rows import Result, Row, Sample, Samples, at_most, row


@row("memory", "resident memory, the most of any row", at_most(120, "MiB"))
def _memory(lab: Lab) -> Samples:
    if not lab.peaks:
        raise Missing("no row ran that watches it")
    yield Sample(max(lab.peaks) / MIB)


ROWS = (
    *blobrows.ROWS,
    *linkrows.ROWS,
    *touchedrows.ROWS,
    *sharedrows.ROWS,
    *namerows.ROWS,
    *volumerows.ROWS,
    _memory,
)
"""All rows, in the order of the table."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, metavar="N")
@click.option(
    "--only", "patterns", multiple=True, metavar="PATTERN", help="Rows by name, as in 'cold-*'."
)
@click.option("--list", "listing", is_flag=True, help="Show the rows and stop.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every sample.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the races.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where to work: a directory on a disk.  [default: the system's, often /tmp]",
)
def main(
    runs: int,
    patterns: tuple[str, ...],
    listing: bool,
    json_file: Path | None,
    plot_file: Path | None,
    scratch: Path | None,
) -> None:
    """Measure epochfs beside its rivals: medians of N runs, ratios, and the bar of each row.

    The exit code is 1 if a row failed, 130 after a Ctrl-C, and 0 otherwise, be a row SHORT or not.
    """
    chosen = [each for each in ROWS if _matches(each.name, patterns)]
    if not chosen:
        raise click.UsageError(f"no row is called like {' or '.join(patterns)}; see --list")
    if plot_file is not None and importlib.util.find_spec("matplotlib") is None:
        raise click.UsageError("--plot needs matplotlib: pip install epochfs[bench]")
    if listing:
        click.echo(report.table([Result(each) for each in chosen]))
        return
    # What stops and removes everything is the unwinding of a Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    results: list[Result] = []
    try:
        _measure_all(chosen, runs, scratch, results)
        code = int(any(result.note.startswith("FAILED") for result in results))
    except KeyboardInterrupt:
        code = 130
    if results:
        _show(results, runs, json_file, plot_file)
    sys.exit(code)


def _show(results: list[Result], runs: int, json_file: Path | None, plot_file: Path | None) -> None:
    about = ", ".join(f"{name} {value}" for name, value in report.machine().items())
    click.echo(f"Medians of {runs}; {about}.\n\n{report.table(results)}")
    if json_file is not None:
        report.write_json(json_file, results)
    if plot_file is not None:
        from scripts.benchmark import chart

        chart.draw(plot_file, results)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _measure_all(
    rows: Sequence[Row], runs: int, scratch: Path | None, results: list[Result]
) -> None:
    """Measure the rows one after another; what is finished is in `results` at any time."""
    with Lab(scratch) as lab:
        for each in rows:
            results.append(_measure(lab, each, runs))
            click.echo(report.table(results[-1:]).partition("\n")[2], err=True)


def _measure(lab: Lab, each: Row, runs: int) -> Result:
    measured_before = len(lab.peaks)
    try:
        for program in ("epochfs", *each.needs):
            find(program)
        with closing(each.measure(lab)) as measuring:
            samples = tuple(itertools.islice(measuring, runs))
    except Missing as error:
        return Result(each, note=f"skipped: {error}")
    except (Failed, EpochfsError, OSError) as error:
        return Result(each, note=f"FAILED: {error}")
    return Result(each, samples, max(lab.peaks[measured_before:], default=0))


if __name__ == "__main__":
    main(prog_name="scripts/bench")
