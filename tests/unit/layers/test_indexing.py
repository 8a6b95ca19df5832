"""The indexes of layers on disk: made once, shared by mounts, in memory where there is no room."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.diskcache import PAGE, failing, opened, read_only

from epochfs.cache.blobs import BlobCache
from epochfs.errors import CacheFailure, ContentMismatch
from epochfs.layers.entry import Entry
from epochfs.layers.index import FORMAT, LayerIndex
from epochfs.layers.index_writer import IndexWriter
from epochfs.layers.indexing import stored_index
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest

LAYER = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(b"a layer"), 7)
OTHER = Descriptor("application/vnd.oci.image.layer.v1.tar", Digest.of(b"another"), 7)


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return opened(tmp_path / "cache")


def write(writer: IndexWriter) -> None:
    writer.set_meta("compression", "none")
    for number in range(300):
        writer.add(Entry(b"file%04d" % number, 0o100644, 0, 0, 0, 0))


def names(index: LayerIndex) -> int:
    return len(index.children(b""))


def files(cache: BlobCache) -> list[str]:
    directory = cache.directory.path / "v1/layers/sha256"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


def refuse(_: IndexWriter) -> None:
    pytest.fail("made once more")


def test_an_index_is_made_once(cache: BlobCache) -> None:
    assert names(stored_index(cache, LAYER, write)) == 300
    assert names(stored_index(cache, LAYER, refuse)) == 300
    assert files(cache) == [f"{LAYER.digest.encoded}.tar.{FORMAT}"]


def test_of_two_mounts_that_make_an_index_the_first_keeps_it(cache: BlobCache) -> None:
    def overtaken(writer: IndexWriter) -> None:
        write(writer)
        stored_index(opened(cache.directory.path), LAYER, write)

    inode = cache.directory.path / "v1/layers/sha256" / f"{LAYER.digest.encoded}.tar.{FORMAT}"
    index = stored_index(cache, LAYER, overtaken)
    first = inode.stat().st_ino
    assert names(index) == 300
    assert names(stored_index(cache, LAYER, refuse)) == 300
    assert (inode.stat().st_ino, len(files(cache))) == (first, 1)


def test_many_mounts_that_make_the_same_indexes_at_once_all_have_them(tmp_path: Path) -> None:
    mounts = [opened(tmp_path / "cache") for _ in range(4)]
    layers = [Descriptor("", Digest.of(b"%d" % number), 7) for number in range(25)]
    together = threading.Barrier(len(mounts))

    def look(mount: BlobCache) -> list[int]:
        found = []
        for layer in layers:
            together.wait()
            found.append(names(stored_index(mount, layer, write)))
        return found

    with ThreadPoolExecutor(len(mounts)) as pool:
        assert list(pool.map(look, mounts)) == [[300] * 25] * 4


def test_an_index_that_is_being_written_is_not_removed_to_make_room(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache", limit=10 * PAGE)

    def with_another(writer: IndexWriter) -> None:
        write(writer)
        stored_index(cache, OTHER, write)

    assert names(stored_index(cache, LAYER, with_another)) == 300
    assert f"{LAYER.digest.encoded}.tar.{FORMAT}" in files(cache)


def test_what_a_killed_mount_was_writing_goes_first(tmp_path: Path) -> None:
    cache = opened(tmp_path / "cache", limit=10 * PAGE)
    with cache.directory.opened("layers", "sha256"):
        (cache.directory.path / "v1/layers/sha256/draft").write_bytes(bytes(5 * PAGE))
    stored_index(cache, LAYER, write)
    assert files(cache) == [f"{LAYER.digest.encoded}.tar.{FORMAT}"]


def test_a_file_that_goes_away_while_room_is_made_is_no_failure(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored_index(cache, OTHER, write)
    honest = os.scandir

    def scandir(path: int) -> Iterator[os.DirEntry[str]]:
        found = list(honest(path))
        for file in found:
            os.unlink(file.name, dir_fd=path)
        return _Closing(found)

    monkeypatch.setattr("epochfs.layers.indexing.os.scandir", scandir)
    assert names(stored_index(cache, LAYER, write)) == 300


class _Closing(list["os.DirEntry[str]"]):
    def __enter__(self) -> _Closing:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_what_cannot_be_made_sense_of_is_told_and_leaves_nothing(cache: BlobCache) -> None:
    def fail(_: IndexWriter) -> None:
        raise ContentMismatch("wrong")

    with pytest.raises(ContentMismatch):
        stored_index(cache, LAYER, fail)
    assert files(cache) == []


# --- no room ----------------------------------------------------------------------------------

takes_nothing = pytest.mark.expects_log("cannot keep everything")


@takes_nothing
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EMFILE])
def test_where_no_file_can_be_made_an_index_is_in_memory(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(number))
    index = stored_index(cache, LAYER, write)
    assert names(index) == 300
    assert index.resident_bytes > 10_000
    assert files(cache) == []


@takes_nothing
def test_an_index_for_which_the_disk_is_too_full_is_in_memory(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: IndexWriter) -> None:
        if writer_path(writer):
            raise CacheFailure("cannot write the index of a layer: database or disk is full")
        write(writer)

    assert names(stored_index(cache, LAYER, full)) == 300
    assert files(cache) == []


def writer_path(writer: IndexWriter) -> str:
    [(_, _, path)] = writer._connection.execute("PRAGMA database_list").fetchall()
    assert isinstance(path, str)
    return path


@takes_nothing
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_on_a_read_only_disk_what_is_there_is_read_and_the_rest_is_in_memory(
    cache: BlobCache,
) -> None:
    stored_index(cache, LAYER, write)
    with read_only(cache.directory.path):
        assert names(stored_index(cache, LAYER, refuse)) == 300
        assert names(stored_index(cache, OTHER, write)) == 300
