"""The Authorization value of each request to one registry.

The registry's root, `/v2/`, says what is asked of everybody, as docker and skopeo learn it. Where a
registry has public repositories beside private ones, a user with a login would otherwise never be
asked for it, and would take what the public may see for all there is.

Locks: `Authenticator._lock` guards the caches, what was learned and, in `SingleFlight`, what is
being fetched or learned; it is held for look-ups only. One thread at a time fetches tokens of one
kind, or asks the root: an answer is for all, but a failure, or too little time, is for the thread
that met it. The lock of a `tokens.Chain` is taken while none of ours is held.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial

from cachetools import LRUCache

from epochfs.client.auth.credential_helpers import StoreFailed
from epochfs.client.auth.credentials import CredentialStore
from epochfs.client.auth.login_files import Login
from epochfs.client.auth.tokens import (
    OF_THIS_PROCESS,
    SHORTEST_LIFE,
    Challenge,
    Fetch,
    Learn,
    RefreshTokens,
    Token,
    TokenKey,
    answerable,
    ask,
    checked_realm,
    token_scope,
)
from epochfs.client.causes import Cause
from epochfs.client.single_flight import SingleFlight
from epochfs.errors import CredentialsUnavailable, Denied

_REMEMBERED = 4096
"""Most scopes, and most tokens, that are remembered."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """Who asks: `principal` stays the same while a secret is rotated, `fingerprint` does not.

    The fingerprint is a slow, salted hash of all that is shown: it can be recognized, not reversed.
    Both are "" for nobody. Neither holds a secret.
    """

    principal: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A request for the Authorization value of a `scope`; `deadline` is monotonic."""

    scope: str
    fetch: Fetch
    learn: Learn
    deadline: float

    @property
    def repository(self) -> str:
        """The first repository that the scope names, "" for the registry as a whole."""
        name, _, action = self.scope.partition("\n")[0].rpartition(":")
        return "" if action == "catalog" else name


