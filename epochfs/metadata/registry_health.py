"""Tracks whether the registry answers, by the requests made anyway and by pings.

A failed request may be about one object only, so the registry is pinged before it counts as down.
While it is down it is pinged every few seconds; `on_return` tells when it is back. What the cache
serves meanwhile is decided in `offline`.

Locks: `Health._lock` guards the fields; no I/O and no callback happens under it. `outage` is read
without it.
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
    """Tracks one registry, which `ping` probes; calls `on_return` when it is back."""

    def __init__(self, registry: str, ping: Callable[[], None]) -> None:
        self.on_return: Callable[[], None] = lambda: None
        self._registry = registry
        self._ping = ping
        self._lock = threading.Lock()
        self._outage: Outage | None = None
        self._probing = False
        self._closing = threading.Event()

    @property
    def outage(self) -> Outage | None:
        """The current outage, if there is one."""
        return self._outage

    @property
    def is_down(self) -> bool:
        """Whether requests are likely to fail now."""
        return self._outage is not None

    def answered(self) -> None:
        """Note that the registry answered a request."""
        if self._outage is None:
            return
        with self._lock:
            outage, self._outage = self._outage, None
        if outage is not None:
            log.info("registry %s is back after %.0f s", self._registry, time.time() - outage.since)
            self.on_return()

    def failed(self, error: EpochfsError, *, pinged: bool = False) -> None:
        """Note that a request got no answer, and find out whether that is an outage.

        `pinged`: the request was a ping.
        """
        outage = Outage(time.time(), str(error))
        if pinged:
            self._declare(outage)
        with self._lock:
            if self._probing or self._closing.is_set():
                return
            self._probing = True
        threading.Thread(target=self._probe, args=(outage,), name="probe", daemon=True).start()

    def close(self) -> None:
        """Stop pinging."""
        self._closing.set()

    def _declare(self, outage: Outage) -> None:
        with self._lock:
            if self._outage is not None:
                return
            self._outage = outage
        log.warning(
            "registry %s is down, what is cached is served: %s", self._registry, outage.reason
        )

    def _probe(self, outage: Outage) -> None:
        """Ping until the registry answers."""
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
