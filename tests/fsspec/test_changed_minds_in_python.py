"""A registry that changes its mind, seen by a program: the matrix of `support.minds`, once more.

fsspec has no listing that ends with an error: `ls` has all the names, or raises. So each path of
the model is asked for by itself.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from support import minds
from support.faultproxy import FaultProxy
from support.minds import COLD, SILENT, WHOLE, Row, State, named
from support.model import Tree
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.survey import Found as Seen
from support.survey import failing, wrong

from epochfs.config import ListingOptions, TransportOptions
from epochfs.fsspec import RegistryFileSystem, constructor

TTL = 0.1
PATIENT, SHORT = 10.0, 0.8
SLACK = 2.0
HEALS = 10.0
LOGGED = "left out|cannot be had|cannot be listed|serving|stale|served"

QUICK = ("403", "404 plain", "404 of the specification", "500", "200 with HTML")
"""The answers that every run of the suite tries; EPOCHFS_EVERY_CASE=1 tries all, for 90 seconds."""

CASES = [
    named((row, state))
    for row, state in minds.CASES
    if "EPOCHFS_EVERY_CASE" in os.environ or (row.turn.title in QUICK and state is COLD)
]


@pytest.fixture(scope="module")
def furnished() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        minds.furnish(registry)
        yield registry


@pytest.fixture
def proxy(furnished: EmbeddedRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(furnished.host) as proxy:
        yield proxy


def children(tree: Tree, path: str) -> frozenset[str]:
    begins = "/" if path == "/" else f"{path}/"
    below = (one.removeprefix(begins) for one in tree if one.startswith(begins) and one != path)
    return frozenset(name for name in below if name and "/" not in name)


def look(fs: RegistryFileSystem, path: str, content: bytes | str | None) -> Seen:
    """Ask for one path of the model as a program would."""
    kind = {str: 0o120000, bytes: 0o100000, type(None): 0o040000}[type(content)]
    began, code = time.monotonic(), 0
    names: frozenset[str] = frozenset()
    found: bytes | str | None = None
    try:
        if content is None:
            names = frozenset(one.rpartition("/")[2] for one in fs.ls(path, detail=False))
        elif isinstance(content, bytes):
            found = fs.cat_file(path)
        else:
            found = fs.info(path)["destination"]
    except OSError as error:
        code = error.errno or -1
    return Seen(kind, found, names, code, time.monotonic() - began)


def survey(fs: RegistryFileSystem) -> dict[str, Seen]:
    """Look at all of the model: at the directories first, as whoever walks does."""
    found: dict[str, Seen] = {}
    directories = [path for path, content in WHOLE.items() if content is None]
    with ThreadPoolExecutor(16) as pool:
        for level in (directories, [path for path in WHOLE if path not in directories]):
            seen = pool.map(lambda path: look(fs, path, WHOLE[path]), level)
            found |= dict(zip(level, seen, strict=True))
    return found


def unlisted(path: str, found: dict[str, Seen]) -> bool:
    """Whether nothing lists a path: no directory above it, or none that could be listed."""
    above = path.rpartition("/")[0] or "/"
    return path != "/" and (bool(found[above].code) or unlisted(above, found))


def short(found: dict[str, Seen], expected: Tree) -> list[str]:
    """Return the directories that listed without an error, and not all that is in them."""
    return [
        path
        for path, one in found.items()
        if path in expected
        and WHOLE[path] is None
        and not one.code
        and one.names != children(expected, path)
    ]


def healed(found: dict[str, Seen]) -> bool:
    """Whether all is there again."""
    return not failing(found) and not short(found, WHOLE)


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize(("row", "state"), CASES)
def test_a_listing_is_whole_or_raises_and_no_byte_is_wrong(
    row: Row, state: State, proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What fails once fails always here: trying again only takes its time.
    monkeypatch.setattr(constructor, "TransportOptions", partial(TransportOptions, retries=1))
    monkeypatch.setattr(constructor, "ListingOptions", partial(ListingOptions, negative_ttl=TTL))
    timeout = SHORT if row.turn is SILENT else PATIENT
    fs = RegistryFileSystem(
        proxy.host,
        cache_dir=str(tmp_path / "cache"),
        timeout=timeout,
        metadata_ttl=TTL,
        stale_if_error=state.older,
        skip_instance_cache=True,
    )
    fs.ls("/")
    fs.cat_file(minds.READ_BEFORE)
    if state.walked:
        assert failing(survey(fs)) == {}
    time.sleep(1.2 * TTL)
    row.befall(proxy)
    found = survey(fs)
    expected = row.tree(state)
    assert short(found, expected) == []
    gone = set(WHOLE) - set(expected)
    seen = {
        path: one
        for path, one in found.items()
        if path not in gone and not (one.code == errno.ENOENT and unlisted(path, found))
    }
    assert list(wrong(seen, expected, row.listed_errnos())) == []
    listings = {path for path in row.must_fail(state) if WHOLE[path] is None}
    assert listings <= failing(found).keys()
    assert row.must_open(state).isdisjoint(failing(found))
    assert max(one.slowest for one in found.values()) < timeout + SLACK
    if listings:
        with pytest.raises(OSError):
            fs.find("/")
    proxy.mend()
    until(lambda: healed(survey(fs)), HEALS)
