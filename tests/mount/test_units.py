"""The units of scripts/deploy/systemd: run by a real systemd, and read by its own checker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import CHECKOUT
from support.mounts import NO_MIRRORS
from support.scripted import until
from support.systemd import Manager, systemd

from epochfs.cli import mount
from epochfs.demo import samples
from epochfs.demo.registry import EmbeddedRegistry
from epochfs.help import Code, page, parse

UNITS = CHECKOUT / "scripts/deploy/systemd"
TEMPLATE, OF_A_USER = UNITS / "epochfs@.service", UNITS / "epochfs.service"
EXAMPLE = UNITS / "example.conf"
BLOCKS = [block.lines for block in parse(page("systemd")).blocks if isinstance(block, Code)]

each_unit = pytest.mark.parametrize("unit", [TEMPLATE, OF_A_USER], ids=lambda unit: unit.name)


def settings(unit: Path) -> dict[str, str]:
    """Return the settings of a unit, by their names: each is given once."""
    lines = [line.partition("=") for line in unit.read_text().splitlines()]
    found = [(name, value) for name, equals, value in lines if equals and name.isalnum()]
    assert len(dict(found)) == len(found)
    return dict(found)


# --- as they are written ----------------------------------------------------------------------


@each_unit
def test_a_unit_says_when_it_is_ready_and_is_started_again(unit: Path) -> None:
    found = settings(unit)
    assert found["Type"] == "notify"
    assert (found["KillMode"], found["Restart"]) == ("mixed", "on-failure")
    assert (found["RestartPreventExitStatus"], found["StartLimitIntervalSec"]) == ("2", "0")


@each_unit
def test_nothing_in_a_unit_hides_the_mount(unit: Path) -> None:
    hiding = r"Private(Mounts|Tmp|Devices)|Protect\w+|\w+Paths|RootDirectory|DynamicUser|Mount\w+"
    assert [name for name in settings(unit) if re.fullmatch(hiding, name)] == []


def test_the_system_waits_for_the_network() -> None:
    found = settings(TEMPLATE)
    assert "network-online.target" in found["After"].split()
    assert found["Wants"] == "network-online.target"


@each_unit
def test_the_command_of_a_unit_is_one_of_ours(unit: Path, tmp_path: Path) -> None:
    example = settings(EXAMPLE)
    line = settings(unit)["ExecStart"].replace("$OPTIONS", example["OPTIONS"].strip('"'))
    values = {**example, "MOUNTPOINT": str(tmp_path), "CACHE_DIRECTORY": str(tmp_path / "cache")}
    _, name, *words = re.sub(r"\$\{(\w+)\}", lambda found: values[found[1]], line).split()
    assert name == "mount"
    parsed = mount.command.make_context("mount", words).params
    assert parsed["foreground"]
    assert parsed["allow_other"]
    assert parsed["offline_ok"]
    assert parsed["where"] == (example["SOURCE"], str(tmp_path))


@each_unit
def test_systemd_finds_nothing_wrong_with_a_unit(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    text = re.sub(r"(?<=^ExecStart=)\S+", sys.executable, unit.read_text(), flags=re.MULTILINE)
    (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*command, tmp_path / unit.name], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_page_has_the_commands_that_install_the_units(tmp_path: Path) -> None:
    """But for those that speak to a systemd, or to an editor."""
    places = {"/etc/": f"{tmp_path}/etc/", "~/": f"{tmp_path}/home/"}
    (tmp_path / "etc/systemd/system").mkdir(parents=True)
    lines = [line for block in BLOCKS for line in block if line.startswith(("install ", "cp "))]
    script = "\n".join(lines)
    for place, other in places.items():
        script = script.replace(place, other)
    subprocess.run(["bash", "-euc", script], cwd=CHECKOUT, check=True)
    installed = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(tmp_path)) for path in installed) == [
        "etc/epochfs/registry.conf",
        "etc/systemd/system/epochfs@.service",
        "home/.config/epochfs/mount.conf",
        "home/.config/systemd/user/epochfs.service",
    ]


def test_the_page_has_the_example() -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert tuple(line for line in lines if not line.startswith("#")) in BLOCKS


# --- run by systemd ---------------------------------------------------------------------------


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
