"""Looking ahead: begun by a walk, moved on by it, and ended with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from epochfs.errors import Unavailable
from epochfs.metadata.walk_ahead import Lookahead

DEPTH = 4
LAST = 20


class Here(Executor):
    """Runs what it is given at once, in the thread that asks."""

    def submit(self, fn: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        fn(*arguments, **named)
        return Future()


def following(item: int, count: int) -> Sequence[int]:
    return range(item + 1, min(item + 1 + count, LAST + 1))


@pytest.fixture
def done() -> list[int]:
    return []


@pytest.fixture
def lookahead(done: list[int]) -> Lookahead[int]:
    return Lookahead(Here(), following, done.append, DEPTH)


@pytest.mark.parametrize("asked", [[3], [3, 3], [3, 7, 5], [5, 4, 3], [20]])
def test_what_is_no_walk_begins_nothing(
    lookahead: Lookahead[int], done: list[int], asked: list[int]
) -> None:
    for item in asked:
        lookahead.asked(item)
    assert done == []


def test_the_second_in_order_begins_the_next_and_no_more(
    lookahead: Lookahead[int], done: list[int]
) -> None:
    for item in (3, 4):
        lookahead.asked(item)
    assert done == [5, 6, 7, 8]


def test_a_walk_to_the_end_begins_each_once(lookahead: Lookahead[int], done: list[int]) -> None:
    for item in range(LAST + 1):
        lookahead.asked(item)
        assert len(done) <= item + DEPTH
    assert done == list(range(2, LAST + 1))


def test_a_walk_that_asks_for_each_item_several_times_is_one(
    lookahead: Lookahead[int], done: list[int]
) -> None:
    for item in range(LAST + 1):
        for _ in range(3):
            lookahead.asked(item)
    assert done == list(range(2, LAST + 1))


def test_walks_at_once_do_not_end_each_other(lookahead: Lookahead[int], done: list[int]) -> None:
    for item in (0, 10, 1, 11, 2, 12):
        lookahead.asked(item)
    assert sorted(done) == [2, 3, 4, 5, 6, 12, 13, 14, 15, 16]


def test_a_later_walk_begins_anew(lookahead: Lookahead[int], done: list[int]) -> None:
    for _ in range(2):
        for item in range(LAST + 1):
            lookahead.asked(item)
    assert done == list(range(2, LAST + 1)) * 2


def test_an_error_ahead_is_nobodys_until_somebody_asks() -> None:
    def fail(_: int) -> None:
        raise Unavailable("gone")

    lookahead = Lookahead(Here(), following, fail, DEPTH)
    for item in range(LAST + 1):
        lookahead.asked(item)
