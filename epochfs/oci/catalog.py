"""The namespace that the names of a registry's repositories form. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from operator import attrgetter

from epochfs.oci.names import Repository

_segments = attrgetter("segments")


class Catalog:
    """The repositories listed; `complete` where the registry has a catalog that lists any.

    `refusal` is why there is no catalog for us, or "".
    """

    def __init__(
        self, repositories: Iterable[Repository], *, complete: bool, refusal: str = ""
    ) -> None:
        self.complete = complete
        self.refusal = refusal
        self._repositories = frozenset(repositories)
        self._in_order = sorted(self._repositories, key=_segments)
        self._children: dict[tuple[str, ...], set[str]] = {(): set()}
        for repository in self._repositories:
            segments = repository.segments
            for depth, segment in enumerate(segments):
                self._children.setdefault(segments[:depth], set()).add(segment)

    def __contains__(self, repository: Repository) -> bool:
        return repository in self._repositories

    def following(self, repository: Repository, count: int) -> list[Repository]:
        """Return the siblings, and what is below them, that a walk comes to next after one."""
        parent = repository.segments[:-1]
        place = bisect_left(self._in_order, repository.segments, key=_segments)
        after = self._in_order[place + 1 : place + 1 + count]
        return [one for one in after if one.segments[: len(parent)] == parent]

    def children(self, segments: tuple[str, ...]) -> list[str]:
        """The next segments of the repositories below a prefix, sorted."""
        return sorted(self._children.get(segments, ()))

    def is_parent(self, segments: tuple[str, ...]) -> bool:
        """Whether some repository lies below a prefix."""
        return segments in self._children
