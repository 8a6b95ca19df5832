"""Files that are written to the mount: staged without a name, hashed as they come, then kept."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import random_bytes
from support.diskcache import (
    DATA,
    DIGEST,
    PAGE,
    content,
    failing,
    held,
    keep,
    not_yet_there,
    opened,
    place,
    read_only,
)

from epochfs.cache import written_file
from epochfs.cache.blobs import BlobCache
from epochfs.cache.written_file import WrittenFile
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure, NoRoom, TooLarge
from epochfs.oci.names import Digest

MIB = 1 << 20

directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)
needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


@pytest.fixture
def file(cache: BlobCache) -> Iterator[WrittenFile]:
    with closing(cache.new_file()) as file:
        yield file


@contextmanager
def small_disk(directory: Path, options: str) -> Iterator[None]:
    """Mount a disk of its own on a directory."""
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=700,{options}", "tmpfs", directory]
    subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


def write(file: WrittenFile, data: bytes, offset: int = 0) -> None:
    file.write(memoryview(data), offset)


def names(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir()}


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail whatever reads the file again."""
    monkeypatch.setattr(os, "preadv", failing(5))


class TestBytes:
    def test_what_was_written_is_read(self, file: WrittenFile) -> None:
        write(file, DATA)
        assert file.size == len(DATA)
        buffer = bytearray(len(DATA))
        assert file.read_into(memoryview(buffer), PAGE) == len(DATA) - PAGE
        assert buffer[: len(DATA) - PAGE] == DATA[PAGE:]
        assert file.read_into(memoryview(buffer), len(DATA)) == 0
        assert file.read_all(len(DATA)) == DATA

    def test_a_document_over_the_limit_is_not_read(self, file: WrittenFile) -> None:
        write(file, DATA)
        with pytest.raises(TooLarge):
            file.read_all(len(DATA) - 1)

    def test_readers_have_positions_of_their_own_and_begin_anew(self, file: WrittenFile) -> None:
        write(file, DATA)
        one, other = file.reader(), file.reader()
        assert one.read(PAGE) == DATA[:PAGE]
        assert other.read() == DATA
        assert one.read() == DATA[PAGE:]
        assert one.seek(0) == 0
        assert one.read() == DATA
        assert one.seek(0, os.SEEK_END) == len(DATA)
        assert one.seek(-PAGE, os.SEEK_CUR) == len(DATA) - PAGE
        one.close()
        assert file.read_all(len(DATA)) == DATA

    def test_a_closed_file_fails_its_readers(self, file: WrittenFile) -> None:
        write(file, DATA)
        reader = file.reader()
        file.close()
        file.close()
        with pytest.raises(CacheFailure, match="closed"):
            reader.read(1)
        with pytest.raises(CacheFailure, match="closed"):
            write(file, DATA)

    def test_a_hole_is_zeros_and_takes_no_room(self, file: WrittenFile) -> None:
        write(file, b"end", 1 << 40)
        assert file.size == (1 << 40) + 3
        reader = file.reader()
        reader.seek(-5, os.SEEK_END)
        assert reader.read() == b"\0\0end"

    def test_no_file_is_larger_than_the_disk_can_have(self, file: WrittenFile) -> None:
        with pytest.raises(TooLarge):
            file.truncate((1 << 63) - 1)


