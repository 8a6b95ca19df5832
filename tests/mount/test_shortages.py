"""Real mounts whose cache is on a disk that is full, small, read-only or out of inodes.

Whatever the machine has too little of, all that is listed can be read to its last byte, from a
registry that honours Range and from one that does not, and the log has one warning of it.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.diskcache import read_only, small_disk
from support.layers import File, container, gzipped, zstd
from support.mounts import COMMAND, Mount, Mounts, status
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.demo.registry import EPOCH, SPECIFICATION, Behaviour
from epochfs.oci.names import Digest

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
    pytest.mark.expects_log("cannot keep everything"),
]

MIB = 1 << 20
BLOBS = [
    random_bytes(size, seed) for seed, size in enumerate([0, 5, 70_000, 3 * MIB, 24 * MIB + 3])
]
MANY = [random_bytes(4000 + seed, seed) for seed in range(40)]
every_registry = pytest.mark.parametrize(
    "behaviour", [SPECIFICATION, replace(EPOCH, auth="")], ids=["range", "epoch"]
)


@contextmanager
def registry_of(behaviour: Behaviour) -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(behaviour) as registry:
        load(registry, "team/app", "v1", image(*BLOBS))
        load(registry, "team/many", "v1", image(*MANY))
        yield registry


MakeDisk = Callable[[str], Path]


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[MakeDisk]:
    """Mounts a disk with options of tmpfs(5) until the test ends."""
    with contextlib.ExitStack() as ending:
        yield lambda options: ending.enter_context(small_disk(tmp_path / "disk", options))


def fill(disk: Path) -> None:
    """Leave nothing of a disk to others."""
    with contextlib.suppress(OSError), (disk / "filling").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))
            file.flush()


def read_everything(mount: Mount) -> None:
    """Walk all of the mount, and read every blob of it to its end, several at once."""
    listed = subprocess.run(
        ["find", mount.path, "-ls"], capture_output=True, check=False, timeout=120
    )
    assert (listed.returncode, listed.stderr) == (0, b"")
    wanted = {f"team/app/blobs/{Digest.of(blob)}": blob for blob in BLOBS}
    wanted |= {f"team/many/blobs/{Digest.of(blob)}": blob for blob in MANY}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda name: (mount.path / name).read_bytes(), wanted)
    for name, content in zip(wanted, found, strict=True):
        assert content == wanted[name], name
    with (mount.path / f"team/app/blobs/{Digest.of(BLOBS[-1])}").open("rb") as file:
        for offset in (20 * MIB, MIB + 7, len(BLOBS[-1]) - 10, 0):
            assert os.pread(file.fileno(), 5000, offset) == BLOBS[-1][offset : offset + 5000]


def warnings(mount: Mount) -> list[str]:
    return [line for line in mount.log.read_text().splitlines() if " WARNING " in line]


# --- what a disk may lack ---------------------------------------------------------------------


@every_registry
def test_a_disk_that_is_full_before_the_mount(
    behaviour: Behaviour, mounts: Mounts, make_disk: MakeDisk
) -> None:
    disk = make_disk("size=4m")
    fill(disk)
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, cache=disk)
        read_everything(mount)
        assert len(warnings(mount)) == 1
        mount.unmount()


@every_registry
def test_a_disk_that_fills_up_under_the_mount(
    behaviour: Behaviour, mounts: Mounts, make_disk: MakeDisk
) -> None:
    disk = make_disk("size=8m")
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, cache=disk)
        fill(disk)
        read_everything(mount)
        assert len(warnings(mount)) == 1
        mount.unmount()


@every_registry
def test_a_disk_smaller_than_the_registry(
    behaviour: Behaviour, mounts: Mounts, make_disk: MakeDisk
) -> None:
    disk = make_disk("size=6m")
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, cache=disk)
        read_everything(mount)
        read_everything(mount)
        assert len(warnings(mount)) == 1
        mount.unmount()


@every_registry
def test_a_disk_without_inodes(behaviour: Behaviour, mounts: Mounts, make_disk: MakeDisk) -> None:
    disk = make_disk("size=64m,nr_inodes=14")
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, cache=disk)
        read_everything(mount)
        assert len(warnings(mount)) <= 1
        mount.unmount()


@every_registry
def test_a_disk_that_became_read_only(
    behaviour: Behaviour, mounts: Mounts, make_disk: MakeDisk, tmp_path: Path
) -> None:
    disk = make_disk("size=64m")
    cache = disk / "cache"
    cache.mkdir(0o700)
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, cache=cache)
        kept = mount.path / f"team/app/blobs/{Digest.of(BLOBS[3])}"
        assert kept.read_bytes() == BLOBS[3]
        until(lambda: os.getxattr(kept, "user.epochfs.cached") == b"100")
        mount.unmount()
        with read_only(cache):
            again = mounts(registry.url, cache=cache)
            registry.forget_requests()
            assert (again.path / kept.relative_to(mount.path)).read_bytes() == BLOBS[3]
            assert registry.count(containing=str(Digest.of(BLOBS[3]))) == registry.count(
                "HEAD", str(Digest.of(BLOBS[3]))
            )
            read_everything(again)
            assert len(warnings(again)) == 1
            again.unmount()


@pytest.mark.parametrize("limit", [256, 100])
@every_registry
def test_few_descriptors(behaviour: Behaviour, mounts: Mounts, limit: int) -> None:
    few = ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *COMMAND)
    with registry_of(behaviour) as registry:
        mount = mounts(registry.url, command=few)
        read_everything(mount)
        paths = [mount.path / f"team/many/blobs/{Digest.of(blob)}" for blob in MANY]
        files = [path.open("rb") for path in paths for _ in range(limit // 10)]
        try:
            found = [file.read() for file in files]
            read_everything(mount)
        finally:
            for file in files:
                file.close()
        assert found == [blob for blob in MANY for _ in range(limit // 10)]
        mount.unmount()


def test_many_readers_with_few_descriptors(mounts: Mounts) -> None:
    few = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *COMMAND)
    blobs = [random_bytes(300_000 + seed, 100 + seed) for seed in range(120)]
    with EmbeddedRegistry() as registry:
        load(registry, "a", "v1", image(*blobs))
        mount = mounts(registry.url, command=few)
        with ThreadPoolExecutor(64) as pool:
            paths = [mount.path / f"a/blobs/{Digest.of(blob)}" for blob in blobs]
            assert list(pool.map(Path.read_bytes, paths)) == blobs
        mount.unmount()


# --- what follows -----------------------------------------------------------------------------


def test_layers_are_looked_into_while_the_disk_is_full(mounts: Mounts, make_disk: MakeDisk) -> None:
    pytest.importorskip("indexed_gzip")
    data = random_bytes(2 * MIB)
    disk = make_disk("size=4m")
    fill(disk)
    with EmbeddedRegistry(replace(EPOCH, auth="")) as registry:
        for name, make in (("gzip", gzipped), ("zstd", zstd)):
            content = container(make(File("one", data), File("two", b"2"), File("three", data)))
            load(registry, name, "v1", content)
        mount = mounts(registry.url, cache=disk)
        for name in ("gzip", "zstd"):
            root = mount.path / name / "tags/v1/rootfs"
            assert sorted(path.name for path in root.iterdir()) == ["one", "three", "two"]
            for file in ("three", "one", "two", "three"):
                assert (root / file).read_bytes() == (b"2" if file == "two" else data)
        mount.unmount()


def test_what_was_used_long_ago_goes_before_a_blob_is_read_past_the_cache(
    mounts: Mounts, make_disk: MakeDisk
) -> None:
    disk = make_disk("size=8m")
    blobs = [random_bytes(3 * MIB, seed) for seed in range(6)]
    with EmbeddedRegistry() as registry:
        load(registry, "a", "v1", image(*blobs))
        mount = mounts(registry.url, cache=disk)
        for blob in blobs:
            path = mount.path / f"a/blobs/{Digest.of(blob)}"
            assert path.read_bytes() == blob
            until(lambda path=path: os.getxattr(path, "user.epochfs.cached") == b"100")  # type: ignore[misc]
        assert warnings(mount) == []
        mount.unmount()


def test_a_disk_that_has_room_again_is_used_again(mounts: Mounts, make_disk: MakeDisk) -> None:
    disk = make_disk("size=40m")
    with registry_of(SPECIFICATION) as registry:
        mount = mounts(registry.url, cache=disk)
        fill(disk)
        path = mount.path / f"team/app/blobs/{Digest.of(BLOBS[3])}"
        assert path.read_bytes() == BLOBS[3]
        assert os.getxattr(path, "user.epochfs.cached") == b"0"
        (disk / "filling").unlink()

        def is_cached() -> bool:
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                assert file.read() == BLOBS[3]
            return os.getxattr(path, "user.epochfs.cached") == b"100"

        until(is_cached, 15)
        mount.unmount()


def test_the_mount_of_a_full_disk_is_found_and_ended(mounts: Mounts, make_disk: MakeDisk) -> None:
    disk = make_disk("size=4m")
    fill(disk)
    with registry_of(SPECIFICATION) as registry:
        mount = mounts(registry.url, cache=disk)
        assert status(mount.path)["cache"]["free"] == 0
        mount.unmount()
    assert not re.search("Traceback", mount.said())
