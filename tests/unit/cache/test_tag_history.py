"""Since when a tag has its digest: kept over remounts, and changed by a moved tag alone."""

from __future__ import annotations

import itertools
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from support.diskcache import damage, read_only

from epochfs.cache.tag_history import TagHistory
from epochfs.errors import CacheFailure
from epochfs.oci.names import Digest, Repository, Tag

REGISTRY = "http://127.0.0.1:5000"
SECOND_NS = 10**9
APP, OTHER = Repository("team/app"), Repository("team/other")
LATEST, STABLE = Tag("latest"), Tag("stable")
FIRST, SECOND = Digest.of(b"first"), Digest.of(b"second")

_OPEN_AND_ASK = """\
import sys
from pathlib import Path
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.cache.tag_history import TagHistory
sys.stdin.readline()
for number in range(20):
    history = TagHistory(Path(sys.argv[1]) / str(number) / "tags.sqlite", "registry")
    print(history.since(Repository("team/app"), Tag("latest"), Digest.of(b"first")))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "tags.sqlite"


def ticking(start: int = 1) -> Iterator[int]:
    return itertools.count(start)


def opened(path: Path, start: int = 1, registry: str = REGISTRY) -> TagHistory:
    """Open a history whose clock begins at `start` and moves on by one at every look."""
    ticks = ticking(start)
    return TagHistory(path, registry, lambda: next(ticks))


def test_a_first_sight_is_now_and_later_ones_are_the_same(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        assert [history.since(APP, LATEST, FIRST) for _ in range(3)] == [100, 100, 100]


def test_tags_repositories_and_registries_are_kept_apart(path: Path) -> None:
    with closing(opened(path, 1)) as here, closing(opened(path, 10, "http://other")) as there:
        seen = [
            here.since(APP, LATEST, FIRST),
            here.since(APP, STABLE, FIRST),
            here.since(OTHER, LATEST, FIRST),
            there.since(APP, LATEST, FIRST),
        ]
    assert seen == [1, 2, 3, 10]


def test_a_remount_keeps_what_was_seen(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
    with closing(opened(path, 200)) as history:
        assert history.since(APP, LATEST, FIRST) == 100


def test_a_moved_tag_takes_the_moment_it_was_seen_to_move(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
        assert history.since(APP, LATEST, SECOND) == 101
        assert history.since(APP, LATEST, SECOND) == 101


def test_a_tag_that_moves_back_has_moved(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        for digest in (FIRST, SECOND):
            history.since(APP, LATEST, digest)
        assert history.since(APP, LATEST, FIRST) == 102


def test_the_time_of_a_layout_moves_with_its_index_and_at_no_other_moment(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        assert history.layout_since(APP, b"one tag") == 100
        assert history.layout_since(OTHER, b"one tag") == 101
        assert history.layout_since(APP, b"two tags") == SECOND_NS
        assert history.layout_since(APP, b"two tags") == SECOND_NS
    with closing(opened(path, 200)) as history, closing(opened(path, 300, "http://other")) as there:
        assert history.layout_since(APP, b"two tags") == SECOND_NS
        assert history.layout_since(APP, b"one tag") == 2 * SECOND_NS
        assert there.layout_since(APP, b"one tag") == 300


def test_a_file_from_before_layouts_had_times_keeps_what_it_has(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
    with closing(sqlite3.connect(path)) as database:
        database.execute("DROP TABLE layout")
    with closing(opened(path, 200)) as history:
        assert history.since(APP, LATEST, FIRST) == 100
        assert history.layout_since(APP, b"index") == 200


@pytest.mark.parametrize("damage", [b"", b"not a database at all, but long enough" * 100])
@pytest.mark.expects_log("is damaged and begins anew")
def test_a_damaged_file_begins_anew(path: Path, damage: bytes) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
    path.write_bytes(damage)
    with closing(opened(path, 200)) as history:
        assert history.since(APP, LATEST, FIRST) == 200
    with closing(opened(path, 300)) as history:
        assert history.since(APP, LATEST, FIRST) == 200


@pytest.mark.expects_log("is damaged and begins anew")
def test_damage_that_shows_only_in_use_costs_two_mounts_their_times_and_no_more(
    path: Path,
) -> None:
    tags = [Tag(f"t{number:04}") for number in range(2000)]
    with closing(opened(path, 1)) as history:
        for tag in tags:
            history.since(APP, tag, FIRST)
    damage(path)
    with closing(opened(path, 10_000)) as history, closing(opened(path, 20_000)) as other:
        times = [history.since(APP, tag, FIRST) for tag in tags]
        assert times == sorted(times)
        assert times[-1] > 10_000
        assert [other.since(APP, tag, FIRST) for tag in tags] == times


@pytest.mark.expects_log("is damaged and begins anew")
def test_a_file_cut_short_by_a_crash_gives_an_answer_or_a_clear_error(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        for number in range(200):
            history.since(APP, Tag(f"t{number}"), FIRST)
    os.truncate(path, path.stat().st_size // 2)
    with closing(opened(path, 1000)) as history:
        for number in range(200):
            assert history.since(APP, Tag(f"t{number}"), FIRST) > 0


def test_the_file_is_for_its_owner_alone_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        with closing(opened(path)) as history:
            history.since(APP, LATEST, FIRST)
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}, modes
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_a_place_that_cannot_be_written_is_a_cache_failure(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheFailure):
        opened(tmp_path / "file" / "tags.sqlite")


def test_many_threads_see_one_moment(path: Path) -> None:
    with closing(opened(path)) as history, ThreadPoolExecutor(32) as pool:
        seen = list(pool.map(lambda _: history.since(APP, LATEST, FIRST), range(320)))
    assert set(seen) == {1}


def test_two_mounts_that_see_a_tag_at_once_agree(path: Path) -> None:
    other = opened(path, 200)
    theirs = []

    def clock_of_a_slow_mount() -> int:
        theirs.append(other.since(APP, LATEST, FIRST))
        return 100

    with closing(other), closing(TagHistory(path, REGISTRY, clock_of_a_slow_mount)) as slow:
        ours = slow.since(APP, LATEST, FIRST)
        assert [ours] == theirs
        assert other.since(APP, LATEST, FIRST) == ours


def test_processes_that_begin_at_once_agree_and_take_nothing_for_damage(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _OPEN_AND_ASK, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=30) for process in processes]
    assert {errors for _, errors in said} == {""}
    assert len({output for output, _ in said}) == 1


def test_a_history_whose_file_was_removed_goes_on(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
        shutil.rmtree(path.parent)
        assert history.since(APP, LATEST, FIRST) >= 100
        assert history.since(APP, STABLE, FIRST) >= 100
        assert history.since(APP, STABLE, SECOND) > 100


# --- disks that take nothing ------------------------------------------------------------------


def full(history: TagHistory) -> None:
    """Let the database's file grow no more."""
    connection = history._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")


