"""The client that remembers: what it recalls while the registry is down, for whom, and how long."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import pytest
from support.builders import image, load, signed

from epochfs.cache.answers import AnswerStore
from epochfs.cache.tag_history import TagHistory
from epochfs.client import RegistryClient
from epochfs.client.hosts import RegistryHosts, find
from epochfs.config import Credentials, ListingOptions, RegistryUrl, TransportOptions
from epochfs.demo.registry import Behaviour, EmbeddedRegistry, Request, Response
from epochfs.demo.samples import descriptor, encode
from epochfs.errors import CredentialsUnavailable, Denied, NotFound, Unavailable, Unsupported
from epochfs.metadata import offline
from epochfs.metadata.listings import Listings
from epochfs.metadata.offline import Health, Outage, RememberingClient
from epochfs.metadata.source import Answer
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest, Repository, Tag, referrers_tag

APP, LATEST = Repository("team/app"), Tag("latest")
IMAGE = image()
SIGNATURE = image(b"signature", subject=descriptor(IMAGE.raw, OCI_MANIFEST))

Open = Callable[..., RememberingClient]

pytestmark = pytest.mark.expects_log("is down, what is cached is served")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "answers.sqlite"


@pytest.fixture
def opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Makes clients that share a file, one after the other, each as a mount of its own has it."""
    monkeypatch.setattr(offline, "_FIRST_SECONDS", 0.05)
    with ExitStack() as stack:

        def build(
            registry: EmbeddedRegistry,
            username: str = "",
            max_age: float = 60,
            mirrors: str = "",
            **given: Any,
        ) -> RememberingClient:
            stack.close()
            client = RegistryClient(
                registry.url,
                credentials=Credentials(username, "password" if username else "", **given),
                options=TransportOptions(5, 5, 0),
                hosts=hosts_of(registry, path.parent, mirrors),
            )
            stack.callback(client.close)
            answers = AnswerStore(path, registry.url, client.bearer_for)
            stack.callback(answers.close)
            health = Health(registry.url, client.ping)
            stack.callback(health.close)
            return RememberingClient(client, answers, health, max_age)

        yield build


def hosts_of(registry: EmbeddedRegistry, directory: Path, mirrors: str) -> RegistryHosts:
    """Return the hosts of a registry whose `hosts.toml` says this of its mirrors."""
    (directory / "_default").mkdir(exist_ok=True)
    (directory / "_default" / "hosts.toml").write_text(mirrors)
    return find(directory, RegistryUrl.parse(registry.url))


def everything(client: RememberingClient) -> list[object]:
    layer = Digest.of(IMAGE.blobs[-1])
    return [
        client.catalog(),
        client.list_tags(APP),
        client.resolve(APP, LATEST),
        client.get_manifest(APP, IMAGE.digest),
        client.blob_size(APP, layer),
        client.resolve(APP, IMAGE.digest),
        client.referrers(APP, IMAGE.digest),
        client.read_blob(APP, layer, 1 << 20),
    ]


