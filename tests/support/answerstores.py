"""Stores of remembered answers, and those who ask them, for the tests of both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from epochfs.cache.answers import AnswerStore, Identify, Question
from epochfs.client.auth import Authenticator, CredentialStore
from epochfs.config import Credentials

REGISTRY = "http://127.0.0.1:5000"
ALICE = Credentials("alice", "canary-of-alice")
TAGS = Question("tags", "team/app")


class AskingStore:
    """A store that is asked, each time, by whoever asks at that moment."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._store = AnswerStore(*arguments, **options)

    def put(self, question: Question, value: bytes, **options: Any) -> None:
        self._store.put(self.asker(question.repository), question, value, **options)

    def get(self, question: Question, max_age: float | None = None) -> bytes | None:
        return self._store.get(self.asker(question.repository), question, max_age)

    def forget(self, question: Question) -> None:
        self._store.forget(self.asker(question.repository), question)

    def forget_repository(self, repository: str) -> None:
        self._store.forget_repository(self.asker(repository))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


Open = Callable[..., AskingStore]


def shown(credentials: Credentials) -> Identify:
    """Tell the bearer of credentials, as a client of the registry does."""
    asking = Authenticator(CredentialStore(credentials, REGISTRY), "http")
    return lambda salt, repository: asking.bearer_for(salt, repository, time.monotonic() + 10)


def stuck(store: AskingStore, *, on: bool = True) -> None:
    """Let the database take no write."""
    store._database._connection.execute(f"PRAGMA query_only={int(on)}")
    store._store._retry_at = 0.0


def opening(path: Path) -> Iterator[Open]:
    """A fixture: opens stores of one file, by default one for ALICE."""
    with ExitStack() as stack:

        def build(
            registry: str = REGISTRY, who: Credentials = ALICE, **options: Any
        ) -> AskingStore:
            store = AskingStore(path, registry, shown(who), **options)
            stack.callback(store.close)
            return store

        yield build
