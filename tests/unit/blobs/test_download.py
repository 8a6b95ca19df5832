"""One download under what hosts and threads may do to it, over streams that are made up."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from support.builders import random_bytes
from support.scripted import until

from epochfs.blobs.download import Download, DownloadContext
from epochfs.blobs.fetch_plan import MIB, Budget
from epochfs.blobs.origin import Origin
from epochfs.blobs.staged_file import Verifier
from epochfs.cache.blobs import BlobCache, read_exactly
from epochfs.cache.staged_blob import RangeSet
from epochfs.config import BlobOptions, CacheOptions
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    Unavailable,
)
from epochfs.oci.names import Digest

BLOB = random_bytes(24 * MIB, 60)
DIGEST = Digest.of(BLOB)


def flipped(place: int) -> bytes:
    wrong = bytearray(BLOB)
    wrong[place] ^= 1
    return bytes(wrong)


class Stream:
    """What a host sends: a range of a blob, or all of it whatever was asked."""

    def __init__(self, blob: bytes, start: int, end: int | None, *, ranged: bool = True) -> None:
        self.ranged = ranged
        self.start = start if ranged else 0
        self.total: int | None = len(blob)
        stop = end if ranged and end is not None else len(blob)
        self._rest = memoryview(blob)[self.start : stop]
        self._closed = False

    def read_into(self, buffer: memoryview) -> int:
        if self._closed:
            raise Unavailable("closed")
        piece = self._rest[: min(len(buffer), 512 << 10)]
        buffer[: len(piece)] = piece
        self._rest = self._rest[len(piece) :]
        return len(piece)

    def close(self) -> None:
        self._closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


Source = Callable[[int, int | None], Stream]


@pytest.fixture
def cache(tmp_path: Path) -> BlobCache:
    return BlobCache(CacheOptions(tmp_path / "cache"))


def download(cache: BlobCache, source: Source, budget: Budget | None = None) -> Download:
    origin = Origin(
        DIGEST,
        len(BLOB),
        source,  # type: ignore[arg-type]
        distrust=lambda: False,
        spoiled=lambda: None,
        ranged=None,
    )
    context = DownloadContext(cache, BlobOptions(timeout=5), budget or Budget(8))
    return Download(origin, context, lambda: None)


def read(
    one: Download,
    start: int = 0,
    count: int = len(BLOB),
    *,
    run: int = len(BLOB),
    timeout: float = 10,
) -> bytes:
    """Read as one does who has read `run` bytes in sequence, so that as many are fetched ahead."""
    buffer = bytearray(count)
    one.read_into(memoryview(buffer), start, run=run, timeout=timeout)
    return bytes(buffer)


def kept(cache: BlobCache) -> bytes | None:
    fd = cache.open(DIGEST, len(BLOB))
    if fd is None:
        return None
    content = bytearray(len(BLOB))
    read_exactly(fd, memoryview(content), 0)
    os.close(fd)
    return bytes(content)


class TestTheLastToBeGivenWaits:
    """Each byte is asked for once: the kernel gives what it has to all readers."""

    @pytest.mark.expects_log("fetching again")
    @pytest.mark.parametrize("readers", [1, 4])
    @pytest.mark.parametrize("run", [0, MIB, len(BLOB)])
    @pytest.mark.parametrize("seed", range(6))
    def test_no_order_of_reads_gets_all_of_wrong_bytes(
        self, cache: BlobCache, seed: int, run: int, readers: int
    ) -> None:
        one = download(cache, lambda start, end: Stream(flipped(5 * MIB), start, end))
        assert ContentMismatch in self.outcomes(one, seed, run, readers)
        assert kept(cache) is None

    @pytest.mark.parametrize("run", [0, MIB, len(BLOB)])
    @pytest.mark.parametrize("seed", range(6))
    def test_each_order_of_reads_gets_all_of_right_bytes(
        self, cache: BlobCache, seed: int, run: int
    ) -> None:
        one = download(cache, lambda start, end: Stream(BLOB, start, end))
        assert self.outcomes(one, seed, run, 4) == {None}
        assert one.verified
        until(lambda: kept(cache) == BLOB)

    @pytest.mark.parametrize("tail", [4096, MIB, 3 * MIB, len(BLOB) - 4096])
    def test_a_whole_read_whose_end_another_reader_was_given_is_not_clean(
        self, cache: BlobCache, tail: int
    ) -> None:
        one = download(cache, lambda start, end: Stream(flipped(MIB), start, end))
        with pytest.raises(ContentMismatch):
            for place in range(len(BLOB) - tail, len(BLOB), 4096):
                read(one, place, 4096, run=0)
            for place in range(0, len(BLOB) - tail, 4096):
                read(one, place, 4096)

    def outcomes(
        self, one: Download, seed: int, run: int, readers: int
    ) -> set[type[EpochfsError] | None]:
        places = [*range(0, len(BLOB), MIB)]
        random.Random(seed).shuffle(places)

        def outcome(place: int) -> type[EpochfsError] | None:
            try:
                read(one, place, MIB, run=run)
            except EpochfsError as error:
                return type(error)
            return None

        with ThreadPoolExecutor(readers) as pool:
            return {*pool.map(outcome, places)}


class TestTheFileIsWhatIsHashed:
    """Not what arrived: the file may have had other bytes there before."""

    @pytest.mark.expects_log("fetching again")
    def test_a_partial_blob_that_is_damaged_is_not_kept_for_a_stream_that_is_right(
        self, cache: BlobCache
    ) -> None:
        staged = cache.stage(DIGEST, len(BLOB))
        staged.write(0, memoryview(flipped(1000))[: 2 * MIB])
        staged.checkpoint(RangeSet([(0, 2 * MIB)]))
        staged.close()
        one = download(cache, lambda start, end: Stream(BLOB, start, end, ranged=False))
        assert read(one) == BLOB
        until(lambda: kept(cache) == BLOB)

    def test_a_range_that_came_wrong_is_not_kept_for_a_stream_that_is_right(
        self, cache: BlobCache
    ) -> None:
        asked: list[int] = []

        def source(start: int, end: int | None) -> Stream:
            asked.append(start)
            first = len(asked) == 1
            return Stream(flipped(5 * MIB) if first else BLOB, start, end, ranged=first)

        one = download(cache, source)
        read(one, 5 * MIB, 4096, run=0)
        with pytest.raises(ContentMismatch):
            read(one)
        assert kept(cache) is None

    @pytest.mark.expects_log("fetching again")
    def test_bytes_written_over_those_that_were_hashed_are_hashed(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A mirror's range and the registry's whole blob at once; the range is written last."""
        place = 5 * MIB
        wrong = flipped(place)
        about_to_write, others_written = threading.Event(), threading.Event()

        def source(start: int, end: int | None) -> Stream:
            if start <= place and not about_to_write.is_set():
                return Stream(wrong, start, end)
            about_to_write.wait(5)
            return Stream(BLOB, start, end, ranged=False)

        one = download(cache, source)
        monkeypatch.setattr(one.state.plan.window, "arrived", lambda _: None)
        one.state.plan.window.size = 2
        write = one._staged.write

        def late(offset: int, view: memoryview) -> None:
            if offset <= place < offset + len(view) and view[place - offset] == wrong[place]:
                about_to_write.set()
                others_written.wait(5)
            write(offset, view)
            if offset >= 16 * MIB:
                others_written.set()

        monkeypatch.setattr(one._staged, "write", late)
        try:
            assert read(one) == BLOB
        except ContentMismatch:
            assert kept(cache) is None
        else:
            until(lambda: kept(cache) == BLOB)
        assert others_written.is_set()
        assert about_to_write.is_set()


