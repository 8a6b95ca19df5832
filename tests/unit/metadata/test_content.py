"""The client on referrers and small blobs, of registries that answer oddly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.clients import Connect, connecting
from support.scripted import Seen, Step, reply

from epochfs.config import Credentials, TransportOptions
from epochfs.demo.samples import descriptor
from epochfs.errors import (
    ContentMismatch,
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    Unsupported,
)
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest

DIGEST = Digest.of(b"subject")
TARGET = f"/v2/a/b/referrers/{DIGEST}"

connect = pytest.fixture(connecting)


def page(*manifests: bytes, **headers: str) -> list[Step]:
    listed = [descriptor(raw, OCI_MANIFEST, artifactType="x/y") for raw in manifests]
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed}).encode()
    return [reply(200, body, Content_Type=OCI_INDEX, **headers)]


def test_referrers_come_from_all_pages(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        if "?" in seen.target:
            return page(b"3")
        return page(b"1", b"2", Link=f'<{TARGET}?page=2>; rel="next"')

    server, client = connect(script)
    found = client.referrers("a/b", str(DIGEST))
    assert [one.digest for one in found] == [Digest.of(text) for text in (b"1", b"2", b"3")]
    assert {one.artifact_type for one in found} == {"x/y"}
    assert [seen.target for seen in server.seen] == [TARGET, f"{TARGET}?page=2"]


@pytest.mark.parametrize(
    ("status", "means"),
    [
        (400, ProtocolViolation),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (405, Unsupported),
        (406, ProtocolViolation),
        (410, ProtocolViolation),
        (414, ProtocolViolation),
        (422, ProtocolViolation),
        (451, ProtocolViolation),
        (501, Unsupported),
    ],
)
def test_any_refusal_of_the_call_is_a_registry_without_it(
    connect: Connect, status: int, means: type[EpochfsError]
) -> None:
    _, client = connect(lambda _: [reply(status)])
    with pytest.raises(Unsupported, match=str(status)) as raised:
        client.referrers("a/b", DIGEST)
    assert isinstance(raised.value.__cause__, means)


def test_a_refusal_where_the_registry_redirects_to_is_one_too(connect: Connect) -> None:
    away, _ = connect(lambda _: [reply(403, b"<html>sign in")])
    _, client = connect(lambda _: [reply(302, Location=f"{away.url}/login")])
    with pytest.raises(Unsupported):
        client.referrers("a/b", DIGEST)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_registry_that_fails_may_have_referrers(connect: Connect, status: int) -> None:
    _, client = connect(lambda _: [reply(status)], options=TransportOptions(timeout=5.0, retries=0))
    with pytest.raises(Unavailable):
        client.referrers("a/b", DIGEST)


def test_a_registry_that_is_silent_may_have_referrers(connect: Connect) -> None:
    _, client = connect(lambda _: [60.0], options=TransportOptions(timeout=0.3))
    with pytest.raises(DeadlineExceeded):
        client.referrers("a/b", DIGEST)


def test_without_our_credentials_nobody_knows_whether_there_are_referrers(
    connect: Connect, tmp_path: Path
) -> None:
    server, client = connect(
        lambda _: [reply(404)], credentials=Credentials(token_file=tmp_path / "none")
    )
    with pytest.raises(CredentialsUnavailable):
        client.referrers("a/b", DIGEST)
    assert server.seen == []


OTHER_ANSWERS = (
    b"",
    b"<html>please sign in</html>",
    b"[]",
    b"{}",
    b'{"layers": []}',
    b'{"manifests": 7}',
    b'{"errors": [{"code": "UNSUPPORTED"}]}',
)


@pytest.mark.parametrize("body", OTHER_ANSWERS)
def test_an_answer_that_is_no_index_is_a_registry_without_the_call(
    connect: Connect, body: bytes
) -> None:
    _, client = connect(lambda _: [reply(200, body, Content_Type="text/html")])
    with pytest.raises(Unsupported) as raised:
        client.referrers("a/b", DIGEST)
    assert isinstance(raised.value.__cause__, ProtocolViolation)


BROKEN_INDEXES = (
    b'{"manifests": [], "layers": []}',
    b'{"manifests": [7]}',
    b'{"manifests": [{"digest": "sha256:../../x", "size": 1}]}',
    b'{"manifests": [{"digest": "sha256:' + b"0" * 64 + b'", "size": -1}]}',
)


@pytest.mark.parametrize("body", BROKEN_INDEXES)
def test_a_broken_index_of_referrers_is_a_violation(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    with pytest.raises(ProtocolViolation):
        client.referrers("a/b", DIGEST)


@pytest.mark.parametrize("body", [*OTHER_ANSWERS, b'{"manifests": [{"digest'])
def test_what_calls_itself_an_index_is_a_broken_one(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body, Content_Type=OCI_INDEX)])
    with pytest.raises(ProtocolViolation):
        client.referrers("a/b", DIGEST)


def test_an_index_of_no_referrers_may_say_null(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(200, b'{"schemaVersion": 2, "manifests": null}')])
    assert client.referrers("a/b", DIGEST) == []


@pytest.mark.parametrize(
    ("answer", "error"),
    [(reply(404), ProtocolViolation), (reply(403), Denied), (reply(200), ProtocolViolation)],
)
def test_referrers_that_break_off_are_no_sign_of_a_registry_without_the_call(
    connect: Connect, answer: bytes, error: type[EpochfsError]
) -> None:
    first = page(b"1", Link=f'<{TARGET}?page=2>; rel="next"')
    _, client = connect(lambda seen: [answer] if "?" in seen.target else first)
    with pytest.raises(error):
        client.referrers("a/b", DIGEST)


def test_referrers_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_REFERRERS", 3)

    def script(seen: Seen) -> list[Step]:
        return page(b"1", b"2", Link=f'<{TARGET}?page={len(server.seen)}>; rel="next"')

    server, client = connect(script)
    with pytest.raises(ProtocolViolation):
        client.referrers("a/b", DIGEST)
    assert len(server.seen) == 2


def test_a_small_blob_is_read_whole_and_hashed(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(200, b"content")])
    assert client.read_blob("a/b", Digest.of(b"content"), 7) == b"content"
    with pytest.raises(ContentMismatch):
        client.read_blob("a/b", DIGEST, 7)
    with pytest.raises(TooLarge):
        client.read_blob("a/b", Digest.of(b"content"), 6)
