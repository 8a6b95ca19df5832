"""The layers of images: their indexes, kept open in memory, and their files.

Locks: `LoadingCache._lock` guards what is kept and, in `PooledFlight`, what is being made; nothing
is made under it. `Layers._lock` guards the table of arrivals, a leaf. `Layers._distrusted` and
`_shown` change by one key at a time, and take no lock.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from cachetools import LRUCache, TTLCache

from epochfs.blobs.buffers import clear
from epochfs.blobs.store import BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.client.single_flight import Flight, PooledFlight
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    ProtocolViolation,
    TooLarge,
    Vanished,
    fresh,
)
from epochfs.layers import soci, toc
from epochfs.layers.archive import Archive, open_archive, open_arriving
from epochfs.layers.arriving import Arrival, Arriving, Rested
from epochfs.layers.chunks import ChunkCache, ChunkedArchive
from epochfs.layers.decoders import read_to_end
from epochfs.layers.entry import Piece
from epochfs.layers.index import Inode, LayerIndex, Seen
from epochfs.layers.indexing import is_stored, stored_index, write_index
from epochfs.layers.spans import SPANS, SpanArchive
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

_MAX_INDEXES = 512
_MAX_ARCHIVES = 8
_RESIDENT_BYTES = 256 << 10
"""An index in memory counts as one more for each of these: 128 MiB in all."""

_WORKERS = 4
_MAX_FAILED = 1024
_FAILED_SECONDS = 60.0

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_Key = tuple[Digest, int, str]
"""The identity of an index: its blob, the blob's size, and what vouches for it."""


class LoadingCache(Generic[K, V]):
    """Makes values in threads of its own, each once for all who wait, and keeps those last used.

    Keeps a total `weight` of up to `limit`, each value weighing 1 by default; an evicted one lives
    on while it is in use. A layer that makes no sense never will: that is remembered for a minute.
    """

    def __init__(self, name: str, limit: int, weight: Callable[[V], int] | None = None) -> None:
        self._lock = threading.Lock()
        self._kept: LRUCache[K, V] = LRUCache(limit, weight)
        self._failed: TTLCache[K, EpochfsError] = TTLCache(_MAX_FAILED, _FAILED_SECONDS)
        self._flights = PooledFlight[K, V](
            self._lock,
            self._kept.__setitem__,
            lambda _: "a layer is not read yet; reading continues",
            name=name,
            workers=_WORKERS,
            ended=Vanished("the mount is ending"),
        )
        self.lacks_threads = self._flights.lacks_threads

    def begin(self, key: K, make: Callable[[], V]) -> V | Flight[V]:
        """Return a value, or how it is being made, which begins now if need be. Raises a remembered
        failure.
        """
        return self._flights.begin(key, partial(self._look, key), partial(self._make, key, make))

    def get(self, key: K, make: Callable[[], V], deadline: float) -> V:
        """Return a value. Raises DeadlineExceeded if it is not made by then (monotonic)."""
        look, work = partial(self._look, key), partial(self._make, key, make)
        return self._flights.do(key, look, work, deadline)

    def has(self, key: K) -> bool:
        """Whether a value is here."""
        with self._lock:
            return key in self._kept

    def drop(self, key: K) -> None:
        """Forget a value; the next request makes it again."""
        with self._lock:
            self._kept.pop(key, None)

    def close(self) -> None:
        """Begin nothing any more; waiters get an error."""
        self._flights.close()

    def _look(self, key: K) -> V | None:
        found = self._kept.get(key)
        if found is None and key in self._failed:
            raise fresh(self._failed[key])
        return found

    def _make(self, key: K, make: Callable[[], V]) -> V:
        try:
            return make()
        except ContentMismatch:
            raise
        except (TooLarge, ProtocolViolation) as error:
            with self._lock:
                self._failed[key] = error
            raise


