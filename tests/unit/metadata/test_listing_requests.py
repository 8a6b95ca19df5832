"""What listings cost: how many requests, and how much time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import pytest
from support.builders import image, load, random_bytes
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.stacks import Open, stacking

from epochfs.demo.registry import Request, Response
from epochfs.errors import (
    DeadlineExceeded,
    NotFound,
)
from epochfs.metadata.listings import Listings
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.vfs.filesystem import FileSystem

APP = Repository("team/app")

opened = pytest.fixture(stacking)


def load_tags(registry: EmbeddedRegistry, tags: int) -> None:
    for number in range(tags):
        load(registry, "team/app", f"t{number:03}", image(f"layer {number}".encode()))
    registry.forget_requests()


class TestRequests:
    def test_a_listing_resolves_nothing(self, opened: Open, embedded: EmbeddedRegistry) -> None:
        load_tags(embedded, 50)
        filesystem = opened(embedded).filesystem
        assert len(list(filesystem.listdir("/team/app/tags"))) == 50
        assert [request.path for request in embedded.requests] == ["/v2/team/app/tags/list"]

    def test_the_first_that_is_resolved_after_a_listing_starts_the_rest(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 50)
        layers = opened(embedded)
        list(layers.filesystem.listdir("/team/app/tags"))
        for number in range(50):
            layers.filesystem.getattr(f"/team/app/tags/t{number:03}")
        assert embedded.count("HEAD", "/manifests/t") == 50
        assert embedded.count() == 51

    def test_a_tag_that_is_known_already_does_not_keep_the_rest_from_being_resolved(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 50)
        filesystem = opened(embedded).filesystem
        filesystem.readlink("/team/app/tags/t000")
        list(filesystem.listdir("/team/app/tags"))
        filesystem.readlink("/team/app/tags/t000")
        assert embedded.count("HEAD", "/manifests/t") == 1
        filesystem.readlink("/team/app/tags/t001")
        until(lambda: embedded.count("HEAD", "/manifests/t") == 50)

    def test_the_rest_is_resolved_in_parallel(self, opened: Open) -> None:
        together = threading.Barrier(8)

        class Waiting(EmbeddedRegistry):
            def respond(self, request: Request) -> Response:
                if request.method == "HEAD":
                    with suppress(threading.BrokenBarrierError):
                        together.wait(20)
                return super().respond(request)

        with Waiting() as registry:
            load_tags(registry, 8)
            layers = opened(registry, parallel=8)
            list(layers.filesystem.listdir("/team/app/tags"))
            layers.filesystem.getattr("/team/app/tags/t000")
            assert not together.broken
            together.abort()  # the rest that come are perhaps fewer than eight

    def test_one_tag_without_a_listing_is_one_request(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 50)
        opened(embedded).filesystem.readlink("/team/app/tags/t007")
        assert [request.path for request in embedded.requests] == ["/v2/team/app/manifests/t007"]

    def test_within_the_time_to_live_nothing_is_asked_again(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 10)
        filesystem = opened(embedded).filesystem

        def walk(path: str) -> None:
            for entry in filesystem.listdir(path):
                below = f"{path.rstrip('/')}/{entry.name}"
                filesystem.getattr(below)
                filesystem.xattrs(below)
                if entry.mode == 0o040000:
                    walk(below)

        walk("/")
        embedded.forget_requests()
        walk("/")
        assert embedded.count() == 0

    def test_a_manifest_of_many_tags_is_not_fetched_for_each(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        for number in range(40):
            load(embedded, "team/app", f"t{number}", image())
        layers = opened(embedded, parallel=2)
        for path in ("manifests", "blobs"):
            list(layers.filesystem.listdir(f"/team/app/{path}"))
        fetched = embedded.count("GET", "/manifests/t")
        assert fetched <= 4  # the first two, and what was under way when they were the same
        assert embedded.count("HEAD", "/manifests/t") == 40 - fetched
        assert embedded.count("", "/manifests/sha256") == 0

    def test_a_manifest_is_fetched_by_the_tag_of_which_nothing_is_known(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 10)
        layers = opened(embedded)
        manifests = [entry.name for entry in layers.filesystem.listdir("/team/app/manifests")]
        for name in manifests:
            layers.filesystem.getattr(f"/team/app/manifests/{name}/manifest.json")
        layers.filesystem.getattr("/team/app/layout/index.json")
        assert embedded.count("GET", "/manifests/t") == 10
        assert embedded.count("", "/manifests/") == 10

    def test_a_link_is_read_without_fetching_what_it_leads_to(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 10)
        filesystem = opened(embedded).filesystem
        for entry in filesystem.listdir("/team/app/tags"):
            filesystem.readlink(f"/team/app/tags/{entry.name}")
        assert embedded.count("HEAD", "/manifests/") == 10
        assert embedded.count("GET", "/manifests/") == 0

    def test_a_tag_that_was_seen_before_is_asked_for_by_head(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load_tags(embedded, 10)
        listings = opened(embedded).listings
        listings.resolve(APP, Tag.parse("t000"))
        listings.clear()
        assert len(listings.reachable(APP).manifests) == 10
        assert embedded.count("HEAD", "/manifests/t000") == 2
        assert embedded.count("GET", "/manifests/t") == 9
        assert embedded.count("GET", "/manifests/sha256") == 1
        embedded.forget_requests()
        listings.clear()
        assert len(listings.reachable(APP).manifests) == 10
        assert embedded.count("HEAD", "/manifests/t") == 10
        assert embedded.count("GET", "/manifests/") == 0

    def test_sizes_come_from_descriptors(self, opened: Open, embedded: EmbeddedRegistry) -> None:
        content = image(random_bytes(5000))
        load(embedded, "team/app", "latest", content)
        layers = opened(embedded)
        for entry in layers.filesystem.listdir("/team/app/blobs"):
            assert layers.filesystem.getattr(f"/team/app/blobs/{entry.name}").size > 0
        assert embedded.count("HEAD", "/blobs/") == 0

    def test_a_blob_that_no_manifest_names_costs_one_head(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "latest", image())
        digest = embedded.put_blob("team/app", b"an orphan")
        layers = opened(embedded)
        sizes = [layers.filesystem.getattr(f"/team/app/blobs/{digest}").size for _ in range(3)]
        assert sizes == [9, 9, 9]
        assert embedded.count("HEAD", "/blobs/") == 1

    def test_an_unknown_blob_is_asked_for_once_in_a_while(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        load(embedded, "team/app", "latest", image())
        listings = opened(embedded).listings
        for _ in range(3):
            with pytest.raises(NotFound):
                listings.descriptor(APP, Digest.of(b"nobody has this"))
        assert embedded.count("HEAD", "/blobs/") == 1


def load_repositories(registry: EmbeddedRegistry, repositories: int) -> list[str]:
    """Put two images into each; return the repositories in a walk's order."""
    names = [f"team/r{number:03}" for number in range(repositories)]
    for name in names:
        for tag in ("a", "b"):
            load(registry, name, tag, image(f"{name} {tag}".encode()))
    registry.forget_requests()
    return names


