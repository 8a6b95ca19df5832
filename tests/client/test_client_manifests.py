"""Manifests: which bytes, digests and types are taken, and which are sent."""

from __future__ import annotations

import pytest
from support.answers import BLOB, BLOB_DIGEST, DIGEST, OTHER, RAW, head, manifest
from support.builders import signed
from support.clients import Connect, connecting
from support.scripted import Seen, Step, reply

from epochfs.errors import (
    ContentMismatch,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unsupported,
    UsageError,
)
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest, Repository, Tag

connect = pytest.fixture(connecting)


def test_a_manifest_comes_with_digest_and_type(connect: Connect) -> None:
    server, client = connect(lambda _: manifest(Content_Type=f"{OCI_MANIFEST}; charset=utf-8"))
    for reference in ("latest", Tag("latest"), DIGEST, str(DIGEST)):
        document = client.get_manifest(Repository("a/b"), reference)
        assert (document.raw, document.digest) == (RAW, DIGEST)
        assert document.media_type == OCI_MANIFEST
    assert OCI_MANIFEST in server.seen[0].headers["accept"]


@pytest.mark.parametrize("announced", [None, "", "nonsense", "sha256:../../x", f"{DIGEST}0"])
def test_without_a_usable_digest_header_the_bytes_are_hashed(
    connect: Connect, announced: str | None
) -> None:
    _, client = connect(lambda _: manifest(digest=announced))
    assert client.get_manifest("a", "latest").digest == DIGEST


@pytest.mark.parametrize("body", [b"", b"<!DOCTYPE html><html>", b"[]", b"Please log in"])
def test_what_nothing_vouches_for_and_looks_like_no_manifest_is_not_what_a_tag_names(
    connect: Connect, body: bytes
) -> None:
    _, client = connect(lambda _: manifest(body, None))
    for ask in (client.get_manifest, client.resolve):
        with pytest.raises(ProtocolViolation, match="not a manifest"):
            ask("a", "latest")
    _, client = connect(lambda _: manifest(body, Digest.of(body)))
    assert client.get_manifest("a", "latest").raw == body


def test_bytes_with_another_digest_than_announced_are_a_mismatch(connect: Connect) -> None:
    _, client = connect(lambda _: manifest(digest=OTHER))
    with pytest.raises(ContentMismatch):
        client.get_manifest("a", "latest")


def test_bytes_with_another_digest_than_asked_for_are_a_mismatch(connect: Connect) -> None:
    _, client = connect(lambda _: manifest(digest=None))
    with pytest.raises(ContentMismatch):
        client.get_manifest("a", OTHER)


def test_a_sha512_reference_is_checked_beside_a_sha256_header(connect: Connect) -> None:
    wanted = Digest.of(RAW, "sha512")
    _, client = connect(lambda _: manifest())
    assert client.get_manifest("a", wanted).digest == wanted


def test_a_manifest_over_the_limit_is_too_large(connect: Connect) -> None:
    _, client = connect(lambda _: manifest(), manifest_limit=len(RAW) - 1)
    with pytest.raises(TooLarge):
        client.get_manifest("a", "latest")
    assert client.get_manifest("a", "latest", limit=len(RAW)).raw == RAW


@pytest.mark.parametrize("content_type", ["", "nonsense", "a/b\xff", "x" * 1000])
def test_a_manifest_of_no_usable_type_is_octets(connect: Connect, content_type: str) -> None:
    _, client = connect(lambda _: manifest(Content_Type=content_type))
    assert client.get_manifest("a", "latest").media_type == "application/octet-stream"


def test_a_signed_manifest_is_known_by_the_digest_of_its_payload(connect: Connect) -> None:
    """As Docker's registry has stored schema 1 since it knows digests."""
    raw, unsigned = signed()
    digest = Digest.of(unsigned)
    for announced in (digest, None, Digest.of(unsigned, "sha512")):
        _, client = connect(lambda _, announced=announced: manifest(raw, announced))
        assert client.get_manifest("a", digest).raw == raw
        document = client.get_manifest("a", "latest")
        assert (document.raw, document.digest) == (raw, announced or digest)
        for other in (OTHER, DIGEST):
            with pytest.raises(ContentMismatch):
                client.get_manifest("a", other)


def test_a_manifest_that_only_looks_signed_is_a_mismatch(connect: Connect) -> None:
    raw, unsigned = signed(besides=b', "layers": []')
    _, client = connect(lambda _: manifest(raw, None))
    with pytest.raises(ContentMismatch):
        client.get_manifest("a", Digest.of(unsigned))


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "aws-chunked"])
def test_what_has_a_digest_is_taken_as_it_comes_whatever_encoding_it_says(
    connect: Connect, encoding: str
) -> None:
    digests: list[object] = [DIGEST]

    def script(seen: Seen) -> list[Step]:
        if "/blobs/" in seen.path:
            return [
                reply(200, BLOB * (seen.method == "GET"), **said, Content_Length=f"{len(BLOB)}")
            ]
        body = RAW * (seen.method == "GET")
        return manifest(body, digests[0], **said, Content_Length=f"{len(RAW)}")

    said = {"Content_Encoding": encoding}
    _, client = connect(script)
    assert client.read_blob("a", BLOB_DIGEST, len(BLOB)) == BLOB
    assert client.blob_size("a", BLOB_DIGEST) == len(BLOB)
    assert client.blob_exists("a", BLOB_DIGEST)
    for reference in ("latest", DIGEST):
        assert client.get_manifest("a", reference).raw == RAW
        assert client.resolve("a", reference).size == len(RAW)
    digests[0] = None
    assert client.resolve("a", DIGEST).size == len(RAW)
    for ask in (client.get_manifest, client.resolve):
        with pytest.raises(ProtocolViolation, match="encoded"):
            ask("a", "latest")


