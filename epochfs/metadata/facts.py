"""Persists facts learned about a registry, for its next mount.

A registry that refuses a listing today may never have had one, or may have one that it withholds.
Only the facts of earlier answers tell the two apart.

A fact is stored with the registry's answers (`cache.answers`), so it belongs to these credentials
and survives an outage.
"""

from __future__ import annotations

from epochfs.cache.answers import AnswerStore, Question

_KIND = "fact"
_HOLDS = b"1"

HAS_CATALOG = Question(_KIND, name="catalog")
"""The registry has listed its repositories."""

NO_REFERRERS_CALL = Question(_KIND, name="no referrers call")
"""The registry does not offer the referrers call; referrers are found by tag."""


def answers_referrers(repository: str) -> Question:
    """Return the fact that the referrers call has answered for a repository."""
    return Question(_KIND, repository, "referrers call")


class Facts:
    """The facts about one registry; without a store, this process alone knows them.

    Any thread may call anything: a dictionary's own operations are atomic.
    """

    def __init__(self, store: AnswerStore | None = None) -> None:
        self._store = store
        self._known: dict[Question, bool] = {}

    def known(self, fact: Question) -> bool:
        """Return whether a fact was learned, by this process or by an earlier mount."""
        known = self._known.get(fact)
        if known is None:
            known = self._store is not None and self._store.get(fact) is not None
            self._known.setdefault(fact, known)
        return known

    def learn(self, fact: Question) -> None:
        """Keep a fact."""
        if self._known.get(fact):
            return
        self._known[fact] = True
        if self._store is not None:
            self._store.put(fact, _HOLDS)
