"""Reading through: one download for all readers, exact reads, and no end of file on wrong bytes."""

from __future__ import annotations

import random
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.readthrough import (
    APP,
    LARGE,
    MIB,
    SMALL,
    TIMEOUT,
    Opener,
    opened,
    pread,
    read,
    reading_through,
)
from support.scripted import until
from support.sources import FakeClient, Turnstile, flip

from epochfs.blobs.store import Timers
from epochfs.cache.staged_blob import StagedBlob
from epochfs.errors import (
    ContentMismatch,
)
from epochfs.oci.names import Digest

blobs_of = pytest.fixture(reading_through)


class TestSharing:
    def test_many_readers_of_a_cold_blob_share_one_download(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        blobs = blobs_of(client)
        with ThreadPoolExecutor(64) as pool:
            found = list(pool.map(lambda _: read(blobs, LARGE) == LARGE, range(64)))
        assert found == [True] * 64
        assert client.sent == len(LARGE)

    def test_a_kept_blob_is_not_asked_for_again_also_after_a_restart(
        self, blobs_of: Opener
    ) -> None:
        client = FakeClient(SMALL)
        first = blobs_of(client)
        assert read(first, SMALL) == SMALL
        first.close()
        assert read(blobs_of(client), SMALL) == SMALL
        assert len(client.asked) == 1

    def test_opening_alone_asks_for_nothing(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL)
        with opened(blobs_of(client), SMALL):
            pass
        assert client.asked == []

    def test_readers_follow_the_download_as_it_arrives(self, blobs_of: Opener) -> None:
        gate = Turnstile(MIB)
        client = FakeClient(LARGE, ranged=False, before=gate)
        with opened(blobs_of(client), LARGE) as handle:
            assert pread(handle, 0, 100_000) == LARGE[:100_000]
            assert client.sent <= MIB
            gate.open()
            assert pread(handle, len(LARGE) - 5, 5) == LARGE[-5:]

    def test_a_handle_that_stays_open_outlives_the_removal_of_its_blob(
        self, blobs_of: Opener
    ) -> None:
        blobs = blobs_of(FakeClient(SMALL), limit=1)
        with opened(blobs, SMALL) as handle:
            for _ in range(2):
                assert pread(handle, 0, len(SMALL)) == SMALL

    def test_opening_and_closing_over_and_over_leaves_no_threads_behind(
        self, blobs_of: Opener
    ) -> None:
        blobs = blobs_of(FakeClient(SMALL))
        before = threading.active_count()
        for _ in range(300):
            with opened(blobs, SMALL):
                pass
        assert threading.active_count() - before < 10


class TestExactness:
    @pytest.mark.parametrize("ranged", [True, False])
    def test_reads_anywhere_give_exactly_what_is_there(
        self, blobs_of: Opener, ranged: bool
    ) -> None:
        chance = random.Random(3)
        with opened(blobs_of(FakeClient(LARGE, ranged=ranged)), LARGE) as handle:
            for _ in range(100):
                offset = chance.randrange(len(LARGE) + MIB)
                count = chance.choice([0, 1, 4096, 131_072, MIB])
                assert pread(handle, offset, count) == LARGE[offset : offset + count]

    def test_an_empty_blob_is_never_asked_for(self, blobs_of: Opener) -> None:
        client = FakeClient(b"")
        with opened(blobs_of(client), b"") as handle:
            assert pread(handle, 0, 4096) == b""
        assert client.asked == []

    def test_a_blob_of_no_bytes_that_should_have_some_is_refused(self, blobs_of: Opener) -> None:
        with pytest.raises(ContentMismatch):
            blobs_of(FakeClient(b"")).open(APP, Digest.of(SMALL), 0)


class TestWhatIsAskedFor:
    def test_random_reads_fetch_aligned_chunks_alone(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        with opened(blobs_of(client), LARGE) as handle:
            for offset in (7 * MIB + 5, 3 * MIB - 10, 11 * MIB):
                pread(handle, offset, 20)
        ranges = [(7, 8), (2, 3), (3, 4), (11, 12)]
        assert sorted(client.asked) == sorted((a * MIB, b * MIB) for a, b in ranges)

    def test_a_sequential_reader_is_fed_ahead(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            for offset in range(0, 2 * MIB, MIB // 4):
                assert pread(handle, offset, MIB // 4) == LARGE[offset : offset + MIB // 4]
            # The last byte waits for the digest, so for all of the blob.
            assert pread(handle, len(LARGE) - 1, 1) == LARGE[-1:]
        assert client.sent == len(LARGE)

    def test_what_has_arrived_is_on_record_long_before_the_end(
        self, blobs_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("epochfs.blobs.staged_file._SAVE_SECONDS", 0.0)
        gate = Turnstile(8 * MIB)
        with opened(blobs_of(FakeClient(LARGE, before=gate)), LARGE) as handle:
            assert pread(handle, 0, 4 * MIB) == LARGE[: 4 * MIB]
            maps = list((tmp_path / "cache").rglob("*.map"))
            gate.open()
        assert len(maps) == 1

    def test_a_blob_half_of_which_is_here_is_completed(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            for chunk in (11, 9, 7, 5, 3, 1, 8):
                pread(handle, (chunk + 1) * MIB - 10, 10)  # the end of it, so it is all here
            pread(handle, len(LARGE) - 1, 1)
        assert client.sent == len(LARGE)

    def test_a_small_blob_is_one_request(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL)
        with opened(blobs_of(client), SMALL) as handle:
            assert pread(handle, 200_000, 10) == SMALL[200_000:200_010]
            assert pread(handle, 0, len(SMALL)) == SMALL
        assert client.asked == [(0, len(SMALL))]

    def test_a_server_without_range_is_asked_once(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE, ranged=False)
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            for offset in (9 * MIB, 5, 6 * MIB, len(LARGE) - 1):
                assert pread(handle, offset, 1) == LARGE[offset : offset + 1]
        assert len(client.asked) == 1
        assert client.sent == len(LARGE)


class TestVerification:
    @pytest.mark.parametrize("ranged", [True, False])
    def test_the_last_read_waits_for_the_digest(self, blobs_of: Opener, ranged: bool) -> None:
        last = len(LARGE) - 1
        gate = Turnstile(last - last % (1 << 16))
        client = FakeClient(LARGE, ranged=ranged, before=gate)
        with opened(blobs_of(client), LARGE) as handle, ThreadPoolExecutor(1) as pool:
            for offset in range(0, 11 * MIB, MIB):
                pread(handle, offset, MIB)
            final = pool.submit(pread, handle, last - 99, 100)
            assert not handle.verified
            gate.open()
            assert final.result(TIMEOUT) == LARGE[-100:]
            assert handle.verified

    @pytest.mark.expects_log("have another digest, fetching again")
    def test_wrong_bytes_are_fetched_again_if_nobody_saw_them(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, alter=flip(requests={0}, at=10))
        assert read(blobs_of(client), SMALL, step=len(SMALL)) == SMALL
        assert len(client.asked) == 2

    @pytest.mark.expects_log("have another digest, fetching again")
    def test_bytes_that_stay_wrong_are_an_error_and_are_not_kept(
        self, blobs_of: Opener, tmp_path: Path
    ) -> None:
        client = FakeClient(SMALL, alter=flip(requests=range(100), at=10))
        with pytest.raises(ContentMismatch):
            read(blobs_of(client), SMALL, step=len(SMALL))
        assert len(client.asked) == 2
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_wrong_bytes_that_somebody_saw_are_an_error_at_the_end(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE, alter=flip(requests=range(100), at=5 * MIB))
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            assert pread(handle, 0, MIB) == LARGE[:MIB]
            with pytest.raises(ContentMismatch):
                for offset in range(MIB, len(LARGE), MIB):
                    pread(handle, offset, MIB)
            with pytest.raises(ContentMismatch):
                pread(handle, 0, 1)
        client.alter = lambda _, piece: piece
        assert read(blobs, LARGE) == LARGE

    def test_a_reader_that_comes_while_wrong_bytes_are_dropped_gets_no_clean_end_on_them(
        self, blobs_of: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        client = FakeClient(SMALL, alter=flip(requests={0}, at=10))
        forget = StagedBlob.forget

        def forget_slowly(staged: StagedBlob) -> None:
            forget(staged)
            if client.sent:
                seen.append(pread(handle, 0, 100))

        monkeypatch.setattr(StagedBlob, "forget", forget_slowly)
        seen: list[bytes] = []
        with opened(blobs_of(client), SMALL) as handle, pytest.raises(ContentMismatch):
            pread(handle, 0, len(SMALL))
        assert len(seen) == 1
        assert len(client.asked) == 1

    @pytest.mark.expects_log("have another digest, fetching again")
    def test_verify_first_serves_nothing_before_the_digest(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE, alter=flip(requests=range(100), at=11 * MIB))
        blobs = blobs_of(client, verify_first=True)
        with opened(blobs, LARGE) as handle, pytest.raises(ContentMismatch):
            pread(handle, 0, 1)

    def test_a_server_that_sends_another_size_is_refused(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, total=len(SMALL) + 1)
        with pytest.raises(ContentMismatch, match="its descriptor says"):
            read(blobs_of(client), SMALL)

    def test_a_server_that_sends_too_much_is_refused(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, alter=lambda _, piece: piece + b"x" if piece else b"")
        with pytest.raises(ContentMismatch):
            read(blobs_of(client), SMALL)


def test_memory_does_not_grow_with_the_blob(blobs_of: Opener) -> None:
    data = bytes(64 * MIB)
    blobs = blobs_of(FakeClient(data))
    tracemalloc.start()
    with opened(blobs, data) as handle:
        for offset in range(0, len(data), MIB):
            pread(handle, offset, MIB)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 24 * MIB


class TestTimers:
    """Actions at later times, in one thread."""

    def test_actions_are_called_in_the_order_of_their_times_by_one_thread(self) -> None:
        timers = Timers()
        called: list[tuple[str, threading.Thread]] = []

        def in_time(seconds: float, name: str) -> None:
            timers.call(seconds, lambda: called.append((name, threading.current_thread())))

        in_time(0.3, "last")
        in_time(0.2, "second")
        in_time(0.1, "first")
        until(lambda: len(called) == 3)
        assert [name for name, _ in called] == ["first", "second", "last"]
        assert len({thread for _, thread in called}) == 1

    def test_one_that_is_due_before_all_others_does_not_wait_for_them(self) -> None:
        timers, called = Timers(), threading.Event()
        timers.call(3600, lambda: None)
        timers.call(0.05, called.set)
        assert called.wait(10)

    @pytest.mark.expects_log("unforeseen failure")
    def test_one_that_fails_keeps_none_from_being_called(self) -> None:
        timers, called = Timers(), threading.Event()
        timers.call(0, lambda: 1 // 0)
        timers.call(0.05, called.set)
        assert called.wait(10)

    def test_an_action_may_add_another_and_without_any_there_is_no_thread(self) -> None:
        timers = Timers()
        threads: list[threading.Thread] = []

        def note() -> None:
            threads.append(threading.current_thread())

        timers.call(0, lambda: timers.call(0.05, note))
        until(lambda: len(threads) == 1)
        until(lambda: not threads[0].is_alive())
        timers.call(0, note)
        until(lambda: len(threads) == 2)
        assert threads[1] is not threads[0]
