"""How a request is authenticated: challenges, the user's credentials, tokens and their cache.

No request is made here. Where a token is needed, the caller's `Fetch` gets it, so that a token
request has the same time limit, retries and redirect rules as every other. Sources: RFC 9110,
section 11 (challenges); RFC 7617 (Basic); the Distribution project's token specification (Bearer).

Rules that keep credentials where they belong:

- A static token goes to the registry as Bearer, and nowhere else.
- User name and password go to the registry as Basic if it asks for that, else to the token server
  that the registry names; never to one on plain http for an https registry, with user information
  in its URL, or at a link-local address, where clouds serve the machine's own secrets.
- `Authenticator.redact` takes them out of text that a server sent back.

Locks: `Authenticator._lock` guards the two caches and is held for look-ups only. Each token's
`_Slot.gate` is held by the one thread that fetches it, which may take as long as its request may;
others wait for it no longer than they have time. The gate is taken first, then the lock.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlencode, urlsplit

from cachetools import LRUCache

from epochfs.errors import DeadlineExceeded, Denied, ProtocolViolation, printable

CLIENT_ID = "epochfs"

_REMEMBERED = 4096
"""How many scopes, and how many tokens, are remembered."""

_SHORTEST_LIFE = 60.0
"""A token lives this many seconds where the server names fewer or none (token specification)."""

_LONGEST_LIFE = 86400.0
"""A token is used for no longer than this, in seconds, whatever the server says."""

_EXPIRY_MARGIN = 10.0
"""A token is replaced this many seconds before it expires, so that it lasts out its request."""

_HEADER_SAFE = re.compile(r"[!-~]{1,65536}\Z")

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|\Z)(?!\s*=)")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')
_TOKEN68 = re.compile(r"\s*[A-Za-z0-9._~+/-]+=*\s*(?=,|\Z)")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One challenge of a WWW-Authenticate header; `scheme` and parameter names in lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """Parse a WWW-Authenticate header of any number of challenges (RFC 9110, section 11.6.1).

    Unquoted values may hold any character but space, comma and quote, as registries do send
    them. What follows the first malformed part is left out.
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


@dataclass(frozen=True, slots=True)
class CredentialStore:
    """The user's credentials; never shown by `repr`. `token_file` is read for each use."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    token_file: Path | None = None

    def bearer(self) -> str:
        """Return the static token, or "" if there is none; raises Denied for an unusable one."""
        token = self.token.strip()
        if self.token_file is not None:
            try:
                token = self.token_file.read_text("ascii").strip()
            except (OSError, UnicodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "it is not ASCII text"
                raise Denied(f"cannot read the token file {self.token_file}: {reason}") from None
        if token and not _HEADER_SAFE.match(token):
            raise Denied("the registry token holds spaces or characters outside ASCII")
        return token

    def basic(self) -> str:
        """Return the Basic Authorization value (RFC 7617), or "" without user name and password."""
        if not self.username and not self.password:
            return ""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {base64.b64encode(pair).decode('ascii')}"


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A GET that the token server answers with a token; `authorization` may be empty."""

    url: str
    authorization: str = field(repr=False)


Fetch = Callable[[TokenRequest], bytes]
"""Sends a token request and returns the body of its 200; raises Denied for 401 and 403."""


@dataclass(frozen=True, slots=True)
class _TokenKey:
    """What a token was issued for, in the words of the challenge."""

    realm: str
    service: str
    scope: str


@dataclass(frozen=True, slots=True)
class _Token:
    """A token and its times on the monotonic clock. An empty value means: send none."""

    value: str = field(repr=False)
    asked_at: float
    expires_at: float

    def usable(self, asked_since: float) -> bool:
        return self.asked_at >= asked_since and time.monotonic() < self.expires_at - _EXPIRY_MARGIN


