"""`scripts/bench`: what it does with rows that fail, what it writes, and what it has pushed."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from support.registries import EmbeddedRegistry

from epochfs.cli.help import rendered
from epochfs.client import RegistryClient
from epochfs.help import Table, parse
from epochfs.layers.soci import SociTable
from epochfs.layers.toc import SOCI_INDEX
from epochfs.oci.manifests import Manifest
from scripts.benchmark import __main__ as command
from scripts.benchmark import images, report
from scripts.benchmark.content import MIB
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, Missing, timed
from scripts.benchmark.rows import (
    Bar,
    Result,
    Row,
    Sample,
    Samples,
    at_most,
    no_bar,
    speed_at_least,
    time_at_most,
)


def samples(*values: float) -> Samples:
    yield from map(Sample, values)


def a_row(name: str, outcome: Exception | None = None, runs: int = 5) -> Row:
    """A row that has samples 1, 2, …, or fails."""

    def measure(lab: Lab) -> Samples:
        if outcome is not None:
            raise outcome
        return samples(*range(1, 10))

    return Row(name, f"the row {name}", at_most(3, "s"), measure, runs=runs)


def run(monkeypatch: pytest.MonkeyPatch, rows: list[Row], *arguments: str) -> tuple[int, str]:
    """Run the command over these rows; return its exit code and what it printed."""
    monkeypatch.setattr(command, "ROWS", rows)
    result = CliRunner().invoke(command.main, arguments)
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("outcome", "code", "note"),
    [
        (Failed("no such file"), 1, "FAILED: no such file"),
        (PermissionError("denied"), 1, "FAILED: denied"),
        (ZeroDivisionError("by zero"), 1, "FAILED: ZeroDivisionError: by zero"),
        (Missing("no rclone"), 0, "skipped: no rclone"),
    ],
    ids=["a program", "the system", "a mistake", "what is missing"],
)
def test_a_row_that_cannot_be_measured_is_told_and_the_next_one_is(
    monkeypatch: pytest.MonkeyPatch, outcome: Exception, code: int, note: str
) -> None:
    exit_code, output = run(monkeypatch, [a_row("bad", outcome), a_row("good")])
    assert exit_code == code
    lines = output.splitlines()
    assert [line.split()[0] for line in lines[-2:]] == ["bad", "good"]
    assert lines[-2].endswith(note)
    assert lines[-1].endswith("ok")


def test_each_row_is_measured_as_often_as_it_says_or_as_somebody_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [a_row("cheap"), a_row("dear", runs=3)]
    assert "Medians of 3 or 5; epochfs " in run(monkeypatch, rows)[1]
    assert "Medians of 2; epochfs " in run(monkeypatch, rows, "--runs", "2")[1]


def test_a_program_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scripts.benchmark.programs._LONGEST_SECONDS", 0.2)
    with pytest.raises(Failed, match="sleep did not end within 0 s"):
        timed("sleep", "60")


def test_the_table_for_a_page_has_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def result(bar: Bar, *pairs: tuple[float, float | None], rival: str = "") -> Result:
        made = Row("name", "a | b", bar, lambda lab: samples(), rival)
        return Result(made, tuple(Sample(*pair) for pair in pairs), note="" if pairs else "skipped")

    results = [
        result(time_at_most(1.5), (1.0, 2.0), (1.2, 3.0), rival="curl -o"),
        result(speed_at_least(3), (2.0, 4.0), rival="rclone"),
        result(at_most(5, "requests"), (4, None)),
        result(at_most(5, "requests")),
        result(at_most(0.4, "s"), (0.5, None)),
        result(no_bar(), (0.5, None)),
    ]
    file = tmp_path / "table.md"
    monkeypatch.setattr(command, "_measure_all", lambda *given: given[3].extend(results))
    assert run(monkeypatch, [a_row("any")], "--markdown", str(file))[0] == 0
    [table] = parse(f"# Title\n\nAbout.\n\n{file.read_text()}").blocks
    assert isinstance(table, Table)
    assert table.rows == (
        ("a | b, beside `curl -o`", "1.10 s", "2.50 s", "0.44 x its time", "≤ 1.5"),
        ("a | b, beside `rclone`", "2.00 s", "4.00 s", "2.00 x as fast", "≥ 3, missed"),
        ("a | b", "4 requests", "", "", "≤ 5"),
        ("a | b", "500 ms", "", "", "≤ 400 ms, missed"),
        ("a | b", "500 ms", "", "", ""),
    )
    assert report.markdown([]).count("\n") == 2


def test_the_table_of_all_rows_fits_a_page() -> None:
    every = [
        Result(row, (Sample(123.456, 123.456 if row.rival else None),)) for row in command.ROWS
    ]
    shown = rendered(parse(f"# Title\n\nAbout.\n\n{report.markdown(every)}"), 80)
    assert [line for line in shown.splitlines() if len(line) > 80] == []


def test_the_image_with_a_soci_index_has_a_right_one(tmp_path: Path) -> None:
    pytest.importorskip("indexed_gzip")
    with EmbeddedRegistry() as registry:
        file = tmp_path / "layer"
        layer = images.push_indexed_image(registry.url, "bench/indexed", file, 60 * MIB)
        client = RegistryClient(registry.url)
        index = manifest(client, manifest(client, "latest").annotations[SOCI_INDEX])
        raw = client.read_blob("bench/indexed", index.layers[0].digest, 16 * MIB)
    table, content = SociTable(raw, layer.size), gzip.decompress(file.read_bytes())
    for entry in table.entries():
        [piece] = entry.pieces
        assert content[piece.offset - tarfile.BLOCKSIZE :].startswith(entry.path)
    assert sum(span.size for span, _ in table.spans()) == len(content)


def manifest(client: RegistryClient, reference: str) -> Manifest:
    view = client.get_manifest("bench/indexed", reference).view
    assert isinstance(view, Manifest)
    return view
