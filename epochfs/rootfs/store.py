"""The layers of images: each one's index, and a way to its bytes.

::

    <cache>/v1/layers/<algorithm>/<encoded>.<voucher>.<format>    the index of a layer

What vouches for an index is the layer's digest, and for a table of contents also annotations in one
manifest. Another manifest's, of another repository or registry, make another index of the same blob
(`build.voucher`).

An index is written without a name in that directory, synced, and only then given its name, so
that being there is being complete. Those used longest ago are removed where all together take more
than a tenth of the cache's size.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
from collections.abc import Iterable
from functools import partial

from epochfs.blobcache import READ_FLAGS, BlobCache
from epochfs.blobs import BlobHandle, BlobStore
from epochfs.cachedir import LAYERS, is_ours
from epochfs.errors import CacheFailure
from epochfs.manifests import Descriptor
from epochfs.names import Digest, Repository
from epochfs.rootfs.archive import open_archive
from epochfs.rootfs.build import WITH_TOC, build, voucher
from epochfs.rootfs.content import ChunkCache, ChunkPieces, LayerFile, Pieces, TarPieces
from epochfs.rootfs.layerindex import FORMAT, Inode, LayerIndex, open_index
from epochfs.rootfs.shelf import Shelf

log = logging.getLogger(__name__)

_MAX_INDEXES = 512
_MAX_ARCHIVES = 8
_SHARE = 10

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
        self._ending = threading.Event()
        self._indexes: Shelf[_Key, LayerIndex] = Shelf("layer", _MAX_INDEXES)
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
        name = f"{layer.digest.encoded}.{voucher(layer)}.{FORMAT}"
        try:
            with self._cache.directory.opened(LAYERS, layer.digest.algorithm) as directory:
                found = _open(directory, name)
                if found is None:
                    _make_room(directory, self._cache.room.size_limit // _SHARE)
                    self._build(repository, layer, directory, name)
                    found = _open(directory, name)
        except OSError as error:
            raise CacheFailure(f"keeping the index of a layer: {error.strerror}") from error
        if found is None:
            raise CacheFailure("the index of a layer went away")
        return found

    def _build(self, repository: Repository, layer: Descriptor, directory: int, name: str) -> None:
        """Write an index, sync it, and give it its name."""
        draft = f"{name}.{secrets.token_hex(8)}"
        fd = os.open(
            draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
        try:
            open_blob = partial(self._open_blob, repository, layer)
            build(layer, open_blob, f"/proc/self/fd/{directory}/{draft}", self._ending)
            os.fsync(fd)
            os.replace(draft, name, src_dir_fd=directory, dst_dir_fd=directory)
            os.fsync(directory)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft, dir_fd=directory)
            raise
        finally:
            os.close(fd)


def _key(layer: Descriptor) -> _Key:
    return layer.digest, layer.size, voucher(layer)


def _open(directory: int, name: str) -> LayerIndex | None:
    """Open a complete index; None where there is none that we wrote."""
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=directory)
    except OSError:
        return None
    try:
        if not is_ours(os.fstat(fd)):
            return None
        os.utime(fd)
        return open_index(f"/proc/self/fd/{fd}")
    except CacheFailure as error:
        log.warning("the index of a layer is damaged and made anew: %s", error)
        return None
    finally:
        os.close(fd)


def _make_room(directory: int, limit: int) -> None:
    """Remove the indexes used longest ago until all together are within `limit` bytes."""
    with os.scandir(directory) as found:
        files = [(file.name, file.stat(follow_symlinks=False)) for file in found]
    total = sum(status.st_blocks * 512 for _, status in files)
    for name, status in sorted(files, key=lambda file: file[1].st_mtime):
        if total <= limit:
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=directory)
        total -= status.st_blocks * 512
