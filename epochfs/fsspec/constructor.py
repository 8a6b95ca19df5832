"""The arguments of the constructor, and the settings of a session made of them.

The options are those of `epochfs mount`; where requests or s3fs have a word for one, it is theirs.
What can be wrong by itself is refused at once; files and the environment are read when a session is
opened, in the process that opens it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from epochfs.config import (
    LAYOUT_SCHEME,
    BlobOptions,
    CacheOptions,
    Credentials,
    LayoutPath,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
    parse_seconds,
    parse_size,
    server_of,
)
from epochfs.errors import EpochfsError, UsageError, printable
from epochfs.oci.names import Repository
from epochfs.oci.platforms import Platform
from epochfs.session import Connection, SessionSettings

FilePath = str | os.PathLike[str]

_NO_CACHE = Path("/nonexistent")
"""Where a cache that is off is said to be."""


@dataclass(frozen=True, slots=True)
class Options:
    """The constructor's own arguments; `RegistryFileSystem` says what they mean."""

    host: str = ""
    use_ssl: bool | None = None
    verify: bool | FilePath | None = None
    cert: FilePath | tuple[FilePath, FilePath] | None = None
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    password_file: FilePath | None = None
    token: str = field(default="", repr=False)
    token_file: FilePath | None = None
    timeout: float | str = 60.0
    repositories: tuple[str, ...] = ()
    hosts_dir: FilePath | None = None
    cache_dir: FilePath | None = ""
    cache_size: int | str = 10 * 1024**3
    connections: int = 8
    manifest_limit: int | str = 4 * 1024**2
    metadata_ttl: float | str = 60.0
    stale_if_error: float | str = 86400.0
    offline_ok: bool = False
    verify_first: bool = False
    show_rootfs: bool = False
    soci_referrers: bool = False
    unverified_layers: bool = False
    platform: str = ""

    def __post_init__(self) -> None:
        """Raise ValueError for what is wrong by itself."""
        try:
            if self.host:
                self.source()
            if _seconds(self.timeout) <= 0:
                raise UsageError("timeout must be more than 0")
            if not 1 <= self.connections <= TransportOptions().pool_size:
                raise UsageError(f"connections must be 1 to {TransportOptions().pool_size}")
            self._listings()
            self._platform()
            _size(self.cache_size)
            self._check_credentials()
        except EpochfsError as error:
            raise ValueError(str(error)) from None

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the options that hold a secret itself, not where it is."""
        return tuple(name for name in ("password", "token") if getattr(self, name))

    def source(self) -> RegistryUrl | LayoutPath:
        """Return what is meant by `host`; without one, what `epochfs mount` would mount."""
        if self.host.startswith(LAYOUT_SCHEME):
            return LayoutPath.parse(self.host.removeprefix(LAYOUT_SCHEME))
        if not self.host:
            from epochfs.session.environment import default_server

            return default_server()
        if self.use_ssl is None:
            return RegistryUrl.parse(self.host)
        scheme, given, rest = self.host.rpartition("://")
        wanted = "https" if self.use_ssl else "http"
        if given and scheme != wanted:
            raise UsageError(f"use_ssl={self.use_ssl} and host='{printable(self.host)}' disagree")
        return RegistryUrl.parse(f"{wanted}://{rest}")

    def settings(self) -> SessionSettings:
        """Return how to open a session. Raises EpochfsError."""
        import platformdirs

        from epochfs.session.environment import authority_in_environment, mirrors_directory, proxies

        timeout = _seconds(self.timeout)
        named = self.verify if not isinstance(self.verify, bool | None) else None
        authority = _absolute(named or authority_in_environment())
        transport = TransportOptions(
            timeout=timeout,
            ca_certs=(authority,) if authority else (),
            client_certs=self._identity(),
            tls_verify=self.verify if isinstance(self.verify, bool) else bool(authority) or None,
            proxies=proxies(),
        )
        listings = self._listings()
        off = self.cache_dir is None
        directory = Path(self.cache_dir or platformdirs.user_cache_path("epochfs")).absolute()
        mirrors = mirrors_directory(_absolute(self.hosts_dir))
        return SessionSettings(
            url=self.source(),
            connection=Connection(transport, self._credentials(), listings.repositories, mirrors),
            cache=CacheOptions(_NO_CACHE if off else directory, _size(self.cache_size), off=off),
            listings=listings,
            blobs=BlobOptions(timeout, self.verify_first, self.connections, self.unverified_layers),
            offline_ok=self.offline_ok,
            platform=self._platform(),
        )

    def _listings(self) -> ListingOptions:
        return ListingOptions(
            timeout=_seconds(self.timeout),
            metadata_ttl=_seconds(self.metadata_ttl),
            stale_if_error=_seconds(self.stale_if_error),
            manifest_limit=_size(self.manifest_limit),
            repositories=tuple(Repository.parse(name) for name in self.repositories),
            show_rootfs=self.show_rootfs,
            soci_referrers=self.soci_referrers,
        )

    def _platform(self) -> Platform:
        return Platform.parse(self.platform) if self.platform else Platform.of_machine()

    def _identity(self) -> tuple[tuple[Path, Path | None], ...]:
        if not self.cert:
            return ()
        file, key = self.cert if isinstance(self.cert, tuple | list) else (self.cert, None)
        return ((Path(file).absolute(), _absolute(key)),)

    def _check_credentials(self) -> None:
        if self.password and self.password_file:
            raise UsageError("password and password_file exclude each other")
        if bool(self.username) != bool(self.password or self.password_file):
            raise UsageError("username needs password_file (or password), and these need username")
        if bool(self.token) + bool(self.token_file) + bool(self.username) > 1:
            raise UsageError("username, token and token_file exclude each other")

    def _credentials(self) -> Credentials:
        from epochfs.client.auth import read_password
        from epochfs.session.environment import default_credentials, token_in_environment

        if not (self.username or self.token or self.token_file):
            return default_credentials(token_in_environment())
        file = _absolute(self.password_file)
        return replace(
            default_credentials(),
            username=self.username,
            password=read_password(file) if file else self.password,
            password_file=file,
            token=self.token,
            token_file=_absolute(self.token_file),
        )


def _absolute(path: FilePath | None) -> Path | None:
    return Path(path).absolute() if path else None


def _seconds(value: float | str) -> float:
    return parse_seconds(value) if isinstance(value, str) else value


def _size(value: int | str) -> int:
    return parse_size(value) if isinstance(value, str) else value


def is_same_host(source: RegistryUrl | LayoutPath, host: str) -> bool:
    """Whether the host of a URL is the registry that is open."""
    if isinstance(source, LayoutPath):
        return False
    try:
        meant = RegistryUrl.parse(f"{source.base.partition('://')[0]}://{host}")
    except UsageError:
        return False
    return server_of(meant.base) == server_of(source.base)
