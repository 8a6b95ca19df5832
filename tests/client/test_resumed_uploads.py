"""Uploads that break: resumed where the registry can say how far it is, else sent again; never a
success that is none.
"""

from __future__ import annotations

import io
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest
from conftest import DockerRegistry
from support.builders import random_bytes
from support.clients import Connect, connecting
from support.cuttingproxy import CuttingProxy
from support.listeners import Listener
from support.registries import EmbeddedRegistry
from support.scripted import Seen, Step, at_most, listening, reply

from epochfs.client import RegistryClient
from epochfs.client.transport import Watch
from epochfs.config import Credentials, TransportOptions
from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    ProtocolViolation,
    TooLarge,
    Unavailable,
)
from epochfs.oci.names import Digest

PART = 50_000
BLOB = random_bytes(4 * PART)
DIGEST = Digest.of(BLOB)

connect = pytest.fixture(connecting)

Fault = Callable[["Breaking", Request], Response]


@pytest.fixture(autouse=True)
def _small_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.node.get_closest_marker("registry"):
        return
    for module in ("uploads", "upload_sessions"):
        monkeypatch.setattr(f"epochfs.client.{module}.PART_BYTES", PART)
    monkeypatch.setattr("epochfs.client.upload_sessions._PROGRESS_BYTES", 5_000)


class Breaking(EmbeddedRegistry):
    """Answers what carries content by one fault after the other, and then as it should."""

    def __init__(self, *faults: Fault, behaviour: Behaviour = Behaviour()) -> None:  # noqa: B008
        super().__init__(behaviour)
        self.faults = list(faults)
        self.received: list[int] = []

    def respond(self, request: Request) -> Response:
        if request.method not in ("PATCH", "PUT"):
            return super().respond(request)
        self.received.append(len(request.body))
        return self.faults.pop(0)(self, request) if self.faults else super().respond(request)

    def take(self, request: Request) -> Response:
        return EmbeddedRegistry.respond(self, request)


def broken_after(kept: int) -> Fault:
    """The connection is reset when so many bytes have arrived."""

    def fault(registry: Breaking, request: Request) -> Response:
        if request.method == "PATCH":
            registry.take(replace(request, body=request.body[:kept]))
        raise ConnectionResetError

    return fault


def answering(status: int, **headers: str) -> Fault:
    return lambda *_: Response(status).having(**headers)


def losing(kept: int) -> Fault:
    """So many bytes are kept, and all are acknowledged."""
    return lambda registry, request: registry.take(replace(request, body=request.body[:kept]))


def push(registry: EmbeddedRegistry, *, retries: int = 3, **options: object) -> None:
    settings = TransportOptions(timeout=5.0, retries=retries)
    with closing(RegistryClient(registry.url, options=settings, **options)) as client:  # type: ignore[arg-type]
        client.put_blob("a", DIGEST, io.BytesIO(BLOB), len(BLOB))
        with client.get_blob("a", DIGEST) as stream:
            assert b"".join(iter(lambda: stream.read(1 << 20), b"")) == BLOB


def ranges(registry: EmbeddedRegistry) -> list[str]:
    patches = [one for one in registry.requests if one.method == "PATCH"]
    return [one.headers.get("content-range", "") for one in patches]


# --- resumed ----------------------------------------------------------------------------------


def test_a_large_blob_is_sent_in_one_stream() -> None:
    with Breaking() as registry:
        push(registry)
        writes = [one.method for one in registry.requests if one.method not in ("GET", "HEAD")]
        assert writes == ["PUT", "POST", "PATCH", "PUT"]
        assert ranges(registry) == [""]


def test_a_small_blob_takes_two_requests_once_the_first_way_is_known_not_to_work() -> None:
    with EmbeddedRegistry() as registry, closing(RegistryClient(registry.url)) as client:
        client.put_blob("a", Digest.of(b"first"), b"first", 5)
        registry.forget_requests()
        client.put_blob("a", Digest.of(b"small"), b"small", 5)
        assert [one.method for one in registry.requests] == ["POST", "PUT"]


def test_a_broken_upload_goes_on_where_the_registry_is() -> None:
    with Breaking(answering(405), broken_after(70_000)) as registry:
        push(registry)
        assert ranges(registry) == ["", "70000-119999", "120000-169999", "170000-199999"]
        assert registry.count("POST") == 1


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_registry_that_fails_for_a_moment_is_sent_the_rest(status: int) -> None:
    with Breaking(answering(405), broken_after(60_000), answering(status)) as registry:
        push(registry)
        assert ranges(registry)[:3] == ["", "60000-109999", "60000-109999"]


