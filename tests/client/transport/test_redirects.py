"""Redirects: which are followed, what is shown to where they lead, and URLs that expire."""

from __future__ import annotations

import json

import pytest
from support.scripted import Seen, Step, reply
from support.transports import (
    Serve,
    get,
    redirect,
    serving,
    stream,
)

from epochfs.client.transport import Request
from epochfs.config import Credentials
from epochfs.errors import (
    Denied,
    EpochfsError,
    NotFound,
    ProtocolViolation,
    Unavailable,
)

serve = pytest.fixture(serving)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_followed(serve: Serve, status: int) -> None:
    def script(seen: Seen) -> list[Step]:
        return [reply(200, b"ok")] if seen.path == "/there" else redirect("/there", status)

    _, transport = serve(script, Credentials(token="secret"))
    assert get(transport).body == b"ok"


def test_a_redirect_loop_is_a_violation(serve: Serve) -> None:
    server, transport = serve(lambda seen: redirect(seen.path))
    with pytest.raises(ProtocolViolation):
        get(transport)
    assert len(server.seen) == 6


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://u:p@h/"])
def test_redirects_elsewhere_are_refused(serve: Serve, location: str) -> None:
    _, transport = serve(lambda _: redirect(location))
    with pytest.raises(ProtocolViolation):
        get(transport)


def test_a_challenge_from_elsewhere_is_not_answered(serve: Serve) -> None:
    away, _ = serve(lambda _: [reply(401, WWW_Authenticate='Basic realm="x"')])
    _, transport = serve(
        lambda seen: [reply(200)] if seen.path == "/v2/" else redirect(f"{away.url}/out"),
        Credentials(username="user", password="secret"),
    )
    assert get(transport).status == 401
    assert len(away.seen) == 1
    assert "authorization" not in away.seen[0].headers


@pytest.mark.parametrize("status", [200, 401, 403])
def test_a_registry_that_asks_for_a_login_elsewhere_is_not_read_without_it(
    serve: Serve, status: int
) -> None:
    away, _ = serve(lambda _: [reply(status, WWW_Authenticate='Basic realm="x"')])
    home, transport = serve(
        lambda seen: redirect(f"{away.url}{seen.target}"),
        Credentials(username="user", password="secret"),
    )
    with pytest.raises(Unavailable, match=f"use {away.url} as the URL"):
        get(transport)
    assert [seen.path for seen in (*home.seen, *away.seen)] == ["/v2/", "/v2/"]
    assert "authorization" not in away.seen[0].headers


