"""Authentication over a transport: what is sent to whom, and what is shown of it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support.scripted import Script, Seen, Step, reply
from support.transports import (
    Serve,
    get,
    redirect,
    serving,
    written,
)

from epochfs.client.transport import Request, Transport
from epochfs.config import Credentials, TransportOptions
from epochfs.errors import (
    Denied,
    EpochfsError,
    ProtocolViolation,
    Unavailable,
)

serve = pytest.fixture(serving)


def test_the_token_stays_on_the_way_out_and_comes_back(serve: Serve) -> None:
    away, _ = serve(lambda seen: redirect(f"{home.url}/back"))
    home, transport = serve(
        lambda seen: [reply(200, b"ok")] if seen.path == "/back" else redirect(f"{away.url}/out"),
        Credentials(token="secret"),
    )
    assert get(transport).body == b"ok"
    assert "authorization" not in away.seen[0].headers
    assert [seen.headers["authorization"] for seen in home.seen] == ["Bearer secret"] * 2


def guarded(accepted: Callable[[str], bool], token: Script) -> Script:
    """Answer 401 with a Bearer challenge unless the Authorization is accepted."""

    def script(seen: Seen) -> Iterator[Step]:
        if seen.path == "/token":
            yield from token(seen)
        elif accepted(seen.headers.get("authorization", "")):
            yield reply(200, b"ok")
        else:
            realm = f"http://{seen.headers['host']}/token"
            yield reply(401, b"{}", WWW_Authenticate=f'Bearer realm="{realm}",service="s"')

    return script


def test_a_token_is_fetched_once_and_reused(serve: Serve) -> None:
    server, transport = serve(
        guarded(lambda sent: sent == "Bearer t", lambda _: [reply(200, b'{"token": "t"}')])
    )
    for _ in range(3):
        assert get(transport).body == b"ok"
    assert [seen.path for seen in server.seen] == ["/v2/x", "/token"] + ["/v2/x"] * 3


def test_a_token_that_stops_working_is_replaced_once(serve: Serve) -> None:
    valid = ["t1"]
    server, transport = serve(
        guarded(
            lambda sent: sent == f"Bearer {valid[0]}",
            lambda _: [reply(200, json.dumps({"token": valid[0]}).encode())],
        )
    )
    get(transport)
    valid[0] = "t2"
    assert get(transport).body == b"ok"
    assert len(server.asked("/token")) == 2


@pytest.mark.parametrize(
    ("token", "error"),
    [
        ([reply(200, b'{"token": "wrong"}')], Denied),
        ([reply(200, b'{"token": ""}')], Denied),
        ([reply(200, b"nonsense")], ProtocolViolation),
        ([reply(200, b'"' + b"a" * 2_000_000)], ProtocolViolation),
        ([reply(200, b'{"token": "t"}', Content_Encoding="gzip")], ProtocolViolation),
        ([reply(404)], ProtocolViolation),
        ([reply(401)], Denied),
        ([reply(500)], Unavailable),
    ],
)
def test_a_token_server_that_is_no_help_ends_it_soon(
    serve: Serve, token: list[Step], error: type[EpochfsError]
) -> None:
    server, transport = serve(
        guarded(lambda _: False, lambda _: token),
        Credentials(username="user", password="secret"),
        retries=1,
        timeout=5.0,
    )
    with pytest.raises(error):
        raise transport.refusal(get(transport))
    assert len(server.seen) <= 3


def test_an_empty_token_replaces_a_stale_one_by_none(serve: Serve) -> None:
    token = [b'{"token": "t"}']
    server, transport = serve(
        guarded(
            lambda sent: sent == ("Bearer t" if len(token[0]) > 13 else ""),
            lambda _: [reply(200, token[0])],
        )
    )
    get(transport)
    token[0] = b'{"token": ""}'
    assert get(transport).body == b"ok"
    assert "authorization" not in server.seen[-1].headers


def test_a_refused_static_token_is_sent_once(serve: Serve) -> None:
    server, transport = serve(
        guarded(lambda _: False, lambda _: [reply(200, b"{}")]), Credentials(token="secret")
    )
    with pytest.raises(Denied):
        raise transport.refusal(get(transport))
    assert len(server.seen) == 1


def test_the_environment_and_netrc_are_left_alone(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    server, transport = serve(lambda _: [reply(200)], Credentials(token="mine"))
    get(transport)
    assert server.seen[0].headers["authorization"] == "Bearer mine"


def test_cookies_are_not_kept(serve: Serve) -> None:
    server, transport = serve(lambda _: [reply(200, Set_Cookie="a=b")])
    get(transport)
    get(transport)
    assert "cookie" not in server.seen[1].headers


def test_credentials_a_server_sends_back_are_not_shown(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")

    def script(seen: Seen) -> list[Step]:
        message = f"you sent {seen.headers['authorization']}"
        return [reply(403, json.dumps({"errors": [{"code": "C", "message": message}]}).encode())]

    _, transport = serve(script, Credentials(token="geheim"))
    error = transport.refusal(get(transport))
    assert "you sent" in str(error)
    assert "geheim" not in str(error) + caplog.text


@pytest.mark.parametrize(("status", "error"), [(401, "invalid_token"), (403, "insufficient_scope")])
def test_what_is_wrong_with_a_token_is_told_without_the_token(
    serve: Serve, status: int, error: str
) -> None:
    """RFC 6750, section 3.1, has 403 for a scope that is not enough."""
    said = f'error="{error}",error_description="geheim is not for http://me:geheim@h"'
    challenge = f'Bearer realm="https://auth.example/",{said}'
    answer = [reply(status, WWW_Authenticate=challenge)]
    _, transport = serve(lambda _: answer, Credentials(token="geheim"))
    told = str(transport.refusal(get(transport)))
    assert f"({error}: *** is not for http://***@h)" in told


def test_what_a_token_server_says_is_told_without_the_password(serve: Serve) -> None:
    body = json.dumps({"error": "invalid_request", "error_description": "got secret"}).encode()
    _, transport = serve(
        guarded(lambda _: False, lambda _: [reply(418, body)]),
        Credentials(username="user", password="secret"),
    )
    with pytest.raises(ProtocolViolation, match=r"invalid_request: got \*\*\*"):
        get(transport)


# Token servers of OAuth 2


def test_an_identity_token_is_posted_for_a_token(serve: Serve, tmp_path: Path) -> None:
    server, _ = serve(
        guarded(
            lambda sent: sent == "Bearer t",
            lambda seen: [reply(200 if seen.method == "POST" else 404, b'{"access_token": "t"}')],
        )
    )
    file = written(tmp_path / "f", {"identitytoken": "refresh"}, server.host)
    transport = Transport(server.url, file, TransportOptions())
    for _ in range(2):
        assert get(transport).body == b"ok"
    [posted] = server.asked("/token")
    assert "authorization" not in posted.headers
    assert posted.headers["content-type"] == "application/x-www-form-urlencoded"
    assert parse_qs(posted.body.decode()) == {
        "grant_type": ["refresh_token"],
        "refresh_token": ["refresh"],
        "client_id": ["epochfs"],
        "service": ["s"],
    }


@pytest.mark.parametrize("status", [404, 405])
def test_a_password_is_posted_where_get_is_not_offered(serve: Serve, status: int) -> None:
    server, transport = serve(
        guarded(
            lambda sent: sent == "Bearer t",
            lambda seen: [
                reply(200, b'{"access_token": "t"}') if seen.method == "POST" else reply(status)
            ],
        ),
        Credentials(username="user", password="secret"),
    )
    assert get(transport).body == b"ok"
    assert [seen.method for seen in server.asked("/token")] == ["GET", "POST"]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_identity_token_is_denied(serve: Serve, tmp_path: Path, status: int) -> None:
    token = [reply(status, b'{"error": "invalid_grant"}')]
    server, _ = serve(guarded(lambda _: False, lambda _: token))
    file = written(tmp_path / "f", {"identitytoken": "refresh"}, server.host)
    with pytest.raises(Denied):
        get(Transport(server.url, file, TransportOptions()))
    assert len(server.seen) == 2


def test_a_token_server_cannot_send_the_form_elsewhere(serve: Serve, tmp_path: Path) -> None:
    away, _ = serve(lambda _: [reply(200, b'{"token": "t"}')])
    server, _ = serve(guarded(lambda _: False, lambda _: redirect(f"{away.url}/token", 308)))
    file = written(tmp_path / "f", {"identitytoken": "refresh"}, server.host)
    with pytest.raises(ProtocolViolation, match="redirects credentials"):
        get(Transport(server.url, file, TransportOptions()))
    assert away.seen == []


def test_each_repository_has_its_own_credentials(serve: Serve, tmp_path: Path) -> None:
    def script(seen: Seen) -> list[Step]:
        if "authorization" not in seen.headers:
            return [reply(401, WWW_Authenticate='Basic realm="x"')]
        return [reply(200, seen.headers["authorization"].encode())]

    server, _ = serve(script)
    file = tmp_path / "f"
    entries = {
        f"{server.host}/{name}": {"username": name, "password": "p"} for name in ("one", "two")
    }
    file.write_text(json.dumps({"auths": entries}))
    transport = Transport(server.url, Credentials(auth_files=(file,)), TransportOptions())
    for name in ("one", "two", "one/deeper"):
        request = Request("GET", transport.base, f"{name}:pull")
        pair = b64encode(f"{name.partition('/')[0]}:p".encode()).decode()
        assert transport.fetch(request).body == f"Basic {pair}".encode()
    assert transport.fetch(Request("GET", transport.base, "registry:catalog")).status == 401
