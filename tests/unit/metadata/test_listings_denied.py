"""What digests name was proved readable once; a denial ends that, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.builders import image, load
from support.registries import EmbeddedRegistry
from support.stacks import Open, stacking

from epochfs.demo.registry import Request, Response
from epochfs.errors import (
    Denied,
)
from epochfs.metadata.listings import Listings
from epochfs.oci.names import Digest, Repository, Tag

APP = Repository("team/app")
LATEST = Tag("latest")

opened = pytest.fixture(stacking)


class TestDenials:
    """What digests name was proved readable once; that one of them is denied ends it."""

    @pytest.mark.parametrize(
        "ask",
        [
            lambda listings: listings.resolve(APP, LATEST),
            lambda listings: listings.manifest(APP, Digest.of(b"another")),
            lambda listings: listings.descriptor(APP, Digest.of(b"another")),
            lambda listings: listings.snapshot_config(APP, Digest.of(b"another")),
        ],
        ids=["tag", "manifest", "blob", "config"],
    )
    def test_a_denied_repository_is_forgotten_and_its_neighbours_are_not(
        self, opened: Open, ask: Callable[[Listings], object]
    ) -> None:
        content, other = image(), Repository("team/other")
        config = Digest.of(content.blobs[0])
        with Deniable() as registry:
            for repository in (APP, other):
                load(registry, repository.name, "latest", content)
            listings = opened(registry).listings
            for repository in (APP, other):
                listings.manifest(repository, content.digest)
                listings.snapshot_config(repository, config)
            registry.denied = "/v2/team/app/"
            with pytest.raises(Denied):
                ask(listings)
            assert not listings.names_blob(APP, config)
            for again in (listings.manifest, listings.snapshot_config, listings.descriptor):
                with pytest.raises(Denied):
                    again(APP, content.digest if again == listings.manifest else config)
            registry.forget_requests()
            assert listings.manifest(other, content.digest).raw == content.raw
            assert listings.snapshot_config(other, config).weight == len(content.blobs[0])
            assert listings.names_blob(other, config)
            assert registry.count() == 0

    @pytest.mark.parametrize(
        "ask",
        [
            lambda listings: listings.tags(APP),
            lambda listings: listings.referrers(APP, Digest.of(b"another")),
        ],
        ids=["tags", "referrers"],
    )
    def test_a_denied_listing_takes_nothing_away_of_what_was_fetched(
        self, opened: Open, ask: Callable[[Listings], object]
    ) -> None:
        content = image()
        with Deniable() as registry:
            load(registry, "team/app", "latest", content)
            listings = opened(registry).listings
            listings.manifest(APP, content.digest)
            registry.denied = "/v2/team/app/"
            with pytest.raises(Denied):
                ask(listings)
            assert listings.manifest(APP, content.digest).raw == content.raw
            assert listings.names_blob(APP, Digest.of(content.blobs[0]))

    def test_what_was_being_fetched_over_a_denial_is_not_kept(self, opened: Open) -> None:
        content = image()
        with Deniable() as registry, ThreadPoolExecutor(1) as pool:
            load(registry, "team/app", "latest", content)
            listings = opened(registry).listings
            registry.held = f"/manifests/{content.digest}"
            before = pool.submit(listings.manifest, APP, content.digest)
            assert registry.holds.wait(20)
            registry.denied = "/v2/team/app/manifests/latest"
            with pytest.raises(Denied):
                listings.resolve(APP, LATEST)
            registry.go.set()
            assert before.result(20).raw == content.raw
            registry.denied = "/v2/team/app/"
            with pytest.raises(Denied):
                listings.manifest(APP, content.digest)


class Deniable(EmbeddedRegistry):
    """Denies what begins with `denied`; answers what ends with `held` once it may `go` on."""

    denied = held = "nothing"

    def __init__(self) -> None:
        super().__init__()
        self.holds, self.go = threading.Event(), threading.Event()

    def respond(self, request: Request) -> Response:
        if request.path.startswith(self.denied):
            return Response(403)
        if request.path.endswith(self.held):
            self.holds.set()
            assert self.go.wait(20)
        return super().respond(request)
