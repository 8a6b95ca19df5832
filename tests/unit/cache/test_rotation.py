"""What is remembered of a registry's answers when the secret they were given for is rotated."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.answerstores import TAGS, Open, opening, stuck
from support.clock import Clock

from epochfs.cache.answers import Question
from epochfs.config import Credentials


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    yield from opening(tmp_path / "answers.sqlite")


@pytest.fixture
def rotating(tmp_path: Path) -> Callable[[str], Credentials]:
    """Write a token into the file that credentials name."""

    def rotate(token: str) -> Credentials:
        (tmp_path / "token").write_text(token)
        return Credentials(token_file=tmp_path / "token")

    return rotate


Rotate = Callable[[str], Credentials]


def test_what_a_process_has_proved_outlives_the_rotation_of_its_token(
    opened: Open, rotating: Rotate
) -> None:
    store = opened(who=rotating("first"))
    other = Question("tags", "team/other")
    store.put(TAGS, b"one")
    for token in ("second", "third"):
        rotating(token)
        assert store.get(TAGS) == b"one"
        store.put(other, token.encode())
        assert store.get(other) == token.encode()
    rotating("first")
    assert (store.get(TAGS), store.get(other)) == (b"one", b"third")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ({"username": "alice", "password": "a"}, {"username": "alice", "password": "b"}, b"one"),
        ({"identitytoken": "a"}, {"identitytoken": "b"}, b"one"),
        ({"username": "alice", "password": "a"}, {"username": "bob", "password": "a"}, None),
        ({"username": "alice", "password": "a"}, None, None),
        (None, {"username": "alice", "password": "a"}, None),
    ],
)
def test_a_login_that_is_renewed_is_the_same_bearers_and_another_users_is_not(
    tmp_path: Path, opened: Open, first: object, second: object, expected: bytes | None
) -> None:
    file = tmp_path / "auth.json"

    def log_in(entry: object) -> None:
        auths = {} if entry is None else {"127.0.0.1:5000": entry}
        file.write_text(json.dumps({"auths": auths}))

    log_in(first)
    store = opened(who=Credentials(auth_files=(file,)))
    store.put(TAGS, b"one")
    log_in(second)
    assert store.get(TAGS) == expected


def test_the_rotated_token_gives_another_process_nothing(opened: Open, rotating: Rotate) -> None:
    store = opened(who=rotating("first"))
    store.put(TAGS, b"one")
    assert store.get(TAGS) == b"one"
    after = opened(who=rotating("second"))
    assert store.get(TAGS) == b"one"
    assert after.get(TAGS) is None


def test_what_another_process_got_with_credentials_this_one_never_had_is_not_given(
    opened: Open, rotating: Rotate
) -> None:
    other = opened()
    other.put(TAGS, b"for alice")
    assert other.get(TAGS) == b"for alice"
    store = opened(who=rotating("first"))
    rotating("second")
    assert store.get(TAGS) is None


def test_a_newer_answer_counts_before_that_to_an_earlier_token(
    opened: Open, rotating: Rotate
) -> None:
    clock = Clock()
    store = opened(who=rotating("first"), clock=clock)
    store.put(TAGS, b"one")
    rotating("second")
    clock.now += 60
    store.put(TAGS, b"?", proves_access=False)
    assert store.get(TAGS) == b"?"
    clock.now += 60
    rotating("third")
    assert store.get(TAGS, max_age=60) is None
    assert store.get(TAGS) == b"one"


@pytest.mark.parametrize("forget", ["answer", "repository"])
def test_what_is_forgotten_is_so_under_every_token(
    opened: Open, rotating: Rotate, forget: str
) -> None:
    store = opened(who=rotating("first"))
    manifest = Question("manifest", "team/app", "sha256:1")
    for question in (TAGS, manifest):
        store.put(question, b"one")
    rotating("second")
    store.put(TAGS, b"two")
    if forget == "answer":
        store.forget(TAGS)
    else:
        store.forget_repository("team/app")
    for token in ("first", "second", "third"):
        rotating(token)
        assert store.get(TAGS) is None
        assert store.get(manifest) == (b"one" if forget == "answer" else None)


def test_a_token_that_the_registry_refuses_gives_nothing_of_what_earlier_ones_proved(
    opened: Open, rotating: Rotate
) -> None:
    store = opened(who=rotating("first"))
    neighbour = Question("tags", "team/neighbour")
    for question in (TAGS, neighbour):
        store.put(question, b"one")
    rotating("refused")
    assert store.get(neighbour) == b"one"
    store.forget_repository("team/app")
    store.put(TAGS, b"!", proves_access=False)
    assert (store.get(TAGS), store.get(neighbour)) == (b"!", None)
    rotating("third")
    assert (store.get(TAGS), store.get(neighbour)) == (None, b"one")


def test_a_repository_that_is_denied_to_an_accepted_token_takes_no_other_away(
    opened: Open, rotating: Rotate
) -> None:
    store = opened(who=rotating("first"))
    neighbour = Question("tags", "team/neighbour")
    for question in (TAGS, neighbour):
        store.put(question, b"one")
    rotating("second")
    store.forget_repository("never/had")
    assert store.get(neighbour) == b"one"
    store.put(Question("tags", "team/third"), b"one")
    store.forget_repository("team/app")
    assert (store.get(TAGS), store.get(neighbour)) == (None, b"one")


def test_on_a_disk_that_takes_nothing_what_was_proved_outlives_the_rotation_too(
    opened: Open, rotating: Rotate
) -> None:
    store = opened(who=rotating("first"))
    store.put(TAGS, b"on disk")
    assert store.get(TAGS) == b"on disk"
    stuck(store)
    rotating("second")
    assert store.get(TAGS) == b"on disk"
    store.put(TAGS, b"in memory")
    for token in ("third", "first"):
        rotating(token)
        assert store.get(TAGS) == b"in memory"
    store.put(TAGS, b"the last")
    rotating("second")
    assert store.get(TAGS) == b"the last"


@pytest.mark.parametrize("forget", ["answer", "repository"])
def test_what_cannot_be_forgotten_on_disk_is_given_under_no_token(
    opened: Open, rotating: Rotate, forget: str
) -> None:
    store = opened(who=rotating("first"))
    store.put(TAGS, b"on disk")
    assert store.get(TAGS) == b"on disk"
    stuck(store)
    for token in ("second", "third"):
        rotating(token)
        store.put(TAGS, b"in memory")
    if forget == "answer":
        store.forget(TAGS)
    else:
        store.forget_repository("team/app")
    for on in (True, False):
        stuck(store, on=on)
        for token in ("first", "second", "third", "fourth"):
            rotating(token)
            assert store.get(TAGS) is None
