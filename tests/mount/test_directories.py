"""Reading directories as readdir(3) and its kin do it, over a real mount."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.builders import image, load
from support.layers import File, container, gzipped
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry

from epochfs.cli.system import library_version
from epochfs.client import RegistryClient
from epochfs.oci.names import Repository, Tag

APP = image(b"app")
TAGS = [f"v{number:04}" for number in range(3000)]
"""Far more than fit into one answer to the kernel."""

_HELD_SECONDS = 10.0
_FORGOTTEN_SECONDS = 3.2
"""After so long the kernel has forgotten attributes, at a TTL of 30 seconds."""


class _Entry(ctypes.Structure):
    """`struct dirent` of Linux with 64 bits."""

    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    )


class Directory:
    """An open directory, and the C library's functions on it."""

    def __init__(self, libc: ctypes.CDLL, stream: int) -> None:
        self._libc = libc
        self._stream = ctypes.c_void_p(stream)

    def read(self) -> str | None:
        """Return the next name, None at the end."""
        self._libc.readdir.restype = ctypes.POINTER(_Entry)
        entry = self._libc.readdir(self._stream)
        return entry.contents.d_name.decode() if entry else None

    def rest(self) -> list[str]:
        return list(iter(self.read, None))

    def tell(self) -> int:
        self._libc.telldir.restype = ctypes.c_long
        return int(self._libc.telldir(self._stream))

    def seek(self, place: int) -> None:
        self._libc.seekdir(self._stream, ctypes.c_long(place))

    def rewind(self) -> None:
        self._libc.rewinddir(self._stream)


@contextmanager
def opened(path: Path) -> Iterator[Directory]:
    libc = ctypes.CDLL(None)
    libc.opendir.restype = ctypes.c_void_p
    stream = libc.opendir(bytes(path))
    assert stream, path
    try:
        yield Directory(libc, stream)
    finally:
        libc.closedir(ctypes.c_void_p(stream))


def tagged(embedded: EmbeddedRegistry, mounts: Mounts, *options: str) -> Path:
    for tag in TAGS:
        load(embedded, "library/app", tag, APP)
    return mounts(embedded.url, *options).path / "library/app/tags"


def test_a_large_directory_names_each_once(embedded: EmbeddedRegistry, mounts: Mounts) -> None:
    path = tagged(embedded, mounts)
    with opened(path) as directory:
        assert directory.rest() == [".", "..", *TAGS]


def test_a_place_in_it_can_be_gone_back_to(embedded: EmbeddedRegistry, mounts: Mounts) -> None:
    path = tagged(embedded, mounts)
    with opened(path) as directory:
        before = [directory.read() for _ in range(1500)]
        place = directory.tell()
        assert directory.rest() == TAGS[1498:]
        directory.seek(place)
        assert directory.rest() == TAGS[1498:]
        directory.rewind()
        assert [directory.read() for _ in range(1500)] == before


def test_it_stays_as_it_was_until_it_is_rewound(embedded: EmbeddedRegistry, mounts: Mounts) -> None:
    """No name is missed or given twice, whatever the registry does meanwhile."""
    path = tagged(embedded, mounts, "--metadata-ttl", "0")
    with opened(path) as directory:
        directory.read()
        client = RegistryClient(embedded.url)
        for tag in TAGS[:10]:
            client.delete_manifest(Repository("library/app"), Tag(tag))
        assert directory.rest() == ["..", *TAGS]
        directory.rewind()
        assert directory.rest() == [".", "..", *TAGS[10:]]


