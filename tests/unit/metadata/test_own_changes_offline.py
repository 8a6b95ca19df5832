"""What this process writes to a registry, or removes from it, is so too while that is down."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass

import pytest
from support.builders import image, load
from support.ownchanges import APP, LATEST, NEW, OTHER, write
from support.registries import EmbeddedRegistry
from support.remembering import Open, remembering

from epochfs.cache.tag_history import TagHistory
from epochfs.config import ListingOptions
from epochfs.demo.registry import Request, Response
from epochfs.errors import Unavailable
from epochfs.metadata.listings import Listings
from epochfs.oci.names import Digest, Tag

PATIENCE = 20.0

remembered = pytest.fixture(remembering)


@dataclass
class Outage:
    """A registry, and what has read it and remembers it when it stops."""

    registry: EmbeddedRegistry
    open_client: Open

    def listings(self) -> Listings:
        """Return listings anew, as a mount has them that begins now."""
        client = self.open_client(self.registry)
        return Listings(client, ListingOptions(), TagHistory(None, "r"), client.facts)


@pytest.mark.expects_log("is down, what is cached is served")
class TestOutage:
    @pytest.fixture
    def outage(self, remembered: Open, embedded: EmbeddedRegistry) -> Outage:
        load(embedded, "team/app", "latest", image(b"first"))
        load(embedded, "team/app", "gone", image(b"first"))
        return Outage(embedded, remembered)

    def test_what_was_written_is_remembered(
        self, outage: Outage, embedded: EmbeddedRegistry
    ) -> None:
        second = image(b"second")
        with closing(outage.listings()) as listings:
            listings.catalog()
            listings.tagged(APP)
            write(embedded, listings, second, LATEST, OTHER)
            write(embedded, listings, second, LATEST, repository=NEW)
            listings.tags(NEW)
        embedded.stop()
        with closing(outage.listings()) as listings:
            assert listings.catalog().children(("team",)) == ["app", "new"]
            assert listings.tags(APP) == (Tag("gone"), LATEST, OTHER)
            assert listings.resolve(APP, LATEST).digest == second.digest
            assert listings.resolve(APP, OTHER).digest == second.digest
            assert listings.manifest(APP, second.digest).raw == second.raw
            assert listings.tags(NEW) == (LATEST,)

    def test_what_was_removed_is_not(self, outage: Outage, embedded: EmbeddedRegistry) -> None:
        digest, layer = image(b"first").digest, Digest.of(b"first")
        with closing(outage.listings()) as listings:
            listings.tagged(APP)
            listings.removed_tag(APP, Tag("gone"))
            listings.removed_manifest(APP, digest)
            listings.removed_blob(APP, layer)
        embedded.stop()
        with closing(outage.listings()) as listings:
            for ask in (
                lambda: listings.tags(APP),
                lambda: listings.resolve(APP, Tag("gone")),
                lambda: listings.resolve(APP, LATEST),
                lambda: listings.manifest(APP, digest),
                lambda: listings.descriptor(APP, layer),
            ):
                with pytest.raises(Unavailable):
                    ask()

    def test_an_older_list_that_nobody_read_lately_is_forgotten_rather_than_wrong(
        self, outage: Outage, embedded: EmbeddedRegistry
    ) -> None:
        with closing(outage.listings()) as listings:
            listings.tags(APP)
        with closing(outage.listings()) as listings:
            write(embedded, listings, image(b"second"), OTHER)
        embedded.stop()
        with closing(outage.listings()) as listings:
            with pytest.raises(Unavailable):
                listings.tags(APP)
            assert listings.resolve(APP, OTHER).digest == image(b"second").digest

    def test_an_answer_that_was_on_its_way_is_not_remembered(self, remembered: Open) -> None:
        began, go = threading.Semaphore(0), threading.Event()

        class Slow(EmbeddedRegistry):
            def respond(self, request: Request) -> Response:
                response = super().respond(request)
                # What is not found is asked for with GET too, for the reason.
                is_last = response.status == 200 or request.method == "GET"
                if "/manifests/" in request.path and is_last:
                    began.release()
                    assert go.wait(PATIENCE)
                return response

        with Slow() as registry:
            load(registry, "team/app", "latest", image(b"first"))
            outage, second = Outage(registry, remembered), image(b"second")
            with closing(outage.listings()) as listings, ThreadPoolExecutor(2) as pool:
                older = [pool.submit(listings.resolve, APP, tag) for tag in (LATEST, OTHER)]
                assert all(began.acquire(timeout=PATIENCE) for _ in older)
                write(registry, listings, second, LATEST, OTHER)
                go.set()
                for one in older:
                    one.exception(PATIENCE)
            registry.stop()
            with closing(outage.listings()) as listings:
                assert listings.resolve(APP, LATEST).digest == second.digest
                assert listings.resolve(APP, OTHER).digest == second.digest
