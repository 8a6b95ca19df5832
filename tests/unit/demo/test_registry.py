"""The embedded registry on the wire: what the specification asks of a registry."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator

import pytest
from support.builders import image, index, load
from support.registries import EmbeddedRegistry
from support.wire import ask, pages

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.demo.samples import descriptor
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest

UPLOADS = "/v2/library/nginx/blobs/uploads/"

# --- the connection ---------------------------------------------------------------------------


def test_one_connection_serves_many_requests(embedded: EmbeddedRegistry) -> None:
    connection = http.client.HTTPConnection(embedded.host, timeout=10)
    ports = set()
    for path in ("/v2/", "/v2/nothing/tags/list", "/v2/_catalog", "/nowhere"):
        connection.request("GET", path)
        ports.add(connection.sock.getsockname())
        response = connection.getresponse()
        assert len(response.read()) == int(response.headers["Content-Length"])
    connection.request("PUT", "/v2/a/manifests/v1", b"refused, and its body is read all the same")
    assert connection.getresponse().read()
    connection.request("GET", "/v2/")
    ports.add(connection.sock.getsockname())
    connection.close()
    assert len(ports) == 1


def test_head_has_the_headers_of_get_and_no_body(embedded: EmbeddedRegistry) -> None:
    digest = embedded.put_blob("a", b"content")
    got = ask(embedded, "GET", f"/v2/a/blobs/{digest}")
    head = ask(embedded, "HEAD", f"/v2/a/blobs/{digest}")
    assert (head.status, head.body) == (200, b"")
    for name in ("Content-Length", "Content-Type", "Docker-Content-Digest", "Accept-Ranges"):
        assert head.headers[name] == got.headers[name]


@pytest.mark.parametrize("length", ["-1", "seven", "99999999999999999999"])
def test_a_body_of_senseless_length_is_refused(embedded: EmbeddedRegistry, length: str) -> None:
    answer = ask(embedded, "POST", UPLOADS, b"", Content_Length=length)
    assert (answer.status, answer.headers["Connection"]) == (400, "close")


def test_stop_cuts_connections_and_start_listens_at_the_same_port() -> None:
    registry = EmbeddedRegistry()
    registry.start()
    digest = registry.put_blob("a", b"kept")
    connection = http.client.HTTPConnection(registry.host, timeout=10)
    connection.request("GET", "/v2/")
    connection.getresponse().read()
    url = registry.url
    registry.stop()
    assert connection.sock.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        ask(registry, "GET", "/v2/")
    with registry:
        assert registry.url == url
        assert ask(registry, "GET", f"/v2/a/blobs/{digest}").body == b"kept"


def test_requests_are_logged_without_bodies(embedded: EmbeddedRegistry) -> None:
    ask(embedded, "POST", f"{UPLOADS}?digest=x", b"data")
    ask(embedded, "GET", "/v2/a%2Fb/tags/list?n=5", Range="bytes=0-")
    posted, listed = embedded.requests
    assert (posted.path, posted.query, posted.body) == (UPLOADS, {"digest": "x"}, b"")
    assert (listed.path, listed.query, listed.headers["range"]) == (
        "/v2/a/b/tags/list",
        {"n": "5"},
        "bytes=0-",
    )
    assert embedded.count("GET") == 1
    assert embedded.count(containing="tags/list") == 1
    embedded.forget_requests()
    assert embedded.requests == []


# --- wrong answers on purpose -----------------------------------------------------------------


class Broken(EmbeddedRegistry):
    """Answers every request with one response."""

    def __init__(self, response: Response) -> None:
        super().__init__()
        self._response = response

    def respond(self, request: Request) -> Response:
        return self._response


def test_a_subclass_can_change_one_answer() -> None:
    class WithoutDigest(EmbeddedRegistry):
        def respond(self, request: Request) -> Response:
            return super().respond(request).without("docker-content-digest").having(X_Test="1")

    with WithoutDigest() as registry:
        digest = registry.put_blob("a", b"content")
        answer = ask(registry, "GET", f"/v2/a/blobs/{digest}")
    assert answer.headers["Docker-Content-Digest"] is None
    assert (answer.headers["X-Test"], answer.body) == ("1", b"content")


def test_a_subclass_can_close_before_the_promised_length() -> None:
    with Broken(Response(200, {"Content-Length": "10"}, iter([b"short"]))) as registry:  # noqa: SIM117
        with pytest.raises(http.client.IncompleteRead):
            ask(registry, "GET", "/v2/")


def test_a_subclass_can_reset_the_connection() -> None:
    def pieces() -> Iterator[bytes]:
        yield b"short"
        raise ConnectionResetError

    with Broken(Response(200, {"Content-Length": "10"}, pieces())) as registry:  # noqa: SIM117
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            ask(registry, "GET", "/v2/")


# --- blobs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-4", b"01234"),
        ("bytes=5-", b"56789"),
        ("bytes=-3", b"789"),
        ("bytes=-30", b"0123456789"),
        ("bytes=8-100", b"89"),
    ],
)
def test_a_range_is_answered_206(embedded: EmbeddedRegistry, header: str, expected: bytes) -> None:
    digest = embedded.put_blob("a", b"0123456789")
    answer = ask(embedded, "GET", f"/v2/a/blobs/{digest}", Range=header)
    start = b"0123456789".index(expected)
    assert (answer.status, answer.body) == (206, expected)
    assert answer.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/10"
    assert answer.headers["Docker-Content-Digest"] == str(digest)


@pytest.mark.parametrize("header", ["bytes=5-2", "bytes=-", "pages=1-2", "bytes=0-1,4-5", "x"])
def test_a_range_that_makes_no_sense_is_ignored(embedded: EmbeddedRegistry, header: str) -> None:
    digest = embedded.put_blob("a", b"0123456789")
    answer = ask(embedded, "GET", f"/v2/a/blobs/{digest}", Range=header)
    assert (answer.status, answer.body) == (200, b"0123456789")


@pytest.mark.parametrize("data", [b"0123456789", b""])
def test_a_range_beyond_the_end_is_answered_416(embedded: EmbeddedRegistry, data: bytes) -> None:
    digest = embedded.put_blob("a", data)
    answer = ask(embedded, "GET", f"/v2/a/blobs/{digest}", Range="bytes=10-")
    assert (answer.status, answer.headers["Content-Range"]) == (416, f"bytes */{len(data)}")


def test_blobs_belong_to_repositories(embedded: EmbeddedRegistry) -> None:
    digest = embedded.put_blob("a", b"content")
    missing = ask(embedded, "GET", f"/v2/b/blobs/{digest}")
    assert (missing.status, missing.code) == (404, "BLOB_UNKNOWN")
    mounted = ask(embedded, "POST", f"/v2/b/blobs/uploads/?mount={digest}&from=a")
    assert (mounted.status, mounted.headers["Location"]) == (201, f"/v2/b/blobs/{digest}")
    assert ask(embedded, "DELETE", f"/v2/a/blobs/{digest}").status == 202
    assert ask(embedded, "DELETE", f"/v2/a/blobs/{digest}").status == 404
    assert ask(embedded, "GET", f"/v2/b/blobs/{digest}").body == b"content"


def test_mounting_what_is_not_there_begins_an_upload(embedded: EmbeddedRegistry) -> None:
    query = f"?mount={Digest.of(b'unknown')}&from=a"
    answer = ask(embedded, "POST", UPLOADS + query)
    assert (answer.status, answer.headers["Range"]) == (202, "0-0")


def test_an_upload_in_one_post(embedded: EmbeddedRegistry) -> None:
    digest = Digest.of(b"content")
    answer = ask(embedded, "POST", f"{UPLOADS}?digest={digest}", b"content")
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (201, str(digest))
    assert ask(embedded, "GET", answer.headers["Location"]).body == b"content"


def test_an_upload_in_chunks(embedded: EmbeddedRegistry) -> None:
    location = ask(embedded, "POST", UPLOADS).headers["Location"]
    first = ask(embedded, "PATCH", location, b"0123", Content_Range="0-3")
    assert (first.status, first.headers["Range"]) == (202, "0-3")
    out_of_order = ask(embedded, "PATCH", location, b"6789", Content_Range="6-9")
    assert (out_of_order.status, out_of_order.code) == (416, "BLOB_UPLOAD_INVALID")
    second = ask(embedded, "PATCH", first.headers["Location"], iter([b"45", b"67"]))
    assert second.headers["Range"] == "0-7"
    assert ask(embedded, "GET", location).headers["Range"] == "0-7"
    digest = Digest.of(b"0123456789")
    ended = ask(embedded, "PUT", f"{location}?digest={digest}", b"89")
    assert ended.status == 201
    assert ask(embedded, "GET", ended.headers["Location"]).body == b"0123456789"
    assert ask(embedded, "GET", location).code == "BLOB_UPLOAD_UNKNOWN"


def test_an_upload_with_a_wrong_digest_stores_nothing(embedded: EmbeddedRegistry) -> None:
    digest = Digest.of(b"something else")
    location = ask(embedded, "POST", UPLOADS).headers["Location"]
    answer = ask(embedded, "PUT", f"{location}?digest={digest}", b"content")
    assert (answer.status, answer.code) == (400, "DIGEST_INVALID")
    assert ask(embedded, "HEAD", f"/v2/library/nginx/blobs/{digest}").status == 404


def test_a_cancelled_upload_is_gone(embedded: EmbeddedRegistry) -> None:
    location = ask(embedded, "POST", UPLOADS).headers["Location"]
    assert ask(embedded, "DELETE", location).status == 204
    for method in ("GET", "PATCH", "DELETE"):
        assert ask(embedded, method, location).code == "BLOB_UPLOAD_UNKNOWN"
    assert ask(embedded, "PUT", location).code == "DIGEST_INVALID"


@pytest.mark.parametrize("digest", ["sha256:short", "md5:" + "0" * 32, "sha256:..%2F..%2Fx", "x"])
def test_what_is_no_digest_is_refused(embedded: EmbeddedRegistry, digest: str) -> None:
    assert ask(embedded, "GET", f"/v2/a/blobs/{digest}").status in (400, 404)
    assert ask(embedded, "POST", f"{UPLOADS}?digest={digest}", b"x").code == "DIGEST_INVALID"


# --- manifests --------------------------------------------------------------------------------


def test_a_manifest_is_stored_and_served_byte_for_byte(embedded: EmbeddedRegistry) -> None:
    content = image()
    load(embedded, "library/nginx", "", content)
    spaced = content.raw.replace(b",", b" ,\n ")
    digest = Digest.of(spaced)
    put = ask(embedded, "PUT", "/v2/library/nginx/manifests/v1", spaced, Content_Type=OCI_MANIFEST)
    assert (put.status, put.headers["Docker-Content-Digest"]) == (201, str(digest))
    for reference in ("v1", digest):
        got = ask(embedded, "GET", f"/v2/library/nginx/manifests/{reference}")
        assert (got.body, got.headers["Content-Type"]) == (spaced, OCI_MANIFEST)
        assert got.headers["Docker-Content-Digest"] == str(digest)


def refusals() -> Iterator[tuple[str, bytes, str, str]]:
    """Yield manifests that are refused: reference, body, Content-Type, error code."""
    complete = image().raw
    yield "v1", b"{", OCI_MANIFEST, "MANIFEST_INVALID"
    yield "v1", b"[]", OCI_MANIFEST, "MANIFEST_INVALID"
    yield "v1", complete, OCI_INDEX, "MANIFEST_INVALID"
    yield "v1", complete, "", "MANIFEST_INVALID"
    yield "v1", complete, "text/plain; charset=utf-8", "MANIFEST_INVALID"
    yield "-v1", complete, OCI_MANIFEST, "MANIFEST_INVALID"
    yield "v1", image(b"a blob nobody pushed").raw, OCI_MANIFEST, "MANIFEST_BLOB_UNKNOWN"
    yield str(Digest.of(b"other")), complete, OCI_MANIFEST, "DIGEST_INVALID"


@pytest.mark.parametrize(("reference", "body", "media_type", "code"), list(refusals()))
def test_a_bad_manifest_is_refused(
    embedded: EmbeddedRegistry, reference: str, body: bytes, media_type: str, code: str
) -> None:
    for blob in image().blobs:
        embedded.put_blob("a", blob)
    answer = ask(embedded, "PUT", f"/v2/a/manifests/{reference}", body, Content_Type=media_type)
    assert (answer.status, answer.code) == (400, code)
    assert ask(embedded, "GET", "/v2/a/manifests/v1").code == "MANIFEST_UNKNOWN"


def test_deleting_a_tag_leaves_the_manifest(embedded: EmbeddedRegistry) -> None:
    content = image()
    load(embedded, "a", "v1", content)
    assert ask(embedded, "DELETE", "/v2/a/manifests/v1").status == 202
    assert ask(embedded, "DELETE", "/v2/a/manifests/v1").status == 404
    assert ask(embedded, "GET", f"/v2/a/manifests/{content.digest}").status == 200


def test_deleting_a_manifest_takes_its_tags_with_it(embedded: EmbeddedRegistry) -> None:
    content = image()
    load(embedded, "a", "v1", content)
    load(embedded, "a", "v2", content)
    load(embedded, "a", "other", index())
    for digest, left in ((content.digest, ["other"]), (index().digest, [])):
        assert ask(embedded, "DELETE", f"/v2/a/manifests/{digest}").status == 202
        assert json.loads(ask(embedded, "GET", "/v2/a/tags/list").body)["tags"] == left


@pytest.mark.parametrize("name", ["Upper", "a//b", "a/../b", "-a", "a%0Ab"])
def test_names_outside_the_grammar_are_refused(embedded: EmbeddedRegistry, name: str) -> None:
    assert ask(embedded, "GET", f"/v2/{name}/tags/list").code == "NAME_INVALID"


def test_a_name_may_hold_the_words_of_the_api(embedded: EmbeddedRegistry) -> None:
    content = image()
    load(embedded, "blobs/uploads/tags/manifests", "list", content)
    base = "/v2/blobs/uploads/tags/manifests"
    assert json.loads(ask(embedded, "GET", f"{base}/tags/list").body)["tags"] == ["list"]
    assert ask(embedded, "GET", f"{base}/manifests/list").body == content.raw


# --- listings ---------------------------------------------------------------------------------


def test_tags_are_paged(embedded: EmbeddedRegistry) -> None:
    for tag in ("e", "b", "d", "a", "c"):
        load(embedded, "x/y", tag, image())
    assert pages(embedded, "/v2/x/y/tags/list", "tags") == [["a", "b", "c", "d", "e"]]
    assert pages(embedded, "/v2/x/y/tags/list?n=2", "tags") == [["a", "b"], ["c", "d"], ["e"]]
    assert pages(embedded, "/v2/x/y/tags/list?n=2&last=c", "tags") == [["d", "e"]]
    assert pages(embedded, "/v2/x/y/tags/list?n=0", "tags") == [[]]
    assert ask(embedded, "GET", "/v2/x/y/tags/list?n=x").code == "PAGINATION_NUMBER_INVALID"


def test_the_catalog_is_paged_by_the_servers_own_limit() -> None:
    with EmbeddedRegistry(Behaviour(page_size=2)) as registry:
        for name in ("b/2", "a", "b"):
            load(registry, name, "v1", image())
        assert pages(registry, "/v2/_catalog", "repositories") == [["a", "b"], ["b/2"]]
        assert pages(registry, "/v2/_catalog?n=100", "repositories") == [["a", "b"], ["b/2"]]


def test_referrers_are_listed_and_filtered(embedded: EmbeddedRegistry) -> None:
    subject = image()
    load(embedded, "a", "v1", subject)
    signature, report = (
        image(
            artifactType=f"application/x.{kind}",
            subject=descriptor(subject.raw, OCI_MANIFEST),
            annotations={"k": "v"},
        )
        for kind in ("signature", "report")
    )
    for referrer in (signature, report):
        for blob in referrer.blobs:
            embedded.put_blob("a", blob)
        path = f"/v2/a/manifests/{referrer.digest}"
        put = ask(embedded, "PUT", path, referrer.raw, Content_Type=OCI_MANIFEST)
        assert put.headers["OCI-Subject"] == str(subject.digest)

    path = f"/v2/a/referrers/{subject.digest}"
    everything = ask(embedded, "GET", path)
    assert everything.headers["Content-Type"] == OCI_INDEX
    assert len(json.loads(everything.body)["manifests"]) == 2
    filtered = ask(embedded, "GET", f"{path}?artifactType=application/x.report")
    assert filtered.headers["OCI-Filters-Applied"] == "artifactType"
    assert json.loads(filtered.body)["manifests"] == [
        descriptor(
            report.raw, OCI_MANIFEST, artifactType="application/x.report", annotations={"k": "v"}
        )
    ]
    nobody = ask(embedded, "GET", f"/v2/a/referrers/{Digest.of(b'x')}")
    assert json.loads(nobody.body)["manifests"] == []


def test_an_index_that_states_no_artifact_type_is_listed_without_one(
    embedded: EmbeddedRegistry,
) -> None:
    subject = image()
    load(embedded, "a", "v1", subject)
    referrer = index(subject, subject=descriptor(subject.raw, OCI_MANIFEST))
    load(embedded, "a", "v2", referrer)
    found = ask(embedded, "GET", f"/v2/a/referrers/{subject.digest}")
    assert json.loads(found.body)["manifests"] == [descriptor(referrer.raw, OCI_INDEX)]
