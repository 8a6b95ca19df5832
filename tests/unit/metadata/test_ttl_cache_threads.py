"""The cache in front of the registry under many threads: one fetch for all, none stranded."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.clock import Clock
from support.ttlcaches import POLICY, Source, caching, numbering, stopped

from epochfs.errors import DeadlineExceeded, NotFound, Unavailable
from epochfs.metadata.source import Answer
from epochfs.metadata.ttl_cache import CachePolicy, TtlCache

THREADS = 32
PATIENCE = 20.0

clock = pytest.fixture(stopped)
source = pytest.fixture(numbering)
cache = pytest.fixture(caching)


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
