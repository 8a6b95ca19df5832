"""Reading directories as readdir(3) and its kin do it, over a real mount."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.builders import image, load
from support.mounts import Mounts
from support.registries import EmbeddedRegistry

from epochfs.client import RegistryClient
from epochfs.oci.names import Repository, Tag

APP = image(b"app")
TAGS = [f"v{number:04}" for number in range(3000)]
"""Far more than fit into one answer to the kernel."""


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
