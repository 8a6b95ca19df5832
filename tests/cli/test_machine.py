"""Mounts on machines as they are: limits, closed descriptors, names of any bytes, moved parents."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.commandline import environment, is_mounted, run, with_samples
from support.mounts import COMMAND, NO_MIRRORS, Mounts, require_fuse, status
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.cli import mountpoint
from epochfs.oci.names import Digest

pytestmark = pytest.mark.fuse

_fuse = pytest.fixture(autouse=True)(require_fuse)
registry = pytest.fixture(with_samples)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """An empty directory, on which nothing stays mounted."""
    path = tmp_path / "mount point"
    path.mkdir()
    yield path
    mountpoint.unmount(path, lazy=True)


def shell(command: str, *arguments: object) -> subprocess.CompletedProcess[bytes]:
    """Run a shell's command; `"$@"` in it is `epochfs` with these arguments."""
    words = ["sh", "-c", command, "sh", *COMMAND, *map(str, arguments)]
    return subprocess.run(words, env=environment(), capture_output=True, timeout=60, check=False)


# --- descriptors ------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&-", "<&- >&- 2>&-"])
def test_a_mount_starts_with_closed_standard_descriptors(
    registry: EmbeddedRegistry, directory: Path, closed: str
) -> None:
    cache = f"--cache-dir={directory.parent / 'cache'}"
    done = shell(f'"$@" {closed}', "mount", *NO_MIRRORS, cache, registry.url, directory)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert (directory / "library/hello/tags").is_dir()
    served = status(directory)["pid"]
    targets = {os.readlink(f"/proc/{served}/fd/{number}") for number in range(3)}  # noqa: PTH115
    assert targets == {"/dev/null"}
    assert run("umount", directory) == (0, "", "")


@pytest.mark.parametrize("command", ["--version", "umount /nowhere", "doctor --help"])
def test_every_command_runs_with_closed_standard_descriptors(command: str) -> None:
    done = shell('"$@" <&- >&- 2>&-', *command.split())
    assert done.returncode == int(command.startswith("umount"))


def test_the_soft_limit_of_open_files_is_raised_to_the_hard_one(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = ("sh", "-c", 'ulimit -Sn 256; exec "$@"', "sh", *COMMAND)
    mount = mounts(registry.url, command=few)
    limits = Path(f"/proc/{mount.process.pid}/limits").read_text()
    found = re.search(r"^Max open files +(\d+) +(\d+) ", limits, re.MULTILINE)
    assert found is not None
    assert (int(found[1]), int(found[2])) == (hard, hard)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft, hard)


def test_more_handles_than_the_soft_limit_are_open_at_once(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    blobs = [random_bytes(5000, seed) for seed in range(3)]
    load(registry, "a", "v1", image(*blobs))
    few = ("sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh", *COMMAND)
    mount = mounts(registry.url, command=few)
    paths = [mount.path / "a/blobs" / str(Digest.of(blob)) for blob in blobs]
    assert [path.read_bytes() for path in paths] == blobs
    with ExitStack() as closing:
        for number in range(400):
            file = closing.enter_context(paths[number % 2].open("rb"))
            assert file.read(10) == blobs[number % 2][:10]
        assert paths[2].read_bytes() == blobs[2]


# --- the mount point --------------------------------------------------------------------------

_EVERY_BYTE = bytes(byte for byte in range(1, 256) if byte != ord("/"))


@pytest.mark.parametrize(
    "name", [b"a\rb", b"a\nb", b"a\r\nb c", b"\xff\xfe", b"\\040", _EVERY_BYTE]
)
def test_a_mount_point_may_have_any_byte_in_its_name(
    registry: EmbeddedRegistry, tmp_path: Path, name: bytes
) -> None:
    path = tmp_path / os.fsdecode(name[:250])
    path.mkdir()
    cache = f"--cache-dir={tmp_path / 'cache'}"
    try:
        assert run("mount", cache, registry.url, path) == (0, "", "")
        assert status(path)["mountpoint"] == str(path)
        assert run("umount", path) == (0, "", "")
    finally:
        left = is_mounted(path)
        mountpoint.unmount(path, lazy=True)
    assert not left


def test_umount_of_the_directory_one_is_in_does_not_stand_in_its_own_way(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    assert run("mount", f"--cache-dir={directory.parent / 'c'}", registry.url, directory)[0] == 0
    done = subprocess.run(
        [*COMMAND, "umount", "."],
        cwd=directory,
        env=environment(),
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert not is_mounted(directory)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_mount_whose_parent_was_renamed_is_unmounted_by_a_signal(
    registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path, number: signal.Signals
) -> None:
    mount = mounts(registry.url, path=tmp_path / "parent" / "mount")
    until(lambda: "is mounted on" in mount.log.read_text())
    (tmp_path / "parent").rename(tmp_path / "renamed")
    mount.process.send_signal(number)
    assert mount.process.wait(20) == 0
    assert not is_mounted(tmp_path / "renamed" / "mount")
    assert list((tmp_path / "renamed" / "mount").iterdir()) == []


def test_a_renamed_mount_is_unmounted_by_its_new_name(
    registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    mount = mounts(registry.url, path=tmp_path / "parent" / "mount")
    (tmp_path / "parent").rename(tmp_path / "renamed")
    assert run("umount", tmp_path / "renamed" / "mount") == (0, "", "")
    assert mount.process.wait(20) == 0
