"""What the registry says of its names: catalogue, tags, tag → digest, manifests, blob sizes.

Every answer is remembered in a bounded `TtlCache`; the tree asks here and nowhere else. What a
server sends as a name is parsed here: what could not be a path is left out, with one log line.

A blob's size is known because a manifest of the same repository named it, or because a HEAD
answered; that is also the proof that this repository may see the blob, without which the blob
cache is not consulted.

Locks: `Listings._lock` guards `_armed`; no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from cachetools import LRUCache

from epochfs.batches import Ahead, Each, InParallel, tolerant
from epochfs.catalogue import Catalogue
from epochfs.config import ListingOptions
from epochfs.documents import Documents
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    InvalidName,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unsupported,
)
from epochfs.lookahead import Lookahead
from epochfs.manifests import Descriptor, Document
from epochfs.names import Digest, Repository, Tag
from epochfs.reachable import Reachable, follow
from epochfs.referrers import Referrers
from epochfs.source import Source
from epochfs.taghistory import TagHistory
from epochfs.tagtables import Resolved, TagTables
from epochfs.ttlcache import CachePolicy, TtlCache

log = logging.getLogger(__name__)

_MAX_ARMED = 1000

Name = TypeVar("Name", Repository, Tag)


class Listings:
    """The registry's names, remembered. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        options: ListingOptions,
        history: TagHistory,
        recalled: Callable[[], int] = lambda: 0,
    ) -> None:
        """`recalled` tells how often the source gave an older answer, to be asked again soon."""
        self._source = source
        self._options = options
        self._history = history
        self._pool = ThreadPoolExecutor(options.parallel, thread_name_prefix="listing")
        # Apart from the other, so that nobody waits for what was only begun in case of need.
        self._ahead = ThreadPoolExecutor(options.parallel, thread_name_prefix="resolving")
        self._lock = threading.Lock()
        self._armed: LRUCache[Repository, None] = LRUCache(_MAX_ARMED)
        changing = CachePolicy(
            options.listing_ttl,
            options.negative_ttl,
            options.stale_if_error,
            limit=1_000_000,
            wait=options.timeout,
        )
        self._documents = Documents(source, options.manifest_limit, changing)
        self._catalogues = TtlCache(
            "the catalogue", self._fetch_catalogue, changing, recalled=recalled
        )
        self._tags = TtlCache(
            "tags of", self._fetch_tags, changing, size_of=_counted, recalled=recalled
        )
        self._tables = TagTables(changing.limit)
        self._resolved = TtlCache(
            "tag", self._fetch_resolved, changing, store=self._tables, recalled=recalled
        )
        self._heads = TtlCache("blob", self._fetch_head, changing, recalled=recalled)
        self._begin = Ahead(self._ahead, options.parallel)
        self._referrers = Referrers(source, self._tagged, changing, self._begin, recalled)
        depth = options.parallel
        self._tags_walk = Lookahead(self._ahead, self._following, self._tags.get, depth)
        self._reachable_walk = Lookahead(self._ahead, self._following, self._reach_ahead, depth)

    @property
    def kernel_ttl(self) -> float:
        """How long the kernel may keep what it was told of a file, in seconds."""
        return self._options.kernel_ttl

    @property
    def shows_rootfs(self) -> bool:
        """Whether the root filesystem of an image is listed, and not only opened by name."""
        return self._options.show_rootfs

    # ---- what the tree asks ------------------------------------------------------------------

    def catalogue(self) -> Catalogue:
        """The repositories listed; only those of `--repo` where the registry has no catalogue."""
        return self._catalogues.get(())

    def tags(self, repository: Repository) -> tuple[Tag, ...]:
        """The repository's tags, sorted."""
        self._tags_walk.asked(repository)
        return self._tags.get(repository)

    def is_repository(self, repository: Repository) -> bool:
        """Whether the registry has it: listed, or a tags request says so."""
        if repository in self.catalogue():
            return True
        if not repository.conforms:
            return False
        try:
            self._tags.get(repository)
        except (NotFound, Unsupported):
            return False
        except CredentialsUnavailable:
            raise
        except Denied:
            # Docker Hub and GHCR deny what does not exist. Only without a catalogue is that a
            # plain no: where there is one, a denial is worth an error.
            if self.catalogue().complete:
                raise
            return False
        return True

    def expect_resolves(self, repository: Repository) -> None:
        """Take note that the tags were listed: once one is resolved, `ls -l` will ask for all."""
        with self._lock:
            self._armed[repository] = None

    def resolve(self, repository: Repository, tag: Tag) -> Resolved:
        """Return what a tag names now; the rest of a listing begins to be resolved with it."""
        with self._lock:
            listed = repository in self._armed
            self._armed.pop(repository, None)
        if listed and self._resolved.peek((repository, tag)) is None:
            self._resolve_all(repository)
        return self._resolved.get((repository, tag))

    def tagged(self, repository: Repository) -> list[tuple[Tag, Resolved, Descriptor]]:
        """Return all tags, sorted, with what they name now; all at once, in parallel.

        A tag that was deleted meanwhile is left out. Raises rather than leave out another.
        """
        in_parallel = self._in_parallel()

        def ask(tag: Tag) -> tuple[Tag, Resolved, Descriptor]:
            resolved = self._resolved.get((repository, tag))
            return tag, resolved, self._documents.describe(repository, resolved.digest)

        answers = in_parallel(tolerant(ask), self._tags.get(repository))
        return [one for one in answers if one is not None]

    def layout_since(self, repository: Repository, index: bytes) -> int:
        """Return since when a repository has this index of its tags, in epoch nanoseconds."""
        return self._history.layout_since(repository, index)

    def manifest(self, repository: Repository, digest: Digest) -> Document:
        """Return a manifest, hashed and parsed; its descriptors are known from then on."""
        return self._documents.manifest(repository, digest)

    def descriptor(self, repository: Repository, digest: Digest) -> Descriptor:
        """Describe a blob: as a manifest of the repository does, else as a HEAD says."""
        known = self._documents.named_blob(repository, digest)
        return known if known is not None else self._heads.get((repository, digest))

    def names_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest of the repository is known to name a digest as a blob's."""
        return self._documents.named_blob(repository, digest) is not None

    def expect_referrers(self, repository: Repository, digests: Iterable[Digest]) -> None:
        """Take note that these manifests were listed: a walk will ask what refers to each."""
        self._referrers.expect(repository, digests)

    def referrers(self, repository: Repository, digest: Digest) -> tuple[Digest, ...]:
        """Return what refers to a manifest, sorted: signatures, lists of what is in it."""
        with self._documents.unless_denied(repository):
            return self._referrers.of(repository, digest)

    def content(self, repository: Repository, digest: Digest) -> bytes:
        """Return all of a blob that is a document, such as a config, hashed.

        Raises TooLarge for one that is larger than a manifest may be.
        """
        return self._documents.content(repository, digest)

    def reachable(self, repository: Repository) -> Reachable:
        """Follow all tags through indexes, in parallel. Raises rather than leave something out.

        What the registry itself no longer has is passed over: a tag deleted meanwhile, an index
        that lists a platform nobody pushed. So is, with a log line, a manifest that is malformed.
        """
        self._reachable_walk.asked(repository)
        return self._follow(repository, self._in_parallel())

    def clear(self) -> None:
        """Forget what may have changed; manifests cannot."""
        for cache in (
            self._catalogues,
            self._tags,
            self._resolved,
            self._heads,
            self._referrers,
        ):
            cache.clear()

    def close(self) -> None:
        """Stop the background work."""
        for pool in (self._pool, self._ahead):
            pool.shutdown(wait=False, cancel_futures=True)

    # ---- in parallel, and ahead --------------------------------------------------------------

    def _resolve_all(self, repository: Repository) -> None:
        """Begin to resolve all tags of a listing, in its order, in the background."""
        self._begin(
            lambda tag: self._resolved.get((repository, tag)),
            self._tags.get(repository),
            f"resolving tags of {repository}",
        )

    def _in_parallel(self) -> InParallel:
        """Return what asks for all that one operation needs, within the time limit for it."""
        return InParallel(self._pool, self._options.timeout)

    def _following(self, repository: Repository, count: int) -> list[Repository]:
        catalogue = self._catalogues.peek(())
        return catalogue.following(repository, count) if catalogue is not None else []

    def _reach_ahead(self, repository: Repository) -> None:
        """Follow the tags of a repository that nobody waits for yet; one at a time, unless known.

        Many repositories are under way at once, and threads that wait for others of their own
        pool would wait for ever.
        """
        if self._tags.peek(repository) is None:
            self._follow(repository, map)

    def _follow(self, repository: Repository, each: Each) -> Reachable:
        resolved = each(
            tolerant(lambda tag: self._resolved.get((repository, tag))), self._tags.get(repository)
        )
        return follow(
            dict.fromkeys(one.digest for one in resolved if one is not None),
            lambda level: each(tolerant(lambda digest: self._tolerated(repository, digest)), level),
        )

    def _tolerated(self, repository: Repository, digest: Digest) -> Document | None:
        try:
            document = self.manifest(repository, digest)
            document.view  # noqa: B018 - parsed here so that a malformed one is known here
        except (ProtocolViolation, TooLarge) as error:
            log.warning("left out of %s: manifest %s: %s", repository, digest, error)
            return None
        return document

    # ---- what the caches fetch ---------------------------------------------------------------

    def _fetch_catalogue(self, _: tuple[()]) -> Catalogue:
        listed = self._options.repositories
        try:
            texts = self._source.catalog()
        except CredentialsUnavailable:
            raise
        except (NotFound, Denied, Unsupported) as error:
            log.debug("the registry has no catalogue for us: %s", error)
            return Catalogue(listed, complete=False)
        found = _parse(texts, Repository.parse, "repositories")
        return Catalogue((*found, *listed), complete=True)

    def _fetch_tags(self, repository: Repository) -> tuple[Tag, ...]:
        try:
            with self._documents.unless_denied(repository):
                texts = self._source.list_tags(repository)
        except NotFound:
            # Docker's registry goes on listing a repository whose last tag was deleted.
            if repository in self.catalogue():
                return ()
            raise
        tags = _parse(texts, Tag.parse, f"tags of {repository}")
        self._tables.arrange(repository, tags)
        return tags

    def _fetch_resolved(self, key: tuple[Repository, Tag]) -> Resolved:
        repository, tag = key
        with self._documents.unless_denied(repository):
            digest = self._source.resolve(repository, tag).digest
        return Resolved(digest, self._history.since(repository, tag, digest))

    def _fetch_head(self, key: tuple[Repository, Digest]) -> Descriptor:
        repository, digest = key
        with self._documents.unless_denied(repository):
            return Descriptor("", digest, self._source.blob_size(repository, digest))

    def _tagged(self, repository: Repository, tag: Tag) -> Document | None:
        """Return what a tag names; None if the repository lists no such tag."""
        tags = self._tags.get(repository)
        place = bisect_left(tags, tag)
        if tags[place : place + 1] != (tag,):
            return None
        return self.manifest(repository, self._resolved.get((repository, tag)).digest)


def _counted(tags: tuple[Tag, ...]) -> int:
    """Return what a listing counts for; one without tags takes its place too."""
    return 1 + len(tags)


def _parse(texts: Iterable[str], parse: Callable[[str], Name], what: str) -> tuple[Name, ...]:
    """Parse names from the server, sorted; leave out what could not be a path, and log that."""
    names: set[Name] = set()
    refused: list[InvalidName] = []
    for text in texts:
        try:
            names.add(parse(text))
        except InvalidName as error:
            refused.append(error)
    if refused:
        log.warning("left out %d of the %s: %s", len(refused), what, refused[0])
    return tuple(sorted(names))
