"""A registry that changes its mind after a mount that worked, row by row, compared with the model.

Each kind of answer takes the place of each of the registry's own; then the whole tree is looked at.
Every name is there, or the listing that should have it fails; a fault stays where it is; what was
read before still opens; and it heals by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import minds
from support.faultproxy import MANIFEST, TAGS, FaultProxy
from support.minds import (
    CASES,
    COLD,
    SILENT,
    TURNS,
    WHOLE,
    Row,
    State,
    Turn,
    named,
)
from support.registries import EmbeddedRegistry
from support.scripted import at_most, until
from support.stacks import stack
from support.survey import failing, lost, slower, survey, whole, wrong
from support.views import VfsView, View, read

TTL = 0.1
PATIENT, SHORT = 10.0, 1.5
"""Time limits: nothing waits for long but where the registry is silent."""
SLACK = 2.0
HEALS = 10.0

LOGGED = "left out|cannot be had|cannot be listed|serving|stale"


@pytest.fixture(scope="module")
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        minds.furnish(registry)
        yield registry


@pytest.fixture
def proxy(registry: EmbeddedRegistry) -> Iterator[FaultProxy]:
    with FaultProxy(registry.host) as proxy:
        yield proxy


@contextlib.contextmanager
def opened(
    proxy: FaultProxy, directory: Path, row: Row, state: State, timeout: float = 0.0
) -> Iterator[View]:
    """View the registry, and have it known as a state says."""
    timeout = timeout or (SHORT if row.turn is SILENT else PATIENT)
    with stack(
        proxy.url,
        directory,
        timeout=timeout,
        metadata_ttl=TTL,
        negative_ttl=TTL,
        stale_if_error=state.older,
    ) as layers:
        view = VfsView(layers.filesystem)
        view.entries("/")
        read(view, minds.READ_BEFORE)
        if state.walked:
            assert whole(survey(view), WHOLE)
        time.sleep(1.2 * TTL)
        yield view


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize(("row", "state"), [named(case) for case in CASES])
def test_every_name_is_there_or_the_listing_that_should_have_it_fails(
    row: Row, state: State, proxy: FaultProxy, tmp_path: Path
) -> None:
    with opened(proxy, tmp_path, row, state) as view:
        row.befall(proxy)
        found = survey(view)
        assert list(row.problems(state, found)) == []
        limit = SHORT if row.turn is SILENT else PATIENT
        assert slower(found, limit + SLACK) == {}
        proxy.mend()
        until(lambda: whole(survey(view), WHOLE), HEALS)


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize("what", ["catalog", "tags"])
@pytest.mark.parametrize("turned", TURNS, ids=lambda turned: turned.title)
def test_what_a_digest_names_neither_waits_for_a_listing_nor_fails_with_it(
    what: str, turned: Turn, proxy: FaultProxy, tmp_path: Path
) -> None:
    row = Row(what, turned)
    manifest = f"/lab/app/manifests/{minds.EDGE.digest}/manifest.json"
    blob = f"/top/blobs/{minds.model.digest(b'top' * 40_000)}"
    with opened(proxy, tmp_path, row, COLD, PATIENT) as view:
        row.befall(proxy)
        with at_most(0.9 * PATIENT):
            for path in (manifest, blob):
                view.stat("/".join(path.split("/")[:-1]))
                assert read(view, path) == WHOLE[path]


BLOCKED = [one for one in TURNS if one.title != "a page that is its own next"]


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize("turned", BLOCKED, ids=lambda turned: turned.title)
def test_one_tag_that_cannot_be_resolved_takes_no_other(
    turned: Turn, proxy: FaultProxy, tmp_path: Path
) -> None:
    with opened(proxy, tmp_path, Row("manifests", turned), COLD) as view:
        proxy.set(MANIFEST, minds.only("/lab/app/manifests/edge", turned.fault))
        found = survey(view)
    edge = {path for path in WHOLE if minds.EDGE.digest.encoded in path}
    listings = {f"/lab/app/{name}" for name in ("manifests", "blobs", "layout/blobs/sha256")}
    failed = failing(found)
    assert lost(found, WHOLE) == []
    assert list(wrong(found, WHOLE)) == []
    assert failed.keys() >= {"/lab/app/tags/edge", "/lab/app/manifests", "/lab/app/blobs"}, failed
    listings |= {"/lab/app/tags/edge", "/lab/app/layout/index.json", "/lab/app/layout/blobs"}
    assert failed.keys() <= listings, failed
    assert found.keys() >= WHOLE.keys() - edge - _of_blobs(minds.EDGE.every_blob())


def _of_blobs(blobs: Iterator[bytes]) -> set[str]:
    names = {minds.model.digest(blob).partition(":")[2] for blob in blobs}
    return {path for path in WHOLE if any(path.endswith(name) for name in names)}


@pytest.mark.expects_log(LOGGED)
@pytest.mark.parametrize("turned", TURNS, ids=lambda turned: turned.title)
def test_one_repository_whose_tags_cannot_be_listed_takes_no_other(
    turned: Turn, proxy: FaultProxy, tmp_path: Path
) -> None:
    with opened(proxy, tmp_path, Row("tags", turned), COLD) as view:
        proxy.set(TAGS, minds.only("/lab/app/tags/list", turned.fault))
        found = survey(view)
    mine = {path for path in WHOLE if path.startswith("/lab/app/")}
    expected = minds.APP_WITHOUT_TAGS if turned.absent else WHOLE
    assert all(path.startswith("/lab/app/") for path in failing(found)), failing(found)
    assert found.keys() >= WHOLE.keys() - mine
    assert list(wrong(found, expected)) == []
    assert lost(found, expected) == []
