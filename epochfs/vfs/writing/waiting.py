"""Tables of waits: a manifest for its blobs, an index for its manifests, a tag for its manifest.

Locks: `Waiting._lock` guards the tables; it is a leaf, and no I/O happens under it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from epochfs.oci.names import Digest, Repository, Tag


class ContentKind(Enum):
    """In which of a repository's two stores something is to be."""

    BLOB = "blob"
    MANIFEST = "manifest"


@dataclass(frozen=True, slots=True)
class Content:
    """A blob or manifest of a repository."""

    repository: Repository
    digest: Digest
    kind: ContentKind

    def __str__(self) -> str:
        return f"{self.kind.value} {self.digest} of {self.repository}"


@dataclass(frozen=True, slots=True)
class Tagged:
    """A tag of a repository."""

    repository: Repository
    tag: Tag

    def __str__(self) -> str:
        return f"tag {self.tag} of {self.repository}"


Waiter = Content | Tagged


class Waiting:
    """What waits, for which content that the registry does not have. Any thread may call anything.

    Content that is known to be in the registry is remembered, so that nobody asks for it again.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._present: set[Content] = set()
        self._needs: dict[Waiter, set[Content]] = {}
        self._waiters: dict[Content, set[Waiter]] = {}

    def add(self, waiter: Waiter, needs: Iterable[Content]) -> list[Content]:
        """Have something wait for what it needs; return what of that is not known to be there."""
        with self._lock:
            self._drop(waiter)
            missing = {need for need in needs if need not in self._present}
            self._needs[waiter] = missing
            for need in missing:
                self._waiters.setdefault(need, set()).add(waiter)
            return sorted(missing, key=str)

    def arrived(self, content: Content) -> list[Waiter]:
        """Note that the registry has something; return what waits for nothing more."""
        with self._lock:
            self._present.add(content)
            waiters = self._waiters.pop(content, set())
            for waiter in waiters:
                self._needs[waiter].discard(content)
            return sorted((one for one in waiters if not self._needs[one]), key=str)

    def removed(self, content: Content) -> None:
        """Note that the registry does not have something any more."""
        with self._lock:
            self._present.discard(content)

    def is_present(self, content: Content) -> bool:
        """Whether the registry is known to have something."""
        with self._lock:
            return content in self._present

    def is_needed(self, content: Content) -> bool:
        """Whether something waits for this."""
        with self._lock:
            return content in self._waiters

    def waits(self, waiter: Waiter) -> bool:
        """Whether something waits, were it only for its turn."""
        with self._lock:
            return waiter in self._needs

    def missing(self, waiter: Waiter) -> list[Content]:
        """Return what something waits for."""
        with self._lock:
            return sorted(self._needs.get(waiter, ()), key=str)

    def ended(self, waiter: Waiter) -> None:
        """Have something wait no more."""
        with self._lock:
            self._drop(waiter)

    def all(self) -> list[tuple[Waiter, list[Content]]]:
        """Return all that waits, each with what it waits for."""
        with self._lock:
            return [(one, sorted(needs, key=str)) for one, needs in self._needs.items()]

    def _drop(self, waiter: Waiter) -> None:
        for need in self._needs.pop(waiter, ()):
            waiters = self._waiters.get(need)
            if waiters is not None:
                waiters.discard(waiter)
                if not waiters:
                    del self._waiters[need]
