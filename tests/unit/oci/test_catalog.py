"""A catalog of repositories, to which one can be added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from epochfs.oci.names import Catalog, Repository

names = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map("/".join).map(Repository)


@given(st.sets(names, max_size=8), names)
def test_one_more_is_as_if_it_had_been_listed(listed: set[Repository], one: Repository) -> None:
    catalog = Catalog(listed, complete=True, refusal="so it says")
    before, grown = list(catalog), catalog.including(one)
    expected = Catalog(listed | {one}, complete=True)
    assert list(grown) == list(expected)
    assert one in grown
    assert (grown.complete, grown.refusal) == (True, "so it says")
    prefixes = {each.segments[:depth] for each in expected for depth in range(4)}
    for prefix in (*prefixes, ("x",)):
        assert grown.children(prefix) == expected.children(prefix)
        assert grown.is_parent(prefix) == expected.is_parent(prefix)
    for each in expected:
        assert grown.following(each, 3) == expected.following(each, 3)
    assert list(catalog) == before
    assert catalog.children(()) == Catalog(before, complete=True).children(())
