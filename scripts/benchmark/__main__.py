"""The command line of `scripts/bench`."""

from __future__ import annotations

import fnmatch
import importlib.util
import itertools
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click

from epochfs.errors import EpochfsError
from scripts.benchmark import (
    blobrows,
    layerrows,
    linkrows,
    namerows,
    report,
    sharedrows,
    touchedrows,
    volumerows,
    walkrows,
    writerows,
)
from scripts.benchmark.content import MIB
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, Missing, find
from scripts.benchmark.rows import FEW_RUNS, RUNS, Result, Row, Sample, Samples, at_most, row


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
    *walkrows.ROWS,
    *volumerows.ROWS,
    *layerrows.ROWS,
    *writerows.ROWS,
    _memory,
)
"""All rows, in the order of the table."""


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--runs",
    type=click.IntRange(1),
    metavar="N",
    help=f"How often to measure each row.  [default: {RUNS}, or {FEW_RUNS} where one takes long]",
)
@click.option(
    "--only", "patterns", multiple=True, metavar="PATTERN", help="Rows by name, as in 'cold-*'."
)
@click.option("--list", "listing", is_flag=True, help="Show the rows and stop.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Write every sample.")
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(path_type=Path),
    help="Write the table for a page.",
)
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Draw the races.")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Where to work: a directory on a disk.  [default: the system's, often /tmp]",
)
def main(
    runs: int | None,
    patterns: tuple[str, ...],
    listing: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
    scratch: Path | None,
) -> None:
    """Measure epochfs beside its rivals: medians of some runs, ratios, and the bar of each row.

    A row that fails does not keep those after it from being measured. The exit code is 1 if a row
    failed, 130 after a Ctrl-C, and 0 otherwise, be a row SHORT or not.
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
        click.echo(f"{report.about(results)}\n\n{report.table(results)}")
        _write(results, json_file, markdown_file, plot_file)
    sys.exit(code)


def _write(
    results: list[Result],
    json_file: Path | None,
    markdown_file: Path | None,
    plot_file: Path | None,
) -> None:
    if json_file is not None:
        report.write_json(json_file, results)
    if markdown_file is not None:
        markdown_file.write_text(report.markdown(results))
    if plot_file is not None:
        from scripts.benchmark import chart

        chart.draw(plot_file, results)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _measure_all(
    rows: Sequence[Row], runs: int | None, scratch: Path | None, results: list[Result]
) -> None:
    """Measure the rows one after another; what is finished is in `results` at any time."""
    with Lab(scratch) as lab:
        for each in rows:
            began = time.monotonic()
            results.append(_measure(lab, each, runs))
            line = report.table(results[-1:]).partition("\n")[2]
            click.echo(f"{line}  ({time.monotonic() - began:.0f} s)", err=True)


def _measure(lab: Lab, each: Row, runs: int | None) -> Result:
    measured_before = len(lab.peaks)
    try:
        for program in ("epochfs", *each.needs):
            find(program)
        with closing(each.measure(lab)) as measuring:
            samples = tuple(itertools.islice(measuring, runs or each.runs))
    except Missing as error:
        return Result(each, note=f"skipped: {error}")
    except (Failed, EpochfsError, OSError) as error:
        return Result(each, note=f"FAILED: {error}")
    except Exception as error:  # a mistake of ours; the rows after it are measured all the same
        traceback.print_exc()
        return Result(each, note=f"FAILED: {type(error).__name__}: {error}")
    return Result(each, samples, max(lab.peaks[measured_before:], default=0))


if __name__ == "__main__":
    main(prog_name="scripts/bench")
