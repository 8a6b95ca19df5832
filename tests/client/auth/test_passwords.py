"""Passwords: read again from their file when they are refused, and sent as the bytes they are."""

from __future__ import annotations

import base64
import os
from pathlib import Path

import pytest
from support.tokenservers import CHALLENGE, TokenServer, authenticator, turn

from epochfs.errors import CredentialsUnavailable, Denied, Unsupported


def test_a_password_that_is_not_utf8_is_posted_as_the_bytes_it_is() -> None:
    server = TokenServer(Unsupported("404"), {"access_token": "t"})
    subject = authenticator(username="m\udcfcller", password="\udce4")
    assert subject.renew(turn("a:pull", server, 1), CHALLENGE, "", 0) == "Bearer t"
    pair = base64.b64encode(b"m\xfcller:\xe4").decode()
    assert server.requests[0].authorization == f"Basic {pair}"
    assert "account=m%FCller" in server.requests[0].url
    assert "username=m%FCller&password=%E4" in server.requests[1].form


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text("old\n")
    return path


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'user:{password}'.encode()).decode()}"


def test_a_password_file_is_read_again_when_the_password_is_refused(password: Path) -> None:
    subject = authenticator(username="user", password="old", password_file=password)
    server = TokenServer()
    assert subject.renew(turn("", server, 1), "Basic", "", 0) == basic("old")
    password.write_text("new\n")
    assert subject.header(turn("", server, 1)) == basic("old")
    assert subject.renew(turn("", server, 1), "Basic", basic("old"), 0) == basic("new")
    assert subject.header(turn("", server, 1)) == basic("new")
    assert subject.redact("old and new", "") == "*** and ***"


def test_a_password_that_the_token_server_refuses_is_read_again(password: Path) -> None:
    subject = authenticator(username="user", password="old", password_file=password)
    password.write_text("new")
    server = TokenServer(Denied("no"), {"token": "t"})
    assert subject.renew(turn("", server, 1), CHALLENGE, "", 0) == "Bearer t"
    assert [one.authorization for one in server.requests] == [basic("old"), basic("new")]


@pytest.mark.parametrize(("content", "expected"), [("new", "new"), ("old", "old"), ("", "old")])
def test_a_403_counts_as_a_refusal_of_the_password_if_there_is_another(
    password: Path, content: str, expected: str
) -> None:
    subject = authenticator(username="user", password="old", password_file=password)
    subject.renew(turn("", TokenServer(), 1), "Basic", "", 0)
    password.write_text(content)
    assert subject.instead(turn("", TokenServer(), 1), basic("old")) == basic(expected)
    assert subject.header(turn("", TokenServer(), 1)) == basic(expected)


def test_a_password_file_that_was_emptied_is_named(password: Path) -> None:
    subject = authenticator(username="user", password="old", password_file=password)
    subject.renew(turn("", TokenServer(), 1), "Basic", "", 0)
    password.write_text("\n")
    with pytest.raises(CredentialsUnavailable, match=f"the password file '{password}' is empty"):
        subject.renew(turn("", TokenServer(), 1), "Basic", basic("old"), 0)


def test_a_password_whose_file_is_gone_stays_what_it_was(password: Path) -> None:
    subject = authenticator(username="user", password="old", password_file=password)
    for gone in (password.unlink, lambda: os.mkfifo(password)):
        gone()
        assert subject.renew(turn("", TokenServer(), 1), "Basic", basic("old"), 0) == basic("old")
