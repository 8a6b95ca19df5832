"""A client of a registry with mirrors: who is asked for what, in which order, and for how long."""

from __future__ import annotations

import json
import ssl
from base64 import b64encode
from pathlib import Path

import pytest
import trustme
from support.mirrors import (
    BLOB,
    IMAGE,
    LAYER,
    MINE,
    NAME,
    Client,
    Failing,
    Lying,
    Mirror,
    blob,
    clients,
    recording,
    registry_with_mirrors,
    sends_the_blob,
)
from support.registries import EmbeddedRegistry
from support.scripted import Seen, Step, at_most, reply
from support.subjects import PASSWORD, USERNAME

from epochfs.config import Credentials
from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.errors import NotFound, Unavailable, UsageError
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest

client_of = pytest.fixture(clients)
origin = pytest.fixture(registry_with_mirrors)


def pull_only(registry: EmbeddedRegistry) -> str:
    return f'[host."{registry.url}"]\ncapabilities = ["pull"]'


# --- who is asked for what --------------------------------------------------------------------


def test_the_first_mirror_is_asked_for_all_that_one_may_say(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as first, Mirror() as second:
        client = client_of(origin, first.url, second.url)
        assert blob(client) == LAYER
        assert client.get_manifest(NAME, "latest").raw == IMAGE.raw
        assert client.resolve(NAME, "latest").digest == IMAGE.digest
        assert client.blob_size(NAME, BLOB) == len(LAYER)
        assert (first.count(), second.count(), origin.count()) == (4, 0, 0)


def test_what_a_mirror_has_need_not_be_in_the_registry(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    """Who pushes must know what the registry itself lacks."""
    with Mirror() as mirror:
        client = client_of(origin, mirror.url)
        only_there = mirror.put_blob(NAME, b"only in the mirror")
        assert client.blob_size(NAME, only_there) == len(b"only in the mirror")
        assert not client.blob_exists(NAME, only_there)
        assert not client.has_manifest(NAME, only_there)
        assert client.blob_exists(NAME, BLOB)
        assert client.has_manifest(NAME, IMAGE.digest)


def test_without_resolve_a_mirror_is_asked_for_nothing_but_verifiable_bytes(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, pull_only(mirror))
        client.resolve(NAME, "latest")
        client.resolve(NAME, IMAGE.digest)
        client.get_manifest(NAME, "latest")
        client.blob_size(NAME, BLOB)
        assert (mirror.count(), origin.count()) == (0, 4)
        client.get_manifest(NAME, IMAGE.digest)
        blob(client)
        assert (mirror.count(), origin.count()) == (2, 4)


def test_listings_and_writes_are_the_registrys_alone(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, mirror.url)
        client.ping()
        assert client.catalog() == [NAME]
        assert client.list_tags(NAME) == ["latest"]
        client.put_blob(NAME, Digest.of(b"new"), b"new", 3)
        client.put_manifest(NAME, "new", IMAGE.raw, OCI_MANIFEST)
        client.delete_manifest(NAME, "new")
        assert mirror.count() == 0
        origin.stop()
        with pytest.raises(Unavailable):
            client.list_tags(NAME)
        assert mirror.count() == 0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 416, 429, 500, 502, 503])
def test_the_next_host_is_asked_for_what_a_mirror_refuses(
    client_of: Client, origin: EmbeddedRegistry, status: int
) -> None:
    with Failing() as mirror, at_most(2.0):
        mirror.status = status
        client = client_of(origin, mirror.url)
        assert blob(client) == LAYER
        assert client.resolve(NAME, "latest").digest == IMAGE.digest
        assert mirror.count() >= 1