def test_two_readers_of_one_directory_have_a_place_each(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    path = tagged(embedded, mounts)
    with opened(path) as one, opened(path) as other:
        for _ in range(2000):
            one.read()
        assert other.read() == "."
        assert one.rest() == TAGS[1998:]
        assert other.rest() == ["..", *TAGS]


@contextmanager
def held_up(mount: Mount) -> Iterator[None]:
    """Let the mount answer nothing for so long that whoever asks it is seen to wait."""
    later = threading.Timer(_HELD_SECONDS, mount.process.send_signal, [signal.SIGCONT])
    mount.process.send_signal(signal.SIGSTOP)
    later.start()
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < _HELD_SECONDS / 2
    finally:
        later.cancel()
        mount.process.send_signal(signal.SIGCONT)


def test_the_kernel_keeps_the_listing_of_what_cannot_change(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    if library_version() < (3, 15):
        pytest.skip("this libfuse does not pass on that a listing may be kept")
    load(embedded, "app", "v1", APP)
    mount = mounts(embedded.url)
    manifest = mount.path / "app/manifests" / str(APP.digest)
    assert manifest.stat().st_mode
    with opened(manifest) as directory:
        first = directory.rest()
        with held_up(mount):
            directory.rewind()
            assert directory.rest() == first
    assert "layers" in first


def test_attributes_come_with_the_listing_of_a_manifest(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(embedded, "app", "v1", APP)
    mount = mounts(embedded.url, "--metadata-ttl", "30s")
    manifest = mount.path / "app/manifests" / str(APP.digest)
    names = os.listdir(manifest)  # noqa: PTH208 - without asking for attributes
    with held_up(mount):
        found = {name: (manifest / name).lstat() for name in names}
    assert found["manifest.json"].st_size == len(APP.raw)
    assert stat.S_ISLNK(found["config"].st_mode)
    time.sleep(_FORGOTTEN_SECONDS)
    for name, then in found.items():
        now = (manifest / name).lstat()
        assert [*now] == [*then]
        assert now.st_mtime_ns == then.st_mtime_ns


def test_attributes_come_with_each_part_of_a_long_listing_of_a_layer(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    """As long as whoever lists the directory asks for some of them, as `ls -l` does."""
    files = {f"{number:03}{'n' * (number % 200)}": b"x" * number for number in range(300)}
    packed = gzipped(*(File(f"d/{name}", data) for name, data in files.items()))
    load(embedded, "app", "v1", container(packed))
    mount = mounts(embedded.url, "--metadata-ttl", "30s")
    path = (mount.path / "app/tags/v1/rootfs/d").resolve()
    assert path.stat().st_mode
    names = []
    with os.scandir(path) as entries:
        for number, entry in enumerate(entries):
            names.append(entry.name)
            if number % 10 == 0:
                assert entry.stat().st_mode
    assert sorted(names) == sorted(files)
    with held_up(mount):
        sizes = {name: (path / name).lstat().st_size for name in names}
    assert sizes == {name: len(data) for name, data in files.items()}


def test_a_listing_that_can_change_is_read_anew_each_time(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(embedded, "app", "v1", APP)
    mount = mounts(embedded.url, "--metadata-ttl", "1s")
    with opened(mount.path / "app/tags") as directory:
        assert sorted(directory.rest()) == [".", "..", "v1"]
        load(embedded, "app", "v2", APP)
        time.sleep(1.1)
        directory.rewind()
        assert sorted(directory.rest()) == [".", "..", "v1", "v2"]


def test_a_mount_that_can_be_written_to_lets_the_kernel_keep_no_listing(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(embedded, "app", "v1", APP)
    mount = mounts(embedded.url, "-o", "rw")
    manifest = mount.path / "app/manifests" / str(APP.digest)
    assert manifest.stat().st_mode
    with opened(manifest) as directory:
        before = directory.rest()
        (manifest / ".noted").write_bytes(b"x")
        directory.rewind()
        assert {*directory.rest()} == {*before, ".noted"}
    (manifest / ".noted").unlink()


def test_an_attribute_that_no_file_can_have_is_not_supported_and_ls_asks_once(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(embedded, "app", "v1", APP)
    path = mounts(embedded.url).path / "app/manifests" / str(APP.digest) / "manifest.json"
    for name in ("security.selinux", "system.posix_acl_access"):
        with pytest.raises(OSError, match="not supported") as refused:
            os.getxattr(path, name)
        assert refused.value.errno == errno.EOPNOTSUPP
    with pytest.raises(OSError, match="No data") as refused:
        os.getxattr(path, "user.absent")
    assert refused.value.errno == errno.ENODATA
    assert os.getxattr(path, "user.oci.digest") == str(APP.digest).encode()
