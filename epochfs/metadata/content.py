"""Caches what is known by digest: manifests, configs, the blobs in manifests, and referrers.

A digest's content never changes, so it is kept as long as there is room. Access can change: once
the registry denies a manifest or blob of a repository, everything fetched from that repository is
forgotten. A denied listing says nothing about them.

Referrers do change, and are listed by the referrers call or by the fallback tag. A registry without
the call answers 404 or refuses it in some other way; like other clients, this one then reads the
tag (OCI Distribution specification 1.1, "Referrers Tag Schema"). The refusal is remembered for as
long as a listing is, so that a walk asks once and not once a manifest. A refusal from a repository
that answered before is an error: its referrers are not known to be gone.

Locks: `Documents._lock` guards `_blobs`, `Referrers._lock` guards `_uncalled`; no I/O happens under
either.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from cachetools import LRUCache, TTLCache

from epochfs.errors import Denied, NotFound, ProtocolViolation, TooLarge, Unavailable, Unsupported
from epochfs.metadata.source import NO_REFERRERS_CALL, Answer, Facts, Source, answers_referrers
from epochfs.metadata.ttl_cache import CachePolicy, LruStore, TtlCache
from epochfs.oci.closure import named_blobs
from epochfs.oci.kinds import MAX_CONFIG_BYTES, SnapshotConfig, parse_config
from epochfs.oci.manifests import Descriptor, Document, Index
from epochfs.oci.names import ALGORITHMS, Digest, Repository, Tag, referrers_tag

log = logging.getLogger(__name__)

_MANIFEST_BYTES = 32 * 1024 * 1024
_PARSED_FACTOR = 4
_CONFIG_BYTES = 2 * MAX_CONFIG_BYTES
_MAX_BLOBS = 50_000
_MAX_DESCRIBED = 100_000
_MAX_REPOSITORIES = 10_000
_FOREVER = 10 * 365 * 86400.0
_ALL = None
"""Stands for every repository of the registry."""

V = TypeVar("V")

_Key = tuple[Repository, Digest]

Tagged = Callable[[Repository, Tag], Answer[Document | None]]
"""Returns the manifest under a tag; None where the repository has no such tag."""


class Documents:
    """Caches the documents of one registry, each of at most `limit` bytes; thread-safe."""

    def __init__(self, source: Source, limit: int, policy: CachePolicy) -> None:
        self._source = source
        self._limit = limit
        self._lock = threading.Lock()
        self.moment = 0
        """Counts how often something was forgotten or removed; read without the lock."""
        self._blobs: LRUCache[_Key, Descriptor] = LRUCache(_MAX_BLOBS)
        lasting = replace(policy, ttl=_FOREVER, limit=_MANIFEST_BYTES)
        self._manifests = _Cache(
            "manifest",
            self._fetch_manifest,
            lasting,
            self.forget,
            lambda document: _PARSED_FACTOR * document.size,
        )
        self._described = _Cache(
            "manifest", self._fetch_description, replace(lasting, limit=_MAX_DESCRIBED), self.forget
        )
        self._configs = _Cache(
            "config",
            self._fetch_config,
            replace(lasting, limit=_CONFIG_BYTES),
            self.forget,
            lambda config: config.weight,
        )

    def manifest(self, repository: Repository, digest: Digest) -> Document:
        """Return a manifest, hashed and parsed; its descriptors are known from then on."""
        return self._manifests.get((repository, digest))

    def knows_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Whether `manifest` would take no request."""
        return self._manifests.peek((repository, digest)) is not None

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

    def known_description(self, repository: Repository, digest: Digest) -> Descriptor | None:
        """Describe a manifest, if that takes no request."""
        return self._described.peek((repository, digest))

    def keep(self, repository: Repository, document: Document, moment: int) -> None:
        """Keep a manifest that was fetched under a tag, asked for at a `moment`.

        It is not kept if anything was forgotten since then: that may have been this.
        """
        with self._lock:
            is_news = moment == self.moment
        if is_news:
            self.wrote(repository, document)

    def wrote(self, repository: Repository, document: Document) -> Descriptor:
        """Note that a repository has a manifest; describe it."""
        key, described = (repository, document.digest), _described(document)
        self._manifests.put(key, document)
        self._described.put(key, described)
        self._name_blobs(repository, document)
        return described

    def removed_manifest(
        self, repository: Repository, digest: Digest, absent: NotFound
    ) -> Document | None:
        """Note that a repository no longer has a manifest; return it if it was known."""
        with self._lock:
            self.moment += 1
        document = self._manifests.last((repository, digest))
        self._manifests.put_absent((repository, digest), absent)
        self._described.put_absent((repository, digest), absent)
        return document

    def removed_blob(self, repository: Repository, digest: Digest, absent: NotFound) -> None:
        """Note that a repository no longer has a blob, whatever names it."""
        with self._lock:
            self._blobs.pop((repository, digest), None)
        self._configs.put_absent((repository, digest), absent)

    def forget(self, key: tuple[Repository, object]) -> None:
        """Forget a key's repository, which the registry denies."""
        repository = key[0]
        with self._lock:
            self.moment += 1
        for cache in (self._manifests, self._described, self._configs):
            cache.forget(repository)
        with self._lock:
            for known in [known for known in self._blobs if known[0] == repository]:
                del self._blobs[known]

    def _fetch_manifest(self, key: _Key) -> Answer[Document]:
        document = self._source.get_manifest(*key, self._limit)
        self._name_blobs(key[0], document)
        return Answer(document)

    def _name_blobs(self, repository: Repository, document: Document) -> None:
        with self._lock:
            for descriptor in named_blobs(document.readable_view):
                self._blobs[repository, descriptor.digest] = descriptor

    def _fetch_description(self, key: _Key) -> Answer[Descriptor]:
        try:
            document = self._manifests.get(key)
        except TooLarge:
            return self._source.resolve(*key)
        return Answer(_described(document))

    def _fetch_config(self, key: _Key) -> Answer[SnapshotConfig]:
        return Answer(parse_config(self._source.read_blob(*key, MAX_CONFIG_BYTES)))


