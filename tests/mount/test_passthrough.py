"""Kernel passthrough: decided per inode, everywhere; and read by a real kernel where it can be.

`scripts/debian13` runs the second half in a Debian that has the libfuse for it.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.artifacts import artifact, raw
from support.builders import image, load, random_bytes
from support.mounts import Mount, Mounts, status
from support.registries import EmbeddedRegistry

from epochfs.cli import system
from epochfs.fuse import passthrough
from epochfs.fuse.passthrough import Passthrough, obstacle
from epochfs.oci.names import Digest

MODERN = (3, 17)
DEVICE = 99


# --- may it be had? ---------------------------------------------------------------------------


@pytest.fixture
def capable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that stands for /proc/self, of a process that may have passthrough."""
    (tmp_path / "status").write_text("Name:\tpython\nCapEff:\t000001ffffffffff\n")
    (tmp_path / "uid_map").write_text("         0          0 4294967295\n")
    monkeypatch.setattr(passthrough, "_PROCESS", tmp_path)
    monkeypatch.setattr("platform.release", lambda: "6.9.0-arm64")
    return tmp_path


def test_nothing_stands_against_it_on_a_new_system_as_root(capable: Path) -> None:
    assert obstacle(MODERN) == ""
    assert obstacle((4, 0)) == ""


def test_an_old_libfuse_is_told_with_the_version_to_install(capable: Path) -> None:
    assert obstacle((3, 14)) == "libfuse 3.14 cannot: install 3.17 (Debian 13 has it)"


@pytest.mark.parametrize("release", ["6.8.12-amd64", "5.10.0", "unknown"])
def test_an_old_kernel_is_told_with_the_version_to_boot(
    capable: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr("platform.release", lambda: release)
    assert obstacle(MODERN) == f"Linux {release} cannot: boot 6.9 or newer"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("status", "CapEff:\t0000000000000000\n"),
        ("status", "CapEff:\t00000000a80425fb\n"),  # a container's
        ("uid_map", "         0       1000          1\n"),
    ],
)
def test_a_missing_privilege_is_told_with_the_cure(capable: Path, file: str, text: str) -> None:
    (capable / file).write_text(text)
    assert "CAP_SYS_ADMIN" in obstacle(MODERN)
    assert obstacle(MODERN).endswith("mount as root")


# --- the decision per inode -------------------------------------------------------------------


class Kernel:
    """The ioctls, and what the kernel then makes of an open: the rules of fs/fuse/iomode.c."""

    def __init__(self) -> None:
        self.registered: set[int] = set()
        self.refusal: OSError | None = None
        self.on_register: Callable[[], None] = lambda: None
        self._open: dict[str, Counter[int]] = {}
        self._last = 0

    def ioctl(self, device: int, request: int, argument: bytearray) -> int:
        assert device == DEVICE
        if request == 0x4010E501:
            fd, flags, padding = struct.unpack("iIQ", argument)
            assert (fd >= 0, flags, padding) == (True, 0, 0)
            self.on_register()
            if self.refusal is not None:
                raise self.refusal
            self._last += 1
            self.registered.add(self._last)
            return self._last
        assert request == 0x4004E502
        (number,) = struct.unpack("I", argument)
        self.registered.remove(number)
        return 0

    def opened(self, path: str, number: int) -> None:
        """Take the answer to an open."""
        assert number == 0 or number in self.registered
        numbers = self._open.setdefault(path, Counter())
        numbers[number] += 1
        assert len(+numbers) == 1, f"EIO: {path} is open in two ways"

    def closed(self, path: str, number: int) -> None:
        """Be done with a file; this comes before it is released."""
        self._open[path][number] -= 1


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr("fcntl.ioctl", kernel.ioctl)
    return kernel


@pytest.fixture
def table(kernel: Kernel, capable: Path) -> Passthrough:
    """The decisions of a mount on which passthrough has been started."""
    table = Passthrough(capable, MODERN)
    assert table.possible
    table.start(DEVICE)
    return table


def test_a_verified_file_is_handed_to_the_kernel_until_it_is_released(
    table: Passthrough, kernel: Kernel
) -> None:
    number = table.open("/blob", 1, 7)
    assert kernel.registered == {number}
    assert table.status() == passthrough.PassthroughStatus(on=True, reason="", open=1)
    table.release(1)
    assert kernel.registered == set()
    assert table.status().open == 0


def test_all_handles_of_an_inode_share_one_number(table: Passthrough, kernel: Kernel) -> None:
    assert table.open("/blob", 1, 7) == table.open("/blob", 2, 8)
    table.release(1)
    assert len(kernel.registered) == 1
    table.release(2)
    assert kernel.registered == set()


