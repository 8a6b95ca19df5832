"""What the registry says of its names: which of them are believed, and what asking costs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.builders import SCHEMA1, image, index, load, random_bytes
from support.scripted import until
from support.stacks import Open, stacking

from epochfs.config import Credentials
from epochfs.demo.registry import EPOCH, Behaviour, EmbeddedRegistry, Request, Response
from epochfs.demo.samples import encode
from epochfs.errors import (
    CredentialsUnavailable,
    DeadlineExceeded,
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
LATEST = Tag("latest")

HOSTILE = [
    "",
    ".",
    "..",
    "/x",
    "a//b",
    "a/../b",
    "nul\0",
    "line\nbreak",
    "\x1b[31mred",
    "\ud800",
    "a" * 256,
    "a" * 2**20,
]

opened = pytest.fixture(stacking)


class Answering(EmbeddedRegistry):
    """Answers some paths with what a test says, as JSON text or as a status."""

    def __init__(self, answers: dict[str, str | int]) -> None:
        super().__init__()
        self.answers = answers

    def respond(self, request: Request) -> Response:
        answer = self.answers.get(request.path)
        if answer is None:
            return super().respond(request)
        if isinstance(answer, int):
            return Response(answer)
        return Response(200, {"Content-Type": "application/json"}, answer.encode())


class TestNames:
    @pytest.mark.expects_log(r"left out 12 of the repositories: .*empty or relative segment: ''$")
    def test_hostile_repositories_are_left_out_and_their_neighbours_listed(
        self, opened: Open
    ) -> None:
        listing = json.dumps({"repositories": ["aaa", *HOSTILE, "zzz/b"]})
        with Answering({"/v2/_catalog": listing}) as registry:
            catalog = opened(registry).listings.catalog()
        assert catalog.children(()) == ["aaa", "zzz"]
        assert catalog.children(("zzz",)) == ["b"]

    @pytest.mark.expects_log("left out 11 of the tags of team/app")
    def test_hostile_tags_are_left_out_and_their_neighbours_listed(self, opened: Open) -> None:
        tags = [name for name in HOSTILE if name != "/x"]
        listing = json.dumps({"name": "team/app", "tags": ["zzz", *tags, "aaa"]})
        with Answering({"/v2/team/app/tags/list": listing}) as registry:
            assert opened(registry).listings.tags(APP) == (Tag("aaa"), Tag("zzz"))

    @pytest.mark.parametrize("name", [name for name in HOSTILE if name])
    @pytest.mark.expects_log("left out 1 of the repositories")
    def test_the_log_line_is_one_escaped_line(
        self, opened: Open, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        listing = json.dumps({"repositories": [name]})
        with Answering({"/v2/_catalog": listing}) as registry:
            opened(registry).listings.catalog()
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(lines) == 1
        assert lines[0].isascii()
        assert lines[0].isprintable()
        assert len(lines[0]) < 400

    def test_names_that_are_unusual_but_harmless_are_listed(self, opened: Open) -> None:
        unusual = ["Upper/Case", "with space", "ünïcödé", "_under", "tags", "a" * 254, "-dash", "~"]
        with EmbeddedRegistry(EPOCH) as registry:
            for name in unusual:
                load(registry, name, "a tag", image())
            listings = opened(registry).listings
            assert all(Repository(name) in listings.catalog() for name in unusual)
            assert listings.tags(Repository("with space")) == (Tag("a tag"),)
            assert listings.resolve(Repository("ünïcödé"), Tag("a tag")).digest == image().digest

    def test_no_tags_at_all_is_an_empty_listing_of_what_the_catalog_lists(
        self, opened: Open
    ) -> None:
        none = '{"name": "team/app", "tags": null}'
        with Answering({"/v2/team/app/tags/list": none}) as registry:
            with pytest.raises(NotFound):
                opened(registry).listings.tags(APP)
            registry.answers["/v2/_catalog"] = '{"repositories": ["team/app"]}'
            assert opened(registry).listings.tags(APP) == ()

    def test_a_name_listed_twice_is_one(self, opened: Open) -> None:
        with Answering({"/v2/_catalog": '{"repositories": ["a", "a", "a/b"]}'}) as registry:
            assert opened(registry).listings.catalog().children(()) == ["a"]


class TestWithoutACatalog:
    @pytest.mark.parametrize("status", [401, 403, 404, 405])
    def test_the_repositories_of_the_command_line_are_listed(
        self, opened: Open, status: int
    ) -> None:
        with Answering({"/v2/_catalog": status}) as registry:
            load(registry, "team/app", "latest", image())
            catalog = opened(registry, repositories=(APP,)).listings.catalog()
        assert catalog.children(()) == ["team"]
        assert APP in catalog
        assert not catalog.complete

    def test_any_other_repository_opens(self, opened: Open) -> None:
        with EmbeddedRegistry(Behaviour(catalog=False)) as registry:
            load(registry, "team/app", "latest", image())
            listings = opened(registry).listings
            listings.check(APP)
            assert listings.holds_tags(APP)
            assert listings.tags(APP) == (LATEST,)

    def test_any_other_name_can_be_entered_and_lists_nothing(self, opened: Open) -> None:
        with EmbeddedRegistry(Behaviour(catalog=False)) as registry:
            listings = opened(registry).listings
            listings.check(Repository("team"))
            assert not listings.holds_tags(Repository("team"))
            with pytest.raises(NotFound):
                listings.tags(Repository("team"))
            with pytest.raises(NotFound):
                listings.check(Repository("Team"))

    def test_listing_what_is_denied_is_an_error_but_for_a_parent(self, opened: Open) -> None:
        answers: dict[str, str | int] = {"/v2/_catalog": 401}
        answers |= {f"/v2/{name}/tags/list": 401 for name in ("team", "team/app", "other")}
        with Answering(answers) as registry:
            listings = opened(registry, repositories=(APP,)).listings
            with pytest.raises(Denied):
                listings.tags(APP)
            with pytest.raises(Denied):
                listings.holds_tags(Repository("other"))
            assert not listings.holds_tags(Repository("team"))

    def test_a_catalog_that_fails_is_no_missing_one(self, opened: Open) -> None:
        with Answering({"/v2/_catalog": 500}) as registry, pytest.raises(Unavailable):
            opened(registry, repositories=(APP,)).listings.catalog()

    @pytest.mark.expects_log("neither kept nor served: cannot read the token file")
    def test_where_there_are_no_credentials_to_ask_with_there_is_no_answer(
        self, opened: Open, embedded: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        load(embedded, "team/app", "latest", image())
        file = tmp_path / "token"
        layers = opened(embedded, credentials=Credentials(token_file=file))
        for _ in range(2):
            with pytest.raises(CredentialsUnavailable):
                layers.listings.catalog()
            with pytest.raises(CredentialsUnavailable):
                layers.listings.holds_tags(APP)
        file.write_text("canary")
        assert APP in layers.listings.catalog()

    def test_repositories_of_the_command_line_join_a_catalog(self, opened: Open) -> None:
        with EmbeddedRegistry() as registry:
            load(registry, "library/hello", "latest", image())
            catalog = opened(registry, repositories=(APP,)).listings.catalog()
        assert catalog.children(()) == ["library", "team"]


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

    def test_a_manifest_is_fetched_once_for_all_its_tags(
        self, opened: Open, embedded: EmbeddedRegistry
    ) -> None:
        for tag in ("a", "b", "c"):
            load(embedded, "team/app", tag, image())
        layers = opened(embedded)
        for path in ("manifests", "blobs"):
            list(layers.filesystem.listdir(f"/team/app/{path}"))
        assert embedded.count("GET", "/manifests/") == 1

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
                assert 0.5 < time.monotonic() - began < 1.2
                assert tries < 10
            assert found == 40
            assert tries > 1
            assert registry.count("HEAD", "/manifests/t") == 40
            assert registry.count("", "/manifests/sha256") == 40

    def test_what_is_done_ahead_of_a_walk_has_none(self, opened: Open) -> None:
        with Slow() as registry:
            names = load_repositories(registry, 4)
            listings = opened(registry, timeout=0.3, parallel=1).listings
            listings.catalog()
            for name in names[:2]:
                with suppress(DeadlineExceeded):
                    listings.reachable(Repository(name))
            until(lambda: registry.count("GET", f"/{names[2]}/manifests/") == 2)


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
            with pytest.raises(ProtocolViolation, match=f"tag {tag} of team/app leads to"):
                opened(registry).listings.referrers(APP, content.digest)


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


def test_listings_of_ever_more_repositories_are_not_all_taken_note_of(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    listings = opened(embedded).listings
    for number in range(2000):
        listings.expect_resolves(Repository(f"r{number}"))
    assert len(listings._listed.expected) <= 1000


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
        assert embedded.count("HEAD", "/manifests/") == 80
        assert embedded.count("GET", "/manifests/") == 80
        assert embedded.count("GET", "/referrers/") == 80
        assert embedded.count() == 281

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
            reachable = opened(registry, timeout=2).listings.reachable(APP)
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
