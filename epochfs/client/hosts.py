"""The hosts of a registry, as containerd's `hosts.toml` has them: its mirrors, and how to reach
each.

The directory that `--hosts-dir` names holds one directory for each registry, named after the
registry's **namespace**: its host, with its port if the URL has one. The first of these that exists
is used, whatever is in it: `host_port_`, `host:port`, `_default`. In it, `hosts.toml` names mirrors
and the registry's own address; without that file, `*.crt` are CAs, and `*.cert` with `*.key` client
certificates, as in Docker's layout.

The format and its rules are containerd's (docs/hosts.md there), except for what `epochfs help
mirrors` says, and:

- A file that cannot be read as intended is a UsageError, where containerd goes on without it.
  Unknown keys are ignored, with a warning.
- `header` goes to its host, not to the token server which that host names.
- An entry with the registry's own address is not a mirror: it says how to speak to the registry.
  What it leaves out is taken from the top of the file.
- The registry itself is trusted with everything, whatever the file's `capabilities` are.
- `docker.io`, `index.docker.io` and `registry-1.docker.io` are one registry: its namespace is the
  first, its address the last.
"""

from __future__ import annotations

import enum
import ipaddress
import logging
import posixpath
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from epochfs.config import RegistryUrl, TransportOptions, parse_seconds, server_of
from epochfs.errors import UsageError, printable, printable_url

log = logging.getLogger(__name__)

DEFAULT_DIRECTORY = Path("/etc/containerd/certs.d")
"""Where containerd looks."""

_FILE_LIMIT = 1024 * 1024

API_ROOT = "/v2"

DOCKER_HUB = "docker.io"
"""The namespace of Docker Hub."""

DOCKER_HUB_SERVER = "registry-1.docker.io"
DOCKER_HUB_NAMES = frozenset({DOCKER_HUB, "index.docker.io", DOCKER_HUB_SERVER})

_URL = re.compile(
    r"(?:(https?)://)?(\[[0-9a-f:.]+\]|[0-9a-z._~-]+)(?::(\d{1,5}))?(/[\w.~!$&'()*+,;=:@%/-]*)?\Z",
    re.IGNORECASE | re.ASCII,
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+\Z")
_FIELD_VALUE = re.compile(r"[ -~\t]*\Z")
_OUR_HEADERS = frozenset(
    {"accept-encoding", "connection", "content-length", "host", "range", "transfer-encoding"}
)
"""Headers that frame a message or say what is asked for, which no file may set."""

_DURATION_PART = r"\d+(?:\.\d+)?(?:ms|h|m|s)"
_DURATION = re.compile(rf"(?:{_DURATION_PART})+\Z")

_T = TypeVar("_T")


class Capability(enum.Enum):
    """What a host is trusted with; nothing is ever pushed to a mirror, so `push` means nothing.

    `PULL`: content, verified by its digest. `RESOLVE`: statements that nothing verifies, such as
    which digest a tag has now.
    """

    PULL = "pull"
    RESOLVE = "resolve"


ALL_CAPABILITIES = frozenset(Capability)


@dataclass(frozen=True, slots=True)
class HostConfig:
    """A host and how to speak to it: `base` is its URL without path, `root` where its API begins.

    `headers` may hold credentials, and are for this host only. `skip_verify` None: not stated.
    """

    base: str
    root: str = API_ROOT
    capabilities: frozenset[Capability] = ALL_CAPABILITIES
    ca_certs: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path | None], ...] = ()
    skip_verify: bool | None = None
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    connect_timeout: float | None = None

    @classmethod
    def at(cls, base: str, root: str = API_ROOT) -> HostConfig:
        """Return a host with defaults only; Docker Hub's, whichever of its names is given."""
        scheme, _, address = base.partition("://")
        return cls(f"{scheme}://{DOCKER_HUB_SERVER}" if address in DOCKER_HUB_NAMES else base, root)

    @property
    def url(self) -> str:
        """The host as it is shown: with the path in front of its API, if any."""
        return f"{self.base}{self.root.removesuffix(API_ROOT)}"

    def options(self, given: TransportOptions, namespace: str) -> TransportOptions:
        """Return `given`, which takes precedence, completed with what is known of this host.

        A host of another name, which may serve many registries, is told the `namespace`.
        """
        address = urlsplit(self.base).netloc
        same = address == (DOCKER_HUB_SERVER if namespace == DOCKER_HUB else namespace)
        verify = given.tls_verify
        if verify is None and self.skip_verify is not None:
            verify = not self.skip_verify
        return replace(
            given,
            ca_certs=given.ca_certs + self.ca_certs,
            client_certs=given.client_certs or self.client_certs,
            tls_verify=verify,
            connect_timeout=self.connect_timeout or given.connect_timeout,
            root=self.root,
            namespace="" if same else namespace,
            headers=self.headers,
        )