class TestDigest:
    def test_nothing_has_the_digest_of_nothing(self, file: WrittenFile) -> None:
        assert file.digest("sha256") == Digest.of(b"")

    def test_what_comes_in_order_is_not_read_again(
        self, file: WrittenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unread(monkeypatch)
        for start in range(0, len(DATA), PAGE):
            write(file, DATA[start : start + PAGE], start)
        assert file.digest("sha256") == DIGEST

    def test_what_is_written_anew_from_the_first_byte_is_hashed_as_it_comes(
        self, file: WrittenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, DATA[::-1])
        file.truncate(0)
        unread(monkeypatch)
        write(file, DATA)
        assert file.digest("sha256") == DIGEST

    def test_another_algorithm_is_hashed_when_it_is_asked_for_and_once(
        self, file: WrittenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, DATA)
        expected = Digest.of(DATA, "sha512")
        assert file.digest("sha512") == expected
        unread(monkeypatch)
        assert file.digest("sha512") == expected

    def test_a_hashed_byte_that_is_written_again_counts(self, file: WrittenFile) -> None:
        write(file, b"wrong")
        assert file.digest("sha256") == Digest.of(b"wrong")
        write(file, b"right")
        assert file.digest("sha256") == Digest.of(b"right")
        write(file, b"l", 0)
        assert file.digest("sha256") == Digest.of(b"light")

    def test_only_what_was_not_hashed_is_read(self, file: WrittenFile) -> None:
        write(file, DATA[:PAGE])
        write(file, DATA[2 * PAGE :], 2 * PAGE)
        write(file, DATA[PAGE : 2 * PAGE], PAGE)
        assert file.digest("sha256") == DIGEST

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.just("write"), st.integers(0, 40), st.binary(max_size=20)),
                st.tuples(st.just("cut"), st.integers(0, 60), st.just(b"")),
                st.tuples(st.just("hash"), st.sampled_from([256, 512]), st.just(b"")),
            ),
            max_size=25,
        )
    )
    def test_agrees_with_a_byte_array(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        steps: list[tuple[str, int, bytes]],
    ) -> None:
        model = bytearray()
        with closing(opened(tmp_path_factory.getbasetemp() / "shared").new_file()) as file:
            for what, number, data in steps:
                if what == "write":
                    write(file, data, number)
                    if data:
                        model.extend(bytes(max(0, number - len(model))))
                        model[number : number + len(data)] = data
                elif what == "cut":
                    file.truncate(number)
                    del model[number:]
                    model.extend(bytes(number - len(model)))
                else:
                    algorithm = f"sha{number}"
                    assert file.digest(algorithm) == Digest.of(bytes(model), algorithm)
            assert file.size == len(model)
            assert file.read_all(1 << 20) == model
            assert file.digest("sha256") == Digest.of(bytes(model))

    def test_threads_write_disjoint_ranges_at_once(self, file: WrittenFile) -> None:
        data = random_bytes(4 * MIB)
        pieces = range(0, len(data), 64 * 1024)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda at: write(file, data[at : at + 64 * 1024], at), pieces))
        assert file.digest("sha256") == Digest.of(data)
        assert file.read_all(len(data)) == data

    def test_bytes_that_two_threads_are_writing_are_read_again(
        self, file: WrittenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        began, go, pwrite = threading.Event(), threading.Event(), os.pwrite
        late, early = bytes(PAGE), b"early" * PAGE

        def slow(fd: int, data: memoryview, offset: int) -> int:
            if data == late:
                began.set()
                assert go.wait(20)
            return pwrite(fd, data, offset)

        monkeypatch.setattr(os, "pwrite", slow)
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write, file, late, PAGE)
            assert began.wait(20)
            write(file, DATA[:PAGE])
            write(file, early[:PAGE], PAGE)
            go.set()
            writing.result()
        assert file.digest("sha256") == Digest.of(DATA[:PAGE] + late)

    def test_threads_that_write_the_same_bytes_leave_the_digest_of_what_is_there(
        self, file: WrittenFile
    ) -> None:
        for _ in range(50):
            file.truncate(0)
            versions = [bytes([number]) * PAGE for number in range(4)]
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(lambda version: write(file, version), versions))
            assert file.digest("sha256") == Digest.of(file.read_all(PAGE))


