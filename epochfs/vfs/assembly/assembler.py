"""Opens a file that is put together from blobs."""

from __future__ import annotations

from epochfs.blobs.store import BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.oci.names import Repository
from epochfs.vfs.assembly.frames import Frames, FramesHandle
from epochfs.vfs.assembly.holes import Readable, Sparse, SparseHandle
from epochfs.vfs.assembly.joined import AssembledHandle, Assembly
from epochfs.vfs.assembly.unpacking import Unpacker

Made = Assembly | Frames | Sparse
"""What a file is made of: its `size` in bytes, and the `digests` of the blobs that it is read from.
"""


class Assembler:
    """Opens such files. `timeout` bounds each read of what is compressed, in seconds."""

    def __init__(self, blobs: BlobStore, cache: BlobCache, timeout: float) -> None:
        self._blobs = blobs
        self._unpacker = Unpacker(blobs, cache)
        self._timeout = timeout

    def open(self, repository: Repository, made: Made) -> Readable:
        """Open a file made of a repository's blobs; nothing is fetched before it is read."""
        if isinstance(made, Sparse):
            return SparseHandle(made.holes, self.open(repository, made.stored))
        if isinstance(made, Frames):
            return FramesHandle(self._unpacker, repository, made, self._timeout)
        return AssembledHandle(self._blobs, repository, made)

    def close(self) -> None:
        """Give up what is being decompressed; who waits for it gets an error."""
        self._unpacker.close()
