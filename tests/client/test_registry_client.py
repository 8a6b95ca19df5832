"""The client's own work: names, paging, digests and sizes.

What registries really answer is in the contract suite; here they answer oddly.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from support.builders import signed
from support.clients import Connect, connecting
from support.lies import Destinations
from support.scripted import Seen, Step, at_most, reply

from epochfs.client import RegistryClient
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    ContentMismatch,
    DeadlineExceeded,
    Denied,
    InvalidName,
    NotFound,
    ProtocolViolation,
    TooLarge,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
    UsageError,
)
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest, Repository, Tag

RAW = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}).encode()
DIGEST = Digest.of(RAW)
OTHER = Digest.of(b"other")
BLOB = bytes(range(256)) * 300
BLOB_DIGEST = Digest.of(BLOB)

connect = pytest.fixture(connecting)


def listing(key: str, names: object, **headers: str) -> list[Step]:
    return [reply(200, json.dumps({key: names}).encode(), **headers)]


def manifest(raw: bytes = RAW, digest: object = DIGEST, **headers: str | None) -> list[Step]:
    headers = {"Content_Type": OCI_MANIFEST, **headers}
    if digest is not None:
        headers["Docker_Content_Digest"] = str(digest)
    return [reply(200, raw, **headers)]


def head(length: object = len(RAW), digest: object = DIGEST) -> list[Step]:
    return manifest(b"", digest, Content_Length=None if length is None else str(length))


def errors(code: str) -> bytes:
    """Return the body of a refusal as the specification has it."""
    return json.dumps({"errors": [{"code": code, "message": "why"}]}).encode()


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


# Listings


def test_all_pages_are_listed(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        if "last=b" in seen.target:
            return listing("tags", ["c"])
        return listing("tags", ["a", "b"], Link='</v2/x/tags/list?last=b&n=2>; rel="next"')

    server, client = connect(script)
    assert client.list_tags("x") == ["a", "b", "c"]
    assert server.seen[1].target == "/v2/x/tags/list?last=b&n=2"


@pytest.mark.parametrize("body", [b'{"tags": null}', b'{"name": "x"}', b'{"tags": []}'])
def test_no_tags_are_an_empty_list(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    assert client.list_tags("x") == []


def test_names_are_returned_as_they_are(connect: Connect) -> None:
    names = ["..", "/x", "", "a\nb", "\ud800", "a" * 5000]
    _, client = connect(lambda _: listing("repositories", names))
    assert client.catalog() == names


@pytest.mark.expects_log("left out 2 names")
def test_what_is_no_text_is_left_out_with_one_warning(connect: Connect) -> None:
    _, client = connect(lambda _: listing("repositories", ["a", 7, None, "b"]))
    assert client.catalog() == ["a", "b"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"7",
        b"<html>",
        b'{"tags": 7}',
        b'{"tags": {"a": "b"}}',
        b'{"tags": [], "tags": ["x"]}',
        b'{"tags": NaN}',
        b"\xef\xbb\xbf{}",
        b'{"tags": [' + b"[" * 100_000,
        b'{"tags": ' + b"7" * 10_000 + b"}",
    ],
    ids=range(11),
)
def test_a_listing_that_is_none_is_a_violation(connect: Connect, body: bytes) -> None:
    _, client = connect(lambda _: [reply(200, body)])
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


@pytest.mark.parametrize(
    "link",
    [
        '</v2/x/tags/list?n=1000>; rel="next"',
        '<http://elsewhere.example/v2/x/tags/list?n=1000>; rel="next"',
        '<http://127.0.0.1:9/api/x>; rel="next"',
        '<file:///etc/passwd>; rel="next"',
        '</api/x>; rel="next"',
        "<",
    ],
)
def test_a_doubtful_next_page_is_not_asked_for(connect: Connect, link: str) -> None:
    server, client = connect(lambda _: listing("tags", ["a"], Link=link))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")
    assert len(server.seen) == 1


@pytest.mark.parametrize("scheme", ["http", "https", "HTTP"])
@pytest.mark.parametrize("host", ["{host}", "inner:5000", "169.254.169.254", "me:secret@inner"])
def test_the_next_page_is_asked_of_the_registry_whatever_host_is_named(
    connect: Connect, scheme: str, host: str
) -> None:
    """As registries behind a proxy do, which ends TLS and has another name."""
    path = "/v2/_catalog?last=a"

    def script(seen: Seen) -> list[Step]:
        if seen.target == path:
            return listing("repositories", ["b"])
        site = f"{scheme}://{host.format(host=seen.headers['host'])}"
        return listing("repositories", ["a"], Link=f'<{site}{path}>; rel="next"')

    server, client = connect(script)
    with Destinations() as reached:
        assert client.catalog() == ["a", "b"]
    assert {f"{name}:{port}" for name, port in reached} == {server.host}


def test_a_listing_that_was_redirected_goes_on_at_the_registry(connect: Connect) -> None:
    link = '</v2/x/tags/list?last=a>; rel="next"'

    def home(seen: Seen) -> list[Step]:
        away.append("last" in seen.target)
        return [reply(307, Location=f"{other.url}{seen.target}")]

    away: list[bool] = []
    other, _ = connect(
        lambda seen: (
            listing("tags", ["b"]) if "last" in seen.target else listing("tags", ["a"], Link=link)
        )
    )
    _, client = connect(home)
    assert client.list_tags("x") == ["a", "b"]
    assert away == [False, True]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(404), ProtocolViolation),
        (reply(404, errors("NAME_UNKNOWN")), ProtocolViolation),
        (reply(405), ProtocolViolation),
        (reply(400), ProtocolViolation),
        (reply(200, b"<html>"), ProtocolViolation),
        (reply(403), Denied),
        (reply(503), Unavailable),
    ],
)
def test_a_listing_whose_next_page_is_refused_is_neither_short_nor_absent(
    connect: Connect, answer: bytes, error: type[Exception]
) -> None:
    def script(seen: Seen) -> list[Step]:
        if "last" in seen.target:
            return [answer]
        link = f'<{seen.path}?last=a>; rel="next"'
        return [reply(200, b'{"repositories": ["a"], "tags": ["a"]}', Link=link)]

    _, client = connect(script, options=TransportOptions(timeout=5.0, retries=0))
    for ask in (client.catalog, lambda: client.list_tags("x")):
        with pytest.raises(error) as raised:
            ask()
        assert type(raised.value) is error


def test_pages_that_never_end_meet_the_time_limit(connect: Connect) -> None:
    def script(seen: Seen) -> list[Step]:
        return listing("tags", ["a"], Link=f'<{seen.path}?last={len(server.seen)}>; rel="next"')

    server, client = connect(script, options=TransportOptions(timeout=0.5))
    with at_most(1.5), pytest.raises(DeadlineExceeded):
        client.list_tags("x")


def test_pages_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_PAGES", 3)

    def script(seen: Seen) -> list[Step]:
        return listing("tags", ["a"], Link=f'<{seen.path}?last={len(server.seen)}>; rel="next"')

    server, client = connect(script)
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")
    assert len(server.seen) == 3


def test_names_are_counted(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_NAMES", 3)
    _, client = connect(lambda _: listing("tags", ["a"] * 4))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


@pytest.mark.parametrize("item", [[], {}, 1, None])
def test_what_is_no_name_is_counted_too_and_not_even_parsed(
    connect: Connect, monkeypatch: pytest.MonkeyPatch, item: object
) -> None:
    monkeypatch.setattr("epochfs.client.host._MOST_NAMES", 3)
    monkeypatch.setattr("epochfs.client.host.load_json", pytest.fail)
    _, client = connect(lambda _: listing("tags", [item] * 5))
    with pytest.raises(ProtocolViolation, match="over 3 names"):
        client.list_tags("x")


def test_a_page_over_its_limit_is_a_violation(
    connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.client.host._PAGE_LIMIT", 100)
    _, client = connect(lambda _: listing("tags", ["a"] * 100))
    with pytest.raises(ProtocolViolation):
        client.list_tags("x")


def test_a_registry_that_allows_fewer_names_a_page_chooses_itself(connect: Connect) -> None:
    server, client = connect(
        lambda seen: [reply(400)] if "?" in seen.target else listing("repositories", ["a"])
    )
    assert client.catalog() == ["a"]
    assert len(server.seen) == 2


def test_no_catalog_is_unsupported(connect: Connect) -> None:
    _, client = connect(lambda _: [reply(404)])
    with pytest.raises(Unsupported):
        client.catalog()


# Manifests


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


# A HEAD that is refused

REFUSALS = (400, 401, 403, 404, 405, 406, 410, 414, 422, 451, 501)
"""How registries, and what stands in front of them, refuse HEAD for what GET gives."""

BY_HEAD: dict[str, Callable[[RegistryClient], object]] = {
    "resolve a tag": lambda client: client.resolve("a", "latest").digest,
    "resolve a digest": lambda client: client.resolve("a", DIGEST).digest,
    "has_manifest": lambda client: client.has_manifest("a", "latest"),
    "blob_size": lambda client: client.blob_size("a", BLOB_DIGEST),
    "blob_exists": lambda client: client.blob_exists("a", BLOB_DIGEST),
}
BY_GET = {
    "resolve a tag": DIGEST,
    "resolve a digest": DIGEST,
    "has_manifest": True,
    "blob_size": len(BLOB),
    "blob_exists": True,
}

each_by_head = pytest.mark.parametrize("call", BY_HEAD)


def get_gives(seen: Seen) -> list[Step]:
    """Answer a GET as a registry does that has it; of a blob no more than one byte is wanted."""
    if "/manifests/" in seen.path:
        return manifest()
    assert seen.headers["range"] == "bytes=0-0"
    return [reply(206, BLOB[:1], Content_Range=f"bytes 0-0/{len(BLOB)}")]


@each_by_head
@pytest.mark.parametrize("status", REFUSALS)
def test_what_head_refuses_get_may_give(connect: Connect, call: str, status: int) -> None:
    server, client = connect(
        lambda seen: [reply(status)] if seen.method == "HEAD" else get_gives(seen)
    )
    assert BY_HEAD[call](client) == BY_GET[call]
    assert [seen.method for seen in server.seen] == ["HEAD", "GET"]


@each_by_head
@pytest.mark.parametrize("status", REFUSALS)
def test_what_storage_refuses_to_head_get_may_give(
    connect: Connect, call: str, status: int
) -> None:
    """A URL may be signed for GET alone."""
    storage, _ = connect(lambda seen: [reply(status)] if seen.method == "HEAD" else get_gives(seen))
    _, client = connect(lambda seen: [reply(307, Location=f"{storage.url}{seen.path}?sig=x")])
    assert BY_HEAD[call](client) == BY_GET[call]


@each_by_head
@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (reply(404, errors("MANIFEST_UNKNOWN")), NotFound),
        (reply(404, b"404 page not found"), UnconfirmedNotFound),
        (reply(403, errors("DENIED")), Denied),
        (reply(401, errors("UNAUTHORIZED")), Denied),
        (reply(400, errors("UNSUPPORTED")), Unsupported),
        (reply(503), Unavailable),
    ],
    ids=["404 of the specification", "404 of an ingress", "403", "401", "unsupported", "503"],
)
def test_what_get_says_is_what_is_raised(
    connect: Connect, call: str, status: int, answer: bytes, error: type[Exception]
) -> None:
    _, client = connect(
        lambda seen: [reply(status) if seen.method == "HEAD" else answer],
        options=TransportOptions(timeout=5.0, retries=0),
    )
    if BY_GET[call] is True and issubclass(error, NotFound):
        assert BY_HEAD[call](client) is False
        return
    with pytest.raises(error) as raised:
        BY_HEAD[call](client)
    assert type(raised.value) is error
    assert "GET" in str(raised.value)


READS: dict[str, Callable[[RegistryClient], object]] = {
    **BY_HEAD,
    "get_manifest": lambda client: client.get_manifest("a", "latest"),
    "get_blob": lambda client: client.get_blob("a", BLOB_DIGEST),
    "read_blob": lambda client: client.read_blob("a", BLOB_DIGEST, 1000),
}


@pytest.mark.parametrize("call", READS)
@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_storage_refuses_is_not_the_registrys_refusal(
    connect: Connect, call: str, status: int
) -> None:
    storage, _ = connect(lambda _: [reply(status, b"<Error/>")])
    _, client = connect(lambda seen: [reply(307, Location=f"{storage.url}/bucket?sig=x")])
    with pytest.raises(Unavailable, match=f"storage at {storage.url} that refuses"):
        READS[call](client)


@each_by_head
def test_a_head_that_authentication_answers_is_no_refusal(connect: Connect, call: str) -> None:
    def script(seen: Seen) -> list[Step]:
        if seen.path == "/v2/":
            return [reply(200)]
        if "authorization" not in seen.headers:
            return [reply(401, WWW_Authenticate='Basic realm="x"')]
        return head() if "/manifests/" in seen.path else [reply(200, Content_Length=str(len(BLOB)))]

    server, client = connect(script, credentials=Credentials(username="u", password="p"))
    assert BY_HEAD[call](client) == BY_GET[call]
    assert [seen.method for seen in server.seen if seen.path != "/v2/"] == ["HEAD", "HEAD"]


@each_by_head
def test_a_head_without_an_answer_is_not_followed_by_get(connect: Connect, call: str) -> None:
    server, client = connect(
        lambda _: [reply(503)], options=TransportOptions(timeout=5.0, retries=0)
    )
    with pytest.raises(Unavailable):
        BY_HEAD[call](client)
    assert [seen.method for seen in server.seen] == ["HEAD"]


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