def every_manifest(listings: Listings) -> Iterable[Digest]:
    """Return the manifests that tags lead to; raises if that is not all there is."""
    found = listings.reachable(APP)
    found.complete()
    return found.manifests


class Slow(EmbeddedRegistry):
    """Takes a while for whatever is asked about a manifest."""

    def respond(self, request: Request) -> Response:
        if "/manifests/" in request.path:
            time.sleep(0.1)
        return super().respond(request)


class TestTheTimeLimit:
    @pytest.mark.parametrize(
        "ask",
        [
            lambda listings: len(list(every_manifest(listings))),
            lambda listings: len(listings.tagged(APP)),
        ],
        ids=["reachable", "tagged"],
    )
    def test_what_takes_many_requests_ends_in_time_and_another_try_goes_on(
        self, opened: Open, ask: Callable[[Listings], int]
    ) -> None:
        with Slow() as registry:
            load_tags(registry, 40)
            listings = opened(registry, timeout=0.6, parallel=4).listings
            tries = 0
            while True:
                tries += 1
                began = time.monotonic()
                try:
                    found = ask(listings)
                    break
                except DeadlineExceeded as error:
                    assert "another try goes on" in str(error)
                assert 0.5 < time.monotonic() - began < 5
                assert tries < 10
            assert found == 40
            assert tries > 1
            assert registry.count("GET", "/manifests/t") == 40
            assert registry.count("", "/manifests/") == 40

    def test_what_is_done_ahead_of_a_walk_has_none(self, opened: Open) -> None:
        with Slow() as registry:
            names = load_repositories(registry, 4)
            listings = opened(registry, timeout=0.3, parallel=1).listings
            listings.catalog()
            for name in names[:2]:
                with suppress(DeadlineExceeded):
                    listings.reachable(Repository(name))
            until(lambda: registry.count("GET", f"/{names[2]}/manifests/") == 2)


