"""Files that are written to the mount: their bytes, hashed as they come, and what is reserved."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.builders import random_bytes
from support.diskcache import (
    DATA,
    DIGEST,
    PAGE,
    being_written,
    content,
    failing,
    keep,
    not_yet_there,
    opened,
    write,
)

from epochfs.cache.blobs import BlobCache
from epochfs.cache.written_file import WrittenFile
from epochfs.errors import CacheFailure, NoRoom, TooLarge
from epochfs.oci.names import Digest

MIB = 1 << 20

directory = pytest.fixture(not_yet_there)
cache = pytest.fixture(opened)
file = pytest.fixture(being_written)


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
