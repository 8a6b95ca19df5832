"""A HEAD that is refused: what GET gives instead, and who is to blame if it gives nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.answers import BLOB, BLOB_DIGEST, DIGEST, errors, head, manifest
from support.clients import Connect, connecting
from support.scripted import Seen, Step, reply

from epochfs.client import RegistryClient
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    Denied,
    NotFound,
    Unavailable,
    UnconfirmedNotFound,
    Unsupported,
)

connect = pytest.fixture(connecting)

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
