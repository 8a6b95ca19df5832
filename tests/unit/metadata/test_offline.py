"""The client that remembers: what it recalls while the registry is down, for whom, and how long."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from itertools import chain, repeat
from pathlib import Path

import pytest
from support.builders import image, load, signed
from support.registries import EmbeddedRegistry
from support.remembering import APP, FILE, IMAGE, LATEST, Closing, Open, everything, remembering

from epochfs.cache.tag_history import TagHistory
from epochfs.config import ListingOptions
from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.demo.samples import descriptor, encode
from epochfs.errors import NotFound, Unavailable, Unsupported
from epochfs.metadata.health import Health, Outage
from epochfs.metadata.listings import Listings
from epochfs.metadata.source import Answer
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest, Repository, Tag, referrers_tag

SIGNATURE = image(b"signature", subject=descriptor(IMAGE.raw, OCI_MANIFEST))

pytestmark = pytest.mark.expects_log("is down, what is cached is served")

opened = pytest.fixture(remembering)


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
    opened: Open, embedded: EmbeddedRegistry, tmp_path: Path, damage: bytes
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    client = opened(embedded)
    everything(client)
    client._answers.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
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


@pytest.mark.parametrize("looks", range(3))
def test_an_outage_that_is_found_while_this_asks_does_not_keep_it_from_what_is_remembered(
    opened: Open, embedded: EmbeddedRegistry, monkeypatch: pytest.MonkeyPatch, looks: int
) -> None:
    load(embedded, "team/app", "latest", IMAGE)
    client = opened(embedded)
    tags = client.list_tags(APP)
    embedded.stop()
    found = chain([None] * looks, repeat(Outage(time.time(), "refused")))
    present = property(lambda _: next(found), lambda *_: None)
    monkeypatch.setattr(Health, "outage", present, raising=False)
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
