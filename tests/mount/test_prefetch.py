"""Filling the cache: what a selection reaches, each blob once, resumed, verified, and kept."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.builders import Content, image, index, load, random_bytes
from support.registries import EmbeddedRegistry
from support.stacks import Stack, stack

from epochfs.demo.registry import Request, Response
from epochfs.errors import CacheFailure, ContentMismatch, InvalidName, NotFound
from epochfs.oci.names import Digest, Tag
from epochfs.session.prefetcher import Blob, Failure, Prefetch, Progress, Selection
from epochfs.vfs.reader import DirectFiles

MIB = 1 << 20
SHARED = random_bytes(300_000, 1)
LARGE = random_bytes(12 * MIB, 2)
SMALL = random_bytes(100_000, 3)
APP = image(SHARED, SMALL)
PARALLEL = 4


class Interfering(EmbeddedRegistry):
    """Damages one blob, or answers only so many requests for blobs before `opened` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged: bytes | None = None
        self.answered = 1 << 30
        self.opened = threading.Event()

    def respond(self, request: Request) -> Response:
        response = super().respond(request)
        if self.damaged and request.path.endswith(str(Digest.of(self.damaged))):
            return Response(200, {}, bytes(len(self.damaged)))
        if "/blobs/" in request.path and self.count("GET", "/blobs/") > self.answered:
            self.opened.wait(20)
        return response


@pytest.fixture
def registry() -> Iterator[Interfering]:
    with Interfering() as registry:
        yield registry
        registry.opened.set()


@contextmanager
def prefetching(
    registry: EmbeddedRegistry, directory: Path, **options: object
) -> Iterator[tuple[Prefetch, Stack]]:
    with (
        stack(registry.url, directory, **options) as layers,  # type: ignore[arg-type]
        closing(Prefetch(DirectFiles(layers.filesystem), PARALLEL)) as prefetch,
    ):
        yield prefetch, layers


def failures(steps: Iterable[Failure | None]) -> list[Failure]:
    return [step for step in steps if step is not None]


def prefetched(
    registry: EmbeddedRegistry, directory: Path, *wanted: str, **options: object
) -> tuple[Progress, list[Failure]]:
    """Find and fetch a selection; return what became of it."""
    with prefetching(registry, directory, **options) as (prefetch, _):
        failed = failures(prefetch.find([Selection.parse(text) for text in wanted]))
        failed += failures(prefetch.fetch())
        return prefetch.progress, failed


def kept(directory: Path) -> set[str]:
    return {path.name for path in (directory / "v1" / "blobs" / "sha256").iterdir()}


def digests(*contents: Content) -> set[str]:
    return {Digest.of(blob).encoded for content in contents for blob in content.every_blob()}


# --- what is selected -------------------------------------------------------------------------

SOME = Digest.of(b"some")


@pytest.mark.parametrize(
    ("text", "path", "reference"),
    [
        ("nginx", "/nginx", None),
        ("library/nginx:1.0", "/library/nginx", Tag("1.0")),
        (f"library/nginx@{SOME}", "/library/nginx", SOME),
        (f"library/nginx:1.0@{SOME}", "/library/nginx", SOME),
        ("tags/_x:blobs", "/_tags/__x", Tag("blobs")),
    ],
)
def test_a_selection_is_written_as_other_tools_write_images(
    text: str, path: str, reference: Tag | Digest | None
) -> None:
    assert Selection.parse(text) == Selection(path, reference)


@pytest.mark.parametrize("text", ["", ":1", "a:", "a/../b", "a@", "a@latest", "a@sha256:1", "/a"])
def test_what_names_no_image_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        Selection.parse(text)


