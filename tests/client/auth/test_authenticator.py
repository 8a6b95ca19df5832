"""Which Authorization a request is sent with: the answer to a challenge, or what was given."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from support.tokenservers import BASIC, CHALLENGE, TokenServer, authenticator, turn

from epochfs.client.auth import TokenRequest
from epochfs.client.auth.login_files import Login
from epochfs.config import Credentials
from epochfs.errors import (
    CredentialsUnavailable,
    DeadlineExceeded,
)


def test_nothing_is_sent_before_a_challenge() -> None:
    server = TokenServer()
    assert authenticator(username="user", password="secret").header(turn("a:pull", server, 1)) == ""
    assert server.requests == []


def test_a_bearer_challenge_is_answered_with_a_token() -> None:
    server = TokenServer()
    bearer = authenticator().renew(turn("a:pull", server, 1), CHALLENGE, "", 0)
    assert bearer == "Bearer t"
    url = urlsplit(server.requests[0].url)
    assert (url.scheme, url.netloc, url.path) == ("https", "auth.example", "/token")
    assert parse_qs(url.query) == {
        "service": ["example"],
        "scope": ["repository:a:pull"],
        "client_id": ["epochfs"],
    }
    assert server.requests[0].authorization == ""


@pytest.mark.parametrize("challenge", ["", ',scope=""', ",error=insufficient_scope"])
@pytest.mark.parametrize(
    ("scope", "expected"),
    [("a:pull", ["repository:a:pull"]), ("registry:catalog", ["registry:catalog:*"]), ("", None)],
)
def test_what_a_challenge_without_a_scope_leaves_open_is_what_the_request_needs(
    challenge: str, scope: str, expected: list[str] | None
) -> None:
    server = TokenServer()
    authenticator().renew(
        turn(scope, server, 1), f'Bearer realm="https://auth.example/"{challenge}', "", 0
    )
    assert parse_qs(urlsplit(server.requests[0].url).query).get("scope") == expected


def test_after_a_bearer_challenge_basic_is_sent_no_more() -> None:
    server, subject = TokenServer(), authenticator(username="user", password="secret")
    subject.renew(turn("a:pull", server, 1), 'Basic realm="x"', "", 0)
    subject.renew(turn("a:pull", server, 1), CHALLENGE, "", 0)
    assert subject.header(turn("a:pull", server, 1)) == "Bearer t"
    assert subject.header(turn("b:pull", server, 1)) == "Bearer t"
    assert [parse_qs(urlsplit(one.url).query)["scope"] for one in server.requests] == [
        ["repository:a:pull"],
        ["repository:b:pull"],
    ]


def test_a_basic_challenge_is_answered_with_basic_from_then_on() -> None:
    server, subject = TokenServer(), authenticator(username="user", password="secret")
    assert subject.renew(turn("a:pull", server, 1), 'Basic realm="x"', "", 0) == BASIC
    assert subject.header(turn("b:pull", server, 1)) == BASIC


@pytest.mark.parametrize("challenge", ['Basic realm="x"', "Negotiate", ""])
def test_without_an_answer_to_a_challenge_none_is_sent(challenge: str) -> None:
    assert authenticator().renew(turn("a:pull", TokenServer(), 1), challenge, "", 0) == ""


def test_threads_ask_the_root_once() -> None:
    entered, go_on, asked = threading.Event(), threading.Event(), []

    def learn() -> str:
        asked.append(1)
        entered.set()
        go_on.wait(5)
        return "Basic"

    subject = authenticator(username="user", password="secret")
    results: list[str] = []

    def header() -> None:
        results.append(subject.header(turn("a:pull", TokenServer(), 5, learn)))

    threads = [threading.Thread(target=header) for _ in range(8)]
    for thread in threads:
        thread.start()
    entered.wait(5)
    with pytest.raises(DeadlineExceeded):
        subject.header(turn("b:pull", TokenServer(), 0.05, learn))
    go_on.set()
    for thread in threads:
        thread.join(5)
    assert results == [BASIC] * 8
    assert len(asked) == 1


def test_what_was_given_and_never_shown_is_told() -> None:
    subject = authenticator(username="user", password="secret")
    shown = subject.credentials
    assert shown.unused() == "the login of user"
    assert subject.header(turn("a:pull", TokenServer(), 1)) == ""
    assert (shown.unused(), shown.describe()) == ("the login of user", "anonymous")
    subject.renew(turn("a:pull", TokenServer(), 1), "Basic", "", 0)
    assert (shown.unused(), shown.describe()) == ("", "as user, as given")
    for other in (authenticator(), authenticator(token="t")):
        assert other.credentials.unused() == ""


def test_a_static_token_is_sent_always_and_to_no_token_server() -> None:
    server, subject = TokenServer(), authenticator(token=" static\n")
    assert subject.header(turn("", server, 1)) == "Bearer static"
    assert subject.renew(turn("", server, 1), CHALLENGE, "", 0) == "Bearer static"
    assert server.requests == []


def test_a_token_file_is_read_for_each_use(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    subject = authenticator(token_file=path)
    assert subject.header(turn("", TokenServer(), 1)) == "Bearer first"
    path.write_text("second\n")
    assert subject.header(turn("", TokenServer(), 1)) == "Bearer second"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two words", b"\xff\xfe", b"a\nb"])
def test_an_unusable_token_file_is_denied_by_name_and_not_shown(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "the-file"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CredentialsUnavailable, match="the-file") as caught:
        authenticator(token_file=path).header(turn("", TokenServer(), 1))
    assert "words" not in str(caught.value)


def test_a_user_name_without_a_password_makes_nobody_anonymous() -> None:
    for root in ("", "Basic", CHALLENGE):
        with pytest.raises(
            CredentialsUnavailable, match="no password was given for the login of u"
        ):
            authenticator(username="u").header(turn("", TokenServer(), 1, lambda: root))  # noqa: B023


def test_server_text_is_shown_without_our_credentials() -> None:
    subject = authenticator(username="user", password="hunter2")
    basic = subject.renew(turn("", TokenServer(), 1), "Basic", "", 0)
    text = subject.redact(f"you sent {basic} and Bearer abc, hunter2", "Bearer abc")
    assert text == "you sent Basic *** and Bearer ***, ***"


def test_credentials_are_not_in_the_repr() -> None:
    login = Login("as given", "user", "hunter2", "refresh")
    request = TokenRequest("https://x/", "Basic abc", "password=hunter2")
    shown = f"{login!r} {login} {request!r} {Credentials(password='hunter2', token='refresh')!r}"
    assert not {"hunter2", "refresh", "abc"} & set(re.split(r"\W+", shown))
