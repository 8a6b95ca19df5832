"""Pushing a blob, in each of the ways that registries know."""

from __future__ import annotations

import io
import json
import socket
import time
from collections.abc import Iterator
from typing import BinaryIO

import pytest
from support.clients import Connect, connecting
from support.scripted import Reset, Seen, Step, at_most, reply

from epochfs.client import RegistryClient
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unsupported,
    UsageError,
)
from epochfs.oci.names import Digest

BLOB = bytes(range(256)) * 300
BLOB_DIGEST = Digest.of(BLOB)

connect = pytest.fixture(connecting)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 50,000 bytes be a part, and more than that a large blob."""
    for module in ("uploads", "upload_sessions"):
        monkeypatch.setattr(f"epochfs.client.{module}.PART_BYTES", 50_000)


class Pipe(io.RawIOBase):
    """A body that can be read once."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._data.read(size)


class UploadServer:
    """Takes blobs in the ways it is told to, and remembers what it took."""

    def __init__(self, *ways: str, refusal: int = 405) -> None:
        self.ways = ways
        self.refusal = refusal
        self.session = b""
        self.stored: dict[str, bytes] = {}
        self.ranges: list[str] = []

    def __call__(self, seen: Seen) -> list[Step]:
        if "/uploads/" not in seen.path:
            if "single" not in self.ways:
                return [reply(self.refusal)]
            self.stored[seen.path.rpartition("/")[2]] = seen.body
            return [reply(201, Location="/v2/a/blobs/x")]
        if seen.method == "POST" and {"monolithic", "chunked"} & set(self.ways):
            self.session = b""
            return [reply(202, Location="/v2/a/blobs/uploads/1?_state=x")]
        if seen.method == "PATCH" and "chunked" in self.ways:
            self.ranges.append(seen.headers.get("content-range", ""))
            self.session += seen.body
            return [reply(202, Location=f"/v2/a/blobs/uploads/{len(self.ranges) + 1}?_state=y")]
        if seen.method == "PUT" and ("monolithic" in self.ways or not seen.body):
            digest = seen.target.rpartition("&digest=")[2].replace("%3A", ":")
            self.stored[digest] = self.session + seen.body
            return [reply(201, Location="/v2/a/blobs/x")]
        return [reply(self.refusal)]


def bodies() -> list[bytes | BinaryIO]:
    at_an_offset = io.BytesIO(b"before" + BLOB)
    at_an_offset.seek(6)
    return [BLOB, io.BytesIO(BLOB + b"behind"), at_an_offset]


@pytest.mark.parametrize("refusal", [400, 404, 405, 501])
@pytest.mark.parametrize("way", ["single", "monolithic", "chunked"])
def test_a_blob_is_put_whatever_the_way(connect: Connect, way: str, refusal: int) -> None:
    for body in bodies():
        uploads = UploadServer(way, refusal=refusal)
        _, client = connect(uploads)
        client.put_blob("a", BLOB_DIGEST, body, len(BLOB))
        assert uploads.stored == {str(BLOB_DIGEST): BLOB}


@pytest.mark.parametrize("way", ["single", "monolithic"])
def test_a_body_that_cannot_rewind_is_put_too(connect: Connect, way: str) -> None:
    uploads = UploadServer(way)
    _, client = connect(uploads)
    client.put_blob("a", BLOB_DIGEST, Pipe(BLOB), len(BLOB))  # type: ignore[arg-type]
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}


def test_a_used_up_body_is_not_sent_in_part(connect: Connect) -> None:
    uploads = UploadServer("chunked")
    _, client = connect(uploads)
    with pytest.raises(Unsupported):
        client.put_blob("a", BLOB_DIGEST, Pipe(BLOB), len(BLOB))  # type: ignore[arg-type]
    assert uploads.stored == {}


def test_what_is_refused_as_too_large_is_sent_in_chunks_that_follow_each_other(
    connect: Connect, small_parts: None
) -> None:
    """As by a web server in front of the registry, which limits what one request may send."""
    uploads = UploadServer("chunked")
    _, client = connect(lambda seen: [reply(413)] if len(seen.body) > 50_000 else uploads(seen))
    client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}
    assert uploads.ranges == ["0-49999", "50000-76799"]


@pytest.mark.parametrize("way", ["single", "monolithic", "chunked"])
def test_an_empty_blob_is_put(connect: Connect, way: str) -> None:
    uploads = UploadServer(way)
    _, client = connect(uploads)
    empty = Digest.of(b"")
    client.put_blob("a", empty, b"", 0)
    assert uploads.stored == {str(empty): b""}


def test_a_refused_single_put_is_not_tried_again(connect: Connect) -> None:
    server, client = connect(UploadServer("monolithic"))
    for _ in range(2):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert len(server.asked(f"/v2/a/blobs/{BLOB_DIGEST}")) == 1


def test_a_single_put_is_tried_again_after_all_was_refused(connect: Connect) -> None:
    """As by what stands in front of a registry while that restarts."""
    absent, uploads = True, UploadServer("single")
    _, client = connect(lambda seen: [reply(404)] if absent else uploads(seen))
    with pytest.raises(NotFound):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    absent = False
    client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}


def test_a_registry_that_hangs_up_on_a_single_put_is_asked_the_other_way(connect: Connect) -> None:
    uploads = UploadServer("monolithic")

    def script(seen: Seen) -> Iterator[Step]:
        if "/uploads/" not in seen.path:
            raise Reset
        yield from uploads(seen)

    _, client = connect(script)
    client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}


