"""Challenges of a registry, and the tokens that its token server issues.

Sources: RFC 9110, section 11, for challenges; the Distribution project's token authentication
specification (GET), and its OAuth 2 one (POST); RFC 6749, section 6, for refresh tokens.

Keycloak, Entra and others answer each use of a refresh token with a new one and revoke the old. The
whole process uses the new one from then on, and writes it nowhere: the file the first one came from
belongs to docker or podman. So a login with such a server works for one process at a time.

Locks: `RefreshTokens._lock` guards the table, and nothing is called under it. The lock of a `Chain`
is held while its token is sent, as no two requests may show the same one; others wait for it no
longer than until their deadline.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from epochfs.client.auth.login_files import HEADER_SAFE, UNDECODED, Login
from epochfs.client.causes import Cause
from epochfs.errors import (
    DeadlineExceeded,
    ProtocolViolation,
    Unsupported,
    explained,
    printable_url,
)

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|\Z)(?!\s*=)")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?=,|\Z)")

CLIENT_ID = "epochfs"

SHORTEST_LIFE = 60.0
"""A token's life in seconds where the server names less or none (token specification)."""

_LONGEST_LIFE = 86400.0
"""The longest a token is used, in seconds, whatever the server says."""

_EXPIRY_MARGIN = 10.0
"""How many seconds before it expires a token is replaced, so that it outlasts its request."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; `scheme` and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a WWW-Authenticate header of any number of challenges (RFC 9110, section 11.6.1).

    Unquoted values may hold any character but space, comma and quote, as registries do send such.
    The first malformed part and what follows it are ignored.
    """
    challenges = []
    position = 0
    while match := _SCHEME.match(header, position):
        scheme, parameters = match[1].lower(), dict[str, str]()
        position = match.end()
        if match := _TOKEN68.match(header, position):
            position = match.end()
        while match := _PARAMETER.match(header, position):
            value = re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
            parameters.setdefault(match[1].lower(), value)
            position = match.end()
        challenges.append(Challenge(scheme, parameters))
    return challenges


def describe_schemes(header: str) -> str:
    """Return the schemes that a WWW-Authenticate header offers, for people; "" for none."""
    return " and ".join(dict.fromkeys(one.scheme.capitalize() for one in parse_challenges(header)))


def answerable(header: str) -> Challenge:
    """Return the challenge to answer in a WWW-Authenticate header: Bearer, or else Basic.

    The scheme is "" where nothing is asked, and names all that are offered where none is supported.
    """
    known = {challenge.scheme: challenge for challenge in parse_challenges(header)}
    return known.get("bearer") or known.get("basic") or Challenge(describe_schemes(header), {})


def checked_realm(realm: str, registry_scheme: str) -> str:
    """Return the token server's URL if credentials may go there; else raise ProtocolViolation."""
    try:
        parts = urlsplit(realm)
        host = parts.hostname
    except ValueError:
        host = None
    if host is None or parts.scheme not in ("http", "https"):
        doubt = "is not an http(s) URL"
    elif parts.username is not None or parts.password is not None:
        doubt = "has user information in it"
    elif registry_scheme == "https" and parts.scheme != "https":
        doubt = "is on http, while the registry is on https"
    elif _is_link_local(host):
        doubt = "is at a link-local address"
    else:
        return realm
    why = f"'{printable_url(realm)}' {doubt}"
    raise explained(ProtocolViolation(Cause.TOKEN_SERVER_DOUBTFUL.told(why=why)))


def _is_link_local(host: str) -> bool:
    """Whether a host is a literal link-local address, in any spelling of IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    return (getattr(address, "ipv4_mapped", None) or address).is_link_local


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A request for a token: a GET, or the POST of a form. All but the URL may be secret."""

    url: str
    authorization: str = field(default="", repr=False)
    form: str = field(default="", repr=False)


Fetch = Callable[[TokenRequest], bytes]
"""Sends a token request and returns the body of its 200; raises Denied for 401 and 403,
Unsupported for 404 and 405."""

Learn = Callable[[], str]
"""Requests the registry's root without credentials, and returns the WWW-Authenticate of the answer,
whatever its status, or ""."""

_ACTIONS = {"pull": "pull", "push": "pull,push", "delete": "delete"}


@dataclass(frozen=True, slots=True)
class TokenKey:
    """What a token was issued for, as the challenge has it, and to whom; None for nobody."""

    realm: str
    service: str
    scope: str
    login: Login | None


