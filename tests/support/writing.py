"""Writes to a file system without FUSE, as programs would through the kernel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from epochfs.client import RegistryClient
from epochfs.demo.registry import Behaviour
from epochfs.errors import NotFound
from epochfs.oci.names import Digest, Tag
from epochfs.vfs.writing.writable import WritableFileSystem
from support.builders import Content, image, index, load, random_bytes
from support.registries import EmbeddedRegistry, Guarded
from support.stacks import stack

OLD = image(b"old")
NEW = image(random_bytes(300_000, 7), b"small")
BOTH = index(image(b"one"), image(b"other"))

Step = tuple[str, bytes | str]
"""A path, and the bytes of the file there or the target of the link."""


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


def strict_registry() -> Iterator[Guarded]:
    """A fixture: a registry that has `team/app:old`, and takes no manifest before what it names."""
    with Guarded(Behaviour(sparse="")) as registry:
        load(registry, "team/app", "old", OLD)
        registry.forget_requests()
        yield registry


def written_to(registry: EmbeddedRegistry, tmp_path: Path) -> Iterator[WritableFileSystem]:
    """A fixture: a registry opened for writing."""
    with writable(registry, tmp_path) as opened:
        yield opened


def blob_path(data: bytes, repository: str = "team/app") -> str:
    return f"/{repository}/blobs/{Digest.of(data)}"


def manifest_path(content: Content, repository: str = "team/app") -> str:
    return f"/{repository}/manifests/{content.digest}/manifest.json"


def link_to(content: Content) -> str:
    """Return what a tag of some content is a link to."""
    return f"../manifests/{content.digest}"


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


def parts(repository: str, content: Content) -> list[Step]:
    """Return the files that an artifact is made of."""
    blobs = {blob_path(blob, repository): blob for blob in content.every_blob()}
    manifests = {manifest_path(one, repository): one.raw for one in content.every_manifest()}
    return [*blobs.items(), *manifests.items()]


def steps(repository: str, tag: str, content: Content) -> list[Step]:
    """Return what makes up a tagged artifact: its files, and then the link."""
    return [*parts(repository, content), (f"/{repository}/tags/{tag}", link_to(content))]


def follow(fs: WritableFileSystem, todo: Iterable[Step]) -> None:
    """Do steps in their order."""
    for path, what in todo:
        make(fs, path.rpartition("/")[0])
        if isinstance(what, str):
            fs.symlink(what, path)
        else:
            write(fs, path, what)


def tags(registry: HasUrl, repository: str) -> dict[str, str]:
    """Return what the tags of a repository name, by another client."""
    with contextlib.closing(RegistryClient(registry.url)) as client:
        try:
            names = client.list_tags(repository)
        except NotFound:
            return {}
        return {name: str(client.resolve(repository, Tag(name)).digest) for name in names}
