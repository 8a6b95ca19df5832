"""Option values, parsed once and frozen. Sizes are in bytes, times in seconds.

The environment is read by `cli` and `session.environment`, which pass on what it says.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from epochfs.errors import InvalidName, UsageError, printable, printable_url
from epochfs.oci.names import Digest, Reference, Repository, Tag

DEFAULT_URL = "http://127.0.0.1:8080"
"""Where Epoch itself listens by default."""

MAX_READ = 252 * 4096
"""The read size and read-ahead requested of the kernel, in bytes: as many pages as go through a
pipe of 1 MiB, the largest that anybody may have, beside what libfuse keeps free in it."""

LAYOUT_SCHEME = "oci:"
"""The prefix of an OCI image layout, as skopeo writes it."""

_NUMBER = r"(\d{1,18}(?:\.\d{1,18})?)"
_SIZE = re.compile(rf"{_NUMBER}\s*([KMGT]?)(?:i?B)?\Z", re.IGNORECASE)
_SECONDS = re.compile(rf"{_NUMBER}\s*(ms|s|m|h|d)?\Z", re.IGNORECASE)
_HOST = re.compile(r"[0-9a-z._~-]+|[0-9a-f:.]+", re.ASCII)
_PORT = re.compile(r"\d{1,5}", re.ASCII)
_UNITS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """Parse `10G`, `512M`, `4096` into bytes, in powers of 1024; raises UsageError."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"not a size: '{printable(text)}' (write it like 512M or 10G)")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))


def parse_seconds(text: str) -> float:
    """Parse `60`, `5m`, `24h`, `500ms` into seconds; raises UsageError."""
    match = _SECONDS.match(text.strip())
    if match is None:
        raise UsageError(f"not a duration: '{printable(text)}' (write it like 60 or 5m)")
    return float(match[1]) * _UNITS[(match[2] or "").lower()]


@dataclass(frozen=True, slots=True)
class RegistryUrl:
    """A registry: its `base` URL without a trailing slash, and what of it is meant.

    That is all of it; the repositories below a `prefix`; or with a `reference` one artifact of the
    repository `prefix`.
    """

    base: str
    prefix: Repository | None = None
    reference: Reference | None = None

    @classmethod
    def parse(cls, text: str) -> RegistryUrl:
        """Parse `[http(s)://]HOST[:PORT][/REPO[:TAG|@DIGEST]]`; raises UsageError.

        Without a scheme it is https, or http on loopback. Empty text is DEFAULT_URL.
        """
        text, digest = _split_digest(text.strip() or DEFAULT_URL)
        given = text
        if "@" in unicodedata.normalize("NFKC", text):
            raise UsageError(
                "a registry URL must not contain credentials, or any @ but that of REPO@DIGEST: "
                "use --username"
            )
        try:
            if "://" not in text:
                host = urlsplit(f"//{text}").hostname or ""
                text = f"{'http' if is_loopback(host) else 'https'}://{text}"
            parts = urlsplit(text)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            raise UsageError(
                f"not a registry URL: '{printable_url(given)}' (write HOST[:PORT], or "
                "HOST/REPO:TAG for one artifact)"
            ) from None
        known = parts.scheme in ("http", "https") and _HOST.fullmatch(host)
        if not known or parts.query or parts.fragment:
            raise UsageError(f"not a registry URL: '{printable_url(text)}' (http(s)://host[:port])")
        base = f"{parts.scheme}://{f'[{host}]' if ':' in host else host}"
        base = f"{base}:{port}" if port else base
        name, colon, tag = parts.path.strip("/").rpartition(":")
        if not colon or "/" in tag:
            name, colon = parts.path.strip("/"), ""
        try:
            tagged = Tag.parse(tag) if colon else None
            reference = digest or tagged
            prefix = Repository.parse(name) if name or reference else None
        except InvalidName as error:
            raise UsageError(str(error)) from None
        return cls(base, prefix, reference)

    @property
    def names_artifact(self) -> bool:
        """Whether one artifact is meant."""
        return self.reference is not None

    def __str__(self) -> str:
        shown = f"{self.base}/{self.prefix}" if self.prefix else self.base
        mark = "@" if isinstance(self.reference, Digest) else ":"
        return f"{shown}{mark}{self.reference}" if self.reference else shown


