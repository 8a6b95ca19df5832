"""Everything the rows stand on, in one scratch directory: made when a row first asks, then kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar, cast

from scripts.benchmark import content, mounts, origins
from scripts.benchmark.content import MIB, Blob
from scripts.benchmark.programs import Argument, in_parallel, timed

LINK_RATE = 20_000_000
"""Bytes a second of a slow link."""

ROUND_TRIP = 0.040
"""Seconds to a distant registry and back."""

T = TypeVar("T")


class Lab:
    """A context: at its end, everything is stopped and removed.

    `peaks` has the most memory that each epochfs process had resident, in bytes; `volume_peaks`
    that of those which served volumes.
    """

    def __init__(self, parent: Path | None) -> None:
        self.peaks: list[int] = []
        self.volume_peaks: list[int] = []
        self._parent = parent
        self._stack = ExitStack()
        self._made: dict[Callable[[Lab], Any], Any] = {}

    def __enter__(self) -> Self:
        directory = tempfile.mkdtemp(prefix="epochfs-bench-", dir=self._parent)
        self._directory = Path(directory)
        self._stack.callback(shutil.rmtree, directory, ignore_errors=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    # ---- origins and what they hold --------------------------------------------------------------

    @cached_property
    def registry(self) -> origins.Registry:
        """The registry of the blobs."""
        return self.start_registry("registry")

    @cached_property
    def big(self) -> Blob:
        """A blob of 1 GiB."""
        return self._push("big", 1024 * MIB)

    @cached_property
    def medium(self) -> Blob:
        """A blob of 256 MiB."""
        return self._push("medium", 256 * MIB)

    @cached_property
    def dozens(self) -> list[Blob]:
        """32 blobs of 64 MiB."""
        return [self._push(f"dozens{number}", 64 * MIB) for number in range(32)]

    @cached_property
    def front(self) -> origins.Front:
        """An nginx that serves the blobs as files, and the registry in other ways."""
        directory = self.make_directory("nginx")
        return self.keep(origins.front(directory, self.served, self.registry.port, LINK_RATE))

    @cached_property
    def slow_link(self) -> str:
        """The base URL of the registry behind a link of `LINK_RATE`."""
        return self.link("slow", self.registry, LINK_RATE, 0.0)

    @cached_property
    def distant_link(self) -> str:
        """The same, and a `ROUND_TRIP` away."""
        return self.link("distant", self.registry, LINK_RATE, ROUND_TRIP)

    def link(self, name: str, target: origins.Registry, rate: int, round_trip: float) -> str:
        """Start a link to a registry; return the base URL at its near end. See `origins.link`."""
        return self.keep(origins.link(self.make_directory(name), target.port, rate, round_trip))

    def start_registry(self, name: str) -> origins.Registry:
        """Start a registry that has nothing yet."""
        return self.keep(origins.registry(self.make_directory(name)))

    def _push(self, name: str, size: int) -> Blob:
        return content.push_blob(self.registry.url, f"bench/{name}", self.served / name, size)

    # ---- what rows make, and is kept -------------------------------------------------------------

    def once(self, make: Callable[[Lab], T]) -> T:
        """Return what a function makes of this lab, made when it is first asked for."""
        if make not in self._made:
            self._made[make] = make(self)
        return cast(T, self._made[make])

    def keep(self, context: AbstractContextManager[T]) -> T:
        """Enter a context, which ends with the lab."""
        return self._stack.enter_context(context)

    @cached_property
    def served(self) -> Path:
        """The directory of the blobs as files."""
        return self.make_directory("files")

    def make_directory(self, name: str) -> Path:
        """Make a directory, with a name like this one."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self._directory))

    # ---- directories and mounts for a while ------------------------------------------------------

    @contextmanager
    def fresh_directory(self) -> Iterator[Path]:
        """An empty directory, removed afterwards with all that is in it by then."""
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @contextmanager
    def empty_registry(self) -> Iterator[origins.Registry]:
        """A registry that has nothing yet."""
        with self.fresh_directory() as directory, origins.registry(directory) as running:
            yield running

    @contextmanager
    def epochfs(
        self, url: str, *options: Argument, cache: Path | None = None
    ) -> Iterator[mounts.Mount]:
        """A mount of the registry at `url`; without a `cache` its own is empty and thrown away."""
        with self.fresh_directory() as directory:
            path = directory / "mount"
            path.mkdir()
            with mounts.epochfs(path, cache or directory / "cache", url, *options) as mount:
                try:
                    yield mount
                finally:
                    self.peaks.append(mount.peak_memory)

    @contextmanager
    def rclone(self, cache: Path | None = None) -> Iterator[Path]:
        """An rclone mount of the blobs as files; without a `cache` its own is thrown away."""
        remote = (":http:", "--http-url", self.front.files)
        with self.rclone_of(*remote, cache=cache) as mount:
            yield mount

    @contextmanager
    def rclone_of(self, *remote: Argument, cache: Path | None = None) -> Iterator[Path]:
        """An rclone mount of a remote; without a `cache` its own is thrown away."""
        with self.fresh_directory() as directory:
            path = directory / "mount"
            path.mkdir()
            with mounts.rclone(path, cache or directory / "cache", *remote) as mount:
                yield mount

    # ---- what several rows do --------------------------------------------------------------------

    def cold_cat(self, url: str, blob: Blob) -> float:
        """Read a blob through a mount with an empty cache; return the seconds that took."""
        with self.epochfs(url) as mount:
            return timed("cat", mount.blob(blob))

    def cold_cats(self, url: str, blobs: list[Blob]) -> float:
        """Read blobs at once through a mount with an empty cache; return the seconds that took."""
        with self.epochfs(url) as mount:
            return in_parallel(len(blobs), ["cat"], [str(mount.blob(blob)) for blob in blobs])

    def curl(self, url: str, blob: Blob) -> float:
        """Download a blob into a file with curl; return the seconds that took."""
        with self.fresh_directory() as directory:
            return timed("curl", "-sSf", "-o", directory / "blob", blob.url(url))

    def fetched(self, count: int, command: list[str], url: str, blobs: list[Blob]) -> float:
        """Run a command for each blob, `count` at a time; return the seconds that took.

        It is given a new file and the blob's address.
        """
        with self.fresh_directory() as directory:
            pairs = [f"{directory}/{blob.file.name} {blob.url(url)}" for blob in blobs]
            return in_parallel(count, command, pairs)