def test_a_registry_that_limits_requests_is_given_the_time_that_it_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(Watch, "sleep", lambda _, seconds: pauses.append(seconds))
    with Breaking(answering(405), answering(429, Retry_After="3")) as registry:
        push(registry)
    assert pauses == [3.0]


def test_one_that_asks_for_more_time_than_there_is_has_failed() -> None:
    limits = answering(429, Retry_After="3600")
    with (
        Breaking(answering(405), limits) as registry,
        at_most(4),
        pytest.raises(Unavailable, match="limits requests"),
    ):
        push(registry)


def test_progress_is_given_more_attempts() -> None:
    faults = [broken_after(15_000) for _ in range(10)]
    with Breaking(answering(405), *faults) as registry:
        push(registry, retries=1)
        assert registry.count("POST") == 1


def test_a_registry_that_lost_what_it_acknowledged_is_asked_how_far_it_is() -> None:
    faults = answering(405), broken_after(0), losing(30_000)
    with Breaking(*faults) as registry:
        push(registry)
        assert ranges(registry)[:4] == ["", "0-49999", "50000-99999", "30000-79999"]
        assert registry.count("POST") == 1


# --- sent again -------------------------------------------------------------------------------


def test_where_a_session_says_nothing_the_blob_is_sent_again() -> None:
    behaviour = Behaviour(strict_uploads=False)
    faults = answering(405), broken_after(70_000)
    with Breaking(*faults, behaviour=behaviour) as registry:
        push(registry)
        assert ranges(registry)[:2] == ["", "0-49999"]
        assert registry.count("POST") == 2


def test_a_small_blob_that_broke_is_sent_again_in_a_new_session() -> None:
    with (
        Breaking(answering(405), broken_after(2)) as registry,
        closing(RegistryClient(registry.url)) as client,
    ):
        client.put_blob("a", Digest.of(b"small"), b"small", 5)
        assert client.blob_exists("a", Digest.of(b"small"))
        assert registry.received == [5, 5, 5]
        assert registry.count("POST") == 2


def test_a_single_put_that_broke_is_repeated_where_there_are_no_sessions() -> None:
    behaviour = replace(EPOCH, auth="", uploads=False)
    with Breaking(broken_after(100), answering(503), behaviour=behaviour) as registry:
        push(registry)
        assert registry.received == [len(BLOB)] * 3


def test_a_blob_whose_last_answer_was_lost_is_not_sent_again() -> None:
    def lost(registry: Breaking, request: Request) -> Response:
        assert registry.take(request).status == 201
        raise ConnectionResetError

    def passed(registry: Breaking, request: Request) -> Response:
        return registry.take(request)

    with Breaking(answering(405), passed, lost) as registry:
        push(registry)
        assert registry.received == [len(BLOB), len(BLOB), 0]


# --- given up ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, len(BLOB)], ids=["small", "large"])
@pytest.mark.parametrize("fault", [broken_after(0), answering(500)], ids=["reset", "500"])
def test_without_progress_an_upload_fails(fault: Fault, size: int) -> None:
    options = TransportOptions(timeout=5.0, retries=2)
    blob = BLOB[:size]
    with (
        Breaking(answering(405), *[fault] * 100) as registry,
        closing(RegistryClient(registry.url, options=options)) as client,
    ):
        with at_most(5), pytest.raises(Unavailable):
            client.put_blob("a", Digest.of(blob), blob, size)
        assert len(registry.received) == 4
        assert not client.blob_exists("a", Digest.of(blob))


def test_a_session_that_is_lost_each_time_is_begun_a_few_times_only() -> None:
    behaviour = Behaviour(strict_uploads=False)
    faults = [fault for _ in range(50) for fault in (losing(PART), broken_after(100))]
    with Breaking(answering(405), *faults, behaviour=behaviour) as registry:
        with pytest.raises(EpochfsError):
            push(registry, retries=2)
        assert registry.count("POST") <= 6


def test_a_body_that_cannot_be_rewound_is_sent_once() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    with (
        Breaking(broken_after(100)) as registry,
        closing(RegistryClient(registry.url)) as client,
    ):
        with pytest.raises(Unavailable):
            client.put_blob("a", DIGEST, Pipe(BLOB), len(BLOB))
        assert registry.received == [len(BLOB)]