@dataclass(slots=True)
class _Slot:
    """The place of one token in the cache."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    token: _Token | None = None


class Authenticator:
    """Finds the Authorization value for requests to one registry; safe under threads.

    What a challenge said is remembered per `scope`, a name the caller gives to a kind of access
    (`library/nginx:pull`), so that only the first request of a kind is ever answered with 401.
    """

    def __init__(self, store: CredentialStore, registry_scheme: str) -> None:
        self._store = store
        self._registry_scheme = registry_scheme
        self._lock = threading.Lock()
        self._keys: LRUCache[str, _TokenKey] = LRUCache(_REMEMBERED)
        self._slots: LRUCache[_TokenKey, _Slot] = LRUCache(_REMEMBERED)
        self._basic_wanted = False

    def header(self, scope: str, fetch: Fetch, patience: float) -> str:
        """Return the Authorization value for a first attempt, or "" to send none.

        Fetches a token only to replace one that is about to expire. `patience` is how many
        seconds to wait for another thread that fetches the same token.
        """
        static = self._store.bearer()
        if static:
            return f"Bearer {static}"
        if self._basic_wanted:
            return self._store.basic()
        with self._lock:
            key = self._keys.get(scope)
        return "" if key is None else self._bearer(key, 0.0, fetch, patience)

    def renew(
        self, scope: str, challenge: str, sent_at: float, fetch: Fetch, patience: float
    ) -> str:
        """Return the Authorization value that answers a 401, or "" if there is none to offer.

        `challenge` is the WWW-Authenticate header. A token is used only if it was asked for after
        `sent_at` (monotonic seconds), when the refused request was sent.
        Raises Denied if the token server refuses the credentials, ProtocolViolation for a token
        server that must not see them and for an answer that holds no token.
        """
        static = self._store.bearer()
        if static:
            return f"Bearer {static}"
        offered = {challenge.scheme: challenge for challenge in parse_challenges(challenge)}
        if "bearer" in offered:
            parameters = offered["bearer"].parameters
            key = _TokenKey(
                self._checked_realm(parameters.get("realm", "")),
                parameters.get("service", ""),
                parameters.get("scope", ""),
            )
            with self._lock:
                self._keys[scope] = key
            return self._bearer(key, sent_at, fetch, patience)
        if "basic" in offered:
            self._basic_wanted = True
            return self._store.basic()
        return ""

    def redact(self, text: str, authorization: str) -> str:
        """Return server text without the credentials, should the server have sent them back.

        `authorization` is the value that was sent with the request the text answers.
        """
        sent = authorization.partition(" ")[2]
        basic = self._store.basic().partition(" ")[2]
        secrets = {sent, basic, self._store.password, self._store.token.strip()} - {""}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def _bearer(self, key: _TokenKey, asked_since: float, fetch: Fetch, patience: float) -> str:
        """Return the Authorization value for a token asked for no earlier than `asked_since`."""
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            token = slot.token
        if token is None or not token.usable(asked_since):
            if not slot.gate.acquire(timeout=patience):
                raise DeadlineExceeded("no token within the time limit")
            try:
                token = slot.token
                if token is None or not token.usable(asked_since):
                    token = slot.token = self._fetched(key, fetch)
            finally:
                slot.gate.release()
        return f"Bearer {token.value}" if token.value else ""

    def _fetched(self, key: _TokenKey, fetch: Fetch) -> _Token:
        basic = self._store.basic()
        asked_at = time.monotonic()
        try:
            raw = fetch(TokenRequest(_token_url(key, self._store.username), basic))
        except Denied:
            if basic:
                raise
            # Without credentials some servers give no token at all, yet the registry may
            # answer anonymous requests; remembered, so that not every request asks again.
            return _Token("", asked_at, asked_at + _SHORTEST_LIFE)
        value, lifetime = parse_token(raw)
        return _Token(value, asked_at, asked_at + lifetime)

    def _checked_realm(self, realm: str) -> str:
        """Return the token server's URL if credentials may go there; else ProtocolViolation."""
        shown = printable(realm)
        try:
            parts = urlsplit(realm)
            host = parts.hostname
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise ProtocolViolation(f"the registry's token server is no http(s) URL: '{shown}'")
        if parts.username is not None or parts.password is not None:
            raise ProtocolViolation("the registry's token server has credentials in its URL")
        if self._registry_scheme == "https" and parts.scheme != "https":
            raise ProtocolViolation(f"an https registry names a token server on http: '{shown}'")
        if _is_link_local(host):
            raise ProtocolViolation(f"the registry's token server is link-local: '{shown}'")
        return realm


def _token_url(key: _TokenKey, username: str) -> str:
    """Return the token request's URL; a challenge's several scopes become several parameters."""
    query = [("service", key.service)] if key.service else []
    query += [("scope", scope) for scope in key.scope.split()]
    query.append(("client_id", CLIENT_ID))
    if username:
        query.append(("account", username))
    parts = urlsplit(key.realm)
    whole = f"{parts.query}&{urlencode(query)}" if parts.query else urlencode(query)
    return parts._replace(query=whole, fragment="").geturl()


def parse_token(raw: bytes) -> tuple[str, float]:
    """Return the token in a token server's answer ("" means: send none) and its life in seconds.

    Raises ProtocolViolation for an answer that is no JSON object with a usable token.
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
    if value != "" and not (isinstance(value, str) and _HEADER_SAFE.match(value)):
        raise ProtocolViolation("the token server's answer holds no usable token")
    lifetime = answer.get("expires_in")
    if isinstance(lifetime, bool) or not isinstance(lifetime, int | float):
        lifetime = _SHORTEST_LIFE
    # In this order, as NaN is not greater than anything.
    return value, min(max(_SHORTEST_LIFE, lifetime), _LONGEST_LIFE)


def _is_link_local(host: str) -> bool:
    """Whether a host is the literal address of a link-local one, in any spelling of IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_link_local or (mapped is not None and mapped.is_link_local)
