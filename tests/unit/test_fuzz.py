"""Every parser of hostile text returns or raises what it documents, for a moment's worth of inputs.

`scripts/fuzz` does the same for as long as one likes, guided by what the parsers' code does.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scripts.fuzzing.target import Target
from scripts.fuzzing.targets import TARGETS

each_target = pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)


def mutated(seeds: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    """Pieces of the seeds, in any order, with anything between them."""
    pieces = st.sampled_from(seeds).flatmap(
        lambda seed: st.tuples(st.integers(0, len(seed)), st.integers(0, len(seed))).map(
            lambda cut: seed[min(cut) : max(cut)]
        )
    )
    return st.lists(pieces | st.binary(max_size=8), max_size=6).map(b"".join)


pytestmark = pytest.mark.expects_log("left out|not known|hosts.toml")


@each_target
def test_seeds_are_accepted(target: Target) -> None:
    assert all(target.feed(seed) for seed in target.seeds)


@each_target
def test_anything_is_parsed_or_refused(target: Target) -> None:
    @settings(max_examples=100, deadline=5000)
    @given(st.binary() | mutated(target.seeds))
    @example(b"[")
    @example(b"9" * 5000)
    @example(b"[" * 100_000)
    @example(b"\xff\x00\n\x1b")
    def feed(data: bytes) -> None:
        target.feed(data)

    feed()
