"""The units of scripts/deploy/systemd: run by a real systemd, and read by its own checker."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import CHECKOUT

from epochfs.cli import mount
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
