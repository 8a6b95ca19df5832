"""What a registry can be asked, as its answers are remembered; and when an answer is out of date.

What this process writes changes what the registry would say. So the answers to be changed are
amended or forgotten, and one that was on its way meanwhile is not remembered: it may be older.

Locks: `Ledger._lock` guards `_changes`, and is taken before the lock of what is pending in
`cache.answers`; no I/O happens under it.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping

from epochfs.cache.answers import AnswerStore, Asker, Question
from epochfs.oci.names import Digest, Reference, Repository

CATALOG = Question("catalogue")  # so it is spelt in the files of earlier versions
_TAGS = "tags"
_REFERRERS = "referrers"

LISTINGS = frozenset({CATALOG.kind, _TAGS, _REFERRERS})
"""The kinds that list something, and that mirrors are not asked. Everything else is content; an
answer about it proves access."""


def tags_of(repository: Repository) -> Question:
    """What tags a repository has."""
    return Question(_TAGS, repository.name)


def description_of(repository: Repository, reference: Reference) -> Question:
    """What a reference names now."""
    return Question("description", repository.name, str(reference))


def manifest_of(repository: Repository, digest: Digest) -> Question:
    """The manifest of a digest."""
    return Question("manifest", repository.name, str(digest))


def referrers_of(repository: Repository, digest: Digest) -> Question:
    """What refers to a manifest."""
    return Question(_REFERRERS, repository.name, str(digest))


def size_of(repository: Repository, digest: Digest) -> Question:
    """How large a blob is."""
    return Question("blob", repository.name, str(digest))


def content_of(repository: Repository, digest: Digest) -> Question:
    """All of a blob."""
    return Question("content", repository.name, str(digest))


class Ledger:
    """Keeps answers in a store, unless they were asked for before a change. Thread-safe."""

    def __init__(self, answers: AnswerStore) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._changes: Counter[str] = Counter()

    def now(self, question: Question) -> int:
        """Return the moment at which a question is asked, for `put`."""
        with self._lock:
            return self._changes[question.repository]

    def put(
        self,
        asked: int,
        asker: Asker | None,
        question: Question,
        value: bytes,
        *,
        proves_access: bool = True,
    ) -> None:
        """Keep an answer, unless what it is about has changed since it was `asked` for."""
        with self._lock:
            if self._changes[question.repository] == asked:
                self._answers.put(asker, question, value, proves_access=proves_access)

    def change(self, now: Mapping[Question, bytes], gone: Iterable[Question]) -> None:
        """Keep what the answers to some questions are `now`, and forget those to others.

        That something was written proves no access to read it.
        """
        gone = list(gone)
        with self._lock:
            self._changes.update({question.repository for question in (*now, *gone)})
        for question in gone:
            self._answers.forget(self._answers.asker(question.repository), question)
        for question, value in now.items():
            asker = self._answers.asker(question.repository)
            self._answers.put(asker, question, value, proves_access=False)