@dataclass(frozen=True, slots=True)
class RegistryHosts:
    """The hosts of one registry: `mirrors` in the order to try them, then `origin`, its own.

    `elsewhere` says that the file names another server than the user's URL, or plain http for
    https: then the login that the user gave is not meant for it.
    """

    namespace: str
    origin: HostConfig
    mirrors: tuple[HostConfig, ...] = ()
    elsewhere: bool = False


def find(directory: Path | None, url: RegistryUrl) -> RegistryHosts:
    """Return the hosts of a registry, as found in `directory`; raises UsageError if unusable."""
    address = urlsplit(url.base).netloc
    namespace = DOCKER_HUB if address in DOCKER_HUB_NAMES else address
    plain = RegistryHosts(namespace, HostConfig.at(url.base))
    if directory is None:
        return plain
    try:
        for name in (*_names(address), *_names(namespace), "_default"):
            if (directory / name).exists():
                return _load(directory / name, plain)
    except OSError as error:
        raise UsageError(f"cannot read '{printable(error.filename)}': {error.strerror}") from None
    return plain


def _names(address: str) -> list[str]:
    """Return what the directory of a host may be called, the first choice first."""
    host, colon, port = address.rpartition(":")
    return [f"{host}_{port}_", address] if colon and port.isdigit() else [address]


def _load(directory: Path, plain: RegistryHosts) -> RegistryHosts:
    file = directory / "hosts.toml"
    raw = b""
    if file.exists():
        with file.open("rb") as opened:
            raw = opened.read(_FILE_LIMIT + 1)
    if not raw:
        return replace(plain, origin=_with_certificates(plain.origin, directory))
    if len(raw) > _FILE_LIMIT:
        raise UsageError(f"'{printable(file)}' is over {_FILE_LIMIT} bytes")
    try:
        document = tomllib.loads(raw.decode())
    except RecursionError:
        raise UsageError(f"'{printable(file)}' is nested too deeply") from None
    except ValueError as error:
        raise UsageError(f"'{printable(file)}' is not TOML: {printable(error)}") from None
    return _parse(file, document, plain)


def _with_certificates(origin: HostConfig, directory: Path) -> HostConfig:
    """Return the registry's own host with the certificates of Docker's layout."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    pairs = [(file, file.with_suffix(".key")) for file in files if file.suffix == ".cert"]
    return replace(
        origin,
        ca_certs=tuple(file for file in files if file.suffix == ".crt"),
        client_certs=tuple((file, key if key in files else None) for file, key in pairs),
    )


def _parse(file: Path, document: dict[str, object], plain: RegistryHosts) -> RegistryHosts:
    """Return the hosts of a registry, which are `plain` without the file; raises UsageError."""
    section = _Section(printable(file), file.parent, document)
    entries = section.take("host", _a(dict), "tables") or {}
    server = section.take("server", _a(str), "a URL")
    root = _api_root(section)
    origin = _address(section.what, server, root) if server else plain.origin
    origin = _described(section, origin)
    mirrors = []
    for name, table in entries.items():
        what = f"{section.what}: host {printable_url(name)}"
        if not isinstance(table, dict):
            raise UsageError(f"'{what}' must be a table")
        entry = _Section(what, section.directory, table)
        host = _described(entry, _address(what, name, _api_root(entry)))
        if (server_of(host.base), host.root) == (server_of(origin.base), origin.root):
            origin = _merged(origin, host)
        else:
            mirrors.append(host)
    origin = replace(origin, capabilities=ALL_CAPABILITIES)
    given, named = server_of(plain.origin.base), server_of(origin.base)
    elsewhere = given[1:] != named[1:] or (given[0], named[0]) == ("https", "http")
    return RegistryHosts(plain.namespace, origin, tuple(mirrors), elsewhere)


@dataclass(frozen=True, slots=True)
class _Section:
    """A table of the file; `what` names it in errors. Keys are removed as they are read."""

    what: str
    directory: Path
    table: dict[str, object]

    def take(self, key: str, read: Callable[[object], _T | None], about: str) -> _T | None:
        """Return what `read` makes of a key's value, None if there is none.

        If `read` returns None, the value is not `about`, which is an error. It does not show the
        value, as that of a header may be a secret.
        """
        if key not in self.table:
            return None
        value = read(self.table.pop(key))
        if value is None:
            raise UsageError(f"'{self.what}': {key} must be {about}")
        return value


def _merged(top: HostConfig, entry: HostConfig) -> HostConfig:
    """Return the registry's own host: what an entry says of it, and else the top of the file."""
    named = {name.lower() for name, _ in entry.headers}
    return replace(
        top,
        ca_certs=top.ca_certs + entry.ca_certs,
        client_certs=entry.client_certs or top.client_certs,
        skip_verify=top.skip_verify if entry.skip_verify is None else entry.skip_verify,
        headers=(*(one for one in top.headers if one[0].lower() not in named), *entry.headers),
        connect_timeout=entry.connect_timeout or top.connect_timeout,
    )


