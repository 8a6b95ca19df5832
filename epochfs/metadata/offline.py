"""Serves remembered answers while the registry is down.

`RememberingClient` wraps `RegistryClient` and stores each answer in `cache.answers`. When the
registry cannot be reached, or is known to be down, the last answer serves in place of a new one:
about names for as long as `max_age` allows, about a digest without limit, for its content never
changes. "Unknown", "denied" and "not offered" are answers too: they replace what was remembered,
and for names they are remembered themselves. A 404 without one of the specification's error codes
replaces nothing, for an ingress sends such.

Access to a whole repository ends when the registry denies one of its manifests or blobs; a denied
listing ends that listing alone.

Manifests are hashed again when they are read back.

Locks: `RememberingClient._lock` guards the count of remembered answers; no I/O happens under it.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, TypeVar

from epochfs.cache.answers import AnswerStore, Asker, Question
from epochfs.client import BlobStream, RegistryClient
from epochfs.errors import (
    CacheFailure,
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
)
from epochfs.metadata.health import Health
from epochfs.metadata.source import CATALOG, LISTINGS, Answer, Facts, Kind
from epochfs.oci.closure import named_blobs
from epochfs.oci.manifests import Descriptor, Document, checked_size, digest_matches
from epochfs.oci.names import Digest, Reference, Repository, Tag

log = logging.getLogger(__name__)

T = TypeVar("T")

_ANSWER = b"="
_REFUSALS: dict[bytes, type[EpochfsError]] = {b"?": NotFound, b"!": Denied, b"~": Unsupported}
"""The first byte of an answer on disk, and the marks of refusals."""


class RememberingClient:
    """A `Source` and `PullClient`, which document its methods. Any thread may call anything."""

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
        self.recalled = 0
        """How many remembered answers, refusals among them, were given, for operators to see."""

    def catalog(self) -> Answer[list[str]]:
        return self._ask(CATALOG, self._client.catalog, _dump, _names, self._max_age)

    def list_tags(self, name: Repository) -> Answer[list[str]]:
        ask = partial(self._client.list_tags, name)
        return self._ask(Question(Kind.TAGS, name.name), ask, _dump, _names, self._max_age)

    def resolve(self, name: Repository, reference: Reference) -> Answer[Descriptor]:
        max_age = self._max_age if isinstance(reference, Tag) else None
        return self._ask(
            Question(Kind.DESCRIPTION, name.name, str(reference)),
            partial(self._client.resolve, name, reference),
            _dump,
            lambda raw: _descriptor(json.loads(raw)),
            max_age,
        )

    def fetch_tag(self, name: Repository, tag: Tag, limit: int) -> Answer[Descriptor | Document]:
        """Return the manifest under a tag; what it says is then known as if each had been asked.

        With mirrors, only describe it: they may have its bytes without being trusted with names.
        """
        question = Question(Kind.DESCRIPTION, name.name, tag.name)
        ask: Callable[[], Document | Descriptor] = partial(
            self._client.get_manifest, name, tag, limit
        )
        if self._mirrored:
            ask = partial(self._client.resolve, name, tag)
        return self._ask(
            question,
            ask,
            lambda found: _dump(found if isinstance(found, Descriptor) else _description(found)),
            lambda raw: _descriptor(json.loads(raw)),
            self._max_age,
            implies=_implied_by_tag,
        )

    def get_manifest(
        self, name: Repository, reference: Digest, limit: int | None = None
    ) -> Document:
        """Return a manifest; its description and the sizes of its blobs are then known too."""
        return self._ask(
            Question(Kind.MANIFEST, name.name, str(reference)),
            partial(self._client.get_manifest, name, reference, limit),
            _dump_manifest,
            partial(_document, reference),
            implies=_implied_by_manifest,
        ).value

    def referrers(self, name: Repository, digest: Digest) -> Answer[list[Descriptor]]:
        return self._ask(
            Question(Kind.REFERRERS, name.name, str(digest)),
            partial(self._client.referrers, name, digest),
            _dump,
            lambda raw: [_descriptor(one) for one in json.loads(raw)],
            self._max_age,
        )

    def read_blob(self, name: Repository, digest: Digest, limit: int) -> bytes:
        """Return a whole blob that is a document; it is remembered as manifests are."""
        return self._ask(
            Question(Kind.CONTENT, name.name, str(digest)),
            partial(self._client.read_blob, name, digest, limit),
            bytes,
            partial(_checked, digest),
        ).value

    def blob_size(self, name: Repository, digest: Digest) -> Answer[int]:
        return self._ask(
            Question(Kind.SIZE, name.name, str(digest)),
            partial(self._client.blob_size, name, digest),
            _dump,
            lambda raw: checked_size(json.loads(raw)),
        )

    def amend(self, now: Mapping[Question, object], gone: Iterable[Question] = ()) -> None:
        """Remember what a change makes of answers; those that are `gone` are to be asked for."""
        known = {
            one: _ANSWER + (_dump_manifest(value) if isinstance(value, Document) else _dump(value))
            for one, value in now.items()
        }
        self._answers.change(known, gone)

    def get_blob(
        self, name: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> BlobStream:
        """Open a blob for reading; its bytes are cached by `cache.blobs`, not here."""
        self.check_registry()
        try:
            stream = self._client.get_blob(name, digest, start, end)
        except (Unavailable, DeadlineExceeded) as error:
            self.health.failed(error)
            raise
        if not self._mirrored and self.health.outage is not None:
            self.health.answered()
        return stream

    def distrust_mirrors(self, digest: Digest) -> bool:
        return self._client.distrust_mirrors(digest)

    def check_registry(self) -> None:
        """Raise Unavailable if the registry is known to be down and no mirror has its blobs."""
        outage = self.health.outage
        if outage is not None and not self._mirrored:
            raise Unavailable(f"the registry is down: {outage.reason}")

    def _ask(
        self,
        question: Question,
        ask: Callable[[], T],
        dump: Callable[[T], bytes],
        load: Callable[[bytes], T],
        max_age: float | None = None,
        implies: Callable[[Question, T], dict[Question, bytes]] | None = None,
    ) -> Answer[T]:
        """Ask the registry and remember its answer; without one, return the remembered answer.

        `implies` tells what other answers follow from an answer.
        """
        asker = self._answers.asker(question.repository)
        by_mirror = self._mirrored and question.kind not in LISTINGS
        outage = self.health.outage  # read once: another thread may find it meanwhile
        if outage is not None:
            if kept := self._recall(asker, question, load, max_age):
                return kept
            if asker is not None and not by_mirror:
                raise Unavailable(f"the registry is down: {outage.reason}")
        try:
            value = ask()
        except (Unavailable, DeadlineExceeded) as error:
            self.health.failed(error)
            if kept := self._recall(asker, question, load, max_age):
                return kept
            raise
        except CredentialsUnavailable:
            raise  # nobody was asked
        except UnconfirmedNotFound as error:
            if kept := self._recall(asker, question, load, max_age):
                self.health.failed(error)
                return kept
            self.health.answered()
            raise
        except EpochfsError as error:
            self.health.answered()  # mirrors refuse nothing
            if self._answers.asker(question.repository) == asker:
                self._remember_refusal(asker, question, error, named=max_age is not None)
            raise
        if not by_mirror and self.health.outage is not None:
            self.health.answered()
        # If somebody logged in meanwhile, the answer is not theirs.
        if self._answers.asker(question.repository) == asker:
            self._answers.put(asker, question, _ANSWER + dump(value))
            for implied, text in implies(question, value).items() if implies else ():
                self._answers.put(asker, implied, _ANSWER + text)
        return Answer(value)

    def _remember_refusal(
        self, asker: Asker | None, question: Question, error: Exception, *, named: bool
    ) -> None:
        if isinstance(error, Denied) and question.kind not in LISTINGS:
            self._answers.forget_repository(asker)
        elif isinstance(error, NotFound):
            self._answers.forget(asker, question)
        mark = next((mark for mark, kind in _REFUSALS.items() if isinstance(error, kind)), None)
        if named and mark is not None:
            self._answers.put(asker, question, mark, proves_access=False)

    def _recall(
        self,
        asker: Asker | None,
        question: Question,
        load: Callable[[bytes], T],
        max_age: float | None,
    ) -> Answer[T] | None:
        """Return the remembered answer; raise it if it was a refusal; None if there is none."""
        raw = self._answers.get(asker, question, max_age)
        if raw is None:
            return None
        refusal = _REFUSALS.get(raw)
        try:
            if refusal is None and not raw.startswith(_ANSWER):
                raise ValueError("no answer of ours")
            found = None if refusal else Answer(load(raw[1:]), is_current=False)
        except (ValueError, TypeError, KeyError, RecursionError, EpochfsError) as error:
            log.info("a remembered answer cannot be used: %s", error)
            self._answers.forget(asker, question)
            return None
        with self._lock:
            self.recalled += 1
        if refusal is not None:
            raise refusal("so the registry said when it last answered")
        return found


def _implied_by_manifest(question: Question, document: Document) -> dict[Question, bytes]:
    """Return what HEADs of a manifest and of the blobs it names would say."""
    described = _description(document)
    repository = Repository(question.repository)
    found = {Question(Kind.DESCRIPTION, repository.name, str(document.digest)): _dump(described)}
    for blob in named_blobs(document.readable_view):
        found[Question(Kind.SIZE, repository.name, str(blob.digest))] = _dump(blob.size)
    return found


def _implied_by_tag(question: Question, found: Document | Descriptor) -> dict[Question, bytes]:
    """Return what else is known once a manifest was fetched by its tag."""
    if isinstance(found, Descriptor):
        return {}
    itself = Question(Kind.MANIFEST, question.repository, str(found.digest))
    return {itself: _dump_manifest(found), **_implied_by_manifest(itself, found)}


def _description(document: Document) -> Descriptor:
    return Descriptor(document.media_type, document.digest, document.size)


def _dump_manifest(document: Document) -> bytes:
    return f"{document.media_type}\n".encode() + document.raw


def _dump(value: object) -> bytes:
    return json.dumps(value, default=_fields).encode()


def _fields(one: Descriptor) -> list[object]:
    return [one.media_type, str(one.digest), one.size, one.artifact_type, dict(one.annotations)]


def _names(raw: bytes) -> list[str]:
    value = json.loads(raw)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError("no list of names")
    return value


def _descriptor(value: Any) -> Descriptor:  # noqa: ANN401 - JSON, which may be damaged
    media_type, digest, size, artifact_type, annotations = value
    size = checked_size(size)
    return Descriptor(media_type, Digest.parse(digest), size, artifact_type, dict(annotations))


def _document(digest: Digest, raw: bytes) -> Document:
    media_type, _, body = raw.partition(b"\n")
    if not digest_matches(digest, body):
        raise CacheFailure(f"the manifest {digest} was damaged on disk")
    return Document(digest, media_type.decode("ascii"), body)


def _checked(digest: Digest, raw: bytes) -> bytes:
    if not digest.matches(raw):
        raise CacheFailure(f"what {digest} names was damaged on disk")
    return raw
