"""What is written and waits takes few descriptors, and little memory."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import image, random_bytes
from support.registries import EmbeddedRegistry
from support.writing import (
    blob_path,
    link_to,
    make,
    manifest_path,
    read,
    strict_registry,
    tags,
    writable,
    write,
)

from epochfs.oci.names import Digest
from epochfs.vfs.writing import idle
from epochfs.vfs.writing.writable import WritableFileSystem

MOST_OPEN = 8
SLACK = 12
"""Descriptors of connections, databases and the like."""


registry = pytest.fixture(strict_registry)


@pytest.fixture
def fs(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WritableFileSystem]:
    monkeypatch.setattr(idle, "_MOST_OPEN", MOST_OPEN)
    with writable(registry, tmp_path) as fs:
        write(fs, blob_path(b"up"), b"up")
        yield fs


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


def test_manifests_that_wait_take_no_descriptor_each(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    images = [image(b"%d" % number, b"last") for number in range(50)]
    before = descriptors()
    for number, one in enumerate(images):
        make(fs, f"/team/app/manifests/{one.digest}")
        write(fs, manifest_path(one), one.raw)
        fs.symlink(link_to(one), f"/team/app/tags/n{number}")
    assert descriptors() < before + MOST_OPEN + SLACK
    assert fs.writing().waiting == 100
    for one in images:
        assert read(fs, manifest_path(one)) == one.raw
    for blob in dict.fromkeys(blob for one in images for blob in one.every_blob()):
        write(fs, blob_path(blob), blob)
    assert fs.writing().waiting == 0
    assert len(tags(registry, "team/app")) == 51


def test_a_layout_whose_manifests_wait_takes_no_descriptor_each(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    images = [image(b"%d" % number, b"last") for number in range(30)]
    before = descriptors()
    for one in images:
        write(fs, f"/team/app/layout/blobs/sha256/{Digest.of(one.raw).encoded}", one.raw)
    assert descriptors() < before + MOST_OPEN + SLACK
    for blob in dict.fromkeys(blob for one in images for blob in one.every_blob()):
        write(fs, f"/team/app/layout/blobs/sha256/{Digest.of(blob).encoded}", blob)
    assert fs.writing().waiting == 0


def test_what_rests_in_memory_is_read_written_and_renamed(fs: WritableFileSystem) -> None:
    data = [random_bytes(3000, seed) for seed in range(40)]
    before = descriptors()
    for number, one in enumerate(data):
        write(fs, f"/team/app/blobs/.t{number}", one)
    assert descriptors() < before + MOST_OPEN + SLACK
    assert all(read(fs, f"/team/app/blobs/.t{number}") == one for number, one in enumerate(data))
    handle = fs.open_to_write("/team/app/blobs/.t0").handle
    fs.write(handle, memoryview(b"more"), 3000)
    fs.flush(handle)
    fs.release(handle)
    data[0] += b"more"
    for number, one in enumerate(data):
        path = blob_path(one)
        fs.rename(f"/team/app/blobs/.t{number}", path)
        assert read(fs, path) == one


def test_the_memory_of_what_rests_is_bounded_and_given_back(
    fs: WritableFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(idle, "_MOST_BYTES", 50_000)
    for turn in range(3):
        before = descriptors()
        for number in range(40):
            write(fs, f"/team/app/blobs/.t{number}", random_bytes(5000, number))
        assert before + 20 < descriptors() + turn
        for number in range(40):
            fs.unlink(f"/team/app/blobs/.t{number}")
    assert fs._idle._bytes == 0


def test_files_are_opened_and_closed_by_many_at_once(fs: WritableFileSystem) -> None:
    data = {f"/team/app/blobs/.t{seed}": random_bytes(2000, seed) for seed in range(24)}
    for path, one in data.items():
        write(fs, path, one)
    failures: list[object] = []

    def run() -> None:
        try:
            for path, one in list(data.items()) * 6:
                handle = fs.open_to_write(path).handle
                fs.write(handle, memoryview(one)[:100], 0)
                fs.release(handle)
                assert read(fs, path) == one
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for path in data:
        fs.unlink(path)
