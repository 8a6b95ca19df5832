"""zstd frames decompressed for many readers: once, on disk, as they come, within a time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from support.builders import random_bytes
from support.scripted import until
from support.snapshots import packed

from epochfs.cache.blobs import BlobCache
from epochfs.config import CacheOptions
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    Unavailable,
    Vanished,
)
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.composed import Composer, Frames, Readable

APP = Repository("app")
MIB = 1 << 20
STRIDE = 3 * MIB


class Chunks:
    """Blobs in memory. A read at or behind `gate` waits until it is opened, or raises `error`."""

    def __init__(self, *blobs: bytes) -> None:
        self.blobs = {Digest.of(blob): blob for blob in blobs}
        self.opened: list[Digest] = []
        self.now = 0
        self.gate: int | None = None
        self.passing = threading.Event()
        self.error: EpochfsError | None = None

    def open(self, repository: Repository, digest: Digest, size: int) -> Chunk:
        self.opened.append(digest)
        self.now += 1
        return Chunk(self, self.blobs[digest])

    def was_spoiled(self, digest: Digest) -> bool:
        return False


class Chunk:
    def __init__(self, chunks: Chunks, data: bytes) -> None:
        self._chunks = chunks
        self._data = data
        self.size = len(data)
        self.verified = False

    def read_into(self, view: memoryview, offset: int) -> int:
        if self._chunks.gate is not None and offset >= self._chunks.gate:
            if self._chunks.error is not None:
                raise self._chunks.error
            assert self._chunks.passing.wait(20)
        piece = self._data[offset : offset + len(view)]
        view[: len(piece)] = piece
        self.verified = offset + len(piece) == len(self._data)
        return len(piece)

    def close(self) -> None:
        self._chunks.now -= 1


class Disk:
    """A file of frames over `Chunks`, and what opens it."""

    def __init__(self, directory: Path, data: bytes, size_limit: int, timeout: float) -> None:
        self.data = data
        cut = [data[at : at + STRIDE] for at in range(0, len(data), STRIDE)]
        frames = [packed(one) for one in cut]
        self.chunks = Chunks(*frames)
        self.made: Frames = Frames(
            len(data), tuple(Descriptor("", Digest.of(one), len(one)) for one in frames)
        )
        self.cache = BlobCache(CacheOptions(directory, size_limit))
        self.composer = Composer(self.chunks, self.cache, timeout)

    @contextmanager
    def opened(self) -> Iterator[Readable]:
        handle = self.composer.open(APP, self.made)
        try:
            yield handle
        finally:
            handle.close()

    def read(self, handle: Readable, offset: int, count: int) -> bytes:
        buffer = bytearray(count)
        got = handle.read_into(memoryview(buffer), offset)
        assert got == max(0, min(count, len(self.data) - offset))
        assert buffer[:got] == self.data[offset : offset + got]
        return bytes(buffer[:got])


Make = Callable[..., Disk]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Make]:
    made: list[Disk] = []

    def make(length: int = 8 * MIB, size_limit: int = 1 << 30, timeout: float = 20.0) -> Disk:
        made.append(Disk(tmp_path, random_bytes(length, length), size_limit, timeout))
        return made[-1]

    yield make
    for one in made:
        one.chunks.passing.set()
        one.composer.close()


@pytest.fixture
def as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have frames of any length shown as far as they have come."""
    monkeypatch.setattr("epochfs.vfs.composed._WHOLE_BYTES", 0)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_frame_is_decompressed_once_however_many_readers_it_has(disk: Make) -> None:
    one = disk()
    with ThreadPoolExecutor(16) as pool:

        def read_all(number: int) -> None:
            with one.opened() as handle:
                for offset in range(0, len(one.data), MIB):
                    one.read(handle, offset, MIB)

        one.chunks.gate = 0
        reads = [pool.submit(read_all, number) for number in range(16)]
        until(lambda: len(one.chunks.opened) == 1)
        one.chunks.passing.set()
        for read in reads:
            read.result()
    assert len(one.chunks.opened) == 3
    assert one.chunks.now == 0


