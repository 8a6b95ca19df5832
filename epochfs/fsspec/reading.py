"""The methods of the file system that read bytes at once: slices, ranges, several files, copies."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fsspec.callbacks import DEFAULT_CALLBACK, Callback
from fsspec.spec import AbstractFileSystem
from fsspec.utils import isfilelike

from epochfs.fsspec.links import Place
from epochfs.fsspec.os_errors import translated
from epochfs.fsspec.range_reads import Range, bounded, in_parallel, near_ranges, read_run, requests
from epochfs.fsspec.registry_file import PIECE, Handle, opened_in_turn


class ReadingMethods(AbstractFileSystem):  # type: ignore[misc]
    """What `RegistryFileSystem` reads without an open file, over its places and its session."""

    def cat_file(
        self,
        path: str,
        start: int | None = None,
        end: int | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> bytes:
        """Return the bytes of a file, or of a slice of it."""
        path = self._strip_protocol(path)
        place = self.followed(path)
        first, last = bounded(start, end, place.attr.size)
        with translated(path), opened_in_turn(self.session(), place, last - first) as handle:
            first, last = bounded(start, end, handle.size)
            handle.expect(first, last)
            return handle.read(first, last)

    def cat(
        self,
        path: Any,  # noqa: ANN401
        recursive: bool = False,
        on_error: str = "raise",
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Return the bytes of a file, or of several by their paths, fetched in parallel."""
        paths = self.expand_path(path, recursive=recursive)
        if len(paths) == 1 and isinstance(path, str) and paths[0] == self._strip_protocol(path):
            return self.cat_file(paths[0], **kwargs)
        if recursive:
            paths = [one for one in paths if not self.isdir(one)]

        def read(one: str) -> bytes | Exception:
            try:
                return self.cat_file(one, **kwargs)
            except Exception as error:
                if on_error == "raise":
                    raise
                return error

        with self._using(""):
            read_all = list(zip(paths, in_parallel(read, paths), strict=True))
        omitted = Exception if on_error == "omit" else ()
        return {one: found for one, found in read_all if not isinstance(found, omitted)}

    def cat_ranges(
        self,
        paths: list[str],
        starts: list[int | None] | int | None,
        ends: list[int | None] | int | None,
        max_gap: int | None = None,
        on_error: str = "return",
        **kwargs: Any,  # noqa: ANN401
    ) -> list[bytes | Exception]:
        """Return ranges of files in the order given, each bytes, or with "return" its error.

        Ranges of one file with at most `max_gap` bytes between them (by default 1 MiB, or more
        where much is wanted) are fetched together, in the order of the file; such runs of ranges
        are fetched in parallel.
        """
        wanted = requests(paths, starts, ends)
        found: list[bytes | Exception] = [b""] * len(paths)
        runs: list[tuple[Place, Sequence[Range]]] = []
        for path, slices in wanted.items():
            try:
                place = self.followed(self._strip_protocol(path))
                with contextlib.closing(self.opened(place)) as handle:
                    size = handle.size
            except Exception as error:
                if on_error != "return":
                    raise
                for number, _, _ in slices:
                    found[number] = error
                continue
            ranges = [Range(number, *bounded(start, end, size)) for number, start, end in slices]
            runs += [(place, run) for run in near_ranges(ranges, max_gap)]

        def read(run: tuple[Place, Sequence[Range]]) -> None:
            place, ranges = run
            try:
                size = ranges[-1].stop - ranges[0].start
                with translated(place.path), opened_in_turn(self.session(), place, size) as handle:
                    for number, data in read_run(handle, ranges):
                        found[number] = data
            except Exception as error:
                if on_error != "return":
                    raise
                for one in ranges:
                    found[one.number] = found[one.number] or error

        with self._using(""):
            in_parallel(read, runs)
        return found

    def get_file(
        self,
        rpath: str,
        lpath: Any,  # noqa: ANN401
        callback: Callback = DEFAULT_CALLBACK,
        outfile: Any = None,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Copy a file to this machine; if that fails, nothing is left of it."""
        path = self._strip_protocol(rpath)
        place = self.followed(path)
        if outfile is None and isfilelike(lpath):
            outfile = lpath
        if stat.S_ISDIR(place.attr.mode) and outfile is None:
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        size = place.attr.size
        with translated(path), opened_in_turn(self.session(), place, size) as handle:
            if outfile is not None:
                _into_file(handle, outfile, callback)
            else:
                _to_path(handle, Path(lpath), callback)


def _to_path(handle: Handle, path: Path, callback: Callback) -> None:
    """Copy a file to a path; its directory is made. If that fails, nothing is left at the path.

    Raises EpochfsError of the registry, and OSError of this machine's disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb", buffering=0) as file:
            if handle.backing is None or not _cloned(handle.backing, file.fileno(), handle.size):
                _into_file(handle, file, callback)
            else:
                callback.set_size(handle.size)
                callback.relative_update(handle.size)
    except BaseException:
        with contextlib.suppress(OSError):
            path.unlink()
        raise


def _into_file(handle: Handle, file: Any, callback: Callback) -> None:  # noqa: ANN401
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
