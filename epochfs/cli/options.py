"""Options that commands share, and the values they become, with those of the environment.

EPOCH_SERVER, EPOCH_REGISTRY_TOKEN and EPOCH_CA_CERT are honoured as by Epoch's own tools. So are
the variables that say where other tools keep credentials, and those that name proxies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click

from epochfs.cli.option_kinds import SIZE, Value, cache_dir_option, file_option, gathered
from epochfs.client import hosts
from epochfs.client.auth import read_password
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
)
from epochfs.errors import MountFailure, UsageError, printable
from epochfs.oci.names import Repository
from epochfs.session import Connection
from epochfs.session.environment import (
    default_credentials,
    default_server,
    mirrors_directory,
    proxies,
    token_in_environment,
)


@dataclass(frozen=True, slots=True)
class Fetching:
    """How to reach a registry, what is kept of it, and how it is fetched."""

    connection: Connection
    cache: CacheOptions
    listings: ListingOptions
    blobs: BlobOptions


def _positive_seconds(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise UsageError("must be more than 0")
    return seconds


_CONNECTION_OPTIONS = (
    click.option(
        "--timeout",
        type=Value("TIME", _positive_seconds),
        default="60",
        help="Time limit of every operation.",
    ),
    click.option(
        "--repo",
        "repositories",
        type=Value("NAME", Repository.parse),
        multiple=True,
        help="List this repository if the registry has no catalog; may be repeated.",
    ),
    click.option(
        "--username",
        default="",
        show_default=False,
        metavar="NAME",
        help="User name to log in with; needs --password-file. "
        "Without it, existing logins of docker, podman and skopeo are used.",
    ),
    file_option("--password-file", "File with the password."),
    file_option(
        "--token-file",
        "File with a bearer token, read for each use. Without it, EPOCH_REGISTRY_TOKEN is used.",
    ),
    file_option("--ca-cert", "Certificates to trust (PEM).", envvar="EPOCH_CA_CERT"),
    file_option("--client-cert", "Certificate to present to the registry (PEM)."),
    file_option("--client-key", "Its private key, if in a file of its own."),
    file_option(
        "--hosts-dir",
        "Mirror configuration, laid out like containerd's certs.d.  "
        f"[default: {hosts.DEFAULT_DIRECTORY}, if it exists]",
    ),
    click.option(
        "--tls-skip-verify",
        is_flag=True,
        help="Trust any certificate; the default for a registry on loopback.",
    ),
)


def _connection(
    timeout: float,
    repositories: tuple[Repository, ...],
    username: str,
    password_file: Path | None,
    token_file: Path | None,
    ca_cert: Path | None,
    client_cert: Path | None,
    client_key: Path | None,
    hosts_dir: Path | None,
    tls_skip_verify: bool,
) -> Connection:
    if client_key is not None and client_cert is None:
        raise UsageError("--client-key needs --client-cert")
    authority = _readable(ca_cert, "--ca-cert")
    identity = _readable(client_cert, "--client-cert")
    key = _readable(client_key, "--client-key")
    transport = TransportOptions(
        timeout=timeout,
        ca_certs=(authority,) if authority else (),
        client_certs=((identity, key),) if identity else (),
        tls_verify=False if tls_skip_verify else True if ca_cert else None,
        proxies=proxies(),
    )
    given = credentials(username, password_file, token_file)
    return Connection(transport, given, repositories, mirrors_directory(hosts_dir))


connection_options = gathered("connection", _CONNECTION_OPTIONS, _connection)
"""Gives a command the options that say how to reach a registry, as one `connection`."""


def _readable(file: Path | None, option: str) -> Path | None:
    """Return `file`; raises MountFailure now rather than at its first use."""
    try:
        if file is not None:
            file.open("rb").close()
    except OSError as error:
        raise MountFailure(
            f"cannot read '{printable(file)}' ({option}): {error.strerror}"
        ) from None
    return file


def _fetching(
    connection: Connection,
    cache_dir: Path,
    cache_size: int,
    connections: int,
    manifest_limit: int,
) -> Fetching:
    timeout, repositories = connection.transport.timeout, connection.repositories
    return Fetching(
        connection,
        CacheOptions(cache_dir, cache_size),
        ListingOptions(timeout, manifest_limit=manifest_limit, repositories=repositories),
        BlobOptions(timeout, connections=connections),
    )


_FETCHING_OPTIONS = (
    connection_options,
    cache_dir_option,
    click.option("--cache-size", type=SIZE, default="10G", help="Maximum cache size."),
    click.option(
        "--connections",
        type=click.IntRange(1, TransportOptions().pool_size),
        default=BlobOptions().connections,
        metavar="N",
        help="Maximum number of connections that download blobs.",
    ),
    click.option("--manifest-limit", type=SIZE, default="4M", help="Maximum size of a manifest."),
)


fetching_options = gathered("fetching", _FETCHING_OPTIONS, _fetching)
"""Gives a command those, and the options of what is kept and how, as one `fetching`."""


def source_url(text: str | None) -> RegistryUrl | LayoutPath:
    """Parse what to mount: a registry or a layout, or one artifact of these."""
    if text is not None and text.startswith(LAYOUT_SCHEME):
        return LayoutPath.parse(text.removeprefix(LAYOUT_SCHEME))
    return registry_url(text)


def registry_url(text: str | None) -> RegistryUrl:
    """Parse a URL argument; without one, EPOCH_SERVER, and without that Epoch's default."""
    if text is None:
        return default_server()
    if text.startswith(LAYOUT_SCHEME):
        raise UsageError(f"'{printable(text)}' is not a registry: only 'mount' takes a layout")
    return RegistryUrl.parse(text)


def credentials(username: str, password_file: Path | None, token_file: Path | None) -> Credentials:
    """Return the credentials of the command line, else EPOCH_REGISTRY_TOKEN, else none.

    The logins of other tools are kept with them, for hosts that those are not meant for. The
    variable is removed, so that no child process inherits the token. With EPOCH_SERVER set, the
    token is only for that registry. A password is read now, as its file may be a pipe, and again
    when it is refused.
    """
    token = token_in_environment(remove=True)
    if bool(username) != (password_file is not None):
        raise UsageError("--username and --password-file need each other")
    if password_file is not None and token_file is not None:
        raise UsageError("--password-file and --token-file exclude each other")
    if token_file is not None:
        return replace(default_credentials(), token_file=_readable(token_file, "--token-file"))
    if password_file is None:
        return default_credentials(token)
    return replace(
        default_credentials(),
        username=username,
        password=read_password(password_file),
        password_file=password_file,
    )
