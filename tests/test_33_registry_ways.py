"""The embedded registry's switches: authentication, Epoch's ways; and skopeo as a real client."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
from builders import image, index, load, random_bytes
from conftest import Skopeo
from wire import ask, pages

from epochfs.manifests import OCI_MANIFEST
from epochfs.names import Digest
from epochfs.registry import EPOCH, Behaviour, EmbeddedRegistry


def basic(username: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


# --- authentication ---------------------------------------------------------------------------


def test_basic_authentication() -> None:
    with EmbeddedRegistry(Behaviour(auth="basic"), username="me", password="pa:ss") as registry:
        refused = ask(registry, "GET", "/v2/_catalog")
        assert (refused.status, refused.code) == (401, "UNAUTHORIZED")
        assert refused.headers["WWW-Authenticate"] == 'Basic realm="epochfs"'
        for wrong in (basic("me", "wrong"), "Basic !", "Basic", "Bearer pa:ss"):
            assert ask(registry, "GET", "/v2/", Authorization=wrong).status == 401
        assert ask(registry, "GET", "/v2/", Authorization=basic("me", "pa:ss")).status == 200


def test_bearer_tokens_are_handed_out_and_revoked() -> None:
    with EmbeddedRegistry(Behaviour(auth="bearer"), username="me", password="pw") as registry:
        challenge = ask(registry, "PUT", "/v2/a/b/manifests/v1").headers["WWW-Authenticate"]
        assert challenge == (
            f'Bearer realm="{registry.url}/v2/token",service="epochfs",'
            'scope="repository:a/b:pull,push"'
        )
        assert ask(registry, "GET", "/v2/token").status == 401
        answer = ask(registry, "GET", "/v2/token", Authorization=basic("me", "pw"))
        token = json.loads(answer.body)["token"]
        assert ask(registry, "GET", "/v2/", Authorization=f"Bearer {token}").status == 200
        registry.revoke_tokens()
        assert ask(registry, "GET", "/v2/", Authorization=f"Bearer {token}").status == 401


def test_without_credentials_everyone_gets_a_token() -> None:
    with EmbeddedRegistry(Behaviour(auth="bearer")) as registry:
        assert ask(registry, "GET", "/v2/").status == 401
        token = json.loads(ask(registry, "GET", "/v2/token").body)["token"]
        assert ask(registry, "GET", "/v2/", Authorization=f"Bearer {token}").status == 200


# --- Epoch's ways -----------------------------------------------------------------------------


@pytest.fixture
def epoch() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry(EPOCH) as registry:
        yield registry


def test_epoch_ignores_range_and_paging(epoch: EmbeddedRegistry) -> None:
    digest = epoch.put_blob("a", b"0123456789")
    for tag in ("a", "b", "c"):
        load(epoch, "a", tag, image())
    answer = ask(epoch, "GET", f"/v2/a/blobs/{digest}", Range="bytes=5-")
    assert (answer.status, answer.body) == (200, b"0123456789")
    assert answer.headers["Accept-Ranges"] is None
    assert pages(epoch, "/v2/a/tags/list?n=1", "tags") == [["a", "b", "c"]]


def test_epoch_takes_a_blob_in_a_single_put_and_shows_it_everywhere(
    epoch: EmbeddedRegistry,
) -> None:
    digest = Digest.of(b"content")
    wrong = ask(epoch, "PUT", f"/v2/a/blobs/{digest}", b"other")
    assert (wrong.status, wrong.code) == (400, "DIGEST_INVALID")
    assert ask(epoch, "PUT", f"/v2/a/blobs/{digest}", b"content").status == 201
    assert ask(epoch, "GET", f"/v2/other/blobs/{digest}").body == b"content"
    assert ask(epoch, "DELETE", f"/v2/a/blobs/{digest}").status == 405


def test_a_registry_of_the_specification_has_no_single_put(embedded: EmbeddedRegistry) -> None:
    assert ask(embedded, "PUT", f"/v2/a/blobs/{Digest.of(b'')}", b"").code == "UNSUPPORTED"


def test_epoch_challenges_at_its_root_alone_and_hands_out_an_empty_token(
    epoch: EmbeddedRegistry,
) -> None:
    assert ask(epoch, "GET", "/v2/").headers["WWW-Authenticate"].startswith("Bearer realm=")
    assert json.loads(ask(epoch, "GET", "/v2/token").body)["token"] == ""
    assert ask(epoch, "GET", "/v2/_catalog").status == 200
    assert ask(epoch, "PUT", "/v2/a/manifests/v1", b"{}").status == 201


def test_epoch_with_a_token_lets_everyone_read_and_its_owner_write() -> None:
    behaviour = replace(EPOCH, empty_token=False)
    with EmbeddedRegistry(behaviour, username="me", password="secret") as registry:
        assert ask(registry, "GET", "/v2/_catalog").status == 200
        assert ask(registry, "PUT", "/v2/a/manifests/v1", b"{}").status == 401
        owner = "Bearer secret"
        put = ask(registry, "PUT", "/v2/a/manifests/v1", b"{}", Authorization=owner)
        assert put.status == 201


def test_epoch_neither_checks_names_nor_believes_the_content_type(
    epoch: EmbeddedRegistry,
) -> None:
    put = ask(epoch, "PUT", "/v2/Any%20Name/manifests/V%201", b"{}", Content_Type="text/plain")
    assert put.status == 201
    got = ask(epoch, "GET", "/v2/Any%20Name/manifests/V%201")
    assert got.headers["Content-Type"] == OCI_MANIFEST


@pytest.mark.parametrize(
    ("lacking", "method", "path"),
    [
        (Behaviour(catalog=False), "GET", "/v2/_catalog"),
        (Behaviour(referrers=False), "GET", f"/v2/a/referrers/{Digest.of(b'')}"),
        (Behaviour(deletes=False), "DELETE", "/v2/a/manifests/v1"),
        (Behaviour(uploads=False), "POST", "/v2/a/blobs/uploads/"),
        (Behaviour(sha512=False), "GET", f"/v2/a/blobs/{Digest.of(b'', 'sha512')}"),
    ],
)
def test_what_a_behaviour_lacks_is_refused(lacking: Behaviour, method: str, path: str) -> None:
    with EmbeddedRegistry(lacking) as registry:
        assert ask(registry, method, path).status in (400, 404, 405)


# --- skopeo -----------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [Behaviour(), EPOCH], ids=["specification", "epoch"])
def test_skopeo_pushes_and_pulls(behaviour: Behaviour, skopeo: Skopeo) -> None:
    content = index(image(random_bytes(300_000)), image(b"", random_bytes(10, seed=1)))
    with EmbeddedRegistry(behaviour) as registry:
        skopeo.push(content, registry.host, "a/b/c", "v1")
        assert ask(registry, "GET", "/v2/a/b/c/manifests/v1").body == content.raw
        layout = skopeo.pull(registry.host, "a/b/c", "v1")
    for data in (content.raw, *content.every_blob()):
        assert (layout / "blobs" / "sha256" / Digest.of(data).encoded).read_bytes() == data


@pytest.mark.parametrize("behaviour", [Behaviour(auth="basic"), Behaviour(auth="bearer")])
def test_skopeo_pushes_with_credentials(behaviour: Behaviour, skopeo: Skopeo) -> None:
    content = image()
    with EmbeddedRegistry(behaviour, username="me", password="pw") as registry:
        skopeo.push(content, registry.host, "a", "v1", credentials="me:pw")
        assert registry.count("PUT", "/v2/a/manifests/v1") == 1
