"""Caches the documents that digests name: manifests and configs, and the blobs in manifests.

A digest's content never changes, so a document is kept as long as there is room. Access can change:
once the registry denies a manifest or blob of a repository, everything fetched from that repository
is forgotten. A denied listing says nothing about them.

Locks: `Documents._lock` guards `_blobs`; no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from cachetools import LRUCache

from epochfs.errors import CredentialsUnavailable, Denied, TooLarge
from epochfs.metadata.source import Source
from epochfs.metadata.ttl_cache import CachePolicy, LruStore, TtlCache
from epochfs.oci.closure import named_blobs
from epochfs.oci.kinds import MAX_CONFIG_BYTES, SnapshotConfig, parse_config
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Repository

_MANIFEST_BYTES = 32 * 1024 * 1024
_PARSED_FACTOR = 4
_CONFIG_BYTES = 2 * MAX_CONFIG_BYTES
_MAX_BLOBS = 50_000
_MAX_DESCRIBED = 100_000
_FOREVER = 10 * 365 * 86400.0

V = TypeVar("V")

_Key = tuple[Repository, Digest]


class Documents:
    """Caches the documents of one registry, each of at most `limit` bytes.

    Any thread may call anything.
    """

    def __init__(self, source: Source, limit: int, policy: CachePolicy) -> None:
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self._blobs: LRUCache[_Key, Descriptor] = LRUCache(_MAX_BLOBS)
        lasting = replace(policy, ttl=_FOREVER, limit=_MANIFEST_BYTES)
        self._manifests = _Cache(
            "manifest",
            self._fetch_manifest,
            lasting,
            lambda document: _PARSED_FACTOR * document.size,
        )
        self._described = _Cache(
            "manifest", self._fetch_description, replace(lasting, limit=_MAX_DESCRIBED)
        )
        self._configs = _Cache(
            "config",
            self._fetch_config,
            replace(lasting, limit=_CONFIG_BYTES),
            lambda config: config.weight,
        )

    def manifest(self, repository: Repository, digest: Digest) -> Document:
        """Return a manifest, hashed and parsed; its descriptors are known from then on."""
        return self._manifests.get((repository, digest))

    def describe(self, repository: Repository, digest: Digest) -> Descriptor:
        """Describe a manifest; its media type is the document's own word (`Document.own_type`)."""
        return self._described.get((repository, digest))

    def snapshot_config(self, repository: Repository, digest: Digest) -> SnapshotConfig:
        """Return a blob as the config of a snapshot, hashed and parsed; raises TooLarge."""
        return self._configs.get((repository, digest))

    def named_blob(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Describe a blob as a manifest of the repository does, if one is known to name it."""
        with self._lock:
            return self._blobs.get((repository, digest))

    @contextlib.contextmanager
    def unless_denied(self, repository: Repository) -> Iterator[None]:
        """Forget the repository if the registry denies what is asked for in this context."""
        try:
            yield
        except CredentialsUnavailable:
            raise  # nobody was asked
        except Denied:
            self._forget(repository)
            raise

    def _forget(self, repository: Repository) -> None:
        for cache in (self._manifests, self._described, self._configs):
            cache.forget(repository)
        with self._lock:
            for key in [key for key in self._blobs if key[0] == repository]:
                del self._blobs[key]

    def _fetch_manifest(self, key: _Key) -> Document:
        repository, digest = key
        with self.unless_denied(repository):
            document = self._source.get_manifest(repository, digest, self._limit)
        if document.readable_view is not None:
            with self._lock:
                for descriptor in named_blobs(document.readable_view):
                    self._blobs[repository, descriptor.digest] = descriptor
        return document

    def _fetch_description(self, key: _Key) -> Descriptor:
        try:
            document = self._manifests.get(key)
        except TooLarge:
            with self.unless_denied(key[0]):
                return self._source.resolve(*key)
        return Descriptor(document.own_type, document.digest, document.size)

    def _fetch_config(self, key: _Key) -> SnapshotConfig:
        repository, digest = key
        with self.unless_denied(repository):
            raw = self._source.read_blob(repository, digest, MAX_CONFIG_BYTES)
        return parse_config(raw)


class _Cache(TtlCache[_Key, V]):
    """A TtlCache that can forget one repository."""

    def __init__(
        self,
        name: str,
        fetch: Callable[[_Key], V],
        policy: CachePolicy,
        size_of: Callable[[V], float] | None = None,
    ) -> None:
        self._lru = LruStore[_Key, V](policy.limit, size_of)
        super().__init__(name, fetch, policy, store=self._lru)

    def forget(self, repository: Repository) -> None:
        """Forget a repository's entries, and do not keep what is being fetched from it now."""
        with self._lock:
            self._lru.drop_where(lambda key: key[0] == repository)
            self._flights.forget(lambda key: key[0] == repository)
