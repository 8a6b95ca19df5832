"""A parser under test: what it is given, and what may come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epochfs.errors import EpochfsError


@dataclass(frozen=True)
class Target:
    """A parser that is to return, or to raise its documented `refusals`, for any bytes whatever.

    `check` parses them and asserts what holds for all that is accepted. `seeds` are accepted ones,
    to begin from.
    """

    name: str
    check: Callable[[bytes], object]
    refusals: tuple[type[EpochfsError], ...]
    seeds: tuple[bytes, ...]

    def feed(self, data: bytes) -> bool:
        """Return whether `data` is accepted; raises whatever the parser should not have raised."""
        try:
            self.check(data)
        except self.refusals as error:
            message = str(error)
            assert message.isprintable(), "a refusal is one line of text"
            assert len(message) < 1000, "a refusal is short"
            return False
        return True
