"""What a repository's tags lead to: found in any depth, and never silently less than all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from support.builders import SCHEMA1, image, index, load, random_bytes
from support.registries import Answering, EmbeddedRegistry
from support.scripted import until
from support.stacks import Open, stacking

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.demo.samples import encode
from epochfs.errors import (
    Denied,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
)
from epochfs.metadata.listings import Listings
from epochfs.oci.manifests import DOCKER_SCHEMA_1
from epochfs.oci.names import Digest, Repository, Tag

APP = Repository("team/app")

opened = pytest.fixture(stacking)


class Losing(EmbeddedRegistry):
    """Has lost some manifests that it lists, and calls `on_loss` when it says so."""

    def __init__(self, *behaviour: Behaviour) -> None:
        super().__init__(*behaviour)
        self.lost: tuple[str, ...] = ()
        self.on_loss: Callable[[], None] = lambda: None

    def respond(self, request: Request) -> Response:
        if request.path.endswith(self.lost or ("nothing",)):
            self.on_loss()
            return Response(404)
        return super().respond(request)


class TestLosses:
    @pytest.mark.parametrize("list_all", [Listings.tagged, Listings.reachable])
    def test_a_listed_tag_is_not_left_out_where_its_listing_is_forgotten_meanwhile(
        self, opened: Open, list_all: Callable[[Listings, Repository], Any]
    ) -> None:
        with Losing() as registry:
            load(registry, "team/app", "latest", image())
            listings = opened(registry).listings
            registry.lost, registry.on_loss = ("/manifests/latest",), listings.clear
            with pytest.raises(ProtocolViolation, match="the registry lists tag latest"):
                found = list_all(listings, APP)
                raise found.error or AssertionError(found)

    def test_referrers_that_a_tag_leads_to_and_are_gone_are_not_none(self, opened: Open) -> None:
        content, signature = image(), image(b"signature")
        with Losing(Behaviour(referrers=False)) as registry:
            load(registry, "team/app", "latest", content)
            tag = f"sha256-{content.digest.encoded}"
            load(registry, "team/app", tag, index(signature))
            registry.lost = (str(index(signature).digest),)
            listings = opened(registry).listings
            listings.resolve(APP, Tag.parse(tag))
            with pytest.raises(ProtocolViolation, match=f"tag {tag} of team/app leads to"):
                listings.referrers(APP, content.digest)


class TestReachable:
    def test_indexes_are_followed_to_every_platform(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        shared = random_bytes(100, 1)
        content = index(
            image(shared, b"for amd64"), index(image(shared, b"for arm64", architecture="arm64"))
        )
        load(embedded, "team/app", "latest", content)
        reachable = opened(embedded).listings.reachable(APP)
        assert set(reachable.manifests) == {one.digest for one in content.every_manifest()}
        assert set(reachable.blobs) == {Digest.of(blob) for blob in content.every_blob()}

    def test_a_chain_of_indexes_is_not_followed_for_ever(self, opened: Open) -> None:
        with EmbeddedRegistry() as registry:
            content = image()
            for _ in range(50):
                content = index(content)
            load(registry, "team/app", "latest", content)
            reachable = opened(registry).listings.reachable(APP)
            assert isinstance(reachable.error, TooLarge)
            assert "nested more than 4 indexes deep" in str(reachable.error)
            assert len(reachable.manifests) == 4
            assert registry.count("GET", "/manifests/") < 10

    def test_indexes_as_deep_as_may_be_are_listed_whole(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        content = index(index(index(image())))
        load(embedded, "team/app", "latest", content)
        reachable = opened(embedded).listings.reachable(APP)
        assert set(reachable.manifests) == {one.digest for one in content.every_manifest()}

    def test_a_platform_that_nobody_pushed_is_passed_over(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        here, absent = image(b"here"), image(b"absent", architecture="arm64")
        content = index(here, absent)
        load(embedded, "team/app", "latest", here)
        embedded.put_manifest("team/app", "latest", content.raw, content.media_type)
        reachable = opened(embedded).listings.reachable(APP)
        assert set(reachable.manifests) == {content.digest, here.digest}
        assert set(reachable.blobs) == {Digest.of(blob) for blob in here.blobs}

    def test_a_malformed_manifest_is_listed_and_what_it_names_is_an_error(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        good = image()
        load(embedded, "team/app", "good", good)
        embedded.put_manifest("team/app", "bad", b"{", good.media_type)
        reachable = opened(embedded).listings.reachable(APP)
        assert set(reachable.manifests) == {good.digest, Digest.of(b"{")}
        assert set(reachable.blobs) == {Digest.of(blob) for blob in good.every_blob()}
        assert "not valid JSON" in str(reachable.error)

    @pytest.mark.parametrize(
        ("status", "error"),
        [(500, Unavailable), (403, Denied), (404, ProtocolViolation), (400, ProtocolViolation)],
    )
    def test_what_cannot_be_had_is_an_error_behind_what_can(
        self, opened: Open, status: int, error: type[Exception]
    ) -> None:
        one, two = image(b"one"), image(b"two")
        with Answering({f"/v2/team/app/manifests/{two.digest}": status}) as registry:
            load(registry, "team/app", "one", one)
            load(registry, "team/app", "two", two)
            listings = opened(registry, timeout=2).listings
            listings.resolve(APP, Tag.parse("two"))
            reachable = listings.reachable(APP)
        assert isinstance(reachable.error, error)
        assert set(reachable.manifests) == {one.digest, two.digest}
        assert set(reachable.blobs) == {Digest.of(blob) for blob in one.every_blob()}

    def test_what_refers_to_a_manifest_is_reached_in_any_depth(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        content = image()
        load(embedded, "team/app", "latest", content)
        chain, blobs = [content], list(content.every_blob())
        for number in range(10):
            subject = {
                "mediaType": chain[-1].media_type,
                "digest": str(chain[-1].digest),
                "size": len(chain[-1].raw),
            }
            above = image(b"signature %d" % number, subject=subject)
            for blob in above.blobs:
                embedded.put_blob("team/app", blob)
            embedded.put_manifest("team/app", "", above.raw, above.media_type)
            chain.append(above)
            blobs += above.every_blob()
        reachable = opened(embedded).listings.reachable(APP)
        assert reachable.error is None
        assert set(reachable.manifests) == {one.digest for one in chain}
        assert set(reachable.blobs) == {Digest.of(blob) for blob in blobs}

    def test_the_blobs_of_schema_1_are_reached_and_open(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        blob = embedded.put_blob("team/app", b"a layer of long ago")
        raw = encode({**SCHEMA1, "fsLayers": [{"blobSum": str(blob)}]})
        embedded.put_manifest("team/app", "old", raw, DOCKER_SCHEMA_1)
        layers = opened(embedded)
        reachable = layers.listings.reachable(APP)
        assert (reachable.error, set(reachable.blobs)) == (None, {blob})
        assert layers.filesystem.getattr(f"/team/app/blobs/{blob}").size == 19


class TestRemembering:
    def test_what_is_reachable_is_followed_once_while_nothing_of_it_changes(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "latest", image())
        listings = opened(embedded).listings
        found = listings.reachable(APP)
        assert listings.reachable(APP) is found
        listings.clear()
        assert listings.reachable(APP) is not found

    def test_a_tag_that_this_process_moves_leads_elsewhere_at_once(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        one, two = image(b"one"), image(b"two")
        load(embedded, "team/app", "latest", one)
        load(embedded, "team/app", "other", two)
        listings = opened(embedded).listings
        assert set(listings.reachable(APP).manifests) == {one.digest, two.digest}
        listings.wrote_tag(APP, Tag.parse("latest"), two.digest)
        assert set(listings.reachable(APP).manifests) == {two.digest}
        listings.removed_tag(APP, Tag.parse("other"))
        listings.removed_tag(APP, Tag.parse("latest"))
        assert not listings.reachable(APP).manifests

    def test_a_tag_that_somebody_else_moves_leads_elsewhere_when_it_is_asked_for_again(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        one, two = image(b"one"), image(b"two")
        load(embedded, "team/app", "latest", one)
        listings = opened(embedded, metadata_ttl=1.0).listings
        assert set(listings.reachable(APP).manifests) == {one.digest}
        load(embedded, "team/app", "latest", two)
        until(lambda: set(listings.reachable(APP).manifests) == {two.digest})

    def test_what_is_incomplete_is_followed_again(self, opened: Open) -> None:
        with Losing() as registry:
            content = image()
            load(registry, "team/app", "latest", content)
            listings = opened(registry).listings
            registry.lost = ("/manifests/latest",)
            assert listings.reachable(APP).error is not None
            registry.lost = ()
            listings.clear()
            assert set(listings.reachable(APP).manifests) == {content.digest}

    def test_what_a_denial_forgets_is_followed_again(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "latest", image())
        listings = opened(embedded).listings
        found = listings.reachable(APP)
        with pytest.raises(NotFound):
            listings.manifest(APP, Digest.of(b"absent"))
        assert listings.reachable(APP) is found
        denied = f"/v2/team/app/manifests/{Digest.of(b'denied')}"
        with Answering({denied: 403}) as registry:
            content = image()
            load(registry, "team/app", "latest", content)
            listings = opened(registry).listings
            found = listings.reachable(APP)
            with pytest.raises(Denied):
                listings.manifest(APP, Digest.of(b"denied"))
            assert listings.reachable(APP) is not found


class Garbling(EmbeddedRegistry):
    """Sends other bytes than it announces under every tag."""

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        if request.method == "GET" and request.path.endswith("/manifests/latest"):
            return replace(response, body=b'{"x": 1}')
        return response


def test_a_manifest_that_is_not_what_its_tag_announces_is_not_believed(opened: Open) -> None:
    with Garbling() as registry:
        content = image()
        load(registry, "team/app", "latest", content)
        reachable = opened(registry).listings.reachable(APP)
        assert reachable.error is None
        assert set(reachable.manifests) == {content.digest}
        assert registry.count("HEAD", "/manifests/latest") == 1
