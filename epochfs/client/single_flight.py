"""Single flight: work done once, however many threads ask for its result at the same time.

The first thread to ask for a key does the work; the others wait for it, until their deadlines. The
owner decides which results are kept, and for how long: `look` finds a result and `keep` stores it.

Locks: the lock is the owner's. It guards the flights together with what the owner keeps, so that a
thread that finds nothing kept finds the flight that will keep it. `look` and `keep` are called
under it; work is not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from epochfs.errors import DeadlineExceeded, EpochfsError, Unavailable, fresh

log = logging.getLogger(__name__)

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


@dataclass(slots=True, eq=False)
class Flight(Generic[V]):
    """Work under way and, once `done`, how it ended."""

    done: threading.Event = field(default_factory=threading.Event)
    value: V | None = None
    error: EpochfsError | None = None

    def outcome(self) -> V:
        """Return the result, or raise a copy of the error; once it is done."""
        if self.error is not None:
            raise fresh(self.error)
        return self.value  # type: ignore[return-value]


class SingleFlight(Generic[K, V]):
    """Work in the thread that asks first; thread-safe.

    Those who wait share the result or the error, each with a copy of the error. Where the result
    may not do for the next thread, which asks for more or has more time left, they go `in_turn`:
    after waiting, a thread looks for what is kept, and else is the next to do the work.
    """

    def __init__(
        self,
        lock: threading.Lock,
        keep: Callable[[K, V], object],
        late: Callable[[K], str],
        *,
        in_turn: bool = False,
    ) -> None:
        """`keep` is given every result; `late` says what those who ran out of time lack."""
        self._lock = lock
        self._keep = keep
        self._late = late
        self._in_turn = in_turn
        self._flights: dict[K, Flight[V]] = {}

    def do(self, key: K, look: Callable[[], V | None], work: Callable[[], V], deadline: float) -> V:
        """Return what `look` finds, or else the result of `work`, in this thread or another.

        Raises what they raise, DeadlineExceeded if others are not done by `deadline` (monotonic,
        may be infinite), and Unavailable if their work failed unexpectedly. The thread that did the
        work gets such a failure unchanged.
        """
        while True:
            with self._lock:
                found = look()
                if found is not None:
                    return found
                flight = self._flights.get(key)
                if flight is None:
                    flight = self._flights[key] = Flight()
                    break
            self._wait(key, flight, deadline)
            if not self._in_turn:
                return flight.outcome()
        return self._fly(key, flight, work)

    def forget(self, match: Callable[[K], bool] = lambda _: True) -> None:
        """Keep no result of the work under way for keys that match; called under the lock."""
        for key in [key for key in self._flights if match(key)]:
            del self._flights[key]

    def _wait(self, key: K, flight: Flight[V], deadline: float) -> None:
        left = deadline - time.monotonic()
        if not flight.done.wait(min(max(left, 0.0), threading.TIMEOUT_MAX)):
            raise DeadlineExceeded(self._late(key))

    def _fly(self, key: K, flight: Flight[V], work: Callable[[], V]) -> V:
        try:
            value = work()
            with self._lock:
                if self._flights.get(key) is flight:
                    self._keep(key, value)
            flight.value = value
            return value
        except EpochfsError as error:
            # A copy: the traceback holds this frame, which holds the flight and what it works on.
            flight.error = fresh(error)
            flight.error.__cause__ = error.__cause__
            raise
        except BaseException as error:
            flight.error = Unavailable("unforeseen failure, see the log")
            flight.error.__cause__ = error
            raise
        finally:
            with self._lock:
                if self._flights.get(key) is flight:
                    del self._flights[key]
            flight.done.set()


class PooledFlight(SingleFlight[K, V]):
    """Work in threads of its own, which begins before anyone waits, and goes on when nobody does.

    `ended` is the error to raise once it is closed.
    """

    def __init__(
        self,
        lock: threading.Lock,
        keep: Callable[[K, V], object],
        late: Callable[[K], str],
        *,
        name: str,
        workers: int,
        ended: EpochfsError,
    ) -> None:
        super().__init__(lock, keep, late)
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=name)
        self._workers = workers
        self._ended = ended

    def begin(self, key: K, look: Callable[[], V | None], work: Callable[[], V]) -> V | Flight[V]:
        """Return what `look` finds, or else the work under way, begun now if need be."""
        with self._lock:
            found = look()
            if found is not None:
                return found
            flight = self._flights.get(key)
            if flight is None:
                flight = Flight()
                try:
                    self._pool.submit(self._run, key, flight, work)
                except RuntimeError:
                    raise fresh(self._ended) from None
                self._flights[key] = flight
            return flight

    def do(self, key: K, look: Callable[[], V | None], work: Callable[[], V], deadline: float) -> V:
        found = self.begin(key, look, work)
        if not isinstance(found, Flight):
            return found
        self._wait(key, found, deadline)
        return found.outcome()

    def lacks_threads(self) -> bool:
        """Whether some work waits for a thread."""
        with self._lock:
            return len(self._flights) > self._workers

    def close(self) -> None:
        """Begin no more work; those who wait get `ended`, and nothing under way is kept."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            flights = list(self._flights.values())
            self.forget()
        for flight in flights:
            flight.error = self._ended
            flight.done.set()

    def _run(self, key: K, flight: Flight[V], work: Callable[[], V]) -> None:
        try:
            self._fly(key, flight, work)
        except EpochfsError:
            pass  # raised in those who wait
        except Exception:
            log.exception("unforeseen failure of work for all who wait for it")