class TestWalks:
    def test_a_walk_asks_for_each_thing_once(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        names = load_repositories(embedded, 40)
        layers = opened(embedded, parallel=4)
        assert layers.listings.catalog().children(()) == ["team"]
        for name in names:
            for directory in ("blobs", "manifests", "tags"):
                list(layers.filesystem.listdir(f"/{name}/{directory}"))
        assert embedded.count("GET", "/tags/list") == 40
        assert embedded.count("HEAD", "/manifests/") == 0
        assert embedded.count("GET", "/manifests/") == 80
        assert embedded.count("GET", "/referrers/") == 80
        assert embedded.count() == 201

    def test_the_next_siblings_are_begun_when_the_second_is_asked_for(self, opened: Open) -> None:
        third = threading.Event()

        class Watching(EmbeddedRegistry):
            def respond(self, request: Request) -> Response:
                if request.path == "/v2/team/r002/tags/list":
                    third.set()
                if request.path == "/v2/team/r001/tags/list":
                    assert third.wait(20)
                return super().respond(request)

        with Watching() as registry:
            names = load_repositories(registry, 3)
            layers = opened(registry)
            layers.listings.catalog()
            for name in names[:2]:
                list(layers.filesystem.listdir(f"/{name}/tags"))
        assert registry.count("HEAD") == 0

    def test_one_listing_begins_no_other(self, opened: Open, embedded: EmbeddedRegistry) -> None:
        names = load_repositories(embedded, 3)
        layers = opened(embedded)
        layers.listings.catalog()
        list(layers.filesystem.listdir(f"/{names[0]}/tags"))
        assert embedded.count("GET", "/tags/list") == 1


class TestReadingManifests:
    @pytest.fixture
    def filesystem(self, opened: Open, embedded: EmbeddedRegistry) -> FileSystem:
        load_tags(embedded, 50)
        filesystem = opened(embedded, parallel=4).filesystem
        assert len(filesystem.listdir("/team/app/tags")) == 50
        return filesystem

    def read(self, filesystem: FileSystem, number: int) -> bytes:
        link = filesystem.readlink(f"/team/app/tags/t{number:03}")
        path = f"/team/app/{link.removeprefix('../')}/manifest.json"
        size = filesystem.getattr(path).size
        opened = filesystem.open(path)
        try:
            return filesystem.read(opened.handle, 0, size)
        finally:
            filesystem.release(opened.handle)

    def test_who_reads_the_manifest_of_the_next_tag_finds_those_behind_it_fetched(
        self, filesystem: FileSystem, embedded: EmbeddedRegistry
    ) -> None:
        self.read(filesystem, 7)
        self.read(filesystem, 8)
        until(lambda: embedded.count("GET", "/manifests/") == 6)
        for number in range(9, 50):
            assert Digest.of(self.read(filesystem, number)).encoded
        assert embedded.count("GET", "/manifests/") == 43

    def test_who_looks_for_the_next_tags_manifest_finds_those_behind_it_fetched(
        self, filesystem: FileSystem, embedded: EmbeddedRegistry
    ) -> None:
        """A shell looks for all that match a pattern before anything is read."""

        def look(number: int) -> None:
            link = filesystem.readlink(f"/team/app/tags/t{number:03}")
            assert filesystem.getattr(f"/team/app/{link.removeprefix('../')}")

        look(7)
        look(8)
        until(lambda: embedded.count("GET", "/manifests/") == 6)
        for number in range(9, 50):
            look(number)
        assert embedded.count("GET", "/manifests/") == 43

    def test_listing_what_is_known_fetches_nothing_ahead(
        self, filesystem: FileSystem, embedded: EmbeddedRegistry
    ) -> None:
        self.read(filesystem, 7)
        digest = filesystem.readlink("/team/app/tags/t008").removeprefix("../manifests/")
        assert filesystem.content(f"/team/app/manifests/{digest}")
        until(lambda: embedded.count("HEAD", "/manifests/t") == 50)
        assert [*filesystem.known_attrs("/team/app/manifests", [digest])] == [digest]
        time.sleep(0.1)
        assert embedded.count("GET", "/manifests/") == 2

    def test_who_reads_one_manifest_fetches_no_other(
        self, filesystem: FileSystem, embedded: EmbeddedRegistry
    ) -> None:
        self.read(filesystem, 7)
        self.read(filesystem, 20)
        until(lambda: embedded.count("HEAD", "/manifests/t") == 50)
        assert embedded.count("GET", "/manifests/") == 2
