"""A login at hand is shown from the first request on, if the registry asks for one at its root."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support.scripted import Script, Seen, Step, reply
from support.transports import Serve, serving, written

from epochfs.client.transport import Request, Transport
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    CredentialsUnavailable,
    Denied,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
)

serve = pytest.fixture(serving)

LOGIN = Credentials(username="user", password="secret")
PAIR = f"Basic {b64encode(b'user:secret').decode()}"


class TwoViews:
    """A registry that shows anonymous users less, and asks for a login at its root alone."""

    def __init__(self, status: int, scheme: str, token: Script | None = None) -> None:
        self.status = status
        self.scheme = scheme
        self.token = token or (
            lambda seen: [reply(200, json.dumps({"token": _issued(seen)}).encode())]
        )

    def __call__(self, seen: Seen) -> Iterator[Step]:
        if seen.path == "/token":
            yield from self.token(seen)
        elif "authorization" in seen.headers:
            yield reply(200, seen.headers["authorization"].encode())
        elif seen.path == "/v2/":
            realm = f"http://{seen.headers['host']}/token"
            challenge = f'{self.scheme} realm="{realm}",service="s"'
            yield reply(self.status, b"{}", WWW_Authenticate=challenge)
        else:
            yield reply(200, b"anonymous")


def _issued(seen: Seen) -> str:
    who = "anybody" if "authorization" not in seen.headers else "user"
    [scope] = parse_qs(seen.target.partition("?")[2]).get("scope", ["nothing"])
    return f"{who}/{scope}"


def ask(transport: Transport, scope: str) -> str:
    return transport.fetch(Request("GET", transport.base.at("/v2/x"), scope)).body.decode()


@pytest.mark.parametrize("status", [200, 204, 401, 403, 404])
def test_a_challenge_at_the_root_holds_for_every_scope_from_the_first_request_on(
    serve: Serve, status: int
) -> None:
    server, transport = serve(TwoViews(status, "Bearer"), LOGIN)
    for _ in range(2):
        assert ask(transport, "registry:catalog") == "Bearer user/registry:catalog:*"
        assert ask(transport, "team/app:pull") == "Bearer user/repository:team/app:pull"
        assert ask(transport, "") == "Bearer user/nothing"
    assert len(server.asked("/v2/")) == 1
    assert len(server.asked("/token")) == 3
    assert all("authorization" in seen.headers for seen in server.asked("/v2/x"))


@pytest.mark.parametrize("status", [200, 401, 403, 404])
def test_basic_at_the_root_holds_from_the_first_request_on(serve: Serve, status: int) -> None:
    server, transport = serve(TwoViews(status, "Basic"), LOGIN)
    for scope in ("registry:catalog", "team/app:pull", "registry:catalog"):
        assert ask(transport, scope) == PAIR
    assert [seen.path for seen in server.seen] == ["/v2/"] + ["/v2/x"] * 3


def test_without_a_login_the_root_is_not_asked(serve: Serve) -> None:
    server, transport = serve(TwoViews(401, "Bearer"))
    assert ask(transport, "registry:catalog") == "anonymous"
    assert [seen.path for seen in server.seen] == ["/v2/x"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ([reply(401)], Denied),
        ([reply(403)], Denied),
        ([reply(500)], Unavailable),
        ([reply(429, Retry_After="3600")], Unavailable),
        ([reply(400)], ProtocolViolation),
        ([reply(200, b"nonsense")], ProtocolViolation),
    ],
)
def test_a_token_server_that_gives_no_token_to_a_login_makes_nobody_anonymous(
    serve: Serve, answer: list[Step], error: type[EpochfsError]
) -> None:
    server, transport = serve(TwoViews(200, "Bearer", lambda _: answer), LOGIN, retries=0)
    for _ in range(2):
        with pytest.raises(error):
            ask(transport, "registry:catalog")
    assert server.asked("/v2/x") == []


def test_while_the_root_gives_no_answer_nothing_is_read(serve: Serve) -> None:
    views = TwoViews(401, "Basic")
    down = [True]
    server, transport = serve(
        lambda seen: [reply(503)] if down[0] and seen.path == "/v2/" else views(seen),
        LOGIN,
        retries=0,
    )
    with pytest.raises(Unavailable):
        ask(transport, "registry:catalog")
    assert server.asked("/v2/x") == []
    down[0] = False
    assert ask(transport, "registry:catalog") == PAIR


def test_an_identity_token_where_a_password_is_asked_for_makes_nobody_anonymous(
    serve: Serve, tmp_path: Path
) -> None:
    server, _ = serve(TwoViews(200, "Basic"))
    file = written(tmp_path / "f", {"identitytoken": "refresh"}, server.host)
    transport = Transport(server.url, file, TransportOptions())
    with pytest.raises(CredentialsUnavailable, match="asks for a user name and password"):
        ask(transport, "registry:catalog")
    assert server.asked("/v2/x") == []


def test_a_login_that_no_offered_scheme_takes_makes_nobody_anonymous(serve: Serve) -> None:
    server, transport = serve(TwoViews(200, "Negotiate"), LOGIN)
    with pytest.raises(CredentialsUnavailable, match="offers only Negotiate to log in with"):
        ask(transport, "registry:catalog")
    assert server.asked("/v2/x") == []


def test_who_logs_in_under_a_mount_is_shown_his_own_view(serve: Serve, tmp_path: Path) -> None:
    server, _ = serve(TwoViews(401, "Basic"))
    file = Credentials(auth_files=(tmp_path / "f",))
    transport = Transport(server.url, file, TransportOptions())
    assert ask(transport, "registry:catalog") == "anonymous"
    written(tmp_path / "f", {"username": "user", "password": "secret"}, server.host)
    assert ask(transport, "registry:catalog") == PAIR
