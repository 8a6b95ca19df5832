"""Every row of the table of errno, provoked through a real mount; and nothing leaves unforeseen."""

from __future__ import annotations

import errno
import inspect
import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.builders import Content, image, load, random_bytes
from support.mounts import Mounts
from support.operations import operations_on
from support.registries import EmbeddedRegistry
from support.views import refusal

from epochfs import errors
from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.fuse.errnos import ERRNO
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest

LARGE = random_bytes(6_000_000, 3)
APP = image(LARGE)
BLOB = f"library/app/blobs/{Digest.of(LARGE)}"


class Breakable(EmbeddedRegistry):
    """A registry whose answers about blobs a test replaces."""

    spoil: Callable[[Request, Response], Response] | None = None

    def respond(self, request: Request) -> Response:
        answer = super().respond(request)
        if self.spoil is None or str(Digest.of(LARGE)) not in request.path:
            return answer
        return self.spoil(request, answer)


@pytest.fixture
def registry() -> Iterator[Breakable]:
    with Breakable(Behaviour(ranges=False)) as registry:
        load(registry, "library/app", "latest", APP)
        yield registry


def in_pieces(body: Callable[[], Iterator[bytes]]) -> Callable[[Request, Response], Response]:
    """Answer a GET with a body that comes as it will, under the length of the true one."""

    def spoil(request: Request, answer: Response) -> Response:
        if request.method != "GET":
            return answer
        return Response(200, {"Content-Length": str(len(LARGE))}, body())

    return spoil


def test_every_error_has_a_row() -> None:
    kinds = {kind for _, kind in inspect.getmembers(errors, inspect.isclass)}
    kinds = {kind for kind in kinds if issubclass(kind, errors.EpochfsError)}
    assert kinds - {errors.EpochfsError} == set(ERRNO)


