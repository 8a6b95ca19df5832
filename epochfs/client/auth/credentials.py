"""The user's credentials: those given for this registry, else the first that a file has.

Locks: `CredentialStore._lock` guards the secrets that were handed out; nothing is called under it.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

from cachetools import LRUCache

from epochfs.client.auth.credential_helpers import Helpers, StoreFailed
from epochfs.client.auth.login_files import (
    HEADER_SAFE,
    AuthFiles,
    Bearer,
    Helper,
    Login,
    Unusable,
    read_password,
    read_token,
)
from epochfs.config import Credentials
from epochfs.errors import CredentialsUnavailable, printable

ANONYMOUS = "anonymous"
"""What `describe` says where no credentials were used."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_REMEMBERED = 100
"""How many of the secrets that were handed out are remembered, to be taken out of texts; and how
many slow hashes, not to be slow again."""


class CredentialStore:
    """The credentials for one registry, at `base_url`; safe under threads."""

    def __init__(self, credentials: Credentials, base_url: str) -> None:
        self._given = credentials
        self._password = credentials.password
        self._files = AuthFiles(credentials.auth_files)
        self._helpers = Helpers()
        self._names = _registry_names(base_url)
        self._lock = threading.Lock()
        self._secrets: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self._last: Login | None = None

    @property
    def static(self) -> bool:
        """Whether a token was given, which is sent as it is."""
        return bool(self._given.token) or self._given.token_file is not None

    def bearer(self) -> str:
        """Return the static token, or "" if there is none.

        Raises CredentialsUnavailable for one that cannot be read or sent.
        """
        token, file = self._given.token.strip(), self._given.token_file
        if file is not None:
            token = read_token(file)
        if token and not HEADER_SAFE.match(token):
            source = "registry token" if file is None else f"token file {printable(file)}"
            raise CredentialsUnavailable(f"the {source} holds spaces or characters outside ASCII")
        return token

    def login(self, repository: str, deadline: float) -> Login | None:
        """Return the credentials for a repository ("": for the registry itself), or None.

        May run a helper, until `deadline` on the monotonic clock. Raises CredentialsUnavailable for
        credentials that are empty, and for a file or a helper that should have them and fails;
        StoreFailed for a helper that may have them; DeadlineExceeded.
        """
        login = self._find(repository, deadline)
        if login is not None:
            self.keep_secret(*login.secrets())
        return login

    def keep_secret(self, *secrets: str) -> None:
        """Take these out of texts from now on."""
        with self._lock:
            self._secrets.update(dict.fromkeys(secrets))

    def used(self, login: Login) -> None:
        """Take note that a login is shown to the registry or its token server."""
        with self._lock:
            self._last = login

    def unused(self) -> str:
        """Return what was given to log in with and has not been shown to anybody, or ""."""
        with self._lock:
            shown = self._last is not None
        return "" if shown or self.static else self._given.given

    def after_refusal(self, refused: Login, repository: str, deadline: float) -> Login | None:
        """Return what to try in place of credentials that were refused, or None; as `login`."""
        self._helpers.refuse(refused)
        if refused == self._as_given():
            self._read_password_again()
        login = self.login(repository, deadline)
        return None if login == refused else login

    def after_forbidden(self, shown: Login, repository: str, deadline: float) -> Login | None:
        """Return what to try in place of credentials that were answered with 403, or None.

        That may be no word on the credentials, so little is done for it. Raises as `login`.
        """
        self._helpers.doubt(shown, deadline)
        if shown == self._as_given():
            with suppress(CredentialsUnavailable):
                self._read_password_again()
        login = self.login(repository, deadline)
        return None if login == shown else login

    def bearer_for(
        self, salt: bytes, repository: str, deadline: float, besides: Sequence[bytes] = ()
    ) -> Bearer:
        """Return who reads a repository now, with what is shown `besides` counted in.

        May run a helper, and raises what `login` does.
        """
        token, login = self.bearer(), None
        if not token:
            # Where a helper for all registries fails, what is read is what anybody may read.
            with suppress(StoreFailed):
                login = self._find(repository, deadline)
        who = [login.username, login.password, login.identity_token] if login else []
        principal = self.describe() if token else str(login or "")
        if not (token or who or besides):
            return Bearer("", "")
        shown = json.dumps([token, who, [one.hex() for one in besides]])
        return Bearer(principal, _slow_hash(salt, shown))

    def secrets(self) -> set[str]:
        """Return the secrets handed out of late, and those that were given."""
        with self._lock:
            return {*self._secrets, self._given.password, self._given.token.strip()} - {""}

    def describe(self) -> str:
        """Return in whose name requests are made, as far as any had to be."""
        if self._given.token_file is not None:
            return f"with the token in {printable(self._given.token_file)}"
        if self._given.token:
            return "with a token, as given"
        with self._lock:
            return str(self._last) if self._last is not None else ANONYMOUS

    def _as_given(self) -> Login:
        return Login("as given", self._given.username, self._password)

    def _read_password_again(self) -> None:
        """Read the file of the password again, if it is still one: it may have been a pipe."""
        file = self._given.password_file
        if file is not None and file.is_file():
            self._password = read_password(file)
            self.keep_secret(self._password)

    def _find(self, repository: str, deadline: float) -> Login | None:
        given = self._given
        if given.username or given.password:
            if not self._password:
                raise CredentialsUnavailable(f"no password is given for {given.given}")
            return self._as_given()
        if self.static:
            return None  # whatever the file holds just now, nothing else was meant
        failures: list[CredentialsUnavailable] = []
        for found in self._files.find(self._names, repository or given.prefix):
            try:
                login = self._login_of(found, deadline)
            except StoreFailed as error:
                failures.append(error)
            else:
                if login is not None:
                    return login
                if isinstance(found, Unusable):
                    failures.insert(0, CredentialsUnavailable(found.why))
        if failures:
            raise failures[0]
        return None

    def _login_of(self, found: Login | Helper | Unusable, deadline: float) -> Login | None:
        if isinstance(found, Helper):
            return self._helpers.login(found, deadline)
        return found if isinstance(found, Login) else None


@lru_cache(_REMEMBERED)
def _slow_hash(salt: bytes, secret: str) -> str:
    return hashlib.scrypt(secret.encode(), salt=salt, n=2**14, r=8, p=1).hex()


def _registry_names(base_url: str) -> tuple[str, ...]:
    """Return what the registry may be called in a file: with the port, if it is the default one."""
    parts = urlsplit(base_url)
    host = parts.hostname or ""
    host = f"[{host}]" if ":" in host else host
    default = _DEFAULT_PORTS.get(parts.scheme, 0)
    port = parts.port or default
    with_port = f"{host}:{port}"
    return (host, with_port) if port == default else (with_port,)
