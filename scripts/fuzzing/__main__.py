"""The command line of `scripts/fuzz`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from scripts.fuzzing.target import Target
from scripts.fuzzing.targets import TARGETS

SLOWEST = 5
"""Seconds within which any input must have been parsed."""

LONGEST_INPUT = 4096

_EXECUTED = re.compile(rb"stat::number_of_executed_units:\s*(\d+)")


def _fuzz(target: Target, seconds: int, scratch: Path) -> tuple[int, str]:
    """Fuzz one target; return how many inputs it was fed, and what went wrong, "" if nothing."""
    corpus = scratch / target.name
    corpus.mkdir()
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SLOWEST}",
        f"-max_len={LONGEST_INPUT}",
        f"-artifact_prefix={corpus}/failed-",
        "-print_final_stats=1",
    ]
    command = [sys.executable, "-m", "scripts.fuzzing.engine", target.name, *options, str(corpus)]
    # libFuzzer ends the process without any clean-up: its temporary files go with the scratch.
    environment = {**os.environ, "TMPDIR": str(scratch)}
    output = subprocess.STDOUT
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=output, env=environment, check=False
    )
    executed = _EXECUTED.search(result.stdout)
    count = int(executed[1]) if executed else 0
    if result.returncode == 0 and count:
        return count, ""
    inputs = [path.read_bytes() for path in corpus.glob("failed-*")]
    shown = "\n".join(f"input: {data!r}" for data in inputs)
    lines = result.stdout.decode(errors="backslashreplace").splitlines()
    said = "\n".join(line for line in lines if not line.startswith(("#", "INFO")))
    return count, f"{shown}\n{said}"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("seconds", type=click.IntRange(1), default=60)
@click.option("--only", metavar="NAME", type=click.Choice([each.name for each in TARGETS]))
def main(seconds: int, only: str | None) -> None:
    """Fuzz every parser, SECONDS in all; print how many inputs each was fed.

    The exit code is 1 if one of them raised what it should not, or took too long.
    """
    chosen = [target for target in TARGETS if only in (None, target.name)]
    failures = 0
    with tempfile.TemporaryDirectory(prefix="epochfs-fuzz-") as scratch:
        for target in chosen:
            count, failure = _fuzz(target, max(1, seconds // len(chosen)), Path(scratch))
            print(f"{target.name:16} {count:>12,}  {'FAILED' if failure else 'ok'}", flush=True)  # noqa: T201
            if failure:
                failures += 1
                print(failure, file=sys.stderr)  # noqa: T201
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