class TestReserved:
    def test_is_whole_without_a_reservation(self, file: WrittenFile) -> None:
        assert file.is_whole
        write(file, b"x", 100)
        assert file.is_whole

    def test_is_whole_when_every_reserved_byte_was_written(self, file: WrittenFile) -> None:
        file.reserve(len(DATA))
        assert not file.is_whole
        assert file.size == 0
        write(file, DATA[PAGE:], PAGE)
        assert not file.is_whole
        write(file, DATA[:PAGE])
        assert file.is_whole
        assert file.digest("sha256") == DIGEST

    def test_zeros_that_only_the_size_implies_were_not_written(self, file: WrittenFile) -> None:
        file.reserve(len(DATA))
        file.truncate(len(DATA))
        assert not file.is_whole

    def test_cutting_the_file_gives_the_rest_up(self, file: WrittenFile) -> None:
        file.reserve(len(DATA))
        write(file, DATA[:PAGE])
        file.truncate(PAGE)
        assert file.is_whole

    def test_bytes_that_were_cut_off_are_to_be_written_again(self, file: WrittenFile) -> None:
        write(file, DATA)
        file.truncate(PAGE)
        file.reserve(len(DATA))
        assert not file.is_whole

    def test_more_than_the_disk_has_is_refused_and_allocates_nothing(
        self, file: WrittenFile, cache: BlobCache
    ) -> None:
        keep(cache)
        free = cache.room()[1]
        with pytest.raises(NoRoom):
            file.reserve(1 << 60)
        assert cache.room()[1] > free - 64 * MIB
        assert content(cache) == DATA


