"""The root filesystem of an image as tests look at it."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.builders import load
from support.layers import File, Layer, container, estargz, gzipped, tar, zstd, zstd_chunked
from support.registries import Guarded
from support.soci import soci
from support.stacks import Stack, stack
from support.views import VfsView, names, read

MIB = 1 << 20


def plain(*files: File) -> Layer:
    return Layer(tar(*files))


def gzipped_stream(stream: bytes) -> Layer:
    return Layer(gzip.compress(stream))


Make = Callable[..., Layer]
every_format = pytest.mark.parametrize(
    "make", [plain, gzipped, soci, zstd, estargz, zstd_chunked], ids=lambda make: make.__name__
)


@dataclass
class Shown:
    """An image's root filesystem, at `path`, and all that is behind it."""

    view: VfsView
    path: str
    layers: Stack
    registry: Guarded

    def __truediv__(self, path: str) -> str:
        return f"{self.path}/{path}"

    def read(self, path: str) -> bytes:
        return read(self.view, self / path)

    def names(self, path: str = "") -> list[str]:
        return names(self.view, f"{self.path}/{path}".rstrip("/"))

    def moved(self) -> int:
        """Bytes that came from the registry."""
        return self.layers.client.stats.bytes_received


Show = Callable[..., Shown]


def showing(tmp_path: Path) -> Iterator[Show]:
    """A fixture: shows the root of an image of some layers, each time with the same cache."""
    with ExitStack() as closing:
        registry = closing.enter_context(Guarded())

        def build(*layers: Layer, **options: object) -> Shown:
            content = container(*layers)
            load(registry, "app", "latest", content)
            opened = closing.enter_context(stack(registry.url, tmp_path / "cache", **options))
            path = f"/app/manifests/{content.digest}/rootfs"
            return Shown(VfsView(opened.filesystem), path, opened, registry)

        yield build


def errno_of(root: Shown, path: str) -> int | None:
    with pytest.raises(OSError) as raised:
        root.view.stat(root / path)
    return raised.value.errno
