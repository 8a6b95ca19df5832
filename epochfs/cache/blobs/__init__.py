"""Content-addressed blobs on the local disk: stage, verify elsewhere, sync, rename, evict.

::

    <directory>/v1/blobs/<algorithm>/<encoded>        complete and verified
    <directory>/v1/partial/<algorithm>/<encoded>      staged bytes, sparse
    <directory>/v1/partial/<algorithm>/<encoded>.map  which of those bytes were on disk at a sync

A file under `blobs/` has had its digest checked before it was renamed there, so its presence is
its proof. A map is written only after the bytes it names were synced. `cache.directory` decides
who may enter, and follows no planted link.

Several processes may share a directory. A file's `flock` tells who uses it: a reader of a complete
blob holds it shared, and eviction takes only what it can lock alone; the writer of a partial blob
holds it exclusively, and a second writer stages privately instead.

A cache that cannot store something raises CacheFailure, and the caller does without: cached blobs
stay readable, and others come from the registry each time.

From the bottom up: `blob_files` (single files and range maps), `descriptors`, `quota`,
`staged_blob`, `cached_blob`, `blob_cache`.
"""

from epochfs.cache.blobs.blob_cache import BlobCache
from epochfs.cache.blobs.blob_files import read_exactly
from epochfs.cache.blobs.cached_blob import CachedBlob
from epochfs.cache.blobs.descriptors import open_files_limit
from epochfs.cache.blobs.quota import BLOBS, PARTIAL, Entry
from epochfs.cache.blobs.staged_blob import StagedBlob

__all__ = [
    "BLOBS",
    "PARTIAL",
    "BlobCache",
    "CachedBlob",
    "Entry",
    "StagedBlob",
    "open_files_limit",
    "read_exactly",
]
