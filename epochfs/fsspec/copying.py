"""Copies files of the tree to this machine."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from fsspec.callbacks import Callback

from epochfs.fsspec.registry_file import PIECE, Handle


def to_path(handle: Handle, path: Path, callback: Callback) -> None:
    """Copy a file to a path; its directory is made. If that fails, nothing is left at the path.

    Raises EpochfsError of the registry, and OSError of this machine's disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb", buffering=0) as file:
            if handle.backing is None or not _cloned(handle.backing, file.fileno(), handle.size):
                into_file(handle, file, callback)
            else:
                callback.set_size(handle.size)
                callback.relative_update(handle.size)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def into_file(handle: Handle, file: Any, callback: Callback) -> None:  # noqa: ANN401
    """Copy a file into an open one."""
    callback.set_size(handle.size)
    handle.expect(0, handle.size)
    buffer = memoryview(bytearray(min(PIECE, max(1, handle.size))))
    position = 0
    while count := handle.read_into(buffer, position):
        piece = buffer[:count]
        while piece:
            written = file.write(piece)
            piece = piece[len(piece) if written is None else written :]
        position += count
        callback.relative_update(count)


def _cloned(source: int, target: int, size: int) -> bool:
    """Let the kernel copy a cached file, which some file systems do without copying."""
    done = 0
    try:
        while done < size:
            count = os.copy_file_range(source, target, size - done, done, done)
            if not count:
                return False
            done += count
    except OSError:
        return False
    return True
