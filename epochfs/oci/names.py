"""Repositories, tags and digests, parsed once into frozen values and never split again.

A name that comes from a server, a path or a command line is hostile text until one of the `parse`
methods here has accepted it. Grammar: OCI Distribution specification 1.1, "Pulling manifests"; OCI
Image specification, descriptor.md, "Digests".
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import re
import sys
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

from epochfs.errors import InvalidName, printable

if TYPE_CHECKING:
    from hashlib import _Hash

NAME_MAX = 255
"""Longest name in the tree in bytes, as statfs(2) reports it."""

MAX_SEGMENT_BYTES = NAME_MAX - 1
"""Longest repository segment or tag in bytes: NAME_MAX less the one `_` of an escaped segment."""

MAX_REPOSITORY_BYTES = 2048
"""Longest repository name in bytes; well under PATH_MAX with the tree's own segments behind it."""

MAX_TITLE_BYTES = 1024
"""Longest title in bytes; under PATH_MAX together with the longest repository name."""

MAX_TITLE_DEPTH = 32
"""Most directories that one title makes: each is kept in memory, with a path as long."""

_SEGMENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_CONFORMING_REPOSITORY = re.compile(rf"{_SEGMENT}(?:/{_SEGMENT})*\Z")
_CONFORMING_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}\Z")
_ENCODED = {"sha256": re.compile(r"[0-9a-f]{64}\Z"), "sha512": re.compile(r"[0-9a-f]{128}\Z")}

_segments = attrgetter("segments")

ALGORITHMS = tuple(_ENCODED)
"""The digest algorithms that the specification registers."""


def _checked_segment(text: str, kind: str, limit: int = MAX_SEGMENT_BYTES) -> str:
    """Return `text` if it can safely be one path segment, or raise InvalidName."""
    if text in ("", ".", ".."):
        raise InvalidName(f"{kind} has an empty or relative segment: '{printable(text)}'")
    try:
        encoded = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidName(f"{kind} is not valid Unicode: '{printable(text)}'") from None
    if len(encoded) > limit:
        raise InvalidName(f"{kind} has a segment over {limit} bytes: '{printable(text)}'")
    if "/" in text or not text.isprintable():
        raise InvalidName(f"{kind} has a slash or control character: '{printable(text)}'")
    return text


@dataclass(frozen=True, slots=True, order=True)
class Repository:
    """A repository name such as `library/nginx`, of one or more segments.

    `parse` also accepts names outside the specification's grammar, as Epoch does not validate them;
    what it accepts is always safe as a sequence of path segments.
    """

    name: str

    @classmethod
    def parse(cls, text: str) -> Repository:
        """Parse a name; raises InvalidName for one that could not be a path below the mount."""
        if not isinstance(text, str) or len(text) > MAX_REPOSITORY_BYTES:
            raise InvalidName(f"repository name is not text, or too long: '{printable(text)}'")
        if len(text) <= MAX_SEGMENT_BYTES and _CONFORMING_REPOSITORY.match(text):
            return cls(text)
        for segment in text.split("/"):
            _checked_segment(segment, "repository")
        if len(text.encode()) > MAX_REPOSITORY_BYTES:
            raise InvalidName(f"repository name is too long: '{printable(text)}'")
        return cls(text)

    @property
    def segments(self) -> tuple[str, ...]:
        """The name split at its slashes."""
        return tuple(self.name.split("/"))

    @property
    def conforms(self) -> bool:
        """Whether the name is one the specification's grammar allows."""
        return _CONFORMING_REPOSITORY.match(self.name) is not None

    def __str__(self) -> str:
        return self.name


