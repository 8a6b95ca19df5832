"""A walk that goes on past errors, and what it must have seen of a tree that is known.

The rule: every name is there, or the listing that should have it ends with an error.
"""

from __future__ import annotations

import errno
import json
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from support.model import Tree
from support.views import Listed, View

REF_NAME = "org.opencontainers.image.ref.name"
TROUBLE = frozenset({errno.EIO, errno.EACCES, errno.ETIMEDOUT})
"""What a name that is listed may answer with; never that it does not exist."""

_WALKERS = 8
_STEP = 1 << 16

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Found:
    """What came of looking at one path.

    `content` is what a file holds, as far as it was read, or where a link points; `names` what a
    directory lists. `code` is the errno that ended it, or 0. `slowest` is in seconds.
    """

    kind: int
    content: bytes | str | None
    names: frozenset[str]
    code: int
    slowest: float


Survey = dict[str, Found]
"""What was found at each path that was listed, and at the root."""


def survey(view: View, start: str = "/", count: int = _WALKERS) -> Survey:
    """Look at everything that is listed, level by level, `count` things at once."""
    found: Survey = {}
    level = [(start, stat.S_IFDIR)]
    with ThreadPoolExecutor(count) as pool:
        while level:
            below: list[tuple[str, int]] = []
            for (path, _), (here, listed) in zip(level, pool.map(_look(view), level), strict=True):
                found[path] = here
                names = listed.names.items() if listed else ()
                below += [(f"{path.rstrip('/')}/{name}", kind) for name, (kind, _) in names]
            level = below
    return found


def _look(view: View) -> Callable[[tuple[str, int]], tuple[Found, Listed | None]]:
    def look(place: tuple[str, int]) -> tuple[Found, Listed | None]:
        path, kind = place
        clock = _Clock()
        listed = None
        content: bytes | str | None = None
        try:
            told = clock(lambda: view.stat(path))
            if told.kind != kind:
                raise AssertionError(f"{path} is listed as {kind:o}, and is {told.kind:o}")
            if kind == stat.S_IFDIR:
                listed = clock(lambda: view.listed(path))
                code = listed.code
            elif kind == stat.S_IFLNK:
                content, code = clock(lambda: view.readlink(path)), 0
            else:
                content, code = _read(view, path, clock)
                assert code or len(content) == told.size, path
        except OSError as error:
            code = error.errno or -1
        names = frozenset(listed.names) if listed else frozenset()
        return Found(kind, content, names, code, clock.slowest), listed

    return look


def _read(view: View, path: str, clock: _Clock) -> tuple[bytes, int]:
    """Read a file to its end or to an error; return what came, and the errno."""
    data = bytearray()
    try:
        with clock(partial(view.opened, path)) as file:
            while piece := clock(partial(file.pread, _STEP, len(data))):
                data += piece
    except OSError as error:
        return bytes(data), error.errno or -1
    return bytes(data), 0


class _Clock:
    """Measures calls, and keeps the longest time."""

    slowest = 0.0

    def __call__(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        try:
            return call()
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)


def lost(found: Survey, expected: Tree) -> list[str]:
    """Return what is neither there nor covered by an error of what should list it."""
    return [path for path in expected if path not in found and not _covered(path, found)]


def _covered(path: str, found: Survey) -> bool:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        if path in found:
            return found[path].code != 0
    return False


def wrong(found: Survey, expected: Tree, errnos: frozenset[int] = TROUBLE) -> Iterator[str]:
    """Yield what is not as it should be: names that nothing stands for, bytes, links, errnos.

    `errnos` are those that something listed may answer with.
    """
    for path, one in found.items():
        if path not in expected:
            yield f"{path} should not be there"
            continue
        if one.code and one.code not in errnos:
            yield f"{path} is listed and answers {errno.errorcode.get(one.code, one.code)}"
        content = expected[path]
        kind = {str: stat.S_IFLNK, bytes: stat.S_IFREG, type(None): stat.S_IFDIR}[type(content)]
        if one.kind != kind:
            yield f"{path} is of another kind: {one.kind:o}"
        elif not _right(path, one, content):
            yield f"{path} has wrong content: {one.content!r}"


def _right(path: str, one: Found, content: bytes | str | None) -> bool:
    if isinstance(one.content, bytes) and isinstance(content, bytes):
        if one.code:
            return content.startswith(one.content)
        if path.endswith("/layout/index.json"):
            return _tags_of(one.content) == _tags_of(content)
        return one.content == content
    return one.content in (None, content)


def _tags_of(index: bytes) -> list[tuple[str, str, int, str]]:
    """Return what the table of tags says: in which order its rows are is not looked at."""
    rows = [
        (one["mediaType"], one["digest"], one["size"], one.get("annotations", {}).get(REF_NAME, ""))
        for one in json.loads(index)["manifests"]
    ]
    return sorted(row for row in rows if row[3])


def whole(found: Survey, expected: Tree) -> bool:
    """Whether all is there and nothing failed."""
    nothing_failed = not any(one.code for one in found.values())
    return nothing_failed and found.keys() == expected.keys() and not list(wrong(found, expected))


def failing(found: Survey) -> dict[str, str]:
    """Return what failed, with the name of its errno."""
    return {
        path: errno.errorcode.get(one.code, str(one.code))
        for path, one in found.items()
        if one.code
    }


def slower(found: Survey, seconds: float) -> dict[str, float]:
    """Return what took longer than so many seconds."""
    return {path: one.slowest for path, one in found.items() if one.slowest > seconds}


def below(paths: Iterable[str], *ends: str) -> set[str]:
    """Return the paths that end with one of these."""
    return {path for path in paths if path.endswith(ends)}
