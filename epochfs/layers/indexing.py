"""Makes the index of each layer once, and stores it in the cache for all mounts.

::

    <cache>/v1/layers/<algorithm>/<encoded>.<voucher>.<format>    the index of a layer

Everything in an index has been verified. It is made from the layer's table of contents if an
annotation, and so the manifest's digest, vouches for one, in the layer (`toc`) or beside it
(`soci`); each chunk or span is then verified by itself.
Otherwise the whole blob is read, and its index is not complete until the blob matches its digest.
Only with `--unverified-layers` is it looked into before (`arriving`).

An index is written under a temporary name, locked (flock), synced, and only then renamed: what has
an index's name is complete. If two mounts write the same index, both use the one finished first.
When the indexes exceed a tenth of the maximum cache size, the least recently used are removed. If
the disk takes none, an index is kept in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import LAYERS, NEW_FILE_FLAGS, READ_FLAGS, is_ours
from epochfs.cache.quota import cached_files, remove_unused, shrink
from epochfs.errors import (
    CacheFailure,
    EpochfsError,
    InvalidName,
    ProtocolViolation,
    TooLarge,
    Vanished,
)
from epochfs.layers import soci, toc
from epochfs.layers.arriving import Arrival
from epochfs.layers.decoders import (
    BlobFile,
    compression_of,
    gzip_content,
    gzip_points,
    need_gzip,
    pieces_of,
    read_to_end,
    size_limit,
    zstd_content,
)
from epochfs.layers.index import FORMAT, LayerIndex, open_index
from epochfs.layers.index_writer import IndexWriter
from epochfs.layers.spans import MAX_SPAN_BYTES, SPANS, spans_of
from epochfs.layers.tar import TarReader
from epochfs.layers.tar_stream import TarStream
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

Write = Callable[[IndexWriter], None]
"""Writes a whole index."""

_SHARE = 10
_ATTEMPTS = 3


def write_index(
    blobs: BlobStore,
    source: soci.SociSource,
    repository: Repository,
    layer: Descriptor,
    closed: threading.Event,
    arrival: Arrival | None,
    writer: IndexWriter,
) -> None:
    """Write the index of a layer. Raises Vanished once `closed` is set.

    A layer that is read whole is shown in the `arrival` meanwhile; then this may raise Rested.
    """
    for compression in toc.formats(layer):
        with closing(blobs.open(repository, layer.digest, layer.size, precise=True)) as blob:
            try:
                entries = toc.read_entries(compression, layer, blob)
            except (InvalidName, ProtocolViolation, TooLarge) as error:
                digest = layer.digest
                log.warning("layer %s is read whole; bad table of contents: %s", digest, error)
                continue
        for entry in entries:
            writer.add(entry)
        writer.set_meta("compression", compression)
        return
    table = _soci_table(blobs, source, repository, layer)
    if table is not None:
        for entry in table.entries():
            writer.add(entry)
        for span, window in table.spans():
            writer.add_span(span, window)
        writer.set_meta("compression", SPANS)
        return
    shown = contextlib.nullcontext() if arrival is None else arrival.passing(writer)
    with closing(blobs.open(repository, layer.digest, layer.size)) as blob, shown:
        _write_whole(blob, closed, arrival, writer)


def _soci_table(
    blobs: BlobStore, source: soci.SociSource, repository: Repository, layer: Descriptor
) -> soci.SociTable | None:
    """Return the table that a layer's annotation leads to; None if there is none to be used.

    Then the layer is read whole, which needs nobody's word but its digest's.
    """
    try:
        return soci.read_table(layer, repository, source, blobs)
    except EpochfsError as error:
        log.warning("layer %s is read whole; bad SOCI index: %s", layer.digest, error)
        return None


class _WatchedFile(BlobFile):
    """A blob as a file, which can be read until the mount ends."""

    def __init__(self, blob: BlobHandle, closed: threading.Event) -> None:
        super().__init__(blob)
        self._closed = closed

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has the buffer protocol
        if self._closed.is_set():
            self.failure = Vanished("the mount is ending")
            raise self.failure
        return super().readinto(buffer)


def _write_whole(
    blob: BlobHandle, closed: threading.Event, arrival: Arrival | None, writer: IndexWriter
) -> None:
    """Read all of a blob, and index its tar stream."""
    compression, file = compression_of(blob), _WatchedFile(blob, closed)
    if compression == "zstd":
        _write_zstd(blob, closed, arrival, writer)
        return
    content = pieces_of(file)
    if compression == "gzip":
        need_gzip()
        content = gzip_content(file, None if arrival is None else arrival.points.note)
    size = _write_entries(content, blob, arrival, writer)
    read_to_end(blob, file.tell())
    if compression == "gzip" and size:
        file.seek(0)
        compression = _write_spans(file, blob, gzip_points(file, size), writer)
    writer.set_meta("compression", compression)


def _write_entries(
    pieces: Iterator[memoryview], blob: BlobHandle, arrival: Arrival | None, writer: IndexWriter
) -> int:
    """Index a tar stream; return its length."""
    if arrival is not None:
        pieces = arrival.follow(pieces, blob, writer)
    stream = TarStream(pieces, size_limit(blob.size))
    for entry in TarReader(stream):
        writer.add(entry)
    return stream.drain()


def _write_zstd(
    blob: BlobHandle, closed: threading.Event, arrival: Arrival | None, writer: IndexWriter
) -> None:
    hasher = hashlib.sha256()

    def pieces() -> Iterator[memoryview]:
        for piece in zstd_content(blob, sys.maxsize):  # the stream has a limit
            if closed.is_set():
                raise Vanished("the mount is ending")
            hasher.update(piece)
            yield piece

    size = _write_entries(pieces(), blob, arrival, writer)
    writer.set_meta("compression", "zstd")
    writer.set_meta("tar_size", size)
    writer.set_meta("tar_digest", f"sha256:{hasher.hexdigest()}")


def _write_spans(file: BlobFile, blob: BlobHandle, points: memoryview, writer: IndexWriter) -> str:
    """Index the spans of a verified gzip blob; return what its index is to be read by.

    A writer of endless blocks leaves no points in them; then the points alone are kept.
    """
    if any(max(span.size, span.packed) > MAX_SPAN_BYTES for span, _ in spans_of(points, blob.size)):
        writer.set_gzip_points(points)
        return "gzip"
    for span, window in spans_of(points, blob.size):
        file.seek(span.offset)
        packed = file.read(span.packed) or b""
        writer.add_span(span._replace(digest=str(Digest.of(packed))), window)
    return SPANS


def is_stored(cache: BlobCache, layer: Descriptor) -> bool:
    """Whether there is an index of a layer, unless it cannot be opened."""
    try:
        with cache.directory.opened(LAYERS, layer.digest.algorithm, make=False) as directory:
            os.stat(_name(layer), dir_fd=directory)
    except (OSError, CacheFailure):
        return False
    return True


def stored_index(cache: BlobCache, layer: Descriptor, write: Write) -> LayerIndex:
    """Return the index of a layer, written now if there is none. Raises what `write` does."""
    for _ in range(_ATTEMPTS):
        try:
            return _found_or_made(cache, layer, write)
        except FileNotFoundError as error:
            log.debug("another process removed the indexes of layers: %s", error)
        except (OSError, CacheFailure) as error:
            cache.directory.report(error)
            if not cache.quota.evict_some():
                break
    with IndexWriter(":memory:") as writer:
        write(writer)
        return LayerIndex(writer.finish())


def _found_or_made(cache: BlobCache, layer: Descriptor, write: Write) -> LayerIndex:
    name = _name(layer)
    with cache.directory.opened(LAYERS, layer.digest.algorithm) as directory:
        found = _open(directory, name)
        if found is None:
            limit = cache.quota.size_limit // _SHARE
            files = cached_files(directory)
            shrink(limit, files, lambda file: remove_unused(directory, file.name))
            found = _make(directory, name, write)
    return found


def _name(layer: Descriptor) -> str:
    return f"{layer.digest.encoded}.{toc.voucher(layer)}.{FORMAT}"


def _make(directory: int, name: str, write: Write) -> LayerIndex:
    """Write an index, sync it, and rename it to `name`, unless another process was faster."""
    draft = f"{name}.{secrets.token_hex(8)}"
    fd = os.open(draft, NEW_FILE_FLAGS, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        path = f"/proc/self/fd/{directory}/{draft}"
        with IndexWriter(path) as writer:
            write(writer)
            writer.finish().close()
        os.fsync(fd)
        made, others = open_index(path), _open(directory, name)
        if others is not None:
            os.unlink(draft, dir_fd=directory)
            return others
        os.replace(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)
        return made
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(draft, dir_fd=directory)
        raise
    finally:
        os.close(fd)


def _open(directory: int, name: str) -> LayerIndex | None:
    """Open a complete index; return None if there is none that we wrote."""
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        if not is_ours(os.fstat(fd)):
            return None
        with contextlib.suppress(OSError):  # a read-only disk
            os.utime(fd)
        return open_index(f"/proc/self/fd/{fd}")
    except CacheFailure as error:
        if os.fstat(fd).st_nlink:
            log.warning("the index of a layer is damaged and will be rebuilt: %s", error)
        return None  # SQLite opens no file that was unlinked meanwhile
    finally:
        os.close(fd)
