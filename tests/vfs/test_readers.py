"""Who reads a directory in parts sees each name once, or is told that this cannot be."""

from __future__ import annotations

import stat
from collections.abc import Callable

import pytest

from epochfs.errors import Vanished
from epochfs.vfs.directories import Listing, Readers

MANY = 300_000
"""Two of so many names are more than are kept."""


def listing(count: int, *, path: str = "/d", name: str = "n") -> Listing:
    return Listing(path, [(f"{name}{number}", stat.S_IFREG) for number in range(count)], {})


def never() -> Listing:
    pytest.fail("listed anew")


def answering(found: Listing) -> Callable[[], Listing]:
    return lambda: found


def test_a_reader_goes_on_with_what_it_began_with() -> None:
    readers, mine, yours = Readers(), listing(3), listing(4)
    readers.begin(1, mine)
    readers.begin(2, yours)
    assert readers.go_on(1, "/d", never) is mine
    assert readers.go_on(2, "/d", never) is yours


def test_it_may_go_back_from_the_end() -> None:
    readers, short = Readers(), listing(3)
    readers.begin(1, short)
    readers.end(1)
    assert readers.go_on(1, "/d", never) is short


def test_a_long_listing_that_was_read_is_let_go_and_gone_back_to_if_it_is_the_same() -> None:
    readers = Readers()
    readers.begin(1, listing(5000))
    readers.end(1)
    same = listing(5000)
    assert readers.go_on(1, "/d", answering(same)) is same
    assert readers.go_on(1, "/d", never) is same


def test_a_number_that_another_reader_had_says_nothing() -> None:
    readers, other = Readers(), listing(2, path="/other")
    readers.begin(1, listing(5000))
    assert readers.go_on(1, "/other", answering(other)) is other
    readers.begin(1, listing(5000))
    readers.end(1)
    assert readers.go_on(1, "/other", answering(other)) is other


def test_what_was_left_half_read_goes_when_more_is_read_than_is_kept() -> None:
    readers, later = Readers(), listing(MANY)
    readers.begin(1, listing(MANY))
    readers.begin(2, later)
    assert readers.go_on(2, "/d", never) is later
    same = listing(MANY)
    assert readers.go_on(1, "/d", answering(same)) is same


def test_who_cannot_go_on_with_the_same_names_is_told_so() -> None:
    readers = Readers()
    readers.begin(1, listing(MANY))
    readers.begin(2, listing(MANY))
    with pytest.raises(Vanished, match="read it again"):
        readers.go_on(1, "/d", answering(listing(MANY, name="m")))


def test_one_that_is_longer_than_is_kept_is_kept() -> None:
    readers, longest = Readers(), listing(2 * MANY)
    readers.begin(1, longest)
    assert readers.go_on(1, "/d", never) is longest