@dataclass(frozen=True, slots=True)
class Token:
    """A token and its times on the monotonic clock; if `value` is "", none is to be sent.

    `refresh_token`, if any, replaces the one that was shown to get it.
    """

    value: str = field(repr=False)
    asked_at: float
    expires_at: float
    refresh_token: str = field(default="", repr=False)

    def usable(self, asked_since: float) -> bool:
        """Whether it was requested no earlier than that, and is not about to expire."""
        return self.asked_at >= asked_since and time.monotonic() < self.expires_at - _EXPIRY_MARGIN


def token_scope(scope: str) -> str:
    """Return a token's scope for a kind of access, "" for the registry's root.

    Several kinds are a line each. Source: the Distribution project's "Token Scope Documentation".
    """
    return " ".join(_scope_of(kind) for kind in scope.splitlines())


def _scope_of(kind: str) -> str:
    name, _, action = kind.rpartition(":")
    if action == "catalog":
        return "registry:catalog:*"
    return f"repository:{name}:{_ACTIONS[action]}" if name else ""


def ask(key: TokenKey, fetch: Fetch) -> Token:
    """Get a token; raises Denied, and ProtocolViolation.

    An identity token is posted. A password goes with a GET, which every token server but those
    of OAuth 2 alone takes, and is posted to the others.
    """
    asked_at = time.monotonic()
    login = key.login
    try:
        if login is not None and login.identity_token:
            raw = fetch(_post(key, login))
        else:
            try:
                raw = fetch(_get(key))
            except Unsupported:
                if login is None or not login.password:
                    raise
                raw = fetch(_post(key, login))
    except Unsupported as error:
        raise explained(ProtocolViolation(str(error))) from None
    try:
        value, lifetime, refresh_token = parse_token(raw)
    except ProtocolViolation as error:
        sentence = Cause.TOKEN_SERVER_UNINTELLIGIBLE.told(realm=printable_url(key.realm))
        raise explained(ProtocolViolation(f"{error}: {sentence}")) from None
    return Token(value, asked_at, asked_at + lifetime, refresh_token)


def _get(key: TokenKey) -> TokenRequest:
    """Return the GET; several scopes of a challenge become several parameters."""
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
    """Return the POST, where several scopes stay together."""
    form = {"service": key.service, "scope": key.scope, "client_id": CLIENT_ID}
    if login.identity_token:
        form |= {"grant_type": "refresh_token", "refresh_token": login.identity_token}
    else:
        form |= {"grant_type": "password", "username": login.username, "password": login.password}
    url = urlsplit(key.realm)._replace(fragment="").geturl()
    filled = {name: value for name, value in form.items() if value}
    return TokenRequest(url, form=urlencode(filled, errors=UNDECODED))


def parse_token(raw: bytes) -> tuple[str, float, str]:
    """Return the token in a token server's answer ("" to send none), its life in seconds, and the
    refresh token, if any. Raises ProtocolViolation unless it is a JSON object with a usable token.
    """
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        raise ProtocolViolation("the token server's answer is not JSON") from None
    if not isinstance(answer, dict):
        raise ProtocolViolation("the token server's answer is not a JSON object")
    value = answer.get("token") or answer.get("access_token")
    if value is None and "token" in answer:
        value = answer["token"]
    if value != "" and not (isinstance(value, str) and HEADER_SAFE.match(value)):
        raise ProtocolViolation("the token server's answer holds no usable token")
    lifetime = answer.get("expires_in")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        lifetime = SHORTEST_LIFE
    refresh_token = answer.get("refresh_token")
    if not (isinstance(refresh_token, str) and HEADER_SAFE.match(refresh_token)):
        refresh_token = ""
    # In this order, as NaN is greater than nothing.
    return value, min(max(SHORTEST_LIFE, lifetime), _LONGEST_LIFE), refresh_token


@dataclass(slots=True)
class Chain:
    """A refresh token and its successors; `token` is the one to show now."""

    token: str = field(repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock)


class RefreshTokens:
    """The chains of refresh tokens, by token server and first token."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chains: dict[tuple[str, str], Chain] = {}

    @contextmanager
    def held(self, realm: str, token: str, deadline: float) -> Iterator[Chain]:
        """Lend the chain that begins with a token to one thread at a time, which sets its `token`.

        Raises DeadlineExceeded at `deadline` (monotonic).
        """
        with self._lock:
            chain = self._chains.setdefault((realm, token), Chain(token))
        if not chain.lock.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise DeadlineExceeded("no token within the time limit")
        try:
            yield chain
        finally:
            chain.lock.release()


OF_THIS_PROCESS = RefreshTokens()