def _described(section: _Section, host: HostConfig) -> HostConfig:
    """Return a host with all that a section says of it."""
    if "proxy" in section.table:
        raise UsageError(f"'{section.what}': proxy is not supported, and requests would go direct")
    capabilities = section.take("capabilities", _capabilities, "a list of pull, resolve, push")
    authorities = section.take("ca", _texts, "a path or several") or ()
    certificates = section.take("client", _pairs, "paths, or pairs of paths") or ()
    host = replace(
        host,
        capabilities=ALL_CAPABILITIES if capabilities is None else capabilities,
        ca_certs=tuple(section.directory / path for path in authorities),
        client_certs=tuple(
            (section.directory / certificate, section.directory / key if key else None)
            for certificate, key in certificates
        ),
        skip_verify=section.take("skip_verify", _a(bool), "true or false"),
        headers=_headers(section),
        connect_timeout=section.take("dial_timeout", _seconds, "a time such as 500ms or 1m30s"),
    )
    for key in section.table:
        log.warning("'%s': %s is unknown, and ignored", section.what, printable(key))
    return host


def _api_root(section: _Section) -> str | None:
    """Return what to append to a host's path, None if the path is the API's root already."""
    overridden = section.take("override_path", _a(bool), "true or false")
    return None if overridden else API_ROOT


def _address(what: str, text: str, root: str | None) -> HostConfig:
    """Parse a host's URL: https if no scheme is given; a path comes before the API's."""
    match = _URL.match(text)
    if match is None or int(match[3] or 0) > 65535 or not _is_host(match[2]):
        raise UsageError(f"'{what}': no usable URL (http(s)://host[:port][/path])")
    path = posixpath.normpath(match[4] or "/").strip("/")
    path = f"/{path}" if path else ""
    if root is not None and not path.endswith(root):
        path += root
    port = f":{match[3]}" if match[3] else ""
    return HostConfig.at(f"{(match[1] or 'https').lower()}://{match[2].lower()}{port}", path)


def _is_host(text: str) -> bool:
    """Whether what looks like a host is one: brackets may hold no address."""
    try:
        return not text.startswith("[") or bool(ipaddress.IPv6Address(text.strip("[]")))
    except ValueError:
        return False


def _headers(section: _Section) -> tuple[tuple[str, str], ...]:
    """Return a section's headers; several values of one are joined (RFC 9110, section 5.3)."""
    found = []
    for name, values in (section.take("header", _a(dict), "a table") or {}).items():
        texts = _texts(values)
        if texts is None or not _TOKEN.match(name) or not all(map(_FIELD_VALUE.match, texts)):
            raise UsageError(f"'{section.what}': header {printable(name)} cannot be sent")
        if name.lower() in _OUR_HEADERS:
            log.warning("'%s': header %s is not for a file to set", section.what, printable(name))
        else:
            found.append((name, ", ".join(texts)))
    return tuple(found)


# ---- values: each returns what it reads, or None if it is of the wrong kind ----------------------


def _a(kind: type[_T]) -> Callable[[object], _T | None]:
    return lambda value: value if isinstance(value, kind) else None


def _texts(value: object) -> tuple[str, ...] | None:
    values = value if isinstance(value, list) else [value]
    texts = tuple(one for one in values if isinstance(one, str))
    return texts if len(texts) == len(values) else None


def _pairs(value: object) -> tuple[tuple[str, str], ...] | None:
    """Read certificates: each a path, or a pair of paths whose second, the key's, may be empty."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        texts = _texts(one) or ()
        if len(texts) != (2 if isinstance(one, list) else 1):
            return None
        found.append((texts[0], texts[1] if len(texts) == 2 else ""))
    return tuple(found)


def _capabilities(value: object) -> frozenset[Capability] | None:
    """Read capabilities, ignoring `push`; an empty list means all."""
    texts = _texts(value) if isinstance(value, list) else None
    if texts is None or not {text.lower() for text in texts} <= {"pull", "resolve", "push"}:
        return None
    words = {text.lower() for text in texts}
    return frozenset(one for one in Capability if one.value in words) if words else ALL_CAPABILITIES


def _seconds(value: object) -> float | None:
    """Read a duration as Go writes it."""
    if not isinstance(value, str) or not _DURATION.match(value):
        return None
    return sum(map(parse_seconds, re.findall(_DURATION_PART, value))) or None
