"""Decides which repositories exist, by the catalog and the tag lists.

A catalog may be denied, absent, slow or wrong, and a repository that it does not list may exist all
the same. So the catalog decides what is listed, but not alone what can be opened:

====================================  ==========================================================
the catalog                           a name
====================================  ==========================================================
lists it, in a copy of any age        exists; the catalog is read again in the background
is complete and does not list it      exists if its tag list has a tag; if that is empty or the
                                      registry does not know it, the catalog is read again, and
                                      then it does not exist; with any other answer for the tag
                                      list it can be entered, and what is asked below decides
is denied, absent, failing or empty   can be entered, if the specification allows such a name
====================================  ==========================================================

A repository that the catalog or the tag history has seen is not gone because of a refusal, or of an
answer that is not in the specification.

Locks: `Repositories._lock` guards `_settled` and `_attempted`; no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import TypeVar

from epochfs.cache.answers import Question
from epochfs.cache.tag_history import TagHistory
from epochfs.config import ListingOptions
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    EpochfsError,
    InvalidName,
    NotFound,
    ProtocolViolation,
    UnconfirmedNotFound,
    Unsupported,
)
from epochfs.metadata.source import CATALOG, HAS_CATALOG, Answer, Facts, Kind, Source
from epochfs.metadata.ttl_cache import CachePolicy, TtlCache
from epochfs.oci.names import Catalog, Repository, Tag

log = logging.getLogger(__name__)

Name = TypeVar("Name", Repository, Tag)


class Repositories:
    """Caches the catalog and the tag lists of one registry. Any thread may call anything."""

    def __init__(
        self,
        source: Source,
        options: ListingOptions,
        policy: CachePolicy,
        history: TagHistory,
        facts: Facts,
        background: Executor,
        arranged: Callable[[Repository, tuple[Tag, ...]], None],
    ) -> None:
        """`arranged` gets each new tag list, sorted; `background` refreshes an old catalog."""
        self._source = source
        self._named = options.repositories
        self._believe_empty = options.believe_empty_catalog
        self._recheck = policy.negative_ttl
        self._history = history
        self._facts = facts
        self._background = background
        self._arranged = arranged
        self._lock = threading.Lock()
        self._settled = False
        self._attempted = 0.0
        self._catalogs = TtlCache("the catalog", self._fetch_catalog, policy)
        self._tags = TtlCache(
            "tags of", self._fetch_tags, policy, size_of=lambda tags: 1 + len(tags)
        )

    def catalog(self, max_age: float | None = None) -> Catalog:
        """Return the repositories listed; only those of `--repo` where there is no catalog.

        Raises Denied or ProtocolViolation where the registry had one before and has none now.
        """
        try:
            return self._catalogs.get((), max_age)
        finally:
            with self._lock:
                self._settled = True

    def settle(self, seconds: float) -> str:
        """Find out within so many seconds whether there is a catalog; return a message if not.

        A catalog that takes longer is read on in the background.
        """
        try:
            catalog = self._background.submit(self.catalog).result(seconds)
        except TimeoutError:
            with self._lock:
                self._settled = True
            return (
                f"the catalog has not arrived within {seconds:.0f} s: until it has, nothing is "
                "listed, and names open by path"
            )
        except EpochfsError as error:
            return f"the catalog cannot be read: {error}; listings fail, names open by path"
        if catalog.refusal and not self._named:
            return (
                f"nothing is listed, as the registry has no catalog for us ({catalog.refusal}): "
                "names open by path; list repositories with --repo"
            )
        return ""

    def known(self) -> Catalog | None:
        """Return the last catalog, however old, or None; waits only if none was asked for yet."""
        with self._lock:
            settled = self._settled
        if not settled:
            with contextlib.suppress(EpochfsError):
                return self.catalog()
        current = self._catalogs.peek(())
        if current is None:
            self._read_again()
        return current or self._catalogs.last(())

    def current(self) -> Catalog | None:
        """Return the catalog if it takes no request."""
        return self._catalogs.peek(())

    def following(self, repository: Repository, count: int) -> list[Repository]:
        """Return the repositories that a walk comes to after one."""
        catalog = self._catalogs.peek(())
        return catalog.following(repository, count) if catalog is not None else []

    def _read_again(self) -> None:
        """Refresh the catalog in the background, unless that was tried a moment ago."""
        now = time.monotonic()
        with self._lock:
            if now < self._attempted + self._recheck:
                return
            self._attempted = now

        def read() -> None:
            try:
                self._catalogs.get(())
            except EpochfsError as error:
                log.debug("the catalog cannot be read again: %s", error)

        with contextlib.suppress(RuntimeError):  # the pool is shut down while unmounting
            self._background.submit(read)

    def check(self, repository: Repository, *, or_parent: bool = False) -> None:
        """Raise NotFound unless it exists, can be entered, or (`or_parent`) is a mere parent."""

        def lists(catalog: Catalog) -> bool:
            is_parent = or_parent and catalog.is_parent(repository.segments)
            return is_parent or repository in catalog

        known = self.known()
        if known is not None and lists(known):
            return
        absent = NotFound(f"no repository {repository}")
        if not repository.conforms:
            raise absent
        if known is None or not known.complete or self._has_tags(repository) is not False:
            return
        try:
            again = self.catalog(self._recheck)
        except EpochfsError:
            return
        if not lists(again):
            raise absent

    def holds_tags(self, repository: Repository) -> bool:
        """Whether a directory is to list what a repository has, and not only its children.

        Raises the error of asking for the tags, where that leaves it open.
        """
        known = self.known()
        if known is not None and repository in known:
            return True
        if not repository.conforms:
            return False
        answer = self._has_tags(repository)
        if isinstance(answer, bool):
            return answer
        is_parent = known is not None and known.is_parent(repository.segments)
        no_answer = isinstance(answer, UnconfirmedNotFound)
        if (is_parent or no_answer) and not self._history.has_seen(repository):
            return False
        raise answer

    def _has_tags(self, repository: Repository) -> bool | EpochfsError:
        """Whether a repository's tag list has a tag, or the error that leaves it open."""
        try:
            return bool(self._tags.get(repository))
        except UnconfirmedNotFound as error:
            return error
        except NotFound:
            return False
        except EpochfsError as error:
            log.debug("cannot tell whether %s exists: %s", repository, error)
            return error

    def tags(self, repository: Repository, max_age: float | None = None) -> tuple[Tag, ...]:
        """Return the repository's tags, sorted; raises NotFound for what is no repository."""
        return self.tags_answer(repository, max_age).value

    def tags_answer(
        self, repository: Repository, max_age: float | None = None
    ) -> Answer[tuple[Tag, ...]]:
        """Return the same with whether it is current.

        Epoch answers any name with an empty list, so an empty list alone is no repository.
        """
        answer = self._tags.answer(repository, max_age)
        if not answer.value and not self._is_listed(repository):
            self.check(repository)
            if not self._is_listed(repository):
                raise NotFound(f"no repository {repository}: it has no tags and is not listed")
        return answer

    def last_tags(self, repository: Repository) -> tuple[Tag, ...]:
        """Return the tags that were last listed, however long ago."""
        return self._tags.last(repository) or ()

    def has_current_tags(self, repository: Repository) -> bool:
        """Whether the tags are known without asking the registry."""
        return self._tags.peek(repository) is not None

    # ---- what this process changed -----------------------------------------------------------

    def wrote(self, repository: Repository, tag: Tag | None = None) -> None:
        """Note that a repository has a manifest that it may not have had before, and this tag."""
        catalog = self._catalogs.last(())
        if catalog is None or (repository not in catalog and not catalog.refusal):
            if catalog is not None and catalog.complete:
                self._catalogs.amend((), lambda listed: listed.including(repository))
            else:
                self._catalogs.expire(())
            self._tell_catalog()
        if tag is not None:
            is_new = not holds(self.last_tags(repository), tag)
            self._tags.amend(repository, lambda tags: _including(tags, tag))
        else:
            is_new = self._tags.last(repository) is None
            if is_new:
                self._tags.expire(repository)
        if is_new:
            self._tell_tags(repository)

    def removed(self, repository: Repository, tag: Tag | None = None) -> None:
        """Note that a repository no longer has a tag; or else, that it lacks some it had."""
        if tag is not None:
            self._tags.amend(repository, lambda tags: tuple(one for one in tags if one != tag))
        else:
            self._tags.expire(repository)
        self._tell_tags(repository)
        if tag is None or not self.last_tags(repository):
            self._catalogs.expire(())  # it may list the repository no longer
            self._tell_catalog()

    def _tell_tags(self, repository: Repository) -> None:
        """Have the source remember the tags as they are, if they are known."""
        tags, question = self._tags.peek(repository), Question(Kind.TAGS, repository.name)
        if tags is None:
            self._source.amend({}, [question])
        else:
            self._source.amend({question: [tag.name for tag in tags]})

    def _tell_catalog(self) -> None:
        catalog = self._catalogs.peek(())
        if catalog is None or not catalog.complete:
            self._source.amend({}, [CATALOG])
        else:
            listed = [one.name for one in catalog if one not in self._named]
            self._source.amend({CATALOG: listed})

    def clear(self) -> None:
        """Expire everything. Until it is read again, the old catalog says what can be entered."""
        self._catalogs.expire(())
        self._tags.clear()

    def _is_listed(self, repository: Repository) -> bool:
        known = self.known()
        return known is not None and repository in known

    def _fetch_catalog(self, _: tuple[()]) -> Answer[Catalog]:
        try:
            answer = self._source.catalog()
        except CredentialsUnavailable:
            raise
        except (NotFound, Denied, Unsupported) as error:
            last = self._catalogs.last(())
            had_one = last is not None and last.complete
            if not had_one and (self._named or not self._facts.known(HAS_CATALOG)):
                log.debug("the registry has no catalog for us: %s", error)
                return Answer(Catalog(self._named, complete=False, refusal=str(error)))
            if isinstance(error, Denied):
                raise
            raise ProtocolViolation(
                f"{error}: the registry listed its repositories before; "
                "name them with --repo if it no longer does"
            ) from error
        found = parsed(answer.value, Repository.parse, "repositories")
        if found:
            self._facts.learn(HAS_CATALOG)
        complete = bool(found) or self._believe_empty
        return Answer(Catalog((*found, *self._named), complete=complete), answer.is_current)

    def _fetch_tags(self, repository: Repository) -> Answer[tuple[Tag, ...]]:
        try:
            answer = self._source.list_tags(repository)
        except UnconfirmedNotFound as error:
            if self._is_listed(repository) or self._history.has_seen(repository):
                raise ProtocolViolation(
                    f"{error}: not a registry's answer, for a repository that was listed"
                ) from error
            raise
        except NotFound:
            # Docker's registry goes on listing a repository whose last tag was deleted.
            if self._is_listed(repository):
                return Answer(())
            raise
        tags = parsed(answer.value, Tag.parse, f"tags of {repository}")
        self._arranged(repository, tags)
        return Answer(tags, answer.is_current)


def holds(tags: tuple[Tag, ...], tag: Tag) -> bool:
    """Return whether a sorted listing has a tag."""
    place = bisect_left(tags, tag)
    return tags[place : place + 1] == (tag,)


def _including(tags: tuple[Tag, ...], tag: Tag) -> tuple[Tag, ...]:
    """Return a sorted listing with one tag more, if it does not have it.

    It is a new object in any case: what tags lead to is remembered for one listing (`closures`).
    """
    place = bisect_left(tags, tag)
    return (*tags[:place], tag, *tags[place + holds(tags, tag) :])


def parsed(texts: Iterable[str], parse: Callable[[str], Name], what: str) -> tuple[Name, ...]:
    """Parse names from the server, sorted; log and leave out those that could not be a path."""
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
