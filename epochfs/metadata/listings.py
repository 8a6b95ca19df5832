"""Answers what is in a registry: repositories, tags, tag → digest, manifests, blob sizes.

Every answer is remembered in a bounded `TtlCache`; the tree asks here and nowhere else.

A blob's size is known when a manifest of the same repository names the blob, or a HEAD answered.
Either also proves that the repository may read the blob; without that proof the blob cache is not
consulted.

Locks: `Listings._lock` guards `_closures` and `_changes`; no I/O happens under it.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from cachetools import TTLCache

from epochfs.cache.tag_history import TagHistory
from epochfs.config import ListingOptions
from epochfs.errors import (
    EpochfsError,
    NotFound,
    ProtocolViolation,
    UnconfirmedNotFound,
    Unsupported,
)
from epochfs.metadata.content import Documents, Referrers
from epochfs.metadata.own_changes import OwnChanges
from epochfs.metadata.parallel import Ahead, AheadOfWalk, InParallel, in_turn
from epochfs.metadata.repositories import Repositories
from epochfs.metadata.source import Answer, Facts, Source
from epochfs.metadata.ttl_cache import CachePolicy, Resolved, TagTables, TtlCache
from epochfs.oci.closure import Fetched, Reachable, Step, Walk
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Repository, Tag

_MAX_CLOSURES = 16


class Listings:
    """Caches what one registry says. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        options: ListingOptions,
        history: TagHistory,
        facts: Facts | None = None,
    ) -> None:
        facts = Facts() if facts is None else facts
        self._source = source
        self._options = options
        self._history = history
        self._pool = ThreadPoolExecutor(options.parallel, thread_name_prefix="listing")
        # A pool of its own, so that nobody waits behind what is only asked ahead.
        self._ahead = ThreadPoolExecutor(options.parallel, thread_name_prefix="resolving")
        self._lock = threading.Lock()
        changing = CachePolicy(
            options.listing_ttl, options.negative_ttl, limit=1_000_000, wait=options.timeout
        )
        self._documents = Documents(source, options.manifest_limit, changing)
        self._tables = TagTables(changing.limit)
        self._repositories = Repositories(
            source, options, changing, history, facts, self._ahead, self._tables.arrange
        )
        denied = self._documents.forget
        self._resolved = TtlCache(
            "tag", self._fetch_resolved, changing, store=self._tables, denied=denied
        )
        self._heads = TtlCache("blob", self._fetch_head, changing, denied=denied)
        self._closures: TTLCache[tuple[Repository, Digest], Reachable] = TTLCache(
            _MAX_CLOSURES, options.negative_ttl
        )
        self._changes = 0
        self._referrers = Referrers(source, self._tagged, changing, facts)
        self._own = own = OwnChanges(
            source,
            history,
            self._repositories,
            self._resolved,
            self._heads,
            self._documents,
            self._referrers,
            self._forget_closures,
        )
        depth = options.parallel
        following = partial(self._repositories.following, count=depth)
        self._tags_ahead = AheadOfWalk(self._ahead, following, self._repositories.tags, depth)
        self._reachable_ahead = AheadOfWalk(self._ahead, following, self._reach_ahead, depth)
        self._listed = Ahead(self._ahead, self._last_listed, self._resolved.get, depth)
        self.kernel_ttl = options.kernel_ttl
        """How long the kernel may cache attributes and names, in seconds."""
        self.shows_rootfs = options.show_rootfs
        """Whether an image's root filesystem is listed, or only opens by name."""
        self.believes_soci = options.soci_referrers
        """Whether a SOCI index is believed that refers to an image, which does not name it."""
        # Handed on as they are.
        self.catalog = self._repositories.catalog
        self.known_catalog = self._repositories.known
        self.settle = self._repositories.settle
        self.check = self._repositories.check
        self.holds_tags = self._repositories.holds_tags
        self.layout_since = history.layout_since
        self.manifest = self._documents.manifest
        self.snapshot_config = self._documents.snapshot_config
        self.referrers = self._referrers.of
        self.expect_resolves = self._listed.expect
        self.wrote_blob = own.wrote_blob
        self.wrote_manifest = own.wrote_manifest
        self.wrote_tag = own.wrote_tag
        self.removed_blob = own.removed_blob
        self.removed_manifest = own.removed_manifest
        self.removed_tag = own.removed_tag

    def tags(self, repository: Repository) -> tuple[Tag, ...]:
        """Return the repository's tags, sorted; raises NotFound for what is no repository."""
        self._tags_ahead.seen(repository)
        return self._repositories.tags(repository)

    def resolve(self, repository: Repository, tag: Tag) -> Resolved:
        """Return what a tag names now.

        After `expect_resolves`, the first of a listing's tags makes the rest be resolved ahead,
        since `ls -l` asks for all.
        """
        if self._listed.expected and self._resolved.peek((repository, tag)) is None:
            self._listed.seen(repository)
        return self._resolve(repository, tag).value

    def tagged(self, repository: Repository) -> list[tuple[Tag, Resolved, Descriptor]]:
        """Return all tags, sorted, with what they name now, resolved in parallel.

        A tag that was deleted meanwhile is left out; any other error is raised.
        """
        in_parallel = InParallel(self._pool, self._options.timeout)

        def ask(tag: Tag) -> tuple[Tag, Resolved, Descriptor] | None:
            try:
                resolved = self._resolve(repository, tag, listed=True).value
            except NotFound:
                return None
            with _led_to(repository, tag, resolved.digest):
                return tag, resolved, self._documents.describe(repository, resolved.digest)

        answers = in_parallel(ask, self._repositories.tags(repository))
        return [one for one in answers if one is not None]

    def descriptor(self, repository: Repository, digest: Digest) -> Descriptor:
        """Describe a blob: as a manifest of the repository does, else as a HEAD says."""
        known = self._documents.named_blob(repository, digest)
        return known if known is not None else self._heads.get((repository, digest))

    def names_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest of the repository is known to name a digest as a blob's."""
        return self._documents.named_blob(repository, digest) is not None

    def reachable(self, repository: Repository) -> Reachable:
        """Return what all tags lead to, through indexes and referrers, asked for in parallel.

        `Reachable.error` says what is missing. What the registry itself does not have is skipped: a
        tag deleted meanwhile, a platform in an index that was never pushed.
        """
        self._reachable_ahead.seen(repository)
        return self._follow(repository, InParallel(self._pool, self._options.timeout))

    def closure(self, repository: Repository, digest: Digest) -> Reachable:
        """Return what one manifest leads to through indexes, itself included, without referrers.

        `Reachable.error` says what is missing. The result is kept for a moment, complete or not,
        since a walk asks again for each name.
        """
        self.manifest(repository, digest)
        with self._lock:
            found, changes = self._closures.get((repository, digest)), self._changes
        if found is None:
            in_parallel, walk = InParallel(self._pool, self._options.timeout), Walk()
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

    def clear(self) -> None:
        """Forget what may have changed; manifests cannot."""
        for cache in (self._repositories, self._resolved, self._heads, self._referrers):
            cache.clear()
        self._forget_closures()

    def close(self) -> None:
        for pool in (self._pool, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)

    def _forget_closures(self) -> None:
        """Forget what manifests lead to, and what is being followed now."""
        with self._lock:
            self._closures.clear()
            self._changes += 1

    def _last_listed(self, repository: Repository) -> list[tuple[Repository, Tag]]:
        """Return all tags of the last listing, in its order, without a new listing."""
        return [(repository, tag) for tag in self._repositories.last_tags(repository)]

    def _reach_ahead(self, repository: Repository) -> None:
        """Follow the tags of a repository that nobody waits for yet, in this thread.

        Many repositories are followed at once, and threads that wait for others of their own pool
        would deadlock.
        """
        if not self._repositories.has_current_tags(repository):
            self._follow(repository, None)

    def _resolve(
        self, repository: Repository, tag: Tag, *, listed: bool = False
    ) -> Answer[Resolved]:
        """Return what a tag names. Raises NotFound only for a tag that is no longer listed.

        `listed`: the caller has it from a listing, whether that is remembered or not.
        """
        try:
            return self._resolved.answer((repository, tag))
        except NotFound as error:
            listed = listed or _holds(self._repositories.last_tags(repository), tag)
            soon = self._options.negative_ttl
            if listed and _holds(self._repositories.tags(repository, soon), tag):
                raise ProtocolViolation(
                    f"the registry lists tag {tag} of {repository}, but: {error}"
                ) from error
            raise

    def _follow(self, repository: Repository, in_parallel: InParallel | None) -> Reachable:
        """Follow a repository's tags, `in_parallel`, or in this thread if that is None."""
        walk = Walk()
        missing: list[EpochfsError] = []

        def ask(one: Tag | Step) -> Fetched | Digest | None:
            if isinstance(one, Step):
                return self._fetched(repository, one)
            try:
                return self._resolve(repository, one, listed=True).value.digest
            except NotFound:
                return None  # deleted since it was listed
            except EpochfsError as error:
                return Fetched(error=error)

        def then(one: Tag | Step, answer: Fetched | Digest | None) -> Iterable[Tag | Step]:
            if isinstance(answer, Digest):
                return walk.begin([answer], required=True)
            if isinstance(answer, Fetched) and isinstance(one, Step):
                return walk.take(one, answer)
            if isinstance(answer, Fetched) and answer.error is not None:
                missing.append(answer.error)
            return ()

        start: Iterable[Tag | Step] = self._repositories.tags(repository)
        if in_parallel is None:
            in_turn(ask, start, then)
        elif late := in_parallel.spread(ask, start, then):
            walk.miss((one for one in late if isinstance(one, Step)), in_parallel.late())
            missing.append(in_parallel.late())
        found = walk.end()
        for error in missing:
            found.fail(error)
        return found

    def _fetched(self, repository: Repository, step: Step) -> Fetched:
        """Take a step: fetch a manifest, or its referrers."""
        if step.referrers:
            try:
                return Fetched(referrers=self.referrers(repository, step.digest))
            except EpochfsError as error:
                return Fetched(error=error)
        found = self._had(repository, step.digest)
        is_readable = found.document is not None and found.error is None
        return replace(found, referrers=None) if is_readable else found

    def _had(self, repository: Repository, digest: Digest) -> Fetched:
        """Fetch a manifest and parse it; the errors are in what is returned."""
        try:
            document = self.manifest(repository, digest)
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

    def _fetch_resolved(self, key: tuple[Repository, Tag]) -> Answer[Resolved]:
        repository, tag = key
        answer = self._source.resolve(repository, tag)
        told = self._resolved.peek(key) if self._own.has_tagged else None
        if told is not None:
            return Answer(told)  # this process wrote the tag meanwhile
        digest = answer.value.digest
        since = self._history.since(repository, tag, digest)
        return Answer(Resolved(digest, since), answer.is_current)

    def _fetch_head(self, key: tuple[Repository, Digest]) -> Answer[Descriptor]:
        answer = self._source.blob_size(*key)
        return Answer(Descriptor("", key[1], answer.value), answer.is_current)

    def _tagged(self, repository: Repository, tag: Tag) -> Answer[Document | None]:
        """Return what a tag names; None if the repository has no such tag."""
        is_current = True
        try:
            tags = self._repositories.tags_answer(repository)
            is_current = tags.is_current
            if not _holds(tags.value, tag):
                return Answer(None, is_current)
        except (NotFound, Unsupported):
            pass  # without a list of tags, only asking for the tag can tell
        try:
            resolved = self._resolve(repository, tag)
        except NotFound:
            return Answer(None, is_current)
        digest = resolved.value.digest
        with _led_to(repository, tag, digest):
            return Answer(self.manifest(repository, digest), resolved.is_current)


@contextmanager
def _led_to(repository: Repository, tag: Tag, digest: Digest) -> Iterator[None]:
    """If what a tag leads to is not found, say that the registry is wrong."""
    try:
        yield
    except NotFound as error:
        raise ProtocolViolation(
            f"tag {tag} of {repository} leads to {digest}, but: {error}"
        ) from error


def _holds(tags: tuple[Tag, ...], tag: Tag) -> bool:
    """Return whether a sorted listing has a tag."""
    place = bisect_left(tags, tag)
    return tags[place : place + 1] == (tag,)