def _split_digest(text: str) -> tuple[str, Digest | None]:
    """Split what ends in `@DIGEST`; any other @ is left where it is."""
    before, at, after = text.rpartition("@")
    try:
        return (before, Digest.parse(after)) if at else (text, None)
    except InvalidName:
        return text, None


@dataclass(frozen=True, slots=True)
class Address:
    """An address to listen on; port 0 is any free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Parse `PORT` (on loopback), `HOST:PORT` or `[IPV6]:PORT`; raises UsageError."""
        host, _, port = text.strip().rpartition(":")
        host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
        if not (_PORT.fullmatch(port) and int(port) < 65536):
            raise UsageError(f"not an address: '{printable(text)}' (write PORT or HOST:PORT)")
        return cls(host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class LayoutPath:
    """An OCI image layout in place of a registry: `oci:DIRECTORY`.

    With a `name` in its index, or a digest, one artifact is meant: `oci:DIRECTORY:NAME`,
    `oci:DIRECTORY@DIGEST`.
    """

    directory: Path
    name: str = ""
    digest: Digest | None = None

    prefix = None

    @classmethod
    def parse(cls, text: str) -> LayoutPath:
        """Parse what is behind `oci:`; raises UsageError where it can be read in two ways."""
        before, digest = _split_digest(text)
        if digest is not None and not Path(text).exists():
            return cls(Path(before).absolute(), digest=digest)
        cuts = [len(text), *(place for place, one in enumerate(text) if one == ":")]
        found = [
            cls(Path(text[:cut]).absolute(), text[cut + 1 :])
            for cut in cuts
            if text[:cut] and Path(text[:cut]).is_dir()
        ]
        if len(found) > 1:
            readings = " and ".join(
                f"'{printable(one.name)}' in '{printable(one.directory)}'"
                if one.name
                else f"the directory '{printable(one.directory)}'"
                for one in found
            )
            raise UsageError(f"'{LAYOUT_SCHEME}{printable(text)}' can mean {readings}: rename one")
        return found[0] if found else cls(Path(text).absolute())

    @property
    def base(self) -> str:
        """The text that identifies it in files: always the same, and valid Unicode."""
        return f"{LAYOUT_SCHEME}{self.directory}".encode(errors="backslashreplace").decode()

    @property
    def names_artifact(self) -> bool:
        """Whether one artifact is meant."""
        return bool(self.name) or self.digest is not None

    def __str__(self) -> str:
        shown = f"{LAYOUT_SCHEME}{printable(self.directory)}"
        if self.digest is not None:
            return f"{shown}@{self.digest}"
        return f"{shown}:{printable(self.name)}" if self.name else shown


def is_loopback(host: str) -> bool:
    """Whether `host` can only be this machine."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Proxies:
    """The proxies of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.

    `http` and `https` are for URLs of these schemes, and may hold credentials; "" for none. Hosts
    that are `exempt` are reached directly, as this machine always is: `*`, a domain and all below
    it, an address or a network, optionally with a port.
    """

    http: str = field(default="", repr=False)
    https: str = field(default="", repr=False)
    exempt: tuple[str, ...] = ()

    def of(self, scheme: str, host: str, port: int) -> str:
        """Return the URL of a host's proxy, or ""; raises UsageError for one that is unusable."""
        proxy = self.https if scheme == "https" else self.http
        if not proxy or is_loopback(host) or any(_exempts(one, host, port) for one in self.exempt):
            return ""
        url = proxy if "://" in proxy else f"http://{proxy}"
        try:
            parts = urlsplit(url)
            usable = parts.scheme == "http" and bool(parts.hostname) and (parts.port or 80) > 0
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(
                f"{scheme.upper()}_PROXY: '{printable_url(proxy)}' cannot be used "
                f"(http://host:port), and {printable(host)} is not in NO_PROXY"
            )
        return url


def _exempts(entry: str, host: str, port: int) -> bool:
    """Whether an entry of NO_PROXY matches a host."""
    if entry == "*":
        return True
    try:
        network = ipaddress.ip_network(entry.strip("[]"), strict=False)
    except ValueError:
        name, colon, wanted = entry.rpartition(":")
        if not colon:
            name, wanted = entry, ""
        name = name.strip("[]").removeprefix("*").strip(".").lower()
        same = host == name or host.endswith(f".{name}")
        return bool(name) and same and wanted in ("", str(port))
    try:
        return ipaddress.ip_address(host) in network
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class TransportOptions:
    """How to speak to one host of a registry.

    `tls_verify` None: unless the host is loopback. `client_certs` are pairs of a certificate's file
    and its key's, None if that is the same; only this host sees them. `root` is the API's path.
    `namespace` is sent with each request to a host that may serve several registries. `headers` go
    to this host only, and may hold credentials. `proxies` also apply where it redirects us to.
    """

    timeout: float = 60.0
    connect_timeout: float = 10.0
    retries: int = 4
    ca_certs: tuple[Path, ...] = ()
    client_certs: tuple[tuple[Path, Path | None], ...] = ()
    tls_verify: bool | None = None
    pool_size: int = 32
    root: str = "/v2"
    namespace: str = ""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    proxies: Proxies = Proxies()


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the user gave to authenticate with; never logged, never shown by `repr`.

    A `token` is sent as it is in `Authorization: Bearer`, to the registry at the base URL
    `token_for` alone if that is set; a `token_file` is read for each use. A `password` that is
    refused is read again from its `password_file`. Without any of these, `auth_files` are searched:
    docker's and podman's, read again when they change. Keys in them may be scoped to a path; for
    the registry as a whole, the keys of the repository `prefix` count.
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    password_file: Path | None = None
    token: str = field(default="", repr=False)
    token_for: str = ""
    token_file: Path | None = None
    auth_files: tuple[Path, ...] = ()
    prefix: str = ""

    def for_other_hosts(self) -> Credentials:
        """Return what mirrors may see: nothing that was given for the registry itself."""
        return Credentials(auth_files=self.auth_files, prefix=self.prefix)

    @property
    def is_token(self) -> bool:
        """Whether a token was given, which excludes all else."""
        return bool(self.token) or self.token_file is not None

    def is_token_for(self, base: str) -> bool:
        """Whether the token is meant for the registry at a base URL."""
        return not self.token_for or server_of(self.token_for) == server_of(base)

    @property
    def given(self) -> str:
        """What was given explicitly, for people: no secret, "" for nothing."""
        if self.username or self.password:
            return f"the login of {printable(self.username)}"
        return "the token" if self.token or self.token_file else ""


DEFAULT_PORTS = {"http": 80, "https": 443}


def server_of(base: str) -> tuple[str, str | None, int]:
    """Return scheme, host and port of a URL, with the default port if it names none."""
    parts = urlsplit(base)
    return parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS.get(parts.scheme, 80)


@dataclass(frozen=True, slots=True)
class ListingOptions:
    """How long listings and manifests are kept, and how much of them.

    `timeout` limits all requests of one operation together, the transport's each of them. An empty
    catalog says that there is nothing only if it is believed: many registries answer so whoever may
    not list.
    """

    timeout: float = 60.0
    metadata_ttl: float = 60.0
    negative_ttl: float = 5.0
    stale_if_error: float = 86400.0
    manifest_limit: int = 4 * 1024 * 1024
    repositories: tuple[Repository, ...] = ()
    show_rootfs: bool = False
    soci_referrers: bool = False
    parallel: int = 16
    believe_empty_catalog: bool = False

    @property
    def kernel_ttl(self) -> float:
        """How long the kernel may keep an entry: a tenth of the TTL, at most 5 seconds.

        That adds to the age of the listing an entry came from, so a listing is refreshed that much
        earlier (`listing_ttl`), and the two together stay within the TTL.
        """
        return min(self.metadata_ttl / 10, 5.0)

    @property
    def listing_ttl(self) -> float:
        """How long a listing is used before the registry is asked again."""
        return self.metadata_ttl - self.kernel_ttl


@dataclass(frozen=True, slots=True)
class CacheOptions:
    """Where blobs are cached, and how many bytes of them; if it is `off`, nothing is written."""

    directory: Path
    size_limit: int = 10 * 1024**3
    off: bool = False


@dataclass(frozen=True, slots=True)
class BlobOptions:
    """How blobs are read; `verify_first` hashes all of a blob before its first byte is served.

    With `unverified_layers`, files of a layer can be opened before all of it is hashed.
    """

    timeout: float = 60.0
    verify_first: bool = False
    connections: int = 8
    unverified_layers: bool = False