def test_after_a_remount_without_the_registry_everything_asked_before_is_recalled(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    load(embedded, "team/app", "signature", SIGNATURE)
    asked = everything(opened(embedded))
    embedded.stop()
    again = opened(embedded)
    recalled = everything(again)
    assert recalled == asked
    assert again.recalled == 8
    assert {one.is_current for one in asked if isinstance(one, Answer)} == {True}
    assert {one.is_current for one in recalled if isinstance(one, Answer)} == {False}


def test_what_was_not_asked_before_is_unavailable(opened: Open, embedded: EmbeddedRegistry) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    everything(opened(embedded))
    embedded.stop()
    client = opened(embedded)
    for ask in (
        lambda: client.list_tags(Repository("team/other")),
        lambda: client.resolve(APP, Tag("other")),
        lambda: client.get_manifest(Repository("team/other"), IMAGE.digest),
        lambda: client.blob_size(Repository("team/other"), Digest.of(IMAGE.blobs[-1])),
    ):
        with pytest.raises(Unavailable):
            ask()


def test_a_manifest_proves_the_blobs_it_names(opened: Open, embedded: EmbeddedRegistry) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    opened(embedded).get_manifest(APP, IMAGE.digest)
    assert embedded.count("HEAD", "/blobs/") == 0
    embedded.stop()
    client = opened(embedded)
    for blob in IMAGE.blobs:
        assert client.blob_size(APP, Digest.of(blob)).value == len(blob)


def test_a_signed_manifest_is_recalled_by_the_digest_of_its_payload(opened: Open) -> None:
    raw, unsigned = signed()
    digest = Digest.of(unsigned)

    class Old(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            if "/manifests/" not in request.path:
                return super().respond(request)
            return Response(200, {"Docker-Content-Digest": str(digest)}, raw)

    with Old() as registry:
        document = opened(registry).get_manifest(APP, digest)
        registry.stop()
        assert opened(registry).get_manifest(APP, digest) == document
    assert document.raw == raw


def test_a_manifest_describes_itself_and_who_refers_to_it_grows_old(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "signature", SIGNATURE)
    client = opened(embedded)
    document = client.get_manifest(APP, SIGNATURE.digest)
    assert [one.digest for one in client.referrers(APP, IMAGE.digest).value] == [SIGNATURE.digest]
    embedded.stop()
    client = opened(embedded, max_age=0)
    described = client.resolve(APP, SIGNATURE.digest).value
    assert (described.media_type, described.size) == (document.media_type, document.size)
    with pytest.raises(Unavailable):
        client.referrers(APP, IMAGE.digest)


def test_names_grow_too_old_and_what_a_digest_names_does_not(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    everything(opened(embedded))
    embedded.stop()
    client = opened(embedded, max_age=0)
    for ask in (client.catalog, lambda: client.list_tags(APP), lambda: client.resolve(APP, LATEST)):
        with pytest.raises(Unavailable):
            ask()
    assert client.get_manifest(APP, IMAGE.digest).raw == IMAGE.raw


def test_other_credentials_recall_nothing(opened: Open) -> None:
    behaviour = Behaviour(auth="basic")
    with EmbeddedRegistry(behaviour, username="alice", password="password") as registry:
        load(registry, "team/app", "latest", IMAGE)
        asked = everything(opened(registry, "alice"))
        registry.stop()
        assert everything(opened(registry, "alice")) == asked
        for other in ("bob", ""):
            client = opened(registry, other)
            with pytest.raises(Unavailable):
                client.get_manifest(APP, IMAGE.digest)


def log_in(file: Path, registry: EmbeddedRegistry, username: str) -> None:
    entry = {"username": username, "password": "password"}
    file.write_text(json.dumps({"auths": {registry.host: entry}}))


def test_who_logs_in_after_another_recalls_nothing_of_what_that_one_was_told(
    opened: Open, tmp_path: Path
) -> None:
    """Not even by the other's token, which is good for some time yet."""
    file = tmp_path / "auth.json"
    with EmbeddedRegistry(
        Behaviour(auth="bearer"), username="alice", password="password"
    ) as registry:
        load(registry, "team/app", "latest", IMAGE)
        log_in(file, registry, "alice")
        client = opened(registry, auth_files=(file,))
        tags = client.list_tags(APP)
        log_in(file, registry, "mallory")
        with pytest.raises(Denied):
            client.list_tags(APP)
        with pytest.raises(Denied):
            client.get_manifest(APP, IMAGE.digest)
    for ask in (lambda one: one.list_tags(APP), lambda one: one.get_manifest(APP, IMAGE.digest)):
        with pytest.raises(Unavailable):
            ask(opened(registry, auth_files=(file,)))
    log_in(file, registry, "alice")
    assert opened(registry, auth_files=(file,)).list_tags(APP) == tags


def test_who_logs_in_while_another_asks_recalls_nothing_of_the_answer(
    opened: Open, tmp_path: Path
) -> None:
    file = tmp_path / "auth.json"

    class Overtaken(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            answer = super().respond(request)
            if answer.status == 200 and "/team/app/" in request.path:
                log_in(file, self, "mallory")
            return answer

    with Overtaken(Behaviour(auth="basic"), username="alice", password="password") as registry:
        load(registry, "team/app", "latest", IMAGE)
        log_in(file, registry, "alice")
        opened(registry, auth_files=(file,)).list_tags(APP)
        log_in(file, registry, "alice")
        opened(registry, auth_files=(file,)).get_manifest(APP, IMAGE.digest)
    client = opened(registry, auth_files=(file,))
    for ask in (
        lambda: client.list_tags(APP),
        lambda: client.get_manifest(APP, IMAGE.digest),
        lambda: client.resolve(APP, IMAGE.digest),
    ):
        with pytest.raises(Unavailable):
            ask()


class Closing(EmbeddedRegistry):
    """Answers everything about `team/app` with a status and an error's code, once there is one."""

    status = 0
    code = ""

    def respond(self, request: Request) -> Response:
        if self.status and "/team/app/" in request.path:
            body = {"errors": [{"code": self.code}]} if self.code else {}
            return Response(self.status, {}, json.dumps(body).encode())
        return super().respond(request)


def test_once_access_was_denied_nothing_of_the_repository_is_recalled(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        load(registry, "team/other", "latest", IMAGE)
        client = opened(registry)
        everything(client)
        tags = client.list_tags(Repository("team/other"))
        registry.status = 403
        with pytest.raises(Denied):
            client.list_tags(APP)
        with pytest.raises(Denied):
            client.get_manifest(APP, IMAGE.digest)
        registry.stop()
        client = opened(registry)
        with pytest.raises(Unavailable):
            client.get_manifest(APP, IMAGE.digest)
        with pytest.raises(Unavailable):
            client.list_tags(APP)
        assert client.list_tags(Repository("team/other")) == tags


@pytest.mark.expects_log("neither kept nor served: cannot read the token file")
def test_credentials_that_cannot_be_had_for_a_moment_end_nothing_that_was_remembered(
    opened: Open, embedded: EmbeddedRegistry, tmp_path: Path
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    file = tmp_path / "token"
    file.write_text("canary")
    client = opened(embedded, token_file=file)
    asked = everything(client)
    file.unlink()
    embedded.stop()
    client.health.failed(Unavailable("refused"), pinged=True)
    with pytest.raises(CredentialsUnavailable):
        client.list_tags(APP)
    assert client.health.outage
    file.write_text("canary")
    assert everything(client) == asked


def test_what_the_registry_no_longer_has_is_recalled_no_more(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        client = opened(registry)
        everything(client)
        registry.status, registry.code = 404, "MANIFEST_UNKNOWN"
        with pytest.raises(NotFound):
            client.resolve(APP, LATEST)
        registry.stop()
        client = opened(registry)
        with pytest.raises(NotFound):
            client.resolve(APP, LATEST)
        assert client.get_manifest(APP, IMAGE.digest).raw == IMAGE.raw


def test_a_denied_listing_ends_nothing_but_itself(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        client = opened(registry)
        everything(client)
        registry.status = 403
        with pytest.raises(Denied):
            client.list_tags(APP)
        registry.stop()
        client = opened(registry)
        with pytest.raises(Denied):
            client.list_tags(APP)
        assert client.get_manifest(APP, IMAGE.digest).raw == IMAGE.raw


def test_a_404_without_a_code_is_no_answer_about_what_was_answered_before(opened: Open) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        client = opened(registry)
        asked = everything(client)
        registry.status = 404
        assert client.list_tags(APP) == asked[1]
        assert client.resolve(APP, LATEST) == asked[2]
        assert client.get_manifest(APP, IMAGE.digest) == asked[3]
        with pytest.raises(NotFound):
            client.resolve(APP, Tag("another"))


def test_a_registry_without_a_catalog_has_none_while_it_is_down_either(opened: Open) -> None:
    with EmbeddedRegistry(Behaviour(catalog=False)) as registry:
        with pytest.raises(Unsupported):
            opened(registry).catalog()
        registry.stop()
        with pytest.raises(Unsupported):
            opened(registry).catalog()


def test_an_answer_recalled_for_one_failure_of_the_registry_is_soon_asked_for_again(
    opened: Open, tmp_path: Path
) -> None:
    with Closing() as registry:
        load(registry, "team/app", "latest", IMAGE)
        opened(registry).resolve(APP, LATEST)
        load(registry, "team/app", "latest", SIGNATURE)
        client = opened(registry)
        history = TagHistory(tmp_path / "tags.sqlite", registry.url)
        options = ListingOptions(metadata_ttl=60, negative_ttl=0.1)
        listings = Listings(client, options, history)
        with closing(history), closing(listings):
            registry.status = 503
            assert listings.resolve(APP, LATEST).digest == IMAGE.digest
            registry.status = 0
            time.sleep(0.15)
            assert listings.resolve(APP, LATEST).digest == SIGNATURE.digest


def test_referrers_found_by_a_recalled_tag_are_soon_asked_for_again(
    opened: Open, tmp_path: Path
) -> None:
    def tagged(*manifests: bytes) -> bytes:
        listed = [descriptor(raw, OCI_MANIFEST) for raw in manifests]
        return encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})

    fallback = referrers_tag(IMAGE.digest).name
    with Closing(Behaviour(referrers=False)) as registry:
        load(registry, "team/app", "latest", IMAGE)
        registry.put_manifest("team/app", fallback, tagged(SIGNATURE.raw), OCI_INDEX)
        client = opened(registry)
        options = ListingOptions(metadata_ttl=60, negative_ttl=0.1)
        history = TagHistory(None, registry.url)
        before, after = (Listings(client, options, history, client.facts) for _ in range(2))
        with closing(history), closing(before), closing(after):
            assert before.referrers(APP, IMAGE.digest) == (SIGNATURE.digest,)
            registry.put_manifest("team/app", fallback, tagged(), OCI_INDEX)
            registry.status = 503
            assert after.referrers(APP, IMAGE.digest) == (SIGNATURE.digest,)
            registry.status = 0
            time.sleep(0.15)
            assert after.referrers(APP, IMAGE.digest) == ()


@pytest.mark.parametrize("damage", [b"", b"x", b"=application/json\n{}", b"=\xff\n{}", b"=[7]"])
def test_a_manifest_that_was_changed_on_disk_is_not_served(
    opened: Open, embedded: EmbeddedRegistry, path: Path, damage: bytes
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    client = opened(embedded)
    everything(client)
    client._answers.close()
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE answer SET value=?", (damage,))
    embedded.stop()
    client = opened(embedded)
    for ask in (
        lambda: client.get_manifest(APP, IMAGE.digest),
        lambda: client.list_tags(APP),
        lambda: client.resolve(APP, LATEST),
        lambda: client.blob_size(APP, Digest.of(IMAGE.blobs[-1])),
    ):
        with pytest.raises(Unavailable):
            ask()


def test_while_the_registry_is_known_to_be_down_what_is_recalled_costs_no_attempt(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    client = opened(embedded)
    asked = everything(client)
    embedded.stop()
    client.health.failed(Unavailable("refused"), pinged=True)
    requests = client._client.stats.requests
    assert everything(client) == asked
    pings = client._client.stats.requests - requests
    assert pings <= 2


# --- mirrors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("looks", range(3))
def test_an_outage_that_is_found_while_this_asks_does_not_keep_it_from_what_is_remembered(
    opened: Open, embedded: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    client = opened(embedded)
    tags = client.list_tags(APP)
    embedded.stop()
    found = chain([None] * looks, repeat(Outage(time.time(), "refused")))
    monkeypatch.setattr(Health, "outage", property(lambda _: next(found)))
    assert client.list_tags(APP) == tags


def test_a_mirrors_answer_does_not_end_the_registrys_outage(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    with EmbeddedRegistry() as mirror:
        for registry in (embedded, mirror):
            load(registry, "team/app", "latest", IMAGE)
        client = opened(embedded, mirrors=f'[host."{mirror.url}"]')
        embedded.stop()
        client.health.failed(Unavailable("refused"), pinged=True)
        assert client.resolve(APP, LATEST).value.digest == IMAGE.digest
        client.get_blob(APP, Digest.of(IMAGE.blobs[-1])).close()
        assert mirror.count("GET", "/blobs/") == 1
        assert client.health.outage


def test_what_a_mirror_gave_for_its_own_credentials_is_recalled_for_these_alone(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    with EmbeddedRegistry() as mirror:
        load(mirror, "team/app", "latest", IMAGE)
        mine, yours, none = (
            f'[host."{mirror.url}"]\n{header}'
            for header in ('header = {X-Key = "mine"}', 'header = {X-Key = "yours"}', "")
        )
        asked = opened(embedded, mirrors=mine).resolve(APP, LATEST)
    embedded.stop()
    assert opened(embedded, mirrors=mine).resolve(APP, LATEST) == asked
    for other in (yours, none, ""):
        with pytest.raises(Unavailable):
            opened(embedded, mirrors=other).resolve(APP, LATEST)
