"""Programs of the tests that run by themselves, without pytest, on a registry of their own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from conftest import DockerRegistry, serve_docker_registry


@contextmanager
def own_registry(name: str) -> Iterator[tuple[DockerRegistry, Path]]:
    """Run a docker-registry until the end, in a new directory that is removed with all in it."""
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    try:
        with serve_docker_registry(directory) as registry:
            yield registry, directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class Tally(Protocol):
    """What was seen in all cycles, as text; `clean` if nothing was wrong."""

    @property
    def clean(self) -> bool: ...


def run_cycles(name: str, run: Callable[[str, Path, int], Tally]) -> int:
    """Run as many cycles as the command line says on a registry; return 1 if it is not clean."""
    cycles = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with own_registry(name) as (registry, directory):
        tally = run(registry.host, directory, cycles)
    print(tally)
    print("clean" if tally.clean else "NOT CLEAN")
    return 0 if tally.clean else 1
