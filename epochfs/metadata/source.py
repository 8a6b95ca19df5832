"""What names and documents come from: a registry, or an OCI image layout on disk.

`listings` asks a `Source` and need not know which of the two it is, nor whether another stands in
front of it (`remembering`). The methods are those of `RegistryClient`, where each is described.
"""

from __future__ import annotations

from typing import Protocol

from epochfs.client.transport import BlobStream
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Reference, Repository


class Source(Protocol):
    """Repositories, tags and manifests to read. Any thread may call anything."""

    def catalog(self) -> list[str]:
        """Return the names of all repositories, which are not to be trusted."""

    def list_tags(self, name: Repository, /) -> list[str]:
        """Return a repository's tags, which are not to be trusted."""

    def resolve(self, name: Repository, reference: Reference, /) -> Descriptor:
        """Describe the manifest that a reference names now."""

    def get_manifest(
        self, name: Repository, digest: Digest, limit: int | None = None, /
    ) -> Document:
        """Return a manifest, hashed; raises TooLarge for one over `limit` bytes."""

    def referrers(self, name: Repository, digest: Digest, /) -> list[Descriptor]:
        """Return what refers to a manifest; raises Unsupported where nobody keeps count."""

    def blob_size(self, name: Repository, digest: Digest, /) -> int:
        """Return a blob's size in bytes; that it is told proves that the blob may be read."""

    def read_blob(self, name: Repository, digest: Digest, limit: int, /) -> bytes:
        """Return all of a blob, hashed; raises TooLarge for one over `limit` bytes."""


class PullClient(Source, Protocol):
    """A source whose blobs arrive as streams: a registry."""

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None, /
    ) -> BlobStream:
        """Open a blob for reading, from byte `start` to before byte `end`."""

    def distrust_mirrors(self, digest: Digest, /) -> bool:
        """Take note that wrong bytes came of a blob; return whether a mirror may have sent them."""
