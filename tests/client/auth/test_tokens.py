"""Challenges and tokens: how they are read, what is asked for, and how long a token serves."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.tokenservers import BASIC, CHALLENGE, TokenServer, authenticator, turn

from epochfs.client.auth.tokens import (
    Challenge,
    TokenRequest,
    parse_challenges,
    parse_token,
    token_scope,
)
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    ProtocolViolation,
    Unsupported,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", []),
        ("Basic", [("basic", {})]),
        ('Basic realm="a, b"', [("basic", {"realm": "a, b"})]),
        (r'Basic realm="say \"hi\""', [("basic", {"realm": 'say "hi"'})]),
        ("Bearer realm=https://x/,scope=s", [("bearer", {"realm": "https://x/", "scope": "s"})]),
        ('Bearer realm = "x" , scope="a b"', [("bearer", {"realm": "x", "scope": "a b"})]),
        ('Negotiate, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Negotiate YWJj==, Basic realm="x"', [("negotiate", {}), ("basic", {"realm": "x"})]),
        ('Bearer a="x", Basic b="y"', [("bearer", {"a": "x"}), ("basic", {"b": "y"})]),
        (' , Bearer realm="x",,service="s"', [("bearer", {"realm": "x", "service": "s"})]),
        ('Bearer realm="x", realm="y"', [("bearer", {"realm": "x"})]),
        ('Bearer realm="never closed', [("bearer", {})]),
    ],
)
def test_challenges_are_parsed(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert parse_challenges(header) == [Challenge(*each) for each in expected]


@given(st.text(alphabet='Bearer realm="x",=\\ \t~', max_size=200))
def test_no_challenge_breaks_the_parser(header: str) -> None:
    parse_challenges(header)


def test_a_long_hostile_challenge_is_parsed_in_no_time() -> None:
    for part in ('a="\\', "a ", "a=", ", ", "a" * 10):
        parse_challenges("Bearer " + part * 6000)


def test_credentials_go_to_the_token_server() -> None:
    server = TokenServer()
    authenticator(username="user", password="secret").renew(
        turn("a:pull", server, 1), CHALLENGE, "", 0
    )
    assert server.requests[0].authorization == BASIC
    assert "secret" not in server.requests[0].url


def test_a_token_is_sent_at_once_with_later_requests_of_the_scope() -> None:
    server, subject = TokenServer(), authenticator()
    subject.renew(turn("a:pull", server, 1), CHALLENGE, "", 0)
    assert subject.header(turn("a:pull", server, 1)) == "Bearer t"
    assert subject.header(turn("b:pull", server, 1)) == ""
    assert len(server.requests) == 1


def test_a_token_is_replaced_before_it_expires(clock: list[float]) -> None:
    server = TokenServer({"token": "old", "expires_in": 300}, {"token": "new"})
    subject = authenticator()
    subject.renew(turn("a:pull", server, 1), CHALLENGE, "", 0)
    clock[0] += 280
    assert subject.header(turn("a:pull", server, 1)) == "Bearer old"
    clock[0] += 15
    assert subject.header(turn("a:pull", server, 1)) == "Bearer new"


def test_a_refused_token_is_never_sent_again(clock: list[float]) -> None:
    server = TokenServer({"token": "old"}, {"token": "new"})
    subject = authenticator()
    subject.renew(turn("a:pull", server, 1), CHALLENGE, "", clock[0])
    clock[0] += 1
    assert subject.renew(turn("a:pull", server, 1), CHALLENGE, "", clock[0]) == "Bearer new"


def test_threads_refused_at_the_same_time_share_one_token() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class SlowServer(TokenServer):
        def __call__(self, request: TokenRequest) -> bytes:
            entered.set()
            go_on.wait(5)
            return super().__call__(request)

    server, subject = SlowServer(), authenticator()
    results: list[str] = []

    def renew() -> None:
        results.append(subject.renew(turn("a:pull", server, 5), CHALLENGE, "", 0))

    threads = [threading.Thread(target=renew) for _ in range(8)]
    for thread in threads:
        thread.start()
    entered.wait(5)
    with pytest.raises(DeadlineExceeded):
        subject.renew(turn("a:pull", server, 0.05), CHALLENGE, "", 0)
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert results == ["Bearer t"] * 8
    assert len(server.requests) == 1


def test_an_empty_token_means_that_none_is_sent() -> None:
    server, subject = TokenServer({"token": ""}), authenticator(username="user", password="p")
    assert subject.renew(turn("", server, 1), CHALLENGE, "", 0) == ""
    assert subject.header(turn("", server, 1)) == ""
    assert len(server.requests) == 1


def test_a_token_server_that_refuses_anonymous_users_leaves_them_anonymous() -> None:
    server, subject = TokenServer(Denied("no")), authenticator()
    assert subject.renew(turn("", server, 1), CHALLENGE, "", 0) == ""


def test_a_token_server_that_refuses_the_credentials_ends_it() -> None:
    subject, server = authenticator(username="user", password="wrong"), TokenServer(Denied("no"))
    with pytest.raises(Denied):
        subject.renew(turn("", server, 1), CHALLENGE, "", 0)
    assert len(server.requests) == 1


def test_a_token_server_without_get_is_posted_to() -> None:
    server = TokenServer(Unsupported("404"), {"access_token": "t"})
    subject = authenticator(username="user", password="pa&ss")
    assert subject.renew(turn("a:pull", server, 1), CHALLENGE, "", 0) == "Bearer t"
    posted = server.requests[1]
    assert posted.url == "https://auth.example/token"
    assert posted.authorization == ""
    assert parse_qs(posted.form) == {
        "grant_type": ["password"],
        "service": ["example"],
        "scope": ["repository:a:pull"],
        "client_id": ["epochfs"],
        "username": ["user"],
        "password": ["pa&ss"],
    }


@pytest.mark.parametrize("credentials", [{}, {"username": "user", "password": "secret"}])
def test_a_token_server_that_is_not_there_is_a_violation(credentials: dict[str, str]) -> None:
    server = TokenServer(Unsupported("404"))
    with pytest.raises(ProtocolViolation):
        authenticator(**credentials).renew(turn("a:pull", server, 1), CHALLENGE, "", 0)
    assert [bool(request.form) for request in server.requests] == [False, True][
        : 1 + len(credentials) // 2
    ]


def test_the_expiry_of_tokens_is_told(clock: list[float]) -> None:
    subject = authenticator()
    assert subject.token_expiry() is None
    subject.renew(
        turn("a:pull", TokenServer({"token": "t", "expires_in": 300}), 1), CHALLENGE, "", 0
    )
    clock[0] += 100
    expiry = subject.token_expiry()
    assert expiry is not None
    assert abs(expiry - time.time() - 200) < 5


class NamingServer(TokenServer):
    """Issues tokens that say to whom."""

    def __call__(self, request: TokenRequest) -> bytes:
        self.requests.append(request)
        secret = request.authorization.partition(" ")[2]
        who = base64.b64decode(secret).decode() or parse_qs(request.form)["refresh_token"][0]
        return json.dumps({"token": f"for-{who}", "expires_in": 3600}).encode()


def write_logins(path: Path, **entries: dict[str, str]) -> None:
    """Write a file with an entry for each directory of repositories."""
    auths = {f"reg.example/{name}": entry for name, entry in entries.items()}
    path.write_text(json.dumps({"auths": auths}))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"username": "robot", "password": "a"}, {"username": "robot", "password": "b"}),
        ({"identitytoken": "a"}, {"identitytoken": "b"}),
    ],
)
def test_logins_that_look_the_same_have_tokens_of_their_own(
    tmp_path: Path, first: dict[str, str], second: dict[str, str]
) -> None:
    write_logins(tmp_path / "auth.json", one=first, two=second)
    server, subject = NamingServer(), authenticator(auth_files=(tmp_path / "auth.json",))
    tokens = {
        subject.renew(turn(f"{name}/app:pull", server, 1), CHALLENGE, "", 0)
        for name in ("one", "two")
    }
    assert {token[-1] for token in tokens} == {"a", "b"}


def test_the_token_of_a_login_is_not_sent_once_the_file_has_another(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    server, subject = NamingServer(), authenticator(auth_files=(path,))
    write_logins(path, team={"username": "alice", "password": "old"})
    assert (
        subject.renew(turn("team/app:pull", server, 1), CHALLENGE, "", 0) == "Bearer for-alice:old"
    )
    write_logins(path, team={"username": "bob", "password": "geheim"})
    assert subject.header(turn("team/app:pull", server, 1)) == "Bearer for-bob:geheim"
    assert subject.header(turn("team/app:pull", server, 1)) == "Bearer for-bob:geheim"
    write_logins(path, team={"username": "alice", "password": "old"})
    assert subject.header(turn("team/app:pull", server, 1)) == "Bearer for-alice:old"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("", ""),
        ("registry:catalog", "registry:catalog:*"),
        ("a:pull", "repository:a:pull"),
        ("team/app:push", "repository:team/app:pull,push"),
        ("team/app:delete", "repository:team/app:delete"),
    ],
)
def test_a_kind_of_access_is_asked_for_in_the_words_of_token_servers(
    scope: str, expected: str
) -> None:
    assert token_scope(scope) == expected


def test_the_scope_that_a_root_names_is_nobodys(clock: list[float]) -> None:
    """ghcr.io says `repository:user/image:pull` to everyone."""
    server, subject = TokenServer(), authenticator(username="user", password="secret")
    subject.header(turn("b:pull", server, 1, lambda: CHALLENGE))
    assert "scope=repository%3Ab%3Apull" in server.requests[0].url


@pytest.mark.parametrize(
    "realm",
    [
        "http://auth.example/token",
        "https://user:pw@auth.example/token",
        "https://user@auth.example/token",
        "ftp://user:pw@auth.example/token",
        "http://auth.example/token?key=pw",
        "https://user:pw@[broken/token",
        "//user:pw@auth.example/token",
        "https://169.254.169.254/token",
        "https://0xa9fea9fe/token",
        "https://2852039166/token",
        "https://[fe80::1]/token",
        "https://[::ffff:169.254.169.254]/token",
        "ftp://auth.example/token",
        "file:///etc/passwd",
        "//auth.example/token",
        "/token",
        "https://[broken/token",
        "",
    ],
)
def test_no_credential_goes_to_a_doubtful_token_server(realm: str) -> None:
    server, subject = TokenServer(), authenticator(username="user", password="secret")
    with pytest.raises(ProtocolViolation) as caught:
        subject.renew(turn("a:pull", server, 1), f'Bearer realm="{realm}"', "", 0)
    assert server.requests == []
    assert "pw" not in str(caught.value)


def test_an_http_registry_may_have_a_token_server_on_http() -> None:
    subject = authenticator(scheme="http")
    challenge = 'Bearer realm="http://127.0.0.1:5001/token?x=1"'
    server = TokenServer()
    assert subject.renew(turn("", server, 1), challenge, "", 0) == "Bearer t"
    assert server.requests[0].url == "http://127.0.0.1:5001/token?x=1&client_id=epochfs"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"token": "t"}, ("t", 60, "")),
        ({"access_token": "t"}, ("t", 60, "")),
        ({"token": "", "access_token": "t"}, ("t", 60, "")),
        ({"token": "", "access_token": ""}, ("", 60, "")),
        ({"token": "t", "expires_in": 300}, ("t", 300, "")),
        ({"token": "t", "expires_in": 1}, ("t", 60, "")),
        ({"token": "t", "expires_in": -1}, ("t", 60, "")),
        ({"token": "t", "expires_in": 10**400}, ("t", 86400, "")),
        ({"token": "t", "expires_in": float("nan")}, ("t", 60, "")),
        ({"token": "t", "expires_in": "soon"}, ("t", 60, "")),
        ({"token": "t", "refresh_token": "next"}, ("t", 60, "next")),
        ({"token": "t", "refresh_token": "two words"}, ("t", 60, "")),
        ({"token": "t", "refresh_token": 7}, ("t", 60, "")),
    ],
)
def test_token_answers_are_read(answer: object, expected: tuple[str, float, str]) -> None:
    assert parse_token(json.dumps(answer).encode()) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"\xff",
        b"[]",
        b"{}",
        b'{"token": null}',
        b'{"token": 7}',
        b'{"token": ["t"]}',
        b'{"token": "a\\r\\nHost: evil"}',
        b'{"token": "two words"}',
        b"[" * 100_000,
    ],
)
def test_bad_token_answers_are_violations(raw: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        parse_token(raw)
