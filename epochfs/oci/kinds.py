"""The kinds of artifacts by Epoch's rules, and how Epoch stores disks and virtual machines.

Epoch tells its artifacts apart by `artifactType`, then by the config's media type. A cloud image is
a disk, whole or split into parts that are joined in the order of their titles. A snapshot is the
files of a virtual machine. Sparse files are stored without their holes, one piece of data after the
other; the second version of the format also compresses files and splits them into chunks.

A snapshot's config says how each file is stored:
`{"files": {TITLE: {"size", "chunks": [digest, …], "sparseMap", "sparseSize"}}}`. It may have 64
MiB, nearly all of it sparse maps, which are JSON in a JSON string. So it is parsed once, map by map
and a part of a map at a time, into arrays smaller than the text. A malformed entry is an error of
that file and of no other.
"""

from __future__ import annotations

import re
import threading
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from epochfs.errors import ProtocolViolation, TooLarge, fresh
from epochfs.oci.artifact_files import TEKTON_KIND
from epochfs.oci.manifests import (
    MAX_SIZE,
    TITLE,
    Descriptor,
    Document,
    Index,
    Manifest,
    checked_size,
    load_json,
)

CLOUD_IMAGE = "cloud-image"
SNAPSHOT = "snapshot"
CONTAINER_IMAGE = "container-image"
IMAGE_INDEX = "image-index"
MODEL = "model"
HELM_CHART = "helm-chart"
FLUX = "flux"
WASM = "wasm"
SIGNATURE = "signature"
ATTESTATION = "attestation"
SBOM = "sbom"
TEKTON_BUNDLE = "tekton-bundle"
ARTIFACT = "artifact"

OS_IMAGE_TYPE = "application/vnd.cocoonstack.os-image.v1+json"
SNAPSHOT_TYPE = "application/vnd.cocoonstack.snapshot.v1+json"
SNAPSHOT_2_TYPE = "application/vnd.cocoonstack.snapshot.v2+json"

_BY_ARTIFACT_TYPE = {
    OS_IMAGE_TYPE: CLOUD_IMAGE,
    "application/vnd.cocoonstack.windows-image.v1+json": CLOUD_IMAGE,
    SNAPSHOT_TYPE: SNAPSHOT,
    SNAPSHOT_2_TYPE: SNAPSHOT,
    "application/vnd.cncf.model.manifest.v1+json": MODEL,
    "application/vnd.cnai.model.manifest.v1+json": MODEL,
}
_IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_BY_CONFIG = (
    ("application/vnd.cncf.model.config.", MODEL),
    ("application/vnd.cnai.model.config.", MODEL),
    ("application/vnd.docker.ai.model.config.", MODEL),
    ("application/vnd.kitops.modelkit.config.", MODEL),
    ("application/vnd.cncf.helm.config.", HELM_CHART),
    ("application/vnd.cncf.flux.config.", FLUX),
    ("application/vnd.wasm.config.", WASM),
)
"""What artifacts are by how the media types of their configs begin."""

_BY_LAYER = (
    ("application/vnd.ollama.image.", MODEL),
    ("application/vnd.dev.cosign.simplesigning.", SIGNATURE),
    ("application/jose+json", SIGNATURE),
    ("application/cose", SIGNATURE),
    ("application/vnd.dev.sigstore.bundle", ATTESTATION),
    ("application/vnd.dsse.envelope.", ATTESTATION),
    ("application/vnd.in-toto+json", ATTESTATION),
    ("application/spdx+json", SBOM),
    ("text/spdx+json", SBOM),
    ("application/vnd.cyclonedx", SBOM),
)
"""What artifacts are by how the media type of a layer begins: they have whatever config."""

_DISK_FORMATS = ("qcow2", "raw")
_DISK = re.compile(
    rf"application/vnd\.cocoonstack\.(?:windows\.)?disk\.({'|'.join(_DISK_FORMATS)})(?:\.part)?\Z"
)
"""The media type of a disk, or of a part of one."""

MAX_CONFIG_BYTES = 64 << 20
"""The largest config that Epoch takes."""

_MAX_TOKENS = 4_000_000
"""Most objects, lists, strings and commas outside of strings: the parser allocates up to 64 bytes
for each. A config of nothing but chunk digests has 3 million."""

_PART_CHARACTERS = 64 << 10
_ARRAY = "q"

_parsing = threading.Lock()
"""Held while a config is parsed, which takes four times its size in memory."""


