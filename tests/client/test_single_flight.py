"""Single flight: work done once for all who want it, and none of them waits for ever."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from support.scripted import until

from epochfs.client.single_flight import Flight, PooledFlight, SingleFlight
from epochfs.errors import DeadlineExceeded, EpochfsError, NotFound, Unavailable, Vanished

THREADS = 16
PATIENCE = 20.0
ENDED = Vanished("the end")


class Work:
    """Gives `v1`, `v2` …, or raises; held until the test lets it go."""

    def __init__(self, error: Exception | None = None) -> None:
        self.began = threading.Event()
        self.go = threading.Event()
        self.error = error
        self.done = 0

    def __call__(self) -> str:
        self.done += 1
        self.began.set()
        assert self.go.wait(PATIENCE)
        if self.error is not None:
            raise self.error
        return f"v{self.done}"


class Owner:
    """Keeps what it is given, as long as it `keeps`."""

    def __init__(self, make: Callable[..., SingleFlight[str, str]], *, keeps: bool = True) -> None:
        self.lock = threading.Lock()
        self.kept: dict[str, str] = {}
        self.keeps = keeps
        self.flights = make(self.lock, self._keep, lambda key: f"{key} is late")
        self.waiting = 0

    def _keep(self, key: str, value: str) -> None:
        assert self.lock.locked()
        if self.keeps:
            self.kept[key] = value

    def get(self, work: Callable[[], str], key: str = "a", seconds: float = PATIENCE) -> str:
        def look() -> str | None:
            assert self.lock.locked()
            self.waiting += 1
            return self.kept.get(key)

        return self.flights.do(key, look, work, time.monotonic() + seconds)

    def crowd(self, work: Work) -> list[str | Exception]:
        """Have many threads ask at once; return what each got."""

        def ask() -> str | Exception:
            try:
                return self.get(work)
            except Exception as error:
                return error

        with ThreadPoolExecutor(THREADS) as pool:
            asked = [pool.submit(ask) for _ in range(THREADS)]
            until(lambda: self.waiting == THREADS)
            work.go.set()
            return [one.result(PATIENCE) for one in asked]


def alone(*arguments: object) -> SingleFlight[str, str]:
    return SingleFlight(*arguments)  # type: ignore[arg-type]


def in_turn(*arguments: object) -> SingleFlight[str, str]:
    return SingleFlight(*arguments, in_turn=True)  # type: ignore[arg-type]


@pytest.fixture
def pooled() -> Iterator[Callable[..., SingleFlight[str, str]]]:
    """Makes flights in a pool, closed at the end."""
    made: list[PooledFlight[str, str]] = []

    def make(*arguments: object) -> PooledFlight[str, str]:
        flights = PooledFlight[str, str](*arguments, name="test", workers=1, ended=ENDED)  # type: ignore[arg-type]
        made.append(flights)
        return flights

    yield make
    for flights in made:
        flights.close()


@pytest.fixture(params=["alone", "in turn", "pooled"])
def owner(request: pytest.FixtureRequest, pooled: Callable[..., SingleFlight[str, str]]) -> Owner:
    return Owner({"alone": alone, "in turn": in_turn, "pooled": pooled}[request.param])


class TestAll:
    def test_work_is_done_once_however_many_want_it(self, owner: Owner) -> None:
        work = Work()
        assert owner.crowd(work) == ["v1"] * THREADS
        assert work.done == 1

    def test_what_is_kept_needs_no_work(self, owner: Owner) -> None:
        owner.kept["a"] = "kept"
        assert owner.get(Work()) == "kept"

    def test_what_is_not_kept_is_done_again(self, owner: Owner) -> None:
        owner.keeps = False
        work = Work()
        work.go.set()
        assert [owner.get(work), owner.get(work)] == ["v1", "v2"]

    def test_an_error_is_not_kept(self, owner: Owner) -> None:
        work = Work(NotFound("gone"))
        work.go.set()
        with pytest.raises(NotFound, match="gone"):
            owner.get(work)
        work.error = None
        assert owner.get(work) == "v2"

    def test_nobody_waits_past_the_deadline(self, owner: Owner) -> None:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(owner.get, work)
            assert work.began.wait(PATIENCE)
            with pytest.raises(DeadlineExceeded, match="a is late"):
                owner.get(work, seconds=0.05)
            with pytest.raises(DeadlineExceeded, match="a is late"):
                owner.get(work, seconds=-1)
            work.go.set()
            assert first.result(PATIENCE) == "v1"

    def test_a_deadline_may_be_infinite(self, owner: Owner) -> None:
        work = Work()
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(owner.get, work, "a", math.inf) for _ in range(2)]
            until(lambda: owner.waiting == 2)
            work.go.set()
            assert [one.result(PATIENCE) for one in asked] == ["v1", "v1"]

    @pytest.mark.parametrize("forgotten", ["a", "b"])
    def test_of_what_is_forgotten_meanwhile_nothing_is_kept_and_of_the_rest_all(
        self, owner: Owner, forgotten: str
    ) -> None:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(owner.get, work)
            assert work.began.wait(PATIENCE)
            with owner.lock:
                owner.flights.forget(lambda key: key == forgotten)
            work.go.set()
            assert first.result(PATIENCE) == "v1"
        assert owner.kept == ({} if forgotten == "a" else {"a": "v1"})
        assert owner.get(work) == ("v2" if forgotten == "a" else "v1")

    def test_a_look_may_refuse(self, owner: Owner) -> None:
        def look() -> str | None:
            raise NotFound("known to be gone")

        with pytest.raises(NotFound, match="known"):
            owner.flights.do("a", look, Work(), math.inf)
        work = Work()
        work.go.set()
        assert owner.get(work) == "v1"


class TestAlone:
    def test_another_key_does_not_wait(self) -> None:
        owner, work, other = Owner(alone), Work(), Work()
        other.go.set()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(owner.get, work)
            assert work.began.wait(PATIENCE)
            assert owner.get(other, "b") == "v1"
            work.go.set()
            first.result(PATIENCE)

    def test_those_who_waited_share_the_error_but_not_the_exception(self) -> None:
        work = Work(NotFound("gone"))
        found = Owner(alone).crowd(work)
        assert {type(one) for one in found} == {NotFound}
        assert len({id(one) for one in found}) == THREADS
        assert work.done == 1

    def test_a_bug_reaches_who_did_the_work_and_frees_the_others(self) -> None:
        found = Owner(alone).crowd(Work(ZeroDivisionError("a bug")))
        kinds = [type(one) for one in found]
        assert kinds.count(ZeroDivisionError) == 1
        assert kinds.count(Unavailable) == THREADS - 1

    def test_who_comes_after_a_forgetting_does_not_wait_for_what_was_begun_before(self) -> None:
        owner, old, new = Owner(alone), Work(), Work()
        new.go.set()
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(owner.get, old)
            assert old.began.wait(PATIENCE)
            with owner.lock:
                owner.flights.forget()
            new.done = 10
            assert owner.get(new) == "v11"
            old.go.set()
            assert first.result(PATIENCE) == "v1"
        assert owner.kept == {"a": "v11"}

    def test_what_cannot_be_kept_frees_the_others(self) -> None:
        def keep(key: str, value: str) -> None:
            raise ValueError("too large")

        owner = Owner(lambda lock, _, late: SingleFlight(lock, keep, late))
        kinds = [type(one) for one in owner.crowd(Work())]
        assert sorted(kinds.count(kind) for kind in (ValueError, Unavailable)) == [1, THREADS - 1]


class TestInTurn:
    def test_each_who_waited_meets_a_failure_of_its_own(self) -> None:
        work = Work(NotFound("gone"))
        found = Owner(in_turn).crowd(work)
        assert {type(one) for one in found} == {NotFound}
        assert work.done == THREADS

    def test_what_does_not_do_for_who_waited_is_done_anew(self) -> None:
        work = Work()
        found = Owner(in_turn, keeps=False).crowd(work)
        assert sorted(map(str, found)) == sorted(f"v{n + 1}" for n in range(THREADS))

    def test_who_waits_has_one_deadline_for_all_turns(self) -> None:
        owner = Owner(in_turn, keeps=False)

        def work() -> str:
            time.sleep(0.15)
            return "v"

        def ask(seconds: float) -> Future[str]:
            return pool.submit(owner.get, work, "a", seconds)

        with ThreadPoolExecutor(8) as pool:
            asked = [ask(0.4) for _ in range(8)]
            failed = [one.exception(PATIENCE) for one in asked]
        assert {type(one) for one in failed} == {type(None), DeadlineExceeded}


class TestPooled:
    @pytest.fixture
    def owner(self, pooled: Callable[..., SingleFlight[str, str]]) -> Owner:
        return Owner(pooled)

    def begin(self, owner: Owner, work: Work, key: str = "a") -> str | Flight[str]:
        assert isinstance(owner.flights, PooledFlight)
        return owner.flights.begin(key, lambda: owner.kept.get(key), work)

    def test_what_was_begun_is_waited_for_later(self, owner: Owner) -> None:
        work = Work()
        flight = self.begin(owner, work)
        assert self.begin(owner, work) is flight
        assert work.began.wait(PATIENCE)
        work.go.set()
        assert owner.get(work) == "v1"
        assert self.begin(owner, work) == "v1"

    def test_threads_are_lacking_while_work_waits_for_one(self, owner: Owner) -> None:
        assert isinstance(owner.flights, PooledFlight)
        one, other = Work(), Work()
        self.begin(owner, one)
        assert one.began.wait(PATIENCE)
        assert not owner.flights.lacks_threads()
        self.begin(owner, other, "b")
        assert owner.flights.lacks_threads()
        one.go.set()
        assert other.began.wait(PATIENCE)
        until(lambda: not owner.flights.lacks_threads())
        other.go.set()

    def test_it_goes_on_when_nobody_waits_any_longer(self, owner: Owner) -> None:
        work = Work()
        with pytest.raises(DeadlineExceeded):
            owner.get(work, seconds=0.01)
        work.go.set()
        until(lambda: owner.kept == {"a": "v1"})

    @pytest.mark.expects_log("unforeseen failure")
    def test_a_bug_is_logged_once_and_frees_all(self, owner: Owner) -> None:
        found = owner.crowd(Work(ZeroDivisionError("a bug")))
        assert {type(one) for one in found} == {Unavailable}
        assert all(isinstance(root(one), ZeroDivisionError) for one in found)

    def test_at_the_end_who_waits_is_freed_and_nothing_is_begun(self, owner: Owner) -> None:
        running, queued = Work(), Work()
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(owner.get, running, "a")]
            assert running.began.wait(PATIENCE)
            asked.append(pool.submit(owner.get, queued, "b"))
            until(lambda: owner.waiting == 2)
            assert isinstance(owner.flights, PooledFlight)
            owner.flights.close()
            for one in asked:
                with pytest.raises(Vanished, match="the end"):
                    one.result(PATIENCE)
        running.go.set()
        with pytest.raises(Vanished, match="the end"):
            owner.get(queued, "c")
        assert queued.done == 0


def root(error: object) -> object:
    """Return what an error came of."""
    while isinstance(error, EpochfsError) and error.__cause__ is not None:
        error = error.__cause__
    return error
