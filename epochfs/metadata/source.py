"""The interface of whatever serves names and documents: a registry, or an OCI image layout on disk.

`listings` need not know which of the two it reads, nor whether `offline` stands in front of it. The
methods are those of `RegistryClient`, which documents them.
"""

from __future__ import annotations

from typing import Protocol

from epochfs.client.transport import BlobStream
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Reference, Repository


class Source(Protocol):
    """Repositories, tags and manifests to read. Any thread may call anything."""

    def catalog(self) -> list[str]:
        """Return the names of all repositories, unvalidated."""

    def list_tags(self, name: Repository, /) -> list[str]:
        """Return a repository's tags, unvalidated."""

    def resolve(self, name: Repository, reference: Reference, /) -> Descriptor:
        """Describe the manifest that a reference names now."""

    def get_manifest(
        self, name: Repository, digest: Digest, limit: int | None = None, /
    ) -> Document:
        """Return a manifest, hashed; raises TooLarge for one over `limit` bytes."""

    def referrers(self, name: Repository, digest: Digest, /) -> list[Descriptor]:
        """Return a manifest's referrers; raises Unsupported where there is no such call."""

    def blob_size(self, name: Repository, digest: Digest, /) -> int:
        """Return a blob's size in bytes; an answer proves that the blob may be read."""

    def read_blob(self, name: Repository, digest: Digest, limit: int, /) -> bytes:
        """Return all of a blob, hashed; raises TooLarge for one over `limit` bytes."""


class PullClient(Source, Protocol):
    """A source whose blobs arrive as streams: a registry."""

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None, /
    ) -> BlobStream:
        """Open a blob for reading, from byte `start` to before byte `end`."""

    def distrust_mirrors(self, digest: Digest, /) -> bool:
        """Report wrong bytes of a blob; return whether a mirror may have sent them."""