def test_an_inode_read_through_us_stays_so_until_its_last_handle_is_released(
    table: Passthrough, kernel: Kernel
) -> None:
    assert table.open("/blob", 1, None) == 0
    assert table.open("/blob", 2, 7) == 0
    table.release(1)
    assert table.open("/blob", 3, 7) == 0
    table.release(2)
    table.release(3)
    assert table.open("/blob", 4, 7) in kernel.registered


def test_an_inode_read_by_the_kernel_stays_so_for_a_handle_that_is_not_verified(
    table: Passthrough,
) -> None:
    assert table.open("/blob", 1, 7) == table.open("/blob", 2, None) > 0


def test_inodes_are_decided_one_by_one(table: Passthrough, kernel: Kernel) -> None:
    numbers = [table.open("/a", 1, 7), table.open("/b", 2, None), table.open("/c", 3, 8)]
    assert numbers[1] == 0
    assert kernel.registered == {numbers[0], numbers[2]}


def test_what_the_kernel_refuses_is_read_through_us_and_told(
    table: Passthrough, kernel: Kernel
) -> None:
    kernel.refusal = OSError(40, "Too many levels of symbolic links")
    assert table.open("/a", 1, 7) == 0
    status = table.status()
    assert not status.on
    assert status.reason == "the kernel refused a cached file: Too many levels of symbolic links"
    kernel.refusal = None
    assert table.open("/b", 2, 7) > 0
    assert table.status().on


def test_first_opens_at_the_same_moment_agree_on_one_number(
    table: Passthrough, kernel: Kernel
) -> None:
    others: list[int] = []

    def come_between() -> None:
        kernel.on_register = lambda: None
        others.append(table.open("/blob", 2, 8))

    kernel.on_register = come_between
    assert [table.open("/blob", 1, 7)] == others
    assert kernel.registered == set(others)


def test_before_it_is_started_nothing_is_handed_over(kernel: Kernel, capable: Path) -> None:
    table = Passthrough(capable, MODERN)
    assert table.open("/blob", 1, 7) == 0
    table.refuse("no such thing")
    table.release(1)
    assert not table.possible
    assert table.status() == passthrough.PassthroughStatus(False, "no such thing", 0)


def test_no_order_of_opens_and_releases_mixes_the_ways_or_leaks_a_number(
    table: Passthrough, kernel: Kernel
) -> None:
    source = random.Random(3)
    handles: dict[int, tuple[str, int]] = {}
    for handle in range(3000):
        kernel.refusal = OSError(12, "Cannot allocate memory") if source.random() < 0.1 else None
        path = source.choice("abc")
        number = table.open(path, handle, source.choice([None, 5, 6]))
        kernel.opened(path, number)
        handles[handle] = (path, number)
        while len(handles) > source.randrange(6):
            leaving = source.choice(list(handles))
            kernel.closed(*handles.pop(leaving))
            table.release(leaving)
    for handle in handles:
        table.release(handle)
    assert kernel.registered == set()


# --- a real kernel ----------------------------------------------------------------------------

BLOB = random_bytes(5_000_000, 75)
NAME = f"library/app/blobs/{Digest.of(BLOB)}"


@pytest.fixture
def app(embedded: EmbeddedRegistry, request: pytest.FixtureRequest) -> EmbeddedRegistry:
    """A registry of one blob, where this machine has passthrough."""
    request.getfixturevalue("mounts")
    reason = obstacle(system.library_version())
    if reason:
        pytest.skip(f"no passthrough: {reason}")
    load(embedded, "library/app", "latest", image(BLOB))
    return embedded


@pytest.fixture
def warm(app: EmbeddedRegistry, mounts: Mounts) -> Mount:
    """A mount that has the blob in its cache, and no page of it in the kernel's."""
    first = mounts(app.url)
    assert (first.path / NAME).read_bytes() == BLOB
    first.unmount()
    return mounts(app.url)


def status_of(mount: Mount) -> dict[str, object]:
    shown = status(mount.path)["passthrough"]
    assert isinstance(shown, dict)
    return shown


@contextmanager
def stopped(mount: Mount) -> Iterator[None]:
    """Let the process behind a mount do nothing for a while."""
    mount.process.send_signal(signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, mount.process.pid, os.WSTOPPED | os.WNOWAIT)
        yield
    finally:
        mount.process.send_signal(signal.SIGCONT)


