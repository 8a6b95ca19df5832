"""Logins, and the files they are kept in: docker's, podman's, and those of one secret.

Sources: containers-auth.json(5) for `auths` and its keys; Docker's documentation of "docker login"
for `credsStore` and `credHelpers`. Within one file the first of these that has an answer wins: the
helper that `credHelpers` names for the registry, in place of the file's own entries; the entry of
`auths` with the longest key; the helper of `credsStore`, which keeps everything.

With a helper, `docker login` gives it the secret and leaves an empty entry in `auths` (docker/cli,
`nativeStore.Store`), which `docker logout` removes. So an empty entry says that there is a login:
where no helper has it, docker goes on anonymously, and we do not.

Passwords are bytes in an encoding that nobody has agreed on (RFC 7617, section 2.1): what is not
UTF-8 is kept as surrogate escapes, and sent as it was.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epochfs.client.hosts import DOCKER_HUB, DOCKER_HUB_NAMES
from epochfs.errors import CredentialsUnavailable, printable

MAX_FILE_BYTES = 1024 * 1024
MAX_PASSWORD_BYTES = 64 * 1024

UNDECODED = "surrogateescape"
"""How to encode and decode text that may hold bytes that are not UTF-8."""

HEADER_SAFE = re.compile(r"[!-~]{1,65536}\Z")
"""What a token must look like to be sent in a header."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_API = re.compile(r"https?://[^/]*(?:/(?:v[12]/?)?)?\Z", re.IGNORECASE)
_HUB_NAMES = DOCKER_HUB_NAMES | {"registry.hub.docker.com"}
_HUB_SERVER = "https://index.docker.io/v1/"
"""What `auths` and helpers have called Docker Hub since its first version."""


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials; `source` says where they come from, for people.

    An `identity_token` stands for user name and password at a token server, and nowhere else. A
    `token` is sent to the registry as it is.
    """

    source: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Return the Basic Authorization value (RFC 7617), or "" if there is no password."""
        if not self.password:
            return ""
        pair = f"{self.username}:{self.password}".encode("utf-8", UNDECODED)
        return f"Basic {base64.b64encode(pair).decode('ascii')}"

    def secrets(self) -> set[str]:
        """Return every text that must not be shown."""
        pair = self.basic().partition(" ")[2]
        return {self.password, self.identity_token, self.token, pair} - {""}

    def __str__(self) -> str:
        if self.token:
            return self.source
        return f"as {printable(self.username) or 'the owner of a token'}, {self.source}"


@dataclass(frozen=True, slots=True)
class Helper:
    """A program to ask, `docker-credential-<name>`, about `server`; `source` is the file's path.

    It is `dedicated` if the user named it for this registry, or logged in with it, so that it must
    know; others are named for all registries.
    """

    name: str
    server: str
    source: str
    dedicated: bool


Candidate = Login | Helper | CredentialsUnavailable
"""A login, a helper that may have one, or the error to raise if nothing else has one."""


@dataclass(frozen=True, slots=True)
class AuthFile:
    """The content of one file; the keys of `entries` and `helpers` are normalized."""

    path: Path
    entries: Mapping[str, object]
    helpers: Mapping[str, object]
    store: str

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> AuthFile:
        """Parse a file's content; raises CredentialsUnavailable, without quoting any of it."""
        try:
            document = json.loads(raw)
        except (ValueError, RecursionError):
            raise malformed(path, "it is not JSON") from None
        if not isinstance(document, dict):
            raise malformed(path, "it is not a JSON object")
        store = document.get("credsStore") or ""
        if not isinstance(store, str):
            raise malformed(path, "its credsStore is not a name")
        return cls(
            path, _section(path, document, "auths"), _section(path, document, "credHelpers"), store
        )

    def find(self, registries: Sequence[str], repository: str) -> Iterator[Candidate]:
        """Yield what may have the credentials for a repository, best first; last an error, where an
        entry says that there is a login.

        `registries` are the registry's names, `host[:port]`; an empty `repository` stands for
        the registry as a whole. Raises CredentialsUnavailable for a malformed entry.
        """
        names = [normal_key(registry) for registry in registries]
        segments = repository.split("/") if repository else []
        keys = (
            "/".join([name, *segments[:n]]) for n in range(len(segments), -1, -1) for name in names
        )
        entries = [key for key in keys if key in self.entries]
        named = next((name for name in names if self.helpers.get(name)), None)
        login = None
        if named is None:
            login = next(filter(None, map(self._login, entries)), None)
            if login is not None:
                yield login
        helper = self.store if named is None else self.helpers[named]
        if helper:
            name = named or names[0]
            if not isinstance(helper, str):
                raise malformed(self.path, f"the helper of {printable(name)} is not a name")
            server = _HUB_SERVER if name == DOCKER_HUB else name
            dedicated = named is not None or (bool(entries) and login is None)
            yield Helper(helper, server, printable(self.path), dedicated)
        if entries and login is None:
            shown = printable(entries[0])
            what = f"the entry of {shown} is empty"
            if helper:
                what = f"docker-credential-{printable(helper)} has none for the entry of {shown}"
            yield malformed(self.path, f"{what}: log in again, or log out")

    def _login(self, key: str) -> Login | None:
        """Return the credentials of an entry; None if it has none, as with a helper."""
        entry = self.entries[key]
        if entry is None:
            return None
        try:
            if not isinstance(entry, dict):
                raise ValueError
            username, password = _text(entry, "username"), _text(entry, "password")
            if pair := _text(entry, "auth"):
                username, password = _decoded(pair)
            token = _text(entry, "identitytoken")
        except ValueError:
            raise malformed(self.path, f"the entry of {printable(key)}") from None
        if not password and not token:
            return None
        return Login(f"from {printable(self.path)}", username, password, token)


