"""Tracks whether a registry answers, by the requests made anyway and by pings.

Health is the registry's own: it is pinged even while a mirror answers in its place.

Locks: `Health._lock` guards its fields; no I/O and no callback happens under it. `Health.outage` is
read without it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from epochfs.errors import CredentialsUnavailable, Denied, EpochfsError

log = logging.getLogger(__name__)

_FIRST_SECONDS = 1.0
_LONGEST_SECONDS = 5.0
_GROWTH = 1.5


@dataclass(frozen=True, slots=True)
class Outage:
    """An outage: since when (epoch seconds), and the error that showed it."""

    since: float
    reason: str


class Health:
    """Tracks whether a registry answers, by the requests made anyway and by pings.

    A failed request may be about one object only, so the registry is pinged before it counts as
    down. While it is down it is pinged every few seconds; `on_return` is called when it is back.
    """

    def __init__(self, registry: str, ping: Callable[[], None]) -> None:
        self.on_return: Callable[[], None] = lambda: None
        self._registry = registry
        self._ping = ping
        self._lock = threading.Lock()
        self.outage: Outage | None = None
        """The present one, if any; set here alone."""
        self._probing = False
        self._closing = threading.Event()

    def answered(self) -> None:
        """Note that a request was answered, which ends an outage."""
        with self._lock:
            outage, self.outage = self.outage, None
        if outage is not None:
            log.info("registry %s is back after %.0f s", self._registry, time.time() - outage.since)
            self.on_return()

    def failed(self, error: EpochfsError, *, pinged: bool = False) -> None:
        """Note that a request, or a ping, got no answer, and find out whether that is an outage."""
        outage = Outage(time.time(), str(error))
        if pinged:
            self._declare(outage)
        with self._lock:
            if self._probing or self._closing.is_set():
                return
            self._probing = True
        threading.Thread(target=self._probe, args=(outage,), name="probe", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _declare(self, outage: Outage) -> None:
        with self._lock:
            if self.outage is not None:
                return
            self.outage = outage
        log.warning(
            "registry %s is down, what is cached is served: %s", self._registry, outage.reason
        )

    def _probe(self, outage: Outage) -> None:
        pause = _FIRST_SECONDS
        while not self._closing.is_set():
            if self._answers():
                break
            if self._closing.is_set():
                return  # what did not answer was our own connection, closed
            self._declare(outage)
            self._closing.wait(pause)
            pause = min(pause * _GROWTH, _LONGEST_SECONDS)
        with self._lock:
            self._probing = False
        if not self._closing.is_set():
            self.answered()

    def _answers(self) -> bool:
        try:
            self._ping()
        except EpochfsError as error:
            if isinstance(error, Denied) and not isinstance(error, CredentialsUnavailable):
                return True
            log.debug("registry %s does not answer: %s", self._registry, error)
            return False
        return True
