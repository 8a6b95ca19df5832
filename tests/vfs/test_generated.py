"""Files that are written here: each reader has one version, of the size that it was told."""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.builders import image, load
from support.mounts import Mounts
from support.registries import EmbeddedRegistry

from epochfs.client import RegistryClient
from epochfs.errors import Vanished
from epochfs.oci.names import Tag
from epochfs.vfs.kernel_memory import Generated, GeneratedHandle, KernelMemory
from epochfs.vfs.node import Attr, Context, GeneratedFile

ONE, OTHER, LONGER, SHORTER = b"one", b"two", b"three", b"4"


@dataclass(frozen=True)
class Changing(GeneratedFile):
    """A file whose bytes a test changes."""

    name: str

    def generated(self, context: Context) -> Generated:
        return Generated(BYTES[self.name], len(BYTES[self.name]))


BYTES: dict[str, bytes] = {}
FILE = Changing("a")


class Files:
    """The generated files of a mount whose nodes have nothing else to ask."""

    def __init__(self) -> None:
        self._context: Any = SimpleNamespace(kernel=KernelMemory(0.1))

    def attr(self, file: GeneratedFile) -> Attr:
        return file.attr(self._context)

    def open(self, file: GeneratedFile) -> GeneratedHandle:
        opened = file.open(self._context).file
        assert isinstance(opened, GeneratedHandle)
        return opened


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.setattr("epochfs.vfs.kernel_memory._SLACK_SECONDS", 0.1)
    BYTES["a"] = ONE
    return Files()


def content(handle: GeneratedHandle) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: handle.read_into(memoryview(buffer), 0)])


def test_a_file_opens_as_what_was_told_of_it(files: Files) -> None:
    assert files.attr(FILE).size == len(ONE)
    BYTES["a"] = LONGER
    handle = files.open(FILE)
    assert content(handle) == ONE
    assert not handle.direct_io


def test_what_was_not_told_is_read_past_the_pages(files: Files) -> None:
    handle = files.open(FILE)
    assert (content(handle), handle.direct_io) == (ONE, True)


def test_an_open_file_stays_as_it_is_for_a_while(files: Files, clock: list[float]) -> None:
    files.attr(FILE)
    clock[0] += 0.15
    first = files.open(FILE)
    BYTES["a"] = LONGER
    clock[0] += 0.08  # it was told longer ago than that may be, and opened less long
    assert files.attr(FILE).size == len(ONE)
    second = files.open(FILE)
    assert (content(first), content(second)) == (ONE, ONE)
    assert not second.direct_io
    clock[0] += 0.05
    third = files.open(FILE)
    assert (content(third), third.direct_io) == (ONE, True)  # nobody keeps it so for ever
    clock[0] += 0.08
    assert files.attr(FILE).size == len(LONGER)
    assert content(third) == ONE


@pytest.mark.parametrize("after", [OTHER, LONGER, SHORTER])
def test_every_handle_has_its_own_version_or_an_error(
    files: Files, clock: list[float], after: bytes
) -> None:
    files.attr(FILE)
    old = files.open(FILE)
    BYTES["a"] = after
    clock[0] += 0.25
    assert files.attr(FILE).size == len(after)
    new = files.open(FILE)
    assert (content(new), new.direct_io) == (after, True)  # the pages are the old one's
    if len(after) == len(ONE):
        assert content(old) == ONE
    else:
        with pytest.raises(Vanished):
            content(old)
    for handle in (old, new):
        handle.close()
    last = files.open(FILE)
    assert (content(last), last.direct_io) == (after, False)


# ---- through the kernel --------------------------------------------------------------------------


def mapped(path: Path, flags: int) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, flags, mmap.PROT_READ) as pages:
        return pages[:]


def mappable(path: Path) -> bytes | None:
    try:
        return mapped(path, mmap.MAP_SHARED)
    except OSError as error:
        assert error.errno == errno.ENODEV
        return None


@pytest.mark.parametrize("flags", [mmap.MAP_SHARED, mmap.MAP_PRIVATE], ids=["shared", "private"])
@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_a_file_of_a_layout_can_be_mapped(
    embedded: EmbeddedRegistry, mounts: Mounts, flags: int, name: str
) -> None:
    load(embedded, "app", "1", image())
    path = mounts(embedded.url).path / "app/layout" / name
    assert mapped(path, flags) == path.read_bytes() != b""


def more(registry: EmbeddedRegistry) -> None:
    load(registry, "app", "3", image(b"1"))


def fewer(registry: EmbeddedRegistry) -> None:
    with contextlib.closing(RegistryClient(registry.url)) as client:
        client.delete_manifest("app", Tag("2"))


def swapped(registry: EmbeddedRegistry) -> None:
    load(registry, "app", "1", image(b"2"))
    load(registry, "app", "2", image(b"1"))


@pytest.mark.parametrize("change", [more, fewer, swapped])
@pytest.mark.expects_log("ESTALE")
def test_a_version_that_is_open_is_read_to_its_end_or_to_an_error(
    embedded: EmbeddedRegistry, mounts: Mounts, change: Callable[[EmbeddedRegistry], None]
) -> None:
    load(embedded, "app", "1", image(b"1"))
    load(embedded, "app", "2", image(b"2"))
    path = mounts(embedded.url, "--metadata-ttl", "1s").path / "app/layout/index.json"
    before = path.read_bytes()
    with path.open("rb", buffering=0) as old, path.open("rb", buffering=0) as mapping:
        pages = mmap.mmap(mapping.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        assert pages[:] == before
        assert old.read(10) == before[:10]
        change(embedded)
        deadline = time.monotonic() + 10
        while (after := path.read_bytes()) == before:
            assert time.monotonic() < deadline
        assert path.stat().st_size == len(after)
        assert [one["annotations"] for one in json.loads(after)["manifests"]]
        if len(after) == len(before):
            assert os.pread(old.fileno(), 1 << 20, 0) == before
            assert pages[:] == before
        else:
            with pytest.raises(OSError) as caught:
                os.pread(old.fileno(), 1 << 20, 0)
            assert caught.value.errno == errno.ESTALE
        pages.close()
        assert path.read_bytes() == after
    while (found := mappable(path)) is None:  # until the kernel has let go of the old version
        assert time.monotonic() < deadline
    assert found == path.read_bytes() == after