def kind_of(document: Document) -> str:
    """Return the kind of artifact: one of the constants here, ARTIFACT for anything else."""
    view = document.view
    if view.artifact_type in _BY_ARTIFACT_TYPE:
        return _BY_ARTIFACT_TYPE[view.artifact_type]
    if isinstance(view, Index):
        return IMAGE_INDEX
    config = view.config.media_type if view.config is not None else ""
    found = _known_by(_BY_CONFIG, config) or _by_layers(view.layers)
    return found or (CONTAINER_IMAGE if config in _IMAGE_CONFIGS else ARTIFACT)


def _known_by(rows: Iterable[tuple[str, str]], media_type: str) -> str:
    return next((kind for begins, kind in rows if media_type.startswith(begins)), "")


def _by_layers(layers: Iterable[Descriptor]) -> str:
    """Return what an artifact is by the first layer that tells, "" where none does."""
    for layer in layers:
        kind = TEKTON_BUNDLE if TEKTON_KIND in layer.annotations else ""
        kind = kind or _known_by(_BY_LAYER, layer.media_type)
        if kind:
            return kind
    return ""


def is_snapshot(document: Document) -> bool:
    """Whether it is a snapshot, and not an index of snapshots."""
    return kind_of(document) == SNAPSHOT and isinstance(document.view, Manifest)


def may_be_chunked(document: Document) -> bool:
    """Whether it is a snapshot of the second version, where layers of one title are one file."""
    return is_snapshot(document) and document.view.artifact_type == SNAPSHOT_2_TYPE


@dataclass(frozen=True, slots=True)
class SplitDisk:
    """A disk in several parts, in order; `name` is that of the whole."""

    name: str
    parts: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """The size of the whole in bytes."""
        return sum(part.size for part in self.parts)


def split_disks(document: Document) -> list[SplitDisk]:
    """Return the disks of a cloud image that are split over several layers."""
    view = document.view
    if kind_of(document) != CLOUD_IMAGE or not isinstance(view, Manifest):
        return []
    matches = ((layer, _DISK.match(layer.media_type)) for layer in view.layers)
    disks = [(layer, match[1]) for layer, match in matches if match]
    found = []
    for disk_format in _DISK_FORMATS:
        layers = [one for one, found_format in disks if found_format == disk_format]
        if len(layers) > 1:
            # By code points, which is the order of their bytes in UTF-8, as Epoch sorts them.
            parts = tuple(sorted(layers, key=title_of))
            name = _common_stem([title_of(part) for part in parts], disk_format)
            found.append(SplitDisk(name, parts))
    return [disk for disk in found if disk.size <= MAX_SIZE]


def title_of(layer: Descriptor) -> str:
    """Return a layer's title, or ""."""
    return layer.annotations.get(TITLE, "")


def _common_stem(titles: list[str], disk_format: str) -> str:
    """Return the name of the whole for the titles of its parts: `disk.qcow2` for
    `disk.qcow2.00.part` and `disk.qcow2.01.part`, or for `disk-0.qcow2` and `disk-1.qcow2`.
    """
    first, last = min(titles), max(titles)
    same = 0
    while same < len(first) and first[same] == last[same]:
        same += 1
    stem, extension, _ = first[:same].partition(f".{disk_format}")
    if not extension:
        stem = stem.rstrip("0123456789._-").removesuffix("part").rstrip("._-")
    return f"{stem or 'disk'}.{disk_format}"


