"""What a manifest is for, by Epoch's rules, and how Epoch stores disks and virtual machines.

Epoch tells its artifacts apart by `artifactType`, then by the config's media type. A cloud image is
a disk, whole or split into parts that are joined in the order of their titles. A snapshot is the
files of a virtual machine; of those with holes only the data are stored, one piece after the other,
and its config, a JSON document, says where each piece belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from epochfs.errors import ProtocolViolation, fresh
from epochfs.manifests import (
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
ARTIFACT = "artifact"

OS_IMAGE_TYPE = "application/vnd.cocoonstack.os-image.v1+json"
SNAPSHOT_TYPE = "application/vnd.cocoonstack.snapshot.v1+json"

_BY_ARTIFACT_TYPE = {
    OS_IMAGE_TYPE: CLOUD_IMAGE,
    "application/vnd.cocoonstack.windows-image.v1+json": CLOUD_IMAGE,
    SNAPSHOT_TYPE: SNAPSHOT,
    "application/vnd.cocoonstack.snapshot.v2+json": SNAPSHOT,
}
_IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_DISK_PREFIXES = ("application/vnd.cocoonstack.disk.", "application/vnd.cocoonstack.windows.disk.")
_DISK_FORMATS = ("qcow2", "raw")
_PART = ".part"
_CONFIGS = 2
"""How many configs it is remembered of what they say."""


def kind_of(document: Document) -> str:
    """Return what a manifest is for: one of the constants here; `artifact` for all else."""
    view = document.view
    if view.artifact_type in _BY_ARTIFACT_TYPE:
        return _BY_ARTIFACT_TYPE[view.artifact_type]
    if isinstance(view, Index):
        return IMAGE_INDEX
    if view.config is not None and view.config.media_type in _IMAGE_CONFIGS:
        return CONTAINER_IMAGE
    return ARTIFACT


def has_sparse_files(document: Document) -> bool:
    """Whether it is a snapshot whose layers are stored as the first version of the format says.

    The second one compresses and cuts them up, which its media types tell.
    """
    return document.view.artifact_type == SNAPSHOT_TYPE and isinstance(document.view, Manifest)


@dataclass(frozen=True, slots=True)
class SplitDisk:
    """A disk in several parts, in order, and the name of the whole."""

    name: str
    parts: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """The size of the whole in bytes."""
        return sum(part.size for part in self.parts)


def split_disks(document: Document) -> list[SplitDisk]:
    """Return the disks of a cloud image that no single layer holds."""
    view = document.view
    if kind_of(document) != CLOUD_IMAGE or not isinstance(view, Manifest):
        return []
    found = []
    for disk_format in _DISK_FORMATS:
        layers = [layer for layer in view.layers if _disk_format(layer) == disk_format]
        if len(layers) > 1:
            # Compared by code points, which is the order of their bytes in UTF-8, as Epoch's is.
            parts = tuple(sorted(layers, key=_title))
            name = _common_stem([_title(part) for part in parts], disk_format)
            found.append(SplitDisk(name, parts))
    return [disk for disk in found if disk.size <= MAX_SIZE]


def _disk_format(layer: Descriptor) -> str:
    """Return the format of a disk or part of one; empty text for any other layer."""
    for prefix in _DISK_PREFIXES:
        if layer.media_type.startswith(prefix):
            found = layer.media_type.removeprefix(prefix).removesuffix(_PART)
            return found if found in _DISK_FORMATS else ""
    return ""


def _title(layer: Descriptor) -> str:
    return layer.annotations.get(TITLE, "")


def _common_stem(titles: list[str], disk_format: str) -> str:
    """Return the name of a whole whose parts have these titles, such as `disk.qcow2` for
    `disk.qcow2.00.part` and `disk.qcow2.01.part`, or `disk-0.qcow2` and `disk-1.qcow2`.
    """
    shortest, longest = min(titles), max(titles)
    same = 0
    while same < len(shortest) and shortest[same] == longest[same]:
        same += 1
    stem, extension, _ = shortest[:same].partition(f".{disk_format}")
    if not extension:
        stem = stem.rstrip("0123456789._-").removesuffix("part").rstrip("._-")
    return f"{stem or 'disk'}.{disk_format}"


@dataclass(frozen=True, slots=True)
class SparseMap:
    """A file with holes: its `size` in bytes, and its pieces of data, (offset, length) ascending.
    What is stored is the pieces, one after the other."""

    size: int
    pieces: tuple[tuple[int, int], ...]


def sparse_map(config: bytes, layer: Descriptor) -> SparseMap | None:
    """Return what a snapshot's config says of the layer; None if that is stored as it is.

    Raises ProtocolViolation unless the pieces are all that is stored, and fit the file.
    """
    described = _described(config)
    if isinstance(described, ProtocolViolation):
        raise fresh(described)
    if _title(layer) not in described:
        return None
    text, stated_size = described[_title(layer)]
    size, pieces = checked_size(stated_size), _pieces(text)
    end = 0
    for offset, length in pieces:
        if offset < end:
            raise ProtocolViolation("the pieces of a sparse map overlap")
        end = offset + length
    if end > size or sum(length for _, length in pieces) != layer.size:
        raise ProtocolViolation(f"a sparse map does not fit {layer.digest}")
    return SparseMap(size, pieces)


@lru_cache(maxsize=_CONFIGS)
def _described(config: bytes) -> dict[str, tuple[str, int]] | ProtocolViolation:
    """Return the map and the size of each file with holes, as the config has them; or what is wrong
    with the config. A listing asks this for each of many files.
    """
    try:
        document = load_json(config)
    except ProtocolViolation as error:
        return error
    files = document.get("files") if isinstance(document, dict) else None
    found = {}
    for title, entry in files.items() if isinstance(files, dict) else ():
        if isinstance(entry, dict) and entry.get("sparseMap"):
            text, size = entry["sparseMap"], entry.get("sparseSize")
            # What is no text or number is neither a map nor a size.
            found[title] = (
                text if isinstance(text, str) else "",
                size if isinstance(size, int) else -1,
            )
    return found


def _pieces(text: str) -> tuple[tuple[int, int], ...]:
    items = load_json(text.encode("utf-8", "replace"))
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ProtocolViolation("a sparse map that is not a list of pieces")
    return tuple((checked_size(item.get("o")), checked_size(item.get("l"))) for item in items)