def test_what_was_decompressed_serves_the_next_who_opens_the_file(disk: Make) -> None:
    one = disk()
    for _ in range(3):
        with one.opened() as handle:
            one.read(handle, 0, len(one.data))
    assert len(one.chunks.opened) == 3


def test_little_is_kept_of_what_nobody_reads(disk: Make) -> None:
    before = descriptors()
    one = disk(size_limit=70 * MIB)  # a tenth of which are two chunks
    with one.opened() as handle:
        one.read(handle, 0, len(one.data))
    assert descriptors() - before <= 2
    many = disk(STRIDE * 30, size_limit=1 << 40)
    before = descriptors()
    with many.opened() as handle:
        for offset in range(0, len(many.data), STRIDE):
            many.read(handle, offset, 10)
        assert descriptors() - before <= 18
    assert descriptors() - before <= 16


def test_nothing_of_it_has_a_name(disk: Make) -> None:
    one = disk()
    with one.opened() as handle:
        one.read(handle, 0, len(one.data))
        assert [file for file in one.cache.directory.path.rglob("*") if file.is_file()] == []


def test_zeros_take_no_room(disk: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Disk(tmp_path, bytes(40 * MIB), 1 << 30, 20.0)
    scratch, made = one.cache.scratch, []

    def noted(size: int) -> int:
        made.append(scratch(size))
        return made[-1]

    monkeypatch.setattr(one.cache, "scratch", noted)
    with one.opened() as handle:
        one.read(handle, 0, len(one.data))
        assert os.fstat(made[0]).st_size >= STRIDE
        assert os.fstat(made[0]).st_blocks == 0
    one.composer.close()


@pytest.mark.usefixtures("as_it_comes")
def test_a_long_frame_is_shown_as_it_comes_but_for_its_end(disk: Make) -> None:
    one = disk(timeout=0.5)
    one.chunks.gate = 2 * MIB
    with one.opened() as handle:
        one.read(handle, 0, MIB // 2)
        with pytest.raises(DeadlineExceeded):
            one.read(handle, STRIDE - 10, 10)
        one.chunks.passing.set()
        until(lambda: one.chunks.now == 0)
        time.sleep(0.6)
        one.read(handle, STRIDE - 10, 20)


def test_a_short_frame_is_shown_when_it_is_whole(disk: Make) -> None:
    one = disk(timeout=0.5)
    one.chunks.gate = 2 * MIB
    with one.opened() as handle, pytest.raises(DeadlineExceeded):
        one.read(handle, 0, 10)


def test_the_kernels_repetition_of_a_read_that_took_too_long_ends_at_once(disk: Make) -> None:
    one = disk(timeout=1.0)
    one.chunks.gate = 0
    with one.opened() as handle:
        for most in (5, 0.9, 5):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                one.read(handle, 0, 10)
            assert time.monotonic() - began < most


@pytest.mark.parametrize("error", [Unavailable("down"), DeadlineExceeded("slow")])
def test_after_a_failure_that_passes_the_same_handle_reads_on(
    disk: Make, error: EpochfsError
) -> None:
    one = disk()
    one.chunks.gate, one.chunks.error = MIB, error
    with one.opened() as handle:
        with pytest.raises(type(error)):
            one.read(handle, 0, 10)
        one.chunks.gate = None
        time.sleep(0.6)
        one.read(handle, 0, len(one.data))


@pytest.mark.usefixtures("as_it_comes")
def test_after_wrong_bytes_a_handle_comes_to_no_end_and_another_begins_anew(disk: Make) -> None:
    one = disk()
    one.chunks.gate, one.chunks.error = 2 * MIB, ContentMismatch("wrong")
    with one.opened() as handle:
        one.read(handle, 0, MIB // 2)
        until(lambda: one.chunks.now == 0)
        one.chunks.gate = None
        with pytest.raises(ContentMismatch):
            one.read(handle, STRIDE - 10, 10)
        with one.opened() as other:
            one.read(other, 0, STRIDE)
        with pytest.raises(ContentMismatch):
            one.read(handle, STRIDE - 10, 10)


@pytest.mark.usefixtures("as_it_comes")
def test_when_nobody_reads_it_any_more_a_frame_is_given_up(disk: Make) -> None:
    one, before = disk(STRIDE), descriptors()
    one.chunks.gate = 2 * MIB
    with one.opened() as handle:
        one.read(handle, 0, 10)
    one.chunks.passing.set()
    until(lambda: one.chunks.now == 0)
    until(lambda: descriptors() <= before)


def test_closing_ends_every_wait(disk: Make) -> None:
    one = disk()
    one.chunks.gate = 0
    with one.opened() as handle, ThreadPoolExecutor(8) as pool:
        reads = [pool.submit(one.read, handle, n * STRIDE, 10) for n in range(2)]
        until(lambda: one.chunks.now >= 1)
        one.composer.close()
        for read in reads:
            with pytest.raises(Vanished):
                read.result(5)
        with pytest.raises(Vanished):
            one.read(handle, 2 * STRIDE, 10)
        one.chunks.passing.set()


# ---- where the cache's disk takes nothing --------------------------------------------------------


def full(*_: object) -> int:
    raise CacheFailure("no space left on device")


NO_ROOM = pytest.mark.expects_log("cannot keep everything")


@NO_ROOM
@pytest.mark.parametrize("shown_whole", [False, True], ids=["as-it-comes", "when-it-is-whole"])
def test_without_room_a_frame_is_decompressed_as_it_is_read(
    disk: Make, monkeypatch: pytest.MonkeyPatch, shown_whole: bool
) -> None:
    if not shown_whole:
        monkeypatch.setattr("epochfs.vfs.composed._WHOLE_BYTES", 0)
    one = disk(11 * MIB)
    monkeypatch.setattr(one.cache, "scratch", full)
    with one.opened() as handle:
        for offset in (0, 100, 5 * MIB, 2 * MIB - 50, 11 * MIB - 7, 10 * MIB, 0):
            one.read(handle, offset, 300)
        one.read(handle, 0, len(one.data))
    assert one.chunks.now == 0


@NO_ROOM
def test_a_disk_that_becomes_full_ends_no_read(disk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one, written = disk(), []

    def write(fd: int, piece: memoryview, offset: int) -> None:
        written.append(offset)
        if len(written) > 4:
            full()
        os.pwrite(fd, piece, offset)

    monkeypatch.setattr("epochfs.vfs.unpacking._write", write)
    with one.opened() as handle:
        one.read(handle, 0, len(one.data))
    assert len(written) > 4


@NO_ROOM
def test_few_frames_are_decompressed_at_once_however_many_are_open(
    disk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = disk(20 * STRIDE)
    monkeypatch.setattr(one.cache, "scratch", full)
    monkeypatch.setattr("epochfs.vfs.composed._WHOLE_BYTES", 0)
    with ExitStack() as opened:
        handles = [opened.enter_context(one.opened()) for _ in range(20)]
        for again in range(2):
            for number, handle in enumerate(handles):
                one.read(handle, number * STRIDE + 1000 * again, 500)
                assert one.chunks.now <= 8
        with ThreadPoolExecutor(20) as pool:
            for read in [
                pool.submit(one.read, h, n * STRIDE, STRIDE) for n, h in enumerate(handles)
            ]:
                read.result()
    assert one.chunks.now == 0


@NO_ROOM
def test_a_stream_that_fails_is_begun_anew(disk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    one = disk()
    monkeypatch.setattr(one.cache, "scratch", full)
    one.chunks.gate, one.chunks.error = MIB, Unavailable("down")
    with one.opened() as handle:
        with pytest.raises(Unavailable):
            one.read(handle, 0, 10)
        one.chunks.gate = None
        one.read(handle, 0, len(one.data))


@NO_ROOM
def test_wrong_bytes_of_a_stream_come_to_no_end(
    disk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = disk()
    monkeypatch.setattr(one.cache, "scratch", full)
    blobs = one.made.blobs
    one.chunks.blobs[blobs[1].digest] = packed(b"too short")
    with one.opened() as handle:
        one.read(handle, 0, STRIDE)
        with pytest.raises(ContentMismatch):
            one.read(handle, STRIDE, 10)
        one.read(handle, 2 * STRIDE, 100)
