"""How our client takes what registries do differently: one registry each, and one way of it."""

from __future__ import annotations

import ssl
from dataclasses import replace

import pytest
from support.builders import image, load, random_bytes
from support.registries import EmbeddedRegistry
from support.subjects import BEHAVIOURS, PASSWORD, USERNAME

from epochfs.client import RegistryClient
from epochfs.config import Credentials, TransportOptions
from epochfs.demo.registry import EPOCH, Behaviour, Request, Response
from epochfs.errors import Denied, Unavailable, Unsupported
from epochfs.oci.names import Digest

# --- the registry's address -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "base_url"),
    [
        ("", "http://127.0.0.1:8080"),
        ("http://127.0.0.1:5000/", "http://127.0.0.1:5000"),
        ("https://registry.example", "https://registry.example"),
    ],
)
def test_the_base_url_has_no_trailing_slash(given: str, base_url: str) -> None:
    client = RegistryClient(given)
    assert client.base_url == base_url
    client.close()


def test_a_registry_that_is_not_there_is_unavailable() -> None:
    client = RegistryClient("http://127.0.0.1:1", options=TransportOptions(timeout=5))
    with pytest.raises(Unavailable):
        client.ping()
    client.close()


def test_an_unverified_certificate_is_refused_where_verifying_is_asked_for(
    self_signed: ssl.SSLContext,
) -> None:
    with EmbeddedRegistry(ssl_context=self_signed) as registry:
        client = RegistryClient(registry.url, options=TransportOptions(tls_verify=True, timeout=5))
        with pytest.raises(Unavailable, match="--ca-cert"):
            client.ping()
        client.close()


# --- authentication ---------------------------------------------------------------------------


@pytest.mark.parametrize("credentials", [Credentials(), Credentials("me", "wrong")])
@pytest.mark.parametrize("auth", ["basic", "bearer"])
def test_wrong_credentials_are_denied(auth: str, credentials: Credentials) -> None:
    with EmbeddedRegistry(BEHAVIOURS[auth], username=USERNAME, password=PASSWORD) as registry:
        client = RegistryClient(registry.url, credentials=credentials)
        for call in (client.ping, client.catalog, lambda: client.get_manifest("a", "v1")):
            with pytest.raises(Denied):
                call()
        client.close()


def test_an_expired_token_is_replaced() -> None:
    with EmbeddedRegistry(BEHAVIOURS["bearer"], username=USERNAME, password=PASSWORD) as registry:
        digest = registry.put_blob("a", b"content")
        client = RegistryClient(
            registry.url, credentials=Credentials(username=USERNAME, password=PASSWORD)
        )
        assert client.blob_size("a", digest) == 7
        registry.revoke_tokens()
        assert client.blob_size("a", digest) == 7
        assert registry.count(containing="/v2/token") == 2
        client.close()


def test_a_static_token_is_sent_as_it_is() -> None:
    with EmbeddedRegistry(EPOCH, password="static") as registry:
        client = RegistryClient(registry.url, "static")
        client.ping()
        client.put_blob("a", Digest.of(b"x"), b"x", 1)
        assert registry.count(containing="/v2/token") == 0
        client.close()


# --- listings and names -----------------------------------------------------------------------


def test_a_registry_without_a_catalog_says_so() -> None:
    with EmbeddedRegistry(Behaviour(catalog=False)) as registry:
        client = RegistryClient(registry.url)
        client.ping()
        with pytest.raises(Unsupported):
            client.catalog()
        client.close()


def test_names_that_epoch_never_checked_can_be_read() -> None:
    name, tag, content = "Any Name/ünïcode+%2F", "V 1?#&", image()
    with EmbeddedRegistry(EPOCH) as registry:
        load(registry, name, tag, content)
        client = RegistryClient(registry.url)
        assert client.catalog() == [name]
        assert client.list_tags(name) == [tag]
        assert client.get_manifest(name, tag).raw == content.raw
        assert client.blob_exists(name, Digest.of(content.blobs[0]))
        client.close()


# --- pushing a blob ---------------------------------------------------------------------------


def put_one_blob(registry: EmbeddedRegistry, size: int = 1000) -> list[str]:
    """Push a blob with our client, check that it is there, and return the methods it took."""
    data = random_bytes(size)
    client = RegistryClient(registry.url)
    client.put_blob("a", Digest.of(data), data, len(data))
    methods = [request.method for request in registry.requests]
    with client.get_blob("a", Digest.of(data)) as stream:
        assert b"".join(iter(lambda: stream.read(65536), b"")) == data
    client.close()
    return methods


def test_epoch_takes_a_blob_in_one_request() -> None:
    with EmbeddedRegistry(replace(EPOCH, auth="")) as registry:
        assert put_one_blob(registry) == ["PUT"]


def test_where_a_single_put_is_refused_a_session_is_opened() -> None:
    with EmbeddedRegistry() as registry:
        assert put_one_blob(registry) == ["PUT", "POST", "PUT"]


class Limited(EmbeddedRegistry):
    """Refuses requests with larger bodies, and to end a session with any, as limits in front do."""

    limit = 16 * 2**20

    def respond(self, request: Request) -> Response:
        if len(request.body) > (0 if request.method == "PUT" else self.limit):
            return Response(413)
        return super().respond(request)


@pytest.mark.parametrize(
    ("size", "methods"),
    [
        (1000, ["PUT", "POST", "PUT", "POST", "PATCH", "PUT"]),
        (17 * 2**20, ["PUT", "POST", "PATCH", "POST", "PATCH", "PATCH", "PUT"]),
    ],
)
def test_what_is_refused_at_once_is_sent_in_chunks(size: int, methods: list[str]) -> None:
    with Limited() as registry:
        assert put_one_blob(registry, size) == methods
