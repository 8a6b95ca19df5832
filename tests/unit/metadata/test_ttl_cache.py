"""The cache in front of the registry: bounded, timed, one fetch at a time, honest about errors."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import Clock
from support.ttlcaches import POLICY, Source, caching, numbering, stopped

from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    Unsupported,
)
from epochfs.metadata.source import Answer
from epochfs.metadata.ttl_cache import CachePolicy, TtlCache

clock = pytest.fixture(stopped)
source = pytest.fixture(numbering)
cache = pytest.fixture(caching)


def small(
    source: Callable[[str], Answer[str]], limit: float, **options: object
) -> TtlCache[str, str]:
    return TtlCache("thing", source, CachePolicy(ttl=60, limit=limit), **options)  # type: ignore[arg-type]


class TestBounds:
    def test_the_least_recently_used_goes_first(self, source: Source) -> None:
        cache = small(source, 2)
        for key in "abac":
            cache.get(key)
        assert cache.peek("a") == "a1"
        assert cache.peek("b") is None
        assert cache.peek("c") == "c3"

    def test_sizes_count_where_there_is_a_measure(self, source: Source) -> None:
        cache = small(source, 5, size_of=len)
        for key in ("a", "b", "cc"):
            cache.get(key)
        assert [cache.peek(key) for key in ("a", "b", "cc")] == [None, "b2", "cc3"]

    def test_what_is_too_large_is_returned_and_displaces_nothing(self, source: Source) -> None:
        cache = small(source, 5, size_of=len)
        cache.get("a")
        assert cache.get("enormous") == "enormous2"
        assert cache.peek("a") == "a1"
        assert cache.get("enormous") == "enormous3"

    def test_what_grew_too_large_is_not_served_in_its_older_form(self, clock: Clock) -> None:
        values = iter([Answer("small"), Answer("far too large")])
        cache = small(lambda _: next(values), 5, size_of=len, clock=clock)
        cache.get("a")
        clock.now += 61
        assert cache.get("a") == "far too large"
        assert cache.peek("a") is None

    @pytest.mark.parametrize("limit", [10, 1_000_000])
    @pytest.mark.parametrize("size_of", [None, len])
    def test_absences_are_bounded_too(
        self,
        source: Source,
        limit: int,
        size_of: Callable[[str], int] | None,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("epochfs.metadata.ttl_cache._MOST_ABSENT", 10)
        source.error = NotFound("no such thing")
        cache = small(source, limit, size_of=size_of)
        for number in range(1000):
            with pytest.raises(NotFound):
                cache.get(str(number))
        for number in (*range(990, 1000), 0):
            with pytest.raises(NotFound):
                cache.get(str(number))
        assert source.fetched[1000:] == ["0"]


class TestTime:
    def test_a_value_is_used_for_its_time_and_no_longer(
        self, cache: TtlCache[str, str], clock: Clock
    ) -> None:
        assert cache.get("a") == "a1"
        clock.now += 59.9
        assert cache.get("a") == "a1"
        clock.now += 0.1
        assert cache.get("a") == "a2"

    def test_without_any_time_to_live_every_call_fetches(self, source: Source) -> None:
        cache = TtlCache("thing", source, CachePolicy(ttl=0))
        assert [cache.get("a"), cache.get("a")] == ["a1", "a2"]

    def test_peeking_fetches_nothing(self, cache: TtlCache[str, str], source: Source) -> None:
        assert cache.peek("a") is None
        assert source.fetched == []

    def test_an_old_value_is_not_peeked_at(self, cache: TtlCache[str, str], clock: Clock) -> None:
        cache.get("a")
        clock.now += 60
        assert cache.peek("a") is None

    def test_what_was_recalled_is_asked_for_again_soon(self, source: Source, clock: Clock) -> None:
        cache = TtlCache("thing", source, POLICY, clock=clock)
        current = [cache.answer(key).is_current for key in ("recalled", "new")]
        assert current == [False, True]
        clock.now += 4.9
        assert (cache.peek("recalled"), cache.peek("new")) == ("recalled1", "new2")
        clock.now += 0.1
        assert (cache.peek("recalled"), cache.peek("new")) == (None, "new2")

    def test_clearing_forgets(self, cache: TtlCache[str, str]) -> None:
        cache.get("a")
        cache.clear()
        assert cache.get("a") == "a2"

    @given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 90)), max_size=40))
    def test_no_value_is_ever_older_than_its_time(self, steps: list[tuple[str, float]]) -> None:
        clock = Clock()
        cache = TtlCache("thing", lambda _: Answer(clock.now), POLICY, clock=clock)
        for key, seconds in steps:
            clock.now += seconds
            assert clock.now - cache.get(key) < POLICY.ttl


class TestErrors:
    def test_an_absence_is_remembered_for_a_shorter_time(
        self, cache: TtlCache[str, str], source: Source, clock: Clock
    ) -> None:
        source.error = NotFound("no such thing")
        for seconds in (0, 4.9):
            clock.now += seconds
            with pytest.raises(NotFound, match="no such thing"):
                cache.get("a")
        assert source.fetched == ["a"]
        source.error = None
        clock.now += 0.1
        assert cache.get("a") == "a2"

    def test_an_absence_that_is_asked_for_again_and_again_leaves_nothing_behind(
        self, clock: Clock
    ) -> None:
        raised: weakref.WeakSet[NotFound] = weakref.WeakSet()

        def fetch(key: str) -> Answer[str]:
            error = NotFound("no such thing")
            raised.add(error)
            raise error

        cache = TtlCache("thing", fetch, POLICY, clock=clock)
        for _ in range(200):
            with pytest.raises(NotFound):
                cache.get("a")
            clock.now += 5
        gc.collect()
        assert len(raised) == 0

    @pytest.mark.parametrize(
        "kind",
        [
            CacheFailure,
            ContentMismatch,
            DeadlineExceeded,
            Denied,
            ProtocolViolation,
            TooLarge,
            Unavailable,
            Unsupported,
        ],
    )
    def test_no_other_error_is_ever_remembered(
        self, cache: TtlCache[str, str], source: Source, kind: type[EpochfsError]
    ) -> None:
        source.error = kind("not now")
        with pytest.raises(kind, match="not now"):
            cache.get("a")
        source.error = None
        assert cache.get("a") == "a2"

    @pytest.mark.parametrize(
        "kind", [DeadlineExceeded, Denied, NotFound, ProtocolViolation, Unavailable]
    )
    def test_an_error_is_never_papered_over_with_an_old_value(
        self, cache: TtlCache[str, str], source: Source, clock: Clock, kind: type[EpochfsError]
    ) -> None:
        cache.get("a")
        source.error = kind("the source has spoken")
        clock.now += 60
        with pytest.raises(kind):
            cache.get("a")

    def test_an_old_absence_is_no_value_to_serve(
        self, cache: TtlCache[str, str], source: Source, clock: Clock
    ) -> None:
        source.error = NotFound("no such thing")
        with pytest.raises(NotFound):
            cache.get("a")
        source.error = Unavailable("gone")
        clock.now += 5
        with pytest.raises(Unavailable):
            cache.get("a")


class TestAges:
    def test_an_older_value_is_fetched_anew_for_who_wants_a_younger_one(self) -> None:
        clock, values = Clock(), map(Answer, "abc")
        cache = TtlCache("letters", lambda _: next(values), CachePolicy(60), clock=clock)
        assert cache.get("key") == "a"
        clock.now += 10
        assert cache.get("key", 20) == "a"
        assert cache.get("key", 5) == "b"
        assert cache.get("key", 5) == "b"

    def test_the_last_value_outlives_its_time_and_failures_but_no_absence(self) -> None:
        clock, answers = Clock(), iter([Answer("a"), Unavailable("down"), NotFound("gone")])

        def fetch(_: str) -> Answer[str]:
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            return answer

        cache = TtlCache("letters", fetch, CachePolicy(60), clock=clock)
        assert cache.last("key") is None
        cache.get("key")
        clock.now += 100
        assert cache.last("key") == "a"
        with pytest.raises(Unavailable):
            cache.get("key")
        assert cache.last("key") == "a"
        with pytest.raises(NotFound):
            cache.get("key")
        assert cache.last("key") is None

    def test_an_expired_value_is_fetched_anew_and_still_the_last_one(self) -> None:
        values = map(Answer, "ab")
        cache = TtlCache("letters", lambda _: next(values), CachePolicy(60), clock=Clock())
        cache.get("key")
        cache.expire("key")
        assert (cache.peek("key"), cache.last("key")) == (None, "a")
        assert cache.get("key") == "b"


class TestTold:
    def test_what_is_put_is_used_for_its_time(
        self, cache: TtlCache[str, str], clock: Clock
    ) -> None:
        cache.put("a", "written")
        clock.now += 59.9
        assert cache.get("a") == "written"
        clock.now += 0.1
        assert cache.get("a") == "a1"

    def test_what_was_absent_is_there_once_it_is_put(
        self, cache: TtlCache[str, str], source: Source
    ) -> None:
        source.error = NotFound("no such thing")
        with pytest.raises(NotFound):
            cache.get("a")
        cache.put("a", "written")
        assert cache.get("a") == "written"

    def test_what_is_said_to_be_gone_is_absent_for_a_shorter_time(
        self, cache: TtlCache[str, str], clock: Clock
    ) -> None:
        cache.get("a")
        cache.put_absent("a", NotFound("removed"))
        clock.now += 4.9
        with pytest.raises(NotFound, match="removed"):
            cache.get("a")
        assert cache.last("a") is None
        clock.now += 0.1
        assert cache.get("a") == "a2"

    def test_a_value_that_is_amended_grows_no_younger(
        self, cache: TtlCache[str, str], clock: Clock
    ) -> None:
        cache.get("a")
        clock.now += 59.9
        cache.amend("a", str.upper)
        assert cache.get("a") == "A1"
        clock.now += 0.1
        cache.amend("a", lambda value: f"{value}!")
        assert cache.last("a") == "A1!"
        assert cache.get("a") == "a2"

    def test_an_absence_that_is_amended_is_asked_for_again(
        self, cache: TtlCache[str, str], source: Source
    ) -> None:
        cache.amend("a", str.upper)
        source.error = NotFound("no such thing")
        with pytest.raises(NotFound):
            cache.get("a")
        source.error = None
        cache.amend("a", str.upper)
        assert cache.get("a") == "a2"
