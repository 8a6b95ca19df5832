"""What this process writes to a registry, or removes from it, is listed at once, unasked."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.builders import Content, image, index, load, signature
from support.ownchanges import APP, LATEST, NEW, OTHER, write
from support.registries import EmbeddedRegistry
from support.stacks import Open, Stack, stacking

from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.demo.samples import descriptor, encode
from epochfs.errors import NotFound
from epochfs.metadata.listings import Listings
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST, Descriptor, Document
from epochfs.oci.names import Digest, Repository, Tag, referrers_tag

PATIENCE = 20.0

opened = pytest.fixture(stacking)


@pytest.fixture
def layers(opened: Open, embedded: EmbeddedRegistry) -> Stack:
    load(embedded, "team/app", "latest", image(b"first"))
    return opened(embedded)


def known(layers: Stack, registry: EmbeddedRegistry) -> Listings:
    """Return listings that have read all of `team/app` before, and no request so far."""
    listings = layers.listings
    listings.catalog()
    listings.tagged(APP)
    listings.reachable(APP)
    registry.forget_requests()
    return listings


class TestTags:
    def test_a_new_tag_is_there_and_nobody_is_asked(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        second = image(b"second")
        write(embedded, listings, second, OTHER)
        assert listings.tags(APP) == (LATEST, OTHER)
        assert listings.resolve(APP, OTHER).digest == second.digest
        assert [tag for tag, _, _ in listings.tagged(APP)] == [LATEST, OTHER]
        assert embedded.count() == 0
        assert second.digest in listings.reachable(APP).manifests
        assert embedded.count("GET", "/tags/") == embedded.count("HEAD") == 0

    def test_a_tag_that_moves_does_so_at_that_time(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        before = listings.resolve(APP, LATEST)
        write(embedded, listings, image(b"second"), LATEST)
        after = listings.resolve(APP, LATEST)
        assert after.digest == image(b"second").digest
        assert after.since_ns > before.since_ns
        listings.clear()
        assert listings.resolve(APP, LATEST) == after

    def test_the_layout_shows_it(self, layers: Stack, embedded: EmbeddedRegistry) -> None:
        filesystem = layers.filesystem
        path = "/team/app/layout/index.json"
        before = filesystem.getattr(path)
        write(embedded, layers.listings, image(b"second"), OTHER)
        assert filesystem.getattr(path).time_ns > before.time_ns
        handle = filesystem.open(path)
        buffer = bytearray(1 << 16)
        size = filesystem.read_into(handle.handle, memoryview(buffer), 0)
        assert str(image(b"second").digest).encode() in buffer[:size]
        assert filesystem.readlink("/team/app/tags/other").endswith(str(image(b"second").digest))

    def test_a_tag_that_was_looked_for_in_vain_is_there(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        with pytest.raises(NotFound):
            listings.resolve(APP, OTHER)
        write(embedded, listings, image(b"second"), OTHER)
        assert listings.resolve(APP, OTHER).digest == image(b"second").digest

    def test_two_hundred_tags_cost_one_listing(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = layers.listings
        embedded.forget_requests()
        content = image(b"second")
        for number in range(200):
            write(embedded, listings, content, Tag(f"t{number}"))
            listings.check(APP)
            assert listings.holds_tags(APP)
            assert Tag(f"t{number}") in listings.tags(APP)
        assert embedded.count("GET", "/tags/list") == 1
        assert embedded.count() <= 3

    def test_a_removed_tag_is_gone_and_its_sibling_stays(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "other", image(b"first"))
        listings = known(layers, embedded)
        layers.client.delete_tag(APP, OTHER)
        embedded.forget_requests()
        listings.removed_tag(APP, OTHER)
        assert listings.tags(APP) == (LATEST,)
        with pytest.raises(NotFound):
            listings.resolve(APP, OTHER)
        assert listings.resolve(APP, LATEST).digest == image(b"first").digest
        assert embedded.count() == 0
        write(embedded, listings, image(b"first"), OTHER)
        assert listings.resolve(APP, OTHER).digest == image(b"first").digest
        assert listings.tags(APP) == (LATEST, OTHER)

    def test_what_the_registry_lists_later_is_believed(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        write(embedded, listings, image(b"second"), OTHER)
        layers.client.delete_tag(APP, OTHER)
        listings.clear()
        assert listings.tags(APP) == (LATEST,)

    @pytest.mark.parametrize("written", [True, False])
    def test_an_answer_that_was_on_its_way_undoes_nothing(
        self, opened: Open, written: bool
    ) -> None:
        began, go = threading.Event(), threading.Event()

        class Slow(EmbeddedRegistry):
            slow = ""

            def respond(self, request: Request) -> Response:
                response = super().respond(request)
                if self.slow and request.path.endswith(self.slow):
                    began.set()
                    assert go.wait(PATIENCE)
                return response

        for slow in ("/tags/list", "/manifests/latest"):
            began.clear()
            go.clear()
            with Slow() as registry, ThreadPoolExecutor(1) as pool:
                load(registry, "team/app", "keep", image(b"first"))
                load(registry, "team/app", "latest", image(b"first"))
                stack = opened(registry)
                listings = stack.listings
                registry.slow = slow
                is_list = slow == "/tags/list"
                older = pool.submit(
                    listings.tags if is_list else listings.resolve,  # type: ignore[arg-type]
                    *((APP,) if is_list else (APP, LATEST)),
                )
                assert began.wait(PATIENCE)
                registry.slow = ""
                if written:
                    write(registry, listings, image(b"second"), LATEST, OTHER)
                    moved = listings.resolve(APP, LATEST)
                else:
                    stack.client.delete_tag(APP, LATEST)
                    listings.removed_tag(APP, LATEST)
                go.set()
                older.exception(PATIENCE)
                if written:
                    assert listings.resolve(APP, LATEST) == moved
                    assert listings.tags(APP) == (Tag("keep"), LATEST, OTHER)
                    listings.clear()
                    assert listings.resolve(APP, LATEST) == moved
                else:
                    assert listings.tags(APP) == (Tag("keep"),)
                    with pytest.raises(NotFound):
                        listings.resolve(APP, LATEST)


class TestRepositories:
    def test_a_new_one_is_listed_once_it_has_a_tag_and_nobody_is_asked(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        with pytest.raises(NotFound):
            listings.tags(NEW)
        content = image(b"second")
        write(embedded, listings, content, LATEST, repository=NEW)
        embedded.forget_requests()
        assert listings.catalog().children(("team",)) == ["app", "new"]
        listings.check(NEW)
        assert listings.holds_tags(NEW)
        assert listings.resolve(NEW, LATEST).digest == content.digest
        assert embedded.count() == 0
        assert listings.tags(NEW) == (LATEST,)
        assert embedded.count() == 1

    def test_a_thousand_new_ones_cost_no_catalog_each(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        digest = image(b"first").digest
        for number in range(1000):
            listings.wrote_tag(Repository(f"many/r{number}"), LATEST, digest)
            assert len(listings.catalog().children(("many",))) == number + 1
        assert embedded.count() == 0

    @pytest.mark.parametrize("behaviour", [Behaviour(), EPOCH, Behaviour(catalog=False)])
    def test_the_first_of_an_empty_registry_is_there(
        self, opened: Open, behaviour: Behaviour
    ) -> None:
        with EmbeddedRegistry(behaviour) as registry:
            listings = opened(registry).listings
            listings.catalog()
            with pytest.raises(NotFound):
                listings.tags(NEW)
            write(registry, listings, image(b"second"), LATEST, repository=NEW)
            listings.check(NEW)
            assert listings.holds_tags(NEW)
            assert listings.tags(NEW) == (LATEST,)
            assert (NEW in listings.catalog()) == behaviour.catalog

    def test_whether_one_is_listed_whose_last_tag_went_is_the_registrys_to_say(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        layers.client.delete_tag(APP, LATEST)
        embedded.forget_requests()
        listings.removed_tag(APP, LATEST)
        assert APP in listings.catalog()
        assert listings.tags(APP) == ()
        assert embedded.count("GET", "/_catalog") == embedded.count() == 1


class TestManifestsAndBlobs:
    def test_what_was_written_is_known_without_a_request(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings = known(layers, embedded)
        content = index()
        write(embedded, listings, content)
        assert listings.manifest(APP, content.digest).raw == content.raw
        found = listings.closure(APP, content.digest)
        assert found.error is None
        assert set(found.manifests) == {one.digest for one in content.every_manifest()}
        for blob in content.every_blob():
            assert listings.descriptor(APP, Digest.of(blob)).size == len(blob)
            assert listings.names_blob(APP, Digest.of(blob))
        assert embedded.count() == 0

    def test_a_blob_that_was_looked_for_in_vain_is_there(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings, digest = known(layers, embedded), Digest.of(b"blob")
        with pytest.raises(NotFound):
            listings.descriptor(APP, digest)
        embedded.put_blob("team/app", b"blob")
        listings.wrote_blob(APP, Descriptor("", digest, 4))
        embedded.forget_requests()
        assert listings.descriptor(APP, digest).size == 4
        assert embedded.count() == 0

    def test_a_closure_that_lacked_a_manifest_has_it(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings, content = known(layers, embedded), index()
        embedded.put_manifest("team/app", "", content.raw, content.media_type)
        listings.wrote_manifest(APP, Document(content.digest, content.media_type, content.raw))
        assert set(listings.closure(APP, content.digest).manifests) == {content.digest}
        child = content.children[0]
        listings.wrote_manifest(APP, Document(child.digest, child.media_type, child.raw))
        assert child.digest in listings.closure(APP, content.digest).manifests

    def test_a_closure_that_was_being_followed_is_not_kept(self, opened: Open) -> None:
        began, go, content = threading.Event(), threading.Event(), index()
        child = content.children[0]

        class Slow(EmbeddedRegistry):
            def respond(self, request: Request) -> Response:
                response = super().respond(request)
                if request.path.endswith(str(child.digest)):
                    began.set()
                    assert go.wait(PATIENCE)
                return response

        with Slow() as registry, ThreadPoolExecutor(1) as pool:
            listings = opened(registry).listings
            write(registry, listings, Content(content.raw, content.media_type))
            older = pool.submit(listings.closure, APP, content.digest)
            assert began.wait(PATIENCE)
            write(registry, listings, child)
            go.set()
            assert child.digest not in older.result(PATIENCE).manifests
            assert child.digest in listings.closure(APP, content.digest).manifests

    def test_a_referrer_is_listed(self, layers: Stack, embedded: EmbeddedRegistry) -> None:
        listings, subject = known(layers, embedded), image(b"first")
        assert listings.referrers(APP, subject.digest) == ()
        signed = signature(subject)
        write(embedded, listings, signed)
        assert listings.referrers(APP, subject.digest) == (signed.digest,)
        assert signed.digest in listings.reachable(APP).manifests
        layers.client.delete_manifest(APP, signed.digest)
        listings.removed_manifest(APP, signed.digest)
        assert listings.referrers(APP, subject.digest) == ()

    def test_a_referrer_is_listed_by_the_fallback_tag(self, opened: Open) -> None:
        with EmbeddedRegistry(Behaviour(referrers=False)) as registry:
            subject = image(b"first")
            load(registry, "team/app", "latest", subject)
            listings = opened(registry).listings
            assert listings.referrers(APP, subject.digest) == ()
            signed = signature(subject)
            write(registry, listings, signed)
            assert listings.referrers(APP, subject.digest) == ()
            manifests = [descriptor(signed.raw, OCI_MANIFEST)]
            listed = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
            fallback = Content(encode(listed), OCI_INDEX)
            write(registry, listings, fallback, referrers_tag(subject.digest))
            assert listings.referrers(APP, subject.digest) == (signed.digest,)

    def test_a_removed_manifest_is_gone_and_so_are_its_tags(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "other", image(b"second"))
        listings, digest = known(layers, embedded), image(b"first").digest
        layers.client.delete_manifest(APP, digest)
        listings.removed_manifest(APP, digest)
        embedded.forget_requests()
        with pytest.raises(NotFound, match="deleted"):
            listings.manifest(APP, digest)
        assert embedded.count() == 0
        assert listings.tags(APP) == (OTHER,)
        with pytest.raises(NotFound):
            listings.resolve(APP, LATEST)
        assert set(listings.reachable(APP).manifests) == {image(b"second").digest}

    def test_a_removed_blob_is_gone_though_a_manifest_names_it(
        self, layers: Stack, embedded: EmbeddedRegistry
    ) -> None:
        listings, digest = known(layers, embedded), Digest.of(b"first")
        assert listings.descriptor(APP, digest).size == len(b"first")
        layers.client.delete_blob(APP, digest)
        listings.removed_blob(APP, digest)
        with pytest.raises(NotFound):
            listings.descriptor(APP, digest)
        assert not listings.names_blob(APP, digest)
