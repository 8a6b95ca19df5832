"""Every operation ends in time, however the server stalls."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator

import pytest
from support.scripted import Seen, Step, at_most, in_turn, reply, until
from support.transports import (
    ANYONE,
    CHUNKED,
    HEADERS,
    SLACK,
    TIMEOUT,
    Serve,
    endless,
    get,
    serving,
    stream,
)

from epochfs.client.transport import Transport
from epochfs.config import TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    EpochfsError,
    Unavailable,
)

serve = pytest.fixture(serving)


@pytest.mark.parametrize(
    "steps",
    [
        lambda: iter([60.0]),
        lambda: endless(b"H", 0.1),
        lambda: iter([HEADERS, 60.0]),
        lambda: (step for part in (HEADERS, b"X: ") for step in (part,)),
        lambda: iter([HEADERS + b"Content-Length: 9\r\n\r\n", 60.0]),
    ],
    ids=["silence", "status drips", "headers stall", "headers end nowhere", "body stalls"],
)
def test_a_stalling_server_meets_the_time_limit(serve: Serve, steps: Callable[[], object]) -> None:
    def script(_: Seen) -> Iterator[Step]:
        yield from steps()  # type: ignore[misc]
        yield 60.0

    _, transport = serve(script)
    with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
        get(transport)


@pytest.mark.parametrize(
    ("start", "drip"),
    [
        (HEADERS, b"X-A: b\r\n"),
        (HEADERS + b"X-Long: ", b"a"),
        (HEADERS + b"Content-Length: 999999\r\n\r\n", b"a"),
        (HEADERS + b"Connection: close\r\n\r\n", b"a"),
        (CHUNKED, b"1\r\na\r\n"),
        (CHUNKED + b"1;extension=", b"a"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=[
        "headers",
        "one header",
        "body",
        "body of no length",
        "chunks",
        "chunk extension",
        "interim answers",
    ],
)
def test_a_dripping_server_meets_the_time_limit(serve: Serve, start: bytes, drip: bytes) -> None:
    def script(_: Seen) -> Iterator[Step]:
        yield start
        yield from endless(drip, 0.1)

    _, transport = serve(script)
    with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
        get(transport)


def test_redirects_share_the_time_limit(serve: Serve) -> None:
    def script(seen: Seen) -> Iterator[Step]:
        yield 0.2
        yield reply(302, Location=f"{seen.path}x")

    _, transport = serve(script)
    with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
        get(transport)


def test_a_token_server_shares_the_time_limit(serve: Serve) -> None:
    def script(seen: Seen) -> Iterator[Step]:
        if seen.path == "/token":
            yield 60.0
        challenge = f'Bearer realm="http://{seen.headers["host"]}/token"'
        yield reply(401, WWW_Authenticate=challenge)

    _, transport = serve(script)
    with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
        get(transport)


def test_pauses_between_attempts_share_the_time_limit(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(503)], retries=1000)
    with at_most(TIMEOUT + SLACK), pytest.raises(Unavailable):
        get(transport)


def test_a_resolver_that_hangs_meets_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    real = socket.getaddrinfo

    def hanging(*args: object, **options: object) -> object:
        if options.get("flags") != socket.AI_NUMERICHOST:
            released.wait(10)
        return real(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", hanging)
    transport = Transport("http://reg.invalid", ANYONE, TransportOptions(timeout=TIMEOUT))
    with at_most(TIMEOUT + SLACK), pytest.raises((Unavailable, DeadlineExceeded)):
        get(transport)
    released.set()


def test_every_address_of_a_name_is_tried(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server, _ = serve(lambda _: [reply(200, b"ok")])
    port = int(server.host.rpartition(":")[2])
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", address)
        for address in (("127.0.0.1", 1), ("127.0.0.1", port))
    ]

    def resolving(*_: object, **options: object) -> object:
        if options.get("flags") == socket.AI_NUMERICHOST:
            raise socket.gaierror
        return addresses

    monkeypatch.setattr(socket, "getaddrinfo", resolving)
    assert get(Transport("http://reg.invalid", ANYONE, TransportOptions())).body == b"ok"


def test_a_name_that_does_not_resolve_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with at_most(2), pytest.raises(Unavailable, match="does not resolve"):
        get(Transport("http://reg.invalid", ANYONE, TransportOptions()))


def test_a_listener_that_never_accepts_meets_the_time_limit() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        transport = Transport(url, ANYONE, TransportOptions(timeout=TIMEOUT))
        with at_most(TIMEOUT + SLACK), pytest.raises((Unavailable, DeadlineExceeded)):
            get(transport)
        for filler in fillers:
            filler.close()


def test_closing_the_transport_ends_what_is_blocked(serve: Serve) -> None:
    server, transport = serve(lambda _: [60.0], timeout=60.0)
    errors: list[EpochfsError] = []

    def wait() -> None:
        with pytest.raises(Unavailable) as caught:
            get(transport)
        errors.append(caught.value)

    threads = [threading.Thread(target=wait) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: len(server.seen) == 8)
    transport.close()
    with at_most(5):
        for thread in threads:
            thread.join(5)
    assert len(errors) == 8
    with pytest.raises(Unavailable):
        get(transport)


def test_the_watchdog_ends_with_the_transport(serve: Serve) -> None:
    _, transport = serve(lambda _: [reply(200)])
    get(transport)
    transport.close()
    assert transport._watchdog._thread is not None
    transport._watchdog._thread.join(1)
    assert not transport._watchdog._thread.is_alive()


def test_finished_operations_leave_nothing_behind(serve: Serve) -> None:
    _, transport = serve(in_turn([reply(200, b"x")], [reply(404)], [reply(200, b"x")]))
    get(transport)
    get(transport)
    with stream(transport) as blob:
        blob.read(1)
    assert transport._watchdog._watches == set()
