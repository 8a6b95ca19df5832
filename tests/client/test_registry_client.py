"""The client's own work: names, paging, digests and sizes.

What registries really answer is in the contract suite; here they answer oddly.
"""

from __future__ import annotations

import pytest
from support.answers import BLOB_DIGEST, DIGEST, errors, listing, manifest
from support.clients import Connect, connecting
from support.scripted import Seen, Step, reply

from epochfs.client import RegistryClient
from epochfs.config import Credentials
from epochfs.errors import (
    Denied,
    InvalidName,
    NotFound,
    ProtocolViolation,
    Unavailable,
    UnconfirmedNotFound,
    UsageError,
)
from epochfs.oci.names import Digest

connect = pytest.fixture(connecting)


# Making a client


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("", "http://127.0.0.1:8080"),
        ("  ", "http://127.0.0.1:8080"),
        ("https://reg.example/", "https://reg.example"),
        ("reg.example:5000", "https://reg.example:5000"),
        ("localhost:5000", "http://localhost:5000"),
    ],
)
def test_the_base_url(given: str, base_url: str) -> None:
    assert RegistryClient(given).base_url == base_url


@pytest.mark.parametrize("url", ["https://reg.example/path", "ftp://x", "http://u:p@h", "http://"])
def test_a_base_url_that_is_none_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        RegistryClient(url)


def test_the_token_goes_before_other_credentials(connect: Connect) -> None:
    server, client = connect(
        lambda _: [reply(200)], token="mine", credentials=Credentials(username="u", password="p")
    )
    client.ping()
    assert server.seen[0].headers["authorization"] == "Bearer mine"


@pytest.mark.parametrize("name", ["", ".", "..", "a//b", "a/../b", "/a", "a/", "a\nb", "a\x00"])
def test_a_bad_name_makes_no_request(connect: Connect, name: str) -> None:
    server, client = connect(lambda _: [reply(200)])
    for call in (
        lambda: client.list_tags(name),
        lambda: client.get_manifest(name, "latest"),
        lambda: client.get_blob(name, BLOB_DIGEST),
        lambda: client.put_blob(name, BLOB_DIGEST, b"", 0),
    ):
        with pytest.raises(InvalidName):
            call()
    assert server.seen == []


@pytest.mark.parametrize("reference", ["", "..", "a/b", "sha256:../../x", "sha256:AB", "md5:00"])
def test_a_bad_reference_makes_no_request(connect: Connect, reference: str) -> None:
    server, client = connect(lambda _: [reply(200)])
    with pytest.raises(InvalidName):
        client.resolve("a", reference)
    assert server.seen == []


def test_odd_names_are_quoted(connect: Connect) -> None:
    server, client = connect(lambda _: manifest(digest=None))
    client.get_manifest("a b/ü?x#y/%41", "t?a#g")
    assert server.seen[0].target == "/v2/a%20b/%C3%BC%3Fx%23y/%2541/manifests/t%3Fa%23g"


# ping


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(404), UnconfirmedNotFound),
        (reply(404, errors("NOT_FOUND")), NotFound),
        (reply(400), ProtocolViolation),
        (reply(405), ProtocolViolation),
        (reply(410), ProtocolViolation),
        (reply(403), Denied),
        (reply(401), Denied),
        (reply(503), Unavailable),
    ],
)
def test_ping_tells_what_is_wrong(connect: Connect, answer: bytes, error: type[Exception]) -> None:
    """A registry without `/v2/`, such as Ollama's, may be one all the same."""
    _, client = connect(lambda _: [answer])
    with pytest.raises(error) as raised:
        client.ping()
    assert type(raised.value) is error


def epoch_with_auth(seen: Seen) -> list[Step]:
    """Answer as Epoch does: `/v2/` wants a token, everything else is open to readers."""
    if seen.path == "/v2/":
        realm = f"http://{seen.headers['host']}/token"
        return [reply(401, WWW_Authenticate=f'Bearer realm="{realm}"')]
    return [reply(401)] if seen.path == "/token" else listing("repositories", ["a"])


