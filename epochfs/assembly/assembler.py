"""Opens a file that is put together from blobs."""

from __future__ import annotations

from epochfs.assembly.frames import Frames, FramesHandle
from epochfs.assembly.holes import Readable, Sparse, SparseHandle
from epochfs.assembly.joined import AssembledHandle, Assembly
from epochfs.assembly.unpacking import Unpacker
from epochfs.blobcache import BlobCache
from epochfs.blobs import BlobStore
from epochfs.names import Repository

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
