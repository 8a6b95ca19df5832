"""Which certificates are asked for and shown, and what is said of those that do not verify."""

from __future__ import annotations

import datetime
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from support import certificates
from support.scripted import ScriptedServer, Seen, Step, at_most, listening, reply
from support.transports import (
    ANYONE,
    HEADERS,
    SLACK,
    TIMEOUT,
    endless,
    get,
)

from epochfs.client.transport import Transport
from epochfs.client.transport.faults import convert
from epochfs.client.transport.watchdog import Watchdog
from epochfs.config import TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    TlsFailure,
    Unavailable,
    UsageError,
)

HERE = "127.0.0.1"
LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
LATER = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=30)

Serve = Callable[..., ScriptedServer]


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers on 127.0.0.1 with a certificate, each answering 200 to everything."""
    with ExitStack() as opened:

        def start(
            certificate: trustme.LeafCert, clients: trustme.CA | None = None
        ) -> ScriptedServer:
            context = context_of(certificate)
            if clients is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                clients.configure_trust(context)
            return opened.enter_context(ScriptedServer(lambda _: [reply(200, b"ok")], context))

        yield start


def context_of(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    return context


def fetch(server: ScriptedServer, url: str = "", **options: object) -> bytes:
    settings = TransportOptions(timeout=5.0, retries=1, **options)  # type: ignore[arg-type]
    return get(Transport(url or server.url, ANYONE, settings)).body


def refused(server: ScriptedServer, url: str = "", **options: object) -> str:
    """Return what is said of a server that is not trusted; nothing may have been sent to it."""
    with pytest.raises(Unavailable) as caught:
        fetch(server, url, **options)
    assert server.seen == []
    return str(caught.value)


# Whom to trust


def test_loopback_is_not_verified_unless_asked_for(serve: Serve, authority: trustme.CA) -> None:
    server = serve(authority.issue_cert(HERE))
    assert fetch(server) == b"ok"
    assert fetch(server, tls_verify=False) == b"ok"
    refused(serve(authority.issue_cert(HERE)), tls_verify=True)


def test_a_given_authority_is_trusted(serve: Serve, authority: trustme.CA, ca_file: Path) -> None:
    assert fetch(serve(authority.issue_cert(HERE)), ca_certs=(ca_file,), tls_verify=True) == b"ok"
    assert fetch(serve(authority.issue_cert(HERE)), ca_certs=(ca_file,)) == b"ok"


def test_an_unknown_authority_is_refused_with_the_option_to_give_it(
    serve: Serve, authority: trustme.CA, tmp_path: Path
) -> None:
    server = serve(authority.issue_cert(HERE))
    assert "give the certificate of its authority with --ca-cert" in refused(
        server, tls_verify=True
    )
    other = tmp_path / "other.pem"
    trustme.CA(organization_name="Other").cert_pem.write_to_path(other)
    assert "give the certificate of its authority with --ca-cert" in refused(
        server, ca_certs=(other,)
    )


def test_a_self_signed_certificate_is_refused_until_it_is_given(
    self_signed: ssl.SSLContext, self_signed_file: Path
) -> None:
    with ScriptedServer(lambda _: [reply(200, b"ok")], self_signed) as server:
        said = refused(server, tls_verify=True)
        assert "self-signed" in said.lower()
        assert "if it is the right one, give it with --ca-cert" in said
        url = server.url.replace(HERE, "localhost")
        assert fetch(server, url, ca_certs=(self_signed_file,)) == b"ok"


def test_a_certificate_for_other_hosts_is_refused_with_their_names(
    serve: Serve, authority: trustme.CA, ca_file: Path
) -> None:
    server = serve(authority.issue_cert("reg.example", "*.other.example", "192.0.2.1"))
    said = refused(server, ca_certs=(ca_file,))
    assert "the certificate is for reg.example, *.other.example, 192.0.2.1: use such a name" in said
    said = refused(server, server.url.replace(HERE, "localhost"), ca_certs=(ca_file,))
    assert "the certificate is for reg.example" in said


def test_a_certificate_for_other_hosts_of_an_unknown_authority_names_the_authority(
    serve: Serve, authority: trustme.CA
) -> None:
    assert "--ca-cert" in refused(serve(authority.issue_cert("reg.example")), tls_verify=True)


@pytest.mark.parametrize("host", [HERE, "localhost"])
def test_a_certificate_that_names_its_host_in_the_subject_alone_is_refused(
    host: str, tmp_path: Path
) -> None:
    root = certificates.authority()
    (tmp_path / "ca.pem").write_bytes(root.pem)
    context = certificates.served(certificates.without_names(host, root), tmp_path)
    with ScriptedServer(lambda _: [reply(200, b"ok")], context) as server:
        url = server.url.replace(HERE, host)
        said = refused(server, url, ca_certs=(tmp_path / "ca.pem",))
    assert "has no subjectAltName, and its common name does not count" in said


def test_an_expired_certificate_is_refused_with_the_clock(
    serve: Serve, authority: trustme.CA, ca_file: Path
) -> None:
    server = serve(
        authority.issue_cert(HERE, not_after=LONG_AGO + datetime.timedelta(1), not_before=LONG_AGO)
    )
    said = refused(server, ca_certs=(ca_file,))
    assert "has expired" in said
    assert "have the server's certificate renewed, or check this machine's clock" in said


def test_a_certificate_of_the_future_is_refused_with_the_clock(
    serve: Serve, authority: trustme.CA, ca_file: Path
) -> None:
    server = serve(authority.issue_cert(HERE, not_before=LATER))
    assert "check this machine's clock" in refused(server, ca_certs=(ca_file,))


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_an_unusable_authority_is_the_users_mistake(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=r"ca\.pem"):
        Transport("https://127.0.0.1:1", ANYONE, TransportOptions(ca_certs=(path,)))


def test_a_redirect_to_another_host_is_verified_as_that_host(
    serve: Serve, authority: trustme.CA, ca_file: Path
) -> None:
    storage = serve(authority.issue_cert("storage.example"))
    redirect = reply(307, Location=f"{storage.url}/blob")
    context = context_of(authority.issue_cert(HERE))
    with (
        ScriptedServer(lambda _: [redirect], context) as registry,
        pytest.raises(Unavailable, match=r"storage\.example"),
    ):
        fetch(registry, ca_certs=(ca_file,))
    assert storage.seen == []


# Who we are


@pytest.fixture
def identity(authority: trustme.CA, tmp_path: Path) -> tuple[Path, Path]:
    """A certificate and its key, in two files, that the authority has signed."""
    certificate = authority.issue_cert("client@example.org")
    files = tmp_path / "client.pem", tmp_path / "client.key"
    certificate.cert_chain_pems[0].write_to_path(files[0])
    certificate.private_key_pem.write_to_path(files[1])
    return files


def test_a_client_certificate_is_shown(
    serve: Serve,
    authority: trustme.CA,
    ca_file: Path,
    identity: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    server = serve(authority.issue_cert(HERE), clients=authority)
    certificate, key = identity
    assert fetch(server, ca_certs=(ca_file,), client_certs=((certificate, key),)) == b"ok"
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    assert fetch(server, client_certs=((both, None),)) == b"ok"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_server_that_wants_a_client_certificate_is_told_with_the_option(
    serve: Serve, authority: trustme.CA, version: ssl.TLSVersion
) -> None:
    server = serve(authority.issue_cert(HERE), clients=authority)
    assert server.tls is not None
    server.tls.maximum_version = version
    assert "a client certificate: give --client-cert and --client-key" in refused(server)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate_that_is_not_accepted_is_told(
    serve: Serve, authority: trustme.CA, identity: tuple[Path, Path], version: ssl.TLSVersion
) -> None:
    server = serve(authority.issue_cert(HERE), clients=trustme.CA())
    assert server.tls is not None
    server.tls.maximum_version = version
    said = refused(server, client_certs=(identity,))
    assert "does not accept the client certificate" in said


@pytest.mark.parametrize(
    "alert",
    ["HANDSHAKE_FAILURE", "BAD_CERTIFICATE", "CERTIFICATE_UNKNOWN", "UNKNOWN_CA", "ACCESS_DENIED"],
)
@pytest.mark.parametrize("identified", [True, False])
def test_what_a_server_says_of_certificates_is_about_the_one_that_is_shown(
    alert: str, *, identified: bool
) -> None:
    error = ssl.SSLError(1, "")
    error.reason = f"TLSV1_ALERT_{alert}"
    with Watchdog(9).watch() as watch:
        converted = convert(error, "GET /", watch, identified=identified)
    assert isinstance(converted, TlsFailure)
    assert ("check --client-cert" in str(converted)) == identified
    assert ("give --client-cert" in str(converted)) == (not identified)


def test_a_revoked_certificate_is_told() -> None:
    error = ssl.SSLCertVerificationError(1, "")
    error.verify_code, error.verify_message = 23, "certificate revoked"
    with Watchdog(9).watch() as watch:
        converted = convert(error, "GET /", watch)
    assert isinstance(converted, TlsFailure)
    assert "(certificate revoked): it is revoked: have" in str(converted)


def test_a_client_certificate_is_shown_to_the_registry_alone(
    serve: Serve, authority: trustme.CA, ca_file: Path, identity: tuple[Path, Path]
) -> None:
    """A redirect to another name of this machine must not take the certificate along."""
    storage = serve(authority.issue_cert("localhost"), clients=authority)
    url = storage.url.replace(HERE, "localhost")
    context = context_of(authority.issue_cert(HERE))
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with ScriptedServer(lambda _: [reply(307, Location=url)], context) as registry:
        options = {"ca_certs": (ca_file,), "client_certs": (identity,)}
        with pytest.raises(Unavailable, match="redirected from"):
            fetch(registry, **options)
        assert len(registry.seen) > 0
    assert storage.seen == []
    assert fetch(storage, url, **options) == b"ok"


def test_an_unusable_client_certificate_is_the_users_mistake(
    identity: tuple[Path, Path], authority: trustme.CA, tmp_path: Path
) -> None:
    certificate, key = identity
    other = tmp_path / "other.key"
    authority.issue_cert("other.example").private_key_pem.write_to_path(other)
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(_encrypted(key.read_bytes()))
    for files, why in (
        ((certificate, other), "another certificate"),
        ((certificate, encrypted), "or encrypted"),
        ((certificate, None), r"client\.pem"),
        ((tmp_path / "none", key), "No such file"),
        ((key, key), "client.key"),
    ):
        options = TransportOptions(client_certs=(files,))
        with pytest.raises(UsageError, match=why):
            Transport("https://127.0.0.1:1", ANYONE, options)


def test_what_every_request_shows_is_part_of_who_is_asking(
    authority: trustme.CA, identity: tuple[Path, Path], tmp_path: Path
) -> None:
    def fingerprint(**options: object) -> str:
        settings = TransportOptions(**options)  # type: ignore[arg-type]
        return (
            Transport("https://127.0.0.1:1", ANYONE, settings)
            .bearer_for(b"salt", "team/app")
            .fingerprint
        )

    other = tmp_path / "other.pem"
    authority.issue_cert("other.example").private_key_and_cert_chain_pem.write_to_path(other)
    certificate, key = identity
    own = fingerprint(client_certs=((certificate, key),))
    assert own == fingerprint(client_certs=((certificate, key),))
    header = fingerprint(headers=(("X-Key", "canary"),))
    assert "canary" not in header
    distinct = {own, fingerprint(client_certs=((other, None),)), header, fingerprint()}
    assert len(distinct) == 4
    assert fingerprint() == ""


def _encrypted(key: bytes) -> bytes:
    private = serialization.load_pem_private_key(key, None)
    return private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"password"),
    )


# https and nothing else


def test_https_to_a_server_without_it_says_so_and_sends_nothing_in_the_clear() -> None:
    received = []

    def answer(connection: socket.socket) -> None:
        received.append(connection.recv(4096))
        connection.sendall(reply(400))

    with (
        listening(answer) as port,
        pytest.raises(Unavailable, match="does not fall back to http"),
    ):
        get(Transport(f"https://{HERE}:{port}", ANYONE, TransportOptions(timeout=5.0)))
    assert received
    assert not any(data.startswith(b"GET") for data in received)


def test_a_stalled_handshake_meets_the_time_limit() -> None:
    with socket.create_server((HERE, 0)) as silent:
        url = f"https://{HERE}:{silent.getsockname()[1]}"
        transport = Transport(url, ANYONE, TransportOptions(timeout=TIMEOUT))
        with at_most(TIMEOUT + SLACK), pytest.raises((DeadlineExceeded, Unavailable)):
            get(transport)


def test_a_tls_body_that_stalls_meets_the_time_limit(authority: trustme.CA) -> None:
    def script(_: Seen) -> Iterator[Step]:
        yield HEADERS + b"Content-Length: 99999\r\n\r\n"
        yield from endless(b"a", 0.1)

    with ScriptedServer(script, context_of(authority.issue_cert(HERE))) as server:
        transport = Transport(server.url, ANYONE, TransportOptions(timeout=TIMEOUT))
        with at_most(TIMEOUT + SLACK), pytest.raises(DeadlineExceeded):
            get(transport)
