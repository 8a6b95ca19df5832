"""Stores the indexes of layers in the cache: written once, then shared by all mounts.

::

    <cache>/v1/layers/<algorithm>/<encoded>.<voucher>.<format>    the index of a layer

An index is vouched for by the layer's digest, and one made from a table of contents also by the
annotations in one manifest. Another manifest's annotations make another index of the same blob
(`build.voucher`).

An index is written under a name of its own, synced, and only then given its name, so that an
index that is there is complete. It is locked (flock) while it is written; of two mounts that write
the same one, the first to finish keeps it, and the other uses that. When all of them take more than
a tenth of the maximum cache size, the least recently used go. If the disk takes none, an index is
kept in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
from collections.abc import Callable

from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import LAYERS, READ_FLAGS, is_ours
from epochfs.cache.quota import cached_files, remove_unused, shrink
from epochfs.errors import CacheFailure
from epochfs.layers.build import voucher
from epochfs.layers.index import FORMAT, LayerIndex, open_index
from epochfs.layers.index_writer import IndexWriter
from epochfs.oci.manifests import Descriptor

log = logging.getLogger(__name__)

Write = Callable[[IndexWriter], None]
"""Writes a whole index."""

_SHARE = 10
_ATTEMPTS = 3
_NEW_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class IndexFiles:
    """The stored indexes. Any thread may call anything."""

    def __init__(self, cache: BlobCache) -> None:
        self._cache = cache

    def get(self, layer: Descriptor, write: Write) -> LayerIndex:
        """Return the index of a layer, written now if there is none. Raises what `write` does."""
        for _ in range(_ATTEMPTS):
            try:
                return self._found_or_made(layer, write)
            except FileNotFoundError as error:
                log.debug("another process cleared the indexes of layers away: %s", error)
            except (OSError, CacheFailure) as error:
                self._cache.directory.report(error)
                if not self._cache.quota.evict_some():
                    break
        return _in_memory(write)

    def _found_or_made(self, layer: Descriptor, write: Write) -> LayerIndex:
        name = f"{layer.digest.encoded}.{voucher(layer)}.{FORMAT}"
        with self._cache.directory.opened(LAYERS, layer.digest.algorithm) as directory:
            found = _open(directory, name)
            if found is None:
                share = self._cache.quota.size_limit // _SHARE
                files = cached_files(directory)
                shrink(share, files, lambda file: remove_unused(directory, file.name))
                found = _make(directory, name, write)
        return found


def _in_memory(write: Write) -> LayerIndex:
    writer = IndexWriter(":memory:")
    try:
        write(writer)
        return LayerIndex(writer.finish())
    except BaseException:
        writer.abandon()
        raise


def _make(directory: int, name: str, write: Write) -> LayerIndex:
    """Write an index, sync it, and give it its name, unless another process has done so."""
    draft = f"{name}.{secrets.token_hex(8)}"
    fd = os.open(draft, _NEW_FLAGS, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        path = f"/proc/self/fd/{directory}/{draft}"
        writer = IndexWriter(path)
        try:
            write(writer)
            writer.finish().close()
        except BaseException:
            writer.abandon()
            raise
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
    """Open a complete index; None where there is none that we wrote."""
    try:
        fd = os.open(name, READ_FLAGS, dir_fd=directory)
    except FileNotFoundError:
        return None
    try:
        if not is_ours(os.fstat(fd)):
            return None
        with contextlib.suppress(OSError):  # a disk that cannot be written to
            os.utime(fd)
        return open_index(f"/proc/self/fd/{fd}")
    except CacheFailure as error:
        if os.fstat(fd).st_nlink:
            log.warning("the index of a layer is damaged and made anew: %s", error)
        return None  # SQLite opens no file whose name was taken away meanwhile
    finally:
        os.close(fd)
