"""The commands with a real mount, each in a process of its own: mount, umount, signals, demo."""

from __future__ import annotations

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support import CHECKOUT
from support.commandline import (
    HELLO,
    environment,
    is_mounted,
    mount_point,
    nothing_is_left,
    one_line,
    processes_of,
    run,
    start,
    with_samples,
)
from support.mounts import COMMAND, NO_MIRRORS, require_fuse, status
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.subjects import PASSWORD, USERNAME

from epochfs.demo import samples
from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.fuse import mountinfo

pytestmark = pytest.mark.fuse

_fuse = pytest.fixture(autouse=True)(require_fuse)
directory = pytest.fixture(mount_point)
registry = pytest.fixture(with_samples)


def server_of(path: Path) -> int:
    """The process that serves a mount."""
    return int(status(path)["pid"])


def mount(url: str, path: Path, *options: str) -> None:
    """Mount with a cache beside the mount point; it must succeed, and silently."""
    cache = f"--cache-dir={path.parent / 'cache'}"
    assert run("mount", cache, *options, url, path) == (0, "", "")


# --- mount and umount -------------------------------------------------------------------------


def test_mount_returns_when_the_mount_answers(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(registry.url, directory)
    assert json.loads((directory / HELLO).read_text())["schemaVersion"] == 2
    listed = mountinfo.mounted_on(directory)
    assert listed is not None
    assert (listed.file_system, listed.source) == ("fuse.epochfs", registry.url)
    assert run("umount", directory) == (0, "", "")
    assert not is_mounted(directory)
    until(lambda: not processes_of(directory))


def test_a_prefix_is_mounted_as_the_root(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(f"{registry.url}/demo", directory)
    assert {path.name for path in directory.iterdir()} == {"artifact", "team"}


def test_relative_paths_mean_what_they_meant_to_the_shell(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    options = [*NO_MIRRORS, "--cache-dir=c", "--log-file=l"]
    command = [*COMMAND, "mount", *options, registry.url, directory.name]
    subprocess.run(command, cwd=directory.parent, env=environment(), check=True, timeout=30)
    assert (directory / HELLO).exists()
    assert (directory.parent / "c").is_dir()
    assert f"is mounted on {directory}" in (directory.parent / "l").read_text()


def test_the_server_of_the_environment_is_mounted(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    cache = f"--cache-dir={directory.parent / 'cache'}"
    assert run("mount", cache, directory, EPOCH_SERVER=registry.url) == (0, "", "")
    assert (directory / HELLO).exists()


def test_a_mounted_directory_is_not_mounted_again(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    mount(registry.url, directory)
    code, _, errors = run("mount", registry.url, directory)
    assert code == 1
    assert f"already mounted: it shows {registry.url}" in one_line(errors)
    assert (directory / HELLO).exists()


def test_a_mount_that_was_killed_is_replaced(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(registry.url, directory)
    os.kill(server_of(directory), signal.SIGKILL)
    until(lambda: not processes_of(directory))
    assert is_mounted(directory)
    mount(registry.url, directory)
    assert (directory / HELLO).exists()


def test_a_mount_that_was_killed_is_unmounted(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(registry.url, directory)
    os.kill(server_of(directory), signal.SIGKILL)
    until(lambda: not processes_of(directory))
    assert run("umount", directory) == (0, "", "")
    assert not is_mounted(directory)


def test_a_mount_in_use_is_kept_and_its_users_named(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    mount(registry.url, directory)
    with (directory / HELLO).open():
        code, _, errors = run("umount", directory)
        assert code == 1
        line = one_line(errors)
        assert f"is in use by {Path('/proc/self/comm').read_text().strip()}" in line
        assert f"(pid {os.getpid()})" in line
        assert "lsof" in line
        assert is_mounted(directory)
    assert run("umount", directory) == (0, "", "")


# --- what keeps a mount from being made -------------------------------------------------------


@pytest.mark.parametrize("option", [[], ["--foreground", "--log-level=error"]])
def test_a_registry_that_cannot_be_reached_is_one_line(option: list[str], directory: Path) -> None:
    started = time.monotonic()
    code, output, errors = run("mount", *option, "http://127.0.0.1:1", directory)
    assert time.monotonic() - started < 5
    assert (code, output) == (1, "")
    assert "registry http://127.0.0.1:1 cannot be reached" in one_line(errors)
    nothing_is_left(directory)


def test_a_registry_that_denies_access_is_one_line(directory: Path) -> None:
    behaviour = Behaviour(auth="basic")
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        code, _, errors = run("mount", registry.url, directory)
    assert code == 1
    assert f"registry {registry.url} denies access" in one_line(errors)
    assert "--username and --password-file" in errors
    nothing_is_left(directory)


def test_credentials_come_from_files(directory: Path) -> None:
    password = directory.parent / "password"
    password.write_text(f"{PASSWORD}\n")
    behaviour = Behaviour(auth="bearer")
    with EmbeddedRegistry(behaviour, username=USERNAME, password=PASSWORD) as registry:
        samples.load(registry)
        mount(registry.url, directory, f"--username={USERNAME}", f"--password-file={password}")
        assert (directory / HELLO).exists()
        assert run("umount", directory) == (0, "", "")


def test_a_cache_that_cannot_be_written_is_one_line(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    code, _, errors = run("mount", "--cache-dir=/proc/epochfs", registry.url, directory)
    assert code == 1
    assert "/proc/epochfs" in one_line(errors)
    nothing_is_left(directory)


def test_what_fuse_says_is_in_the_line(directory: Path) -> None:
    # What libfuse refuses here is a mount point that has gone since it was looked at.
    class Remover(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            with suppress(OSError):
                directory.rmdir()
            return super().respond(request)

    with Remover() as remover:
        code, _, errors = run("mount", remover.url, directory)
    directory.mkdir()
    assert code == 1
    assert "No such file or directory" in one_line(errors)
    nothing_is_left(directory)


# --- interrupting and waiting -----------------------------------------------------------------


@contextmanager
def silent_server() -> Iterator[tuple[str, socket.socket]]:
    """A server that says nothing to who connects: its URL, and its socket."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}", server


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_interrupting_the_wait_leaves_nothing(
    number: signal.Signals, code: int, directory: Path
) -> None:
    with silent_server() as (url, server), start("mount", url, directory) as process:
        until(lambda: len(processes_of(directory)) == 2)
        asking, _ = server.accept()
        process.send_signal(number)
        _, errors = process.communicate(timeout=6)
        asking.close()
    assert process.returncode == code
    assert errors == "epochfs: interrupted: nothing is mounted\n"
    nothing_is_left(directory)


def test_a_silent_registry_is_given_up_after_the_timeout(directory: Path) -> None:
    with silent_server() as (url, _):
        code, _, errors = run("mount", "--timeout=1", url, directory)
    assert code == 1
    assert "cannot be reached" in one_line(errors)
    nothing_is_left(directory)


def test_a_terminal_is_told_what_is_waited_for(directory: Path) -> None:
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("no pseudo-terminal to be had")
    with silent_server() as (url, _):
        command = [*COMMAND, "mount", *NO_MIRRORS, "--timeout=2", url, str(directory)]
        process = subprocess.Popen(command, stderr=theirs, env=environment())
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # how a terminal ends
            while received := os.read(ours, 4096):
                shown += received
        assert process.wait(10) == 1
    os.close(ours)
    assert f"\repochfs: waiting for {url}, 1 s".encode() in shown
    wiped, told, _ = shown.split(b"\r")[-3:]
    assert not wiped.strip()
    assert told.startswith(b"epochfs: registry")


# --- signals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_unmounts_and_ends_the_server(
    number: signal.Signals, registry: EmbeddedRegistry, directory: Path
) -> None:
    mount(registry.url, directory)
    os.kill(server_of(directory), number)
    until(lambda: not is_mounted(directory))
    until(lambda: not processes_of(directory))


def test_a_hangup_does_not_end_a_daemon(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(registry.url, directory)
    os.kill(server_of(directory), signal.SIGHUP)
    time.sleep(0.3)
    assert (directory / HELLO).exists()


@contextmanager
def in_front(url: str, path: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A mount in the foreground, as a process; it must be told to end."""
    cache = f"--cache-dir={path.parent / 'cache'}"
    with start("mount", "--foreground", cache, *options, url, path) as process:
        try:
            until(lambda: is_mounted(path))
            yield process
        finally:
            process.kill()


def test_a_mount_in_front_ends_with_0_on_a_signal(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    with in_front(registry.url, directory) as process:
        assert (directory / HELLO).exists()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=5)
    assert (process.returncode, output) == (0, "")
    assert "SIGINT: unmounting" in errors
    assert "Traceback" not in errors
    assert not is_mounted(directory)


def test_a_mount_in_front_ends_with_0_when_unmounted(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    with in_front(registry.url, directory) as process:
        assert run("umount", directory) == (0, "", "")
        assert process.wait(5) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stalled_readers_do_not_hold_up_the_end(number: signal.Signals, directory: Path) -> None:
    released = threading.Event()

    class Stalling(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            if "/blobs/" in request.path and request.method == "GET":
                released.wait(60)
            return super().respond(request)

    def read(_: int) -> str:
        try:
            (directory / "library/hello/tags/latest/layers/00").read_bytes()
        except OSError as error:
            return str(error)
        return ""

    with Stalling() as stalling, ThreadPoolExecutor(32) as pool:
        samples.load(stalling)
        with in_front(stalling.url, directory) as process:
            readers = pool.map(read, range(32))
            until(lambda: stalling.count("GET", "/blobs/") > 0)
            time.sleep(0.5)
            process.send_signal(number)
            assert process.wait(5) == 0
        assert not is_mounted(directory)
        released.set()
        assert all(readers)


# --- mount(8) ---------------------------------------------------------------------------------


@pytest.fixture
def helper() -> Iterator[str]:
    """A name by which mount(8) finds `epochfs`: it looks in the system's own directories alone."""
    path = Path(f"/usr/local/bin/epochfs-test-{os.getpid()}")
    root = CHECKOUT
    path.write_text(f"#!/bin/sh\ncd '{root}' && exec '{sys.executable}' -m epochfs \"$@\"\n")
    path.chmod(0o755)
    yield path.name
    path.unlink()


needs_mount_8 = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/sbin/mount.fuse").exists(),
    reason="only root may call mount(8), which needs mount.fuse",
)


@needs_mount_8
def test_mount_8_mounts_it(registry: EmbeddedRegistry, directory: Path, helper: str) -> None:
    words = f"ro,noatime,_netdev,x-systemd.automount,uid=7,cache_dir={directory.parent}/cache"
    mount_8 = ["mount", "-t", f"fuse.{helper}", registry.url, str(directory), "-o", words]
    done = subprocess.run(mount_8, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (directory / HELLO).stat().st_uid == 7
    mounts = Path("/proc/mounts").read_text().splitlines()
    [line] = [line for line in mounts if line.startswith(registry.url)]
    assert "noatime" in line
    subprocess.run(["umount", str(directory)], check=True, timeout=30)
    assert not is_mounted(directory)


@needs_mount_8
@pytest.mark.parametrize(
    ("words", "is_writable"),
    [
        ("defaults", False),
        ("rw", False),
        ("ro", False),
        ("writable", True),
        ("rw,writable,delete", True),
        ("writable,ro", False),
    ],
)
def test_fstab_has_to_say_that_a_mount_is_written_to(
    registry: EmbeddedRegistry, directory: Path, helper: str, words: str, is_writable: bool
) -> None:
    """mount(8) passes `rw` wherever it is not told `ro`: nothing in the table can be made of it."""
    where = str(directory).replace(" ", "\\040")
    table = directory.parent / "fstab"
    options = f"{words},noauto,_netdev,cache_dir={directory.parent}/cache"
    table.write_text(f"{registry.url} {where} fuse.{helper} {options} 0 0\n")
    mount_8 = ["mount", "-T", str(table), str(directory)]
    done = subprocess.run(mount_8, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    listed = mountinfo.mounted_on(directory)
    assert listed is not None
    assert listed.read_only is not is_writable
    assert run("umount", directory) == (0, "", "")
