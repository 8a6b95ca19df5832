"""Lists the referrers of a manifest, by the referrers call or by the fallback tag.

A registry without the call answers 404 or refuses it in some other way; like other clients, this
one then reads the tag (OCI Distribution specification 1.1, "Referrers Tag Schema"). The refusal is
remembered for as long as a listing is, so that a walk asks once and not once a manifest. A refusal
from a repository that answered before is an error: its referrers are not known to be gone.

Locks: `Referrers._lock` guards `_uncalled`; no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from cachetools import TTLCache

from epochfs.errors import Denied, ProtocolViolation, Unavailable, Unsupported
from epochfs.metadata.facts import NO_REFERRERS_CALL, Facts, answers_referrers
from epochfs.metadata.source import Source
from epochfs.metadata.ttl_cache import CachePolicy, TtlCache
from epochfs.oci.manifests import Descriptor, Document, Index
from epochfs.oci.names import Digest, Repository, Tag, referrers_tag

log = logging.getLogger(__name__)

_MAX_REPOSITORIES = 10_000
_ALL = None
"""Stands for every repository of the registry."""

Tagged = Callable[[Repository, Tag], Document | None]
"""Returns the manifest under a tag; None where the repository has no such tag."""


class Referrers:
    """Caches the referrers in one registry. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        tagged: Tagged,
        policy: CachePolicy,
        facts: Facts,
        recalled: Callable[[], int],
    ) -> None:
        self._source = source
        self._tagged = tagged
        self._facts = facts
        self._lock = threading.Lock()
        self._uncalled: TTLCache[Repository | None, None] = TTLCache(_MAX_REPOSITORIES, policy.ttl)
        self._cache = TtlCache(
            "referrers of",
            self._fetch,
            policy,
            size_of=lambda found: 1 + len(found),
            recalled=recalled,
        )

    def of(self, repository: Repository, digest: Digest) -> tuple[Digest, ...]:
        """Return what refers to a manifest, sorted."""
        return self._cache.get((repository, digest))

    def clear(self) -> None:
        """Forget everything but the facts."""
        self._cache.clear()
        with self._lock:
            self._uncalled.clear()

    def _fetch(self, key: tuple[Repository, Digest]) -> tuple[Digest, ...]:
        repository, digest = key
        # A manifest that refers to itself cannot be, and would make a loop of links.
        return tuple(sorted({one.digest for one in self._ask(repository, digest)} - {digest}))

    def _ask(self, repository: Repository, digest: Digest) -> Sequence[Descriptor]:
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
        document = self._tagged(repository, referrers_tag(digest))
        view = document.readable_view if document is not None else None
        # Anybody may use the tag for something else, which then is no list of referrers.
        return view.manifests if isinstance(view, Index) else ()

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
