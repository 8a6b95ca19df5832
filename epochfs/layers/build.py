"""Makes the index of a layer: from its table of contents if it has one, else from its tar stream.

A table of contents is believed only where an annotation of the layer's descriptor, and so the
manifest's own digest, vouches for it; every chunk is then checked by itself. Without one, the whole
blob is read, and its index is not complete before the blob has matched its digest. Either way what
an index says has been verified.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from contextlib import closing
from typing import Protocol

from epochfs.blobs.store import BlobHandle
from epochfs.errors import ProtocolViolation, TooLarge, Vanished
from epochfs.layers import stargz, zstdchunked
from epochfs.layers.archive import gzip_spacing, read_to_end, size_limit
from epochfs.layers.decoders import BlobFile, compression_of, gzip_decoder
from epochfs.layers.index_writer import IndexWriter
from epochfs.layers.tar import walk
from epochfs.layers.tar_stream import ForwardStream
from epochfs.layers.whole import WholeZstd, check_gzip
from epochfs.oci.manifests import Descriptor

log = logging.getLogger(__name__)

_VOUCHER_DIGITS = 32

WITH_TOC = (stargz.FORMAT, zstdchunked.FORMAT)
"""What is recorded as the compression of a layer that has a table of contents."""


def voucher(layer: Descriptor) -> str:
    """Return what tells a layer's index from others of the same blob.

    One manifest's annotations vouch for a table of contents, and another manifest need not believe
    it: they are part of what the index is kept under. Without them the blob's digest is enough.
    """
    names = (*stargz.ANNOTATIONS, *zstdchunked.ANNOTATIONS)
    found = [(name, layer.annotations[name]) for name in names if name in layer.annotations]
    if not found:
        return "tar"
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:_VOUCHER_DIGITS]


def _has_toc(layer: Descriptor) -> bool:
    """Whether something vouches for a table of contents."""
    names = (*stargz.TOC_DIGESTS, *zstdchunked.TOC_DIGESTS)
    return any(name in layer.annotations for name in names)


class OpenBlob(Protocol):
    """Opens a layer's blob; `precise` as `BlobStore.open` has it."""

    def __call__(self, *, precise: bool = False) -> BlobHandle: ...


def build(
    layer: Descriptor, open_blob: OpenBlob, writer: IndexWriter, ending: threading.Event
) -> None:
    """Write the index of a layer. Gives up with Vanished once `ending` is set."""
    if not _has_toc(layer) or not _write_toc(layer, open_blob, writer):
        with closing(open_blob()) as blob:
            _write_walk(blob, writer, ending)


def _write_toc(layer: Descriptor, open_blob: OpenBlob, writer: IndexWriter) -> bool:
    """Index a layer by its table of contents; False where it has none that can be used."""
    with closing(open_blob(precise=True)) as blob:
        for module in (stargz, zstdchunked):
            try:
                entries = module.read_entries(layer, blob)
            except (ProtocolViolation, TooLarge) as error:
                digest = layer.digest
                log.warning("layer %s is read whole: its table of contents: %s", digest, error)
                continue
            if entries is not None:
                for entry in entries:
                    writer.add(entry)
                writer.set_meta("compression", module.FORMAT)
                return True
    return False


def _write_walk(blob: BlobHandle, writer: IndexWriter, ending: threading.Event) -> None:
    """Read all of a blob, and index the tar stream in it."""
    compression, file, hasher = compression_of(blob), BlobFile(blob), hashlib.sha256()

    def observe(view: memoryview) -> None:
        if ending.is_set():
            raise Vanished("the mount is ending")
        if compression == "zstd":
            hasher.update(view)

    gzip = gzip_decoder(file, gzip_spacing(blob.size)) if compression == "gzip" else None
    decoder = WholeZstd(blob) if compression == "zstd" else gzip or file
    stream = ForwardStream(decoder, size_limit(blob.size), observe)
    for entry in walk(stream):
        writer.add(entry)
    size = stream.drain()
    if compression != "zstd":
        read_to_end(blob, file.tell())
    writer.set_meta("compression", compression)
    if compression == "zstd":
        writer.set_meta("tar_size", size)
        writer.set_meta("tar_digest", f"sha256:{hasher.hexdigest()}")
    if gzip is not None:
        check_gzip(blob, size)
        writer.set_gzip_points(gzip.export_index())
