"""Refresh tokens that a token server replaces as it takes them."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from support.scripted import until
from support.tokenservers import TokenServer, turn

from epochfs.client.auth import Authenticator, CredentialStore, TokenRequest
from epochfs.client.auth.tokens import RefreshTokens
from epochfs.config import Credentials
from epochfs.errors import DeadlineExceeded, Denied


class RotatingServer:
    """Takes each refresh token once, and answers with the next."""

    def __init__(self, pause: float = 0.0) -> None:
        self.good = "R0"
        self.pause = pause
        self.shown: list[str] = []

    def __call__(self, request: TokenRequest) -> bytes:
        form = parse_qs(request.form)
        [token] = form["refresh_token"]
        self.shown.append(token)
        time.sleep(self.pause)
        if token != self.good:
            raise Denied("invalid_grant")
        self.good = f"R{len(self.shown)}"
        return json.dumps({"access_token": form["scope"][0], "refresh_token": self.good}).encode()


def rotating(path: Path, tokens: RefreshTokens | None = None, kept: str = "R0") -> Authenticator:
    path.write_text(json.dumps({"auths": {"reg.example": {"identitytoken": kept}}}))
    store = CredentialStore(Credentials(auth_files=(path,)), "https://reg.example")
    return Authenticator(store, "https", tokens or RefreshTokens())


def root() -> str:
    return 'Bearer realm="https://auth.example/token",service="example"'


def test_a_refresh_token_that_is_replaced_is_shown_no_more(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    server, subject = RotatingServer(), rotating(path)
    before = path.read_bytes()
    for name in ("a", "b", "c"):
        expected = f"Bearer repository:{name}:pull"
        assert subject.header(turn(f"{name}:pull", server, 1, root)) == expected
    assert server.shown == ["R0", "R1", "R2"]
    assert subject.redact("R3, R2, R1 and R0", "") == "***, ***, *** and ***"
    assert path.read_bytes() == before


def test_threads_that_want_tokens_for_different_scopes_show_no_refresh_token_twice(
    tmp_path: Path,
) -> None:
    server, subject = RotatingServer(pause=0.02), rotating(tmp_path / "auth.json")
    with ThreadPoolExecutor(8) as pool:
        scopes = [f"{number}:pull" for number in range(8)]
        found = set(pool.map(lambda scope: subject.header(turn(scope, server, 5, root)), scopes))
    assert found == {f"Bearer repository:{scope}" for scope in scopes}
    assert server.shown == [f"R{number}" for number in range(8)]


def test_nobody_waits_for_another_scopes_refresh_longer_than_there_is_time(tmp_path: Path) -> None:
    server, subject = RotatingServer(pause=0.5), rotating(tmp_path / "auth.json")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(subject.header, turn("a:pull", server, 5, root))
        until(lambda: server.shown == ["R0"])
        with pytest.raises(DeadlineExceeded):
            subject.header(turn("b:pull", server, 0.05, root))
        assert first.result() == "Bearer repository:a:pull"


def test_what_a_token_has_become_is_known_to_all_of_the_process(tmp_path: Path) -> None:
    server, tokens = RotatingServer(), RefreshTokens()
    for name in ("a", "b"):
        rotating(tmp_path / "auth.json", tokens).header(turn(f"{name}:pull", server, 1, root))
    assert server.shown == ["R0", "R1"]


def test_a_token_server_replaces_only_what_it_is_shown_itself(tmp_path: Path) -> None:
    server, other, tokens = RotatingServer(), RotatingServer(), RefreshTokens()
    rotating(tmp_path / "auth.json", tokens).header(turn("a:pull", server, 1, root))
    elsewhere = 'Bearer realm="https://elsewhere.example/token"'
    rotating(tmp_path / "auth.json", tokens).header(turn("a:pull", other, 1, lambda: elsewhere))
    assert server.shown == other.shown == ["R0"]


def test_a_new_login_in_the_file_begins_anew(tmp_path: Path) -> None:
    path, server = tmp_path / "auth.json", RotatingServer()
    subject = rotating(path)
    subject.header(turn("a:pull", server, 1, root))
    server.good = "another"
    with pytest.raises(Denied):
        subject.header(turn("b:pull", server, 1, root))
    rotating(path, kept="another")
    assert subject.header(turn("b:pull", server, 1, root)) == "Bearer repository:b:pull"
    assert server.shown == ["R0", "R1", "another"]


@pytest.mark.parametrize("replacement", [None, "", 7, ["R1"], "two words"])
def test_what_can_be_no_refresh_token_replaces_none(replacement: object, tmp_path: Path) -> None:
    server = TokenServer({"access_token": "t", "refresh_token": replacement})
    subject = rotating(tmp_path / "auth.json")
    for name in ("a", "b"):
        assert subject.header(turn(f"{name}:pull", server, 1, root)) == "Bearer t"
    assert [parse_qs(one.form)["refresh_token"] for one in server.requests] == [["R0"]] * 2
