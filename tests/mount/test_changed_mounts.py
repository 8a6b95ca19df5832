"""Registries that change their mind, seen through real mounts and in the backups of rsync.

One mount goes through all the rows of a state, as one that lives for months does: each row begins
when the one before has been mended, and the mount has healed.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import minds
from support.faultproxy import KINDS, FaultProxy
from support.minds import AGED, COLD, KEPT, SILENT, TURNS, WHOLE, Row, State
from support.mounts import Mount, Mounts, require_fuse
from support.registries import EmbeddedRegistry
from support.scripted import at_most, until
from support.survey import failing, lost, slower, survey, whole
from support.views import MountView

pytestmark = pytest.mark.fuse

TTL = 0.5
TIMEOUT = 10.0
SLACK = 2.0
HEALS = 10.0

BY_TITLE = {turn.title: turn for turn in TURNS}


def rows(**turns: str) -> list[Row]:
    """Return a row for each title, several of which stand between bars, of what is asked for."""
    return [
        Row(what, BY_TITLE[title]) for what, titles in turns.items() for title in titles.split("|")
    ]


AGED_ROWS = rows(
    catalog="401|404 plain|404 of the specification|200 with HTML",
    tags="401|404 plain|404 of the specification|200 with HTML|a page that is its own next",
    manifests="403|405",
    blobs="404 plain",
    referrers="403|404 plain|200 with an empty body",
)
KEPT_ROWS = rows(catalog="401|500", tags="403", referrers="404 of the specification")
COLD_ROWS = rows(catalog="403", tags="403", manifests="403", referrers="405")
CASES = [
    pytest.param(state, row, id=f"{row.title}, {state.title}")
    for state, rows in ((AGED, AGED_ROWS), (KEPT, KEPT_ROWS))
    for row in rows
]

Backup = dict[str, bytes | str]
"""Each file of a backup: its bytes, or where a link points."""


@dataclass(frozen=True)
class Mounted:
    """A mount of the registry, through a proxy that can give other answers, and a good backup."""

    proxy: FaultProxy
    mount: Mount
    good: Path

    @property
    def view(self) -> MountView:
        return MountView(self.mount.path)

    def is_whole(self) -> bool:
        return whole(survey(self.view), WHOLE)


def back_up(source: Path, target: Path) -> int:
    """Make a backup what a mount is, as rsync does; return its exit code."""
    command = ["rsync", "-a", "--delete", f"{source}/", f"{target}/"]
    return subprocess.run(command, check=False, capture_output=True, timeout=100).returncode


def held(backup: Path) -> Backup:
    """Return all that a backup has."""
    return {
        str(path.relative_to(backup)): str(path.readlink())
        if path.is_symlink()
        else path.read_bytes()
        for path in backup.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(scope="module")
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        minds.furnish(registry)
        yield registry


@pytest.fixture(scope="module")
def mounted_as(
    registry: EmbeddedRegistry, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[State], Mounted]]:
    """Mounts the registry once for each state, and makes a good backup of it."""
    require_fuse()
    made: dict[State, Mounted] = {}
    with contextlib.ExitStack() as closing:

        def mounted(state: State) -> Mounted:
            if state not in made:
                directory = tmp_path_factory.mktemp("changed")
                proxy = closing.enter_context(FaultProxy(registry.host))
                mounts = Mounts(directory)
                closing.callback(mounts.close)
                options = (f"--metadata-ttl={TTL}", f"--timeout={TIMEOUT}")
                mount = mounts(proxy.url, *options, f"--stale-if-error={state.older:.0f}")
                made[state] = Mounted(proxy, mount, directory / "good")
                assert back_up(mount.path, made[state].good) == 0
            return made[state]

        yield mounted


@pytest.mark.parametrize(("state", "row"), CASES)
def test_a_backup_that_succeeds_is_whole_and_one_that_fails_loses_nothing(
    state: State, row: Row, mounted_as: Callable[[State], Mounted], tmp_path: Path
) -> None:
    mounted = mounted_as(state)
    backup = tmp_path / "backup"
    subprocess.run(["cp", "-a", mounted.good, backup], check=True)
    before = held(backup)
    until(mounted.is_whole, HEALS)
    time.sleep(1.1 * TTL)
    row.befall(mounted.proxy)
    found = survey(mounted.view)
    code = back_up(mounted.mount.path, backup)
    mounted.proxy.mend()

    assert list(row.problems(state, found)) == []
    assert slower(found, TIMEOUT + SLACK) == {}
    after = held(backup)
    if row.tree(state) is WHOLE:
        assert after == before
    assert bool(code) == bool(failing(found))
    until(mounted.is_whole, HEALS)
    assert back_up(mounted.mount.path, backup) == 0
    assert held(backup) == before


@pytest.mark.expects_log("EIO|EACCES|ETIMEDOUT")
@pytest.mark.parametrize("row", COLD_ROWS, ids=lambda row: row.title)
def test_a_mount_that_has_seen_only_the_catalog_shows_what_is_there_or_fails(
    row: Row, registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    with FaultProxy(registry.host) as proxy:
        options = (f"--metadata-ttl={TTL}", f"--timeout={TIMEOUT}", "--stale-if-error=0")
        mount = mounts(proxy.url, *options)
        view = MountView(mount.path)
        view.entries("/")
        time.sleep(1.1 * TTL)
        row.befall(proxy)
        assert list(row.problems(COLD, survey(view))) == []
        row_code = back_up(mount.path, tmp_path / "backup")
        assert bool(row_code) == bool(row.must_fail(COLD))
        proxy.mend()
        until(lambda: whole(survey(view), WHOLE), HEALS)
        mount.unmount()


@pytest.mark.expects_log("ETIMEDOUT|is down")
def test_the_last_answers_of_a_registry_that_fell_silent_serve_from_the_second_look_on(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    with FaultProxy(registry.host) as proxy:
        mount = mounts(proxy.url, f"--metadata-ttl={TTL}", "--timeout=1")
        view = MountView(mount.path)
        assert whole(survey(view), WHOLE)
        time.sleep(1.1 * TTL)
        for kind in KINDS:
            proxy.set(kind, SILENT.fault)
        first = survey(view)
        assert lost(first, WHOLE) == []
        assert slower(first, 1 + SLACK) == {}
        with at_most(5):
            assert whole(survey(view), WHOLE)
        mount.unmount()
