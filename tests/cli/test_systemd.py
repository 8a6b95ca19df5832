"""What a service manager is told: sd_notify's protocol, over real sockets and from real mounts."""

from __future__ import annotations

import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commandline import is_mounted, run, with_samples
from support.mounts import Mounts, require_fuse
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.cli import mountpoint, systemd

registry = pytest.fixture(with_samples)


class Manager:
    """A service manager's socket, and its address as NOTIFY_SOCKET has it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def told(self, patience: float = 20) -> list[str]:
        self._socket.settimeout(patience)
        return self._socket.recv(4096).decode().split("\n")

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(str(tmp_path / "said"))
    yield manager
    manager.close()


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_states_are_one_datagram(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"@epochfs/{secrets.token_hex(8)}" if kind == "abstract" else str(tmp_path / "said")
    manager = Manager(name)
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    systemd.notify("READY=1", "STATUS=a b")
    assert manager.told() == ["READY=1", "STATUS=a b"]
    manager.close()


@pytest.mark.parametrize("address", [None, "", "said", "/nowhere/at/all", "@nobody-is-here"])
def test_where_no_manager_listens_nothing_happens(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")


def test_a_manager_that_does_not_listen_is_not_waited_for(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(systemd, "_PATIENCE", 0.01)
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            while True:
                other.sendto(b"BUSY=1", manager.address)
    systemd.notify("READY=1")
    assert manager.told() == ["BUSY=1"]


@pytest.mark.fuse
def test_a_mount_in_the_foreground_says_when_it_is_ready_and_when_it_stops(
    registry: EmbeddedRegistry, manager: Manager, mounts: Mounts
) -> None:
    require_fuse()
    mount = mounts(registry.url, environment={"NOTIFY_SOCKET": manager.address})
    status = f"STATUS={registry.url} is mounted on {mount.path}"
    assert manager.told() == ["READY=1", status]
    assert (mount.path / "library/hello/tags").is_dir()
    mount.process.send_signal(signal.SIGTERM)
    assert manager.told() == ["STOPPING=1"]
    assert mount.process.wait(20) == 0


@pytest.mark.fuse
def test_a_mount_in_the_background_names_the_process_that_serves_it(
    registry: EmbeddedRegistry, manager: Manager, tmp_path: Path
) -> None:
    require_fuse()
    path = tmp_path / "mounted"
    path.mkdir()
    cache = f"--cache-dir={tmp_path / 'cache'}"
    try:
        told = run("mount", cache, registry.url, path, NOTIFY_SOCKET=manager.address)
        assert told == (0, "", "")
        pid, *rest = manager.told()
        assert rest == ["READY=1", f"STATUS={registry.url} is mounted on {path}"]
        os.kill(int(pid.removeprefix("MAINPID=")), signal.SIGTERM)
        assert manager.told() == ["STOPPING=1"]
        until(lambda: not is_mounted(path))
    finally:
        mountpoint.unmount(path, lazy=True)


@pytest.mark.fuse
@pytest.mark.parametrize("more", [(), ("-f",)])
def test_a_mount_that_fails_is_never_ready(
    manager: Manager, tmp_path: Path, more: tuple[str, ...]
) -> None:
    require_fuse()
    (tmp_path / "mounted").mkdir()
    options = (f"--cache-dir={tmp_path / 'cache'}", "--timeout=2")
    where = ("http://127.0.0.1:1", tmp_path / "mounted")
    assert run("mount", *options, *more, *where, NOTIFY_SOCKET=manager.address)[0] == 1
    with pytest.raises(TimeoutError):
        manager.told(patience=0.1)
