"""Tracks which credentials have proved this process's access, across rotations.

Tokens and passwords are rotated under a mount. What the registry answered under earlier credentials
of the same bearer is this process's still: it has proved its access, and a rotation takes none
away. It ends when the registry refuses the new credentials. Another process, or this one after a
restart, has proved nothing of the kind, and nor has another user who logs in.

Locks: `Proofs._lock` guards all fields, and is a leaf.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

_MOST_EARLIER = 500
"""How many earlier credentials of a repository count: three weeks of an hourly rotation."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks about a repository: the `scope` of the answers tells credentials apart, and the
    `principal` those who bear them.
    """

    scope: str
    principal: str
    repository: str


class Proofs:
    """The credentials that the registry answered, by bearer and repository."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._proved: dict[tuple[str, str], list[str]] = {}
        self._accepted: set[str] = set()
        self._refused: set[str] = set()

    def add(self, asker: Asker) -> None:
        """Take note that the registry has given an answer about a repository."""
        with self._lock:
            self._refused.discard(asker.scope)
            self._accepted.add(asker.scope)
            scopes = self._proved.setdefault((asker.principal, asker.repository), [])
            if scopes[-1:] != [asker.scope]:
                others = [one for one in scopes if one != asker.scope]
                scopes[:] = [*others, asker.scope][-_MOST_EARLIER:]

    def remove(self, asker: Asker) -> None:
        """Take note that the registry denies a repository.

        If earlier credentials had access and the present ones have had no answer at all, it is
        these that are refused, and what the earlier ones have proved counts no more.
        """
        with self._lock:
            proved = self._proved.pop((asker.principal, asker.repository), None)
            if proved and asker.scope not in self._accepted:
                self._refused.add(asker.scope)

    def scopes(self, asker: Asker, *, also_refused: bool = False) -> tuple[str, ...]:
        """Return whose answers about a repository are this process's: the present scope first.

        Of refused credentials it is that alone, unless all are wanted that there are.
        """
        with self._lock:
            earlier: list[str] = []
            if also_refused or asker.scope not in self._refused:
                earlier = self._proved.get((asker.principal, asker.repository), [])
            return (asker.scope, *(one for one in earlier if one != asker.scope))
