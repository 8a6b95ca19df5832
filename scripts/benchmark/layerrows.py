"""Rows: one small file of a large layer. What the registry sent is read from its access log."""

from __future__ import annotations

import time

from scripts.benchmark.content import MIB, Blob
from scripts.benchmark.images import PLAIN, SMALL_BYTES, SMALL_FILE, push_indexed_image
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Argument, Failed, need_modules
from scripts.benchmark.rows import FEW_RUNS, Samples, at_most, repeat, row

_LATER_SECONDS = 5.0


def _indexed_layer(lab: Lab) -> Blob:
    """Push an image of one gzip layer of 1 GiB, which names a SOCI index; return the layer."""
    url, file = lab.registry.url, lab.served / "indexed"
    return push_indexed_image(url, "bench/indexed", file, 1024 * MIB)


@row(
    "gzip-soci",
    "one 10 KiB file of a 1 GiB gzip layer, cold, SOCI index: bytes",
    at_most(5, "% of the layer"),
    needs=("docker-registry",),
    runs=FEW_RUNS,
)
def _indexed(lab: Lab) -> Samples:
    return _shares(lab, "latest")


@row(
    "gzip-unverified",
    "one 10 KiB file of a 1 GiB gzip layer, cold, --unverified-layers: bytes",
    at_most(5, "% of the layer"),
    needs=("docker-registry",),
    runs=FEW_RUNS,
)
def _unverified(lab: Lab) -> Samples:
    return _shares(lab, PLAIN, "--unverified-layers")


def _shares(lab: Lab, tag: str, *options: Argument) -> Samples:
    need_modules("indexed_gzip")
    layer = lab.once(_indexed_layer)
    return repeat(lambda: _share(lab, layer, tag, *options))


def _share(lab: Lab, layer: Blob, tag: str, *options: Argument) -> float:
    """Read a file near a layer's start; return what was fetched, as a percentage of the layer.

    All that the registry has sent 5 seconds later counts, the table of the layer too.
    """
    mark = lab.registry.mark()
    with lab.epochfs(lab.registry.url, *options) as mount:
        found = (mount.rootfs(layer, tag) / SMALL_FILE).read_bytes()
        time.sleep(_LATER_SECONDS)
    if len(found) != SMALL_BYTES:
        raise Failed(f"{SMALL_FILE} has {len(found)} bytes in place of {SMALL_BYTES}")
    fetched = sum(one.size for one in lab.registry.requests_since(mark) if one.method == "GET")
    return 100 * fetched / layer.size


ROWS = (_indexed, _unverified)
