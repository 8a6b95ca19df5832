"""How old a listing may be, and what holds while the registry is away."""

from __future__ import annotations

import threading

import pytest
from support.builders import image, load
from support.registries import EmbeddedRegistry
from support.scripted import at_most
from support.stacks import Open, stacking

from epochfs.demo.registry import Request, Response
from epochfs.errors import DeadlineExceeded, Denied, NotFound, Unavailable
from epochfs.oci.names import Digest, Repository, Tag

APP, LATEST = Repository("team/app"), Tag("latest")

opened = pytest.fixture(stacking)


def test_a_tag_that_moved_is_seen_to(opened: Open, embedded: EmbeddedRegistry) -> None:
    listings = opened(embedded, metadata_ttl=0).listings
    load(embedded, "team/app", "latest", image(b"old"))
    before = listings.resolve(APP, LATEST)
    load(embedded, "team/app", "latest", image(b"new"))
    after = listings.resolve(APP, LATEST)
    assert [before.digest, after.digest] == [image(b"old").digest, image(b"new").digest]
    assert after.since_ns > before.since_ns


def test_a_tag_that_vanished_is_gone_and_the_others_stay(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    layers = opened(embedded, metadata_ttl=0)
    for tag in ("keep", "latest"):
        load(embedded, "team/app", tag, image(tag.encode()))
    assert layers.listings.tags(APP) == (Tag("keep"), LATEST)
    layers.client.delete_manifest(APP, LATEST)
    assert layers.listings.tags(APP) == (Tag("keep"),)
    with pytest.raises(NotFound):
        layers.listings.resolve(APP, LATEST)
    assert set(layers.listings.reachable(APP).manifests) == {image(b"keep").digest}


def test_a_tag_that_vanishes_between_listing_and_resolving_is_passed_over(opened: Open) -> None:
    class Forgetful(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            response = super().respond(request)
            return Response(404) if request.path.endswith("/manifests/latest") else response

    with Forgetful() as registry:
        for tag in ("keep", "latest"):
            load(registry, "team/app", tag, image(tag.encode()))
        reachable = opened(registry).listings.reachable(APP)
        assert set(reachable.manifests) == {image(b"keep").digest}


def test_a_repository_whose_last_tag_went_is_an_empty_one(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    layers = opened(embedded, metadata_ttl=0)
    load(embedded, "team/app", "latest", image())
    layers.client.delete_manifest(APP, image().digest)
    assert layers.listings.tags(APP) == ()
    assert list(layers.filesystem.listdir("/team/app/blobs")) == []


def test_while_the_registry_is_down_what_was_seen_is_served_and_nothing_else(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    listings = opened(embedded, metadata_ttl=0, retries=0).listings
    load(embedded, "team/app", "latest", image())
    seen = (listings.tags(APP), listings.resolve(APP, LATEST), listings.catalog().children(()))
    listings.manifest(APP, image().digest)
    embedded.stop()
    again = (listings.tags(APP), listings.resolve(APP, LATEST), listings.catalog().children(()))
    assert again == seen
    assert listings.manifest(APP, image().digest).raw == image().raw
    assert set(listings.reachable(APP).blobs) == {Digest.of(blob) for blob in image().blobs}
    for unseen in (
        lambda: listings.tags(Repository("other")),
        lambda: listings.resolve(APP, Tag("x")),
    ):
        with pytest.raises(Unavailable):
            unseen()


def test_once_the_registry_is_back_what_is_new_shows(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    listings = opened(embedded, metadata_ttl=0, negative_ttl=0, retries=0).listings
    load(embedded, "team/app", "old", image())
    listings.tags(APP)
    embedded.stop()
    assert listings.tags(APP) == (Tag("old"),)
    load(embedded, "team/app", "new", image())
    embedded.start()
    assert listings.tags(APP) == (Tag("new"), Tag("old"))


def test_stale_answers_can_be_turned_off(opened: Open, embedded: EmbeddedRegistry) -> None:
    listings = opened(embedded, metadata_ttl=0, stale_if_error=0, retries=0).listings
    load(embedded, "team/app", "latest", image())
    listings.tags(APP)
    embedded.stop()
    with pytest.raises(Unavailable):
        listings.tags(APP)


def test_a_denial_is_not_papered_over_with_what_was_seen(opened: Open) -> None:
    class Closing(EmbeddedRegistry):
        open = True

        def respond(self, request: Request) -> Response:
            return super().respond(request) if self.open else Response(403)

    with Closing() as registry:
        load(registry, "team/app", "latest", image())
        listings = opened(registry, metadata_ttl=0).listings
        listings.tags(APP)
        registry.open = False
        with pytest.raises(Denied):
            listings.tags(APP)


class SilentAboutManifests(EmbeddedRegistry):
    """Never answers in time what is asked about a manifest."""

    def __init__(self) -> None:
        super().__init__()
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()
        super().stop()

    def respond(self, request: Request) -> Response:
        if "/manifests/" in request.path and request.method in ("GET", "HEAD"):
            self._stopping.wait(30)
        return super().respond(request)


def test_a_registry_that_falls_silent_does_not_hold_up_the_listing_of_another_repository(
    opened: Open,
) -> None:
    with SilentAboutManifests() as registry:
        for number in range(64):
            load(registry, "team/app", f"t{number}", image())
        load(registry, "team/other", "latest", image())
        layers = opened(registry, timeout=1.0, retries=0, parallel=4)
        list(layers.filesystem.listdir("/team/app/tags"))
        with at_most(5), pytest.raises(DeadlineExceeded):
            layers.filesystem.getattr("/team/app/tags/t0")
        with at_most(5), pytest.raises(DeadlineExceeded):
            list(layers.filesystem.listdir("/team/other/manifests"))