def test_without_a_selection_every_repository_is_fetched(
    registry: Interfering, tmp_path: Path
) -> None:
    below, reserved = image(b"below another"), image(b"reserved words")
    load(registry, "team/app", "1", APP)
    load(registry, "team/app/debug", "1", below)
    load(registry, "tags/blobs", "tags", reserved)
    progress, failed = prefetched(registry, tmp_path)
    assert failed == []
    assert kept(tmp_path) == digests(APP, below, reserved)
    assert (progress.blobs, progress.fetched) == (7, 7)


def test_a_repository_stands_for_all_its_tags(registry: Interfering, tmp_path: Path) -> None:
    second = image(b"second")
    load(registry, "app", "1", APP)
    load(registry, "app", "2", second)
    load(registry, "other", "1", image(b"another"))
    prefetched(registry, tmp_path, "app")
    assert kept(tmp_path) == digests(APP, second)


def test_a_tag_stands_for_its_image_alone(registry: Interfering, tmp_path: Path) -> None:
    load(registry, "app", "1", APP)
    load(registry, "app", "2", image(b"second"))
    prefetched(registry, tmp_path, "app:1")
    assert kept(tmp_path) == digests(APP)


def test_an_index_stands_for_its_manifests_also_where_one_was_never_pushed(
    registry: Interfering, tmp_path: Path
) -> None:
    children = image(b"amd64"), image(b"arm64"), image(b"riscv64")
    pushed = index(*children)
    load(registry, "app", "1", index(*children[:2]))
    raw = Content(pushed.raw, pushed.media_type)
    registry.put_manifest("app", "2", raw.raw, raw.media_type)
    progress, failed = prefetched(registry, tmp_path, "app:2")
    assert failed == []
    assert kept(tmp_path) == digests(*children[:2])
    assert progress.fetched == 4


def test_a_digest_of_an_index_s_child_stands_for_that_child(
    registry: Interfering, tmp_path: Path
) -> None:
    children = image(b"amd64"), image(b"arm64")
    load(registry, "app", "1", index(*children))
    prefetched(registry, tmp_path, f"app@{children[1].digest}")
    assert kept(tmp_path) == digests(children[1])


