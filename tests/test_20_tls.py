"""Which certificates are asked for, and what is said of those that do not verify."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripted import ScriptedServer, Seen, Step, at_most, reply
from transports import (
    ANYONE,
    HEADERS,
    SLACK,
    TIMEOUT,
    endless,
    get,
    serving,
)

from epochfs.config import TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    Unavailable,
    UsageError,
)
from epochfs.transport import Transport

serve = pytest.fixture(serving)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("tls")
    key, cert = directory / "key.pem", directory / "cert.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    extra = "-subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), *extra.split(), "-keyout", key, "-out", cert],
        check=True,
        capture_output=True,
    )
    both = directory / "both.pem"
    both.write_bytes(key.read_bytes() + cert.read_bytes())
    return both


@pytest.fixture
def tls_server(certificate: Path) -> Iterator[ScriptedServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with ScriptedServer(lambda _: [reply(200, b"ok")], context) as server:
        yield server


def test_loopback_is_not_verified_unless_asked_for(tls_server: ScriptedServer) -> None:
    transport = Transport(tls_server.url, ANYONE, TransportOptions())
    assert get(transport).body == b"ok"
    strict = Transport(tls_server.url, ANYONE, TransportOptions(tls_verify=True))
    with pytest.raises(Unavailable, match=r"--ca-cert.*--tls-skip-verify"):
        get(strict)


def test_a_given_authority_is_trusted(tls_server: ScriptedServer, certificate: Path) -> None:
    options = TransportOptions(ca_cert=certificate, tls_verify=True)
    assert get(Transport(tls_server.url, ANYONE, options)).body == b"ok"


def test_a_given_authority_is_asked_for_on_loopback_too(
    tls_server: ScriptedServer, certificate: Path, tmp_path: Path
) -> None:
    options = TransportOptions(ca_cert=certificate)
    url = tls_server.url.replace("127.0.0.1", "localhost")
    with pytest.raises(Unavailable, match="certificate"):
        get(Transport(url, ANYONE, options))


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_an_unusable_authority_is_the_users_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError):
        Transport("https://127.0.0.1:1", ANYONE, TransportOptions(ca_cert=path))


def test_https_to_a_server_without_it_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            connection.recv(4096)
            connection.sendall(reply(400))
            connection.close()

        threading.Thread(target=answer).start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(Unavailable, match="is it http"):
            get(Transport(url, ANYONE, TransportOptions(timeout=5.0)))


def test_a_stalled_handshake_meets_the_time_limit() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}"
        transport = Transport(url, ANYONE, TransportOptions(timeout=TIMEOUT))
        with at_most(TIMEOUT + SLACK), pytest.raises((DeadlineExceeded, Unavailable)):
            get(transport)


def test_a_tls_body_that_stalls_meets_the_time_limit(certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def script(_: Seen) -> Iterator[Step]:
        yield HEADERS + b"Content-Length: 99999\r\n\r\n"
        yield from endless(b"a", 0.1)

    with ScriptedServer(script, context) as server:
        transport = Transport(server.url, ANYONE, TransportOptions(timeout=TIMEOUT))
        with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
            get(transport)
