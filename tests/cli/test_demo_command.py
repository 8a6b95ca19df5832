"""The demo with a real mount, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

# --- demo -------------------------------------------------------------------------------------
from support.commandline import (
    HELLO,
    is_mounted,
    mount_point,
    nothing_is_left,
    one_line,
    run,
    start,
)
from support.mounts import require_fuse

pytestmark = pytest.mark.fuse

_fuse = pytest.fixture(autouse=True)(require_fuse)
directory = pytest.fixture(mount_point)


@contextmanager
def demo(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """`epochfs demo` once it is mounted, with the lines it has printed by their first word."""
    with start("demo", *arguments) as process:
        said = {}
        try:
            assert process.stdout is not None
            for line in process.stdout:
                word, _, rest = line.strip().partition(" ")
                said[word] = rest.strip()
                if word == "Ctrl-C":
                    break
            yield process, said
        finally:
            process.terminate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_leaves_nothing_behind(number: signal.Signals) -> None:
    with demo() as (process, said):
        path = Path(said["mounted"])
        assert (path / HELLO).exists()
        assert said["registry"].startswith("http://127.0.0.1:")
        process.send_signal(number)
        assert process.wait(6) == 0
    assert not path.parent.exists()
    nothing_is_left(path)


def test_the_demo_mounts_where_it_is_told(directory: Path) -> None:
    with demo(directory) as (process, said):
        assert said["mounted"] == str(directory)
        assert (directory / HELLO).exists()
        assert run("umount", directory) == (0, "", "")
        assert process.wait(6) == 0
    assert list(directory.iterdir()) == []


def test_the_demo_says_why_it_cannot_mount(directory: Path) -> None:
    (directory / "file").touch()
    code, _, errors = run("demo", directory)
    assert code == 1
    assert "is not empty" in one_line(errors)


def test_the_demo_unmounts_under_a_reader(directory: Path) -> None:
    with demo(directory) as (process, _):
        reader = os.open(directory / HELLO, os.O_RDONLY)
        process.send_signal(signal.SIGTERM)
        assert process.wait(8) == 0
        assert not is_mounted(directory)
    with suppress(OSError):  # its server is gone
        os.close(reader)