def _described(document: Document) -> Descriptor:
    return Descriptor(document.own_type, document.digest, document.size)


class _Cache(TtlCache[_Key, V]):
    """A TtlCache that can forget one repository."""

    def __init__(
        self,
        name: str,
        fetch: Callable[[_Key], Answer[V]],
        policy: CachePolicy,
        denied: Callable[[_Key], None] = lambda _: None,
        size_of: Callable[[V], float] | None = None,
    ) -> None:
        self._lru = LruStore[_Key, V](policy.limit, size_of)
        super().__init__(name, fetch, policy, store=self._lru, denied=denied)

    def forget(self, repository: Repository) -> None:
        """Forget a repository's entries, and do not keep what is being fetched from it now."""
        self.forget_where(lambda key: key[0] == repository)

    def forget_where(self, match: Callable[[_Key], bool]) -> None:
        """Forget the same of the keys that match."""
        with self._lock:
            self._lru.drop_where(match)
            self._flights.forget(match)


class Referrers:
    """Caches the referrers in one registry. Any thread may call anything."""

    def __init__(self, source: Source, tagged: Tagged, policy: CachePolicy, facts: Facts) -> None:
        self._source = source
        self._tagged = tagged
        self._facts = facts
        self._lock = threading.Lock()
        self._uncalled: TTLCache[Repository | None, None] = TTLCache(_MAX_REPOSITORIES, policy.ttl)
        self._cache = _Cache(
            "referrers of", self._fetch, policy, size_of=lambda found: 1 + len(found)
        )

    def of(self, repository: Repository, digest: Digest) -> tuple[Digest, ...]:
        """Return what refers to a manifest, sorted."""
        return self.answer(repository, digest).value

    def known(self, repository: Repository, digest: Digest) -> tuple[Digest, ...] | None:
        """Return the same if it takes no request."""
        return self._cache.peek((repository, digest))

    def answer(self, repository: Repository, digest: Digest) -> Answer[tuple[Digest, ...]]:
        """Return the same with until when it is used."""
        return self._cache.answer((repository, digest))

    def changed(self, repository: Repository, digest: Digest) -> None:
        """Ask anew what refers to a manifest."""
        self._cache.expire((repository, digest))

    def retagged(self, repository: Repository, tag: Tag) -> None:
        """Ask anew what refers to a manifest whose referrers may be listed under this tag."""
        if tag.name.partition("-")[0] in ALGORITHMS:
            self._cache.forget_where(
                lambda key: key[0] == repository and referrers_tag(key[1]) == tag
            )

    def clear(self) -> None:
        """Forget everything but the facts."""
        self._cache.clear()
        with self._lock:
            self._uncalled.clear()

    def _fetch(self, key: _Key) -> Answer[tuple[Digest, ...]]:
        found = self._ask(*key)
        # A manifest that refers to itself cannot be, and would make a loop of links.
        others = {one.digest for one in found.value} - {key[1]}
        return Answer(tuple(sorted(others)), found.is_current)

    def _ask(self, repository: Repository, digest: Digest) -> Answer[Sequence[Descriptor]]:
        answers = answers_referrers(repository.name)
        with self._lock:
            uncalled = repository in self._uncalled or _ALL in self._uncalled
        if not uncalled or self._facts.known(answers):
            try:
                found = self._source.referrers(repository, digest)
            except Unsupported as error:
                self._refused(repository, error)
            except Unavailable:
                if not self._facts.known(NO_REFERRERS_CALL) or self._facts.known(answers):
                    raise
            else:
                self._facts.learn(answers)
                return found
        tagged = self._tagged(repository, referrers_tag(digest))
        view = tagged.value.readable_view if tagged.value is not None else None
        # Anybody may use the tag for something else, which then is no list of referrers.
        return Answer(view.manifests if isinstance(view, Index) else (), tagged.is_current)

    def _refused(self, repository: Repository, error: Unsupported) -> None:
        """Note that there is no referrers call; raises where the call answered before."""
        if self._facts.known(answers_referrers(repository.name)):
            if isinstance(error.__cause__, Denied):
                raise error.__cause__
            raise ProtocolViolation(f"{error}: the registry listed referrers before") from error
        log.debug("referrers in %s are looked for by tag: %s", repository, error)
        # Who denies it may do so for this repository alone.
        where = repository if isinstance(error.__cause__, Denied) else _ALL
        if where is _ALL:
            self._facts.learn(NO_REFERRERS_CALL)
        with self._lock:
            self._uncalled[where] = None
