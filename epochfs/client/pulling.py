"""What it takes to read a registry: `RegistryClient`, or one that stands in front of it."""

from __future__ import annotations

from typing import Protocol

from epochfs.manifests import Descriptor, Document
from epochfs.names import Digest, Reference, Repository
from epochfs.transport import BlobStream


class PullClient(Protocol):
    """The reading methods of `RegistryClient`, with parsed names; they raise what those do."""

    def catalog(self) -> list[str]:
        """Return the names of all repositories."""

    def list_tags(self, name: Repository) -> list[str]:
        """Return a repository's tags."""

    def resolve(self, name: Repository, reference: Reference) -> Descriptor:
        """Describe what a tag names now, or what a digest does."""

    def get_manifest(
        self, name: Repository, reference: Digest, limit: int | None = None
    ) -> Document:
        """Return a manifest of at most `limit` bytes."""

    def referrers(self, name: Repository, digest: Digest) -> list[Descriptor]:
        """Return what refers to a manifest; raises Unsupported where nobody keeps count."""

    def blob_size(self, name: Repository, digest: Digest) -> int:
        """Return a blob's size in bytes."""

    def read_blob(self, name: Repository, digest: Digest, limit: int) -> bytes:
        """Return all of a blob of at most `limit` bytes, hashed."""

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> BlobStream:
        """Open a blob for reading, from byte `start` to before byte `end`."""

    def distrust_mirrors(self, digest: Digest) -> bool:
        """Take note that wrong bytes came of a blob; return whether a mirror may have sent them."""