class TestNobodyWaitsInVain:
    def test_two_workers_that_fail_at_once_tell_the_reader(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        away, switched = threading.Event(), threading.local()

        class Ending(Stream):
            def read_into(self, buffer: memoryview) -> int:
                if away.wait(0.01):
                    raise Unavailable("the registry is away")
                return super().read_into(buffer[: 64 << 10])

        class Lock:
            """One whose thread is switched out after it has let go of it, as any may be."""

            def __init__(self) -> None:
                self._lock = threading.Lock()

            def __enter__(self) -> None:
                self._lock.acquire()

            def __exit__(self, *_: object) -> None:
                self._lock.release()
                if getattr(switched, "out", False):
                    switched.out = False
                    time.sleep(0.05)

        def source(start: int, end: int | None) -> Stream:
            if away.is_set():
                raise Unavailable("the registry is away")
            return Ending(BLOB, start, end)

        one = download(cache, source)
        window = one.state.plan.window
        refused = window.refused

        def and_out() -> None:
            refused()
            switched.out = True

        monkeypatch.setattr(one.state, "_lock", Lock())
        monkeypatch.setattr(window, "arrived", lambda _: None)
        monkeypatch.setattr(window, "refused", and_out)
        window.size = 2
        read(one, 0, 4096)
        until(lambda: one.state.progress[0] > 2 * MIB)
        threading.Timer(0.3, away.set).start()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            read(one, 18 * MIB, 4096)
        assert time.monotonic() - began < 8

    def test_a_disk_that_fails_at_the_end_is_an_error_at_once_and_for_good(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = download(cache, lambda start, end: Stream(BLOB, start, end))

        def fail(*_: object) -> bool:
            raise CacheFailure("reading a blob: Input/output error")

        monkeypatch.setattr(Verifier, "finish", fail)
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(CacheFailure):
                read(one)
            assert time.monotonic() - began < 5

    def test_without_a_thread_to_be_had_it_is_an_error_and_the_next_read_goes_on(
        self, cache: BlobCache, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = download(cache, lambda start, end: Stream(BLOB, start, end))

        def no_more(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", no_more)
            with pytest.raises(Unavailable, match="no thread"):
                read(one)
        assert read(one) == BLOB
        one.close()
        assert one.wait_until_idle(5)

    def test_a_reader_far_from_a_long_request_is_given_one_of_his_own(
        self, cache: BlobCache
    ) -> None:
        class Slow(Stream):
            def read_into(self, buffer: memoryview) -> int:
                time.sleep(0.1)
                return super().read_into(buffer)

        budget = Budget(1)
        budget.take()  # by another download
        one = download(cache, lambda start, end: Slow(BLOB, start, end), budget)
        read(one, 0, 4096)
        until(lambda: one.state.progress[0] > 2 * MIB)
        assert read(one, 22 * MIB, 4096, timeout=2) == BLOB[22 * MIB :][:4096]


def test_once_it_has_failed_for_good_nothing_is_read_from_it(
    cache: BlobCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_on = threading.Event()

    class Held(Stream):
        def read_into(self, buffer: memoryview) -> int:
            if self.start > 0:
                goes_on.wait(10)
            return super().read_into(buffer)

    asked: list[int] = []

    def source(start: int, end: int | None) -> Stream:
        asked.append(start)
        stream = Held(BLOB, start, end)
        if len(asked) == 3:
            stream.total = 5
        return stream

    one = download(cache, source)
    monkeypatch.setattr(one.state.plan.window, "arrived", lambda _: None)
    one.state.plan.window.size = 2
    read(one, 0, 4096)
    until(lambda: isinstance(one.state.failure, ContentMismatch))
    goes_on.set()
    time.sleep(0.3)
    with pytest.raises(ContentMismatch):
        read(one, MIB, 4096)
    with pytest.raises((ContentMismatch, DeadlineExceeded)):
        read(one)
