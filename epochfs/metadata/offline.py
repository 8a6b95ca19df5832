"""A client that serves remembered answers while the registry is down.

It wraps `RegistryClient` and stores each answer in `cache.answers`. When the registry cannot be
reached, or is known to be down (`registry_health`), the last answer serves in place of a new one:
about names for as long as `max_age` allows, about a digest without limit, for its content never
changes. "Unknown", "denied" and "not offered" are answers too: they replace what was remembered,
and for names they are remembered themselves. A 404 without one of the specification's error codes
replaces nothing: an ingress gives such.

Access to a whole repository ends when the registry denies one of its manifests or blobs; a denied
listing ends that listing alone.

Manifests are hashed again when they are read back. Health is the registry's own: it is pinged even
while a mirror answers in its place.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from epochfs.cache.answers import AnswerStore, Question
from epochfs.client import BlobStream, RegistryClient
from epochfs.errors import (
    CacheFailure,
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
)
from epochfs.metadata.facts import Facts
from epochfs.metadata.registry_health import Health, Outage
from epochfs.oci.manifests import Descriptor, Document, Manifest, checked_size, digest_matches
from epochfs.oci.names import Digest, Reference, Repository, Tag

log = logging.getLogger(__name__)

T = TypeVar("T")

_CATALOG = "catalogue"  # so it stands in the files of earlier versions
_TAGS = "tags"
_DESCRIPTION = "description"
_MANIFEST = "manifest"
_BLOB = "blob"
_CONTENT = "content"
_REFERRERS = "referrers"

_NEVER_MIRRORED = frozenset({_CATALOG, _TAGS, _REFERRERS})
"""Listings. Everything else is content; an answer about it proves access."""

_ANSWER = b"="
_REFUSALS: dict[bytes, type[EpochfsError]] = {b"?": NotFound, b"!": Denied, b"~": Unsupported}
"""The first byte of an answer on disk, and the marks of refusals."""


class RememberingClient:
    """A `PullClient` of one registry. Any thread may call anything."""

    def __init__(
        self, client: RegistryClient, answers: AnswerStore, health: Health, max_age: float
    ) -> None:
        """`max_age` is the maximum age of answers about names, in seconds."""
        self._client = client
        self._answers = answers
        self.facts = Facts(answers)
        self.health = health
        self._max_age = max_age
        self._mirrored = bool(client.mirrors)
        self._lock = threading.Lock()
        self._recalled = 0

    @property
    def recalled(self) -> int:
        """How many answers, refusals among them, the cache gave in place of the registry."""
        return self._recalled

    def catalog(self) -> list[str]:
        """Return the names of all repositories."""
        question = Question(_CATALOG)
        return self._ask(question, self._client.catalog, _dump, _names, self._max_age)

    def list_tags(self, name: Repository) -> list[str]:
        """Return a repository's tags."""
        question = Question(_TAGS, name.name)
        return self._ask(
            question, lambda: self._client.list_tags(name), _dump, _names, self._max_age
        )

    def resolve(self, name: Repository, reference: Reference) -> Descriptor:
        """Describe what a tag names now, or what a digest does."""
        return self._ask(
            Question(_DESCRIPTION, name.name, str(reference)),
            lambda: self._client.resolve(name, reference),
            lambda value: _dump(_dumped(value)),
            lambda raw: _descriptor(json.loads(raw)),
            self._max_age if isinstance(reference, Tag) else None,
        )

    def get_manifest(
        self, name: Repository, reference: Digest, limit: int | None = None
    ) -> Document:
        """Return a manifest; the blobs it names are then known to be the repository's."""

        def remember_what_it_names(document: Document) -> None:
            self._remember_description(name, document)
            self._remember_blobs(name, document)

        return self._ask(
            Question(_MANIFEST, name.name, str(reference)),
            lambda: self._client.get_manifest(name, reference, limit),
            lambda value: f"{value.media_type}\n".encode() + value.raw,
            lambda raw: _document(reference, raw),
            besides=remember_what_it_names,
        )

    def referrers(self, name: Repository, digest: Digest) -> list[Descriptor]:
        """Return the referrers of a manifest."""
        return self._ask(
            Question(_REFERRERS, name.name, str(digest)),
            lambda: self._client.referrers(name, digest),
            lambda value: _dump([_dumped(one) for one in value]),
            lambda raw: [_descriptor(one) for one in json.loads(raw)],
            self._max_age,
        )

    def read_blob(self, name: Repository, digest: Digest, limit: int) -> bytes:
        """Return a whole blob that is a document; it is remembered as manifests are."""
        return self._ask(
            Question(_CONTENT, name.name, str(digest)),
            lambda: self._client.read_blob(name, digest, limit),
            lambda value: value,
            lambda raw: _checked(digest, raw),
        )

    def blob_size(self, name: Repository, digest: Digest) -> int:
        """Return a blob's size in bytes."""
        return self._ask(
            Question(_BLOB, name.name, str(digest)),
            lambda: self._client.blob_size(name, digest),
            _dump,
            lambda raw: checked_size(json.loads(raw)),
        )

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> BlobStream:
        """Open a blob for reading; its bytes are cached by `cache.blobs`, not here."""
        self._refuse_while_down(_BLOB, self.health.outage)
        try:
            stream = self._client.get_blob(name, digest, start, end)
        except (Unavailable, DeadlineExceeded) as error:
            self.health.failed(error)
            raise
        self._answered(_BLOB)
        return stream

    def distrust_mirrors(self, digest: Digest) -> bool:
        """Report wrong bytes of a blob; return whether a mirror may have sent them."""
        return self._client.distrust_mirrors(digest)

    def _ask(
        self,
        question: Question,
        ask: Callable[[], T],
        dump: Callable[[T], bytes],
        load: Callable[[bytes], T],
        max_age: float | None = None,
        besides: Callable[[T], None] = lambda _: None,
    ) -> T:
        """Ask the registry and remember its answer; without one, return the remembered answer.

        `besides` remembers what else follows from an answer.
        """
        outage = self.health.outage  # read once: another thread may find it meanwhile
        if outage is not None:
            kept = self._recall(question, load, max_age)
            if kept is not None:
                return kept
        scope = self._answers.scope(question.repository)
        if scope is not None:
            self._refuse_while_down(question.kind, outage)
        try:
            value = ask()
        except (Unavailable, DeadlineExceeded) as error:
            self.health.failed(error)
            kept = self._recall(question, load, max_age)
            if kept is None:
                raise
            return kept
        except CredentialsUnavailable:
            raise  # nobody was asked
        except UnconfirmedNotFound as error:
            kept = self._recall(question, load, max_age)
            if kept is None:
                self.health.answered()
                raise
            self.health.failed(error)
            return kept
        except EpochfsError as error:
            self.health.answered()
            if self._answers.scope(question.repository) == scope:
                self._remember_refusal(question, error, for_names=max_age is not None)
            raise
        self._answered(question.kind)
        # A login since then did not ask this.
        if self._answers.scope(question.repository) == scope:
            self._answers.put(question, _ANSWER + dump(value))
            besides(value)
        return value

    def check_registry(self) -> None:
        """Raise Unavailable if the registry is known to be down and no mirror has its blobs."""
        self._refuse_while_down(_BLOB, self.health.outage)

    def _refuse_while_down(self, kind: str, outage: Outage | None) -> None:
        """Raise Unavailable at once during an outage, unless a mirror may answer."""
        if outage is not None and (kind in _NEVER_MIRRORED or not self._mirrored):
            raise Unavailable(f"the registry is down: {outage.reason}")

    def _answered(self, kind: str) -> None:
        """Note an answer of the registry, unless it may be a mirror's; a refusal never is."""
        if kind in _NEVER_MIRRORED or not self._mirrored:
            self.health.answered()

    def _remember_refusal(
        self, question: Question, error: EpochfsError, *, for_names: bool
    ) -> None:
        if isinstance(error, Denied) and question.kind not in _NEVER_MIRRORED:
            self._answers.forget_repository(question.repository)
        elif isinstance(error, NotFound):
            self._answers.forget(question)
        mark = next((mark for mark, kind in _REFUSALS.items() if isinstance(error, kind)), None)
        if for_names and mark is not None:
            self._answers.put(question, mark, proves_access=False)

    def _recall(
        self, question: Question, load: Callable[[bytes], T], max_age: float | None
    ) -> T | None:
        """Return the remembered answer; raise it if it was a refusal; None if there is none."""
        raw = self._answers.get(question, max_age)
        if raw is None:
            return None
        refusal = _REFUSALS.get(raw)
        if refusal is not None:
            self._count_recalled()
            raise refusal("so the registry said when it last answered")
        try:
            if not raw.startswith(_ANSWER):
                raise ValueError("no answer of ours")
            value = load(raw[1:])
        except (ValueError, TypeError, KeyError, RecursionError, EpochfsError) as error:
            log.info("a remembered answer cannot be used: %s", error)
            self._answers.forget(question)
            return None
        self._count_recalled()
        return value

    def _count_recalled(self) -> None:
        with self._lock:
            self._recalled += 1

    def _remember_description(self, name: Repository, document: Document) -> None:
        """Remember what a HEAD of the manifest would say."""
        described = Descriptor(document.media_type, document.digest, document.size)
        question = Question(_DESCRIPTION, name.name, str(document.digest))
        self._answers.put(question, _ANSWER + _dump(_dumped(described)))

    def _remember_blobs(self, name: Repository, document: Document) -> None:
        """Remember the blob sizes in a manifest, as if from HEADs of the blobs."""
        try:
            view = document.view
        except ProtocolViolation:
            return
        if isinstance(view, Manifest):
            for blob in (view.config, *view.layers):
                if blob is not None:
                    self._answers.put(
                        Question(_BLOB, name.name, str(blob.digest)), _ANSWER + _dump(blob.size)
                    )


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _names(raw: bytes) -> list[str]:
    value = json.loads(raw)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("no list of names")
    return value


def _dumped(one: Descriptor) -> list[object]:
    return [one.media_type, str(one.digest), one.size, one.artifact_type, dict(one.annotations)]


def _descriptor(value: Any) -> Descriptor:  # noqa: ANN401 - JSON, which may be damaged
    media_type, digest, size, artifact_type, annotations = value
    return Descriptor(
        media_type, Digest.parse(digest), checked_size(size), artifact_type, dict(annotations)
    )


def _document(digest: Digest, raw: bytes) -> Document:
    media_type, _, body = raw.partition(b"\n")
    if not digest_matches(digest, body):
        raise CacheFailure(f"the manifest {digest} was damaged on disk")
    return Document(digest, media_type.decode("ascii"), body)


def _checked(digest: Digest, raw: bytes) -> bytes:
    if not digest.matches(raw):
        raise CacheFailure(f"what {digest} names was damaged on disk")
    return raw
