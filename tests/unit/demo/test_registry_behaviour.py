"""The embedded registry's switches and its authentication; and skopeo as a real client."""

from __future__ import annotations

import base64
import json

import pytest
from conftest import Skopeo
from support.builders import image, index, random_bytes
from support.registries import EmbeddedRegistry
from support.wire import ask

from epochfs.demo.registry import EPOCH, Behaviour
from epochfs.oci.names import Digest


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


# --- switches ----------------------------------------------------------------------------------


def test_a_registry_of_the_specification_has_no_single_put(embedded: EmbeddedRegistry) -> None:
    assert ask(embedded, "PUT", f"/v2/a/blobs/{Digest.of(b'')}", b"").code == "UNSUPPORTED"


@pytest.mark.parametrize(
    ("lacking", "method", "path"),
    [
        (Behaviour(catalog=False), "GET", "/v2/_catalog"),
        (Behaviour(referrers=False), "GET", f"/v2/a/referrers/{Digest.of(b'')}"),
        (Behaviour(deletes=False), "DELETE", "/v2/a/manifests/v1"),
        (Behaviour(uploads=False), "POST", "/v2/a/blobs/uploads/"),
        (Behaviour(sha512=False), "GET", f"/v2/a/blobs/{Digest.of(b'', 'sha512')}"),
        (Behaviour(strict_uploads=False), "GET", "/v2/a/blobs/uploads/one"),
        (Behaviour(strict_uploads=False), "DELETE", "/v2/a/blobs/uploads/one"),
    ],
)
def test_what_a_behaviour_lacks_is_refused(lacking: Behaviour, method: str, path: str) -> None:
    with EmbeddedRegistry(lacking) as registry:
        assert ask(registry, method, path).status in (400, 404, 405)


# --- skopeo -----------------------------------------------------------------------------------


@pytest.mark.parametrize("behaviour", [Behaviour(), EPOCH], ids=["specification", "epoch"])
def test_skopeo_pushes_and_pulls(behaviour: Behaviour, skopeo: Skopeo) -> None:
    content = index(image(random_bytes(300_000)), image(b"", random_bytes(10, seed=1)))
    with EmbeddedRegistry(behaviour, username="me", password="pw") as registry:
        skopeo.push(content, registry.host, "a/b/c", "v1", credentials="me:pw")
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