def fill(history: TagHistory) -> list[int]:
    """See so many tags that not all of them have room in the file."""
    return [history.since(APP, Tag(f"t{number:05}"), FIRST) for number in range(2000)]


def test_a_first_sight_that_a_full_disk_does_not_take_is_remembered(path: Path) -> None:
    told: list[object] = []
    ticks = ticking()
    with closing(TagHistory(path, REGISTRY, lambda: next(ticks), report=told.append)) as history:
        history.since(APP, LATEST, FIRST)
        full(history)
        seen = fill(history)
        assert seen == sorted(set(seen))
        assert fill(history) == seen
        assert history.since(APP, LATEST, FIRST) == 1
    assert "full" in str(told[0])


@pytest.mark.expects_log("the tag history: database or disk is full")
def test_what_was_remembered_is_written_once_there_is_room(path: Path) -> None:
    with closing(opened(path)) as history:
        full(history)
        seen = fill(history)
        history._database._connection.execute("PRAGMA max_page_count=100000")
        assert fill(history) == seen
    with closing(opened(path, 1_000_000)) as history:
        assert fill(history) == seen


def test_room_is_made_before_a_first_sight_is_given_up(path: Path) -> None:
    asked: list[int] = []
    history = opened(path)

    def make_room() -> bool:
        asked.append(1)
        history._database._connection.execute("PRAGMA max_page_count=100000")
        return True

    with closing(history):
        full(history)
        history._database._make_room = make_room
        seen = fill(history)
    assert asked == [1]
    with closing(opened(path, 1_000_000)) as history:
        assert fill(history) == seen


@pytest.mark.expects_log("the tag history: attempt to write a readonly database")
def test_a_moved_tag_is_seen_to_move_though_nothing_can_be_written(path: Path) -> None:
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
        history._database._connection.execute("PRAGMA query_only=1")
        moved = [history.since(APP, LATEST, SECOND) for _ in range(3)]
        assert (set(moved), moved[0] > 100) == ({moved[0]}, True)
        assert history.since(APP, LATEST, FIRST) == 100


def test_without_a_file_first_sights_are_remembered() -> None:
    history = TagHistory(None, REGISTRY, iter(ticking(5)).__next__)
    assert [history.since(APP, LATEST, one) for one in (FIRST, FIRST, SECOND)] == [5, 5, 6]
    history.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_a_file_on_a_read_only_disk_still_tells_what_it_has(path: Path) -> None:
    told: list[object] = []
    with closing(opened(path, 100)) as history:
        history.since(APP, LATEST, FIRST)
    with read_only(path.parent), closing(opened(path, 200)) as history:
        history._database._report = told.append
        assert history.since(APP, LATEST, FIRST) == 100
        assert [history.since(APP, STABLE, FIRST) for _ in range(2)] == [200, 200]
    assert "readonly database" in str(told[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_a_read_only_disk_without_a_file_hides_no_tag(path: Path) -> None:
    told: list[object] = []
    path.parent.mkdir()
    with read_only(path.parent):
        history = TagHistory(path, REGISTRY, report=told.append)
        assert history.since(APP, LATEST, FIRST) == history.since(APP, LATEST, FIRST)
        history.close()
    assert "the tag history" in str(told[0])


def test_who_asks_after_the_end_is_told_the_moment(path: Path) -> None:
    history = opened(path, 1)
    history.close()
    assert [history.since(APP, LATEST, FIRST) for _ in range(2)] == [1, 1]
    assert history.has_seen(APP)
    assert not history.has_seen(OTHER)


def test_a_repository_was_seen_once_a_tag_of_it_was(path: Path) -> None:
    with closing(opened(path)) as history:
        assert not history.has_seen(APP)
        history.since(APP, LATEST, FIRST)
        assert history.has_seen(APP)
    with closing(opened(path)) as again, closing(opened(path, 1, "http://other")) as other:
        assert (again.has_seen(APP), again.has_seen(OTHER), other.has_seen(APP)) == (
            True,
            False,
            False,
        )


def test_a_layout_that_changes_does_so_in_another_second(path: Path) -> None:
    ticks = iter([5 * SECOND_NS + 1, 5 * SECOND_NS + 2, 5 * SECOND_NS + 3, 9 * SECOND_NS])
    with closing(TagHistory(path, REGISTRY, lambda: next(ticks))) as history:
        seen = [history.layout_since(APP, index) for index in (b"1", b"1", b"2", b"3", b"4")]
    assert seen == [
        5 * SECOND_NS + 1,
        5 * SECOND_NS + 1,
        6 * SECOND_NS,
        7 * SECOND_NS,
        9 * SECOND_NS,
    ]
