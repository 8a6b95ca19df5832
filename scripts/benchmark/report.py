"""What was measured: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import epochfs
from scripts.benchmark.content import MIB
from scripts.benchmark.rows import Bar, Result

_HEADINGS = ("row", "what", "epochfs", "rival", "", "ratio", "bar", "memory", "")
_RIGHT = frozenset({2, 3, 5, 7})
"""The columns of numbers, which are set to the right."""


_WORDS = {"time": "x its time", "speed": "x as fast"}


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    return {
        "epochfs": epochfs.__version__,
        "python": platform.python_version(),
        "kernel": platform.release(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
    }


def about(results: Sequence[Result]) -> str:
    """Return what the figures are medians of, and of which machine."""
    counts = sorted({len(result.samples) for result in results if result.samples})
    runs = f"Medians of {' or '.join(map(str, counts))}; " if counts else ""
    return runs + ", ".join(f"{name} {value}" for name, value in machine().items()) + "."


def table(results: Sequence[Result]) -> str:
    """Return the results as aligned columns."""
    lines = [_HEADINGS, *(_cells(result) for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column in _RIGHT else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cells(result: Result) -> tuple[str, ...]:
    row = result.row
    begin = (row.name, row.title)
    if not result.samples:
        return (*begin, "", "", row.rival, "", _bar(row.bar), "", result.verdict)
    rival, ratio = "", ""
    if result.rival is not None:
        rival, ratio = _value(result.rival, row.bar.unit), f"{result.score:.2f}"
    memory = f"{result.memory / MIB:.0f} MiB" if result.memory else ""
    ours = _value(result.ours, row.bar.unit)
    return (*begin, ours, rival, row.rival, ratio, _bar(row.bar), memory, result.verdict)


def markdown(results: Sequence[Result]) -> str:
    """Return the rows that were measured as the table of a page."""
    lines = ["| row | epochfs | beside it | ratio | bar |", "|---|---|---|---|---|"]
    measured = (result for result in results if result.samples)
    lines.extend(f"| {' | '.join(_page_cells(result))} |" for result in measured)
    return "\n".join(lines) + "\n"


def _page_cells(result: Result) -> tuple[str, ...]:
    row = result.row
    title = f"{row.title}, beside `{row.rival}`" if row.rival else row.title
    ours, rival, ratio, bar = _value(result.ours, row.bar.unit), "", "", ""
    if result.rival is not None:
        rival = _value(result.rival, row.bar.unit)
        ratio = f"{result.score:.2f} {_WORDS[row.bar.kind]}"
    if row.bar.kind != "none":
        most = _value(row.bar.value, "s") if (row.bar.kind, row.bar.unit) == ("limit", "s") else ""
        bar = f"{'≥' if row.bar.kind == 'speed' else '≤'} {most or f'{row.bar.value:g}'}"
        bar += ", missed" if result.verdict == "SHORT" else ""
    return tuple(cell.replace("|", r"\|") for cell in (title, ours, rival, ratio, bar))


def _value(value: float, unit: str) -> str:
    if unit == "s":
        return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.2f} {unit}"


def _bar(bar: Bar) -> str:
    if bar.kind == "none":
        return ""
    if bar.kind == "limit":
        return f"≤ {_value(bar.value, bar.unit)}"
    return f"{'≤' if bar.kind == 'time' else '≥'} {bar.value:g} {_WORDS[bar.kind]}"


def write_json(file: Path, results: Sequence[Result]) -> None:
    """Write every sample, with the machine and the bars."""
    rows = [
        {
            "row": result.row.name,
            "title": result.row.title,
            "rival": result.row.rival,
            "bar": dataclasses.asdict(result.row.bar),
            "samples": [dataclasses.asdict(sample) for sample in result.samples],
            "score": result.score if result.samples else None,
            "memory": result.memory,
            "verdict": result.verdict,
        }
        for result in results
    ]
    file.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=2) + "\n")