def test_ping_lets_anonymous_readers_of_epoch_pass(connect: Connect) -> None:
    _, client = connect(epoch_with_auth)
    client.ping()


def test_ping_of_epoch_still_notices_wrong_credentials(connect: Connect) -> None:
    for credentials in (Credentials(username="u", password="wrong"), Credentials(token="wrong")):
        _, client = connect(epoch_with_auth, credentials=credentials)
        with pytest.raises(Denied):
            client.ping()


# Reading blobs


def test_blobs_exist_or_not_or_it_is_an_error(connect: Connect) -> None:
    server, client = connect(lambda _: [reply(200)])
    assert client.blob_exists("a", BLOB_DIGEST)
    server.script = lambda _: [reply(404)]
    assert not client.blob_exists("a", BLOB_DIGEST)
    server.script = lambda _: [reply(403)]
    with pytest.raises(Denied):
        client.blob_exists("a", BLOB_DIGEST)


def test_a_blobs_size_is_in_the_head(connect: Connect) -> None:
    server, client = connect(lambda _: [reply(200, Content_Length="12345678901")])
    assert client.blob_size("a", BLOB_DIGEST) == 12345678901
    assert [seen.method for seen in server.seen] == ["HEAD"]


@pytest.mark.parametrize("length", ["-1", "1.5", "many", str(2**60), str(2**63)])
def test_a_size_that_is_none_is_a_violation(connect: Connect, length: str) -> None:
    _, client = connect(lambda _: [reply(200, Content_Length=length)])
    with pytest.raises(ProtocolViolation):
        client.blob_size("a", BLOB_DIGEST)
    with pytest.raises(ProtocolViolation):
        client.resolve("a", DIGEST)


@pytest.mark.parametrize("ranged", [True, False])
@pytest.mark.parametrize("status", [200, 405])
def test_a_get_finds_the_size_where_the_head_does_not_say(
    connect: Connect, status: int, ranged: bool
) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.method == "HEAD":
            return [reply(status, Content_Length=None)]
        assert seen.headers["range"] == "bytes=0-0"
        if ranged:
            return [reply(206, b"x", Content_Range="bytes 0-0/77")]
        return [reply(200, b"x" * 77)]

    _, client = connect(script)
    assert client.blob_size("a", BLOB_DIGEST) == 77


@pytest.mark.parametrize("status", [200, 405])
def test_an_empty_blobs_size_is_found_where_the_head_does_not_say(
    connect: Connect, status: int
) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.method == "HEAD":
            return [reply(status, Content_Length=None)]
        if "range" in seen.headers:
            return [reply(416, Content_Range="bytes */0")]
        return [reply(200, b"")]

    _, client = connect(script)
    assert client.blob_size("a", Digest.of(b"")) == 0


def test_a_size_nobody_tells_is_a_violation(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"
        return [reply(405)] if seen.method == "HEAD" else [chunked]

    _, client = connect(script)
    with pytest.raises(ProtocolViolation):
        client.blob_size("a", BLOB_DIGEST)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [(0, None, None), (5, None, "bytes=5-"), (0, 10, "bytes=0-9"), (5, 6, "bytes=5-5")],
)
def test_ranges_are_asked_for_only_where_needed(
    connect: Connect, start: int, end: int | None, expected: str | None
) -> None:
    server, client = connect(lambda _: [reply(200, b"x" * 20)])
    with client.get_blob("a", BLOB_DIGEST, start, end) as stream:
        assert (stream.start, stream.total, stream.ranged) == (0, 20, False)
    assert server.seen[0].headers.get("range") == expected


@pytest.mark.parametrize(("start", "end"), [(-1, None), (5, 5), (5, 4), (0, 0)])
def test_an_empty_range_is_a_usage_error(connect: Connect, start: int, end: int) -> None:
    server, client = connect(lambda _: [reply(200)])
    with pytest.raises(UsageError):
        client.get_blob("a", BLOB_DIGEST, start, end)
    assert server.seen == []


def test_an_unknown_blob_is_not_found(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(404)])
    with pytest.raises(NotFound):
        client.get_blob("a", BLOB_DIGEST)