def normal_key(key: str) -> str:
    """Return a key as `host[:port]` or `host[:port]/path`, with one name for Docker Hub.

    A URL stands for its host: Docker once wrote those of its API.
    """
    text = _SCHEME.sub("", key, count=1)
    host, _, path = text.partition("/")
    host = host.lower()
    if host in _HUB_NAMES:
        host = DOCKER_HUB
    path = path.strip("/") if text == key else ""
    return f"{host}/{path}" if path else host


def _section(path: Path, document: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a section of a file, by normal keys; of two that are the same, the one that is no URL.

    The URL of an API wins over others: docker keeps more about a login to its Hub under URLs such
    as `https://index.docker.io/v1/access-token`.
    """
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise malformed(path, f"its {name} is not a JSON object")
    best_last = sorted(section, key=lambda key: (not _SCHEME.match(key), bool(_API.match(key))))
    return {normal_key(key): section[key] for key in best_last}


def _text(entry: Mapping[str, object], name: str) -> str:
    """Return a field's text, "" if it is absent; raises ValueError unless it is Unicode text."""
    value = entry.get(name) or ""
    if not isinstance(value, str):
        raise ValueError
    value.encode()
    return value


def _decoded(pair: str) -> tuple[str, str]:
    """Return user name and password from base64; raises ValueError if they are malformed.

    Docker once padded the password with NULs; base64(1) and others break lines.
    """
    raw = base64.b64decode("".join(pair.split()), validate=True)
    username, colon, password = raw.decode("utf-8", UNDECODED).partition(":")
    if not colon:
        raise ValueError
    return username, password.rstrip("\0")


def malformed(path: Path, what: str) -> CredentialsUnavailable:
    """Return the error for a file that cannot be used, and why."""
    return CredentialsUnavailable(f"the credentials in '{printable(path)}' cannot be used: {what}")


def read_password(file: Path) -> str:
    """Return a file's text less one newline at its end.

    Raises CredentialsUnavailable, without the text, for a file that cannot be read or is empty.
    """
    shown = f"password file '{printable(file)}'"
    return _not_empty(_read(file, shown).removesuffix("\n").removesuffix("\r"), shown)


def read_token(file: Path) -> str:
    """Return a file's text without the space around it; raises as `read_password`."""
    shown = f"token file {printable(file)}"
    return _not_empty(_read(file, shown).strip(), shown)


def _read(file: Path, shown: str) -> str:
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_PASSWORD_BYTES + 1)
    except OSError as error:
        raise CredentialsUnavailable(f"cannot read the {shown}: {error.strerror}") from None
    if len(raw) > MAX_PASSWORD_BYTES:
        raise CredentialsUnavailable(f"the {shown} is over {MAX_PASSWORD_BYTES} bytes")
    return raw.decode("utf-8", UNDECODED)


def _not_empty(secret: str, shown: str) -> str:
    if not secret:
        raise CredentialsUnavailable(f"the {shown} is empty")
    return secret