def test_a_blob_that_every_way_refuses_is_refused(connect: Connect) -> None:
    _, client = connect(UploadServer(refusal=404))
    with pytest.raises(NotFound):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))


def coded(status: int, code: str) -> list[Step]:
    return [reply(status, json.dumps({"errors": [{"code": code, "message": "why"}]}).encode())]


WRONG_DIGEST = coded(400, "DIGEST_INVALID")
NOT_OFFERED = ([reply(405)], [reply(404)], coded(405, "UNSUPPORTED"), coded(400, "METHOD_UNKNOWN"))
ENDINGS = (
    *NOT_OFFERED,
    [reply(400)],
    [reply(403)],
    [reply(503)],
    [reply(416)],
    [reply(201, Location="/v2/a/blobs/x")],
    coded(404, "BLOB_UPLOAD_UNKNOWN"),
)
"""What may come of a way that is tried after one that gave the reason."""


@pytest.mark.parametrize("before", NOT_OFFERED, ids=range(len(NOT_OFFERED)))
@pytest.mark.parametrize("ending", ENDINGS, ids=range(len(ENDINGS)))
def test_the_reason_that_a_registry_gives_is_raised_not_what_comes_of_another_way(
    connect: Connect, before: list[Step], ending: list[Step]
) -> None:
    opened: list[Seen] = []

    def script(seen: Seen) -> list[Step]:
        if "/uploads/" not in seen.path:
            return before
        if seen.method == "POST":
            opened.append(seen)
            return [reply(202, Location="/v2/a/blobs/uploads/1")] if len(opened) == 1 else ending
        return WRONG_DIGEST

    _, client = connect(script)
    with pytest.raises(ProtocolViolation, match="DIGEST_INVALID"):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))


def test_a_reason_for_the_first_way_is_raised_too(connect: Connect) -> None:
    _, client = connect(lambda seen: WRONG_DIGEST if "/uploads/" not in seen.path else [reply(404)])
    with pytest.raises(ProtocolViolation, match="DIGEST_INVALID"):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (coded(404, "NAME_UNKNOWN"), NotFound),
        (coded(403, "DENIED"), Denied),
        ([reply(403)], Denied),
        ([reply(400)], ProtocolViolation),
        (coded(413, "SIZE_INVALID"), TooLarge),
    ],
)
def test_a_session_that_is_refused_says_more_than_a_put_that_is_not_offered(
    connect: Connect, answer: list[Step], error: type[Exception]
) -> None:
    _, client = connect(lambda seen: answer if "/uploads/" in seen.path else [reply(405)])
    with pytest.raises(error):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))


def test_a_denied_blob_is_not_tried_otherwise(connect: Connect) -> None:
    server, client = connect(lambda _: [reply(403)])
    with pytest.raises(Denied):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert len(server.seen) == 1


def test_a_body_that_is_too_short_is_a_usage_error(connect: Connect) -> None:
    _, client = connect(UploadServer("single"))
    with pytest.raises(UsageError):
        client.put_blob("a", BLOB_DIGEST, io.BytesIO(BLOB), len(BLOB) + 1)


def test_a_challenged_upload_is_sent_again_from_its_start(connect: Connect) -> None:
    uploads = UploadServer("single")

    def script(seen: Seen) -> list[Step]:
        if "authorization" in seen.headers:
            return uploads(seen)
        return [reply(401, WWW_Authenticate='Basic realm="x"')]

    _, client = connect(script, credentials=Credentials(username="u", password="p"))
    client.put_blob("a", BLOB_DIGEST, io.BytesIO(BLOB), len(BLOB))
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}


def test_an_upload_elsewhere_goes_without_the_token(connect: Connect) -> None:
    away, _ = connect(lambda _: [reply(201, Location="/v2/a/blobs/x")])

    def script(seen: Seen) -> list[Step]:
        if seen.method == "POST":
            return [reply(202, Location=f"{away.url}/bucket?signature=s")]
        return [reply(405)]

    _, client = connect(script, token="secret")
    client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))
    assert away.seen[0].body == BLOB
    assert "authorization" not in away.seen[0].headers
    assert away.seen[0].target.startswith("/bucket?signature=s&digest=sha256%3A")


@pytest.mark.parametrize("location", ["", "file:///x", "http://u:p@h/"])
def test_a_doubtful_upload_location_is_a_violation(connect: Connect, location: str) -> None:
    def script(seen: Seen) -> list[Step]:
        return [reply(202, Location=location)] if seen.method == "POST" else [reply(405)]

    _, client = connect(script)
    with pytest.raises(ProtocolViolation):
        client.put_blob("a", BLOB_DIGEST, BLOB, len(BLOB))


def test_a_slow_upload_that_progresses_meets_no_time_limit(connect: Connect) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            time.sleep(0.2)
            return super().read(20_000)

    uploads = UploadServer("single")
    _, client = connect(uploads, options=TransportOptions(timeout=0.5))
    client.put_blob("a", BLOB_DIGEST, Slow(BLOB), len(BLOB))
    assert uploads.stored == {str(BLOB_DIGEST): BLOB}


def test_an_upload_nobody_reads_meets_the_time_limit() -> None:
    big = bytes(50_000_000)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        url = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        client = RegistryClient(url, options=TransportOptions(timeout=0.5))
        with at_most(5), pytest.raises(DeadlineExceeded):
            client.put_blob("a", BLOB_DIGEST, big, len(big))
