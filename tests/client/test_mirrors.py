"""A client of a registry with mirrors: who is asked for what, in which order, and for how long."""

from __future__ import annotations

import json
import ssl
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from support.builders import image, load, random_bytes
from support.scripted import ScriptedServer, Seen, Step, at_most, reply
from support.subjects import PASSWORD, USERNAME

from epochfs.client import RegistryClient, mirrors
from epochfs.client.hosts import find
from epochfs.config import Credentials, RegistryUrl, TransportOptions
from epochfs.demo.registry import EPOCH, Behaviour, EmbeddedRegistry, Request, Response
from epochfs.errors import DeadlineExceeded, NotFound, Unavailable, UsageError
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest

NAME = "team/app"
LAYER = random_bytes(300_000, 1)
IMAGE = image(LAYER)
BLOB = Digest.of(LAYER)
MINE = Credentials(username=USERNAME, password=PASSWORD)

Client = Callable[..., RegistryClient]


class Mirror(EmbeddedRegistry):
    """A mirror that has everything, and counts."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        load(self, NAME, "latest", IMAGE)


class Failing(Mirror):
    """A mirror that answers everything with one status."""

    status = 500

    def respond(self, request: Request) -> Response:
        return Response(self.status)


class Lying(Mirror):
    """A mirror whose every body has one wrong byte."""

    def respond(self, request: Request) -> Response:
        answer = super().respond(request)
        body = bytes(answer.body)  # type: ignore[arg-type]
        return Response(answer.status, answer.headers, b"!" + body[1:])


@pytest.fixture
def origin() -> Iterator[EmbeddedRegistry]:
    with Mirror() as registry:
        yield registry


@pytest.fixture
def client_of(tmp_path: Path) -> Iterator[Client]:
    """Makes clients of a registry and its mirrors: URLs, or tables of a `hosts.toml`."""
    with ExitStack() as closing:

        def make(
            registry: EmbeddedRegistry | str,
            *mirrors: str,
            credentials: Credentials | None = None,
            timeout: float = 10.0,
            server: str = "",
        ) -> RegistryClient:
            url = RegistryUrl.parse(registry if isinstance(registry, str) else registry.url)
            tables = [one if one.startswith("[") else f'[host."{one}"]' for one in mirrors]
            top = [f'server = "{server}"'] if server else []
            (tmp_path / "_default").mkdir(exist_ok=True)
            (tmp_path / "_default" / "hosts.toml").write_text("\n".join([*top, *tables]))
            client = RegistryClient(
                url.base,
                credentials=credentials,
                options=TransportOptions(timeout=timeout),
                hosts=find(tmp_path, url),
            )
            closing.callback(client.close)
            return client

        yield make


def blob(client: RegistryClient) -> bytes:
    with client.get_blob(NAME, BLOB) as stream:
        return b"".join(iter(lambda: stream.read(1 << 16), b""))


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
        assert client.blob_exists(NAME, BLOB)
        assert client.blob_size(NAME, BLOB) == len(LAYER)
        assert (first.count(), second.count(), origin.count()) == (5, 0, 0)


def test_without_resolve_a_mirror_is_asked_for_nothing_but_verifiable_bytes(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, pull_only(mirror))
        client.resolve(NAME, "latest")
        client.resolve(NAME, IMAGE.digest)
        client.get_manifest(NAME, "latest")
        client.blob_exists(NAME, BLOB)
        client.blob_size(NAME, BLOB)
        assert (mirror.count(), origin.count()) == (0, 5)
        client.get_manifest(NAME, IMAGE.digest)
        blob(client)
        assert (mirror.count(), origin.count()) == (2, 5)


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


# --- how a host is spoken to ------------------------------------------------------------------


def recording(answer: Callable[[Seen], list[Step]]) -> ScriptedServer:
    return ScriptedServer(answer)


def sends_the_blob(_: Seen) -> list[Step]:
    return [reply(200, LAYER)]


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


# --- time and health --------------------------------------------------------------------------


def silent(_: Seen) -> list[Step]:
    return [60.0]


def stalling(_: Seen) -> list[Step]:
    return [reply(200, b"", Content_Length=str(len(LAYER))), 60.0]


def dripping(_: Seen) -> list[Step]:
    head = reply(200, b"", Content_Length=str(len(LAYER)))
    return [head, *([b"x", 0.02] * 1000)]


def test_a_silent_mirror_costs_its_share_of_the_time_and_then_none(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with recording(silent) as mirror:
        client = client_of(origin, mirror.url, timeout=2.0)
        with at_most(1.0):
            assert blob(client) == LAYER
        with at_most(0.4):
            assert blob(client) == LAYER
            assert client.resolve(NAME, "latest").digest == IMAGE.digest
        assert mirror.connections == 1


def test_the_registry_has_the_time_that_its_mirrors_leave(client_of: Client) -> None:
    with recording(silent) as mirror, recording(silent) as origin:
        client = client_of(origin.url, mirror.url, mirror.url + "/2", timeout=1.0)
        with at_most(1.6), pytest.raises(DeadlineExceeded):
            client.get_manifest(NAME, IMAGE.digest)
        assert len(origin.seen) == 1


@pytest.mark.parametrize("script", [stalling, dripping])
def test_a_stream_that_stalls_or_drips_breaks_off(
    client_of: Client, origin: EmbeddedRegistry, script: Callable[[Seen], list[Step]]
) -> None:
    with recording(script) as mirror:
        client = client_of(origin, mirror.url, timeout=2.0)
        with at_most(1.5), pytest.raises((Unavailable, DeadlineExceeded)):
            blob(client)
        assert not client.mirrors[0].healthy
        assert blob(client) == LAYER


def test_a_stream_that_its_reader_gives_up_is_no_failure(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    with Mirror() as mirror:
        client = client_of(origin, mirror.url)
        stream = client.get_blob(NAME, BLOB)
        stream.read(10)
        stream.close()
        with pytest.raises(Unavailable):
            stream.read(10)
        assert client.mirrors[0].healthy


def test_a_range_that_a_mirror_makes_shorter_is_no_failure(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    part = reply(206, LAYER[:10], Content_Range=f"bytes 0-9/{len(LAYER)}")
    with recording(lambda _: [part]) as mirror:
        client = client_of(origin, mirror.url)
        with client.get_blob(NAME, BLOB, 0, 100) as stream:
            assert stream.read(100) == LAYER[:10]
            with pytest.raises(Unavailable):
                stream.read(100)
        assert client.mirrors[0].healthy


def test_a_mirror_that_is_back_is_asked_again_by_itself(
    client_of: Client, origin: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "_FIRST_PAUSE", 0.2)
    mirror = Mirror()
    with mirror:
        client = client_of(origin, mirror.url)
    before = time.time()
    assert blob(client) == LAYER
    down = client.mirrors[0]
    assert (down.host, down.healthy) == (mirror.url, False)
    assert before <= down.since <= time.time()
    assert "refused" in down.trouble
    with mirror:
        blob(client)
        assert mirror.count() == 0
        time.sleep(0.25)
        blob(client)
        assert mirror.count() == 1
        assert (client.mirrors[0].healthy, client.mirrors[0].trouble) == (True, "")


PAGE = b"<html><title>404 Not Found</title></html>"


@pytest.mark.parametrize(
    ("answer", "trouble"),
    [
        (reply(401, WWW_Authenticate="Basic realm=x"), "401: the mirror does not allow anonymous"),
        (reply(403), "403: the mirror does not allow anonymous reads"),
        (reply(404, PAGE), "404 (a web page, '404 Not Found')"),
    ],
)
def test_a_mirror_that_refuses_everything_is_in_trouble_and_goes_on_being_asked(
    client_of: Client, origin: EmbeddedRegistry, answer: bytes, trouble: str
) -> None:
    answers = [answer]
    with recording(lambda _: answers) as mirror:
        client = client_of(origin, mirror.url)
        assert client.mirrors[0].healthy
        assert blob(client) == LAYER
        assert not client.mirrors[0].healthy
        assert trouble in client.mirrors[0].trouble
        client.ping_mirrors()
        assert trouble in client.mirrors[0].trouble
        seen = len(mirror.seen)
        client.resolve(NAME, "latest")
        assert len(mirror.seen) > seen
        answers[:] = [reply(200, LAYER)]
        assert client.read_blob(NAME, BLOB, 1 << 20)
        assert (client.mirrors[0].healthy, client.mirrors[0].trouble) == (True, "")


def test_a_web_page_at_its_root_is_no_mirror(client_of: Client, origin: EmbeddedRegistry) -> None:
    with recording(lambda _: [reply(200, PAGE)]) as mirror:
        client = client_of(origin, mirror.url)
        client.ping_mirrors()
        assert "200 (a web page" in client.mirrors[0].trouble


def test_a_mirror_that_denies_one_thing_after_it_has_given_another_is_not_in_trouble(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    answers = [reply(200, LAYER)]
    with recording(lambda _: answers) as mirror:
        client = client_of(origin, mirror.url)
        assert client.read_blob(NAME, BLOB, 1 << 20)
        answers[:] = [reply(403)]
        client.resolve(NAME, "latest")
        assert client.mirrors[0].healthy


def test_a_mirror_whose_root_alone_asks_for_a_login_is_not_in_trouble(
    client_of: Client, origin: EmbeddedRegistry
) -> None:
    """As Epoch's."""
    with EmbeddedRegistry(EPOCH) as mirror:
        client = client_of(origin, mirror.url)
        client.ping_mirrors()
        assert client.mirrors[0].healthy