class Catalog:
    """The repositories listed; `complete` where the registry has a catalog that lists any.

    `refusal` is why the registry shows us no catalog, or "".
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

    def including(self, repository: Repository) -> Catalog:
        """Return this catalog with one repository more, if it does not list it."""
        if repository in self:
            return self
        more = copy.copy(self)
        more._repositories = self._repositories | {repository}
        more._in_order = self._in_order.copy()
        insort(more._in_order, repository, key=_segments)
        more._children = self._children.copy()
        segments = repository.segments
        for depth, segment in enumerate(segments):
            above = segments[:depth]
            more._children[above] = more._children.get(above, set()) | {segment}
        return more

    def __iter__(self) -> Iterator[Repository]:
        return iter(self._in_order)

    def __contains__(self, repository: Repository) -> bool:
        return repository in self._repositories

    def following(self, repository: Repository, count: int) -> list[Repository]:
        """Return the siblings, and what is below them, that a walk visits next after one."""
        parent = repository.segments[:-1]
        place = bisect_left(self._in_order, repository.segments, key=_segments)
        after = self._in_order[place + 1 : place + 1 + count]
        return [one for one in after if one.segments[: len(parent)] == parent]

    def children(self, segments: tuple[str, ...]) -> list[str]:
        """Return the next segments of the repositories below a prefix, sorted."""
        return sorted(self._children.get(segments, ()))

    def first(self, segments: tuple[str, ...]) -> Repository | None:
        """Return the first repository at or below a prefix, or None."""
        place = bisect_left(self._in_order, segments, key=_segments)
        found = next(iter(self._in_order[place : place + 1]), None)
        is_below = found is not None and found.segments[: len(segments)] == segments
        return found if is_below else None

    def is_parent(self, segments: tuple[str, ...]) -> bool:
        return segments in self._children


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A tag: a mutable name for a manifest within a repository."""

    name: str

    @classmethod
    def parse(cls, text: str) -> Tag:
        """Parse a tag; raises InvalidName for one that could not be one path segment."""
        if not isinstance(text, str):
            raise InvalidName(f"tag is not text: '{printable(text)}'")
        return cls(text if _CONFORMING_TAG.match(text) else _checked_segment(text, "tag"))

    @property
    def conforms(self) -> bool:
        """Whether the tag is one the specification's grammar allows."""
        return _CONFORMING_TAG.match(self.name) is not None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A content identifier, `algorithm:encoded`, of a registered algorithm (sha256, sha512)."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse a digest; raises InvalidName unless algorithm, length and alphabet are right."""
        if isinstance(text, str):
            algorithm, _, encoded = text.partition(":")
            pattern = _ENCODED.get(algorithm)
            if pattern is not None and pattern.match(encoded):
                # One shared copy of the algorithm's name: each its own would add a quarter.
                return cls(sys.intern(algorithm), encoded)
        raise InvalidName(f"not a sha256 or sha512 digest: '{printable(text, 100)}'")

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> Digest:
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def hasher(self) -> _Hash:
        """Return a fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

    def matches(self, data: bytes) -> bool:
        return Digest.of(data, self.algorithm) == self

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"


Reference = Tag | Digest
"""What names a manifest within a repository."""


def repository_of(name: Repository | str) -> Repository:
    """Return a repository given parsed or as text; raises InvalidName."""
    return name if isinstance(name, Repository) else Repository.parse(name)


def digest_of(digest: Digest | str) -> Digest:
    """Return a digest given parsed or as text; raises InvalidName."""
    return digest if isinstance(digest, Digest) else Digest.parse(digest)


def reference_of(reference: Reference | str) -> Reference:
    """Return a reference given parsed or as text: a tag never has a colon, a digest always."""
    if isinstance(reference, Tag | Digest):
        return reference
    return Digest.parse(reference) if ":" in reference else Tag.parse(reference)


def referrers_tag(digest: Digest) -> Tag:
    """Return the tag of the index of a manifest's referrers, where a registry has no referrers API
    (OCI Distribution specification 1.1, "Referrers Tag Schema").
    """
    return Tag(f"{digest.algorithm[:32]}-{digest.encoded[:64]}")


def checked_title(text: str) -> str:
    """Return a title, a relative path to show content at such as `docs/a.txt`, if it is safe.

    Raises InvalidName for one that could lead out of its directory, or that begins with a digest,
    so that content can always be shown by its digest.
    """
    if len(text.encode("utf-8", "replace")) > MAX_TITLE_BYTES:
        raise InvalidName(f"title is too long: '{printable(text)}'")
    if text.count("/") > MAX_TITLE_DEPTH:
        raise InvalidName(f"title is too deep: '{printable(text)}'")
    for segment in text.split("/"):
        _checked_segment(segment, "title", NAME_MAX)
    try:
        Digest.parse(text.partition("/")[0])
    except InvalidName:
        return text
    raise InvalidName(f"title is a digest: '{printable(text)}'")


def labels(wanted: str, digest: Digest) -> Iterator[str]:
    """Yield the names that content may be shown under, best first: its title, then the title with
    the digest appended as in a reference (`name@digest`), then the digest alone.

    Where several want the same name, each takes the first free one. The last is always free.
    """
    with contextlib.suppress(InvalidName):
        yield checked_title(wanted)
        yield checked_title(f"{wanted}@{digest}")
    yield str(digest)
