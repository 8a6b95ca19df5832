"""The user's credentials for a registry: a list of providers, the first that has a login wins.

To add a source of credentials, write a `Provider` and have `_providers` list it. Nothing else asks
where a login comes from. What was given for the registry alone never reaches its mirrors: their
`Credentials` are made by `Credentials.for_other_hosts`, which names what may go there.

Locks: `CredentialStore._lock` guards the secrets that were handed out and the login shown last;
nothing is called under it. `LoginFiles` needs none: two threads that read a file keep the same.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from cachetools import LRUCache

from epochfs.client.auth.credential_helpers import Helpers, StoreFailed
from epochfs.client.auth.login_files import (
    HEADER_SAFE,
    MAX_FILE_BYTES,
    AuthFile,
    Candidate,
    Login,
    malformed,
    read_password,
    read_token,
)
from epochfs.config import DEFAULT_PORTS, Credentials, server_of
from epochfs.errors import CredentialsUnavailable, fresh, printable

_ANONYMOUS = "anonymous"
_REMEMBERED = 100
"""Most secrets handed out that are remembered, to be redacted."""

_REPOSITORIES = 1024
"""Most repositories whose logins are remembered."""


class Provider:
    """A source of logins for one registry; safe under threads."""

    account = ""
    """Whom they stand for, if that is known before one is shown."""

    def login(self, repository: str, deadline: float) -> Login | None:
        """Return the login for a repository ("": for the registry itself), or None.

        Raises CredentialsUnavailable where there should be one that cannot be had, StoreFailed
        where there may be one, and DeadlineExceeded (`deadline` is monotonic).
        """
        raise NotImplementedError

    def refused(self, login: Login) -> None:
        """Look up a refused login anew the next time: there may be another by now."""

    def doubted(self, login: Login, deadline: float) -> None:
        """Look up a login anew, with little effort: a 403 may say nothing about it."""


class GivenToken(Provider):
    """A token that is sent as it is; one in a file is read for each use, as it may be rotated."""

    def __init__(self, given: Credentials) -> None:
        self._token = given.token.strip()
        self._file = given.token_file
        source = f"the token in {printable(self._file)}" if self._file else "a token, as given"
        self.account = f"with {source}"

    def login(self, repository: str, deadline: float) -> Login | None:
        token = self._token if self._file is None else read_token(self._file)
        if token and not HEADER_SAFE.match(token):
            source = f"token file {printable(self._file)}" if self._file else "registry token"
            raise CredentialsUnavailable(f"the {source} holds spaces or characters outside ASCII")
        return Login(self.account, token=token) if token else None


class GivenLogin(Provider):
    """A user name and password; a refused password is read again from its file, if it has one."""

    def __init__(self, given: Credentials) -> None:
        self._given = given
        self._login = Login("as given", given.username, given.password)

    def login(self, repository: str, deadline: float) -> Login | None:
        if not self._login.password:
            raise CredentialsUnavailable(f"no password was given for {self._given.given}")
        return self._login

    def refused(self, login: Login) -> None:
        file = self._given.password_file
        # A pipe cannot be read again.
        if login == self._login and file is not None and file.is_file():
            self._login = replace(login, password=read_password(file))

    def doubted(self, login: Login, deadline: float) -> None:
        with suppress(CredentialsUnavailable):
            self.refused(login)


@dataclass(frozen=True, slots=True)
class _Read:
    """A file as it was when it had this `signature`, and what was found in it by repository."""

    signature: tuple[int, int, int]
    file: AuthFile
    found: dict[str, tuple[Candidate, ...]]


class LoginFiles(Provider):
    """The files of docker and podman, read again when they change, and the helpers they name.

    The registry itself is asked as a reader of the repository `prefix`.
    """

    def __init__(self, given: Credentials, base_url: str) -> None:
        self._paths = given.auth_files
        self._prefix = given.prefix
        self._names = _registry_names(base_url)
        self._helpers = Helpers()
        self._read: dict[Path, _Read] = {}

    def login(self, repository: str, deadline: float) -> Login | None:
        failures: list[CredentialsUnavailable] = []
        for found in self._candidates(repository or self._prefix):
            if isinstance(found, Login):
                return found
            if isinstance(found, CredentialsUnavailable):
                failures.insert(0, found)
                continue
            try:
                if login := self._helpers.login(found, deadline):
                    return login
            except StoreFailed as error:
                failures.append(error)
        if failures:
            raise fresh(failures[0])
        return None

    def refused(self, login: Login) -> None:
        self._helpers.refuse(login)

    def doubted(self, login: Login, deadline: float) -> None:
        self._helpers.doubt(login, deadline)

    def _candidates(self, repository: str) -> Iterator[Candidate]:
        """Yield what `AuthFile.find` finds in the files that are there, as they are now."""
        for path in self._paths:
            try:
                status = path.stat()
                if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                    raise malformed(path, f"it is no regular file of up to {MAX_FILE_BYTES} bytes")
                signature = (status.st_ino, status.st_mtime_ns, status.st_size)
                known = self._read.get(path)
                if known is None or known.signature != signature:
                    with path.open("rb") as opened:
                        file = AuthFile.parse(path, opened.read(MAX_FILE_BYTES))
                    known = self._read[path] = _Read(signature, file, {})
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                raise malformed(path, error.strerror or "it cannot be read") from None
            found = known.found.get(repository)
            if found is None:
                if len(known.found) >= _REPOSITORIES:
                    known.found.clear()
                found = known.found[repository] = tuple(known.file.find(self._names, repository))
            yield from found


def _providers(given: Credentials, base_url: str) -> list[Provider]:
    """Return what is asked for a login, in order; what was given excludes what can be found."""
    if given.is_token:
        return [GivenToken(given)]
    if given.username or given.password:
        return [GivenLogin(given)]
    return [LoginFiles(given, base_url)] if given.auth_files else []


class CredentialStore:
    """The credentials for one registry; thread-safe. `static`: a given token is sent as it is."""

    def __init__(self, credentials: Credentials, base_url: str) -> None:
        self.providers = _providers(credentials, base_url)
        self.static = credentials.is_token
        self._given = credentials
        self._lock = threading.Lock()
        self._secrets: LRUCache[str, None] = LRUCache(_REMEMBERED)
        self._noted: Login | None = None
        self._last: Login | None = None

    def login(self, repository: str, deadline: float) -> Login | None:
        """Return the first login that a provider has, or None; raises what they do.

        May run a helper, until `deadline` on the monotonic clock.
        """
        for provider in self.providers:
            login = provider.login(repository, deadline)
            if login is not None:
                if login != self._noted:
                    self.keep_secret(*login.secrets())
                    self._noted = login
                return login
        return None

    def keep_secret(self, *secrets: str) -> None:
        """Redact these from now on."""
        with self._lock:
            self._noted = None
            self._secrets.update(dict.fromkeys(secrets))

    def used(self, login: Login) -> None:
        """Record that a login is shown to the registry or its token server."""
        with self._lock:
            self._last = login

    def after_refusal(self, refused: Login, repository: str, deadline: float) -> Login | None:
        """Return what to try in place of credentials that were refused, or None; as `login`."""
        for provider in self.providers:
            provider.refused(refused)
        login = self.login(repository, deadline)
        return None if login == refused else login

    def after_forbidden(self, shown: Login, repository: str, deadline: float) -> Login | None:
        """Return what to try in place of credentials that were answered with 403; as `login`."""
        for provider in self.providers:
            provider.doubted(shown, deadline)
        login = self.login(repository, deadline)
        return None if login == shown else login

    def secrets(self) -> set[str]:
        """Return the secrets that were given, and those handed out recently."""
        with self._lock:
            return {*self._secrets, self._given.password, self._given.token.strip()} - {""}

    def unused(self) -> str:
        """Return the given credentials that have not been shown to anybody, or ""."""
        with self._lock:
            shown = self._last is not None
        return "" if shown or self.static else self._given.given

    def describe(self) -> str:
        """Return in whose name requests are made, and where the credentials come from."""
        with self._lock:
            if self._last is not None:
                return str(self._last)
        return next((one.account for one in self.providers if one.account), _ANONYMOUS)

    @property
    def anonymous(self) -> bool:
        """Whether no credentials have been shown to anybody."""
        return self.describe() == _ANONYMOUS


def _registry_names(base_url: str) -> tuple[str, ...]:
    """Return what the registry may be called in a file: with its port, or without the default."""
    scheme, host, port = server_of(base_url)
    name = f"[{host}]" if host and ":" in host else host or ""
    with_port = f"{name}:{port}"
    return (name, with_port) if port == DEFAULT_PORTS.get(scheme) else (with_port,)
