"""The files in which docker and podman keep credentials: `config.json` and `auth.json`.

Sources: containers-auth.json(5) for `auths` and its keys; Docker's documentation of
"docker login" for `credsStore` and `credHelpers`. In one file these count, the first of them that
has an answer: the helper of `credHelpers` for the registry, in place of the file's own entries;
the entry of `auths` with the longest key; the helper of `credsStore`, which keeps everything.

`docker login` with a helper gives it the secret and leaves an empty entry in `auths` (docker/cli,
`nativeStore.Store`), which `docker logout` removes. So an empty entry says that there is a login:
where no helper has it, docker goes on anonymously, and we do not.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epochfs.errors import CredentialsUnavailable, printable

MAX_FILE_BYTES = 1024 * 1024

MAX_PASSWORD_BYTES = 64 * 1024

UNDECODED = "surrogateescape"
"""How bytes that are not UTF-8 are kept in text."""

HEADER_SAFE = re.compile(r"[!-~]{1,65536}\Z")
"""What a token must look like to be sent in a header."""

_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_API = re.compile(r"https?://[^/]*(?:/(?:v[12]/?)?)?\Z", re.IGNORECASE)
_HUB = "docker.io"
_HUB_NAMES = frozenset({_HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_HUB_SERVER = "https://index.docker.io/v1/"
"""What Docker Hub is called in `auths`, and by helpers, since its first version."""


@dataclass(frozen=True, slots=True)
class Login:
    """Credentials, and in `source` where they come from, as it may be shown.

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
        """Return who this is, and from where."""
        if self.token:
            return self.source
        return f"as {printable(self.username) or 'the owner of a token'}, {self.source}"


@dataclass(frozen=True, slots=True)
class Helper:
    """A program to ask: `docker-credential-<name>`, about `server`; `source` is the file's path.

    `dedicated` says that the user named it for this registry, or has logged in by it, so that it
    must know; others are named for all registries there are.
    """

    name: str
    server: str
    source: str
    dedicated: bool


@dataclass(frozen=True, slots=True)
class Unusable:
    """An entry that says there is a login, and has none: why, should nothing else have it."""

    why: str


@dataclass(frozen=True, slots=True)
class AuthFile:
    """What one file holds; the keys of `entries` and `helpers` as `normal_key` writes them."""

    path: Path
    entries: Mapping[str, object]
    helpers: Mapping[str, object]
    store: str

    @classmethod
    def parse(cls, path: Path, raw: bytes) -> AuthFile:
        """Parse a file's content.

        Raises CredentialsUnavailable, without a word of it, if it is malformed.
        """
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

    def find(
        self, registries: Sequence[str], repository: str
    ) -> Iterator[Login | Helper | Unusable]:
        """Yield what may have the credentials for a repository, best first.

        `registries` are the registry's names, `host[:port]`; an empty `repository` stands for
        the registry as a whole. Raises CredentialsUnavailable for a malformed entry.
        """
        names = [normal_key(registry) for registry in registries]
        entries = [key for key in _keys(names, repository) if key in self.entries]
        named = next((name for name in names if self.helpers.get(name)), None)
        login = None
        if named is None:
            login = next(filter(None, map(self._login, entries)), None)
            if login is not None:
                yield login
        helper = self.store if named is None else self.helpers[named]
        if helper:
            dedicated = named is not None or (bool(entries) and login is None)
            yield self._helper(named or names[0], helper, dedicated=dedicated)
        if entries and login is None:
            yield Unusable(self._why_unusable(entries[0], helper))

    def _helper(self, registry: str, name: object, *, dedicated: bool) -> Helper:
        if not isinstance(name, str):
            raise malformed(self.path, f"the helper of {printable(registry)} is not a name")
        server = _HUB_SERVER if registry == _HUB else registry
        return Helper(name, server, printable(self.path), dedicated)

    def _why_unusable(self, key: str, helper: object) -> str:
        if helper:
            what = (
                f"docker-credential-{printable(helper)} has none for the entry of {printable(key)}"
            )
        else:
            what = f"the entry of {printable(key)} is empty"
        return str(malformed(self.path, f"{what}: log in once more, or log out"))

    def _login(self, key: str) -> Login | None:
        """Return the credentials of an entry; None if there are none, as with a helper."""
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
    """Return a key as it is compared: `host[:port]` or `host[:port]/path`.

    A URL stands for its host: Docker once wrote those of its API. Docker Hub has one name.
    """
    text = _SCHEME.sub("", key, count=1)
    host, _, path = text.partition("/")
    host = host.lower()
    if host in _HUB_NAMES:
        host = _HUB
    path = path.strip("/") if text == key else ""
    return f"{host}/{path}" if path else host


def _keys(registries: Sequence[str], repository: str) -> Iterator[str]:
    """Yield the keys that a repository's credentials may have, longest first."""
    segments = repository.split("/") if repository else []
    for count in range(len(segments), -1, -1):
        for registry in registries:
            yield "/".join([registry, *segments[:count]])


def _section(path: Path, document: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a part of a file, by normal keys; of two that are the same, the one that is no URL.

    The URL of an API comes before others: docker keeps more of a login to its Hub under such as
    `https://index.docker.io/v1/access-token`.
    """
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise malformed(path, f"its {name} is not a JSON object")
    best_last = sorted(section, key=lambda key: (not _SCHEME.match(key), bool(_API.match(key))))
    return {normal_key(key): section[key] for key in best_last}


def _text(entry: Mapping[str, object], name: str) -> str:
    """Return a field's text, "" without one; raises ValueError if it is none or not Unicode."""
    value = entry.get(name) or ""
    if not isinstance(value, str):
        raise ValueError
    value.encode()
    return value


def _decoded(pair: str) -> tuple[str, str]:
    """Return user name and password; raises ValueError if they are not encoded as they should be.

    Docker once padded the password with NULs; base64(1) and others break lines. What is not UTF-8
    is kept to be sent as it was.
    """
    try:
        raw = base64.b64decode("".join(pair.split()), validate=True)
    except binascii.Error:
        raise ValueError from None
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
    try:
        with file.open("rb") as opened:
            raw = opened.read(MAX_PASSWORD_BYTES + 1)
    except OSError as error:
        raise CredentialsUnavailable(f"cannot read the {shown}: {error.strerror}") from None
    if len(raw) > MAX_PASSWORD_BYTES:
        raise CredentialsUnavailable(f"the {shown} is over {MAX_PASSWORD_BYTES} bytes")
    password = raw.decode("utf-8", UNDECODED).removesuffix("\n").removesuffix("\r")
    if not password:
        raise CredentialsUnavailable(f"the {shown} is empty")
    return password


def read_token(file: Path) -> str:
    """Return a file's text without the space around it; raises as `read_password`."""
    shown = f"token file {printable(file)}"
    try:
        token = file.read_text("ascii").strip()
    except OSError as error:
        raise CredentialsUnavailable(f"cannot read the {shown}: {error.strerror}") from None
    except UnicodeError:
        raise CredentialsUnavailable(f"cannot read the {shown}: it is not ASCII text") from None
    if not token:
        raise CredentialsUnavailable(f"the {shown} is empty")
    return token
