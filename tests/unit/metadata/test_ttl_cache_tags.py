"""Tags resolved, in columns: few bytes each, within a bound, and never one tag's for another's."""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epochfs.errors import NotFound
from epochfs.metadata.source import Answer
from epochfs.metadata.ttl_cache import CachePolicy, Entry, Resolved, TagKey, TagTables, TtlCache
from epochfs.oci.names import Digest, Repository, Tag

APP, OTHER = Repository("team/app"), Repository("team/other")
ALLOWED = 400
"""Bytes a tag may cost beside its name."""


def tags(*names: str) -> tuple[Tag, ...]:
    return tuple(Tag(name) for name in sorted(names))


def entry(text: str, since_ns: int = 1, algorithm: str = "sha256") -> Entry[Resolved]:
    resolved = Resolved(Digest.of(text.encode(), algorithm), since_ns)
    return Entry(resolved, None, 10.0, is_current=since_ns % 2 == 0)


@pytest.fixture
def tables() -> TagTables:
    found = TagTables(100)
    found.arrange(APP, tags("a", "b", "c"))
    return found


@pytest.mark.parametrize("name", ["a", "b", "c", "not listed"])
def test_what_was_put_is_found_and_only_there(tables: TagTables, name: str) -> None:
    tables.put((APP, Tag(name)), entry("x", 2**62))
    assert tables.get((APP, Tag(name))) == entry("x", 2**62)
    others = {"a", "b", "c", "not listed", "a0", ""} - {name}
    assert [tables.get((APP, Tag(other))) for other in others] == [None] * len(others)
    assert tables.get((OTHER, Tag(name))) is None


@pytest.mark.parametrize(
    "newer",
    [entry("y", 2), entry("y", algorithm="sha512"), Entry(None, NotFound("gone"), 1.0)],
)
@pytest.mark.parametrize("first", [entry("x"), entry("x", algorithm="sha512")])
def test_the_newer_entry_is_in_place_of_the_older(
    tables: TagTables, first: Entry[Resolved], newer: Entry[Resolved]
) -> None:
    for one in (first, newer, first, newer):
        tables.put((APP, Tag("b")), one)
        assert tables.get((APP, Tag("b"))) == one


def test_a_new_listing_keeps_what_is_known_of_the_tags_it_still_has(tables: TagTables) -> None:
    for name in ("a", "b", "c"):
        tables.put((APP, Tag(name)), entry(name))
    for listing in (tags("a", "b", "c"), tags("0", "a", "bb", "c", "z")):
        tables.arrange(APP, listing)
        assert tables.get((APP, Tag("a"))) == entry("a")
        assert tables.get((APP, Tag("c"))) == entry("c")
    assert [tables.get((APP, Tag(name))) for name in ("0", "b", "bb", "z")] == [None] * 4


def test_clearing_forgets_all(tables: TagTables) -> None:
    for name in ("a", "not listed"):
        tables.put((APP, Tag(name)), entry(name))
    tables.clear()
    assert [tables.get((APP, Tag(name))) for name in ("a", "not listed")] == [None, None]


@given(
    listings=st.lists(st.sets(st.text("abc", max_size=2)), min_size=1, max_size=4),
    puts=st.lists(st.tuples(st.text("abc", max_size=2), st.integers(0, 9)), max_size=20),
)
def test_whatever_is_listed_meanwhile_nothing_but_the_last_entry_is_found(
    listings: list[set[str]], puts: list[tuple[str, int]]
) -> None:
    tables = TagTables(1000)
    last: dict[str, int] = {}
    for number, (name, value) in enumerate(puts):
        if number % 5 == 0:
            tables.arrange(APP, tags(*listings[number // 5 % len(listings)]))
        tables.put((APP, Tag(name)), entry(str(value), value))
        last[name] = value
        found = {name: tables.get((APP, Tag(name))) for name in last}
        assert found[name] == entry(str(value), value)
        for other, remembered in found.items():
            assert remembered in (None, entry(str(last[other]), last[other]))


def test_the_rows_of_the_least_recently_used_repository_go_first() -> None:
    tables = TagTables(100)
    repositories = [Repository(f"r{number}") for number in range(5)]
    listing = tags(*(f"t{number:02}" for number in range(25)))
    for repository in repositories[:4]:
        tables.arrange(repository, listing)
        tables.put((repository, Tag("t07")), entry(repository.name))
    tables.get((repositories[0], Tag("t07")))
    tables.arrange(repositories[4], listing)
    known = [tables.get((repository, Tag("t07"))) is not None for repository in repositories]
    assert known == [True, False, True, True, False]


def test_a_listing_over_the_bound_gets_no_rows_and_its_tags_are_bounded_one_by_one() -> None:
    tables = TagTables(100)
    listing = tags(*(f"t{number:03}" for number in range(101)))
    tables.arrange(APP, listing)
    for tag in listing:
        tables.put((APP, tag), entry(tag.name))
    assert sum(tables.get((APP, tag)) is not None for tag in listing) == 100


def test_tags_that_no_listing_names_have_a_bound_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("epochfs.metadata.ttl_cache._MOST_ABSENT", 10)
    tables = TagTables(100)
    absent = tags(*(f"absent{number}" for number in range(50)))
    for tag in absent:
        tables.put((APP, tag), Entry(None, NotFound("no such tag"), 10.0))
    assert sum(tables.get((APP, tag)) is not None for tag in absent) == 10


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("repositories", "each"), [(1, 20_000), (20, 500)])
def test_a_tag_costs_few_bytes_beside_its_name(repositories: int, each: int) -> None:
    tables = TagTables(1_000_000)

    def resolve(key: TagKey) -> Answer[Resolved]:
        return Answer(Resolved(Digest.of(key[1].name.encode()), each))

    def listed() -> list[str]:
        """Return texts of their own, as each answer of a server and each path brings them."""
        return [f"v{number}" for number in range(each)]

    cache = TtlCache("tag", resolve, CachePolicy(60), store=tables)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(repositories):
        repository = Repository(f"app{number}")
        tables.arrange(repository, tags(*listed()))
        for name in listed():
            cache.get((repository, Tag(name)))
    cost = tracemalloc.get_traced_memory()[0] - before
    of_names = repositories * sum(map(sys.getsizeof, listed()))
    assert 0 < (cost - of_names) / (repositories * each) <= ALLOWED
    key = (Repository("app0"), Tag("v7"))
    assert cache.peek(key) == resolve(key).value
