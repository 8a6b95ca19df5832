"""Providers of credentials: what a new one has to bring, and which of them is asked."""

from __future__ import annotations

import base64

import pytest
from support.tokenservers import TokenServer, turn

from epochfs.client.auth import Authenticator, CredentialStore
from epochfs.client.auth.credentials import Provider
from epochfs.client.auth.login_files import Login
from epochfs.config import Credentials

NOW = float("inf")


class Rotating(Provider):
    """Has a login with another password each time one was refused."""

    def __init__(self) -> None:
        self.refusals = 0

    def login(self, repository: str, deadline: float) -> Login | None:
        return Login("from elsewhere", "me", f"secret-{self.refusals}") if repository else None

    def refused(self, login: Login) -> None:
        self.refusals += 1


def basic(password: str) -> str:
    return f"Basic {base64.b64encode(f'me:{password}'.encode()).decode()}"


@pytest.fixture
def store() -> CredentialStore:
    store = CredentialStore(Credentials(), "https://reg.example")
    store.providers.append(Rotating())
    return store


def test_a_provider_needs_no_more_than_to_have_logins(store: CredentialStore) -> None:
    subject, server = Authenticator(store, "https"), TokenServer()
    assert subject.header(turn("a:pull", server, 1, lambda: "Basic")) == basic("secret-0")
    assert subject.renew(turn("a:pull", server, 1), "Basic", basic("secret-0"), 0) == basic(
        "secret-1"
    )
    assert store.describe() == "as me, from elsewhere"
    assert subject.redact("secret-0, secret-1", "") == "***, ***"
    assert subject.bearer_for(b"salt", "a", NOW).principal == "as me, from elsewhere"


def test_the_first_provider_that_has_a_login_is_the_one(store: CredentialStore) -> None:
    class Second(Provider):
        def login(self, repository: str, deadline: float) -> Login | None:
            return Login("from a second", "other", "p")

    store.providers.append(Second())
    found = [store.login(repository, NOW) for repository in ("a", "")]
    assert [login and login.source for login in found] == ["from elsewhere", "from a second"]


@pytest.mark.parametrize("challenge", ["Basic", 'Bearer realm="https://auth.example/"'])
def test_a_provider_may_have_a_token_that_is_sent_as_it_is(challenge: str) -> None:
    class Tokens(Provider):
        def login(self, repository: str, deadline: float) -> Login | None:
            return Login("with the token of this machine", token="t")

    store, server = CredentialStore(Credentials(), "https://reg.example"), TokenServer()
    store.providers.append(Tokens())
    subject = Authenticator(store, "https")
    assert store.anonymous
    assert subject.renew(turn("a:pull", server, 1), challenge, "", 0) == "Bearer t"
    assert subject.header(turn("a:pull", server, 1, lambda: challenge)) == "Bearer t"
    assert subject.instead(turn("a:pull", server, 1), "Bearer t") == "Bearer t"
    assert store.describe() == "with the token of this machine"
    assert server.requests == []


def test_a_login_is_not_shown_where_nobody_asks_for_one(store: CredentialStore) -> None:
    subject = Authenticator(store, "https")
    assert subject.header(turn("a:pull", TokenServer(), 1)) == ""
    assert store.anonymous
