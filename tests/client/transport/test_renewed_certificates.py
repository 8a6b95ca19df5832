"""Certificates and authorities that are renewed on disk are used, as a login file is."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trustme
from support.scripted import ScriptedServer, Step, reply, until
from support.transports import ANYONE, get

from epochfs.client.transport import Transport
from epochfs.client.transport.connections import Adapter
from epochfs.config import TransportOptions
from epochfs.errors import TlsFailure

HERE = "127.0.0.1"
AUTHORITY = trustme.CA()


@dataclass
class Identifying(ScriptedServer):
    """Writes down who sends each request, by the certificate, and counts ended connections."""

    who: list[str] = field(default_factory=list)
    ended: int = 0

    def _serve(self, connection: socket.socket) -> None:
        try:
            super()._serve(connection)
        finally:
            self.ended += 1

    def _play(self, steps: Iterable[Step], connection: socket.socket) -> None:
        assert isinstance(connection, ssl.SSLSocket)
        subject: Any = (connection.getpeercert() or {}).get("subjectAltName", (("", "nobody"),))
        self.who.append(subject[0][1].partition("@")[0])
        super()._play(steps, connection)


def context(authority: trustme.CA = AUTHORITY) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HERE).configure_cert(made)
    made.verify_mode = ssl.CERT_OPTIONAL
    AUTHORITY.configure_trust(made)
    return made


@pytest.fixture
def server() -> Iterator[Identifying]:
    with Identifying(lambda _: [reply(200, b"ok")], context()) as started:
        yield started


@dataclass
class Identity:
    """A client certificate in `certificate`, with its key there too or in `key`."""

    certificate: Path
    key: Path | None = None

    def issue(self, name: str) -> None:
        self.replace(AUTHORITY.issue_cert(f"{name}@example.org"))

    def replace(self, issued: trustme.LeafCert) -> None:
        if self.key is None:
            put(self.certificate, issued.private_key_and_cert_chain_pem.bytes())
        else:
            put(self.certificate, issued.cert_chain_pems[0].bytes())
            put(self.key, issued.private_key_pem.bytes())


def put(path: Path, content: bytes) -> None:
    """Replace a file in one step, as tools that renew certificates do."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.replace(path)


def transport(server: ScriptedServer, **options: object) -> Transport:
    settings = TransportOptions(timeout=5.0, retries=0, **options)  # type: ignore[arg-type]
    return Transport(server.url, ANYONE, settings)


@pytest.fixture(params=["one file", "two files"])
def identity(request: pytest.FixtureRequest, tmp_path: Path) -> Identity:
    key = tmp_path / "key.pem" if request.param == "two files" else None
    made = Identity(tmp_path / "certificate.pem", key)
    made.issue("first")
    return made


def test_a_renewed_certificate_is_shown_and_the_connections_of_the_old_one_are_closed(
    server: Identifying, identity: Identity
) -> None:
    with closing(
        transport(server, client_certs=((identity.certificate, identity.key),))
    ) as subject:
        for _ in range(2):
            get(subject)
        assert (server.who, server.connections) == (["first"] * 2, 1)
        identity.issue("second")
        for _ in range(2):
            get(subject)
        assert (server.who[2:], server.connections) == (["second"] * 2, 2)
        until(lambda: server.ended == 1)


def test_a_certificate_behind_links_is_renewed_with_them(
    server: Identifying, tmp_path: Path
) -> None:
    """As Kubernetes mounts a secret: `tls.pem -> ..data/tls.pem`, and `..data` is replaced."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        Identity(tmp_path / name / "tls.pem").issue(name)
    data, file = tmp_path / "..data", tmp_path / "tls.pem"
    data.symlink_to("first")
    file.symlink_to("..data/tls.pem")
    with closing(transport(server, client_certs=((file, None),))) as subject:
        get(subject)
        (tmp_path / "new").symlink_to("second")
        (tmp_path / "new").replace(data)
        get(subject)
    assert server.who == ["first", "second"]


@pytest.mark.expects_log("changed on disk, and not used yet: .* belongs to another certificate")
def test_until_certificate_and_key_fit_the_old_ones_stay(
    server: Identifying, tmp_path: Path
) -> None:
    identity = Identity(tmp_path / "certificate.pem", tmp_path / "key.pem")
    identity.issue("first")
    assert identity.key is not None
    second = AUTHORITY.issue_cert("second@example.org")
    with closing(
        transport(server, client_certs=((identity.certificate, identity.key),))
    ) as subject:
        get(subject)
        put(identity.certificate, second.cert_chain_pems[0].bytes())
        get(subject)
        get(subject)
        put(identity.key, second.private_key_pem.bytes())
        get(subject)
    assert server.who == ["first"] * 3 + ["second"]


@pytest.mark.expects_log("changed on disk, and not used yet: no usable client certificate")
@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_what_cannot_be_used_is_not_used(
    server: Identifying, identity: Identity, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(
        transport(server, client_certs=((identity.certificate, identity.key),))
    ) as subject:
        if content is None:
            identity.certificate.unlink()
        else:
            put(identity.certificate, content)
        for _ in range(3):
            get(subject)
        assert caplog.text.count("not used yet") == 1
        identity.issue("second")
        get(subject)
    assert server.who == ["first"] * 3 + ["second"]


def test_a_renewed_bundle_of_authorities_is_trusted(tmp_path: Path) -> None:
    bundle, other = tmp_path / "ca.pem", trustme.CA()
    AUTHORITY.cert_pem.write_to_path(bundle)
    with (
        Identifying(lambda _: [reply(200, b"ok")], context()) as server,
        closing(transport(server, ca_certs=(bundle,))) as subject,
    ):
        get(subject)
        server.tls = context(other)
        put(bundle, other.cert_pem.bytes())
        assert get(subject).body == b"ok"
        assert server.connections == 2
        put(bundle, AUTHORITY.cert_pem.bytes())
        with pytest.raises(TlsFailure):
            get(subject)


def test_who_is_asking_follows_the_certificate(server: Identifying, identity: Identity) -> None:
    subject = transport(server, client_certs=((identity.certificate, identity.key),))
    before = subject.bearer_for(b"salt", "team/app").fingerprint
    assert subject.bearer_for(b"salt", "team/app").fingerprint == before
    identity.issue("second")
    assert subject.bearer_for(b"salt", "team/app").fingerprint != before


def test_files_that_stay_are_read_once(
    server: Identifying, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(
        transport(server, client_certs=((identity.certificate, identity.key),))
    ) as subject:
        get(subject)
        monkeypatch.setattr(ssl, "create_default_context", None)
        get(subject)


def test_a_request_that_meets_a_pool_just_closed_is_sent_all_the_same(
    server: Identifying, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = transport(server, client_certs=((identity.certificate, identity.key),))
    choose = Adapter.get_connection_with_tls_context
    renewed = []

    def renew_behind_its_back(adapter: Adapter, *args: Any, **kwargs: Any) -> Any:
        pool = choose(adapter, *args, **kwargs)
        if not renewed:
            renewed.append(identity.issue("second"))
            choose(adapter, *args, **kwargs)
        return pool

    monkeypatch.setattr(Adapter, "get_connection_with_tls_context", renew_behind_its_back)
    with closing(subject):
        assert get(subject).body == b"ok"
    assert server.who == ["second"]