@dataclass(frozen=True, slots=True)
class LayerFile:
    """One open file of `size` bytes: its pieces, and zeros between them.

    `pieces` returns those that overlap a range `[start, stop)`, in order, and maybe others.
    `on_failure` is told why this archive cannot read the pieces and never will.
    """

    pieces: Callable[[int, int], Iterable[Piece]]
    size: int
    archive: Archive
    on_failure: Callable[[EpochfsError], None]

    @property
    def verified(self) -> bool:
        """Whether what is read from now on has been checked against a digest."""
        return self.archive.verified

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
        stop, position = offset + count, offset
        for piece in self.pieces(offset, stop):
            start, end = max(piece.start, offset), min(piece.start + piece.size, stop)
            if start < end:
                clear(view[position - offset : start - offset])
                try:
                    part = view[start - offset : end - offset]
                    self.archive.read_piece(piece, start - piece.start, part)
                except (ProtocolViolation, Vanished) as error:
                    self.on_failure(error)
                    raise
                position = end
        clear(view[position - offset : count])
        return count

    def close(self) -> None:
        """Nothing to close: the archive is shared."""


class Layers:
    """The layers of images. Any thread may call anything.

    The caller has a manifest of the repository that names the layer, which proves that the
    repository may see it.
    """

    def __init__(
        self,
        blobs: BlobStore,
        cache: BlobCache,
        source: soci.SociSource,
        *,
        unverified: bool = False,
    ) -> None:
        """`source` has the SOCI indexes. `unverified`: show what a layer has while it arrives."""
        self._blobs = blobs
        self._cache = cache
        self._source = source
        self._unverified = unverified
        self._closed = threading.Event()
        self._indexes = LoadingCache[_Key, LayerIndex]("layer", _MAX_INDEXES, _weight)
        self._archives = LoadingCache[tuple[Repository, _Key], Archive]("archive", _MAX_ARCHIVES)
        self._chunks = ChunkCache()
        self._distrusted: set[tuple[Repository, _Key]] = set()
        self._shown: set[_Key] = set()  # before they were verified, which none of them is yet
        self._lock = threading.Lock()
        self._arrivals = WeakValueDictionary[_Key, Arrival]()

    def begin(self, repository: Repository, layers: Iterable[Descriptor]) -> None:
        """Begin to read the indexes of layers that will all be needed."""
        for layer in layers:
            self._indexes.begin(_key(layer), self._maker(repository, layer))

    def index(self, repository: Repository, layer: Descriptor, deadline: float) -> LayerIndex:
        """Return the index of a layer. Raises DeadlineExceeded (`deadline` is monotonic)."""
        while True:
            make = self._maker(repository, layer)
            with suppress(Rested):  # that was begun for somebody who wanted less
                return self._indexes.get(_key(layer), make, deadline)

    def contents(
        self, repository: Repository, layer: Descriptor, deadline: float
    ) -> LayerIndex | Arriving:
        """Return what a layer has: its index, or what may be shown before there is one."""
        whole = partial(self.index, repository, layer, deadline)
        may_show = self._unverified and not self._blobs.was_spoiled(layer.digest)
        if not may_show or self._indexes.has(_key(layer)) or is_stored(self._cache, layer):
            return whole()
        return Arriving(partial(self._arrived, repository, layer, deadline), whole)

    def open(
        self, repository: Repository, layer: Descriptor, file: Inode, deadline: float
    ) -> LayerFile:
        if file.pieces is not None:
            return self._open_arriving(repository, layer, file.size, file.pieces, deadline)
        index = self.index(repository, layer, deadline)
        make = partial(self._open_archive, repository, layer, index)
        key = (repository, _key(layer))
        archive = self._archives.get(key, make, deadline)
        return LayerFile(
            partial(index.pieces, file.id), file.size, archive, partial(self._drop, key)
        )

    def close(self) -> None:
        """Stop reading layers; waiters get an error."""
        self._closed.set()
        self._indexes.close()
        self._archives.close()
        with self._lock:
            arrivals = list(self._arrivals.values())
        for arrival in arrivals:
            arrival.rest()

    def _drop(self, key: tuple[Repository, _Key], error: EpochfsError) -> None:
        if isinstance(error, ContentMismatch):
            self._distrusted.add(key)
        self._archives.drop(key)

    def _open_archive(
        self, repository: Repository, layer: Descriptor, index: LayerIndex
    ) -> Archive:
        compression = str(index.meta["compression"])
        open_blob = partial(self._blobs.open, repository, layer.digest, layer.size)
        precisely = partial(open_blob, precise=True)
        if (repository, _key(layer)) in self._distrusted:
            # A part of the blob came wrong and is in its download: only all of it is fetched anew.
            with closing(open_blob()) as blob:
                read_to_end(blob, 0)
            self._distrusted.discard((repository, _key(layer)))
        if compression == SPANS:
            return SpanArchive(_key(layer), index, precisely, self._chunks)
        if compression in (toc.ESTARGZ, toc.ZSTD_CHUNKED):
            return ChunkedArchive(layer.digest, compression, precisely, self._chunks)
        return open_archive(index, open_blob(), self._cache)

    def _maker(self, repository: Repository, layer: Descriptor) -> Callable[[], LayerIndex]:
        """Return what makes the index of a layer that is wanted whole."""
        arrival = self._arrival(layer) if self._unverified else None
        if arrival is not None:
            arrival.want_all()
        return partial(self._make_index, repository, layer, arrival)

    def _make_index(
        self, repository: Repository, layer: Descriptor, arrival: Arrival | None
    ) -> LayerIndex:
        write = partial(
            write_index, self._blobs, self._source, repository, layer, self._closed, arrival
        )
        try:
            index = stored_index(self._cache, layer, write)
            self._shown.discard(_key(layer))
            return index
        except ContentMismatch:
            if _key(layer) in self._shown:
                log.warning("files of %s were shown, and it is wrong", layer.digest)
            raise
        finally:
            self._archives.drop(_arriving_key(repository, layer))

    # ---- layers that still arrive ------------------------------------------------------------

    def _arrival(self, layer: Descriptor) -> Arrival:
        key = _key(layer)
        with self._lock:
            arrival = Arrival(self._indexes.lacks_threads, partial(self._shown.add, key))
            return self._arrivals.setdefault(key, arrival)

    def _arrived(
        self, repository: Repository, layer: Descriptor, deadline: float, path: bytes
    ) -> Inode | Seen | LayerIndex:
        """Return what has passed of a layer at a path, or the index if all has."""
        while True:
            arrival = self._arrival(layer)
            make = partial(self._make_index, repository, layer, arrival)
            making = self._indexes.begin(_key(layer), make)
            if isinstance(making, LayerIndex):
                return making
            found = arrival.wait_for(path, making.done, deadline)
            if found is not None:
                return found
            with suppress(Rested):
                return making.outcome()

    def _open_arriving(
        self,
        repository: Repository,
        layer: Descriptor,
        size: int,
        pieces: tuple[Piece, ...],
        deadline: float,
    ) -> LayerFile:
        def check() -> None:
            if self._blobs.was_spoiled(layer.digest):
                raise ContentMismatch(
                    f"files of {layer.digest} were shown, and its bytes are wrong"
                )

        def make() -> Archive:
            blob = self._blobs.open(repository, layer.digest, layer.size)
            return open_arriving(blob, self._arrival(layer).points, check)

        key = _arriving_key(repository, layer)
        archive = self._archives.get(key, make, deadline)
        return LayerFile(lambda *_: pieces, size, archive, partial(self._drop, key))


def _key(layer: Descriptor) -> _Key:
    return layer.digest, layer.size, toc.voucher(layer)


def _arriving_key(repository: Repository, layer: Descriptor) -> tuple[Repository, _Key]:
    """Return the key of an archive that nothing vouches for."""
    return repository, (layer.digest, layer.size, "")


def _weight(index: LayerIndex) -> int:
    """How many indexes on disk an index counts as: more if it is in memory."""
    return min(_MAX_INDEXES, 1 + index.resident_bytes // _RESIDENT_BYTES)
