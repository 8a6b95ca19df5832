"""eStargz: a gzip layer whose files are each compressed by themselves, with a table of contents.

Source: stargz-snapshotter, docs/estargz.md. The table is a gzip member near the end of the blob, in
a tar stream of its own; the footer behind it, of fixed length, tells where it begins.
"""

from __future__ import annotations

import re
from io import BytesIO

from epochfs.blobs.store import BlobHandle
from epochfs.errors import ContentMismatch, InvalidName, ProtocolViolation, TooLarge
from epochfs.layers import toc
from epochfs.layers.decoders import GzipMember, read_range, read_up_to
from epochfs.layers.entry import Entry
from epochfs.layers.tar import walk
from epochfs.layers.tar_stream import ForwardStream
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest

FORMAT = "estargz"

TOC_DIGESTS = ("containerd.io/snapshot/stargz/toc.digest",)
"""The annotation of a layer with the digest of its table, not compressed."""

ANNOTATIONS = TOC_DIGESTS
"""All that the table is found and vouched for by."""

_TOC_FILE = b"stargz.index.json"
_OWN_FILES = frozenset({_TOC_FILE.decode(), ".prefetch.landmark", ".no.prefetch.landmark"})
_FOOTER_BYTES = 51
_FOOTER = re.compile(rb"\x1f\x8b.{8}\x1a\0SG\x16\0([0-9a-f]{16})STARGZ", re.DOTALL)
_TAR_OVERHEAD = 64 << 10


def read_entries(layer: Descriptor, blob: BlobHandle) -> list[Entry] | None:
    """Return the entries of an eStargz layer; None where nothing vouches for a table of contents.

    Raises ProtocolViolation or TooLarge for a table that cannot be used.
    """
    annotation = layer.annotations.get(TOC_DIGESTS[0])
    if annotation is None:
        return None
    try:
        digest = Digest.parse(annotation)
    except InvalidName as error:
        raise ProtocolViolation(str(error)) from None
    table = _table(blob)
    if not digest.matches(table):
        raise ContentMismatch("it does not have the digest of its annotation")
    return toc.parse(table, _OWN_FILES)


def _table(blob: BlobHandle) -> bytes:
    end = blob.size - _FOOTER_BYTES
    footer = _FOOTER.match(read_range(blob, max(end, 0), _FOOTER_BYTES))
    start = int(footer[1], 16) if footer is not None else end
    if not 0 <= start < end:
        raise ProtocolViolation("there is no eStargz footer")
    if end - start > toc.MAX_BYTES:
        raise TooLarge(f"it takes {end - start} bytes")
    packed = BytesIO(read_range(blob, start, end - start))
    stream = read_up_to(GzipMember(packed), toc.MAX_BYTES + _TAR_OVERHEAD)
    file = next(walk(ForwardStream(BytesIO(stream), len(stream), lambda _: None)), None)
    if file is None or file.path != _TOC_FILE:
        raise ProtocolViolation(f"it is no {_TOC_FILE.decode()}")
    if file.size > toc.MAX_BYTES:
        raise TooLarge(f"it is of {file.size} bytes")
    return b"".join(stream[piece.offset :][: piece.size] for piece in file.pieces)
