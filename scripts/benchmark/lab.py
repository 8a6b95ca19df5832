"""Everything the rows stand on, in one scratch directory: made when a row first asks, then kept."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Self

from scripts.benchmark import content, mounts, origins, tensors
from scripts.benchmark.content import MIB, Blob
from scripts.benchmark.programs import Argument, in_parallel, timed

LINK_RATE = 20_000_000
"""Bytes a second of a slow link."""

ROUND_TRIP = 0.040
"""Seconds to a distant registry and back."""

MANY_REPOSITORIES, MANY_TAGS, MANY_FILES = 1000, 1000, 1000
TREE_REPOSITORIES, TREE_TAGS = 200, 10
HUGE_TAGS = 200_000


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
        return self._start_registry("registry")

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
    def model(self) -> Blob:
        """A safetensors file of 512 MiB, the one file of a model."""
        file = self._served / "model.safetensors"
        tensors.write_tensors(file, 512 * MIB)
        return content.push_model(self.registry.url, "bench/model", [file])[0]

    @cached_property
    def many_files(self) -> list[Blob]:
        """A model of `MANY_FILES` small files."""
        directory = self._make("parts")
        files = [directory / name for name in _numbered("part", MANY_FILES)]
        for file in files:
            content.random_file(file, 1000)
        return content.push_model(self.registry.url, "bench/parts", files)

    @cached_property
    def front(self) -> origins.Front:
        """An nginx that serves the blobs as files, and the registry in other ways."""
        directory = self._make("nginx")
        running = origins.front(directory, self._served, self.registry.port, LINK_RATE)
        return self._stack.enter_context(running)

    @cached_property
    def slow_link(self) -> str:
        """The base URL of the registry behind a link of `LINK_RATE`."""
        running = origins.link(self._make("slow"), self.registry.port, LINK_RATE, 0.0)
        return self._stack.enter_context(running)

    @cached_property
    def distant_link(self) -> str:
        """The same, and a `ROUND_TRIP` away."""
        running = origins.link(self._make("distant"), self.registry.port, LINK_RATE, ROUND_TRIP)
        return self._stack.enter_context(running)

    @cached_property
    def many_repositories(self) -> origins.Registry:
        """A registry of `MANY_REPOSITORIES`, each with one tag."""
        running = self._start_registry("repositories")
        names = _numbered("app", MANY_REPOSITORIES)
        content.push_repositories(running.url, names, ["latest"])
        return running

    @cached_property
    def many_tags(self) -> origins.Registry:
        """A registry whose one repository, `app`, has `MANY_TAGS`."""
        running = self._start_registry("tags")
        content.push_repositories(running.url, ["app"], _numbered("v", MANY_TAGS))
        return running

    @cached_property
    def tree(self) -> origins.Registry:
        """A registry of `TREE_REPOSITORIES` with `TREE_TAGS` each."""
        running = self._start_registry("tree")
        names = _numbered("app", TREE_REPOSITORIES)
        content.push_repositories(running.url, names, _numbered("v", TREE_TAGS))
        return running

    @cached_property
    def huge_tags(self) -> str:
        """The base URL of a registry whose one repository, `app0`, has `HUGE_TAGS`: v0, v1, …"""
        return self._stack.enter_context(origins.names(self._make("huge"), 1, HUGE_TAGS))

    def _start_registry(self, name: str) -> origins.Registry:
        return self._stack.enter_context(origins.registry(self._make(name)))

    @cached_property
    def _served(self) -> Path:
        return self._make("files")

    def _push(self, name: str, size: int) -> Blob:
        return content.push_blob(self.registry.url, f"bench/{name}", self._served / name, size)

    def _make(self, name: str) -> Path:
        directory = self._directory / name
        directory.mkdir()
        return directory

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
    def epochfs(
        self, url: str, *options: Argument, cache: Path | None = None
    ) -> Iterator[mounts.Mount]:
        """A mount of the registry at `url`; without a `cache` its own is empty and thrown away."""
        with self.fresh_directory() as directory:
            path = directory / "mount"
            path.mkdir()
            with mounts.epochfs(path, cache or directory / "cache", url, *options) as mount:
                yield mount
                self.peaks.append(mount.peak_memory)

    @contextmanager
    def rclone(self, cache: Path | None = None) -> Iterator[Path]:
        """An rclone mount of the blobs as files; without a `cache` its own is thrown away."""
        with self.fresh_directory() as directory:
            path = directory / "mount"
            path.mkdir()
            with mounts.rclone(path, cache or directory / "cache", self.front.files) as mount:
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


def _numbered(word: str, count: int) -> list[str]:
    return [f"{word}{number}" for number in range(count)]
