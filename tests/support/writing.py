"""Writes to a file system without FUSE, as programs would through the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from epochfs.client import RegistryClient
from epochfs.errors import NotFound
from epochfs.oci.names import Digest, Tag
from epochfs.vfs.writing.writable import WritableFileSystem
from support.builders import Content
from support.registries import EmbeddedRegistry
from support.stacks import stack


class HasUrl(Protocol):
    """A registry, or what stands in front of one."""

    @property
    def url(self) -> str: ...


@contextlib.contextmanager
def writable(registry: HasUrl, directory: Path, **options: object) -> Iterator[WritableFileSystem]:
    """Open a registry for writing, with the cache in `directory`."""
    with stack(registry.url, directory, writes=True, **options) as opened:  # type: ignore[arg-type]
        assert isinstance(opened.filesystem, WritableFileSystem)
        yield opened.filesystem


def write(fs: WritableFileSystem, path: str, data: bytes, piece: int = 1 << 16) -> None:
    """Write a whole file as `cp` does: open, write, close; raises what closing raises."""
    handle = fs.create(path).handle
    try:
        for start in range(0, len(data), piece):
            fs.write(handle, memoryview(data)[start : start + piece], start)
        fs.flush(handle)
    finally:
        fs.release(handle)


def rsync(fs: WritableFileSystem, path: str, data: bytes) -> None:
    """Write a whole file as rsync does: under a temporary name, and then rename it."""
    parent, _, name = path.rpartition("/")
    temporary = f"{parent}/.{name}.Xy12Ab"
    write(fs, temporary, data)
    fs.set_time(temporary, 1_700_000_000_000_000_000)
    fs.check_settable(temporary)
    try:
        fs.rename(temporary, path)
    except BaseException:
        fs.unlink(temporary)
        raise


def make(fs: WritableFileSystem, *paths: str) -> None:
    """Make directories with their parents, as `mkdir -p` does."""
    for path in paths:
        parts = path.split("/")[1:]
        for depth in range(1, len(parts) + 1):
            one = "/" + "/".join(parts[:depth])
            if not exists(fs, one):
                fs.mkdir(one)


def exists(fs: WritableFileSystem, path: str) -> bool:
    """Whether a path is there."""
    try:
        fs.getattr(path)
    except NotFound:
        return False
    return True


def read(fs: WritableFileSystem, path: str) -> bytes:
    """Return all bytes of a file."""
    handle = fs.open(path).handle
    try:
        return fs.read(handle, 0, fs.getattr(path).size)
    finally:
        fs.release(handle)


def listed(fs: WritableFileSystem, path: str) -> list[str]:
    """Return the names in a directory, sorted."""
    return sorted(entry.name for entry in fs.listdir(path))


def steps(repository: str, tag: str, content: Content) -> list[tuple[str, str, bytes | str]]:
    """Return what makes up a tagged artifact: the kind, the path, and the bytes or the target."""
    top = f"/{repository}"
    found: dict[str, tuple[str, str, bytes | str]] = {}
    for blob in content.every_blob():
        path = f"{top}/blobs/{Digest.of(blob)}"
        found[path] = ("file", path, blob)
    for one in content.every_manifest():
        path = f"{top}/manifests/{one.digest}/manifest.json"
        found[path] = ("file", path, one.raw)
    path = f"{top}/tags/{tag}"
    found[path] = ("link", path, f"../manifests/{content.digest}")
    return list(found.values())


def follow(fs: WritableFileSystem, todo: Iterable[tuple[str, str, bytes | str]]) -> None:
    """Do steps in their order."""
    for kind, path, data in todo:
        make(fs, path.rpartition("/")[0])
        if kind == "link":
            assert isinstance(data, str)
            fs.symlink(data, path)
        else:
            assert isinstance(data, bytes)
            write(fs, path, data)


def tags(registry: EmbeddedRegistry, repository: str) -> dict[str, str]:
    """Return what the tags of a repository name, by another client."""
    client = RegistryClient(registry.url)
    try:
        try:
            names = client.list_tags(repository)
        except NotFound:
            return {}
        return {name: str(client.resolve(repository, Tag(name)).digest) for name in names}
    finally:
        client.close()