class TestKept:
    def test_becomes_a_blob_of_the_cache_and_is_counted(
        self, file: WrittenFile, cache: BlobCache, directory: Path
    ) -> None:
        before = cache.quota.held()
        write(file, DATA)
        file.keep(DIGEST)
        assert content(cache) == DATA
        assert cache.quota.held() == before + len(DATA)
        assert names(directory) == {place(directory, "blobs").relative_to(directory)}
        assert place(directory, "blobs").stat().st_mode & 0o777 == 0o600

    def test_is_on_disk_before_it_has_a_name_and_the_name_before_it_is_counted(
        self, file: WrittenFile, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []

        def noted(name: str, call: Callable[..., None]) -> Callable[..., None]:
            def noting(*given: object, **named: object) -> None:
                calls.append(name)
                call(*given, **named)

            return noting

        for name in ("fsync", "link"):
            monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
        monkeypatch.setattr(cache.quota, "account", lambda _: calls.append("account"))
        write(file, DATA)
        file.keep(DIGEST)
        assert calls == ["fsync", "link", "fsync", "account"]

    def test_can_have_a_sha512(self, file: WrittenFile, cache: BlobCache) -> None:
        write(file, DATA)
        file.keep(Digest.of(DATA, "sha512"))
        assert cache.is_complete(Digest.of(DATA, "sha512"), len(DATA))

    def test_bytes_of_another_digest_are_not_kept(
        self, file: WrittenFile, cache: BlobCache
    ) -> None:
        write(file, DATA[1:])
        file.keep(DIGEST)
        assert held(cache) == set()

    def test_more_than_the_limit_is_written_and_not_kept(self, tmp_path: Path) -> None:
        cache = opened(tmp_path / "small", PAGE)
        with closing(cache.new_file()) as file:
            write(file, DATA)
            file.keep(DIGEST)
            assert file.read_all(len(DATA)) == DATA
        assert held(cache) == set()

    def test_older_blobs_make_room_for_it(self, tmp_path: Path) -> None:
        cache = opened(tmp_path / "small", 4 * PAGE)
        keep(cache, random_bytes(2 * PAGE))
        with closing(cache.new_file()) as file:
            write(file, DATA)
            file.keep(DIGEST)
        assert held(cache) == {DIGEST}

    def test_is_not_evicted_until_it_is_closed(self, file: WrittenFile, cache: BlobCache) -> None:
        write(file, DATA)
        file.keep(DIGEST)
        assert not cache.quota.evict_some()
        file.close()
        assert [cache.quota.evict(entry) for entry in cache.quota.entries()] == [True]

    def test_what_is_written_later_does_not_change_the_blob(
        self, file: WrittenFile, cache: BlobCache
    ) -> None:
        write(file, DATA)
        file.keep(DIGEST)
        reader = file.reader()
        write(file, b"other", 1)
        expected = DATA[:1] + b"other" + DATA[6:]
        assert content(cache) == DATA
        assert file.read_all(len(DATA)) == expected
        assert file.digest("sha256") == Digest.of(expected)
        assert reader.read() == expected
        file.keep(Digest.of(expected))
        file.truncate(0)
        assert content(cache) == DATA
        assert content(cache, expected) == expected

    def test_is_there_already(self, file: WrittenFile, cache: BlobCache) -> None:
        keep(cache)
        write(file, DATA)
        file.keep(DIGEST)
        assert content(cache) == DATA
        assert cache.quota.held() == len(DATA)

    @pytest.mark.parametrize("is_link", [True, False])
    def test_something_else_in_its_place_is_replaced_and_not_written_through(
        self, file: WrittenFile, cache: BlobCache, directory: Path, tmp_path: Path, is_link: bool
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_bytes(b"secret")
        named = place(directory, "blobs")
        named.parent.mkdir(parents=True)
        named.symlink_to(victim) if is_link else named.write_bytes(b"short")
        write(file, DATA)
        file.keep(DIGEST)
        assert content(cache) == DATA
        assert victim.read_bytes() == b"secret"

    def test_a_failure_is_no_error(
        self, file: WrittenFile, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, DATA)
        with monkeypatch.context() as patch:
            patch.setattr(os, "link", failing(28))
            file.keep(DIGEST)
        assert held(cache) == set()
        file.keep(DIGEST)
        assert content(cache) == DATA
        file.close()
        file.keep(DIGEST)

    def test_a_disk_without_files_that_have_no_name_keeps_nothing_and_loses_nothing(
        self, cache: BlobCache, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(written_file.os, "O_TMPFILE", os.O_DIRECTORY | os.O_CREAT)
        with closing(cache.new_file()) as file:
            write(file, DATA)
            file.keep(DIGEST)
            assert file.read_all(len(DATA)) == DATA
        assert names(directory) == set()


class TestDisk:
    def test_has_no_name_and_is_ours_alone_whatever_the_umask(
        self, cache: BlobCache, directory: Path
    ) -> None:
        before = os.umask(0)
        try:
            with closing(cache.new_file()) as file:
                write(file, DATA)
                assert names(directory) == set()
                status = os.fstat(file._fd)
        finally:
            os.umask(before)
        assert status.st_mode & 0o777 == 0o600

    def test_a_link_in_the_place_of_its_directory_is_not_followed(
        self, cache: BlobCache, directory: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (directory / "v1" / "partial").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(CacheFailure):
            cache.new_file()

    def test_a_process_that_is_killed_leaves_nothing(self, directory: Path) -> None:
        code = (
            "import os, sys, signal\n"
            "from pathlib import Path\n"
            "from epochfs.cache.blobs import BlobCache\n"
            "from epochfs.config import CacheOptions\n"
            "file = BlobCache(CacheOptions(Path(sys.argv[1]))).new_file()\n"
            "file.write(memoryview(bytes(1 << 20)), 0)\n"
            "os.kill(os.getpid(), signal.SIGKILL)\n"
        )
        ended = subprocess.run([sys.executable, "-c", code, directory], check=False)
        assert ended.returncode == -signal.SIGKILL
        assert names(directory) == set()

    def test_without_a_cache_there_is_a_clear_error(self, tmp_path: Path) -> None:
        cache = BlobCache(CacheOptions(tmp_path / "none", off=True))
        with pytest.raises(CacheFailure, match="cache is off"):
            cache.new_file()
        with pytest.raises(CacheFailure, match="cache is off"):
            cache.room()
        assert not (tmp_path / "none").exists()

    def test_a_directory_that_is_gone_is_made_again(
        self, cache: BlobCache, directory: Path
    ) -> None:
        for path in sorted(directory.rglob("*"), reverse=True):
            path.rmdir()
        directory.rmdir()
        with closing(cache.new_file()) as file:
            write(file, DATA)
            file.keep(DIGEST)
        assert content(cache) == DATA

    @needs_mounts
    def test_a_read_only_disk_is_a_clear_error(self, cache: BlobCache, directory: Path) -> None:
        with read_only(directory), pytest.raises(CacheFailure, match="Read-only file system"):
            cache.new_file()

    @needs_mounts
    def test_cached_blobs_go_before_there_is_no_room(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "size=8m"):
            cache = opened(tmp_path / "disk")
            keep(cache, random_bytes(4 * MIB))
            with closing(cache.new_file()) as file:
                data = random_bytes(7 * MIB)
                write(file, data)
                assert held(cache) == set()
                assert file.digest("sha256") == Digest.of(data)
                with pytest.raises(NoRoom):
                    write(file, data, len(data))
                with pytest.raises(NoRoom):
                    file.reserve(20 * MIB)
                # What did fit of the failed write is part of the file, as after any short write.
                assert file.digest("sha256") == Digest.of(file.read_all(8 * MIB))
                file.truncate(0)
                write(file, DATA)
                file.keep(DIGEST)
            assert content(cache) == DATA

    @needs_mounts
    def test_without_an_inode_cached_blobs_go_before_there_is_no_room(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "size=8m,nr_inodes=8"):
            cache = opened(tmp_path / "disk")
            keep(cache)
            files = []
            with pytest.raises(NoRoom):
                while True:
                    files.append(cache.new_file())
            assert len(files) >= 2
            assert held(cache) == set()
            for file in files:
                file.close()
            cache.new_file().close()

    @needs_mounts
    def test_the_room_is_the_disks(self, tmp_path: Path) -> None:
        with small_disk(tmp_path / "disk", "size=8m"):
            cache = opened(tmp_path / "disk")
            assert cache.room() == (8 * MIB, 8 * MIB)
            with closing(cache.new_file()) as file:
                write(file, bytes(MIB))
                assert cache.room() == (8 * MIB, 7 * MIB)


class TestDescriptors:
    @pytest.fixture
    def few(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> BlobCache:
        """A cache that takes it that this process may have few files open. It may have more: other
        tests have left it with as many."""
        monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
        return opened(directory)

    def test_a_writer_begins_however_many_readers_there_are(self, few: BlobCache) -> None:
        keep(few)
        readers = [few.open_blob(DIGEST, len(DATA)) for _ in range(30)]
        with closing(few.new_file()) as file:
            write(file, DATA)
        for reader in readers:
            assert reader is not None
            reader.close()

    def test_writers_have_an_eighth_and_give_it_back(self, few: BlobCache) -> None:
        for _ in range(3):
            files = [few.new_file() for _ in range(8)]
            with pytest.raises(CacheFailure, match="ulimit -n"):
                few.new_file()
            for file in files:
                file.close()

    def test_a_file_that_cannot_be_made_costs_none(
        self, few: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(written_file, "_unnamed", failing(5))
            for _ in range(20):
                with pytest.raises(CacheFailure, match="Input/output"):
                    few.new_file()
        few.new_file().close()

    def test_a_read_under_way_ends_before_the_descriptor_is_closed(
        self, file: WrittenFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(file, DATA)
        begun, go_on = threading.Event(), threading.Event()
        preadv = os.preadv

        def slow(fd: int, buffers: list[memoryview], offset: int) -> int:
            begun.set()
            assert go_on.wait(20)
            return preadv(fd, buffers, offset)

        monkeypatch.setattr(os, "preadv", slow)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(file.read_all, len(DATA))
            assert begun.wait(20)
            file.close()
            go_on.set()
            assert hashlib.sha256(reading.result()).hexdigest() == DIGEST.encoded
