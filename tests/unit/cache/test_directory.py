"""The cache's directory as a boundary: whose it is, who may enter, and where links may lead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.diskcache import DATA, DIGEST, content, keep, not_yet_there, opened, place, staged

from epochfs.cache.directory import CacheDirectory
from epochfs.cache.staged_blob import RangeSet
from epochfs.cache.tag_history import TagHistory
from epochfs.errors import CacheFailure
from epochfs.oci.names import Repository, Tag

SECRET = b"not for the cache to touch"
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


directory = pytest.fixture(not_yet_there)


@pytest.fixture(params=[0o000, 0o022, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o7777


def use(directory: Path) -> None:
    """Do everything that leaves a file in the cache."""
    cache = opened(directory)
    keep(cache)
    with staged(cache, DATA[1:]) as blob:
        blob.checkpoint(RangeSet([(0, 4096)]))
    with closing(TagHistory(cache.directory.private_file("tags.sqlite"), "registry")) as history:
        history.since(Repository("team/app"), Tag("latest"), DIGEST)
        modes = {path: mode(path) for path in [directory, *directory.rglob("*")]}
    assert len([path for path in modes if path.is_file()]) >= 4
    for path, found in modes.items():
        assert found == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.usefixtures("umask")
def test_directories_are_0700_and_files_0600_whatever_the_umask(directory: Path) -> None:
    use(directory)


def test_what_is_wider_inside_the_cache_is_mended(directory: Path) -> None:
    use(directory)
    for path in directory.rglob("*"):
        path.chmod(0o777 if path.is_dir() else 0o644)
    cache = opened(directory)
    assert content(cache) == DATA
    keep(cache, b"another")
    cache.directory.private_file("tags.sqlite")
    assert {mode(path) for path in (directory / "v1").rglob("*.sqlite")} == {0o600}
    for used in ("v1", "v1/blobs", "v1/blobs/sha256", "v1/partial/sha256"):
        assert mode(directory / used) == 0o700


def test_a_directory_that_others_may_read_is_taken_as_it_is(directory: Path) -> None:
    directory.mkdir(0o755)
    keep(opened(directory))
    assert mode(directory) == 0o755
    assert mode(directory / "v1") == 0o700


@pytest.mark.parametrize("wide", [0o770, 0o777, 0o1777, 0o722], ids=oct)
def test_a_directory_that_others_may_write_to_is_refused_and_left_as_it_is(
    directory: Path, wide: int
) -> None:
    directory.mkdir()
    directory.chmod(wide)
    with pytest.raises(CacheFailure, match="others can write to it: chmod go-w it"):
        opened(directory)
    assert mode(directory) == wide
    assert list(directory.iterdir()) == []


def test_a_directory_that_is_opened_to_others_later_is_used_no_more(directory: Path) -> None:
    cache = opened(directory)
    keep(cache)
    directory.chmod(0o777)
    assert content(cache) is None
    with pytest.raises(CacheFailure, match="others can write to it"):
        keep(cache, b"another")


@only_root
@pytest.mark.parametrize("part", ["", "v1", "v1/blobs", "v1/blobs/sha256"])
def test_a_directory_of_another_user_is_refused(directory: Path, part: str) -> None:
    keep(opened(directory))
    os.chown(directory / part, 65534, 65534)
    with pytest.raises(CacheFailure, match="belongs to user 65534"):
        keep(opened(directory), b"another")


def test_a_blob_that_others_could_have_written_to_is_fetched_again(directory: Path) -> None:
    cache = opened(directory)
    keep(cache)
    place(directory, "blobs").chmod(0o666)
    assert content(cache) is None
    keep(cache)
    assert content(cache) == DATA
    assert mode(place(directory, "blobs")) == 0o600


def test_the_directory_itself_may_be_a_link_of_the_users(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "large disk").mkdir()
    directory.symlink_to(tmp_path / "large disk")
    keep(opened(directory))
    assert content(opened(directory)) == DATA


@pytest.mark.parametrize("part", ["v1", "v1/blobs", "v1/blobs/sha256"])
def test_a_link_planted_for_a_directory_inside_is_not_followed(
    directory: Path, tmp_path: Path, part: str
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (directory / part).parent.mkdir(parents=True)
    (directory / part).symlink_to(elsewhere)
    with pytest.raises(CacheFailure):
        keep(opened(directory))
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_a_link_planted_for_a_database_is_not_followed(
    directory: Path, tmp_path: Path, suffix: str
) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(SECRET)
    cache = CacheDirectory(directory)
    file = cache.private_file("tags.sqlite")
    Path(f"{file}{suffix}").unlink(missing_ok=True)
    Path(f"{file}{suffix}").symlink_to(victim)
    with pytest.raises(CacheFailure, match=f"tags.sqlite{suffix} is no regular file of ours"):
        cache.private_file("tags.sqlite")
    assert victim.read_bytes() == SECRET


def test_a_dangling_link_planted_for_a_database_makes_no_file(
    directory: Path, tmp_path: Path
) -> None:
    cache = CacheDirectory(directory)
    cache.private_file("other.sqlite")
    (directory / "v1" / "tags.sqlite").symlink_to(tmp_path / "made")
    with pytest.raises(CacheFailure):
        cache.private_file("tags.sqlite")
    assert not (tmp_path / "made").exists()


def test_another_versions_directory_and_files_are_left_alone(directory: Path) -> None:
    theirs = directory / "v2" / "blobs" / "sha256" / DIGEST.encoded
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(DATA)
    (directory / "version").write_text("2\n")
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    cache = opened(directory, limit=1)
    assert content(cache) is None
    keep(cache, b"")
    cache.quota.make_room(1 << 20)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_one_at_a_time_is_alone_in_the_cache(directory: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with CacheDirectory(directory).alone():
            entered.set()

    with CacheDirectory(directory).alone():
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(0.2)
    assert entered.wait(5)
    other.join()