class Authenticator:
    """Finds the Authorization value for requests to one registry; safe under threads.

    A challenge is remembered per `scope`, the caller's name for a kind of access:
    `library/nginx:pull`, or "" and `registry:catalog` for the registry as a whole. So only the
    first request of a kind is ever answered with 401, and with a login not even that one.
    `credentials` know in whose name it asks.
    """

    def __init__(
        self,
        credentials: CredentialStore,
        registry_scheme: str,
        refresh_tokens: RefreshTokens = OF_THIS_PROCESS,
    ) -> None:
        self.credentials = credentials
        self._refresh_tokens = refresh_tokens
        self._registry_scheme = registry_scheme
        self._lock = threading.Lock()
        self._keys: LRUCache[str, TokenKey] = LRUCache(_REMEMBERED)
        self._tokens: LRUCache[TokenKey, Token] = LRUCache(_REMEMBERED)
        self._fetching = SingleFlight[TokenKey, Token](
            self._lock,
            self._tokens.__setitem__,
            lambda _: "no token within the time limit",
            in_turn=True,
        )
        self._asked_of_all: Challenge | None = None
        self._learning = SingleFlight[None, Challenge](
            self._lock,
            self._keep_asked,
            lambda _: "the registry did not say in time how to log in",
            in_turn=True,
        )

    def header(self, turn: Turn) -> str:
        """Return the Authorization value for a first attempt, or "" to send none.

        A login is shown from the first request on, if the registry asks for one at its root.
        Without one, a token is fetched only to replace one that is about to expire, or that was
        issued to other credentials. Raises Denied, CredentialsUnavailable and ProtocolViolation as
        `renew` does, and what `learn` raises.
        """
        with self._lock:
            is_known = turn.scope in self._keys
        if not is_known and not self.credentials.providers:
            return ""
        login = self._login(turn)
        if not is_known and login is not None and not login.token:
            self._learned(turn)
        return self._value(login, turn)

    def instead(self, turn: Turn, forbidden: str) -> str:
        """Return the Authorization value to try in place of one that was answered with 403.

        It is the same where there is no other. Amazon ECR answers an expired login with 403, so a
        helper is asked once more (`credential_helpers`). Raises the errors of `renew`.
        """
        if not forbidden or self.credentials.static:
            return forbidden
        login = self.credentials.login(turn.repository, turn.deadline)
        value = self._value(login, turn)
        if value == forbidden and login is not None:
            another = self.credentials.after_forbidden(login, turn.repository, turn.deadline)
            if another is not None:
                value = self._value(another, turn)
        return value or forbidden

    def renew(self, turn: Turn, challenge: str, refused: str, sent_at: float) -> str:
        """Return the Authorization value that answers a 401, or "" if there is none to offer.

        `challenge` is the WWW-Authenticate header, `refused` the value that was sent with the
        request. A token is used only if it was requested after `sent_at` (monotonic seconds).
        Raises Denied if the token server refuses the credentials, CredentialsUnavailable if there
        are none that the registry takes, ProtocolViolation for a token server that must not see
        them and for an answer without a token.
        """
        asked = answerable(challenge)
        if asked.scheme not in ("bearer", "basic") and not self.credentials.static:
            return ""
        login = self.credentials.login(turn.repository, turn.deadline)
        if login is not None and login.token:
            return self._value(login, turn)
        if asked.scheme == "basic":
            with self._lock:
                self._asked_of_all = asked
            return self._basic(login, turn, refused)
        # Quay and pulp name no scope: then ask for the one that the request needs.
        key = self._key(asked, asked.parameters.get("scope") or token_scope(turn.scope))
        with self._lock:
            self._keys[turn.scope] = key
            if self._asked_of_all is not None and self._asked_of_all.scheme == "basic":
                self._asked_of_all = asked
        return self._bearer(replace(key, login=login), sent_at, turn)

    def bearer_for(
        self, salt: bytes, repository: str, deadline: float, besides: tuple[bytes, ...] = ()
    ) -> Bearer:
        """Return who reads a repository now, as told by the login and what is shown `besides`.

        May run a helper; raises CredentialsUnavailable and DeadlineExceeded.
        """
        login = None
        if self.credentials.providers:
            # Where a helper for all registries fails, only what is public is read.
            with suppress(StoreFailed):
                login = self.credentials.login(repository, deadline)
        return _bearer_of(salt, login, besides)

    def redact(self, text: str, authorization: str) -> str:
        """Return text from a server without the credentials, should it have sent them back.

        `authorization` was sent with the request that the text answers.
        """
        secrets = self.credentials.secrets() | {authorization.partition(" ")[2]} - {""}
        for secret in sorted(secrets, key=len, reverse=True):
            text = text.replace(secret, "***")
        return text

    def token_expiry(self) -> float | None:
        """Return when the last of the tokens in use expires, as Unix time; None without one."""
        with self._lock:
            ends = [token.expires_at for token in self._tokens.values() if token.value]
        return time.time() + max(ends) - time.monotonic() if ends else None

    def _value(self, login: Login | None, turn: Turn) -> str:
        """Return the Authorization value for a login, given what the registry has asked for."""
        if login is not None and login.token:
            self.credentials.used(login)
            return f"Bearer {login.token}"
        with self._lock:
            key, asked = self._keys.get(turn.scope), self._asked_of_all
        if asked is not None and asked.scheme == "basic":
            return self._basic(login, turn, "")
        if key is None:
            if login is None or asked is None or not asked.scheme:
                return ""
            # Some registries name a scope at the root too, and do not mean it.
            wanted = token_scope(turn.scope) or asked.parameters.get("scope", "")
            key = self._key(asked, wanted)
        return self._bearer(replace(key, login=login), 0.0, turn)

    def _login(self, turn: Turn) -> Login | None:
        """Return the login, if there is one.

        Where it is unavailable, a registry that is down is reported first, as that is the outage,
        and a helper may need the same network. A failing helper for all registries does not matter
        to a registry that asks nobody for a login; others may show the public less.
        """
        try:
            return self.credentials.login(turn.repository, turn.deadline)
        except CredentialsUnavailable as error:
            required = self.credentials.static or self._learned(turn).scheme
            if required or not isinstance(error, StoreFailed):
                raise
            return None

    def _learned(self, turn: Turn) -> Challenge:
        """Return what the registry asks of everybody; the first thread to need it finds it out."""
        look, work = lambda: self._asked_of_all, lambda: answerable(turn.learn())
        return self._learning.do(None, look, work, turn.deadline)

    def _keep_asked(self, _: None, asked: Challenge) -> None:
        self._asked_of_all = asked

    def _key(self, asked: Challenge, scope: str) -> TokenKey:
        """Return the key of the token to request; raises where the registry offers no Bearer."""
        if asked.scheme != "bearer":
            raise CredentialsUnavailable(Cause.NO_COMMON_SCHEME.told(offered=asked.scheme))
        realm = checked_realm(asked.parameters.get("realm", ""), self._registry_scheme)
        return TokenKey(realm, asked.parameters.get("service", ""), scope, None)

    def _basic(self, login: Login | None, turn: Turn, refused: str) -> str:
        """Return the Authorization value for Basic, other than the one `refused` if possible."""
        if login is not None and login.basic() == refused:
            login = self.credentials.after_refusal(login, turn.repository, turn.deadline) or login
        if login is None:
            return ""
        value = login.basic()
        if not value:
            raise CredentialsUnavailable(Cause.PASSWORD_WANTED.told(account=login))
        self.credentials.used(login)
        return value

    def _bearer(self, key: TokenKey, asked_since: float, turn: Turn) -> str:
        """Return the Authorization value for a token requested no earlier than `asked_since`.

        If the token server refuses the credentials, they are looked up again and retried once.
        """
        try:
            token = self._token(key, asked_since, turn)
        except Denied:
            if key.login is None:
                raise
            another = self.credentials.after_refusal(key.login, turn.repository, turn.deadline)
            if another is None:
                raise
            token = self._token(replace(key, login=another), asked_since, turn)
        return f"Bearer {token.value}" if token.value else ""

    def _token(self, key: TokenKey, asked_since: float, turn: Turn) -> Token:
        def look() -> Token | None:
            token = self._tokens.get(key)
            return token if token is not None and token.usable(asked_since) else None

        return self._fetching.do(key, look, partial(self._asked, key, turn), turn.deadline)

    def _asked(self, key: TokenKey, turn: Turn) -> Token:
        """Get a token.

        Without credentials some servers issue no token at all, yet the registry may answer
        anonymous requests; that is remembered, so that not every request asks again.
        """
        if key.login is not None:
            self.credentials.used(key.login)
            if key.login.identity_token:
                return self._refreshed(key, key.login, turn)
        try:
            return ask(key, turn.fetch)
        except Denied:
            if key.login is not None:
                raise
            now = time.monotonic()
            return Token("", now, now + SHORTEST_LIFE)

    def _refreshed(self, key: TokenKey, login: Login, turn: Turn) -> Token:
        """Get a token for an identity token, or for the one that replaced it."""
        original = login.identity_token
        with self._refresh_tokens.held(key.realm, original, turn.deadline) as chain:
            self.credentials.keep_secret(chain.token)
            shown = replace(key, login=replace(login, identity_token=chain.token))
            token = ask(shown, turn.fetch)
            if token.refresh_token:
                chain.token = token.refresh_token
                self.credentials.keep_secret(chain.token)
        return token


@lru_cache(100)
def _bearer_of(salt: bytes, login: Login | None, besides: tuple[bytes, ...]) -> Bearer:
    """Return who shows a login; remembered, as the hash is slow on purpose."""
    if login is None and not besides:
        return Bearer("", "")
    token = login.token if login else ""
    who = [login.username, login.password, login.identity_token] if login and not token else []
    shown = json.dumps([token, who, [one.hex() for one in besides]])
    fingerprint = hashlib.scrypt(shown.encode(), salt=salt, n=2**14, r=8, p=1).hex()
    return Bearer(str(login or ""), fingerprint)