@dataclass(frozen=True, slots=True, eq=False)
class SparseMap:
    """A file with holes: its `size`, the `stated` size, and where its pieces of data start.

    `starts` ascend; a piece that ends beyond the stated size makes the file larger, as it does when
    Epoch restores it. The pieces are stored one after the other: `stored` has the offset of each in
    that, and last the total. All in bytes.
    """

    size: int
    stated: int
    starts: array[int]
    stored: array[int]

    @property
    def length(self) -> int:
        """The total length of the pieces in bytes."""
        return self.stored[-1]

    def touched(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """Yield the data in `[start, stop)`: from where to where, and where it is stored."""
        index = max(0, bisect_right(self.starts, start) - 1)
        while index < len(self.starts) and self.starts[index] < stop:
            begin, stored = self.starts[index], self.stored[index]
            end = begin + self.stored[index + 1] - stored
            first, last = max(begin, start), min(end, stop)
            if first < last:
                yield first, last, stored + first - begin
            index += 1


@dataclass(frozen=True, slots=True, eq=False)
class StoredFile:
    """How a file is stored: the decompressed `size` of its data, 0 if the config does not say; the
    digests of its `chunks` in order, if any; and its `holes`, if any.
    """

    size: int = 0
    chunks: tuple[str, ...] = ()
    holes: SparseMap | None = None


_PLAIN = StoredFile()


@dataclass(frozen=True, slots=True, eq=False)
class SnapshotConfig:
    """The files of a snapshot by title; `weight` is about the memory it takes, in bytes."""

    weight: int
    files: Mapping[str, StoredFile | ProtocolViolation] = field(default_factory=dict)
    fault: ProtocolViolation | TooLarge | None = None

    def file(self, title: str) -> StoredFile:
        """Return how a file is stored; raises the error of its entry, or of the config."""
        found = self.fault or self.files.get(title, _PLAIN)
        if isinstance(found, StoredFile):
            return found
        raise fresh(found)


def parse_config(raw: bytes) -> SnapshotConfig:
    """Parse a config. `SnapshotConfig.file` raises what is wrong with it."""
    with _parsing:
        try:
            _weigh(raw)
            document = load_json(raw)
            files = document.get("files") if isinstance(document, dict) else None
            if files is not None and not isinstance(files, dict):
                raise ProtocolViolation("'files' of a snapshot's config is not a JSON object")
            known: dict[str, str] = {}
            parsed = {title: _file(entry, known) for title, entry in (files or {}).items()}
        except (ProtocolViolation, TooLarge) as error:
            return SnapshotConfig(len(raw), fault=error)
    return SnapshotConfig(len(raw), parsed)


def _weigh(raw: bytes) -> None:
    """Refuse a config that would take far more memory than its own length.

    Counts tokens outside of strings, as far as a glance can tell: within the strings that are maps,
    every quote is escaped.
    """
    dense = raw.translate(None, b" \t\r\n")
    counted = sum(dense.count(token) for token in (b'"', b",", b"{", b"["))
    escaped = sum(dense.count(token) for token in (b'\\"', b',\\"', b'{\\"', b",{"))
    if counted - escaped > _MAX_TOKENS:
        raise TooLarge(f"a snapshot's config has more than {_MAX_TOKENS} values")


def _file(entry: object, known: dict[str, str]) -> StoredFile | ProtocolViolation:
    """Parse an entry; `known` has the digests of other entries, to share one copy of each."""
    try:
        if not isinstance(entry, dict):
            raise ProtocolViolation("a file of a snapshot's config is not a JSON object")
        size = entry.get("size")
        chunks = entry.get("chunks") or ()
        if not isinstance(chunks, (list, tuple)) or not all(isinstance(one, str) for one in chunks):
            raise ProtocolViolation("'chunks' of a snapshot's config is not a list of digests")
        return StoredFile(
            0 if size is None else checked_size(size),
            tuple(known.setdefault(digest, digest) for digest in chunks),
            _holes(entry) if entry.get("sparseMap") else None,
        )
    except ProtocolViolation as error:
        return error


def _holes(entry: Mapping[str, Any]) -> SparseMap:
    stated, text = checked_size(entry.get("sparseSize")), entry["sparseMap"]
    if not isinstance(text, str):
        raise ProtocolViolation("a sparse map is not text")
    starts, stored = array(_ARRAY), array(_ARRAY, [0])
    end = total = 0
    for offset, length in _pieces(text):
        if offset < end:
            raise ProtocolViolation("the pieces of a sparse map overlap")
        end, total = offset + length, total + length
        starts.append(offset)
        stored.append(total)
    return SparseMap(checked_size(max(stated, end)), stated, starts, stored)


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Yield the offset and length of each piece of a map: `[{"o": 0, "l": 4096}, …]`."""
    for part in _parts(text):
        items = load_json(part.encode("utf-8", "replace"))
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ProtocolViolation("a sparse map is not a list of pieces")
        for item in items:
            yield checked_size(item.get("o")), checked_size(item.get("l"))


def _parts(text: str) -> Iterator[str]:
    """Cut a JSON list of small objects into shorter lists, for a whole one may be of millions."""
    position, opening = 0, ""
    while position + _PART_CHARACTERS < len(text):
        end = text.find("}", position + _PART_CHARACTERS, position + 2 * _PART_CHARACTERS) + 1
        comma = text.find(",", end)
        if not end or comma < 0 or text[end:comma].strip():
            break
        yield f"{opening}{text[position:end]}]"
        position, opening = comma + 1, "["
    if len(text) - position > 2 * _PART_CHARACTERS:
        raise ProtocolViolation("a sparse map is not a list of pieces")
    yield opening + text[position:]
