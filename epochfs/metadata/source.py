"""The interface of whatever serves names and documents: a registry, or an OCI image layout on disk.

`listings` need not know which of the two it reads, nor whether `offline` stands in front of it. The
methods are those of `RegistryClient`, which documents them.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Generic, Protocol, TypeVar

from epochfs.cache.answers import AnswerStore, Question
from epochfs.client.transport import BlobStream
from epochfs.oci.manifests import Descriptor, Document
from epochfs.oci.names import Digest, Reference, Repository, Tag

T_co = TypeVar("T_co", covariant=True)

_HOLDS = b"1"


class Kind(enum.StrEnum):
    """The kinds of questions, and how they are spelt in the files of answers."""

    CATALOG = "catalogue"
    TAGS = "tags"
    """What tags a repository has."""
    DESCRIPTION = "description"
    """What a tag or digest names now."""
    MANIFEST = "manifest"
    """The manifest of a digest."""
    REFERRERS = "referrers"
    """What refers to the manifest of a digest."""
    SIZE = "blob"
    """How large a blob is."""
    CONTENT = "content"
    """All of a blob."""
    FACT = "fact"
    """What was learned of a registry (`Facts`)."""


CATALOG = Question(Kind.CATALOG)

LISTINGS = frozenset({Kind.CATALOG, Kind.TAGS, Kind.REFERRERS})
"""The kinds that list something, and that mirrors are not asked. Everything else is content; an
answer about it proves access."""


@dataclass(frozen=True, slots=True)
class Answer(Generic[T_co]):
    """What a source said. It is not `is_current` if it is an older answer, given while the source
    does not answer, and is then asked for again soon; answers that say the same are equal.
    """

    value: T_co
    is_current: bool = field(default=True, compare=False)
    until: float = field(default=0.0, compare=False)
    """Until when it is used, as monotonic time, where it is remembered (`ttl_cache`)."""


class Source(Protocol):
    """Repositories, tags and manifests to read. Any thread may call anything."""

    def catalog(self) -> Answer[list[str]]:
        """Return the names of all repositories, unvalidated."""

    def list_tags(self, name: Repository, /) -> Answer[list[str]]:
        """Return a repository's tags, unvalidated."""

    def resolve(self, name: Repository, reference: Reference, /) -> Answer[Descriptor]:
        """Describe the manifest that a reference names now."""

    def fetch_tag(self, name: Repository, tag: Tag, limit: int, /) -> Answer[Descriptor | Document]:
        """Return the manifest that a tag names now, in one request, or describe it where that takes
        no more, or where its bytes are to come from somewhere else; raises TooLarge.
        """

    def get_manifest(
        self, name: Repository, digest: Digest, limit: int | None = None, /
    ) -> Document:
        """Return a manifest, hashed; raises TooLarge for one over `limit` bytes."""

    def referrers(self, name: Repository, digest: Digest, /) -> Answer[list[Descriptor]]:
        """Return a manifest's referrers; raises Unsupported where there is no such call."""

    def blob_size(self, name: Repository, digest: Digest, /) -> Answer[int]:
        """Return a blob's size in bytes; an answer proves that the blob may be read."""

    def read_blob(self, name: Repository, digest: Digest, limit: int, /) -> bytes:
        """Return all of a blob, hashed; raises TooLarge for one over `limit` bytes."""

    def amend(self, now: Mapping[Question, object], gone: Iterable[Question] = (), /) -> None:
        """Take note of what this process changed: what the answers are `now`, as the methods here
        give them, and which are no longer known.
        """


class PullClient(Protocol):
    """A source of blobs that arrive as streams: a registry."""

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None, /
    ) -> BlobStream:
        """Open a blob for reading, from byte `start` to before byte `end`."""

    def distrust_mirrors(self, digest: Digest, /) -> bool:
        """Report wrong bytes of a blob; return whether a mirror may have sent them."""


class PushClient(Protocol):
    """A registry to write to; `client.pushing` documents the methods. Any thread may call anything.

    What it says exists is in the registry itself, and not only in a mirror of it.
    """

    def check_push(self, name: Repository, /) -> None:
        """Check, before anything is written, that the registry lets us push."""

    def blob_exists(self, name: Repository, digest: Digest, size: int | None = None, /) -> bool:
        """Return whether the repository has a blob, of `size` bytes if that is given."""

    def has_manifest(self, name: Repository, reference: Reference, /) -> bool:
        """Return whether the repository has a manifest."""

    def get_manifest(self, name: Repository, digest: Digest, /) -> Document:
        """Return a manifest, hashed."""

    def is_tagged(self, name: Repository, tag: Tag, digest: Digest, /) -> bool:
        """Return whether a tag names a manifest now."""

    def put_blob(
        self,
        name: Repository,
        digest: Digest,
        body: BinaryIO | bytes,
        size: int,
        mount_from: Repository | None = None,
        /,
    ) -> None:
        """Store the next `size` bytes of `body`, or mount the blob from another repository."""

    def put_manifest(
        self, name: Repository, reference: Reference, data: bytes, content_type: str, /
    ) -> Digest:
        """Store a manifest under a tag or its digest; return its digest."""

    def delete_tag(self, name: Repository, tag: Tag, /) -> None:
        """Delete a tag alone; raises Unsupported where that cannot be done."""

    def delete_manifest(self, name: Repository, digest: Digest, /) -> None:
        """Delete a manifest, and all its tags."""

    def delete_blob(self, name: Repository, digest: Digest, /) -> None:
        """Delete a blob."""


HAS_CATALOG = Question(Kind.FACT, name="catalog")
"""The registry has listed its repositories."""

NO_REFERRERS_CALL = Question(Kind.FACT, name="no referrers call")
"""The registry does not offer the referrers call; referrers are found by tag."""


def answers_referrers(repository: str) -> Question:
    """Return the fact that the referrers call has answered for a repository."""
    return Question(Kind.FACT, repository, "referrers call")


class Facts:
    """Facts learned about a registry, persisted for its next mount; in memory without a store.

    A registry that refuses a listing today may never have had one, or may withhold it. Only the
    facts of earlier answers tell the two apart. A fact is stored with the registry's answers, so it
    belongs to the same credentials and survives an outage.

    Any thread may call anything: a dictionary's own operations are atomic.
    """

    def __init__(self, store: AnswerStore | None = None) -> None:
        self._store = store
        self._known: dict[Question, bool] = {}

    def known(self, fact: Question) -> bool:
        """Return whether a fact was learned, by this process or by an earlier mount."""
        known = self._known.get(fact)
        if known is None:
            store = self._store
            known = store is not None and bool(store.get(store.asker(fact.repository), fact))
            self._known.setdefault(fact, known)
        return known

    def learn(self, fact: Question) -> None:
        if self._known.get(fact):
            return
        self._known[fact] = True
        if self._store is not None:
            self._store.put(self._store.asker(fact.repository), fact, _HOLDS)
