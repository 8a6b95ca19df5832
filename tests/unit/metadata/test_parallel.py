"""Asking ahead: begun by an expected sign; moved on by a walk, and ended with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any
from weakref import WeakSet

import pytest

from epochfs.errors import DeadlineExceeded, EpochfsError, NotFound, Unavailable
from epochfs.metadata.parallel import Ahead, AheadOfWalk

DEPTH = 4
LAST = 20


class Here(Executor):
    """Runs what it is given at once, in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        fn(*arguments, **named)
        return Future()


class Later(Executor):
    """Runs what it is given when told to."""

    def __init__(self) -> None:
        self.work: list[Callable[[], Any]] = []

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        self.work.append(partial(fn, *arguments, **named))
        return Future()


class Name:
    """Something that can be seen to be kept."""


def following(item: int) -> Sequence[int]:
    return range(item + 1, min(item + 1 + DEPTH, LAST + 1))


@pytest.fixture
def done() -> list[int]:
    return []


@pytest.fixture
def walk(done: list[int]) -> AheadOfWalk[int]:
    return AheadOfWalk(Here(), following, done.append, DEPTH)


@pytest.mark.parametrize("asked", [[3], [3, 3], [3, 7, 5], [5, 4, 3], [20]])
def test_what_is_no_walk_begins_nothing(
    walk: AheadOfWalk[int], done: list[int], asked: list[int]
) -> None:
    for item in asked:
        walk.seen(item)
    assert done == []


def test_the_second_in_order_begins_the_next_and_no_more(
    walk: AheadOfWalk[int], done: list[int]
) -> None:
    for item in (3, 4):
        walk.seen(item)
    assert done == [5, 6, 7, 8]


def test_a_walk_to_the_end_begins_each_once(walk: AheadOfWalk[int], done: list[int]) -> None:
    for item in range(LAST + 1):
        walk.seen(item)
        assert len(done) <= item + DEPTH
    assert done == list(range(2, LAST + 1))


def test_a_walk_that_asks_for_each_item_several_times_is_one(
    walk: AheadOfWalk[int], done: list[int]
) -> None:
    for item in range(LAST + 1):
        for _ in range(3):
            walk.seen(item)
    assert done == list(range(2, LAST + 1))


def test_walks_at_once_do_not_end_each_other(walk: AheadOfWalk[int], done: list[int]) -> None:
    for item in (0, 10, 1, 11, 2, 12):
        walk.seen(item)
    assert sorted(done) == [2, 3, 4, 5, 6, 12, 13, 14, 15, 16]


def test_a_later_walk_begins_anew(walk: AheadOfWalk[int], done: list[int]) -> None:
    for _ in range(2):
        for item in range(LAST + 1):
            walk.seen(item)
    assert done == list(range(2, LAST + 1)) * 2


def test_an_error_ahead_is_nobodys_until_somebody_asks() -> None:
    def fail(_: int) -> None:
        raise Unavailable("gone")

    walk = AheadOfWalk(Here(), following, fail, DEPTH)
    for item in range(LAST + 1):
        walk.seen(item)


def listing(asked: list[str], error: EpochfsError | None = None) -> Ahead[str, str]:
    """Ask ahead for three names of a directory, with a worker less than there are names."""

    def ask(name: str) -> None:
        asked.append(name)
        if error is not None:
            raise error

    return Ahead(Here(), lambda directory: [f"{directory}/{name}" for name in "abc"], ask, 2)


def test_an_expected_sign_begins_all_that_follows_it_once() -> None:
    asked: list[str] = []
    ahead = listing(asked)
    ahead.seen("here")
    assert asked == []
    ahead.expect("here")
    ahead.seen("elsewhere")
    assert asked == []
    for _ in range(2):
        ahead.seen("here")
    assert asked == ["here/a", "here/b", "here/c"]


@pytest.mark.parametrize("error", [Unavailable("away"), DeadlineExceeded("late")])
def test_each_worker_stops_once_the_registry_is_away(error: EpochfsError) -> None:
    asked: list[str] = []
    ahead = listing(asked, error)
    ahead.expect("here")
    ahead.seen("here")
    assert asked == ["here/a", "here/b"]


def test_what_is_gone_stops_nothing() -> None:
    asked: list[str] = []
    ahead = listing(asked, NotFound("gone"))
    ahead.expect("here")
    ahead.seen("here")
    assert asked == ["here/a", "here/b", "here/c"]


def test_what_was_asked_for_is_not_kept_until_all_is() -> None:
    kept: WeakSet[Name] = WeakSet()
    counts: list[int] = []

    def named(_: str) -> list[Name]:
        names = [Name(), Name(), Name()]
        kept.update(names)
        return names

    pool = Later()
    ahead = Ahead(pool, named, lambda _: counts.append(len(kept)), 1)
    ahead.expect("here")
    ahead.seen("here")
    for work in pool.work:
        work()
    assert counts == [3, 2, 1]
