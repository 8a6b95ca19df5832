"""RangeSet against the obvious model: a set of integers."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from epochfs.cache.staged_blob import RangeSet

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20)


def model(ranges):
    return {byte for start, stop in ranges for byte in range(start, stop)}


@given(spans, st.integers(0, 60), st.integers(0, 60))
def test_agrees_with_a_set_of_integers(ranges, start, stop):
    present, expected = RangeSet(ranges), model(ranges)
    assert model(present) == expected
    assert present.total == len(expected)
    assert present.covers(start, stop) == set(range(start, stop)).issubset(expected)
    assert model(present.missing(start, stop)) == set(range(start, stop)) - expected


@given(spans)
def test_ranges_are_disjoint_rising_and_never_touch(ranges):
    listed = list(RangeSet(ranges))
    assert all(start < stop for start, stop in listed)
    assert all(a[1] < b[0] for a, b in pairwise(listed))


@given(spans, st.integers(0, 60))
def test_a_run_ends_at_the_first_absent_byte(ranges, offset):
    end = offset
    while end in model(ranges):
        end += 1
    assert RangeSet(ranges).end_of_run(offset) == end
