"""Reading past a cache that cannot take a blob: exact, checked to the last byte, and in time."""

from __future__ import annotations

import errno
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

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
    ranged_and_not,
    read_all,
    reading_through,
)
from support.scripted import at_most
from support.sources import FakeClient, FakeStream, Turnstile, break_at, flip

from epochfs.blobs.origin import PIECE
from epochfs.blobs.passing import Places
from epochfs.cache.blobs import BlobCache
from epochfs.errors import (
    CacheFailure,
    ContentMismatch,
    DeadlineExceeded,
    Denied,
    NotFound,
    Unavailable,
    Vanished,
)
from epochfs.oci.names import Digest

pytestmark = pytest.mark.expects_log("cannot keep everything")
blobs_of = pytest.fixture(reading_through)


@pytest.fixture
def _full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no blob be staged."""

    def refuse(*_: object) -> None:
        raise CacheFailure("staging a blob") from OSError(errno.ENOSPC, "No space left")

    monkeypatch.setattr(BlobCache, "stage", refuse)


full = pytest.mark.usefixtures("_full")


@full
class TestReading:
    @ranged_and_not
    @pytest.mark.parametrize("data", [b"x", SMALL, LARGE[:PIECE], LARGE], ids=len)
    @pytest.mark.parametrize("step", [4096 * 7, 131_072, MIB, 1 << 24])
    def test_a_blob_is_read_to_its_last_byte_in_one_request(
        self, blobs_of: Opener, data: bytes, step: int, *, ranged: bool
    ) -> None:
        client = FakeClient(data, ranged=ranged)
        with opened(blobs_of(client), data) as handle:
            assert read_all(handle, step) == data
            assert pread(handle, len(data), 100) == b""
            assert handle.verified
            assert handle.fileno() is None
        assert (len(client.asked), client.sent) == (1, len(data))

    @ranged_and_not
    def test_reads_in_any_order_are_right(self, blobs_of: Opener, *, ranged: bool) -> None:
        chosen = random.Random(1)
        with opened(blobs_of(FakeClient(LARGE, ranged=ranged)), LARGE) as handle:
            for _ in range(60):
                offset, count = chosen.randrange(len(LARGE)), chosen.choice([1, 5000, 600_000])
                assert pread(handle, offset, count) == LARGE[offset : offset + count]

    def test_a_read_somewhere_fetches_no_more_than_its_pieces(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        with opened(blobs_of(client), LARGE) as handle:
            assert pread(handle, 7 * MIB + 5, 100) == LARGE[7 * MIB + 5 :][:100]
            assert pread(handle, len(LARGE) - 5, 5) == LARGE[-5:]
        assert client.asked == [(7 * MIB, 7 * MIB + PIECE), (12 * MIB, None)]

    @ranged_and_not
    def test_reads_ahead_may_come_in_any_order(self, blobs_of: Opener, *, ranged: bool) -> None:
        blobs = blobs_of(FakeClient(LARGE, ranged=ranged))
        with opened(blobs, LARGE) as handle, ThreadPoolExecutor(4) as pool:
            starts = [start ^ MIB for start in range(0, 14 * MIB, MIB)]
            found = dict(
                zip(starts, pool.map(lambda at: pread(handle, at, MIB), starts), strict=True)
            )
        assert b"".join(found[start] for start in sorted(found)) == LARGE

    def test_the_cache_is_told_once(
        self, blobs_of: Opener, caplog: pytest.LogCaptureFixture
    ) -> None:
        blobs = blobs_of(FakeClient(SMALL))
        for _ in range(3):
            with opened(blobs, SMALL) as handle:
                assert read_all(handle) == SMALL
        told = [record for record in caplog.records if record.levelname == "WARNING"]
        assert len(told) == 1

    @ranged_and_not
    def test_a_stream_that_breaks_is_resumed(self, blobs_of: Opener, *, ranged: bool) -> None:
        breaks = {0: 3 * MIB + 5, 1: 7 * MIB + 9}
        client = FakeClient(LARGE, ranged=ranged, before=break_at(breaks))
        with opened(blobs_of(client), LARGE) as handle:
            assert read_all(handle) == LARGE
        assert len(client.asked) == 3
        if ranged:
            assert client.sent < len(LARGE) + MIB

    def test_a_stream_that_always_breaks_is_an_error(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE, before=break_at(dict.fromkeys(range(100), MIB)))
        with opened(blobs_of(client), LARGE) as handle, pytest.raises(Unavailable):
            read_all(handle)

    def test_more_handles_than_places_are_all_served(
        self, blobs_of: Opener, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("epochfs.blobs.passing._IDLE_SECONDS", 0.05)
        monkeypatch.setattr("epochfs.blobs.store._MOST_STREAMS", 4)
        client = FakeClient(LARGE)
        blobs = blobs_of(client)
        with ExitStack() as closing:
            handles = [closing.enter_context(opened(blobs, LARGE)) for _ in range(12)]
            for offset in (0, 5 * MIB):
                for handle in handles:
                    assert pread(handle, offset, 10) == LARGE[offset:][:10]
            with ThreadPoolExecutor(12) as pool:
                assert set(pool.map(read_all, handles)) == {LARGE}


@full
@pytest.mark.expects_log("are wrong, fetching again")
class TestIntegrity:
    @ranged_and_not
    def test_wrong_bytes_that_nobody_was_given_are_fetched_again(
        self, blobs_of: Opener, *, ranged: bool
    ) -> None:
        client = FakeClient(SMALL, ranged=ranged, alter=flip({0}, 200_000))
        with opened(blobs_of(client), SMALL) as handle:
            assert pread(handle, 0, len(SMALL)) == SMALL

    @ranged_and_not
    def test_wrong_bytes_never_come_to_a_clean_end(self, blobs_of: Opener, *, ranged: bool) -> None:
        client = FakeClient(LARGE, ranged=ranged, alter=flip(range(100), 5 * MIB))
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            with pytest.raises(ContentMismatch):
                read_all(handle)
            with pytest.raises(ContentMismatch):
                pread(handle, len(LARGE) - 10, 10)
            assert not handle.verified
        assert blobs.was_spoiled(Digest.of(LARGE))

    def test_the_last_byte_waits_until_what_was_jumped_over_is_hashed(
        self, blobs_of: Opener
    ) -> None:
        client = FakeClient(LARGE, alter=flip(range(100), 100))
        with opened(blobs_of(client), LARGE) as handle:
            for offset in range(MIB, 12 * MIB, MIB):
                assert pread(handle, offset, MIB) == LARGE[offset : offset + MIB]
            with pytest.raises(ContentMismatch):
                pread(handle, 12 * MIB, MIB)

    @pytest.mark.parametrize("offset", [0, 5 * MIB, 12 * MIB])
    def test_what_is_read_again_must_be_what_was_verified(
        self, blobs_of: Opener, offset: int
    ) -> None:
        client = FakeClient(LARGE, alter=flip(range(1, 100), offset + 5))
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            assert read_all(handle) == LARGE
        with opened(blobs, LARGE) as handle:
            assert handle.verified
            with pytest.raises(ContentMismatch):
                pread(handle, offset, 10)

    def test_what_another_reader_has_verified_is_held_against_what_one_was_given(
        self, blobs_of: Opener
    ) -> None:
        client = FakeClient(LARGE, alter=flip({0}, 100))
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as deceived, opened(blobs, LARGE) as other:
            assert pread(deceived, 0, MIB) != LARGE[:MIB]
            assert read_all(other) == LARGE
            with pytest.raises(ContentMismatch):
                read_all(deceived)

    def test_two_answers_that_differ_are_refused_before_the_digest_is_known(
        self, blobs_of: Opener
    ) -> None:
        client = FakeClient(LARGE, alter=flip(range(1, 100), 100))
        with opened(blobs_of(client), LARGE) as handle:
            for offset in (0, *range(2 * MIB, 12 * MIB, MIB)):
                assert pread(handle, offset, 10) == LARGE[offset:][:10]
            with pytest.raises(ContentMismatch):
                pread(handle, 0, MIB)

    @ranged_and_not
    def test_where_all_is_verified_first_no_byte_is_given_before(
        self, blobs_of: Opener, *, ranged: bool
    ) -> None:
        client = FakeClient(LARGE, ranged=ranged, alter=flip(range(100), len(LARGE) - 1))
        with (
            opened(blobs_of(client, verify_first=True), LARGE) as handle,
            pytest.raises(ContentMismatch),
        ):
            pread(handle, 0, 10)

    def test_where_all_is_verified_first_it_is_right_in_the_end(self, blobs_of: Opener) -> None:
        with opened(blobs_of(FakeClient(LARGE), verify_first=True), LARGE) as handle:
            assert read_all(handle) == LARGE

    def test_a_blob_of_another_size_is_refused(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, total=len(SMALL) + 1)
        with opened(blobs_of(client), SMALL) as handle, pytest.raises(ContentMismatch):
            pread(handle, 0, 10)


@full
class TestErrors:
    @pytest.mark.parametrize(
        ("raised", "expected"),
        [(NotFound("gone"), Vanished), (Denied("no"), Denied), (Unavailable("down"), Unavailable)],
    )
    def test_what_the_registry_says_is_passed_on_and_may_change(
        self, blobs_of: Opener, raised: Exception, expected: type[Exception]
    ) -> None:
        client = FakeClient(SMALL, refuse=lambda number: raised if number == 0 else None)
        with opened(blobs_of(client), SMALL) as handle:
            with pytest.raises(expected):
                pread(handle, 0, 10)
            time.sleep(0.6)
            assert read_all(handle) == SMALL

    @ranged_and_not
    def test_a_read_ends_in_time_and_the_next_goes_on(
        self, blobs_of: Opener, *, ranged: bool
    ) -> None:
        gate = Turnstile(9 * MIB)
        client = FakeClient(LARGE, ranged=ranged, before=gate)
        with opened(blobs_of(client, timeout=1.0), LARGE) as handle:
            assert pread(handle, 0, 8 * MIB) == LARGE[: 8 * MIB]
            with at_most(2.0), pytest.raises(DeadlineExceeded):
                pread(handle, 9 * MIB, MIB)
            gate.open()
            time.sleep(0.6)
            assert pread(handle, 9 * MIB, MIB) == LARGE[9 * MIB : 10 * MIB]
        assert len(client.asked) == 1

    def test_other_reads_of_the_handle_end_in_time_as_well(self, blobs_of: Opener) -> None:
        gate = Turnstile(0)
        blobs = blobs_of(FakeClient(SMALL, before=gate), timeout=1.0)
        with opened(blobs, SMALL) as handle, ThreadPoolExecutor(4) as pool:
            reads = [pool.submit(pread, handle, 4096 * number, 10) for number in range(4)]
            with at_most(3.0):
                for read in reads:
                    with pytest.raises(DeadlineExceeded):
                        read.result()
            gate.open()

    def test_no_place_becomes_free_in_time(self) -> None:
        class Busy:
            def __init__(self) -> None:
                self.turn = threading.Lock()
                self.turn.acquire()

        places = Places(1)
        places.seat(Busy(), time.monotonic())
        with pytest.raises(DeadlineExceeded):
            places.seat(Busy(), time.monotonic() + 0.1)

    def test_at_the_end_readers_get_an_error(self, blobs_of: Opener) -> None:
        began = threading.Event()

        def before(stream: FakeStream) -> None:
            began.set()
            stream.closed.wait(TIMEOUT)

        blobs = blobs_of(FakeClient(SMALL, before=before))
        handle = blobs.open(APP, Digest.of(SMALL), len(SMALL))
        with ThreadPoolExecutor(1) as pool:
            read = pool.submit(pread, handle, 0, 10)
            assert began.wait(TIMEOUT)
            blobs.close()
            handle.close()
            with pytest.raises((Unavailable, Vanished)):
                read.result(TIMEOUT)
        with opened(blobs, SMALL) as late, pytest.raises(Unavailable):
            pread(late, 0, 10)