class TestHealth:
    def test_the_pause_grows_with_each_failure_up_to_a_cap(self) -> None:
        pauses = []
        one = mirrors.Health()
        for _ in range(20):
            one.failed("broken", 0.0)
            pauses.append(one._tried_at - time.monotonic())
            one._tried_at = 0.0
            assert one.begin(10.0)
        assert pauses[:4] == pytest.approx([1.0, 2.0, 4.0, 8.0], abs=0.1)
        assert pauses[-1] == pytest.approx(300.0, abs=0.1)

    def test_the_pause_is_a_multiple_of_what_the_failure_took(self) -> None:
        one = mirrors.Health()
        one.failed("silent", 15.0)
        assert one._tried_at - time.monotonic() == pytest.approx(60.0, abs=0.1)

    def test_what_fails_together_is_one_failure(self) -> None:
        one = mirrors.Health()
        assert [one.failed("broken", 0.0) for _ in range(9)] == [True] + [False] * 8
        assert one._tried_at - time.monotonic() < 1.1

    def test_after_the_pause_one_caller_tries_for_all(self) -> None:
        one = mirrors.Health()
        one.failed("broken", 0.0)
        assert not one.begin(5.0)
        one._tried_at = 0.0
        assert [one.begin(5.0) for _ in range(3)] == [True, False, False]
        assert one.succeeded()
        assert not one.succeeded()
        assert one.begin(5.0)
