"""The races as a picture: how many times as fast as its rival epochfs was.

Needs matplotlib, the extra `bench`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from scripts.benchmark.rows import Result

_OURS, _MARK = "#2b6cb0", "#c05621"


def draw(file: Path, results: Sequence[Result]) -> None:
    """Draw the races among the results into `file`, whose suffix says the format."""
    races = [result for result in reversed(results) if result.samples and result.rival is not None]
    speeds = [result.speed or 0.0 for result in races]
    bars = [result.row.bar.speed for result in races]
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(races)), layout="constrained")
    axes = figure.subplots()
    # From the line of "as fast as the rival", to either side of it.
    lengths = [speed - 1 for speed in speeds]
    axes.barh(range(len(races)), lengths, left=1, color=_OURS, height=0.6, label="epochfs")
    axes.scatter(bars, range(len(races)), color=_MARK, marker="|", s=300, label="the bar")
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}x")
    axes.set_yticks(
        range(len(races)), [f"{result.row.title}\nagainst {result.row.rival}" for result in races]
    )
    axes.tick_params(axis="y", labelsize=8)
    for place, speed in enumerate(speeds):
        side = "left" if speed >= 1 else "right"
        axes.annotate(f" {speed:.1f}x ", (speed, place), ha=side, va="center", fontsize=8)
    axes.margins(x=0.12)
    axes.set_xlabel("times as fast as the rival (right of the line: epochfs is faster)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(file, dpi=120)
