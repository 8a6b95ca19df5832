"""The transport against servers that break off, refuse, and send too much."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate

import pytest
from support.scripted import Close, Reset, Seen, Step, at_most, in_turn, reply
from support.transports import (
    ANYONE,
    CHUNKED,
    HEADERS,
    Serve,
    endless,
    fails,
    get,
    serving,
    stream,
)

from epochfs.client.transport import Request, Transport
from epochfs.config import TransportOptions
from epochfs.errors import (
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    Unsupported,
)
from epochfs.oci.manifests import MAX_SIZE

serve = pytest.fixture(serving)


# Attempts


def test_a_reset_before_the_headers_is_tried_again(serve: Serve) -> None:
    server, transport = serve(
        in_turn(fails(Reset), fails(Reset), fails(Reset), [reply(200, b"ok")]), timeout=5.0
    )
    assert get(transport).body == b"ok"
    assert len(server.seen) == 4
    assert (transport.stats.requests, transport.stats.retries) == (4, 3)
    assert transport.stats.bytes_received == 2


def test_resets_without_end_are_unavailable(serve: Serve) -> None:
    server, transport = serve(lambda _: fails(Reset), retries=2, timeout=5.0)
    with pytest.raises(Unavailable) as caught:
        get(transport)
    assert type(caught.value) is Unavailable
    assert len(server.seen) == 3


def test_a_body_cut_short_is_tried_again(serve: Serve) -> None:
    def cut() -> Iterator[Step]:
        yield reply(200, b"half", Content_Length="8")
        raise Close

    _, transport = serve(in_turn(cut(), [reply(200, b"all of it")]), timeout=5.0)
    assert get(transport).body == b"all of it"


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nX: y", b"HTTP/1"])
def test_headers_cut_short_are_no_answer(serve: Serve, head: bytes) -> None:
    def cut(_: Seen) -> Iterator[Step]:
        yield head
        raise Close

    _, transport = serve(cut, retries=1, timeout=5.0)
    with pytest.raises((Unavailable, ProtocolViolation)):
        get(transport)


def test_a_chunked_body_ended_early_is_no_body(serve: Serve) -> None:
    def cut(_: Seen) -> Iterator[Step]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n"
        raise Close

    _, transport = serve(cut, retries=1, timeout=5.0)
    with pytest.raises(Unavailable):
        get(transport)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_burst_of_failures_is_waited_out(serve: Serve, status: int) -> None:
    _, transport = serve(in_turn([reply(status)], [reply(status)], [reply(200)]), timeout=5.0)
    assert get(transport).status == 200


def test_failures_without_end_are_unavailable(serve: Serve) -> None:
    server, transport = serve(lambda _: [reply(503)], retries=2, timeout=5.0)
    with pytest.raises(Unavailable, match="503"):
        get(transport)
    assert len(server.seen) == 3


def test_what_must_not_be_repeated_is_not(serve: Serve) -> None:
    for failure in (lambda _: fails(Reset), lambda _: [reply(503)]):
        server, transport = serve(failure, timeout=5.0)
        with pytest.raises(Unavailable):
            transport.fetch(Request("POST", transport.base, body=b"", repeatable=False))
        assert len(server.seen) == 1


def test_retry_after_is_waited_for(serve: Serve) -> None:
    _, transport = serve(in_turn([reply(429, Retry_After="1")], [reply(200)]), timeout=5.0)
    started = time.monotonic()
    assert get(transport).status == 200
    assert time.monotonic() - started >= 1


@pytest.mark.parametrize("header", ["-1", "soon", "", "0", formatdate(0, usegmt=True)])
def test_a_retry_after_that_says_nothing_is_passed_over(serve: Serve, header: str) -> None:
    _, transport = serve(in_turn([reply(429, Retry_After=header)], [reply(200)]), timeout=5.0)
    with at_most(4):
        assert get(transport).status == 200


@pytest.mark.parametrize("header", ["86400", "9" * 400, formatdate(2**32, usegmt=True)])
def test_a_retry_after_beyond_the_time_limit_ends_it_at_once(serve: Serve, header: str) -> None:
    server, transport = serve(lambda _: [reply(429, Retry_After=header)], timeout=5.0)
    with at_most(4), pytest.raises(Unavailable):
        get(transport)
    assert len(server.seen) == 1


def test_a_refused_connection_is_unavailable_soon() -> None:
    transport = Transport("http://127.0.0.1:1", ANYONE, TransportOptions())
    with at_most(2), pytest.raises(Unavailable, match=r"http://127.0.0.1:1/v2/x: .*refused"):
        get(transport)


def test_a_server_that_comes_up_in_a_moment_is_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    transport = Transport(f"http://127.0.0.1:{port}", ANYONE, TransportOptions())

    def come_up() -> None:
        time.sleep(0.3)
        with socket.create_server(("127.0.0.1", port)) as listener:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(reply(200))
            connection.close()

    thread = threading.Thread(target=come_up)
    thread.start()
    assert get(transport).status == 200
    thread.join()


def test_a_connection_the_server_closed_meanwhile_is_replaced(serve: Serve) -> None:
    def once(_: Seen) -> Iterator[Step]:
        yield reply(200)
        raise Close

    server, transport = serve(once)
    get(transport)
    time.sleep(0.05)
    assert get(transport).status == 200
    assert transport.stats.retries == 0
    assert server.connections == 2


def test_connections_are_used_again(serve: Serve) -> None:
    server, transport = serve(lambda seen: [reply(404 if "missing" in seen.path else 200, b"x")])
    for path in ("/v2/a", "/v2/missing", "/v2/b"):
        get(transport, path)
    transport.fetch(Request("HEAD", transport.base.at("/v2/none"), body=None))
    assert server.connections == 1


# Bounds


def test_a_body_over_the_limit_is_too_large(serve: Serve) -> None:
    answers = ([reply(200, b"12345678")], [CHUNKED, b"8\r\n12345678\r\n0\r\n\r\n"])
    for answer in answers:
        _, transport = serve(in_turn(answer))
        assert get(transport, limit=8).body == b"12345678"
        _, transport = serve(in_turn(answer))
        with pytest.raises(TooLarge):
            get(transport, limit=7)


@pytest.mark.parametrize("length", [MAX_SIZE + 1, 10**18 - 1])
def test_a_length_of_no_content_is_too_large_for_a_document_and_else_a_violation(
    serve: Serve, length: int
) -> None:
    _, transport = serve(lambda _: [HEADERS + b"Content-Length: %d\r\n\r\n" % length])
    with pytest.raises(TooLarge, match=f"{length} bytes, over the limit"):
        get(transport)
    head = Request("HEAD", transport.base.at("/v2/x"))
    for ask in (lambda: transport.fetch(head), lambda: stream(transport)):
        with pytest.raises(ProtocolViolation, match=f"not a Content-Length: {length}"):
            ask()


def test_an_endless_body_is_too_large(serve: Serve) -> None:
    def script(_: Seen) -> Iterator[Step]:
        yield CHUNKED
        yield from endless(b"10000\r\n" + b"a" * 65536 + b"\r\n")

    _, transport = serve(script, timeout=10.0)
    with pytest.raises(TooLarge):
        get(transport)
    assert transport.stats.bytes_received < 2 * 1024 * 1024


@pytest.mark.parametrize("status", [404, 401, 302, 503])
def test_of_an_endless_error_64_kib_are_read(serve: Serve, status: int) -> None:
    def script(_: Seen) -> Iterator[Step]:
        yield f"HTTP/1.1 {status} No\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        yield from endless(b"10000\r\n" + b"a" * 65536 + b"\r\n")

    _, transport = serve(script, retries=0, timeout=10.0)
    try:
        assert len(get(transport).body) == 65536
    except Unavailable:
        assert status == 503
    assert transport.stats.bytes_received == 65536


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_an_encoded_body_is_refused_unless_it_is_hashed(serve: Serve, encoding: str) -> None:
    """Registries say gzip of a layer that is one: its bytes are what the digest is of."""
    server, transport = serve(lambda _: [reply(200, b"x", Content_Encoding=encoding)])
    with pytest.raises(ProtocolViolation, match="encoded"):
        get(transport)
    assert transport.fetch(Request("GET", transport.base, hashed=True)).body == b"x"
    with stream(transport) as blob:
        assert blob.read(10) == b"x"
    assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}


@pytest.mark.parametrize("banner", [b"SSH-2.0-OpenSSH_9.2\r\n", b"220 mail.example ESMTP\r\n"])
def test_a_server_of_another_protocol_that_waits_for_us_is_told_at_once(
    serve: Serve, banner: bytes
) -> None:
    _, transport = serve(lambda _: iter([banner, 60.0]))
    with pytest.raises(ProtocolViolation, match="the answer is not HTTP"):
        get(transport)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 many OK\r\n\r\n",
        HEADERS + b"X: y\r\n" * 200 + b"\r\n",
        HEADERS + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        HEADERS + b"Content-Length: -5\r\n\r\n",
        HEADERS + b"Content-Length: many\r\n\r\n",
    ],
    ids=["no HTTP", "no status", "headers", "long header", "negative", "no number"],
)
def test_malformed_answers_are_violations(serve: Serve, answer: bytes) -> None:
    server, transport = serve(lambda _: [answer])
    with pytest.raises(ProtocolViolation):
        get(transport)
    assert len(server.seen) == 1


# Statuses


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [
        (401, "UNAUTHORIZED", Denied),
        (403, "DENIED", Denied),
        (404, "", NotFound),
        (400, "MANIFEST_UNKNOWN", NotFound),
        (405, "UNSUPPORTED", Unsupported),
        (400, "UNSUPPORTED", Unsupported),
        (501, "", Unsupported),
        (413, "", TooLarge),
        (503, "", Unavailable),
        (400, "MANIFEST_INVALID", ProtocolViolation),
        (302, "", ProtocolViolation),
        (204, "", ProtocolViolation),
        (600, "", ProtocolViolation),
    ],
)
def test_what_a_status_means(
    serve: Serve, status: int, code: str, error: type[EpochfsError]
) -> None:
    body = json.dumps({"errors": [{"code": code, "message": "why"}]} if code else {}).encode()
    _, transport = serve(lambda _: [reply(status, b"" if status == 204 else body)], retries=0)
    with pytest.raises(error) as caught:
        raise transport.refusal(get(transport))
    assert str(status) in str(caught.value)
    assert code in str(caught.value)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>\n\x1b[2J", b'{"errors": 7}', b'{"errors": [7, {"code": 3}]}', b"[" * 60_000],
)
def test_any_error_body_makes_one_safe_line(serve: Serve, body: bytes) -> None:
    _, transport = serve(lambda _: [reply(404, body)])
    text = str(transport.refusal(get(transport, "/v2/" + "x" * 5000)))
    assert text.isprintable()
    assert len(text) < 1000
