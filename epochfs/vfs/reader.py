"""Reads the tree, in this process or through a mount: what works on `Files` works on both.

Paths are absolute within the tree. Every method raises only `EpochfsError`s, and any thread may
call anything.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path

from epochfs.errors import DeadlineExceeded, Denied, NotFound, Unavailable, printable
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.tree import CACHED_XATTR

_PIECE = 1 << 20


class DirectFiles:
    """The tree of a `FileSystem` in this process."""

    def __init__(self, filesystem: FileSystem) -> None:
        self._filesystem = filesystem

    def names(self, path: str) -> Iterator[str]:
        """Yield what a directory lists; then raise why that is not all, if it is not."""
        return (entry.name for entry in self._filesystem.listdir(path))

    def target(self, path: str) -> str:
        """Return the target of a link."""
        return self._filesystem.readlink(path)

    def size(self, path: str) -> int:
        """Return the size of a file in bytes."""
        return self._filesystem.getattr(path).size

    def cached_percent(self, path: str) -> int:
        """Return how much of a blob is cached; 100 only once it is verified and kept."""
        return int(self._filesystem.xattr(path, CACHED_XATTR))

    def pieces(self, path: str) -> Generator[memoryview, None, None]:
        """Yield a file's bytes from its start; each piece is valid until the next.

        Close the generator if you do not read to the end.
        """
        handle = self._filesystem.open(path).handle
        try:
            buffer, position = memoryview(bytearray(_PIECE)), 0
            while count := self._filesystem.read_into(handle, buffer, position):
                position += count
                yield buffer[:count]
        finally:
            self._filesystem.release(handle)


class MountedFiles:
    """The tree that another process has mounted on `root`, with its credentials and cache."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)

    def names(self, path: str) -> Iterator[str]:
        with _mount_errors(path), os.scandir(self._root + path) as entries:
            for entry in entries:
                yield entry.name

    def target(self, path: str) -> str:
        with _mount_errors(path):
            return os.readlink(self._root + path)  # noqa: PTH115 - its text, not a path

    def size(self, path: str) -> int:
        with _mount_errors(path):
            return os.lstat(self._root + path).st_size

    def cached_percent(self, path: str) -> int:
        with _mount_errors(path):
            return int(os.getxattr(self._root + path, CACHED_XATTR, follow_symlinks=False))

    def pieces(self, path: str) -> Generator[memoryview, None, None]:
        with _mount_errors(path), Path(self._root + path).open("rb", buffering=0) as file:
            buffer = memoryview(bytearray(_PIECE))
            while count := file.readinto(buffer):
                yield buffer[:count]


Files = DirectFiles | MountedFiles


@contextlib.contextmanager
def _mount_errors(path: str) -> Iterator[None]:
    """Turn a mount's errno back into the error it stands for, as far as that can be told."""
    try:
        yield
    except FileNotFoundError:
        raise NotFound(f"no {printable(path)}") from None
    except PermissionError as error:
        raise Denied(f"{error.strerror}") from None
    except TimeoutError as error:
        raise DeadlineExceeded(f"{error.strerror}") from None
    except OSError as error:
        raise Unavailable(f"{error.strerror} (the mount's log says why)") from None