def test_a_name_that_is_unknown_is_told_and_the_others_are_fetched(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    wanted = ["nothing", "app:2", f"app@{SOME}", "app:1"]
    progress, failed = prefetched(registry, tmp_path, *wanted)
    assert {failure.subject for failure in failed} == set(wanted[:3])
    assert all(isinstance(failure.error, NotFound) for failure in failed)
    assert progress.fetched == progress.blobs == 3


def test_that_nothing_is_listed_is_a_failure(registry: Interfering, tmp_path: Path) -> None:
    _, failed = prefetched(registry, tmp_path)
    assert "name what to prefetch" in str(failed[0])


# --- what is fetched --------------------------------------------------------------------------


def test_a_blob_is_fetched_once_however_many_name_it(registry: Interfering, tmp_path: Path) -> None:
    other = image(SHARED, b"other")
    load(registry, "app", "1", APP)
    load(registry, "app", "2", other)
    load(registry, "other", "1", other)
    progress, failed = prefetched(registry, tmp_path)
    assert failed == []
    assert registry.count("GET", str(Digest.of(SHARED))) == 1
    assert progress.blobs == len(digests(APP, other)) == 5


def test_the_sizes_are_known_before_anything_is_fetched(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    with prefetching(registry, tmp_path) as (prefetch, _):
        assert failures(prefetch.find([])) == []
        size = sum(map(len, APP.blobs))
        assert prefetch.progress == Progress(blobs=3, size=size, left=size)
        assert registry.count("", "/blobs/") == 0
        assert failures(prefetch.fetch()) == []
        assert prefetch.progress == Progress(blobs=3, size=size, fetched=3)


def test_what_is_cached_is_counted_and_asks_for_no_blob(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    prefetched(registry, tmp_path)
    registry.forget_requests()
    progress, failed = prefetched(registry, tmp_path)
    assert failed == []
    assert registry.count("", "/blobs/") == 0
    assert progress == Progress(blobs=3, size=sum(map(len, APP.blobs)), there=3)


def test_what_is_interrupted_is_resumed(registry: Interfering, tmp_path: Path) -> None:
    content = image(LARGE)
    load(registry, "app", "1", content)
    registry.answered = 3
    with prefetching(registry, tmp_path) as (prefetch, layers):
        assert failures(prefetch.find([])) == []
        for _ in prefetch.fetch():
            if prefetch.progress.size - prefetch.progress.left >= 2 * MIB:
                break
        prefetch.close()
        layers.client.close()  # the requests that wait in front of the gate
        layers.blobs.close()
        first = layers.client.stats.bytes_received
    registry.answered = 1 << 30
    registry.opened.set()
    with prefetching(registry, tmp_path) as (prefetch, layers):
        assert failures(prefetch.find([])) == []
        assert prefetch.progress.left < len(LARGE) - MIB
        assert failures(prefetch.fetch()) == []
        assert first + layers.client.stats.bytes_received <= 1.05 * len(LARGE)
        assert prefetch.progress.left == 0
    assert kept(tmp_path) == digests(content)


@pytest.mark.expects_log("have another digest, fetching again")
def test_a_wrong_blob_is_a_failure_and_the_others_are_fetched(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    registry.damaged = SMALL
    progress, failed = prefetched(registry, tmp_path)
    assert [failure.subject for failure in failed] == [f"app/blobs/{Digest.of(SMALL)}"]
    assert isinstance(failed[0].error, ContentMismatch)
    assert (progress.fetched, progress.failed, progress.left) == (2, 1, 0)
    assert kept(tmp_path) == digests(APP) - {Digest.of(SMALL).encoded}


def test_a_blob_that_the_cache_does_not_keep_is_a_failure(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    progress, failed = prefetched(registry, tmp_path, cache_size=200_000)
    assert [type(failure.error) for failure in failed] == [CacheFailure]
    assert Digest.of(SHARED).encoded in failed[0].subject
    assert (progress.fetched, progress.failed) == (2, 1)


def test_nothing_selected_is_evicted_for_the_rest(registry: Interfering, tmp_path: Path) -> None:
    oldest, other = image(random_bytes(2 * MIB, 5)), image(random_bytes(2 * MIB, 6))
    load(registry, "app", "1", oldest)
    load(registry, "other", "1", other)
    load(registry, "app", "2", image(random_bytes(2 * MIB, 7)))
    for wanted in ("app:1", "other"):
        assert prefetched(registry, tmp_path, wanted, cache_size=5 * MIB)[1] == []
    progress, failed = prefetched(registry, tmp_path, "app", cache_size=5 * MIB)
    assert failed == []
    assert (progress.there, progress.fetched) == (2, 2)
    assert digests(oldest) <= kept(tmp_path)
    assert not digests(image(other.blobs[1])) <= kept(tmp_path)


def test_a_blob_that_went_while_others_were_looked_for_is_fetched_again(
    registry: Interfering, tmp_path: Path
) -> None:
    load(registry, "app", "1", APP)
    prefetched(registry, tmp_path)
    with prefetching(registry, tmp_path) as (prefetch, _):
        assert failures(prefetch.find([])) == []
        (tmp_path / "v1" / "blobs" / "sha256" / Digest.of(SHARED).encoded).unlink()
        assert failures(prefetch.fetch()) == []
        assert (prefetch.progress.there, prefetch.progress.fetched) == (2, 1)
    assert kept(tmp_path) == digests(APP)


def test_a_blob_of_no_bytes_is_there() -> None:
    assert Blob("/app/blobs/x", 0, 0).complete


def test_a_tree_that_does_not_tell_what_its_cache_holds_is_taken_as_it_is(
    registry: Interfering, tmp_path: Path
) -> None:
    with prefetching(registry, tmp_path) as (prefetch, _):
        assert prefetch.space() is None