def test_a_size_that_may_be_of_an_encoded_manifest_is_not_believed(connect: Connect) -> None:
    server, client = connect(
        lambda seen: (
            manifest(b"", Content_Length="7", Content_Encoding="gzip")
            if seen.method == "HEAD"
            else manifest()
        )
    )
    assert client.resolve("a", "latest").size == len(RAW)
    assert [seen.method for seen in server.seen] == ["HEAD", "GET"]


# resolve


def test_resolve_needs_only_the_head(connect: Connect) -> None:
    server, client = connect(lambda _: head())
    descriptor = client.resolve("a", "latest")
    assert (descriptor.digest, descriptor.size) == (DIGEST, len(RAW))
    assert descriptor.media_type == OCI_MANIFEST
    assert [seen.method for seen in server.seen] == ["HEAD"]


@pytest.mark.parametrize(
    "answer",
    [
        head(digest=None),
        head(digest="sha256:short"),
        head(length=None),
    ],
    ids=["no digest", "bad digest", "no length"],
)
def test_resolve_asks_again_where_the_head_says_too_little(
    connect: Connect, answer: list[Step]
) -> None:
    server, client = connect(lambda seen: answer if seen.method == "HEAD" else manifest())
    descriptor = client.resolve("a", "latest")
    assert (descriptor.digest, descriptor.size) == (DIGEST, len(RAW))
    assert [seen.method for seen in server.seen] == ["HEAD", "GET"]


def test_a_manifest_of_any_size_is_there(connect: Connect) -> None:
    server, client = connect(
        lambda seen: [reply(404)] if seen.method == "HEAD" else manifest(), manifest_limit=1
    )
    assert client.has_manifest("a", DIGEST)
    server.script = lambda _: head()
    assert client.has_manifest("a", DIGEST)


def test_a_digest_resolves_to_itself_or_not_at_all(connect: Connect) -> None:
    server, client = connect(lambda _: head(digest=None))
    assert client.resolve("a", DIGEST).digest == DIGEST
    server.script = lambda _: head(digest=OTHER)
    with pytest.raises(ContentMismatch):
        client.resolve("a", DIGEST)


def test_an_unknown_tag_is_not_found(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(404)])
    with pytest.raises(NotFound):
        client.resolve("a", "latest")


# Pushing and deleting manifests


def test_a_manifest_is_stored(connect: Connect) -> None:
    server, client = connect(lambda _: [reply(201, Docker_Content_Digest=str(DIGEST))])
    assert client.put_manifest("a", "latest", RAW, OCI_MANIFEST) == DIGEST
    assert client.put_manifest("a", DIGEST, RAW, OCI_MANIFEST) == DIGEST
    assert [(seen.method, seen.path) for seen in server.seen] == [
        ("PUT", "/v2/a/manifests/latest"),
        ("PUT", f"/v2/a/manifests/{DIGEST}"),
    ]
    assert server.seen[0].body == RAW
    assert server.seen[0].headers["content-type"] == OCI_MANIFEST


def test_a_signed_manifest_is_stored_under_the_digest_of_its_payload(connect: Connect) -> None:
    raw, unsigned = signed()
    digest = Digest.of(unsigned)
    for stored in (digest, Digest.of(raw)):
        server, client = connect(
            lambda _, stored=stored: [reply(201, Docker_Content_Digest=str(stored))]
        )
        for reference in ("latest", digest):
            assert client.put_manifest("a", reference, raw, "application/json") == digest
        assert {seen.body for seen in server.seen} == {raw}


@pytest.mark.parametrize(
    ("reference", "data", "content_type"),
    [
        ("latest", RAW, "application/json"),
        ("latest", RAW, "nonsense"),
        ("latest", b"{}", "a/b\r\nX: y"),
        ("latest", b"nonsense", OCI_MANIFEST),
        ("latest", b"[]", OCI_MANIFEST),
        ("latest", b'{"mediaType": 7}', OCI_MANIFEST),
        (OTHER, RAW, OCI_MANIFEST),
    ],
)
def test_a_manifest_that_cannot_be_right_is_not_sent(
    connect: Connect, reference: Tag | Digest | str, data: bytes, content_type: str
) -> None:
    server, client = connect(lambda _: [reply(201)])
    with pytest.raises(UsageError):
        client.put_manifest("a", reference, data, content_type)
    assert server.seen == []


def test_a_manifest_stored_as_another_is_a_mismatch(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(201, Docker_Content_Digest=str(OTHER))])
    with pytest.raises(ContentMismatch):
        client.put_manifest("a", "latest", RAW, OCI_MANIFEST)


def test_deleting_what_is_not_there_is_done(connect: Connect) -> None:
    for status in (202, 204, 404):
        _, client = connect(lambda _, status=status: [reply(status)])
        client.delete_manifest("a", "latest")


@pytest.mark.parametrize("status", [400, 405])
def test_a_registry_that_deletes_no_tags_does_not_support_it(connect: Connect, status: int) -> None:
    _, client = connect(lambda _: [reply(status)])
    with pytest.raises(Unsupported):
        client.delete_manifest("a", "latest")
