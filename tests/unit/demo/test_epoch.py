"""The embedded registry as Epoch: what Epoch's server does on the wire, as its sources have it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from functools import partial
from typing import Protocol

import pytest
from support.builders import image, index, load
from support.registries import EmbeddedRegistry
from support.wire import Answer, ask, pages

from epochfs.demo.registry import EPOCH
from epochfs.oci.manifests import OCI_INDEX, OCI_MANIFEST
from epochfs.oci.names import Digest

TOKEN = "secret"
UNKNOWN = Digest.of(b"what nobody pushed")
SHA512 = Digest.of(b"{}", "sha512")


class Write(Protocol):
    def __call__(self, method: str, path: str, body: bytes = b"", **headers: str) -> Answer: ...


@pytest.fixture
def epoch() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(EPOCH, username="me", password=TOKEN) as registry:
        yield registry


@pytest.fixture
def write(epoch: EmbeddedRegistry) -> Write:
    """Send a request with the registry token."""
    return partial(ask, epoch, Authorization=f"Bearer {TOKEN}")


def tags(epoch: EmbeddedRegistry, name: str) -> list[str]:
    answer = ask(epoch, "GET", f"/v2/{name}/tags/list")
    assert (answer.status, json.loads(answer.body)["name"]) == (200, name)
    listed: list[str] = json.loads(answer.body)["tags"]
    return listed


# --- listings ---------------------------------------------------------------------------------


def test_a_repository_that_nobody_pushed_to_has_no_tags(epoch: EmbeddedRegistry) -> None:
    answer = ask(epoch, "GET", "/v2/library/typo/tags/list")
    assert (answer.status, answer.body) == (200, b'{"name": "library/typo", "tags": []}')


def test_listings_are_whole_whatever_page_is_asked_for(epoch: EmbeddedRegistry) -> None:
    for tag in ("a", "b", "c"):
        load(epoch, "a", tag, image())
    assert pages(epoch, "/v2/a/tags/list?n=1", "tags") == [["a", "b", "c"]]


def test_tags_come_in_the_order_of_their_keys(epoch: EmbeddedRegistry) -> None:
    for tag in ("1", "1.0", "1-rc"):
        load(epoch, "a", tag, image())
    assert tags(epoch, "a") == ["1-rc", "1.0", "1"]


def test_the_catalog_has_a_repository_while_it_has_a_tag(
    epoch: EmbeddedRegistry, write: Write
) -> None:
    load(epoch, "tagged", "v1", image())
    load(epoch, "untagged", "", image())
    assert pages(epoch, "/v2/_catalog", "repositories") == [["tagged"]]
    write("DELETE", "/v2/tagged/manifests/v1")
    assert pages(epoch, "/v2/_catalog", "repositories") == [[]]
    assert ask(epoch, "GET", f"/v2/tagged/manifests/{image().digest}").status == 200


# --- manifests --------------------------------------------------------------------------------


def test_names_and_content_types_are_not_checked(epoch: EmbeddedRegistry, write: Write) -> None:
    path = "/v2/Any%20Name/manifests/V%201"
    assert write("PUT", path, b"{}", Content_Type="text/plain").status == 201
    assert ask(epoch, "GET", path).headers["Content-Type"] == OCI_MANIFEST


@pytest.mark.parametrize(
    ("declared", "served"),
    [({"mediaType": OCI_INDEX}, OCI_INDEX), ({"mediaType": ""}, OCI_MANIFEST), ({}, OCI_MANIFEST)],
)
def test_the_content_type_is_the_declared_one_or_an_image_manifests(
    epoch: EmbeddedRegistry, write: Write, declared: dict[str, str], served: str
) -> None:
    raw = json.dumps({"schemaVersion": 2, **declared, "manifests": []}).encode()
    write("PUT", "/v2/a/manifests/v1", raw, Content_Type=OCI_INDEX)
    assert ask(epoch, "GET", "/v2/a/manifests/v1").headers["Content-Type"] == served


def test_a_sha512_digest_is_the_name_of_a_tag(epoch: EmbeddedRegistry, write: Write) -> None:
    path = f"/v2/a/manifests/{SHA512}"
    put = write("PUT", path, b"{}")
    assert (put.status, put.headers["Location"]) == (201, path)
    assert put.headers["Docker-Content-Digest"] == str(Digest.of(b"{}"))
    assert tags(epoch, "a") == [str(SHA512)]
    assert write("PUT", path, b'{"is": "not checked"}').status == 201
    assert ask(epoch, "GET", path).body == b'{"is": "not checked"}'
    assert write("DELETE", path).status == 202
    assert tags(epoch, "a") == []


@pytest.mark.parametrize("digest", [str(UNKNOWN), "sha256:short"])
def test_a_manifest_is_refused_under_a_sha256_digest_it_does_not_have(
    epoch: EmbeddedRegistry, write: Write, digest: str
) -> None:
    path = f"/v2/a/manifests/{digest}"
    assert write("PUT", path, b"{}").code == "DIGEST_INVALID"
    for answer in (ask(epoch, "GET", path), write("DELETE", path)):
        assert (answer.status, answer.code) == (404, "MANIFEST_UNKNOWN")


def test_a_manifest_that_is_no_json_is_refused(write: Write) -> None:
    answer = write("PUT", "/v2/a/manifests/v1", b"{")
    assert (answer.status, answer.code) == (400, "MANIFEST_INVALID")


def test_a_manifest_may_name_what_is_not_there(epoch: EmbeddedRegistry, write: Write) -> None:
    assert write("PUT", "/v2/a/manifests/v1?tag=v2", index().raw).status == 201
    assert write("PUT", f"/v2/a/manifests/{image().digest}?tag=v3", image().raw).status == 201
    assert tags(epoch, "a") == ["v1"]


def test_deleting_a_tag_that_is_not_there_succeeds(epoch: EmbeddedRegistry, write: Write) -> None:
    load(epoch, "a", "v1", image())
    for path in ("/v2/a/manifests/v2", "/v2/unknown/manifests/v1"):
        assert write("DELETE", path).status == 202
    assert tags(epoch, "a") == ["v1"]


def test_deleting_a_manifest_takes_its_tags_with_it(epoch: EmbeddedRegistry, write: Write) -> None:
    load(epoch, "a", "v1", image())
    load(epoch, "a", "other", index())
    assert write("DELETE", f"/v2/a/manifests/{image().digest}").status == 202
    assert tags(epoch, "a") == ["other"]


# --- blobs ------------------------------------------------------------------------------------


def test_a_range_is_ignored(epoch: EmbeddedRegistry) -> None:
    digest = epoch.put_blob("a", b"0123456789")
    answer = ask(epoch, "GET", f"/v2/a/blobs/{digest}", Range="bytes=5-")
    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.headers["Accept-Ranges"] is None


def test_a_blob_is_put_in_one_request_and_shown_everywhere(
    epoch: EmbeddedRegistry, write: Write
) -> None:
    digest = Digest.of(b"content")
    wrong = write("PUT", f"/v2/a/blobs/{digest}", b"other")
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    assert write("PUT", f"/v2/a/blobs/{digest}", b"content").status == 201
    assert ask(epoch, "GET", f"/v2/other/blobs/{digest}").body == b"content"


@pytest.mark.parametrize("digest", [UNKNOWN, SHA512, "sha256:short", "md5:abc"])
def test_what_is_no_blob_of_a_sha256_digest_is_unknown(
    epoch: EmbeddedRegistry, digest: Digest | str
) -> None:
    answer = ask(epoch, "GET", f"/v2/a/blobs/{digest}")
    assert (answer.status, answer.code) == (404, "BLOB_UNKNOWN")


def test_a_chunk_out_of_order_is_appended(epoch: EmbeddedRegistry, write: Write) -> None:
    location = write("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert write("PATCH", location, b"0123", Content_Range="0-3").status == 202
    second = write("PATCH", location, b"4567", Content_Range="100-103")
    assert (second.status, second.headers["Range"]) == (202, "0-7")
    digest = Digest.of(b"0123456789")
    ended = write("PUT", f"{location}?digest={digest}", b"89", Content_Range="50-51")
    assert (ended.status, ended.headers["Location"]) == (201, f"/v2/a/blobs/{digest}")


def test_an_upload_that_is_ended_without_a_digest_is_gone(write: Write) -> None:
    location = write("POST", "/v2/a/blobs/uploads/").headers["Location"]
    assert write("PUT", location, b"").code == "DIGEST_INVALID"
    assert write("PATCH", location, b"x").code == "BLOB_UPLOAD_UNKNOWN"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", f"/v2/a/referrers/{UNKNOWN}", 404),
        ("GET", "/v2/a/blobs/uploads/one", 404),
        ("DELETE", "/v2/a/blobs/uploads/one", 405),
        ("DELETE", f"/v2/a/blobs/{UNKNOWN}", 405),
        ("POST", "/v2/a/nowhere", 405),
    ],
)
def test_what_epoch_does_not_offer_is_refused_without_an_error_code(
    write: Write, method: str, path: str, status: int
) -> None:
    answer = write(method, path)
    assert (answer.status, b"errors" in answer.body) == (status, False)


# --- who may do what --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/v2/_catalog", "/v2/a/tags/list", "/v2/a/manifests/v1", f"/v2/a/blobs/{UNKNOWN}"]
)
def test_everyone_may_read(epoch: EmbeddedRegistry, path: str) -> None:
    assert ask(epoch, "GET", path).status in (200, 404)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/"),
        ("PUT", "/v2/a/manifests/v1"),
        ("DELETE", "/v2/a/manifests/v1"),
        ("PUT", f"/v2/a/blobs/{Digest.of(b'{}')}"),
        ("POST", "/v2/a/blobs/uploads/"),
        ("PATCH", "/v2/a/blobs/uploads/one"),
    ],
)
def test_the_root_and_every_write_need_the_token(
    epoch: EmbeddedRegistry, write: Write, method: str, path: str
) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
        refused = ask(epoch, method, path, b"{}", **headers)
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        challenge = refused.headers["WWW-Authenticate"]
        assert challenge == f'Bearer realm="{epoch.url}/v2/token",service="epochfs"'
    assert write(method, path, b"{}").status != 401


def test_without_a_token_configured_nobody_may_write() -> None:
    with EmbeddedRegistry(EPOCH) as registry:
        assert ask(registry, "GET", "/v2/_catalog").status == 200
        for token in ("", "any"):
            put = ask(registry, "PUT", "/v2/a/manifests/v1", b"{}", Authorization=f"Bearer {token}")
            assert put.status == 401


def token(epoch: EmbeddedRegistry, **headers: str) -> str:
    answer = json.loads(ask(epoch, "GET", "/v2/token", **headers).body)
    assert answer["token"] == answer["access_token"]
    found: str = answer["token"]
    return found


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def test_the_token_server_answers_what_it_was_given(epoch: EmbeddedRegistry) -> None:
    assert token(epoch) == ""
    assert token(epoch, Authorization=basic("whoever", TOKEN)) == TOKEN
    for form in (b"password=secret", b"grant_type=refresh_token&refresh_token=secret"):
        assert json.loads(ask(epoch, "POST", "/v2/token", form).body)["token"] == TOKEN
    wrong = ask(epoch, "GET", "/v2/token", Authorization=basic("me", "wrong"))
    assert (wrong.status, wrong.body) == (401, b"invalid credentials\n")
