"""zstd:chunked: a zstd layer whose files are each a frame or more, with a table of contents.

Source: containers/storage, pkg/chunked/internal/compression.go. The table is a frame within a
skippable frame near the end of the blob; annotations of the layer tell where, and its digest.
"""

from __future__ import annotations

import re
from io import BytesIO

from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, InvalidName, ProtocolViolation, TooLarge
from epochfs.layers import toc
from epochfs.layers.decoders import read_range, read_up_to, zstd_decoder
from epochfs.layers.entry import Entry
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest

FORMAT = "zstd:chunked"

TOC_DIGESTS = (
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.containers.zstd-chunked.manifest-checksum",
)
"""The annotation with the digest of the table as it is compressed, under its name of now, and under
the one that skopeo 1.9 writes."""

_TOC_POSITIONS = (
    "io.github.containers.zstd-chunked.manifest-position",
    "io.containers.zstd-chunked.manifest-position",
)
"""The annotation with the table's offset, length, length not compressed, and version."""

ANNOTATIONS = (*TOC_DIGESTS, *_TOC_POSITIONS)
"""All that the table is found and vouched for by."""

_POSITION = re.compile(r"(\d{1,18}):(\d{1,18}):(\d{1,18}):1\Z")


def read_entries(layer: Descriptor, blob: BlobHandle) -> list[Entry] | None:
    """Return the entries of a zstd:chunked layer; None where nothing vouches for a table.

    Raises ProtocolViolation or TooLarge for a table that cannot be used.
    """
    annotation = _first(layer, TOC_DIGESTS)
    if annotation is None:
        return None
    position = _POSITION.match(_first(layer, _TOC_POSITIONS) or "")
    if position is None:
        raise ProtocolViolation("its position is not known")
    offset, packed_size, size = (int(number) for number in position.groups())
    if max(packed_size, size) > toc.MAX_BYTES:
        raise TooLarge(f"it is of {size} bytes")
    try:
        digest = Digest.parse(annotation)
    except InvalidName as error:
        raise ProtocolViolation(str(error)) from None
    packed = read_range(blob, offset, packed_size)
    if not digest.matches(packed):
        raise ContentMismatch("it does not have the digest of its annotation")
    return toc.parse(read_up_to(zstd_decoder(BytesIO(packed)), size), frozenset())


def _first(layer: Descriptor, names: tuple[str, ...]) -> str | None:
    return next((layer.annotations[name] for name in names if name in layer.annotations), None)
