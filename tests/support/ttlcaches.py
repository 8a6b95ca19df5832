"""A `TtlCache` on a clock that a test moves, in front of a source that counts."""

from __future__ import annotations

from epochfs.metadata.source import Answer
from epochfs.metadata.ttl_cache import CachePolicy, TtlCache
from support.clock import Clock

POLICY = CachePolicy(ttl=60, negative_ttl=5, limit=1000)


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


def stopped() -> Clock:
    """A fixture: the clock of `caching`."""
    return Clock()


def numbering() -> Source:
    """A fixture: the source of `caching`."""
    return Source()


def caching(source: Source, clock: Clock) -> TtlCache[str, str]:
    """A fixture: a cache in front of the source."""
    return TtlCache("thing", source, POLICY, clock=clock)
