"""The units of this directory, run by a real systemd: `scripts/deploy/units`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import CHECKOUT
from support.mounts import NO_MIRRORS
from support.scripted import until
from support.systemd import Manager, systemd

from epochfs.demo import samples
from epochfs.demo.registry import EmbeddedRegistry

UNITS = CHECKOUT / "scripts/deploy/systemd"
TEMPLATE, OF_A_USER = UNITS / "epochfs@.service", UNITS / "epochfs.service"


class Administrator:
    """Who has installed both units, but for places that are not ours to write to."""

    def __init__(self, home: Path) -> None:
        self.mountpoint = home / "a mount"
        self.units = home / "units"
        self._etc = home / ".config/epochfs"
        program = home / ".local/bin/epochfs"
        for made in (self._etc, self.units, program.parent):
            made.mkdir(parents=True)
        hosts = " ".join(NO_MIRRORS)
        program.write_text(
            f'#!/bin/sh\nshift\nexec env PYTHONPATH="{CHECKOUT}" {sys.executable} -m epochfs '
            f'mount {hosts} "$@"\n'
        )
        program.chmod(0o755)
        for unit in (TEMPLATE, OF_A_USER):
            text = unit.read_text().replace("/etc/epochfs", str(self._etc))
            text = text.replace("/usr/local/bin/epochfs", str(program))
            text = text.replace("RestartSec=5", "RestartSec=1")
            (self.units / unit.name).write_text(text)

    def writes(self, name: str, source: str, options: str = "") -> None:
        (self._etc / f"{name}.conf").write_text(
            f'SOURCE={source}\nMOUNTPOINT="{self.mountpoint}"\nOPTIONS="{options}"\n'
        )


def mounts_in(manager: Manager) -> int:
    """Return how many mounts are on the administrator's mount point."""
    return manager.sees("cat", "/proc/self/mountinfo").count(r"a\040mount ")


@pytest.fixture
def administrator(tmp_path: Path) -> Administrator:
    return Administrator(tmp_path)


@pytest.fixture
def manager(administrator: Administrator, tmp_path: Path) -> Iterator[Manager]:
    with systemd(tmp_path, administrator.units) as manager:
        yield manager


@pytest.mark.fuse
def test_systemd_mounts_and_unmounts_and_mounts_again_after_a_crash(
    administrator: Administrator, manager: Manager
) -> None:
    hello = administrator.mountpoint / "library/hello/tags/latest/rootfs/hello.txt"
    unit = "epochfs@one.service"
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        administrator.writes("one", registry.url)
        manager.systemctl("start", unit)
        assert manager.sees("cat", hello).startswith("Hello")
        told = f"{registry.url} is mounted on {administrator.mountpoint}"
        assert manager.shows(unit, "StatusText") == told
        first = manager.shows(unit, "MainPID")
        manager.systemctl("kill", "--signal=KILL", "--kill-who=main", unit)
        until(lambda: manager.shows(unit, "MainPID") not in ("0", first))
        until(lambda: manager.shows(unit, "ActiveState") == "active")
        assert manager.sees("cat", hello).startswith("Hello")
        assert mounts_in(manager) == 1
        manager.systemctl("reload", unit)
        assert manager.sees("cat", hello).startswith("Hello")
        manager.systemctl("stop", unit)
    assert manager.shows(unit, "Result") == "success"
    assert manager.shows(unit, "ActiveState") == "inactive"
    assert mounts_in(manager) == 0


@pytest.mark.fuse
def test_systemd_keeps_trying_while_the_registry_is_down_unless_offline_is_ok(
    administrator: Administrator, manager: Manager
) -> None:
    unit = "epochfs@one.service"
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        administrator.writes("one", registry.url)
        manager.systemctl("start", unit)
        manager.sees("ls", administrator.mountpoint / "library")
        manager.systemctl("stop", unit)
    manager.systemctl("start", unit, check=False)
    until(lambda: int(manager.shows(unit, "NRestarts")) >= 1)
    assert manager.shows(unit, "ActiveState") != "active"
    manager.systemctl("stop", unit)
    administrator.writes("one", registry.url, "--offline-ok --timeout 5")
    manager.systemctl("start", unit)
    assert manager.sees("ls", administrator.mountpoint / "library") == "hello\n"
    manager.systemctl("stop", unit)


@pytest.mark.fuse
def test_systemd_does_not_repeat_a_mistake(administrator: Administrator, manager: Manager) -> None:
    administrator.writes("one", "http://127.0.0.1:1", "--no-such-option")
    manager.systemctl("start", "epochfs@one.service", check=False)
    until(lambda: manager.shows("epochfs@one.service", "ActiveState") == "failed")
    assert manager.shows("epochfs@one.service", "NRestarts") == "0"
    manager.systemctl("start", "epochfs@two.service", check=False)
    assert manager.shows("epochfs@two.service", "AssertResult") == "no"


@pytest.mark.fuse
def test_a_users_unit_mounts_what_a_file_of_the_user_says(
    administrator: Administrator, manager: Manager
) -> None:
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        administrator.writes("mount", registry.url)
        manager.systemctl("start", "epochfs")
        assert manager.sees("ls", administrator.mountpoint / "library") == "hello\n"
        manager.systemctl("stop", "epochfs")
    assert manager.shows("epochfs", "Result") == "success"
