"""Streams that break, stall or are refused: resumed, or an error for the reader in good time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.readthrough import (
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
from support.scripted import at_most
from support.sources import FakeClient, FakeStream, Turnstile, break_at

from epochfs.cache.staged_blob import StagedBlob
from epochfs.errors import (
    CacheFailure,
    DeadlineExceeded,
    Denied,
    NeverThere,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    Vanished,
)

blobs_of = pytest.fixture(reading_through)


class TestBrokenStreams:
    @pytest.mark.parametrize("ranged", [True, False])
    def test_a_broken_stream_resumes(self, blobs_of: Opener, ranged: bool) -> None:
        client = FakeClient(SMALL, ranged=ranged, before=break_at({0: 1 << 16, 1: 3 << 16}))
        assert read(blobs_of(client), SMALL) == SMALL
        assert [start for start, _ in client.asked] == [0, 1 << 16, 3 << 16]

    def test_a_stream_that_ends_early_but_cleanly_resumes_too(self, blobs_of: Opener) -> None:
        def cut(stream: FakeStream, piece: bytes) -> bytes:
            return b"" if stream.number == 0 and stream.position >= 1 << 16 else piece

        client = FakeClient(SMALL, alter=cut)
        assert read(blobs_of(client), SMALL) == SMALL
        assert len(client.asked) == 2

    def test_a_server_that_never_gets_on_is_given_up(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, before=break_at(dict.fromkeys(range(1000), 0)))
        with at_most(TIMEOUT), pytest.raises(Unavailable):
            read(blobs_of(client), SMALL)
        assert 3 <= len(client.asked) <= 10

    def test_after_an_outage_the_next_read_goes_on_where_it_was(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE, refuse=lambda number: Unavailable("down") if number else None)
        with opened(blobs_of(client), LARGE) as handle:
            pread(handle, 0, 10)
            with pytest.raises(Unavailable):
                pread(handle, 9 * MIB, 10)
            client.refuse = lambda _: None
            assert pread(handle, 9 * MIB, 10) == LARGE[9 * MIB : 9 * MIB + 10]
            assert pread(handle, 0, 10) == LARGE[:10]

    def test_what_was_fetched_before_a_restart_is_not_fetched_again(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        first = blobs_of(client)
        with opened(first, LARGE) as handle:
            pread(handle, 5 * MIB - 100, 100)
        first.close()
        assert client.sent == MIB
        with opened(blobs_of(client), LARGE) as handle:
            assert pread(handle, 4 * MIB + 5, 4096) == LARGE[4 * MIB + 5 :][:4096]
            assert client.sent == MIB
            assert pread(handle, 0, len(LARGE)) == LARGE
        assert client.sent == len(LARGE)

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (NotFound("gone"), NeverThere),
            (UnconfirmedNotFound("no such page"), Unavailable),
            (Denied("no"), Denied),
            (ProtocolViolation("nonsense"), ProtocolViolation),
            (DeadlineExceeded("too slow"), DeadlineExceeded),
        ],
        ids=lambda value: getattr(value, "__name__", type(value).__name__),
    )
    def test_a_refusal_reaches_the_reader_and_the_next_open_tries_again(
        self, blobs_of: Opener, error: Exception, kind: type[Exception]
    ) -> None:
        client = FakeClient(SMALL, refuse=lambda _: error)
        blobs = blobs_of(client)
        with pytest.raises(kind):
            read(blobs, SMALL)
        client.refuse = lambda _: None
        assert read(blobs, SMALL) == SMALL

    def test_what_has_come_in_part_has_been_there(self, blobs_of: Opener) -> None:
        client = FakeClient(LARGE)
        blobs = blobs_of(client)
        with opened(blobs, LARGE) as handle:
            pread(handle, 0, 100)
            client.refuse = lambda _: NotFound("gone")
            with pytest.raises(Vanished) as raised:
                pread(handle, 5 * MIB, 100)
        assert type(raised.value) is Vanished

    @pytest.mark.expects_log("unforeseen failure while fetching")
    def test_a_bug_is_an_error_with_a_traceback_and_no_hang(self, blobs_of: Opener) -> None:
        client = FakeClient(SMALL, refuse=lambda _: ZeroDivisionError("a bug"))
        with at_most(5), pytest.raises(ProtocolViolation):
            read(blobs_of(client), SMALL)

    def test_a_silent_server_is_a_deadline(self, blobs_of: Opener) -> None:
        gate = Turnstile(0)
        blobs = blobs_of(FakeClient(SMALL, before=gate), timeout=0.3)
        with opened(blobs, SMALL) as handle, at_most(2):
            with pytest.raises(DeadlineExceeded):
                pread(handle, 0, 10)
            gate.open()
        with opened(blobs, SMALL) as handle:
            assert pread(handle, 0, 10) == SMALL[:10]

    def test_a_read_that_the_kernel_repeats_has_no_more_time_than_one(
        self, blobs_of: Opener
    ) -> None:
        gate = Turnstile(0)
        blobs = blobs_of(FakeClient(SMALL, before=gate), timeout=1.0)
        with opened(blobs, SMALL) as handle:
            with at_most(1.9):
                for _ in range(2):
                    with pytest.raises(DeadlineExceeded):
                        pread(handle, 0, 10)
            with ThreadPoolExecutor(1) as pool:
                again = pool.submit(pread, handle, 0, 10)  # the program's own next read
                gate.open()
                assert again.result() == SMALL[:10]

    def test_a_stream_too_slow_for_a_reader_is_asked_for_anew(self, blobs_of: Opener) -> None:
        def before(stream: FakeStream) -> None:
            if stream.number == 1:
                stream.closed.wait(TIMEOUT)

        blobs = blobs_of(FakeClient(LARGE, before=before), timeout=0.4)
        with opened(blobs, LARGE) as first, opened(blobs, LARGE) as second:
            assert pread(first, 0, 10) == LARGE[:10]
            with at_most(2):
                with pytest.raises(DeadlineExceeded):
                    pread(first, 5 * MIB, 10)
                assert pread(second, 5 * MIB, 10) == LARGE[5 * MIB :][:10]

    @pytest.mark.expects_log("what was fetched of .*: disk full")
    def test_what_cannot_be_put_on_record_does_not_stay_to_fill_the_disk(
        self, blobs_of: Opener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> None:
            raise CacheFailure("disk full")

        monkeypatch.setattr(StagedBlob, "checkpoint", fail)
        blobs = blobs_of(FakeClient(LARGE))
        with opened(blobs, LARGE) as handle:
            assert pread(handle, 5 * MIB, 10) == LARGE[5 * MIB :][:10]
        blobs.close()
        left = (tmp_path / "cache" / "v1" / "partial").rglob("*")
        assert [file.name for file in left if file.is_file()] == []

    def test_closing_wakes_a_stalled_reader(self, blobs_of: Opener) -> None:
        began, gate = threading.Event(), Turnstile(0)

        def before(stream: FakeStream) -> None:
            began.set()
            stream.closed.wait(TIMEOUT)

        blobs = blobs_of(FakeClient(SMALL, before=before))
        with opened(blobs, SMALL) as handle, ThreadPoolExecutor(1) as pool:
            stalled = pool.submit(pread, handle, 0, 10)
            assert began.wait(TIMEOUT)
            with at_most(3):
                blobs.close()
                with pytest.raises(Unavailable):
                    stalled.result(TIMEOUT)
        gate.open()
