"""Follows tags and manifests to all that they lead to, and remembers it until that may change.

What is found is one answer made of many, each with its own end: it is used until the first of them
ends. It is dropped before that where access is denied, or where this process changed something.
Nothing incomplete is remembered, and nothing that the registry did not have: it may have it soon.

Locks: `Closures._lock` guards what is remembered; no I/O happens under it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from cachetools import LRUCache, TTLCache

from epochfs.config import ListingOptions
from epochfs.errors import EpochfsError, NotFound, ProtocolViolation, UnconfirmedNotFound
from epochfs.metadata.content import Documents, Referrers
from epochfs.metadata.parallel import InParallel, in_turn
from epochfs.metadata.repositories import Repositories
from epochfs.metadata.source import Answer
from epochfs.metadata.ttl_cache import Resolved
from epochfs.oci.closure import Fetched, Reachable, Step, Walk
from epochfs.oci.names import Digest, Repository, Tag

_MAX_CLOSURES = 16

_MOST_DIGESTS = 100_000
"""How many digests of all repositories are remembered as reachable: each takes some 100 bytes."""

_NEVER = float("-inf")


@dataclass(slots=True)
class _Known:
    """What the `tags` of a repository lead to, used `until` a monotonic time.

    It holds for a `moment` of what is known by digest (`Documents.moment`). `asked`: somebody
    waited for it, or has asked for it since it was followed ahead.
    """

    found: Reachable
    tags: tuple[Tag, ...]
    until: float
    moment: int
    asked: bool


class Closures:
    """What tags and manifests of one registry lead to. Any thread may call anything."""

    def __init__(
        self,
        pool: Executor,
        options: ListingOptions,
        repositories: Repositories,
        documents: Documents,
        referrers: Referrers,
        resolve: Callable[[Repository, Tag], Answer[Resolved]],
    ) -> None:
        """`resolve` returns what a listed tag names, whose manifest is asked for next."""
        self._pool = pool
        self._timeout = options.timeout
        self._repositories = repositories
        self._documents = documents
        self._referrers = referrers
        self._resolve = resolve
        self._lock = threading.Lock()
        self._changes = 0
        self._closures: TTLCache[tuple[Repository, Digest], Reachable] = TTLCache(
            _MAX_CLOSURES, options.negative_ttl
        )
        self._reachable: LRUCache[Repository, _Known] = LRUCache(
            _MOST_DIGESTS, lambda known: 1 + len(known.found.manifests) + len(known.found.blobs)
        )

    def reachable(self, repository: Repository, missed: Callable[[Repository], None]) -> Reachable:
        """Return what all tags lead to, through indexes and referrers, asked for in parallel.

        `Reachable.error` says what is missing. What the registry itself does not have is skipped: a
        tag deleted meanwhile, a platform in an index that was never pushed. `missed` is called
        before it is followed, and when what was followed ahead is first asked for.
        """
        known = self._known(repository)
        if known is not None and known.asked:
            return known.found
        missed(repository)
        if known is not None:
            known.asked = True
            return known.found
        return self._follow(repository, InParallel(self._pool, self._timeout))

    def known_reachable(self, repository: Repository) -> Reachable | None:
        """Return the same if it takes no request, it is complete, and somebody asked before."""
        known = self._known(repository) if self._repositories.has_current_tags(repository) else None
        return known.found if known is not None and known.asked else None

    def follow_ahead(self, repository: Repository) -> None:
        """Follow the tags of a repository that nobody waits for yet, in this thread.

        Many repositories are followed at once, and threads that wait for others of their own pool
        would deadlock.
        """
        if not self._repositories.has_current_tags(repository):
            self._follow(repository, None)

    def closure(self, repository: Repository, digest: Digest) -> Reachable:
        """Return what one manifest leads to through indexes, itself included, without referrers.

        `Reachable.error` says what is missing. The result is kept for a moment, complete or not,
        since a walk asks again for each name.
        """
        self._documents.manifest(repository, digest)
        with self._lock:
            found, changes = self._closures.get((repository, digest)), self._changes
        if found is None:
            in_parallel, walk = InParallel(self._pool, self._timeout), Walk()
            late = in_parallel.spread(
                lambda step: self._had(repository, step.digest),
                walk.begin([digest], required=False),
                walk.take,
            )
            walk.miss(late, in_parallel.late())
            found = walk.end()
            with self._lock:
                if changes == self._changes:
                    self._closures[repository, digest] = found
        return found

    def forget(self) -> None:
        """Forget what anything leads to, and what is being followed now."""
        with self._lock:
            self._closures.clear()
            self._reachable.clear()
            self._changes += 1

    def _known(self, repository: Repository) -> _Known | None:
        """Return what a repository's tags are known to lead to, if nothing of it has ended."""
        with self._lock:
            known = self._reachable.get(repository)
        if known is None or known.moment != self._documents.moment:
            return None
        if time.monotonic() >= known.until:
            return None
        return known if self._repositories.tags(repository) is known.tags else None

    def _follow(self, repository: Repository, in_parallel: InParallel | None) -> Reachable:
        """Follow a repository's tags, `in_parallel`, or in this thread if that is None."""
        walk = Walk()
        missing: list[EpochfsError] = []
        ends: list[float] = []
        changes, moment = self._changes, self._documents.moment

        def ask(one: Tag | Step) -> Fetched | Digest | None:
            if isinstance(one, Step):
                return self._fetched(repository, one, ends)
            try:
                resolved = self._resolve(repository, one)
            except NotFound:
                ends.append(_NEVER)
                return None  # deleted since it was listed
            except EpochfsError as error:
                return Fetched(error=error)
            ends.append(resolved.until)
            return resolved.value.digest

        def then(one: Tag | Step, answer: Fetched | Digest | None) -> Iterable[Tag | Step]:
            if isinstance(answer, Digest):
                return walk.begin([answer], required=True)
            if isinstance(answer, Fetched) and isinstance(one, Step):
                return walk.take(one, answer)
            if isinstance(answer, Fetched) and answer.error is not None:
                missing.append(answer.error)
            return ()

        tags = self._repositories.tags(repository)
        start: Iterable[Tag | Step] = tags
        if in_parallel is None:
            in_turn(ask, start, then)
        elif late := in_parallel.spread(ask, start, then):
            walk.miss((one for one in late if isinstance(one, Step)), in_parallel.late())
            missing.append(in_parallel.late())
        found = walk.end()
        for error in missing:
            found.fail(error)
        if found.error is None:
            until = min(ends, default=_NEVER)
            known = _Known(found, tags, until, moment, asked=in_parallel is not None)
            self._remember(repository, known, changes)
        return found

    def _remember(self, repository: Repository, known: _Known, changes: int) -> None:
        with self._lock:
            self._reachable.pop(repository, None)
            size = self._reachable.getsizeof(known)
            if changes == self._changes and size <= self._reachable.maxsize:
                self._reachable[repository] = known

    def _fetched(self, repository: Repository, step: Step, ends: list[float]) -> Fetched:
        """Take a step: fetch a manifest, or its referrers; add to `ends` until when it holds."""
        if step.referrers:
            try:
                found = self._referrers.answer(repository, step.digest)
            except EpochfsError as error:
                return Fetched(error=error)
            ends.append(found.until)
            return Fetched(referrers=found.value)
        had = self._had(repository, step.digest)
        if had.document is None:
            ends.append(_NEVER)
        is_readable = had.document is not None and had.error is None
        return replace(had, referrers=None) if is_readable else had

    def _had(self, repository: Repository, digest: Digest) -> Fetched:
        """Fetch a manifest and parse it; the errors are in what is returned."""
        try:
            document = self._documents.manifest(repository, digest)
        except UnconfirmedNotFound as error:
            return Fetched(error=ProtocolViolation(f"{error}: not a registry's answer"))
        except NotFound:
            return Fetched()
        except EpochfsError as error:
            return Fetched(error=error)
        try:
            document.view  # noqa: B018 - parsed now, to know if it is malformed
        except EpochfsError as error:
            return Fetched(document, error=error)
        return Fetched(document)
