"""Real mounts, each served by a process of its own, watched from its start to its clean end."""

from __future__ import annotations

import itertools
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 20.0
COMMAND = (sys.executable, "-m", "epochfs")
NO_MIRRORS = ("--hosts-dir", str(Path(__file__).parent))
"""A directory in which no registry has mirrors: those that containerd has on this machine are not
what is tested. An option of the same name that comes later counts instead."""

_CAP_SYS_ADMIN = 1 << 21
_SEVERE = re.compile(r"^\S+ (WARNING|ERROR|CRITICAL) |Traceback")


def why_no_fuse() -> str:
    """Return why nothing can be mounted here; empty if it can."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as error:
        return f"/dev/fuse: {error.strerror}"
    if os.geteuid() != 0:
        return "" if shutil.which("fusermount3") else "fusermount3 is not installed"
    status = Path("/proc/self/status").read_text()
    capabilities = int(re.findall(r"^CapEff:\s*(\w+)", status, re.MULTILINE)[0], 16)
    return "" if capabilities & _CAP_SYS_ADMIN else "no right to mount (CAP_SYS_ADMIN)"


def require_fuse() -> None:
    """Skip the test where nothing can be mounted."""
    if reason := why_no_fuse():
        pytest.skip(reason)


@dataclass
class Mount:
    """A mounted registry at `path`."""

    path: Path
    log: Path
    process: subprocess.Popen[bytes]
    output: Path

    def unmount(self) -> None:
        """End the mount, if it has not ended, and make sure that it ended well."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE)
        assert code == 0, f"exit code {code}:\n{self.said()}"
        assert not os.path.ismount(self.path)

    def kill(self) -> None:
        """End the process without any chance to clean up, and unmount for it."""
        self.process.kill()
        self.process.wait(PATIENCE)
        subprocess.run(["umount", "-l", str(self.path)], check=False, capture_output=True)

    def severe(self) -> list[str]:
        """Return the log lines from warnings up, and anything a bug would print."""
        lines = [*self.log.read_text().splitlines(), *self.output.read_text().splitlines()]
        return [line for line in lines if _SEVERE.search(line)]

    def said(self) -> str:
        return f"{self.log.read_text()}{self.output.read_text()}"


def status(path: Path) -> dict[str, Any]:
    """Return what a mount tells of itself in `status.json`."""
    content: dict[str, Any] = json.loads((path / ".epochfs/status.json").read_text())
    return content


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


class Mounts:
    """Makes mounts below `directory`, and ends them all."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self._mounts: list[Mount] = []

    def __call__(
        self,
        url: str,
        *options: str,
        cache: Path | None = None,
        path: Path | None = None,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> Mount:
        """Mount the registry; return once it is mounted."""
        number = next(self._numbers)
        path = path or self._directory / f"mount{number}"
        path.mkdir(parents=True, exist_ok=True)
        log, output = self._directory / f"log{number}", self._directory / f"output{number}"
        arguments = [*command, "mount", "-f", *NO_MIRRORS, "--log-file", str(log), *options]
        arguments += ["--cache-dir", str(cache or self._directory / "cache"), url, str(path)]
        with output.open("wb") as said:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                env={**os.environ, **(environment or {})},
            )
        mount = Mount(path, log, process, output)
        self._mounts.append(mount)
        _wait_until_mounted(mount)
        return mount

    def close(self) -> list[str]:
        """End all mounts; return the severe lines of their logs."""
        try:
            for mount in self._mounts:
                if mount.process.poll() is None:
                    mount.unmount()
        finally:
            for mount in self._mounts:
                if mount.process.poll() is None:
                    mount.kill()
        return [line for mount in self._mounts for line in mount.severe()]


def _wait_until_mounted(mount: Mount) -> None:
    """Wait for a change of the mount table, or for the process to end."""
    deadline = time.monotonic() + PATIENCE
    ended = os.pidfd_open(mount.process.pid)
    try:
        with Path("/proc/self/mountinfo").open("rb") as table:
            poll = select.poll()
            poll.register(table, select.POLLPRI)
            poll.register(ended, select.POLLIN)
            while not os.path.ismount(mount.path):
                if mount.process.poll() is not None or time.monotonic() > deadline:
                    mount.kill()
                    pytest.fail(f"not mounted:\n{mount.said()}", pytrace=False)
                poll.poll(1000)
                table.seek(0)
                table.read()
    finally:
        os.close(ended)
