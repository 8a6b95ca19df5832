"""Rows: writing through a mount with `-o rw`, to a registry that has nothing yet."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.content import push_images
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, timed
from scripts.benchmark.rows import (
    FEW_RUNS,
    Sample,
    Samples,
    at_most,
    race,
    row,
    time_at_most,
)

_REGISTRY = "docker-registry"
_TAGS, _BLOBS = 200, 1000
_OBJECTS = _BLOBS + 2 * _TAGS
"""Each tag has a manifest of its own."""

_WRITABLE = ("-o", "rw")


def _image_directory(lab: Lab) -> Path:
    """Return the image of the blob of 1 GiB, as skopeo's `dir:` has it."""
    directory = lab.make_directory("image")
    image = f"docker://127.0.0.1:{lab.registry.port}/{lab.big.repository}:latest"
    options = ["--insecure-policy", "copy", "--src-tls-verify=false"]
    timed("skopeo", *options, image, f"dir:{directory}")
    return directory


def _backup(lab: Lab) -> Path:
    """Return a backup, as rsync makes it, of `_TAGS` images, which have `_BLOBS` between them."""
    directory = lab.make_directory("backup")
    with lab.empty_registry() as registry:
        push_images(registry.url, _TAGS, _BLOBS // _TAGS)
        with lab.epochfs(registry.url) as mount:
            timed("rsync", "-a", f"{mount.path}/", f"{directory}/")
    return directory


@row(
    "write-blob",
    "1 GiB written, cp",
    time_at_most(1.5),
    "skopeo copy dir: docker:",
    (_REGISTRY, "skopeo"),
    FEW_RUNS,
)
def _write_blob(lab: Lab) -> Samples:
    blob, image = lab.big, lab.once(_image_directory)

    def ours() -> float:
        with lab.empty_registry() as registry, lab.epochfs(registry.url, *_WRITABLE) as mount:
            mount.blob(blob).parent.mkdir(parents=True)
            return timed("cp", blob.file, mount.blob(blob))

    def skopeo() -> float:
        with lab.empty_registry() as registry:
            target = f"docker://127.0.0.1:{registry.port}/{blob.repository}:latest"
            options = ["--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"]
            return timed("skopeo", *options, f"dir:{image}", target)

    return race(ours, skopeo)


@dataclass(frozen=True, slots=True)
class _Restored:
    seconds: float
    requests: int


_NAME = f"{_BLOBS} blobs, {_TAGS} tags written, rsync -a"


def _restores(_: Lab) -> list[_Restored]:
    """Begin the list of those that were measured: both rows are of the same ones."""
    return []


@row("restore", _NAME, at_most(60, "s"), needs=(_REGISTRY, "rsync"), runs=FEW_RUNS)
def _restore(lab: Lab) -> Samples:
    while True:
        os.sync()
        lab.once(_restores).append(_restored(lab))
        yield Sample(lab.once(_restores)[-1].seconds)


@row(
    "restore-requests",
    _NAME,
    at_most(5, "requests an object"),
    needs=(_REGISTRY, "rsync"),
    runs=FEW_RUNS,
)
def _restore_requests(lab: Lab) -> Samples:
    for one in lab.once(_restores) or [_restored(lab)]:
        yield Sample(one.requests / _OBJECTS)


def _restored(lab: Lab) -> _Restored:
    """Restore a backup to an empty registry."""
    backup = lab.once(_backup)
    with lab.empty_registry() as registry:
        mark = registry.mark()
        with lab.epochfs(registry.url, *_WRITABLE) as mount:
            seconds = timed("rsync", "-a", f"{backup}/", f"{mount.path}/")
        asked = registry.requests_since(mark)
    stored = sum(one.method == "PUT" and one.status == 201 for one in asked)
    if stored < _OBJECTS:
        raise Failed(f"{stored} of {_OBJECTS} objects came to the registry")
    return _Restored(seconds, len(asked))


ROWS = (_write_blob, _restore, _restore_requests)