def test_a_signature_in_a_redirect_is_not_shown(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    away, _ = serve(lambda _: [reply(404)])
    _, transport = serve(lambda _: redirect(f"{away.url}/secret-path?signature=geheim"))
    error = transport.refusal(get(transport))
    assert "geheim" not in caplog.text + str(error)
    assert "secret-path" not in caplog.text + str(error)


@pytest.mark.parametrize(
    "location",
    [
        "http://me:geheim@127.0.0.1:9/x",
        "ftp://me:geheim@h/x",
        "//me:geheim@h/x",
        "http://me:geheim@h:99999/",
        "http://me:geheim@[::1/",
        "http://me:gehe?geheim@h/",
        "http://h/\t?signature=geheim",
    ],
)
def test_no_user_information_of_a_redirect_is_shown(
    serve: Serve, caplog: pytest.LogCaptureFixture, location: str
) -> None:
    caplog.set_level("DEBUG")
    _, transport = serve(lambda _: redirect(location))
    with pytest.raises(ProtocolViolation) as raised:
        get(transport)
    assert "geheim" not in caplog.text + str(raised.value)


def test_no_user_information_in_the_words_of_a_server_is_shown(serve: Serve) -> None:
    said = "no answer of http://me:ge/heim@storage:9000/x; ask me@example.org"
    body = json.dumps({"errors": [{"code": "UNKNOWN", "message": said}]}).encode()
    _, transport = serve(lambda _: [reply(400, body)])
    text = str(transport.refusal(get(transport)))
    assert "heim" not in text
    assert "no answer of http://***@storage:9000/x; ask me@example.org" in text


def test_a_write_is_redirected_only_where_it_stays_a_write(serve: Serve) -> None:
    server, transport = serve(lambda seen: redirect("/there", 302))
    request = Request("PUT", transport.base.at("/v2/x"), body=b"data")
    assert transport.fetch(request).status == 302
    server.script = lambda seen: [reply(201)] if seen.path == "/there" else redirect("/there", 307)
    assert transport.fetch(request).status == 201
    assert server.asked("/there")[0].body == b"data"


# Signed URLs that expire


class Storage:
    """A registry that redirects each read to a URL that is good once, and the storage behind it."""

    def __init__(self, serve: Serve, refusal: int, lasting: int) -> None:
        self.refusal = refusal
        self.lasting = lasting
        self.signed = 0
        self.storage, _ = serve(self._storage)
        self.registry, self.transport = serve(self._registry, Credentials(token="secret"))

    def _registry(self, _: Seen) -> list[Step]:
        self.signed += 1
        return redirect(f"{self.storage.url}/blob?signature={self.signed}")

    def _storage(self, seen: Seen) -> list[Step]:
        number = int(seen.target.rpartition("=")[2])
        good = number >= self.lasting
        return [reply(200, b"blob") if good else reply(self.refusal, b"<Error>expired</Error>")]


@pytest.mark.parametrize("status", [400, 403, 410])
def test_an_expired_url_is_renewed_once(serve: Serve, status: int) -> None:
    subject = Storage(serve, status, lasting=2)
    with stream(subject.transport) as opened:
        assert opened.read(10) == b"blob"
    assert len(subject.registry.seen) == len(subject.storage.seen) == 2
    assert all("authorization" not in seen.headers for seen in subject.storage.seen)


def test_a_url_that_is_refused_again_is_the_storages_refusal(serve: Serve) -> None:
    subject = Storage(serve, 403, lasting=99)
    with pytest.raises(Unavailable, match=f"storage at {subject.storage.url} "):
        stream(subject.transport)
    assert len(subject.registry.seen) == len(subject.storage.seen) == 2


UNKNOWN = b'{"errors": [{"code": "MANIFEST_UNKNOWN"}]}'


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", [b"", b"<Error/>", UNKNOWN], ids=["empty", "XML", "ours"])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 413, 501])
@pytest.mark.parametrize("path", ["/bucket/x?sig=geheim", "/v2/a/blobs/sha256:x"])
def test_what_storage_refuses_is_neither_denied_nor_gone(
    serve: Serve, method: str, body: bytes, status: int, path: str
) -> None:
    """A denial would cost what is cached of the repository, and a 404 would be an absence."""
    storage, _ = serve(lambda _: [reply(status, body if method == "GET" else b"")])
    _, transport = serve(lambda _: redirect(f"{storage.url}{path}"))
    answer = transport.fetch(Request(method, transport.base.at("/v2/a/blobs/sha256:x")))
    error = transport.refusal(answer)
    assert type(error) is Unavailable
    assert f"{status}" in str(error)
    assert f"storage at {storage.url} " in str(error)
    assert "geheim" not in str(error)


@pytest.mark.parametrize(
    ("body", "error"), [(UNKNOWN, NotFound), (b"404 page not found", Unavailable)]
)
def test_another_registry_may_say_that_there_is_none(
    serve: Serve, body: bytes, error: type[EpochfsError]
) -> None:
    """registry.k8s.io redirects whatever it is asked to the registry of a region."""
    another, _ = serve(lambda _: [reply(404, body)])
    _, transport = serve(lambda seen: redirect(f"{another.url}/v2/k8s{seen.path}"))
    assert type(transport.refusal(get(transport, "/v2/a/manifests/v1"))) is error


def test_a_refusal_of_the_registry_itself_is_final(serve: Serve) -> None:
    server, transport = serve(
        lambda seen: [reply(403)] if seen.path == "/there" else redirect("/there")
    )
    with pytest.raises(Denied):
        stream(transport)
    assert len(server.seen) == 2
