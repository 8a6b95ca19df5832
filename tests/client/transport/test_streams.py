"""Blobs as they arrive: ranges, breaks, pauses, and closing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support.scripted import Close, Reset, Seen, Step, at_most, reply
from support.transports import (
    CHUNKED,
    HEADERS,
    SLACK,
    TIMEOUT,
    Serve,
    get,
    serving,
    stream,
)

from epochfs.client.transport import BlobStream, Request, Shortened, Transport
from epochfs.errors import (
    DeadlineExceeded,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
)
from epochfs.oci.manifests import MAX_SIZE

serve = pytest.fixture(serving)


def read_all(blob: BlobStream, size: int = 65536) -> bytes:
    parts = []
    while part := blob.read(size):
        parts.append(part)
    return b"".join(parts)


def partial(body: bytes, content_range: str, **headers: str) -> list[Step]:
    return [reply(206, body, Content_Range=content_range, **headers)]


def test_a_whole_blob(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200, b"0123456789")])
    with stream(transport) as blob:
        assert (blob.start, blob.total, blob.ranged) == (0, 10, False)
        assert read_all(blob, 3) == b"0123456789"
        assert blob.read(3) == b""


def test_a_range_of_a_blob(serve: Serve) -> None:
    _, transport = serve(lambda _: partial(b"234", "bytes 2-4/10"))
    with stream(transport, 2, 5) as blob:
        assert (blob.start, blob.total, blob.ranged) == (2, 10, True)
        assert read_all(blob) == b"234"


def test_a_range_may_end_with_the_blob(serve: Serve) -> None:
    _, transport = serve(lambda _: partial(b"89", "bytes 8-9/10"))
    with stream(transport, 8, 100) as blob:
        assert (blob.total, read_all(blob)) == (10, b"89")


def test_a_range_of_a_blob_of_unknown_size(serve: Serve) -> None:
    _, transport = serve(lambda _: partial(b"234", "bytes 2-4/*"))
    with stream(transport, 2, 5) as blob:
        assert (blob.total, read_all(blob)) == (None, b"234")


def test_a_server_without_range_is_no_error(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200, b"0123456789")])
    with stream(transport, 2, 5) as blob:
        assert (blob.start, blob.total, blob.ranged) == (0, 10, False)


@pytest.mark.parametrize(
    "content_range",
    [
        None,
        "",
        "bytes 0-2/10",
        "bytes 3-5/10",
        "bytes 2-5/10",
        "bytes 4-2/10",
        "bytes */10",
        "bytes 2-4",
        "items 2-4/10",
        "bytes 2-4/" + "9" * 30,
        f"bytes 2-4/{MAX_SIZE + 1}",
        "bytes 2-4/4",
    ],
)
def test_another_range_than_asked_for_is_a_violation(
    serve: Serve, content_range: str | None
) -> None:
    headers = {} if content_range is None else {"Content_Range": content_range}
    _, transport = serve(lambda _: [reply(206, b"234", **headers)])
    with pytest.raises(ProtocolViolation):
        stream(transport, 2, 5)
    assert transport._watchdog._watches == set()


@pytest.mark.parametrize(
    "answer",
    [
        partial(b"2345", "bytes 2-4/10"),
        partial(b"234", "bytes 2-4/10", Content_Type="multipart/byteranges; boundary=x"),
        [reply(416, Content_Range="bytes */10")],
        [reply(204)],
    ],
    ids=["lengths disagree", "several parts", "not satisfiable", "no content"],
)
def test_other_doubtful_ranges_are_violations(serve: Serve, answer: list[Step]) -> None:
    _, transport = serve(lambda _: answer)
    with pytest.raises(ProtocolViolation):
        stream(transport, 2, 5)


@pytest.mark.parametrize(("total", "end"), [("10", 5), ("10", None), ("*", 5)])
def test_a_range_may_be_shorter_than_asked_for_and_is_no_end_then(
    serve: Serve, total: str, end: int | None
) -> None:
    """Some servers cap what they send at once; what is missing is to be asked for."""
    _, transport = serve(lambda _: partial(b"23", f"bytes 2-3/{total}"))
    with stream(transport, 2, end) as blob:
        assert (blob.start, blob.ranged) == (2, True)
        assert blob.read(10) == b"23"
        with pytest.raises(Shortened):
            blob.read(10)


def ranged(transport: Transport, start: int, end: int | None) -> BlobStream:
    headers = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
    request = Request("GET", transport.base.at("/v2/blob"), "a:pull", headers)
    return transport.open(request, start, end)


@pytest.mark.parametrize("status", [400, 416, 501])
def test_a_server_that_refuses_range_is_asked_without_and_remembered(
    serve: Serve, status: int
) -> None:
    server, transport = serve(
        lambda seen: [reply(status) if "range" in seen.headers else reply(200, b"0123456789")]
    )
    for start, end in ((2, 5), (5, None), (0, 1)):
        with ranged(transport, start, end) as blob:
            assert (blob.start, blob.total, blob.ranged) == (0, 10, False)
            assert read_all(blob) == b"0123456789"
    asked = [seen.headers.get("range") for seen in server.seen]
    assert asked == ["bytes=2-4", None, None, None]


def test_storage_that_refuses_range_is_asked_without(serve: Serve) -> None:
    storage, _ = serve(
        lambda seen: [reply(400) if "range" in seen.headers else reply(200, b"0123456789")]
    )
    _, transport = serve(lambda _: [reply(307, Location=f"{storage.url}/x?sig=1")])
    for _ in range(2):
        with ranged(transport, 2, 5) as blob:
            assert read_all(blob) == b"0123456789"
    assert "range" not in storage.seen[-1].headers


@pytest.mark.parametrize("status", [401, 403, 404, 405, 410, 503])
def test_another_refusal_is_not_one_of_range(serve: Serve, status: int) -> None:
    server, transport = serve(lambda _: [reply(status)], retries=0)
    with pytest.raises(EpochfsError):
        ranged(transport, 2, 5)
    assert len(server.seen) == 1


def test_a_range_beyond_the_end_is_no_refusal_of_range(serve: Serve) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.headers.get("range") == "bytes=0-1":
            return partial(b"01", "bytes 0-1/2")
        return [reply(416, Content_Range="bytes */2")]

    server, transport = serve(script)
    with pytest.raises(ProtocolViolation, match="416"):
        ranged(transport, 2, 5)
    assert len(server.seen) == 1
    with ranged(transport, 0, 2) as blob:
        assert blob.ranged


def test_a_refusal_that_is_not_of_range_is_not_remembered_as_one(serve: Serve) -> None:
    """One blob that is shorter than it should be must not cost all others their ranges."""
    answers = iter(([reply(416)], [reply(200, b"01")], [reply(400)], [reply(400)]))
    server, transport = serve(lambda _: next(answers))
    with ranged(transport, 2, 5) as blob:
        assert (blob.start, blob.total) == (0, 2)
    with pytest.raises(ProtocolViolation, match="400"):
        ranged(transport, 2, 5)
    asked = [seen.headers.get("range") for seen in server.seen]
    assert asked == ["bytes=2-4", None] * 2


def test_a_stream_that_breaks_off_is_unavailable(serve: Serve) -> None:
    def cut(_: Seen) -> Iterator[Step]:
        yield reply(200, b"01234", Content_Length="10")
        raise Close

    _, transport = serve(cut)
    with stream(transport) as blob:
        assert blob.read(100) == b"01234"
        with pytest.raises(Unavailable) as caught:
            blob.read(100)
    assert type(caught.value) is Unavailable


@pytest.mark.parametrize("ending", [Close, Reset])
def test_a_chunked_stream_that_breaks_off_is_unavailable(
    serve: Serve, ending: type[Exception]
) -> None:
    def cut(_: Seen) -> Iterator[Step]:
        yield CHUNKED + b"5\r\n01234\r\n"
        yield 0.1
        raise ending

    _, transport = serve(cut)
    with stream(transport) as blob:
        assert blob.total is None
        assert blob.read(100) == b"01234"
        with pytest.raises(Unavailable):
            blob.read(100)


def test_more_bytes_than_announced_are_a_violation(serve: Serve) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 2-4/10\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, transport = serve(lambda _: [head + b"4\r\n2345\r\n0\r\n\r\n"])
    with stream(transport, 2, 5) as blob, pytest.raises(ProtocolViolation):
        read_all(blob)


def test_fewer_bytes_than_announced_are_unavailable(serve: Serve) -> None:
    head = b"HTTP/1.1 206 OK\r\nContent-Range: bytes 2-4/10\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, transport = serve(lambda _: [head + b"2\r\n23\r\n0\r\n\r\n"])
    with stream(transport, 2, 5) as blob, pytest.raises(Unavailable):
        read_all(blob)


def test_a_stream_may_last_longer_than_the_time_limit(serve: Serve) -> None:
    def slow(_: Seen) -> Iterator[Step]:
        yield HEADERS + b"Content-Length: 5\r\n\r\n"
        for _ in range(5):
            yield TIMEOUT / 2
            yield b"a"

    _, transport = serve(slow)
    with stream(transport) as blob:
        assert read_all(blob) == b"aaaaa"


def test_a_reader_may_pause_longer_than_the_time_limit(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200, b"0123456789")])
    with stream(transport) as blob:
        blob.read(1)
        time.sleep(TIMEOUT + 0.2)
        assert blob.read(1) == b"1"


def test_a_stream_that_stalls_meets_the_time_limit(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200, b"01234", Content_Length="10"), 60.0])
    with stream(transport) as blob:
        blob.read(100)
        with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
            blob.read(100)


def test_closing_a_stream_wakes_its_reader(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200, b"01234", Content_Length="10"), 60.0], timeout=60.0)
    blob = stream(transport)
    blob.read(100)
    closer = threading.Timer(0.2, blob.close)
    closer.start()
    with at_most(5), pytest.raises(Unavailable):
        blob.read(100)
    with pytest.raises(Unavailable):
        blob.read(100)
    blob.close()
    assert transport._watchdog._watches == set()


def test_a_stream_read_to_its_end_gives_its_connection_back(serve: Serve) -> None:
    server, transport = serve(lambda _: [reply(200, b"0123456789")])
    for _ in range(3):
        with stream(transport) as blob:
            read_all(blob)
    assert server.connections == 1


def test_a_late_time_limit_spares_who_has_the_connection_now(serve: Serve) -> None:
    def script(seen: Seen) -> list[Step]:
        return [reply(200, b"0123456789")] if seen.path == "/v2/blob" else [0.3, reply(200)]

    server, transport = serve(script)
    blob = stream(transport)
    read_all(blob)
    blob._answer.watch.deadline = time.monotonic() + 0.1
    with transport._watchdog._lock:
        transport._watchdog._wake_by(0)
    assert get(transport).status == 200
    assert server.connections == 1


def test_streams_open_at_once_do_not_wait_for_each_other(serve: Serve) -> None:
    server, transport = serve(lambda seen: [reply(200, b"0123456789")], pool_size=2, timeout=5.0)
    blobs = [stream(transport) for _ in range(12)]
    assert [read_all(blob) for blob in blobs] == [b"0123456789"] * 12
    for blob in blobs:
        blob.close()
    assert server.connections == 12
