"""Snapshots of virtual machines as Epoch stores them, of both versions of its format."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zstandard

from epochfs.demo.registry import Behaviour
from epochfs.demo.samples import descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST, TITLE
from support.builders import Content, load, random_bytes
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import VfsView, read

SNAPSHOT = "application/vnd.cocoonstack.snapshot.v1+json"
SNAPSHOT_2 = "application/vnd.cocoonstack.snapshot.v2+json"
CONFIG = "application/vnd.cocoonstack.snapshot.config.v1+json"
MEMORY = "application/vnd.cocoonstack.vm.memory"
VM_CONFIG = "application/vnd.cocoonstack.vm.config+json"
DISK = "application/vnd.cocoonstack.disk.qcow2"

Pieces = list[tuple[int, int]]
"""Where a file has its data: (offset, length)."""


def packed(data: bytes) -> bytes:
    """Return a zstd frame that does not tell its content's size, as one written to a pipe."""
    stream = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    return stream.compress(data) + stream.flush()


@dataclass
class File:
    """A file of a snapshot: `data` is what is stored of it, before it is compressed.

    Cut into chunks of `stride` bytes, if that is not 0, and compressed if it `packs`. `pieces` say
    where the data belong in a file of `size` bytes, if it has holes.
    """

    title: str
    data: bytes
    media_type: str = MEMORY
    stride: int = 0
    packs: bool = False
    pieces: Pieces | None = None
    size: int = 0

    def whole(self) -> bytes:
        """Return the file as the virtual machine had it."""
        if self.pieces is None:
            return self.data
        found, stored = bytearray(self.size), 0
        for start, length in self.pieces:
            found[start : start + length] = self.data[stored : stored + length]
            stored += length
        return bytes(found)

    def blobs(self) -> list[bytes]:
        """Return what is stored, chunk by chunk."""
        step = self.stride or max(1, len(self.data))
        cut = [self.data[at : at + step] for at in range(0, len(self.data), step)] or [b""]
        return [packed(one) for one in cut] if self.packs else cut

    def entry(self, layers: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what the config says of it."""
        entry: dict[str, Any] = {"mode": 384}
        if self.stride or self.packs:
            entry["size"] = len(self.data)
        if self.stride:
            entry["chunks"] = [layer["digest"] for layer in layers]
        if self.pieces is not None:
            entry["sparseMap"] = json.dumps([{"o": o, "l": n} for o, n in self.pieces])
            entry["sparseSize"] = self.size
        return entry


@dataclass
class Draft:
    """A snapshot that can still be made wrong: its config and its manifest as JSON, its blobs."""

    config: dict[str, Any]
    manifest: dict[str, Any]
    blobs: list[bytes] = field(default_factory=list)

    def file(self, title: str) -> dict[str, Any]:
        """Return what the config says of a file."""
        found = self.config["files"][title]
        assert isinstance(found, dict)
        return found

    def layers(self, title: str) -> list[dict[str, Any]]:
        """Return the layers of a title."""
        return [one for one in self.manifest["layers"] if one["annotations"][TITLE] == title]


Change = Callable[[Draft], None]


def unchanged(draft: Draft) -> None:
    """Leave it as it is."""


def snapshot(*files: File, version: str = SNAPSHOT_2, change: Change = unchanged) -> Content:
    """Return a snapshot of some files. Layers are in the reverse of the order in which they are."""
    draft = Draft({"schemaVersion": "v1", "snapshotId": "x", "files": {}}, {})
    layers = []
    for file in files:
        media_type = f"{file.media_type}+zstd" if file.packs else file.media_type
        annotations = {TITLE: file.title}
        own = [descriptor(blob, media_type, annotations=annotations) for blob in file.blobs()]
        draft.config["files"][file.title] = file.entry(own)
        draft.blobs += file.blobs()
        layers += own
    draft.manifest |= {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": version,
        "config": {"mediaType": CONFIG},
        "layers": layers[::-1],
    }
    change(draft)
    config = encode(draft.config)
    draft.manifest["config"] |= descriptor(config, draft.manifest["config"]["mediaType"])
    return Content(encode(draft.manifest), OCI_MANIFEST, (config, *draft.blobs))


STRIDE = 1 << 16
HOLES = [(4096, 100_000), (1_000_000, 150_000), (3_999_000, 50_000)]

PLAIN = File("config.json", b'{"cpu": 4}', VM_CONFIG)
RAW = File("raw", random_bytes(300_000, 1), stride=STRIDE)
PACKED = File("packed", random_bytes(200_000, 2) + bytes(100_000), stride=STRIDE, packs=True)
WHOLE = File("whole", random_bytes(300_000, 3), DISK, packs=True)
RAW_HOLES = replace(RAW, title="raw-holes", pieces=HOLES, size=5_000_000)
PACKED_HOLES = replace(PACKED, title="packed-holes", pieces=HOLES, size=5_000_000)
WHOLE_HOLES = replace(WHOLE, title="whole-holes", pieces=HOLES, size=4_049_000)
ONE_BLOB_HOLES = File("blob-holes", RAW.data, pieces=HOLES, size=5_000_000)
NOTHING = File("nothing", b"", "application/octet-stream")
ALL_HOLE = File("hole", b"", pieces=[], size=4096)
ZEROS = File("sub/zeros", bytes(5 * STRIDE), stride=STRIDE, packs=True)
FILES = [PLAIN, RAW, PACKED, WHOLE, RAW_HOLES, PACKED_HOLES, WHOLE_HOLES, NOTHING]
FILES += [ONE_BLOB_HOLES, ALL_HOLE, ZEROS]
FIRST = [PLAIN, ONE_BLOB_HOLES, NOTHING, ALL_HOLE]


class Opened:
    """A snapshot in a registry, seen through a file system without a mount."""

    def __init__(self, content: Content, directory: Path, closing: ExitStack) -> None:
        self.registry = closing.enter_context(EmbeddedRegistry(Behaviour(validates=False)))
        load(self.registry, "app", "latest", content)
        self.layers = closing.enter_context(stack(self.registry.url, directory))
        self.view = VfsView(self.layers.filesystem)
        self.path = f"/app/manifests/{content.digest}"

    def read(self, title: str) -> bytes:
        """Read a file, wherever `sparse/` leads to."""
        path = f"{self.path}/sparse/{title}"
        if self.view.stat(path).kind == stat.S_IFLNK:
            path = f"/app/blobs/{self.view.readlink(path).rpartition('/')[2]}"
        return read(self.view, path)

    def errno_of(self, title: str) -> int | None:
        with pytest.raises(OSError) as caught:
            self.read(title)
        return caught.value.errno


class Open:
    """Opens snapshots."""

    def __init__(self, directory: Path, closing: ExitStack) -> None:
        self._directory = directory
        self._closing = closing

    def __call__(
        self, *files: File, version: str = SNAPSHOT_2, change: Change = unchanged
    ) -> Opened:
        content = snapshot(*files, version=version, change=change)
        return Opened(content, self._directory, self._closing)
