"""The kinds of manifests by Epoch's rules, and how Epoch stores disks and virtual machines.

Epoch tells its artifacts apart by `artifactType`, then by the config's media type. A cloud image is
a disk, whole or split into parts that are joined in the order of their titles. A snapshot is the
files of a virtual machine. Of those with holes only the data are stored, one piece after the other;
the second version of the format also compresses files and cuts them up. Its config tells
(`snapshotconfig`).
"""

from __future__ import annotations

from dataclasses import dataclass

from epochfs.oci.manifests import MAX_SIZE, TITLE, Descriptor, Document, Index, Manifest

CLOUD_IMAGE = "cloud-image"
SNAPSHOT = "snapshot"
CONTAINER_IMAGE = "container-image"
IMAGE_INDEX = "image-index"
ARTIFACT = "artifact"

OS_IMAGE_TYPE = "application/vnd.cocoonstack.os-image.v1+json"
SNAPSHOT_TYPE = "application/vnd.cocoonstack.snapshot.v1+json"
SNAPSHOT_2_TYPE = "application/vnd.cocoonstack.snapshot.v2+json"

_BY_ARTIFACT_TYPE = {
    OS_IMAGE_TYPE: CLOUD_IMAGE,
    "application/vnd.cocoonstack.windows-image.v1+json": CLOUD_IMAGE,
    SNAPSHOT_TYPE: SNAPSHOT,
    SNAPSHOT_2_TYPE: SNAPSHOT,
}
_IMAGE_CONFIGS = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
_DISK_PREFIXES = ("application/vnd.cocoonstack.disk.", "application/vnd.cocoonstack.windows.disk.")
_DISK_FORMATS = ("qcow2", "raw")
_PART = ".part"


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


def is_snapshot(document: Document) -> bool:
    """Whether it is a snapshot, and not an index of such."""
    return kind_of(document) == SNAPSHOT and isinstance(document.view, Manifest)


def may_be_chunked(document: Document) -> bool:
    """Whether it is a snapshot of the second version: layers of one title are one file."""
    return is_snapshot(document) and document.view.artifact_type == SNAPSHOT_2_TYPE


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
            parts = tuple(sorted(layers, key=title_of))
            name = _common_stem([title_of(part) for part in parts], disk_format)
            found.append(SplitDisk(name, parts))
    return [disk for disk in found if disk.size <= MAX_SIZE]


def _disk_format(layer: Descriptor) -> str:
    """Return the format of a disk or part of one; empty text for any other layer."""
    for prefix in _DISK_PREFIXES:
        if layer.media_type.startswith(prefix):
            found = layer.media_type.removeprefix(prefix).removesuffix(_PART)
            return found if found in _DISK_FORMATS else ""
    return ""


def title_of(layer: Descriptor) -> str:
    """Return what a layer is titled, empty text if it is not."""
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
