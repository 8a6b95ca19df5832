"""The client on referrers and small blobs, of registries that answer oddly."""

from __future__ import annotations

import json

import pytest
from clients import Connect, connecting
from scripted import Seen, Step, reply

from epochfs.errors import ContentMismatch, ProtocolViolation, TooLarge, Unsupported
from epochfs.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.names import Digest
from epochfs.samples import descriptor

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


@pytest.mark.parametrize("status", [404, 405, 501])
def test_no_referrers_endpoint_is_unsupported(connect: Connect, status: int) -> None:
    _, client = connect(lambda _: [reply(status)])
    with pytest.raises(Unsupported):
        client.referrers("a/b", DIGEST)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"manifests": 7}',
        b'{"layers": []}',
        b'{"manifests": [{"digest": "sha256:../../x", "size": 1}]}',
        b'{"manifests": [{"digest": "sha256:' + b"0" * 64 + b'", "size": -1}]}',
    ],
)
def test_referrers_that_are_no_index_are_a_violation(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    with pytest.raises(ProtocolViolation):
        client.referrers("a/b", DIGEST)


def test_referrers_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.pages._MOST_REFERRERS", 3)

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
