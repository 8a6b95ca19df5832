"""One file system seen in two ways, through `vfs` directly and through the kernel.

Both views take paths from the root of the tree and raise OSError with the errno of design §6.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from epochfs.errors import EpochfsError
from epochfs.fuse.errnos import errno_of
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.node import inode
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack


@dataclass(frozen=True)
class Stat:
    """What stat(2) tells, as far as the tree decides it."""

    kind: int
    permissions: int
    size: int
    time_ns: int
    inode: int


@dataclass(frozen=True)
class Listed:
    """What a directory listed before it ended: `code` is 0, or the errno it ended with.

    Of each name there is its file type and inode number.
    """

    names: dict[str, tuple[int, int]]
    code: int


class OpenedFile(Protocol):
    """An open file."""

    def pread(self, count: int, offset: int) -> bytes: ...


class View(Protocol):
    """A file system."""

    def entries(self, path: str) -> dict[str, tuple[int, int]]:
        """File type and inode number of each name in a directory, as listing it tells them."""

    def listed(self, path: str) -> Listed:
        """The same, of a listing that may end with an error."""

    def stat(self, path: str) -> Stat: ...

    def readlink(self, path: str) -> str: ...

    def opened(self, path: str) -> contextlib.AbstractContextManager[OpenedFile]: ...

    def xattrs(self, path: str) -> dict[str, str]: ...

    def xattr(self, path: str, name: str) -> str: ...


class VfsView:
    """The file system called directly."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem

    def entries(self, path: str) -> dict[str, tuple[int, int]]:
        with AsOsError():
            found = list(self._filesystem.listdir(path))
        names = [entry.name for entry in found]
        assert len({*names}) == len(found)
        for name, attr in self._filesystem.known_attrs(path, names).items():
            assert attr == self._filesystem.getattr(f"{path.rstrip('/')}/{name}"), (path, name)
        return {entry.name: (entry.mode, entry.inode) for entry in found}

    def listed(self, path: str) -> Listed:
        names: dict[str, tuple[int, int]] = {}
        try:
            with AsOsError():
                for entry in self._filesystem.listdir(path):
                    names[entry.name] = (entry.mode, entry.inode)
        except OSError as error:
            return Listed(names, error.errno or -1)
        return Listed(names, 0)

    def stat(self, path: str) -> Stat:
        with AsOsError():
            attr = self._filesystem.getattr(path)
        kind, permissions = stat.S_IFMT(attr.mode), stat.S_IMODE(attr.mode)
        return Stat(kind, permissions, attr.size, attr.time_ns, inode(attr.identity or path))

    def readlink(self, path: str) -> str:
        with AsOsError():
            return self._filesystem.readlink(path)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[OpenedFile]:
        with AsOsError():
            handle = self._filesystem.open(path).handle
        try:
            yield _VfsFile(self._filesystem, handle)
        finally:
            self._filesystem.release(handle)

    def xattrs(self, path: str) -> dict[str, str]:
        with AsOsError():
            return dict(self._filesystem.xattrs(path))

    def xattr(self, path: str, name: str) -> str:
        with AsOsError():
            return self._filesystem.xattr(path, name)


@dataclass(frozen=True)
class _VfsFile:
    filesystem: FileSystem
    handle: int

    def pread(self, count: int, offset: int) -> bytes:
        with AsOsError():
            return self.filesystem.read(self.handle, offset, count)


