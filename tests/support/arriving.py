"""Images whose layers arrive while they are shown, before they are verified."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from support.builders import load, random_bytes
from support.gates import Gate
from support.layers import DIRECTORY, File, Layer, container, tar
from support.registries import Guarded
from support.roots import MIB, Show, Shown
from support.stacks import stack
from support.views import VfsView

SMALL = random_bytes(10 << 10, 7)
LARGE = random_bytes(32 * MIB)
FILES = (
    File("etc/", type=DIRECTORY, mode=0o711),
    File("etc/first", SMALL),
    File("large", LARGE),
    File("last", b"the last"),
)


def gzipped(*files: File) -> Layer:
    """Return a layer whose making takes little time."""
    return Layer(gzip.compress(tar(*files), 1))


LAYER = gzipped(*FILES)


def unverified(showing_all: Show) -> Show:
    """A fixture: shows images whose layers may be shown before they are verified."""
    return partial(showing_all, unverified_layers=True)


Slow = Callable[..., tuple[Shown, Gate]]


def coming_slowly(tmp_path: Path) -> Iterator[Slow]:
    """A fixture: shows an image, of which little more than 4 MiB come until the gate is opened."""
    with ExitStack() as closing:
        registry = closing.enter_context(Guarded())

        def build(*layers: Layer, **options: object) -> tuple[Shown, Gate]:
            content = container(*layers)
            load(registry, "app", "latest", content)
            gate = closing.enter_context(Gate(registry.url.removeprefix("http://")))
            layered = stack(gate.url, tmp_path / "cache", unverified_layers=True, **options)
            opened = closing.enter_context(layered)
            gate.open(4 * MIB)
            closing.callback(gate.open)
            path = f"/app/manifests/{content.digest}/rootfs"
            return Shown(VfsView(opened.filesystem), path, opened, registry), gate

        yield build
