"""What readers of one blob share: ranges in few requests, and one download for all processes."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from support.fsspec_data import LARGE, VOLUME, Maker
from support.registries import EmbeddedRegistry
from support.workers import begin, worker

from epochfs.cache.blobs import BlobCache
from epochfs.cache.turns import turn
from epochfs.config import CacheOptions
from epochfs.fsspec import RegistryFileSystem
from epochfs.fsspec.range_reads import NEAR, Range, bounded, in_parallel, near_ranges, read_run
from epochfs.oci.names import Digest

BIN = f"{VOLUME}/deep/er/large.bin"
DATA = bytes(range(256)) * 40


class _File:
    def expect(self, start: int, stop: int) -> None: ...

    def read_into(self, view: memoryview, offset: int) -> int:
        data = DATA[offset : offset + min(len(view), 700)]
        view[: len(data)] = data
        return len(data)


positions = some.integers(-12_000, 12_000)


@given(some.lists(some.tuples(positions, positions), max_size=20), some.integers(0, 3000))
def test_ranges_are_slices_whatever_their_order_and_overlap(
    slices: list[tuple[int, int]], gap: int
) -> None:
    ranges = [Range(n, *bounded(*one, len(DATA))) for n, one in enumerate(slices)]
    found = dict.fromkeys(range(len(slices)), b"")
    for run in near_ranges(ranges, gap):
        found |= dict(read_run(_File(), run))
    assert list(found.values()) == [
        DATA[slice(*slice(start, end).indices(len(DATA))[:2])] for start, end in slices
    ]


def test_near_ranges_are_one_run_and_far_ones_are_not() -> None:
    near = [Range(0, 0, 10), Range(1, 10 + NEAR, 20 + NEAR)]
    far = Range(2, 21 + 2 * NEAR, 30 + 2 * NEAR)
    assert list(near_ranges([far, *near], None)) == [near, [far]]


def test_the_first_error_ends_what_has_not_begun() -> None:
    done = []

    def do(number: int) -> int:
        done.append(number)
        if number == 0:
            raise ValueError("the first")
        time.sleep(0.05)
        return number

    with pytest.raises(ValueError, match="the first"):
        in_parallel(do, range(1000))
    assert len(done) < 100
    assert in_parallel(lambda one: one + 1, range(100)) == list(range(1, 101))


def test_ranges_take_few_requests(fs: RegistryFileSystem, registry: EmbeddedRegistry) -> None:
    fs.info(BIN)
    registry.forget_requests()
    starts = list(range(0, len(LARGE) - 1000, 9000))
    random_order = starts[::2] + starts[1::2][::-1]
    found = fs.cat_ranges([BIN] * len(starts), random_order, [one + 100 for one in random_order])
    assert found == [LARGE[one : one + 100] for one in random_order]
    assert registry.count(containing="/blobs/") <= 3


def test_a_few_bytes_do_not_fetch_the_whole(
    fs: RegistryFileSystem, registry: EmbeddedRegistry
) -> None:
    before = fs.cat_ranges([BIN, BIN], [4 << 20, -8], [(4 << 20) + 8, None])
    assert before == [LARGE[4 << 20 : (4 << 20) + 8], LARGE[-8:]]
    blob = [one for one in registry.requests if Digest.of(LARGE).encoded in one.path]
    assert all("range" in one.headers for one in blob)
    assert len(blob) == 2


def test_four_processes_download_a_blob_once(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    workers = [
        worker(registry.host, tmp_path / "cache", BIN, tmp_path / f"got{number}")
        for number in range(4)
    ]
    begin(workers)
    for one in workers:
        one.communicate(timeout=30)
        assert one.returncode == 0
    for number in range(4):
        assert (tmp_path / f"got{number}").read_bytes() == LARGE
    ranges = [
        one.headers["range"]
        for one in registry.requests
        if Digest.of(LARGE).encoded in one.path and one.method == "GET"
    ]
    assert len(ranges) == len(set(ranges)), ranges


def test_a_turn_ends_with_its_process_and_with_patience(tmp_path: Path) -> None:
    cache = BlobCache(CacheOptions(tmp_path))
    digest = Digest.of(b"wanted")
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        with turn(cache, digest, 6, 1.0):
            os.write(ready[1], b"x")
            os.read(done[0], 1)
            os._exit(0)
    os.read(ready[0], 1)
    began = time.monotonic()
    with turn(cache, digest, 6, 0.3):
        assert 0.3 <= time.monotonic() - began < 5  # nothing came of it
    with ThreadPoolExecutor(1) as pool:

        def wait() -> float:
            with turn(cache, digest, 6, 30.0):
                return time.monotonic()

        waiting = pool.submit(wait)
        time.sleep(0.3)
        assert not waiting.done()
        os.kill(child, 9)
        os.waitpid(child, 0)
        waiting.result(5)
    for fd in (*ready, *done):
        os.close(fd)


def test_other_blobs_have_turns_of_their_own(tmp_path: Path, open_fs: Maker) -> None:
    cache = BlobCache(CacheOptions(tmp_path / "cache"))
    with turn(cache, Digest.of(b"another"), 7, 5.0):
        assert open_fs().cat_file(BIN) == LARGE
