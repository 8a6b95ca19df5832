"""Programs that the benchmark runs: commands to be timed, servers to be stopped again."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
_START_SECONDS = 20.0
_LONGEST_SECONDS = 600.0
"""What any command may take: one that hangs costs its own row, and not those after it."""

_STOP_SECONDS = 10.0

Argument = str | Path


class Missing(Exception):
    """Something that a row needs cannot be had here; the text says what."""


class Failed(Exception):
    """A program did not do what it was asked; the text says which, and its last words."""


def find(program: str) -> str:
    """Return the path of a program; raises Missing. `epochfs` is the one beside this Python."""
    beside = Path(sys.executable).parent / program
    path = str(beside) if beside.exists() else shutil.which(program, path=_PATH)
    if path is None:
        raise Missing(f"no {program}")
    return path


def need_modules(*names: str) -> None:
    """Raise Missing if this Python does not have all of these modules."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise Missing(f"no {' and no '.join(missing)} for Python")


def timed(program: str, *arguments: Argument, fed: Iterable[Argument] = ()) -> float:
    """Run a command to its end, its output thrown away; return the seconds that took.

    The lines `fed` are its standard input. Raises Missing, Failed.
    """
    path, text = find(program), "".join(f"{line}\n" for line in fed)
    began = time.perf_counter()
    try:
        result = subprocess.run(
            [path, *arguments],
            input=text.encode(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
            timeout=_LONGEST_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"{program} did not end within {_LONGEST_SECONDS:.0f} s") from None
    seconds = time.perf_counter() - began
    if result.returncode != 0:
        raise Failed(_complaint(program, result.returncode, result.stderr))
    return seconds


def in_parallel(count: int, command: list[str], lines: list[str]) -> float:
    """Run a command once for each line, with its words, `count` at a time; return the seconds."""
    return timed("xargs", "-P", str(count), "-L", "1", *command, fed=lines)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def wait_until(true: Callable[[], bool], what: str, seconds: float = _START_SECONDS) -> None:
    """Return once `true()` is; raises Failed when it still is not after `seconds`."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise Failed(f"{what}: not after {seconds:.0f} s")
        time.sleep(0.01)


class Server:
    """A program in the background, until the context ends. Its output goes to `log`.

    It has a session of its own: a Ctrl-C reaches it through us alone, after what depends on it.
    """

    def __init__(self, log: Path, command: Sequence[Argument]) -> None:
        self.log = log
        self._command = [find(str(command[0])), *command[1:]]

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self.ends_within(0):
            self._process.terminate()
        if not self.ends_within(_STOP_SECONDS):
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def interrupt(self) -> None:
        """Send it what Ctrl-C sends."""
        self._process.send_signal(signal.SIGINT)

    def ends_within(self, seconds: float) -> bool:
        """Whether it has ended, or does so in time."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self._process.returncode is not None

    def wait_until(self, ready: Callable[[], bool]) -> None:
        """Return once `ready()` is true; raises Failed if the program ends before, or is slow."""
        name = Path(self._command[0]).name

        def started() -> bool:
            if self.ends_within(0):
                raise Failed(_complaint(name, self._process.returncode, self.log.read_bytes()))
            return ready()

        wait_until(started, f"start of {name}")

    def wait_for_port(self, port: int) -> None:
        """Return once it accepts connections on 127.0.0.1; raises Failed as `wait_until` does."""

        def accepts() -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        self.wait_until(accepts)


def _complaint(program: str, code: int, output: bytes) -> str:
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return f"{program} ended with code {code}: {lines[-1] if lines else 'no output'}"
