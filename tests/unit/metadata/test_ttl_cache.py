"""The cache in front of the registry: bounded, timed, one fetch at a time, honest about errors."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

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

THREADS = 32
PATIENCE = 20.0
POLICY = CachePolicy(ttl=60, negative_ttl=5, limit=1000)


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Source:
    """Fetches `<key><number of the fetch>`, or raises `error` while one is set."""

    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.error: Exception | None = None

    def __call__(self, key: str) -> Answer[str]:
        self.fetched.append(key)
        if self.error is not None:
            raise self.error
        return Answer(f"{key}{len(self.fetched)}", is_current=key != "recalled")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def cache(source: Source, clock: Clock) -> TtlCache[str, str]:
    return TtlCache("thing", source, POLICY, clock=clock)


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


class Gate:
    """A source that holds every fetch until the test lets it go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.fetches = 0
        self._error = error

    def __call__(self, key: str) -> Answer[str]:
        self.fetches += 1
        self.began.set()
        assert self.go.wait(PATIENCE)
        if self._error is not None:
            raise self._error
        return Answer(f"{key}{self.fetches}")


def crowd(cache: TtlCache[str, str], gate: Gate) -> list[str | Exception]:
    """Let many threads ask for one key at once; return what each of them got."""
    together = threading.Barrier(THREADS + 1)

    def ask() -> str | Exception:
        together.wait(PATIENCE)
        try:
            return cache.get("a")
        except Exception as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(ask) for _ in range(THREADS)]
        together.wait(PATIENCE)
        assert gate.began.wait(PATIENCE)
        gate.go.set()
        return [future.result(PATIENCE) for future in futures]


class TestThreads:
    def test_many_who_ask_at_once_share_one_fetch(self) -> None:
        gate = Gate()
        assert crowd(TtlCache("thing", gate, POLICY), gate) == ["a1"] * THREADS
        assert gate.fetches == 1

    def test_those_who_waited_share_the_absence_but_not_the_exception(self) -> None:
        gate = Gate(NotFound("no such thing"))
        results = crowd(TtlCache("thing", gate, POLICY), gate)
        assert {type(result) for result in results} == {NotFound}
        assert len({id(result) for result in results}) == THREADS
        assert gate.fetches == 1

    def test_another_key_does_not_wait(self) -> None:
        gate = Gate()
        cache = TtlCache("thing", lambda key: gate(key) if key == "slow" else Answer(key), POLICY)
        with ThreadPoolExecutor(1) as pool:
            slow = pool.submit(cache.get, "slow")
            assert gate.began.wait(PATIENCE)
            assert cache.get("quick") == "quick"
            gate.go.set()
            assert slow.result(PATIENCE) == "slow1"

    def test_who_waits_for_anothers_fetch_does_not_wait_for_ever(self) -> None:
        gate = Gate()
        cache = TtlCache("thing", gate, CachePolicy(ttl=60, wait=0.05))
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(cache.get, "a")
            assert gate.began.wait(PATIENCE)
            with pytest.raises(DeadlineExceeded, match="thing a did not arrive in time"):
                cache.get("a")
            gate.go.set()
            assert first.result(PATIENCE) == "a1"

    def test_what_was_asked_for_before_a_clearing_is_not_kept_after_it(self) -> None:
        gate = Gate()
        cache = TtlCache("thing", gate, POLICY)
        with ThreadPoolExecutor(2) as pool:
            before = pool.submit(cache.get, "a")
            assert gate.began.wait(PATIENCE)
            gate.began.clear()
            cache.clear()
            after = pool.submit(cache.get, "a")
            assert gate.began.wait(PATIENCE)
            gate.go.set()
            assert before.result(PATIENCE) == after.result(PATIENCE) == "a2"
        assert gate.fetches == 2

    def test_a_bug_in_a_fetch_reaches_its_caller_and_strands_nobody(
        self, cache: TtlCache[str, str], source: Source
    ) -> None:
        gate = Gate(ZeroDivisionError("a bug"))
        results = crowd(TtlCache("thing", gate, POLICY), gate)
        kinds = {type(result) for result in results}
        assert ZeroDivisionError in kinds
        assert kinds <= {ZeroDivisionError, Unavailable}
        source.error = ZeroDivisionError("a bug")
        with pytest.raises(ZeroDivisionError):
            cache.get("a")
        source.error = None
        assert cache.get("a") == "a2"


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

    @pytest.mark.parametrize("how", ["put", "put_absent", "amend", "expire"])
    def test_a_fetch_under_way_does_not_undo_what_was_told(self, how: str, clock: Clock) -> None:
        gate = Gate()
        cache = TtlCache("thing", gate, POLICY, clock=clock)
        cache.put("a", "first")
        clock.now += 60
        cache.put("other", "other")
        with ThreadPoolExecutor(1) as pool:
            older = pool.submit(cache.get, "a")
            assert gate.began.wait(PATIENCE)
            if how == "put":
                cache.put("a", "written")
            elif how == "put_absent":
                cache.put_absent("a", NotFound("removed"))
            elif how == "amend":
                cache.amend("a", str.upper)
            else:
                cache.expire("a")
            gate.go.set()
            assert older.result(PATIENCE) == "a1"
        last = {"put": "written", "put_absent": None, "amend": "FIRST", "expire": "first"}
        assert cache.last("a") == last[how]
        assert cache.get("other") == "other"