def test_a_mirror_without_a_blob_is_not_asked_for_each_part_of_it(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with EmbeddedRegistry() as mirror:
        client = client_of(origin, mirror.url)
        for start in range(0, 1000, 100):
            with client.get_blob(NAME, BLOB, start, start + 100) as stream:
                assert stream.read(100) == LAYER[start : start + 100]
        client.resolve(NAME, "latest")
        assert (mirror.count("GET"), mirror.count("HEAD")) == (1, 1)


class RefusingHead(Mirror):
    """A host that refuses HEAD in one way, for what it has."""

    status = 404

    def respond(self, request: Request) -> Response:
        return Response(self.status) if request.method == "HEAD" else super().respond(request)


@pytest.mark.parametrize("status", [400, 403, 404, 406, 410])
def test_what_every_host_refuses_to_head_the_registry_is_asked_for_by_get(
    client_of: Client, status: int
) -> None:
    with RefusingHead() as mirror, RefusingHead() as origin:
        mirror.status = origin.status = status
        client = client_of(origin, mirror.url)
        assert client.resolve(NAME, "latest").digest == IMAGE.digest
        assert client.blob_size(NAME, BLOB) == len(LAYER)
        assert client.blob_exists(NAME, BLOB)
        assert mirror.count("HEAD") >= 1
        assert mirror.count("GET") == 0
        assert (origin.count("HEAD"), origin.count("GET")) == (3, 3)


def test_wrong_bytes_of_a_manifest_are_never_shown(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Lying() as mirror:
        client = client_of(origin, mirror.url)
        assert client.get_manifest(NAME, IMAGE.digest).raw == IMAGE.raw
        assert mirror.count() == 1


def test_a_blob_that_came_wrong_is_asked_of_the_registry_from_then_on(
    client_of: Client, origin: EmbeddedRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    with Lying() as mirror:
        client = client_of(origin, mirror.url)
        assert not client.distrust_mirrors(BLOB)
        assert blob(client) != LAYER
        caplog.set_level("CRITICAL", "epochfs")
        assert client.distrust_mirrors(BLOB)
        assert not client.distrust_mirrors(BLOB)
        assert blob(client) == LAYER
        assert mirror.count() == 1


def test_the_registrys_own_error_is_the_one_that_is_raised(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Failing() as mirror:
        client = client_of(origin, mirror.url)
        with pytest.raises(NotFound, match=origin.host):
            client.get_manifest(NAME, "none")
        origin.stop()
        with pytest.raises(Unavailable, match=origin.host):
            client.get_manifest(NAME, "latest")


def test_content_is_had_from_a_mirror_while_the_registry_is_down(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, mirror.url)
        origin.stop()
        assert blob(client) == LAYER
        assert client.resolve(NAME, "latest").digest == IMAGE.digest


def test_a_mirror_is_told_the_namespace_and_the_registry_is_not(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with recording(sends_the_blob) as mirror:
        blob(client_of(origin, mirror.url))
        namespace = origin.host.replace(":", "%3A")
        assert [one.target for one in mirror.seen] == [f"/v2/{NAME}/blobs/{BLOB}?ns={namespace}"]
    blob(client_of(origin))
    assert dict(origin.requests[-1].query) == {}


@pytest.mark.parametrize(
    ("path", "override", "root"),
    [
        ("", "false", "/v2"),
        ("/cache", "false", "/cache/v2"),
        ("/v2/cache", "true", "/v2/cache"),
        ("", "true", ""),
    ],
)
def test_the_path_of_a_mirror_stands_in_front(
    client_of: Client, origin: EmbeddedRegistry, path: str, override: str, root: str
) -> None:
    with recording(sends_the_blob) as mirror:
        table = f'[host."{mirror.url}{path}"]\noverride_path = {override}'
        assert blob(client_of(origin, table)) == LAYER
        assert mirror.seen[0].path == f"{root}/{NAME}/blobs/{BLOB}"


def test_headers_are_for_their_host_alone(client_of: Client, origin: EmbeddedRegistry) -> None:
    with recording(sends_the_blob) as storage:
        there = reply(307, Location=f"{storage.url}/blob")
        with recording(lambda _: [there]) as mirror:
            table = f'[host."{mirror.url}".header]\nX-Key = "canary"\nAuthorization = "canary"'
            client = client_of(origin, table)
            assert blob(client) == LAYER
            assert mirror.seen[0].headers["x-key"] == "canary"
            assert mirror.seen[0].headers["authorization"] == "canary"
            assert len(storage.seen) == 1
            assert "canary" not in str(storage.seen)
            client.list_tags(NAME)
            assert "canary" not in str([dict(one.headers) for one in origin.requests])


def test_a_header_that_is_echoed_is_not_shown(client_of: Client, origin: EmbeddedRegistry) -> None:
    body = b'{"errors": [{"code": "DENIED", "message": "not with canary"}]}'
    with recording(lambda _: [reply(500, body)]) as mirror:
        client = client_of(origin, f'[host."{mirror.url}".header]\nX-Key = "canary"')
        blob(client)
        assert "not with ***" in client.mirrors[0].trouble


@pytest.mark.parametrize("challenge", ["Basic realm=x", 'Bearer realm="{url}/token",service="x"'])
def test_a_mirror_never_sees_the_registrys_credentials(client_of: Client, challenge: str) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.path == "/token":
            return [reply(200, b'{"token": "anonymous"}')]
        return [reply(401, WWW_Authenticate=challenge.format(url=mirror.url))]

    behaviour = Behaviour(auth="basic")
    with (
        recording(script) as mirror,
        Mirror(behaviour, username=USERNAME, password=PASSWORD) as origin,
    ):
        for credentials in (MINE, Credentials(token="canary")):
            client = client_of(origin, mirror.url, credentials=credentials)
            if credentials is MINE:
                assert blob(client) == LAYER
            else:
                with pytest.raises(Exception, match="401"):
                    blob(client)
        sent = {one.headers.get("authorization", "") for one in mirror.seen}
        assert sent <= {"", "Bearer anonymous"}
        assert "account" not in str(mirror.seen)


def test_a_mirror_is_logged_in_to_with_what_a_file_has_for_it_alone(
    client_of: Client, tmp_path: Path
) -> None:
    behaviour = Behaviour(auth="basic")
    with (
        Mirror(behaviour, username="theirs", password="secret") as mirror,
        Mirror(behaviour, username=USERNAME, password=PASSWORD) as origin,
    ):
        logins = {mirror.host: "theirs:secret", origin.host: f"{USERNAME}:{PASSWORD}"}
        entries = {
            host: {"auth": b64encode(pair.encode()).decode()} for host, pair in logins.items()
        }
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": entries}))
        client = client_of(origin, mirror.url, credentials=Credentials(auth_files=(file,)))
        assert blob(client) == LAYER
        assert client.list_tags(NAME) == ["latest"]
        for registry in (mirror, origin):
            sent = {one.headers.get("authorization") for one in registry.requests}
            assert sent == {None, f"Basic {entries[registry.host]['auth']}"}


def test_a_mirror_is_shown_the_client_certificate_that_its_table_names(
    client_of: Client, origin: EmbeddedRegistry, tmp_path: Path
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    identity = authority.issue_cert("client@example.org")
    identity.private_key_and_cert_chain_pem.write_to_path(tmp_path / "client.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    context.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(context)
    with Mirror(ssl_context=context) as mirror:
        table = f'[host."{mirror.url}"]\nca = "../ca.pem"'
        assert blob(client_of(origin, table)) == LAYER
        assert (mirror.count(), origin.count()) == (0, 1)
        assert blob(client_of(origin, f'{table}\nclient = "../client.pem"')) == LAYER
        assert (mirror.count(), origin.count()) == (1, 1)


def test_the_server_of_another_name_is_the_registry_but_not_logged_in_to(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with recording(lambda _: [reply(401, WWW_Authenticate="Basic realm=x")]) as server:
        client = client_of(origin, server=server.url, credentials=MINE)
        with pytest.raises(Exception, match="401"):
            client.list_tags(NAME)
        assert origin.count() == 0
        assert {one.headers.get("authorization") for one in server.seen} == {None}
        assert "ns=" in server.seen[0].target


def test_each_host_has_its_own_tls(client_of: Client, tmp_path: Path, self_signed: object) -> None:
    with (
        Mirror() as origin,
        Mirror(ssl_context=self_signed) as mirror,
    ):
        url = mirror.url.replace("127.0.0.1", "localhost")
        strict = client_of(origin, f'[host."{url}"]\nskip_verify = false')
        assert blob(strict) == LAYER
        assert (mirror.count(), origin.count()) == (0, 1)
        assert "certificate" in strict.mirrors[0].trouble
        assert blob(client_of(origin, f'[host."{url}"]\nskip_verify = true')) == LAYER
        assert (mirror.count(), origin.count()) == (1, 1)
    (tmp_path / "ca.pem").write_text("no certificate")
    with pytest.raises(UsageError, match=str(tmp_path)):
        client_of(origin, '[host."https://x"]\nca = "../ca.pem"')
