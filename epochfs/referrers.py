"""What refers to each manifest: from the registry's own call, or from a tag where it has none.

A registry without the call answers 404 for every manifest. That is remembered of a repository for
as long as a listing is, so that a walk asks once and not for each manifest again. Where there is
the call, a walk would wait for each answer; so once the manifests of a repository were listed, and
the referrers of one are asked for, those of all are begun in the background.

Locks: `Referrers._lock` guards `_uncalled` and `_listed`; no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from cachetools import LRUCache, TTLCache

from epochfs.batches import Ahead
from epochfs.errors import Unsupported
from epochfs.manifests import Descriptor, Document, Index
from epochfs.names import Digest, Repository, Tag, referrers_tag
from epochfs.source import Source
from epochfs.ttlcache import CachePolicy, TtlCache

log = logging.getLogger(__name__)

_MAX_REPOSITORIES = 10_000
_MAX_LISTED = 16

Tagged = Callable[[Repository, Tag], Document | None]
"""Returns the manifest under a tag; None where the repository has no such tag."""


class Referrers:
    """The referrers in one registry, remembered. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        tagged: Tagged,
        policy: CachePolicy,
        begin: Ahead,
        recalled: Callable[[], int],
    ) -> None:
        self._source = source
        self._begin = begin
        self._tagged = tagged
        self._lock = threading.Lock()
        self._uncalled: TTLCache[Repository, None] = TTLCache(_MAX_REPOSITORIES, policy.ttl)
        self._listed: LRUCache[Repository, Sequence[Digest]] = LRUCache(_MAX_LISTED)
        self._cache = TtlCache(
            "referrers of",
            self._fetch,
            policy,
            size_of=lambda found: 1 + len(found),
            recalled=recalled,
        )

    def expect(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Take note that these manifests were listed."""
        with self._lock:
            self._listed[repository] = sorted(digests)

    def of(self, repository: Repository, digest: Digest) -> tuple[Digest, ...]:
        """Return what refers to a manifest, sorted; a walk of those listed begins with it."""
        with self._lock:
            listed = self._listed.pop(repository, ())
        if self._cache.peek((repository, digest)) is None:
            self._begin(
                lambda one: self._cache.get((repository, one)),
                [one for one in listed if one != digest],
                f"referrers in {repository}",
            )
        return self._cache.get((repository, digest))

    def clear(self) -> None:
        """Forget everything."""
        self._cache.clear()
        with self._lock:
            self._uncalled.clear()
            self._listed.clear()

    def _fetch(self, key: tuple[Repository, Digest]) -> tuple[Digest, ...]:
        repository, digest = key
        # A manifest that refers to itself cannot be, and would make a loop of links.
        return tuple(sorted({one.digest for one in self._ask(repository, digest)} - {digest}))

    def _ask(self, repository: Repository, digest: Digest) -> Sequence[Descriptor]:
        with self._lock:
            uncalled = repository in self._uncalled
        if not uncalled:
            try:
                return self._source.referrers(repository, digest)
            except Unsupported as error:
                log.debug("referrers in %s are looked for by tag: %s", repository, error)
            with self._lock:
                self._uncalled[repository] = None
        document = self._tagged(repository, referrers_tag(digest))
        # Anybody may use the tag for something else, which then is no list of referrers.
        return document.view.manifests if document and isinstance(document.view, Index) else ()
