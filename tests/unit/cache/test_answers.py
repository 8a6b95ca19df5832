"""Answers of the registry on disk: given again to who got them, and to nobody else."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.answerstores import (
    ALICE,
    REGISTRY,
    TAGS,
    AskingStore,
    Open,
    opening,
    shown,
    stuck,
)
from support.clock import Clock
from support.diskcache import damage, read_only

from epochfs.cache.answers import AnswerStore, Asker, Question
from epochfs.config import Credentials
from epochfs.errors import CacheFailure


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    yield from opening(path)


def test_an_answer_is_there_at_once_and_after_a_remount(path: Path, opened: Open) -> None:
    with closing(AskingStore(path, REGISTRY, shown(ALICE))) as store:
        store.put(TAGS, b"one")
        assert store.get(TAGS) == b"one"
        store.put(TAGS, b"two")
    assert opened().get(TAGS) == b"two"


@pytest.mark.parametrize(
    ("registry", "who"),
    [
        ("http://127.0.0.1:5001", ALICE),
        (REGISTRY, Credentials()),
        (REGISTRY, Credentials("bob", "canary-of-alice")),
        (REGISTRY, Credentials("alice", "another")),
        (REGISTRY, Credentials(token="canary-of-alice")),
    ],
)
def test_another_registry_or_other_credentials_get_nothing(
    opened: Open, registry: str, who: Credentials
) -> None:
    store, other = opened(), opened(registry, who)
    store.put(TAGS, b"for alice")
    assert store.get(TAGS) == b"for alice"
    assert other.get(TAGS) is None
    other.forget_repository("team/app")
    assert store.get(TAGS) == b"for alice"


def test_an_answer_older_than_a_change_replaces_nothing_and_forgets_nothing(opened: Open) -> None:
    store = opened()
    asker = store.asker("team/app")
    store.change({TAGS: b"written"}, [])
    store._store.put(asker, TAGS, b"older")
    store._store.forget(asker, TAGS)
    assert store.get(TAGS) == b"written"
    store.put(TAGS, b"newer")
    assert store.get(TAGS) == b"newer"


def test_an_answer_about_another_repository_is_kept_whatever_was_changed(opened: Open) -> None:
    store, other = opened(), Question("tags", "team/other")
    asker = store.asker("team/other")
    store.change({TAGS: b"written"}, [])
    store._store.put(asker, other, b"of the other")
    assert store.get(other) == b"of the other"


def test_changes_at_the_same_moment_are_all_kept(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, manifest = Question("blob", "team/app", "x"), Question("manifest", "team/app", "y")
    find, others = AnswerStore.asker, iter([TAGS, Question("description", "team/app", "v1")])

    def meanwhile(self: AnswerStore, repository: str) -> Asker | None:
        """Find out who asks; another thread changes something before that is used."""
        asker = find(self, repository)
        for other in others:
            self.change({other: b"by another"}, [])
        return asker

    store = opened()
    store.put(gone, b"7")
    monkeypatch.setattr(AnswerStore, "asker", meanwhile)
    store.change({manifest: b"written"}, [gone])
    monkeypatch.undo()
    assert store.get(gone) is None
    assert [store.get(one) for one in (manifest, TAGS)] == [b"written", b"by another"]


def test_on_a_full_disk_what_was_kept_is_still_there(path: Path, opened: Open) -> None:
    store = opened()
    store.put(TAGS, b"one")
    assert store.get(TAGS) == b"one"
    pages = store._database._connection.execute("PRAGMA page_count").fetchone()[0]
    store._database._connection.execute(f"PRAGMA max_page_count={pages}")
    large = Question("manifest", "team/app", "large")
    store.put(large, bytes(1 << 20))
    assert store.get(large) == bytes(1 << 20)
    assert store.get(TAGS) == b"one"
    store.close()
    assert (opened().get(large), opened().get(TAGS)) == (None, b"one")


def test_what_a_file_has_for_a_repository_counts_as_it_is_now(tmp_path: Path, opened: Open) -> None:
    file = tmp_path / "auth.json"

    def logged_in(**users: str) -> None:
        entries = {
            f"127.0.0.1:5000/{name}": {"username": user, "password": "canary"}
            for name, user in users.items()
        }
        file.write_text(json.dumps({"auths": entries}))

    store = opened(who=Credentials(auth_files=(file,)))
    other = Question("tags", "other/app")
    logged_in(team="alice", other="alice")
    for question in (TAGS, other):
        store.put(question, b"one")
    logged_in(team="mallory", other="alice")
    assert (store.get(TAGS), store.get(other)) == (None, b"one")
    assert opened(who=Credentials()).get(other) is None
    logged_in(team="alice")
    assert (store.get(TAGS), store.get(other)) == (b"one", None)


def test_another_question_gets_nothing(opened: Open) -> None:
    store = opened()
    store.put(TAGS, b"one")
    for other in (Question("tags", "team/other"), Question("tag", "team/app"), Question("tags")):
        assert store.get(other) is None


def test_an_answer_grows_old(opened: Open) -> None:
    clock = Clock()
    store = opened(clock=clock)
    store.put(TAGS, b"one")
    clock.now += 60
    assert store.get(TAGS, max_age=60) == b"one"
    assert store.get(TAGS, max_age=59) is None
    assert store.get(TAGS) == b"one"


def test_a_forgotten_answer_is_gone(opened: Open) -> None:
    store = opened()
    other = Question("manifest", "team/app", "sha256:1")
    store.put(TAGS, b"one")
    store.put(other, b"two")
    store.forget(TAGS)
    assert (store.get(TAGS), store.get(other)) == (None, b"two")


def test_a_denied_repository_is_forgotten_whole_and_its_neighbours_are_not(opened: Open) -> None:
    store = opened()
    neighbour = Question("tags", "team/app2")
    questions = [TAGS, Question("manifest", "team/app", "x"), neighbour]
    for question in questions:
        store.put(question, b"one")
    store.forget_repository("team/app")
    assert [store.get(question) for question in questions] == [None, None, b"one"]


def test_the_file_holds_no_credential_and_two_files_tell_them_by_different_hashes(
    tmp_path: Path,
) -> None:
    scopes = set()
    for name in ("one", "two"):
        path = tmp_path / name
        with closing(AskingStore(path, REGISTRY, shown(ALICE))) as store:
            store.put(TAGS, b"one")
        assert b"canary" not in path.read_bytes()
        assert b"alice" not in path.read_bytes()
        with closing(sqlite3.connect(path)) as connection:
            scopes |= {row[0] for row in connection.execute("SELECT scope FROM answer")}
    assert len(scopes) == 2


def test_the_file_is_bounded_and_the_oldest_go_first(path: Path, opened: Open) -> None:
    clock, limit = Clock(), 1 << 20
    for _ in range(8):
        with closing(AskingStore(path, REGISTRY, shown(ALICE), limit=limit, clock=clock)) as store:
            for _ in range(40):
                clock.now += 1
                store.put(Question("manifest", "team/app", str(clock.now)), bytes(8192))
    store = opened(limit=limit)
    assert store.get(Question("manifest", "team/app", str(clock.now))) is not None
    assert store.get(Question("manifest", "team/app", "1001.0")) is None
    assert path.stat().st_size < 2 * limit


def test_more_than_can_be_written_is_not_held_in_memory(opened: Open) -> None:
    store = opened()
    store.put(Question("manifest", "team/app", "large"), bytes(33 << 20))
    assert store.get(Question("manifest", "team/app", "large")) is None


@pytest.mark.expects_log("is damaged and begins anew")
def test_a_damaged_file_begins_anew(path: Path, opened: Open) -> None:
    path.write_bytes(b"not a database at all, but long enough" * 100)
    store = opened()
    assert store.get(TAGS) is None
    store.put(TAGS, b"one")
    assert store.get(TAGS) == b"one"


@pytest.mark.expects_log("is damaged and begins anew")
def test_damage_that_shows_only_in_use_costs_what_was_kept_and_no_more(
    path: Path, opened: Open
) -> None:
    filled = AskingStore(path, REGISTRY, shown(ALICE))
    questions = [Question("tags", f"team/app{number}") for number in range(200)]
    for question in questions:
        filled.put(question, b"old" * 1000)
    filled.close()
    damage(path)
    store, other = opened(), opened()
    for one in (store, other):
        assert [one.get(question) for question in (*questions, TAGS)][-1] is None
    store.put(TAGS, b"new")
    assert [one.get(TAGS) for one in (store, other, opened())] == [b"new"] * 3
    assert [store.get(question) for question in questions] == [None] * len(questions)


def test_a_place_that_cannot_be_written_is_a_cache_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheFailure, match="cannot keep what the registry said"):
        AskingStore(tmp_path / "file" / "answers.sqlite", REGISTRY, shown(ALICE))


@pytest.mark.expects_log("neither kept nor served: cannot read the token file")
def test_while_credentials_cannot_be_had_nothing_is_kept_or_given(
    tmp_path: Path, opened: Open
) -> None:
    file = tmp_path / "token"
    file.write_text("canary")
    store = opened(who=Credentials(token_file=file))
    other = Question("tags", "team/other")
    store.put(TAGS, b"one")
    file.unlink()
    store.put(other, b"two")
    assert store.get(TAGS) is None
    file.write_text("canary")
    assert (store.get(TAGS), store.get(other)) == (b"one", None)


# --- disks that take nothing ------------------------------------------------------------------


def test_what_the_disk_does_not_take_is_given_from_memory_and_written_later(opened: Open) -> None:
    told: list[object] = []
    store = opened(report=told.append)
    store.put(TAGS, b"old")
    assert store.get(TAGS) == b"old"
    stuck(store)
    store.put(TAGS, b"new")
    assert store.get(TAGS) == b"new"
    assert "readonly" in str(told[0])
    stuck(store, on=False)
    assert store.get(TAGS) == b"new"
    assert opened().get(TAGS) == b"new"


@pytest.mark.parametrize("seconds", [-60, 0, 60])
def test_what_the_disk_does_not_take_counts_before_what_it_has_however_the_clock_is_set(
    opened: Open, seconds: float
) -> None:
    clock = Clock()
    store = opened(clock=clock)
    store.put(TAGS, b"old")
    assert store.get(TAGS) == b"old"
    stuck(store)
    clock.now += seconds
    store.put(TAGS, b"new")
    assert store.get(TAGS) == b"new"


def test_of_what_the_disk_does_not_take_the_last_is_remembered(opened: Open) -> None:
    store = opened()
    stuck(store)
    questions = [Question("manifest", "team/app", str(number)) for number in range(40)]
    for question in questions:
        store.put(question, bytes(1 << 20))
    remembered = [store.get(question) is not None for question in questions]
    assert remembered == sorted(remembered)
    assert 20 < sum(remembered) < 33


@pytest.mark.parametrize("whole", [True, False])
def test_what_cannot_be_forgotten_on_disk_is_given_no_more(opened: Open, *, whole: bool) -> None:
    other = Question("tags", "other/app")
    store = opened()
    for question in (TAGS, other):
        store.put(question, b"one")
        assert store.get(question) == b"one"
    stuck(store)
    if whole:
        store.forget_repository("team/app")
    else:
        store.forget(TAGS)
    assert (store.get(TAGS), store.get(other)) == (None, b"one")
    stuck(store, on=False)
    store.put(TAGS, b"two")
    assert (store.get(TAGS), store.get(other)) == (b"two", b"one")
    assert opened().get(TAGS) == b"two"


def test_a_pending_answer_is_forgotten_too(opened: Open) -> None:
    store = opened()
    stuck(store)
    store.put(TAGS, b"one")
    assert store.get(TAGS) == b"one"
    store.forget_repository("team/app")
    assert store.get(TAGS) is None


def test_without_a_file_answers_are_remembered() -> None:
    with closing(AskingStore(None, REGISTRY, shown(ALICE))) as store:
        store.put(TAGS, b"one")
        assert store.get(TAGS) == b"one"
        store.forget(TAGS)
        assert store.get(TAGS) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_a_file_on_a_read_only_disk_still_gives_its_answers(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "answers.sqlite"
    with closing(AskingStore(path, REGISTRY, shown(ALICE))) as store:
        store.put(TAGS, b"one")
    with read_only(path.parent), closing(AskingStore(path, REGISTRY, shown(ALICE))) as store:
        assert store.get(TAGS) == b"one"
        store.put(TAGS, b"two")
        assert store.get(TAGS) == b"two"


def test_who_asks_after_the_end_is_given_nothing(path: Path) -> None:
    store = AskingStore(path, REGISTRY, shown(ALICE))
    store.put(TAGS, b"one")
    store.close()
    assert store.get(TAGS) is None
    store.forget_repository("team/app")
