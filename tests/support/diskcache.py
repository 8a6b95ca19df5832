"""A blob cache and its files, for tests that look at both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.cache.staged_blob import StagedBlob
from epochfs.cache.written_file import WrittenFile
from epochfs.config import CacheOptions
from epochfs.oci.names import Digest
from support.builders import random_bytes

PAGE = 4096
DATA = random_bytes(3 * PAGE)
DIGEST = Digest.of(DATA)


def not_yet_there(tmp_path: Path) -> Path:
    """A fixture: where a cache may be made."""
    return tmp_path / "cache"


def opened(directory: Path, limit: int = 1 << 30) -> BlobCache:
    return BlobCache(CacheOptions(directory, limit))


@contextmanager
def staged(cache: BlobCache, data: bytes = DATA) -> Iterator[StagedBlob]:
    blob = cache.stage(Digest.of(data), len(data))
    try:
        yield blob
    finally:
        blob.close()


def being_written(cache: BlobCache) -> Iterator[WrittenFile]:
    """A fixture: an empty file for what is written to a mount."""
    with closing(cache.new_file()) as file:
        yield file


def write(file: WrittenFile, data: bytes, offset: int = 0) -> None:
    file.write(memoryview(data), offset)


def keep(cache: BlobCache, data: bytes = DATA) -> Digest:
    """Put a blob into the cache as a download does."""
    with staged(cache, data) as blob:
        blob.allocate()
        blob.write(0, memoryview(data))
        blob.promote()
    return Digest.of(data)


def read(fd: int, size: int, offset: int) -> bytes:
    buffer = bytearray(size)
    read_exactly(fd, memoryview(buffer), offset)
    return bytes(buffer)


def content(cache: BlobCache, data: bytes = DATA) -> bytes | None:
    """Return what the cache has under the digest of `data`."""
    fd = cache.open(Digest.of(data), len(data))
    if fd is None:
        return None
    try:
        return read(fd, len(data), 0)
    finally:
        os.close(fd)


def held(cache: BlobCache) -> set[Digest]:
    return {entry.digest for entry in cache.quota.entries()}


def place(directory: Path, kind: str, suffix: str = "") -> Path:
    return directory / "v1" / kind / "sha256" / f"{DIGEST.encoded}{suffix}"


def damage(database: Path) -> None:
    """Overwrite a closed database but for the pages that are read when it is opened."""
    spared = 8 * PAGE
    size = database.stat().st_size
    assert size > 4 * spared
    with database.open("r+b") as file:
        file.seek(spared)
        file.write(random_bytes(size - spared))


def failing(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a directory read-only meanwhile, also for root, who must run this."""
    bind = ["mount", "--bind", directory, directory]
    subprocess.run(bind, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[Path]:
    """Mount a file system in memory on a directory, with options of tmpfs(5); for root only."""
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "small-disk", directory]
    subprocess.run(command, check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True)
