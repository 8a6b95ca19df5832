"""What the registry says of its names: which of them are believed, and what asking costs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.builders import image, load
from support.registries import Answering, EmbeddedRegistry
from support.stacks import Open, stacking

from epochfs.config import Credentials
from epochfs.demo.registry import EPOCH, Behaviour
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    NotFound,
    Unavailable,
)
from epochfs.oci.names import Repository, Tag

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


def test_listings_of_ever_more_repositories_are_not_all_taken_note_of(
    opened: Open, embedded: EmbeddedRegistry
) -> None:
    listings = opened(embedded).listings
    for number in range(2000):
        listings.expect_resolves(Repository(f"r{number}"))
    assert len(listings._listed.expected) <= 1000
