"""A real systemd that runs units of ours: a user's manager, in a mount namespace and a cgroup."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from support.mounts import PATIENCE, require_fuse
from support.scripted import until

_SYSTEMD = Path("/lib/systemd/systemd")
_UNITS = Path("/usr/lib/systemd/user")
_START = """
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/system "$XDG_RUNTIME_DIR"
echo $$ > "$1/cgroup.procs"
exec "$2" --user --unit=basic.target
"""


class Manager:
    """A running systemd; `main` is its process, in whose namespace the mounts are."""

    def __init__(self, main: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
        self._main = main
        self._environment = environment

    def sees(self, *command: str | Path, check: bool = True) -> str:
        """Run a command where the mounts are; return what it prints."""
        entered = ["nsenter", "--target", str(self._main.pid), "--mount", *map(str, command)]
        done = subprocess.run(
            entered,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def systemctl(self, *words: str, check: bool = True) -> str:
        return self.sees("systemctl", "--user", "--no-pager", *words, check=check)

    def shows(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit).strip()


def _own_cgroup() -> Path:
    """Return this process's cgroup, as systemd has it: of version 2, or of its own hierarchy."""
    told = Path("/proc/self/cgroup").read_text()
    for pattern, mounted in ((r"^\d+:name=systemd:(.*)", "systemd"), (r"^0::(.*)", "")):
        if found := re.search(pattern, told, re.MULTILINE):
            return Path("/sys/fs/cgroup") / mounted / found[1].lstrip("/")
    pytest.skip("no cgroups")


@contextmanager
def systemd(directory: Path, units: Path) -> Iterator[Manager]:
    """Run systemd with the units in a directory; skip the test where that cannot be."""
    require_fuse()
    if os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    if not _SYSTEMD.exists() or not _UNITS.is_dir() or not shutil.which("nsenter"):
        pytest.skip("systemd is not installed")
    cgroup = _own_cgroup() / f"epochfs-test-{os.getpid()}"
    try:
        cgroup.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup to be had: {error}")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": "/run/user/epochfs-test",
        "SYSTEMD_UNIT_PATH": f"{units}:{_UNITS}",
        "SYSTEMD_LOG_TARGET": "console",
    }
    command = ["unshare", "--mount", "sh", "-euc", _START, "sh", str(cgroup), str(_SYSTEMD)]
    with (directory / "said").open("wb") as said:
        main = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
    manager = Manager(main, environment)
    try:
        until(lambda: "active" in manager.systemctl("is-active", "basic.target", check=False))
        yield manager
    finally:
        main.terminate()
        try:
            main.wait(PATIENCE)
        finally:
            main.kill()
            for group in sorted(cgroup.rglob("*/"), reverse=True):
                with suppress(OSError):
                    group.rmdir()
            with suppress(OSError):
                cgroup.rmdir()
