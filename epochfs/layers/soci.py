"""SOCI: an index of a gzip layer beside the image, which tells where its files are in it.

Source: soci-snapshotter, docs/soci-index-manifest-v2.md, ztoc/fbs/ztoc.fbs, ztoc/compression. An
image's manifest names a SOCI index in an annotation; that is a manifest whose layers are the tables
(ztocs), one for each of the image's layers that is worth it. A table is a FlatBuffer: entries of
the tar with the places of their data, and checkpoints, from each of which the stream can be
decompressed. What is between two of them is a span, and the table has the digest of it.

Whose word it is: the image's digest vouches for the annotation, that for the SOCI index by its
digest, that for the table, and that for the compressed bytes. So a table's author is the image's,
as with the tables of `toc`, and a registry cannot lie. A SOCI index of the first version is only a
referrer of the image: nothing in the image names it, whoever may push to the repository can add
one, and a registry can make one up. With its window a checkpoint decides what bytes come out of
right compressed ones, and only the whole layer would show the lie. So it is used only where the
user has said that such referrers are to be believed.

Nor is anything shown of a layer without a table before all of it is here. Only its digest vouches
for its bytes, and later entries may replace or hide those that went by.

A table is hostile until it is parsed here, though a digest vouches for it.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain

from epochfs.blobs.store import BlobStore
from epochfs.errors import EpochfsError, ProtocolViolation, TooLarge
from epochfs.layers.decoders import read_to_end, size_limit
from epochfs.layers.entry import Entry, Piece
from epochfs.layers.flatbuffers import FlatBuffer, Table
from epochfs.layers.index import Span
from epochfs.layers.spans import MAX_SPAN_BYTES
from epochfs.layers.tar import pax_xattrs
from epochfs.layers.toc import SOCI_INDEX, SOCI_SUBJECT, named_entry, stated_time
from epochfs.metadata.listings import Listings
from epochfs.oci.manifests import Descriptor, Document, Manifest
from epochfs.oci.names import Digest, Repository

MAX_BYTES = 32 << 20
"""Maximum size of a table; a layer with a larger one is read whole."""

_MAX_REFERRERS = 32
_TYPE_1 = "application/vnd.amazon.soci.index.v1+json"
_LAYER = "com.amazon.soci.image-layer-digest"
_MEDIA_TYPE = "application/octet-stream"

_VERSIONS = (b"0.9", b"1.0")
_GZIP = 1
_BYTE, _UNSIGNED, _LONG = (struct.Struct(f"<{code}") for code in "bIq")

_CHECKPOINTS = struct.Struct("<iq")
"""What is before the checkpoints: their number, and the intended size of a span."""

_CHECKPOINT = struct.Struct("<qqB32768s")
"""Offset in the blob, offset in the stream, bits of the byte before, window."""

_MAX_BITS = 7
_SPARSE = b"GNU.sparse."


@dataclass(frozen=True, slots=True)
class SociSource:
    """Where SOCI indexes come from: the manifests of a repository, by their digests.

    `referrers` returns the digests of what refers to one; it is None unless they are believed.
    """

    manifest: Callable[[Repository, Digest], Document]
    referrers: Callable[[Repository, Digest], Sequence[Digest]] | None = None

    @classmethod
    def of(cls, listings: Listings) -> SociSource:
        """Return what a registry has."""
        return cls(listings.manifest, listings.referrers if listings.believes_soci else None)

    def indexes(self, layer: Descriptor, repository: Repository) -> Iterator[Manifest]:
        """Yield the SOCI indexes that may have a table of a layer (see `vouched`)."""
        if SOCI_INDEX in layer.annotations:
            view = self.manifest(repository, Digest.parse(layer.annotations[SOCI_INDEX])).view
            if isinstance(view, Manifest):
                yield view
        elif SOCI_SUBJECT in layer.annotations and self.referrers is not None:
            subject = Digest.parse(layer.annotations[SOCI_SUBJECT])
            for digest in self.referrers(repository, subject)[:_MAX_REFERRERS]:
                view = None
                with contextlib.suppress(EpochfsError):  # another may be better
                    view = self.manifest(repository, digest).view
                if isinstance(view, Manifest) and view.config and view.config.media_type == _TYPE_1:
                    yield view


def vouched(layer: Descriptor, image: Manifest, subject: Digest | None) -> Descriptor:
    """Return a layer of an image, annotated with what leads to a SOCI index of it.

    That is what the image's manifest says of all its layers; else its digest is the `subject`, if
    what refers to that is believed.
    """
    if SOCI_INDEX in image.annotations:
        found = {SOCI_INDEX: image.annotations[SOCI_INDEX]}
    elif subject is not None:
        found = {SOCI_SUBJECT: str(subject)}
    else:
        return layer
    return replace(layer, annotations={**layer.annotations, **found})


def read_table(
    layer: Descriptor, repository: Repository, source: SociSource, blobs: BlobStore
) -> SociTable | None:
    """Return the table of a layer; None if it has none.

    Raises InvalidName, ProtocolViolation or TooLarge for one that cannot be used, and whatever
    fetching it raises.
    """
    tables = chain.from_iterable(index.layers for index in source.indexes(layer, repository))
    for one in tables:
        if one.annotations.get(_LAYER) == str(layer.digest) and one.media_type == _MEDIA_TYPE:
            if one.size > MAX_BYTES:
                raise TooLarge(f"it has {one.size} bytes")
            with closing(blobs.open(repository, one.digest, one.size)) as blob:
                data = bytearray(one.size)
                blob.read_into(memoryview(data), 0)
                read_to_end(blob, one.size)
            return SociTable(data, layer.size)
    return None


class SociTable:
    """A table (ztoc), all of it checked. Raises ProtocolViolation, InvalidName or TooLarge."""

    def __init__(self, data: bytes | bytearray, blob_size: int) -> None:
        """`blob_size` is that of the layer which the table is of."""
        self._data = data
        self._blob_size = blob_size
        root = FlatBuffer(data).root()
        self._size = root.number(3, _LONG)
        if bytes(root.octets(0)) not in _VERSIONS:
            raise ProtocolViolation("it has an unknown version")
        if root.number(2, _LONG) != blob_size:
            raise ProtocolViolation("it is of a layer of another size")
        if not 0 < self._size <= size_limit(blob_size):
            raise TooLarge(f"it is of a layer that decompresses to {self._size} bytes")
        for _ in self.entries():
            pass
        for _ in self.spans():
            pass

    def entries(self) -> Iterator[Entry]:
        """Yield the entries of the layer, in their order."""
        toc = FlatBuffer(self._data).root().table(4)
        for row in toc.tables(0) if toc is not None else ():
            yield self._entry(row)

    def spans(self) -> Iterator[tuple[Span, bytes]]:
        """Yield the spans of the layer, in their order, each with its window."""
        root = FlatBuffer(self._data).root()
        info = root.table(5)
        if info is None or info.number(0, _BYTE, _GZIP) != _GZIP:
            raise ProtocolViolation("it is not of a gzip layer")
        points, digests = info.octets(3), [*info.texts(2)]
        count = len(digests)
        # The first form lacks the first checkpoint, which is then unknown if the header has a name.
        if not count or len(points) != _CHECKPOINTS.size + count * _CHECKPOINT.size:
            raise ProtocolViolation("it does not have as many checkpoints as spans")
        if _CHECKPOINTS.unpack_from(points)[0] != count:
            raise ProtocolViolation("it has another number of checkpoints than it says")
        if _CHECKPOINT.unpack_from(points, _CHECKPOINTS.size)[1] != 0:
            raise ProtocolViolation("its first span is not the start of the layer")
        for number, encoded in enumerate(digests):
            digest = str(Digest.parse(encoded.decode("latin-1")))
            position = _CHECKPOINTS.size + number * _CHECKPOINT.size
            offset, start, bits, window = _CHECKPOINT.unpack_from(points, position)
            stop, end = self._blob_size, self._size
            if number + 1 < count:
                stop, end, _, _ = _CHECKPOINT.unpack_from(points, position + _CHECKPOINT.size)
            yield self._span(Span(start, end - start, offset, stop - offset, bits, digest)), window

    def _span(self, span: Span) -> Span:
        """Return a span as it is read, from the byte that it begins within, or raise."""
        if span.bits:
            span = span._replace(offset=span.offset - 1, packed=span.packed + 1)
        if min(span.start, span.offset) < 0 or min(span.size, span.packed) <= 0:
            raise ProtocolViolation("its checkpoints are not in order")
        if span.offset + span.packed > self._blob_size or span.bits > _MAX_BITS:
            raise ProtocolViolation("a checkpoint is not in the layer")
        if max(span.size, span.packed) > MAX_SPAN_BYTES:
            raise TooLarge(f"a span has {span.size} bytes, compressed {span.packed}")
        return span

    def _entry(self, row: Table) -> Entry:
        kind = bytes(row.octets(1)).decode("latin-1")
        entry = named_entry(kind, bytes(row.octets(0)), bytes(row.octets(4)))
        if entry.is_hard_link:
            return entry
        records = {bytes(one.octets(0)): bytes(one.octets(1)) for one in row.tables(13)}
        if any(key.startswith(_SPARSE) for key in records):
            raise ProtocolViolation("it does not tell where the data of a sparse file is")
        size = row.number(3, _LONG) if stat.S_ISREG(entry.mode) else 0
        return entry._replace(
            mode=entry.mode | row.number(5, _LONG) & 0o7777,
            uid=row.number(6, _UNSIGNED),
            gid=row.number(7, _UNSIGNED),
            size=size,
            time_ns=stated_time(bytes(row.octets(10))),
            rdev=os.makedev(row.number(11, _LONG) & 0xFFF, row.number(12, _LONG) & 0xFFFFF),
            xattrs=pax_xattrs(records),
            pieces=self._pieces(row.number(2, _LONG), size),
        )

    def _pieces(self, offset: int, size: int) -> tuple[Piece, ...]:
        if min(offset, size) < 0 or offset + size > self._size:
            raise ProtocolViolation("a file is not in the layer")
        return (Piece(0, size, offset),) if size else ()