@pytest.mark.expects_log("unforeseen failure")
@pytest.mark.parametrize("error", [OSError("errno is None"), RuntimeError("a bug"), KeyError("x")])
def test_what_is_not_foreseen_is_an_io_error_with_a_traceback(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:

    def fail(path: str) -> None:
        raise error

    adapter = operations_on(SimpleNamespace(getattr=fail))
    with caplog.at_level(logging.ERROR):
        assert refusal(lambda: adapter.getattr("/x")) == errno.EIO
    assert caplog.records[0].exc_info is not None


def test_the_unknown_is_not_there_and_nothing_can_be_written(
    registry: Breakable, mounts: Mounts
) -> None:
    root = mounts(registry.url).path
    absent = f"library/app/blobs/{Digest.of(b'absent')}"
    for path in ("nobody", "library/app/tags/no", absent, absent.replace("blobs", "manifests")):
        assert refusal((root / path).stat) == errno.ENOENT
    assert refusal(lambda: (root / "new").mkdir()) == errno.EROFS
    assert refusal(lambda: (root / BLOB).open("r+b")) == errno.EROFS
    assert refusal((root / BLOB).unlink) == errno.EROFS


@pytest.mark.parametrize("place", ["{}", "library/{}", "library/app/tags/{}", "{}/tags/x"])
@pytest.mark.parametrize("character", ["x", "ü", "\udcff", "😀"])
def test_a_name_that_is_too_long(
    registry: Breakable, mounts: Mounts, place: str, character: str
) -> None:
    root = mounts(registry.url).path
    width = len(os.fsencode(character))
    for length, expected in ((255, errno.ENOENT), (256, errno.ENAMETOOLONG)):
        name = character * (length // width)
        path = root / place.format(name + "y" * (length - width * len(name)))
        assert refusal(path.lstat) == refusal(path.read_bytes) == expected
        assert refusal(lambda path=path: list(path.iterdir())) == expected


@pytest.mark.expects_log("EACCES")
@pytest.mark.parametrize("status", [401, 403])
def test_denied_access(registry: Breakable, mounts: Mounts, status: int) -> None:
    root = mounts(registry.url).path
    registry.spoil = lambda request, answer: Response(status)
    assert refusal((root / BLOB).read_bytes) == errno.EACCES
    registry.spoil = None
    assert (root / BLOB).read_bytes() == LARGE


@pytest.mark.expects_log("ETIMEDOUT")
def test_a_registry_that_falls_silent(registry: Breakable, mounts: Mounts) -> None:
    root = mounts(registry.url, "--timeout", "2").path
    silence = threading.Event()

    def body() -> Iterator[bytes]:
        yield LARGE[:1000]
        silence.wait(30)

    registry.spoil = in_pieces(body)
    try:
        assert refusal((root / BLOB).read_bytes) == errno.ETIMEDOUT
        assert (root / "library/app/tags/latest/manifest.json").read_bytes() == APP.raw
    finally:
        silence.set()


@pytest.mark.expects_log("another digest|EIO")
def test_wrong_bytes_are_refused_and_not_kept(
    registry: Breakable, mounts: Mounts, tmp_path: Path
) -> None:
    root = mounts(registry.url, cache=tmp_path / "kept").path
    wrong = LARGE[:-1] + bytes([LARGE[-1] ^ 1])
    registry.spoil = lambda request, answer: Response(200, dict(answer.headers), wrong)
    assert refusal((root / BLOB).read_bytes) == errno.EIO
    assert list((tmp_path / "kept/v1/blobs/sha256").iterdir()) == []
    registry.spoil = None
    assert (root / BLOB).read_bytes() == LARGE


@pytest.mark.expects_log("EIO")
def test_a_size_that_is_not_the_descriptors(registry: Breakable, mounts: Mounts) -> None:
    root = mounts(registry.url).path
    registry.spoil = lambda request, answer: Response(200, {}, LARGE[:-5])
    assert refusal((root / BLOB).read_bytes) == errno.EIO


def test_a_server_that_dies_mid_blob_is_asked_again(registry: Breakable, mounts: Mounts) -> None:
    root = mounts(registry.url).path
    deaths = iter([1_000_000, 4_000_000])

    def body() -> Iterator[bytes]:
        reach = next(deaths, None)
        yield LARGE[:reach]
        if reach is not None:
            raise ConnectionResetError

    registry.spoil = in_pieces(body)
    assert (root / BLOB).read_bytes() == LARGE


UNKNOWN = Response(404, {}, b'{"errors": [{"code": "BLOB_UNKNOWN"}]}')


@pytest.mark.expects_log("ESTALE")
def test_a_blob_that_vanished_under_an_open_file(registry: Breakable, mounts: Mounts) -> None:
    root = mounts(registry.url).path
    with (root / BLOB).open("rb") as file:
        registry.spoil = lambda request, answer: UNKNOWN
        assert refusal(lambda: os.pread(file.fileno(), 10, 0)) == errno.ESTALE


def test_a_blob_that_only_a_manifest_knows_is_not_there(
    registry: Breakable, mounts: Mounts
) -> None:
    registry.spoil = lambda request, answer: UNKNOWN
    root = mounts(registry.url).path
    layer = root / "library/app/tags/latest/layers/00"
    assert layer.stat().st_size == len(LARGE)
    assert refusal(layer.read_bytes) == errno.ENOENT
    registry.spoil = None
    assert layer.read_bytes() == LARGE


@pytest.mark.expects_log("EIO")
@pytest.mark.parametrize("path", ["library/app/tags/latest/layers/00", BLOB])
def test_a_404_that_may_be_an_ingresss_is_no_absence_of_a_blob(
    registry: Breakable, mounts: Mounts, path: str
) -> None:
    root = mounts(registry.url).path
    with (root / path).open("rb") as file:
        registry.spoil = lambda request, answer: Response(404, {}, b"404 page not found")
        assert refusal(lambda: os.pread(file.fileno(), 10, 0)) == errno.EIO
        registry.spoil = None
        assert os.pread(file.fileno(), 10, 0) == LARGE[:10]


@pytest.mark.expects_log("EIO")
def test_a_tag_that_is_listed_and_cannot_be_fetched_is_an_io_error(mounts: Mounts) -> None:
    class Forgetful(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            answer = super().respond(request)
            return Response(404) if request.path.endswith("/manifests/latest") else answer

    with Forgetful() as forgetful:
        for tag in ("1.0", "latest"):
            load(forgetful, "library/app", tag, APP)
        tags = mounts(forgetful.url).path / "library/app/tags"
        assert sorted(tag.name for tag in tags.iterdir()) == ["1.0", "latest"]
        assert refusal((tags / "latest").readlink) == errno.EIO
        assert (tags / "1.0/manifest.json").read_bytes() == APP.raw


@pytest.mark.expects_log("EFBIG|over the limit")
def test_a_manifest_over_the_limit(registry: Breakable, mounts: Mounts) -> None:
    large: Content = image(b"x", annotations={"padding": "x" * 100_000})
    assert large.media_type == OCI_MANIFEST
    load(registry, "library/large", "latest", large)
    root = mounts(registry.url, "--manifest-limit", "50K").path
    path = root / f"library/large/manifests/{large.digest}/manifest.json"
    assert refusal(path.read_bytes) == errno.EFBIG
    assert (root / "library/app/tags/latest/manifest.json").read_bytes() == APP.raw


@pytest.mark.expects_log("left out")
def test_hostile_names_are_left_out_and_their_neighbours_listed(
    registry: Breakable, mounts: Mounts
) -> None:
    hostile = ["..", "a/b", "", "esc\x1b", "x" * 300]

    class Lying(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            answer = super().respond(request)
            if not request.path.endswith("/tags/list"):
                return answer
            from epochfs.demo.http_server import json_response

            return json_response({"name": "library/app", "tags": [*hostile, "latest"]})

    with Lying() as lying:
        load(lying, "library/app", "latest", APP)
        mount = mounts(lying.url)
        assert [tag.name for tag in (mount.path / "library/app/tags").iterdir()] == ["latest"]
        lines = [line for line in mount.log.read_text().splitlines() if "left out" in line]
        assert len(lines) == 1
