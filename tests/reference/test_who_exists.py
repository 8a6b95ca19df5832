"""Which names are there, by what the catalog and a repository's tag list say; one row a test.

The registry has `lab/app`, listed; `hidden/app`, which its catalog leaves out; and `hidden/empty`,
left out too, whose tag list is empty. `hidden/typo` it does not know.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.builders import image, load
from support.faultproxy import CATALOG, TAGS, Exchange, Fault, FaultProxy, untouched
from support.minds import TURNS, Turn, answer
from support.model import digest
from support.registries import EmbeddedRegistry
from support.scripted import Step, at_most, reply, until
from support.stacks import stack
from support.views import VfsView, View, names, read

LAYER = b"layer" * 200
APP = image(LAYER)
BY_NAME = {
    f"manifests/{APP.digest}/manifest.json": APP.raw,
    f"blobs/{digest(LAYER)}": LAYER,
}
DIRECTORIES = ["blobs", "layout", "manifests", "tags"]
LISTED, HIDDEN, EMPTY, TYPO = "/lab/app", "/hidden/app", "/hidden/empty", "/hidden/typo"
SLOW = 3.0
AT_ONCE = 2.0
TTL = 0.2

Open = Callable[..., View]


def hiding(exchange: Exchange) -> Iterator[Step]:
    """Answer a catalog without `hidden/…`."""
    listed = json.loads(exchange.answer.body)["repositories"]
    kept = [name for name in listed if not name.startswith("hidden/")]
    yield reply(body=json.dumps({"repositories": kept}).encode())


def slowly(fault: Fault) -> Fault:
    """Let SLOW seconds pass before the answer."""

    def slow(exchange: Exchange) -> Iterator[Step]:
        yield SLOW
        yield from fault(exchange)

    return slow


NOTHING = answer(200, b'{"repositories":[]}', "application/json")
NONE = [(turn.title, turn.fault) for turn in TURNS if turn.title != "silence"]
NO_CATALOG = [*NONE, ("an empty list", NOTHING)]
NO_ANSWER = [turn for turn in TURNS if not turn.absent and turn.title != "silence"]


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        for name in ("lab/app", "hidden/app"):
            load(registry, name, "1", APP)
        registry.put_blob("hidden/empty", b"blob")
        yield registry


@pytest.fixture
def proxy(registry: EmbeddedRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as proxy:
        proxy.set(CATALOG, hiding)
        yield proxy


@pytest.fixture
def opened(proxy: FaultProxy, tmp_path: Path) -> Iterator[Open]:
    """Views the registry, once its catalog has been asked for, as mounting does."""
    with ExitStack() as closing:

        def build(**options: Any) -> View:
            layers = closing.enter_context(stack(proxy.url, tmp_path, **options))
            view = VfsView(layers.filesystem)
            view.listed("/")
            return view

        yield build


def fails_with(*numbers: int) -> AbstractContextManager[Any]:
    """Expect an OSError with one of these numbers."""
    words = "|".join(rf"\[Errno {number}\]" for number in numbers)
    return pytest.raises(OSError, match=words)


def assert_not_there(view: View, path: str) -> None:
    for place in (path, *(f"{path}/{name}" for name in DIRECTORIES)):
        with fails_with(errno.ENOENT):
            view.stat(place)


def assert_opens_by_name(view: View, path: str) -> None:
    """Assert that a repository can be entered, and that what is asked for below decides."""
    view.stat(path)
    assert view.readlink(f"{path}/tags/1") == f"../manifests/{APP.digest}"
    for below, content in BY_NAME.items():
        view.stat(f"{path}/{below.partition('/')[0]}")
        assert read(view, f"{path}/{below}") == content
    missing = digest(b"what nobody has")
    for below in ("tags/2", f"manifests/{missing}", f"blobs/{missing}"):
        with fails_with(errno.ENOENT):
            view.stat(f"{path}/{below}")


# ---- the catalog lists it ----------------------------------------------------------------------


def test_what_the_catalog_lists_is_there(opened: Open) -> None:
    view = opened()
    assert names(view, LISTED) == DIRECTORIES
    assert_opens_by_name(view, LISTED)


@pytest.mark.parametrize("turn", NO_ANSWER, ids=lambda turn: turn.title)
def test_what_the_catalog_lists_is_there_whatever_its_tag_list_says(
    turn: Turn, opened: Open, proxy: FaultProxy
) -> None:
    view = opened()
    proxy.set(TAGS, turn.fault)
    assert names(view, LISTED) == DIRECTORIES
    assert_opens_by_name(view, LISTED)
    for name in ("tags", "manifests", "blobs"):
        with fails_with(*turn.errnos):
            view.entries(f"{LISTED}/{name}")


def test_nobody_waits_for_a_slow_catalog_but_who_lists_it(
    opened: Open, proxy: FaultProxy, registry: EmbeddedRegistry
) -> None:
    view = opened(metadata_ttl=TTL, negative_ttl=TTL)
    load(registry, "lab/new", "1", APP)
    time.sleep(2 * TTL)
    proxy.set(CATALOG, slowly(hiding))
    with at_most(AT_ONCE):
        assert_opens_by_name(view, LISTED)
    with at_most(AT_ONCE):
        assert_opens_by_name(view, HIDDEN)
    assert len(proxy.requests(CATALOG)) == 1
    with at_most(SLOW + AT_ONCE):
        assert names(view, "/lab") == ["app", "new"]


# ---- the catalog is whole and does not list it -------------------------------------------------


def test_what_has_a_tag_is_there_though_the_catalog_does_not_list_it(opened: Open) -> None:
    view = opened()
    assert names(view, HIDDEN) == DIRECTORIES
    assert names(view, f"{HIDDEN}/tags") == ["1"]
    assert_opens_by_name(view, HIDDEN)


@pytest.mark.parametrize("path", [EMPTY, TYPO], ids=["an empty tag list", "404 NAME_UNKNOWN"])
def test_what_has_no_tag_and_is_not_listed_is_not_there(path: str, opened: Open) -> None:
    assert_not_there(opened(), path)


@pytest.mark.parametrize("path", [EMPTY, TYPO], ids=["an empty tag list", "404 NAME_UNKNOWN"])
def test_the_catalog_is_read_again_only_if_it_is_older_than_a_moment(
    path: str, opened: Open, proxy: FaultProxy
) -> None:
    view = opened(negative_ttl=1.0)
    proxy.set(CATALOG, untouched)
    if path == EMPTY:
        with fails_with(errno.ENOENT):
            view.stat(path)
        assert proxy.requests(CATALOG) == []
        time.sleep(1.0)
        view.stat(path)
        assert names(view, f"{path}/tags") == []
    else:
        time.sleep(1.0)
        for _ in range(5):
            with fails_with(errno.ENOENT):
                view.stat(path)
    assert len(proxy.requests(CATALOG)) == 1


@pytest.mark.parametrize("turn", NO_ANSWER, ids=lambda turn: turn.title)
def test_what_nobody_can_deny_can_be_entered_and_listing_it_is_an_error(
    turn: Turn, opened: Open, proxy: FaultProxy
) -> None:
    view = opened()
    proxy.set(TAGS, turn.fault)
    assert_opens_by_name(view, HIDDEN)
    for name in ("", "/tags", "/manifests", "/blobs"):
        listed = view.listed(f"{HIDDEN}{name}")
        assert listed.code != 0, name
    with pytest.raises(OSError, match="Errno"):
        read(view, f"{HIDDEN}/layout/index.json")


# ---- the catalog is denied, absent, failing, empty ---------------------------------------------


@pytest.mark.parametrize(
    "catalog", [fault for _, fault in NO_CATALOG], ids=[title for title, _ in NO_CATALOG]
)
def test_without_a_catalog_any_name_can_be_entered(
    catalog: Fault, opened: Open, proxy: FaultProxy
) -> None:
    proxy.set(CATALOG, catalog)
    view = opened()
    assert_opens_by_name(view, HIDDEN)
    assert names(view, f"{HIDDEN}/tags") == ["1"]
    for path in (TYPO, "/typo"):
        view.stat(path)
        # What lies below it only a catalog could tell.
        assert (view.listed(path).names, view.listed(path).code != 0) == ({}, True)
        for name in DIRECTORIES:
            with fails_with(errno.ENOENT):
                view.entries(f"{path}/{name}")
        with fails_with(errno.ENOENT):
            read(view, f"{path}/layout/index.json")
    with fails_with(errno.ENOENT):
        view.stat("/UPPER/case")


@pytest.mark.parametrize("turn", NO_ANSWER, ids=lambda turn: turn.title)
def test_without_a_catalog_and_tag_lists_everything_opens_by_name(
    turn: Turn, opened: Open, proxy: FaultProxy
) -> None:
    proxy.set(CATALOG, answer(404, b"404 page not found"))
    proxy.set(TAGS, turn.fault)
    view = opened()
    assert_opens_by_name(view, HIDDEN)
    assert view.listed(f"{HIDDEN}/tags").code != 0


def test_nobody_waits_for_a_catalog_that_never_came(opened: Open, proxy: FaultProxy) -> None:
    proxy.set(CATALOG, slowly(answer(500)))
    view = opened(timeout=1.0)
    with at_most(AT_ONCE):
        assert_opens_by_name(view, HIDDEN)
    proxy.set(CATALOG, hiding)
    until(lambda: set(view.listed("/").names) == {"lab"}, 10)
