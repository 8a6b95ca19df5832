"""The token server's protocol: requests for tokens, and the tokens in its answers.

Sources: the Distribution project's token authentication specification (GET), and its OAuth 2
one (POST).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from epochfs.client.auth.logins import Login
from epochfs.client.auth.secretfiles import HEADER_SAFE, UNDECODED
from epochfs.client.causes import Cause
from epochfs.errors import ProtocolViolation, Unsupported, explained, printable_url

CLIENT_ID = "epochfs"

SHORTEST_LIFE = 60.0
"""A token lives this many seconds where the server names fewer or none (token specification)."""

_LONGEST_LIFE = 86400.0
"""A token is used for no longer than this, in seconds, whatever the server says."""

_EXPIRY_MARGIN = 10.0
"""A token is replaced this many seconds before it expires, so that it lasts out its request."""


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """What the token server answers with a token: a GET, or the POST of a form if there is one.

    `authorization` may be empty. The form may hold secrets, as may the header.
    """

    url: str
    authorization: str = field(default="", repr=False)
    form: str = field(default="", repr=False)


Fetch = Callable[[TokenRequest], bytes]
"""Sends a token request and returns the body of its 200; raises Denied for 401 and 403, and
Unsupported for 404 and 405."""

Learn = Callable[[], str]
"""Asks the registry's root without credentials, and returns the WWW-Authenticate of the answer,
whatever its status, or ""."""

_ACTIONS = {"pull": "pull", "push": "pull,push", "delete": "delete"}


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What a token was issued for, in the words of the challenge, and to whom: None for nobody."""

    realm: str
    service: str
    scope: str
    login: Login | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its times on the monotonic clock. An empty value means: send none.

    `refresh_token`, if there is one, replaces that which the token was asked for with.
    """

    value: str = field(repr=False)
    asked_at: float
    expires_at: float
    refresh_token: str = field(default="", repr=False)

    def usable(self, asked_since: float) -> bool:
        """Whether it was asked for no earlier than that, and is not about to expire."""
        return self.asked_at >= asked_since and time.monotonic() < self.expires_at - _EXPIRY_MARGIN


def token_scope(scope: str) -> str:
    """Return the scope of a token for a kind of access, "" for the registry's root.

    In the words of the Distribution project's "Token Scope Documentation".
    """
    name, _, action = scope.rpartition(":")
    if action == "catalog":
        return "registry:catalog:*"
    return f"repository:{name}:{_ACTIONS[action]}" if name else ""


def ask(key: TokenKey, fetch: Fetch) -> Token:
    """Get a token; raises Denied, and ProtocolViolation.

    An identity token is posted. A password goes with a GET, which every token server but those
    of OAuth 2 alone takes, and is posted to the others.
    """
    asked_at = time.monotonic()
    try:
        if key.login is not None and key.login.identity_token:
            raw = fetch(_post(key, key.login))
        else:
            raw = _ask_by_get(key, fetch)
    except Unsupported as error:
        raise explained(ProtocolViolation(str(error))) from None
    try:
        value, lifetime = parse_token(raw)
        return Token(value, asked_at, asked_at + lifetime, parse_refresh_token(raw))
    except ProtocolViolation as error:
        realm = printable_url(key.realm)
        sentence = Cause.TOKEN_SERVER_UNINTELLIGIBLE.told(realm=realm)
        raise explained(ProtocolViolation(f"{error}: {sentence}")) from None


def _ask_by_get(key: TokenKey, fetch: Fetch) -> bytes:
    try:
        return fetch(_get(key))
    except Unsupported:
        if key.login is None or not key.login.password:
            raise
        return fetch(_post(key, key.login))


def _get(key: TokenKey) -> TokenRequest:
    """Return the request by GET; a challenge's several scopes become several parameters."""
    login = key.login
    query = [("service", key.service)] if key.service else []
    query += [("scope", scope) for scope in key.scope.split()]
    query.append(("client_id", CLIENT_ID))
    if login is not None and login.username:
        query.append(("account", login.username))
    parts = urlsplit(key.realm)
    added = urlencode(query, errors=UNDECODED)
    whole = f"{parts.query}&{added}" if parts.query else added
    url = parts._replace(query=whole, fragment="").geturl()
    return TokenRequest(url, login.basic() if login is not None else "")


def _post(key: TokenKey, login: Login) -> TokenRequest:
    """Return the request by POST, where several scopes stay together."""
    form = {"service": key.service, "scope": key.scope, "client_id": CLIENT_ID}
    if login.identity_token:
        form |= {"grant_type": "refresh_token", "refresh_token": login.identity_token}
    else:
        form |= {
            "grant_type": "password",
            "username": login.username,
            "password": login.password,
        }
    url = urlsplit(key.realm)._replace(fragment="").geturl()
    filled = {name: form[name] for name in form if form[name]}
    return TokenRequest(url, form=urlencode(filled, errors=UNDECODED))


def parse_token(raw: bytes) -> tuple[str, float]:
    """Return the token in a token server's answer ("" means: send none) and its life in seconds.

    Raises ProtocolViolation for an answer that is no JSON object with a usable token.
    """
    answer = _parsed(raw)
    value = answer.get("token") or answer.get("access_token")
    if value is None and "token" in answer:
        value = answer["token"]
    if value != "" and not (isinstance(value, str) and HEADER_SAFE.match(value)):
        raise ProtocolViolation("the token server's answer holds no usable token")
    lifetime = answer.get("expires_in")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        lifetime = SHORTEST_LIFE
    # In this order, as NaN is not greater than anything.
    return value, min(max(SHORTEST_LIFE, lifetime), _LONGEST_LIFE)


def parse_refresh_token(raw: bytes) -> str:
    """Return the refresh token in a token server's answer, or ""; raises as `parse_token`."""
    value = _parsed(raw).get("refresh_token")
    return value if isinstance(value, str) and HEADER_SAFE.match(value) else ""


def _parsed(raw: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise ProtocolViolation("the token server's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise ProtocolViolation("the token server's answer is not a JSON object")
    return answer
