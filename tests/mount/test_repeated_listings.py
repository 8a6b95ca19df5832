"""A directory that is listed again is answered as before, for as long as nothing changed."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import image, load
from support.operations import operations_on
from support.registries import Guarded
from support.stacks import Stack, stack

from epochfs.demo.registry import Response
from epochfs.errors import Denied
from epochfs.oci.names import Repository

APP, OTHER = image(b"app"), image(b"other")
MANIFEST = f"/app/manifests/{APP.digest}"

Asked = Callable[[str], tuple[Any, list[str]]]
"""Lists a directory; returns the answer, and the names in it."""


@pytest.fixture
def embedded() -> Iterator[Guarded]:
    with Guarded() as registry:
        yield registry


@pytest.fixture
def layers(embedded: Guarded, tmp_path: Path) -> Iterator[Stack]:
    load(embedded, "app", "v1", APP)
    with stack(embedded.url, tmp_path / "cache") as opened:
        yield opened


@pytest.fixture
def ask(layers: Stack) -> Asked:
    operations = operations_on(layers.filesystem)
    from epochfs.fuse import libfuse

    readers = itertools.count(1)

    def asked(path: str) -> tuple[Any, list[str]]:
        found = operations.readdir_with_offset(path, 0, next(readers), libfuse.READDIR_PLUS)
        if not isinstance(found, libfuse.Answer):
            return found, [name for name, _, _ in found]
        names: list[str] = []
        found.give(0, lambda _, name, *__: names.append(name.decode()))
        return found, names

    return asked


@pytest.mark.parametrize(
    "path",
    [
        "/app",
        "/app/blobs",
        "/app/layout",
        "/app/layout/blobs",
        "/app/layout/blobs/sha256",
        "/app/manifests",
        MANIFEST,
        f"{MANIFEST}/layers",
        f"{MANIFEST}/referrers",
    ],
)
def test_what_did_not_change_is_told_as_before(ask: Asked, path: str) -> None:
    ask("/")
    ask(path)
    first, names = ask(path)
    again, told = ask(path)
    assert again is first
    assert told == names


def test_what_changed_is_listed_anew(ask: Asked, layers: Stack, embedded: Guarded) -> None:
    ask("/")
    paths = ["/app/manifests", "/app/blobs", "/app/layout/blobs/sha256"]
    before = {path: set(ask(path)[1]) for path in paths}
    load(embedded, "app", "v2", OTHER)
    layers.filesystem.drop_listings()
    for path in paths:
        assert set(ask(path)[1]) > before[path], path


def test_a_new_repository_below_another_is_listed(
    ask: Asked, layers: Stack, embedded: Guarded
) -> None:
    ask("/")
    ask("/app")
    load(embedded, "app/below", "v1", OTHER)
    layers.filesystem.drop_listings()
    assert "below" in ask("/app")[1]


@pytest.mark.expects_log("EACCES: .* anonymous access is refused")
def test_what_was_denied_since_is_asked_for_again(
    ask: Asked, layers: Stack, embedded: Guarded
) -> None:
    ask(MANIFEST)
    first, _ = ask(MANIFEST)
    assert ask(MANIFEST)[0] is first
    embedded.guard = lambda _: Response(403)
    with pytest.raises(Denied):
        layers.listings.manifest(Repository("app"), OTHER.digest)
    with pytest.raises(OSError, match=os.strerror(errno.EACCES)):
        ask(MANIFEST)


def test_who_was_answered_as_before_goes_on_at_the_same_place(layers: Stack) -> None:
    filesystem = layers.filesystem
    listing = filesystem.listdir(MANIFEST)
    filesystem.goes_on(7, listing)
    assert filesystem.readdir(MANIFEST, 7, anew=False) is listing
