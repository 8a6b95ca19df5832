"""How much of a blob is fetched: what is read, a little ahead, and little once nobody reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.gates import Gate
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.scripted import settled, until
from support.sources import FakeClient, FakeStream

from epochfs.blobs.fetch_plan import CHUNK, FIRST_AHEAD, LONG_RUN
from epochfs.blobs.store import REST_SECONDS, BlobHandle, Blobs
from epochfs.cache.blobs import BlobCache
from epochfs.config import BlobOptions, CacheOptions
from epochfs.oci.names import Digest, Repository

MIB = 1 << 20
APP = Repository("team/app")
BLOB = random_bytes(32 * MIB, 61)
STEP = 128 << 10
TENSOR = 8_500_000
MAPPED = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sys.stdout.buffer.write(mapped[:8] + mapped[int(sys.argv[2]) : int(sys.argv[3])])
"""
"""Reads a header and a tensor. A process of its own: a fault of ours would stop the gate, too."""


class Dripping:
    """Lets a piece of 64 KiB pass now and then, of whatever stream."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __call__(self, stream: FakeStream) -> None:
        stream.closed.wait(self.seconds)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """One whose every connection counts as fast: on a busy machine, several would be tried."""
    monkeypatch.setattr("epochfs.blobs.fetch_plan._FAST", 0)
    return FakeClient(BLOB)


@pytest.fixture
def blobs(client: FakeClient, tmp_path: Path) -> Iterator[Blobs]:
    cache = BlobCache(CacheOptions(tmp_path / "cache"))
    blobs = Blobs(client, cache, BlobOptions(10.0))  # type: ignore[arg-type]
    yield blobs
    blobs.close()


def open_blob(blobs: Blobs) -> BlobHandle:
    return blobs.open(APP, Digest.of(BLOB), len(BLOB))


def read(handle: BlobHandle, start: int, stop: int, *, step: int = STEP) -> None:
    """Read a range from start to end, as a program does."""
    for offset in range(start, stop, step):
        buffer = bytearray(min(step, stop - offset))
        assert handle.read_into(memoryview(buffer), offset) == len(buffer)
        assert buffer == BLOB[offset : offset + len(buffer)]


def fetched(blobs: Blobs, client: FakeClient) -> int:
    """Return how much was sent, once nothing is under way that nobody waits for."""
    until(lambda: blobs.counters().connections == 0)
    return client.sent


class TestAhead:
    @pytest.mark.parametrize("count", [2 * MIB, 4 * MIB, 6 * MIB, LONG_RUN])
    def test_little_is_fetched_ahead_of_who_begins_to_read(
        self, blobs: Blobs, client: FakeClient, count: int
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 0, count)
        assert count + FIRST_AHEAD // 2 <= fetched(blobs, client) <= count + FIRST_AHEAD
        handle.close()

    def test_as_much_is_fetched_ahead_as_was_read_in_a_long_sequence(
        self, client: FakeClient, blobs: Blobs
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 0, LONG_RUN + 2 * MIB)
        assert fetched(blobs, client) >= 2 * LONG_RUN
        handle.close()

    @pytest.mark.parametrize("count", [2 * MIB, 4 * MIB, 9 * MIB])
    def test_nothing_is_fetched_ahead_of_a_reader_who_has_jumped(
        self, blobs: Blobs, client: FakeClient, count: int
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 9 * MIB + 5, 9 * MIB + 5 + count)
        assert count <= fetched(blobs, client) <= count + CHUNK
        handle.close()

    def test_who_reads_on_for_long_after_a_jump_has_bytes_fetched_ahead(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 9 * MIB, 22 * MIB)
        assert fetched(blobs, client) >= 13 * MIB + FIRST_AHEAD
        handle.close()

    def test_large_reads_after_a_jump_fetch_what_they_read_and_no_more(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        start, stop = 9 * MIB + 700 * 1024, 18 * MIB
        read(handle, 0, MIB, step=MIB)
        read(handle, start, stop, step=MIB)
        read(handle, start, stop, step=MIB)
        assert fetched(blobs, client) <= MIB + (stop - start) + STEP
        handle.close()

    def test_a_reader_who_goes_on_finds_the_next_bytes_there(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 0, 4 * MIB)
        fetched(blobs, client)
        asked = len(client.asked)
        read(handle, 4 * MIB, 5 * MIB)
        assert [start for start, _ in client.asked[asked:] if start < 5 * MIB] == []
        handle.close()

    def test_one_of_many_readers_has_as_much_fetched_ahead_as_he_has_read(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        for _ in range(8):
            blobs._context.budget.take()
        count = 7 * MIB
        read(handle, 0, count)
        # He asks for more when half of what was ahead is left, or earlier, when he has to wait.
        until(lambda: client.sent >= count + count // 3)
        assert fetched(blobs, client) <= 2 * count + STEP
        handle.close()

    def test_half_of_a_blob_brings_the_rest(self, blobs: Blobs, client: FakeClient) -> None:
        handle = open_blob(blobs)
        read(handle, 0, 17 * MIB)
        until(lambda: client.sent == len(BLOB))
        handle.close()

    def test_the_last_byte_brings_all_that_it_is_verified_with(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        read(handle, len(BLOB) - 3 * MIB, len(BLOB))
        assert client.sent == len(BLOB)
        assert handle.verified
        handle.close()

    def test_a_read_elsewhere_leaves_a_sequential_reader_what_is_ahead_of_him(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        one, other = open_blob(blobs), open_blob(blobs)
        read(one, 0, 4 * MIB)
        read(other, 20 * MIB, 20 * MIB + 4096)
        assert fetched(blobs, client) <= 2 * 4 * MIB + FIRST_AHEAD + MIB
        read(one, 4 * MIB, 12 * MIB)
        for handle in (one, other):
            handle.close()


class TestNobodyReads:
    def test_what_is_under_way_goes_on_for_half_a_second_at_most(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        handle = open_blob(blobs)
        read(handle, 0, 4 * MIB)
        client.before = Dripping(0.1)
        read(handle, 4 * MIB, 6 * MIB)
        client.before = Dripping(60)
        handle.close()
        until(lambda: blobs.counters().connections == 0)
        assert settled(lambda: client.sent) < len(BLOB) // 2

    def test_nothing_more_is_asked_for(self, blobs: Blobs, client: FakeClient) -> None:
        handle = open_blob(blobs)
        read(handle, 0, 4 * MIB)
        handle.close()
        asked = len(client.asked)
        settled(lambda: client.sent, REST_SECONDS + 0.2)
        assert len(client.asked) == asked

    def test_who_comes_back_goes_on_where_it_was(self, blobs: Blobs, client: FakeClient) -> None:
        first = open_blob(blobs)
        read(first, 0, 4 * MIB)
        first.close()
        time.sleep(REST_SECONDS + 0.2)
        again = open_blob(blobs)
        read(again, 0, len(BLOB))
        assert again.verified
        assert client.sent <= len(BLOB) + MIB
        again.close()

    def test_half_of_a_blob_is_completed(self, blobs: Blobs, client: FakeClient) -> None:
        handle = open_blob(blobs)
        read(handle, 0, 17 * MIB)
        handle.close()
        until(lambda: blobs.cached_percent(Digest.of(BLOB), len(BLOB)) == 100)
        assert client.sent == len(BLOB)

    def test_a_stream_without_range_is_not_read_from_and_is_kept_for_who_comes_back(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        client.ranged = False
        client.before = Dripping(0.02)
        handle = open_blob(blobs)
        read(handle, 0, 2 * MIB)
        handle.close()
        assert settled(lambda: client.sent) < len(BLOB) // 2
        client.before = lambda _: None
        again = open_blob(blobs)
        read(again, 0, len(BLOB))
        assert (client.sent, len(client.asked)) == (len(BLOB), 1)
        again.close()

    def test_closing_and_opening_all_the_time_stops_no_reader(
        self, blobs: Blobs, client: FakeClient
    ) -> None:
        client.before = Dripping(0.002)
        stopping = threading.Event()

        def come_and_go() -> None:
            while not stopping.is_set():
                handle = open_blob(blobs)
                read(handle, 20 * MIB, 20 * MIB + 4096)
                handle.close()

        visitor = threading.Thread(target=come_and_go)
        visitor.start()
        for start in range(0, 12 * MIB, 2 * MIB):
            handle = open_blob(blobs)
            read(handle, start, start + 2 * MIB)
            handle.close()
        stopping.set()
        visitor.join(10)
        assert not visitor.is_alive()


TWICE = BLOB + BLOB[::-1]


@pytest.fixture
def gate(embedded: EmbeddedRegistry) -> Iterator[Gate]:
    """A way to a registry that has a blob of 64 MiB; it counts what passes."""
    load(embedded, "team/app", "latest", image(TWICE))
    with Gate(embedded.host) as gate:
        yield gate


@pytest.fixture
def mounted(gate: Gate, mounts: Mounts) -> Path:
    """That blob in a mount of the registry."""
    path = mounts(gate.url).path / "team/app/blobs" / str(Digest.of(TWICE))
    path.stat()
    return path


@pytest.mark.parametrize("start", [0, 30 * MIB + 12_345])
def test_a_program_that_reads_four_megabytes_costs_the_registry_little_more(
    start: int, gate: Gate, mounted: Path
) -> None:
    with mounted.open("rb", buffering=0) as file:
        assert os.pread(file.fileno(), 4 * MIB, start) == TWICE[start : start + 4 * MIB]
    assert settled(lambda: gate.passed, 1) < 16 * MIB


@pytest.mark.parametrize("start", [8, 17 * MIB + 12_345, 40_000_000])
def test_a_tensor_of_a_mapped_file_costs_little_more_than_the_kernel_reads(
    start: int, gate: Gate, mounted: Path
) -> None:
    command = [sys.executable, "-c", MAPPED, mounted, str(start), str(start + TENSOR)]
    read = subprocess.run(command, capture_output=True, check=True).stdout
    assert read == TWICE[:8] + TWICE[start : start + TENSOR]
    assert settled(lambda: gate.passed, 1) <= 12 * MIB