def within_seconds(act: Callable[[], bytes]) -> bytes:
    """Return what an act returns, if it does so soon; else fail, leaving it behind."""
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(act()), daemon=True)
    thread.start()
    thread.join(10)
    assert results, "it waits"
    return results[0]


def test_a_cached_blob_is_read_and_mapped_while_the_process_is_stopped(warm: Mount) -> None:
    with (warm.path / NAME).open("rb") as file:
        assert status_of(warm) == {"on": True, "reason": "", "open": 1}
        with stopped(warm):
            assert within_seconds(file.read) == BLOB
            assert within_seconds(lambda: os.pread(file.fileno(), 10, 4_999_995)) == BLOB[-5:]
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                assert within_seconds(lambda: mapped[4096:9000]) == BLOB[4096:9000]
    assert (warm.path / NAME).read_bytes() == BLOB


def test_a_cached_file_of_a_volume_is_read_while_the_process_is_stopped(
    app: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(app, "model", "v1", artifact(raw("weights", BLOB)))
    mount = mounts(f"{app.url}/model:v1")
    assert (mount.path / "weights").read_bytes() == BLOB
    with (mount.path / "weights").open("rb") as file, stopped(mount):
        assert within_seconds(file.read) == BLOB


def test_a_blob_that_is_not_verified_is_read_through_us_by_all_its_readers(
    app: EmbeddedRegistry, mounts: Mounts
) -> None:
    mount = mounts(app.url)
    with (mount.path / NAME).open("rb") as first:
        assert first.read(1000) == BLOB[:1000]
        with (mount.path / NAME).open("rb") as second:
            assert second.read() == BLOB
        # Verified by now, but the first reader still has it open in the other way.
        with (mount.path / NAME).open("rb") as third:
            assert third.read() == BLOB
            assert status_of(mount)["open"] == 0
        assert first.read() == BLOB[1000:]


def test_its_next_reader_has_it_from_the_kernel(app: EmbeddedRegistry, mounts: Mounts) -> None:
    mount = mounts(app.url)
    assert (mount.path / NAME).read_bytes() == BLOB
    with (mount.path / NAME).open("rb") as file:
        assert file.read() == BLOB
        assert status_of(mount)["open"] == 1


def test_many_readers_open_and_close_it_in_any_order(warm: Mount) -> None:
    source = random.Random(75)
    with ExitStack() as stack:
        for _ in range(300):
            file = stack.enter_context((warm.path / NAME).open("rb", buffering=0))
            offset = source.randrange(len(BLOB))
            assert os.pread(file.fileno(), 4096, offset) == BLOB[offset : offset + 4096]
            if source.random() < 0.5:
                file.close()
    assert (warm.path / NAME).read_bytes() == BLOB


def test_an_open_file_outlives_its_cache(warm: Mount, tmp_path: Path) -> None:
    with (warm.path / NAME).open("rb") as file:
        for cached in tmp_path.glob("cache/v1/blobs/*/*"):
            cached.unlink()
        with (warm.path / NAME).open("rb") as again:
            assert again.read() == file.read() == BLOB


def test_manifests_and_the_status_are_read_as_ever(warm: Mount) -> None:
    manifest = warm.path / "library/app/tags/latest/manifest.json"
    with manifest.open("rb") as file:
        assert file.read() == manifest.read_bytes()
        assert status_of(warm)["open"] == 0


@contextmanager
def overlay(lower: Path, directory: Path) -> Iterator[Path]:
    """Put an overlayfs over a directory for a while; skip the test where the kernel has none."""
    if "overlay" not in Path("/proc/filesystems").read_text().split():
        pytest.skip("the kernel has no overlayfs")
    merged, upper, work = (directory / name for name in ("merged", "upper", "work"))
    for each in (merged, upper, work):
        each.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "none", "-o", options, merged], check=True)
    try:
        yield merged
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


def test_an_overlayfs_can_be_put_over_the_mount(warm: Mount, tmp_path: Path) -> None:
    with overlay(warm.path / "library", tmp_path) as merged:
        assert (merged / Path(NAME).relative_to("library")).read_bytes() == BLOB


def test_a_cache_on_an_overlayfs_will_do(
    app: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    lower = tmp_path / "lower"
    lower.mkdir()
    with overlay(lower, tmp_path) as merged:
        mount = mounts(app.url, cache=merged / "cache")
        assert (mount.path / NAME).read_bytes() == BLOB
        with (mount.path / NAME).open("rb") as file:
            assert file.read() == BLOB
            assert status_of(mount) == {"on": True, "reason": "", "open": 1}
        mount.unmount()