@pytest.mark.parametrize("blob", [b"small", BLOB], ids=["small", "large"])
def test_a_registry_with_a_limit_says_that_the_blob_is_too_large(
    connect: Connect, blob: bytes
) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.method == "POST":
            return [reply(202, Location="/v2/a/blobs/uploads/1")]
        return [reply(413 if "/uploads/" in seen.path else 405)]

    _, client = connect(script)
    with pytest.raises(TooLarge):
        client.put_blob("a", Digest.of(blob), blob, len(blob))


@pytest.mark.parametrize("way", ["single", "whole", "streamed"])
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(201, Docker_Content_Digest=str(Digest.of(b"other"))), ContentMismatch),
        (reply(200), ProtocolViolation),
        (reply(202), ProtocolViolation),
        (reply(204), ProtocolViolation),
    ],
    ids=["another digest", "200", "202", "204"],
)
def test_what_does_not_say_that_the_blob_is_stored_is_no_success(
    connect: Connect, way: str, answer: bytes, error: type[Exception]
) -> None:
    def script(seen: Seen) -> list[Step]:
        if "/uploads/" not in seen.path:
            return [answer if way == "single" else reply(405)]
        if seen.method == "PUT":
            return [answer]
        return [reply(202, Location="/v2/a/blobs/uploads/1")]

    _, client = connect(script)
    blob = BLOB if way == "streamed" else b"small"
    with pytest.raises(error):
        client.put_blob("a", Digest.of(blob), blob, len(blob))


# --- tokens -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_a_token_that_expires_between_the_parts_is_renewed(number: int) -> None:
    def expired(registry: Breaking, request: Request) -> Response:
        registry.revoke_tokens()
        return registry.take(request)

    def passed(registry: Breaking, request: Request) -> Response:
        return registry.take(request)

    faults = [passed] * number
    behaviour = Behaviour(auth="bearer")
    login = Credentials(username="u", password="p")
    with Breaking(broken_after(0), *faults, expired, behaviour=behaviour) as registry:
        push(registry, credentials=login)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_a_registry_says_in_the_middle_of_a_large_body_is_heard(
    scheme: str, self_signed: ssl.SSLContext
) -> None:
    """It closes the connection while the client still sends."""

    def refuse(connection: socket.socket) -> None:
        if scheme == "https":
            connection = self_signed.wrap_socket(connection, server_side=True)
        with connection:
            connection.recv(1000)
            connection.sendall(reply(413, Connection="close"))

    big = bytes(20_000_000)
    with listening(refuse) as port:
        client = RegistryClient(f"{scheme}://127.0.0.1:{port}")
        with closing(client), pytest.raises(TooLarge):
            client.put_blob("a", Digest.of(big), big, len(big))


class Deaf(Listener):
    """Refuses requests by their heads; it does not read the body of a PUT, nor close on it."""

    ended = threading.Event()

    def _serve(self, connection: socket.socket) -> None:
        while head := connection.recv(1000):
            connection.sendall(reply(413))
            if head.startswith(b"PUT"):
                self.ended.wait(20)
                return


def test_a_registry_that_has_answered_is_sent_no_more() -> None:
    big = bytes(20_000_000)
    with Deaf() as deaf, closing(RegistryClient(f"http://{deaf.host}")) as client, at_most(5):
        with pytest.raises(TooLarge):
            client.put_blob("a", Digest.of(big), big, len(big))
        deaf.ended.set()


# --- a real registry --------------------------------------------------------------------------


@pytest.mark.registry
@pytest.mark.parametrize("size", [3_000_000, 30_000_000])
def test_an_upload_to_dockers_registry_survives_a_cut(
    docker_registry: DockerRegistry, size: int
) -> None:
    """It ends a session whose connection broke, so the blob is sent again."""
    data, name = random_bytes(size), f"cut/{size}"
    with (
        CuttingProxy(docker_registry.host, [size // 2, size // 2]) as proxy,
        closing(RegistryClient(proxy.url)) as client,
    ):
        client.put_blob(name, Digest.of(data), io.BytesIO(data), size)
        assert proxy.cuts == []
        assert client.blob_size(name, Digest.of(data)) == size


@pytest.mark.registry
def test_an_upload_to_dockers_registry_that_is_cut_each_time_fails(
    docker_registry: DockerRegistry,
) -> None:
    data = random_bytes(3_000_000)
    options = TransportOptions(retries=2)
    with (
        CuttingProxy(docker_registry.host, [20_000] * 100) as proxy,
        closing(RegistryClient(proxy.url, options=options)) as client,
    ):
        with pytest.raises(Unavailable):
            client.put_blob("cut/always", Digest.of(data), data, len(data))
        assert not client.blob_exists("cut/always", Digest.of(data))