class AsOsError:
    """Raises as OSError what the file system raises.

    No generator: on Python 3.13 the frames of one that raises hold each other, and with them the
    file that was read, until the garbage collector comes.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, EpochfsError):
            raise OSError(errno_of(error), str(error)) from error


class MountView:
    """The file system through the kernel."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def place(self, path: str) -> str:
        return f"{self._root}{path}"

    def entries(self, path: str) -> dict[str, tuple[int, int]]:
        with os.scandir(self.place(path)) as found:
            return {entry.name: (_type(entry), entry.inode()) for entry in found}

    def listed(self, path: str) -> Listed:
        names: dict[str, tuple[int, int]] = {}
        try:
            with os.scandir(self.place(path)) as found:
                for entry in found:
                    names[entry.name] = (_type(entry), entry.inode())
        except OSError as error:
            return Listed(names, error.errno or -1)
        return Listed(names, 0)

    def stat(self, path: str) -> Stat:
        found = os.lstat(self.place(path))
        assert found.st_mtime_ns == found.st_ctime_ns == found.st_atime_ns
        kind, permissions = stat.S_IFMT(found.st_mode), stat.S_IMODE(found.st_mode)
        return Stat(kind, permissions, found.st_size, found.st_mtime_ns, found.st_ino)

    def readlink(self, path: str) -> str:
        return str(Path(self.place(path)).readlink())

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[OpenedFile]:
        fd = os.open(self.place(path), os.O_RDONLY)
        try:
            yield _KernelFile(fd)
        finally:
            os.close(fd)

    def xattrs(self, path: str) -> dict[str, str]:
        place = self.place(path)
        names = os.listxattr(place, follow_symlinks=False)
        return {name: os.getxattr(place, name, follow_symlinks=False).decode() for name in names}

    def xattr(self, path: str, name: str) -> str:
        return os.getxattr(self.place(path), name, follow_symlinks=False).decode()


@dataclass(frozen=True)
class _KernelFile:
    fd: int

    def pread(self, count: int, offset: int) -> bytes:
        return os.pread(self.fd, count, offset)


def _type(entry: os.DirEntry[str]) -> int:
    """The type that readdir gave; a name alone would make the answer need a stat."""
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG


def read(view: View, path: str) -> bytes:
    """Read a whole file, to its end wherever stat says that is."""
    pieces = []
    with view.opened(path) as file:
        while piece := file.pread(1 << 20, sum(map(len, pieces))):
            pieces.append(piece)
    return b"".join(pieces)


def names(view: View, path: str) -> list[str]:
    return sorted(view.entries(path))


@dataclass(frozen=True)
class Seen:
    """All there is to see of one place: `content` is what a file holds or where a link points."""

    stat: Stat
    content: bytes | str | None
    xattrs: dict[str, str]


def walk(view: View, path: str = "/") -> dict[str, Seen]:
    """See everything that is listed below a directory, and the directory."""
    here = view.stat(path)
    seen: dict[str, Seen] = {}
    content: bytes | str | None = None
    if here.kind == stat.S_IFDIR:
        for name, (kind, number) in view.entries(path).items():
            below = f"{path.rstrip('/')}/{name}"
            seen |= walk(view, below)
            assert (seen[below].stat.kind, seen[below].stat.inode) == (kind, number), below
    elif here.kind == stat.S_IFLNK:
        content = view.readlink(path)
        assert here.size == len(content), path
    else:
        content = read(view, path)
        assert here.size == len(content), path
    return {path: Seen(here, content, view.xattrs(path)), **seen}


class Opener:
    """Opens views of registries, all of one kind, over one cache directory."""

    def __init__(self, kind: str, directory: Path, mounts: Mounts | None) -> None:
        self.kind = kind
        self._directory = directory
        self._mounts = mounts

    @contextlib.contextmanager
    def __call__(
        self, registry: EmbeddedRegistry, *, ttl: float = 60.0, prefix: str = "", **options: object
    ) -> Iterator[View]:
        """View a registry, or the repositories below a prefix; `options` as for `stack`."""
        cache = self._directory / "cache"
        if self._mounts is None:
            with stack(registry.url, cache, prefix=prefix, metadata_ttl=ttl, **options) as layers:  # type: ignore[arg-type]
                yield VfsView(layers.filesystem)
            return
        words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        url = f"{registry.url}/{prefix}"
        mount = self._mounts(url, f"--metadata-ttl={ttl}", *words, cache=cache)
        yield MountView(mount.path)
        mount.unmount()


def refusal(act: Callable[[], object]) -> int | None:
    """Return the errno of the OSError that an act raises."""
    try:
        act()
    except OSError as error:
        return error.errno
    return None
