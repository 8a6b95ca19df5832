"""Reading through hosts that do not all behave alike: what a mirror may do to a download."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.builders import random_bytes
from support.registries import EmbeddedRegistry
from support.sources import FakeClient, FakeStream

from epochfs.blobs.store import Blobs
from epochfs.cache.blobs import BlobCache
from epochfs.client import RegistryClient
from epochfs.client.hosts import HostConfig, RegistryHosts
from epochfs.config import BlobOptions, CacheOptions, RegistryUrl, TransportOptions
from epochfs.demo.registry import Request, Response
from epochfs.errors import ContentMismatch
from epochfs.oci.names import Digest, Repository

MIB = 1 << 20
APP = Repository("team/app")
LARGE = random_bytes(48 * MIB + 17, 2)
SMALL = random_bytes(MIB, 3)


def read(directory: Path, client: FakeClient | RegistryClient, data: bytes) -> bytes:
    """Read a cold blob from start to end as a program does."""
    blobs = Blobs(client, BlobCache(CacheOptions(directory)), BlobOptions(10.0))  # type: ignore[arg-type]
    try:
        handle = blobs.open(APP, Digest.of(data), len(data))
        buffer = bytearray(len(data))
        for offset in range(0, len(data), MIB):
            handle.read_into(memoryview(buffer)[offset : offset + MIB], offset)
        handle.close()
        return bytes(buffer)
    finally:
        blobs.close()


@dataclass
class Wholesale(FakeStream):
    """A stream of all of a blob, whatever was asked."""

    def __post_init__(self) -> None:
        self.start, self.stop = 0, len(self.client.data)
        super().__post_init__()

    @property
    def ranged(self) -> bool:
        return False


class Changing(FakeClient):
    """Honours Range for the first few requests only."""

    def get_blob(
        self, repository: Repository, digest: Digest, start: int = 0, end: int | None = None
    ) -> FakeStream:
        stream = super().get_blob(repository, digest, start, end)
        return stream if stream.number < 3 else Wholesale(self, stream.number, 0, 0)


def test_a_blob_whose_next_host_ignores_range_is_streamed_once(tmp_path: Path) -> None:
    client = Changing(LARGE, before=lambda _: time.sleep(0.0005))
    assert read(tmp_path, client, LARGE) == LARGE
    assert len(client.asked) < 10


class Mirror(EmbeddedRegistry):
    """A mirror that has the blob, and sends it in its own way."""

    def respond(self, request: Request) -> Response:
        answer = super().respond(request)
        return self.altered(answer) if "/blobs/" in request.path else answer

    def altered(self, answer: Response) -> Response:
        return answer


class Dying(Mirror):
    """Resets every stream halfway, and after the third is gone."""

    def altered(self, answer: Response) -> Response:
        return Response(answer.status, answer.headers, self._half(bytes(answer.body)))  # type: ignore[arg-type]

    def _half(self, body: bytes) -> Iterator[bytes]:
        yield body[: len(body) // 2]
        if self.count() == 3:
            self.stop()
        raise ConnectionResetError


class Lying(Mirror):
    """Flips a bit of every body."""

    def altered(self, answer: Response) -> Response:
        body = bytearray(answer.body)  # type: ignore[arg-type]
        body[-1] ^= 1
        return Response(answer.status, answer.headers, bytes(body))


class Shorter(Mirror):
    """Has a blob of another size."""

    def altered(self, answer: Response) -> Response:
        return Response(200, {}, bytes(answer.body)[:-1])  # type: ignore[arg-type]


class Longer(Mirror):
    """Sends more than there is, without saying how much."""

    def altered(self, answer: Response) -> Response:
        return Response(200, {}, [SMALL, b"and more"])


@pytest.fixture
def origin() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        registry.put_blob(APP.name, LARGE)
        registry.put_blob(APP.name, SMALL)
        yield registry


def client_of(origin: EmbeddedRegistry, mirror: EmbeddedRegistry) -> RegistryClient:
    for blob in (LARGE, SMALL):
        mirror.put_blob(APP.name, blob)
    hosts = RegistryHosts("registry", HostConfig(origin.url), (HostConfig(mirror.url),))
    url = RegistryUrl.parse(origin.url).base
    return RegistryClient(url, options=TransportOptions(timeout=10), hosts=hosts)


def test_a_mirror_that_dies_in_the_middle_of_a_blob_costs_the_reader_nothing(
    tmp_path: Path, origin: EmbeddedRegistry
) -> None:
    with Dying() as mirror, closing(client_of(origin, mirror)) as client:
        assert read(tmp_path, client, LARGE) == LARGE
        assert client.stats.bytes_received < 1.5 * len(LARGE)
        assert mirror.count() > 0


@pytest.mark.expects_log("got wrong bytes for sha256:.* from mirror")
def test_a_blob_of_the_wrong_size_is_asked_of_the_registry(
    tmp_path: Path, origin: EmbeddedRegistry
) -> None:
    with Shorter() as mirror, closing(client_of(origin, mirror)) as client:
        assert read(tmp_path, client, SMALL) == SMALL
        assert (mirror.count(), origin.count()) == (1, 1)


@pytest.mark.expects_log("got wrong bytes for sha256:.* from mirror")
def test_what_a_mirror_sends_behind_a_blob_is_no_part_of_it(
    tmp_path: Path, origin: EmbeddedRegistry
) -> None:
    with Longer() as mirror, closing(client_of(origin, mirror)) as client:
        assert read(tmp_path, client, SMALL) == SMALL


@pytest.mark.expects_log("got wrong bytes for sha256:.* from mirror|have another digest")
def test_wrong_bytes_that_nobody_has_read_are_fetched_from_the_registry(
    tmp_path: Path, origin: EmbeddedRegistry
) -> None:
    with Lying() as mirror, closing(client_of(origin, mirror)) as client:
        assert read(tmp_path, client, SMALL) == SMALL
        assert (mirror.count(), origin.count()) == (1, 1)


@pytest.mark.expects_log("got wrong bytes for sha256:.* from mirror")
def test_wrong_bytes_that_were_read_end_in_an_error_and_the_next_read_is_right(
    tmp_path: Path, origin: EmbeddedRegistry
) -> None:
    with Lying() as mirror, closing(client_of(origin, mirror)) as client:
        with pytest.raises(ContentMismatch):
            read(tmp_path, client, LARGE)
        assert read(tmp_path, client, LARGE) == LARGE
