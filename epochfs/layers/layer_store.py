"""The layers of images: each one's index (`indexfiles`), and a way to its bytes."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from functools import partial

from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.layers.archive import open_archive
from epochfs.layers.build import WITH_TOC, build, voucher
from epochfs.layers.chunks import ChunkCache, ChunkPieces, LayerFile, Pieces, TarPieces
from epochfs.layers.index import Inode, LayerIndex
from epochfs.layers.indexing import IndexFiles
from epochfs.layers.shelf import Shelf
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository

_MAX_INDEXES = 512
_MAX_ARCHIVES = 8
_RESIDENT_BYTES = 256 << 10
"""An index in memory takes the place of one more for so many of its bytes: 128 MiB in all."""

_Key = tuple[Digest, int, str]
"""An index in memory: of what blob, of how many bytes, and what vouches for it."""


class Layers:
    """The layers of images. Any thread may call anything.

    The caller has a manifest of the repository that names the layer, which is the proof that the
    repository may see it.
    """

    def __init__(self, blobs: BlobStore, cache: BlobCache) -> None:
        self._blobs = blobs
        self._cache = cache
        self._files = IndexFiles(cache)
        self._ending = threading.Event()
        self._indexes: Shelf[_Key, LayerIndex] = Shelf("layer", _MAX_INDEXES, _weight)
        self._opened: Shelf[tuple[Repository, _Key], Pieces] = Shelf("archive", _MAX_ARCHIVES)
        self._chunks = ChunkCache()

    def begin(self, repository: Repository, layers: Iterable[Descriptor]) -> None:
        """Begin to read the indexes of layers that will all be asked for."""
        for layer in layers:
            self._indexes.begin(_key(layer), partial(self._make_index, repository, layer))

    def index(self, repository: Repository, layer: Descriptor, deadline: float) -> LayerIndex:
        """Return the index of a layer. Raises DeadlineExceeded (`deadline` is monotonic)."""
        make = partial(self._make_index, repository, layer)
        return self._indexes.get(_key(layer), make, deadline)

    def open(
        self, repository: Repository, layer: Descriptor, file: Inode, deadline: float
    ) -> LayerFile:
        """Open a file of a layer."""
        index = self.index(repository, layer, deadline)
        make = partial(self._open_pieces, repository, layer, index)
        key = (repository, _key(layer))
        pieces = self._opened.get(key, make, deadline)
        return LayerFile(index, file.id, file.size, pieces, partial(self._opened.drop, key))

    def close(self) -> None:
        """Give up what is being read; who waits for it gets an error."""
        self._ending.set()
        self._indexes.close()
        self._opened.close()

    def _open_pieces(self, repository: Repository, layer: Descriptor, index: LayerIndex) -> Pieces:
        compression = str(index.meta["compression"])
        if compression in WITH_TOC:
            open_blob = partial(self._open_blob, repository, layer, precise=True)
            return ChunkPieces(layer.digest, compression, open_blob, self._chunks)
        blob = self._open_blob(repository, layer)
        return TarPieces(open_archive(index, blob, self._cache))

    def _open_blob(
        self, repository: Repository, layer: Descriptor, *, precise: bool = False
    ) -> BlobHandle:
        return self._blobs.open(repository, layer.digest, layer.size, precise=precise)

    def _make_index(self, repository: Repository, layer: Descriptor) -> LayerIndex:
        open_blob = partial(self._open_blob, repository, layer)
        return self._files.get(layer, lambda writer: build(layer, open_blob, writer, self._ending))


def _key(layer: Descriptor) -> _Key:
    return layer.digest, layer.size, voucher(layer)


def _weight(index: LayerIndex) -> int:
    """How many of the indexes that are kept open one in memory stands for."""
    return min(_MAX_INDEXES, 1 + index.resident_bytes // _RESIDENT_BYTES)
