"""The Authorization value of each request to one registry.

Locks: `Authenticator._lock` guards the two caches and is held for look-ups only. Each token's
`_Slot.gate` is held by the one thread that fetches it, which may take as long as its request may;
others wait for it no longer than they have time. The gate is taken first, then the lock.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace

from cachetools import LRUCache

from epochfs.auth.challenges import checked_realm, parse_challenges
from epochfs.auth.store import CredentialStore
from epochfs.auth.tokens import SHORTEST_LIFE, Fetch, Token, TokenKey, ask
from epochfs.errors import DeadlineExceeded, Denied

_REMEMBERED = 4096
"""How many scopes, and how many tokens, are remembered."""


@dataclass(slots=True)
class _Slot:
    """The place of one token in the cache."""

    gate: threading.Lock = field(default_factory=threading.Lock)
    token: Token | None = None


@dataclass(frozen=True, slots=True)
class _Turn:
    """One request for an Authorization value, with all it needs; `deadline` is monotonic."""

    repository: str
    fetch: Fetch
    deadline: float


class Authenticator:
    """Finds the Authorization value for requests to one registry; safe under threads.

    What a challenge said is remembered per `scope`, a name the caller gives to a kind of access:
    `library/nginx:pull`, or "" and `registry:catalog` for the registry as a whole. So only the
    first request of a kind is ever answered with 401.
    """

    def __init__(self, store: CredentialStore, registry_scheme: str) -> None:
        self._store = store
        self._registry_scheme = registry_scheme
        self._lock = threading.Lock()
        self._keys: LRUCache[str, TokenKey] = LRUCache(_REMEMBERED)
        self._slots: LRUCache[TokenKey, _Slot] = LRUCache(_REMEMBERED)
        self._basic_wanted = False

    def header(self, scope: str, fetch: Fetch, patience: float) -> str:
        """Return the Authorization value for a first attempt, or "" to send none.

        Fetches a token only to replace one that is about to expire, or that was issued to other
        credentials than there are now. `patience` is how many seconds there are to get it. Raises
        what `renew` does.
        """
        static = self._store.bearer()
        if static:
            return f"Bearer {static}"
        turn = _turn(scope, fetch, patience)
        if self._basic_wanted:
            return self._basic(turn, "")
        with self._lock:
            key = self._keys.get(scope)
        if key is None:
            return ""
        login = self._store.login(turn.repository, turn.deadline)
        return self._bearer(replace(key, login=login), 0.0, turn)

    def renew(
        self,
        scope: str,
        challenge: str,
        refused: str,
        sent_at: float,
        fetch: Fetch,
        patience: float,
    ) -> str:
        """Return the Authorization value that answers a 401, or "" if there is none to offer.

        `challenge` is the WWW-Authenticate header, `refused` the value that was sent with the
        request. A token is used only if it was asked for after `sent_at` (monotonic seconds).
        Raises Denied if the token server refuses the credentials, CredentialsUnavailable if they
        cannot be had, ProtocolViolation for a token server that must not see them and for an
        answer that holds no token.
        """
        static = self._store.bearer()
        if static:
            return f"Bearer {static}"
        turn = _turn(scope, fetch, patience)
        offered = {challenge.scheme: challenge for challenge in parse_challenges(challenge)}
        if "bearer" in offered:
            parameters = offered["bearer"].parameters
            realm = checked_realm(parameters.get("realm", ""), self._registry_scheme)
            login = self._store.login(turn.repository, turn.deadline)
            key = TokenKey(realm, parameters.get("service", ""), parameters.get("scope", ""), login)
            self._basic_wanted = False
            with self._lock:
                self._keys[scope] = key
            return self._bearer(key, sent_at, turn)
        if "basic" in offered:
            self._basic_wanted = True
            return self._basic(turn, refused)
        return ""

    def redact(self, text: str, authorization: str) -> str:
        """Return server text without the credentials, should the server have sent them back.

        `authorization` is the value that was sent with the request the text answers.
        """
        secrets = self._store.secrets() | {authorization.partition(" ")[2]} - {""}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def describe(self) -> str:
        """Return in whose name requests are made, and where the credentials come from."""
        return self._store.describe()

    def token_expiry(self) -> float | None:
        """Return when the last of the tokens in use expires, as Unix time; None without one."""
        with self._lock:
            tokens = [slot.token for slot in self._slots.values()]
        ends = [token.expires_at for token in tokens if token is not None and token.value]
        return time.time() + max(ends) - time.monotonic() if ends else None

    def _basic(self, turn: _Turn, refused: str) -> str:
        """Return the Authorization value for Basic, another one than was refused if there is."""
        login = self._store.login(turn.repository, turn.deadline)
        if login is not None and login.basic() == refused:
            login = self._store.after_refusal(login, turn.repository, turn.deadline) or login
        return login.basic() if login is not None else ""

    def _bearer(self, key: TokenKey, asked_since: float, turn: _Turn) -> str:
        """Return the Authorization value for a token asked for no earlier than `asked_since`.

        Where the token server refuses the credentials, those there are then are tried.
        """
        try:
            token = self._token(key, asked_since, turn)
        except Denied:
            if key.login is None:
                raise
            another = self._store.after_refusal(key.login, turn.repository, turn.deadline)
            if another is None:
                raise
            token = self._token(replace(key, login=another), asked_since, turn)
        return f"Bearer {token.value}" if token.value else ""

    def _token(self, key: TokenKey, asked_since: float, turn: _Turn) -> Token:
        with self._lock:
            slot = self._slots.setdefault(key, _Slot())
            token = slot.token
        if token is None or not token.usable(asked_since):
            if not slot.gate.acquire(timeout=max(turn.deadline - time.monotonic(), 0)):
                raise DeadlineExceeded("no token within the time limit")
            try:
                token = slot.token
                if token is None or not token.usable(asked_since):
                    token = slot.token = _asked(key, turn.fetch)
            finally:
                slot.gate.release()
        return token


def _asked(key: TokenKey, fetch: Fetch) -> Token:
    """Get a token.

    Without credentials some servers give no token at all, yet the registry may answer anonymous
    requests; that is remembered, so that not every request asks again.
    """
    try:
        return ask(key, fetch)
    except Denied:
        if key.login is not None:
            raise
        now = time.monotonic()
        return Token("", now, now + SHORTEST_LIFE)


def _turn(scope: str, fetch: Fetch, patience: float) -> _Turn:
    return _Turn(_repository(scope), fetch, time.monotonic() + patience)


def _repository(scope: str) -> str:
    """Return the repository that a scope is about, "" for the registry as a whole."""
    name, _, action = scope.rpartition(":")
    return "" if action == "catalog" else name
