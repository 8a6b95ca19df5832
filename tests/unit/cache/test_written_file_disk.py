"""Files that are written to the mount, and the disk: staged without a name, kept as blobs."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from support.builders import random_bytes
from support.diskcache import (
    DATA,
    DIGEST,
    PAGE,
    being_written,
    content,
    failing,
    held,
    keep,
    not_yet_there,
    opened,
    place,
    read_only,
    small_disk,
    write,
)

from epochfs.cache import written_file
from epochfs.cache.blobs import BlobCache
from epochfs.cache.written_file import WrittenFile
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure, NoRoom
from epochfs.oci.names import Digest

MIB = 1 << 20

directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)
file = pytest.fixture(being_written)
needs_mounts = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a file system")


def names(directory: Path) -> set[Path]:
    return {path.relative_to(directory) for path in directory.rglob("*") if not path.is_dir()}


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
