"""Options that commands share, and the values they become, with those of the environment.

EPOCH_SERVER, EPOCH_REGISTRY_TOKEN and EPOCH_CA_CERT count, as for Epoch's own tools, the variables
that say where other tools keep credentials (`cli.credentials`), and those that name proxies.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import platformdirs
from click.shell_completion import CompletionItem

from epochfs.cli.credentials import credentials, readable
from epochfs.client import hosts
from epochfs.config import (
    LAYOUT_SCHEME,
    BlobOptions,
    CacheOptions,
    LayoutPath,
    Proxies,
    RegistryUrl,
    TransportOptions,
    parse_seconds,
    parse_size,
)
from epochfs.errors import EpochfsError, UsageError, printable
from epochfs.oci.names import Repository
from epochfs.session.settings import Connection, Fetching

_T = TypeVar("_T")
_Function = Callable[..., _T]
_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
_Completion = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def completed_as(kind: str) -> _Completion:
    """Return how a shell completes a path: as any `file`, or as a `dir`."""
    return lambda context, parameter, begun: [CompletionItem(begun, type=kind)]


def value_option(
    *names: str,
    parse: Callable[[Any], object],
    metavar: str,
    about: str,
    default: str | None = None,
    envvar: str | None = None,
    multiple: bool = False,
    shell_complete: _Completion | None = None,
) -> _Decorator:
    """Return a click option whose text one of our own functions parses.

    The function's EpochfsErrors become errors of that option.
    """

    def callback(ctx: click.Context, param: click.Parameter, text: object) -> object:
        try:
            return None if text is None else parse(text)
        except EpochfsError as error:
            raise click.BadParameter(str(error), ctx, param) from None

    return click.option(
        *names,
        callback=callback,
        metavar=metavar,
        help=about,
        default=default,
        show_default=True,
        envvar=envvar,
        show_envvar=True,
        multiple=multiple,
        shell_complete=shell_complete,
    )


def file_option(name: str, about: str, envvar: str | None = None) -> _Decorator:
    """Return an option for a path that stays true when the daemon leaves this directory.

    Its links are not resolved: a mounted secret is a link that is replaced when the secret changes.
    """
    return value_option(
        name,
        parse=_absolute,
        metavar="PATH",
        about=about,
        envvar=envvar,
        shell_complete=completed_as("file"),
    )


def _absolute(text: str) -> Path:
    return Path(text).absolute()


def _positive_seconds(text: str) -> float:
    seconds = parse_seconds(text)
    if seconds <= 0:
        raise UsageError("must be more than 0")
    return seconds


def _repositories(texts: tuple[str, ...]) -> tuple[Repository, ...]:
    return tuple(Repository.parse(text) for text in texts)


_CONNECTION_OPTIONS = (
    value_option(
        "--timeout",
        parse=_positive_seconds,
        metavar="TIME",
        default="60",
        about="Time limit of every operation.",
    ),
    value_option(
        "--repo",
        "repositories",
        parse=_repositories,
        metavar="NAME",
        multiple=True,
        about="List this repository, if the registry has no catalog; may be repeated.",
    ),
    click.option(
        "--username",
        default="",
        metavar="NAME",
        help="User name to log in with; needs --password-file. "
        "Without it, the logins of docker, podman and skopeo are used.",
    ),
    file_option("--password-file", "File with the password."),
    file_option(
        "--token-file",
        "File with a bearer token, read for each use. Without it, EPOCH_REGISTRY_TOKEN is used.",
    ),
    file_option(
        "--ca-cert",
        "Certificates to trust (PEM).",
        envvar="EPOCH_CA_CERT",
    ),
    file_option("--client-cert", "Certificate to show to the registry (PEM)."),
    file_option("--client-key", "Its key, if that is in a file of its own."),
    file_option(
        "--hosts-dir",
        "Mirrors, as containerd's certs.d names them.  "
        f"[default: {hosts.DEFAULT_DIRECTORY}, if it exists]",
    ),
    click.option(
        "--tls-skip-verify",
        is_flag=True,
        help="Trust any certificate. A registry on loopback is not verified anyway.",
    ),
)


def connection_options(command: _Function[_T]) -> _Function[_T]:
    """Give `command` the options that say how to reach a registry, as one `connection`."""

    @functools.wraps(command)
    def with_connection(
        *,
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
        **others: object,
    ) -> _T:
        if client_key is not None and client_cert is None:
            raise UsageError("--client-key needs --client-cert")
        authority = readable(ca_cert, "--ca-cert")
        identity = readable(client_cert, "--client-cert")
        key = readable(client_key, "--client-key")
        transport = TransportOptions(
            timeout=timeout,
            ca_certs=(authority,) if authority else (),
            client_certs=((identity, key),) if identity else (),
            tls_verify=False if tls_skip_verify else True if ca_cert else None,
            proxies=_proxies(),
        )
        given = credentials(username, password_file, token_file)
        connection = Connection(transport, given, repositories, _hosts_dir(hosts_dir))
        return command(connection=connection, **others)

    return _with_options(with_connection, _CONNECTION_OPTIONS)


_FETCHING_OPTIONS = (
    file_option("--cache-dir", "Where blobs are kept.  [default: ~/.cache/epochfs]"),
    value_option(
        "--cache-size",
        parse=parse_size,
        metavar="SIZE",
        default="10G",
        about="Maximum cache size.",
    ),
    click.option(
        "--connections",
        type=click.IntRange(1, TransportOptions().pool_size),
        default=BlobOptions().connections,
        metavar="N",
        show_default=True,
        help="Maximum number of connections that download blobs.",
    ),
    value_option(
        "--manifest-limit",
        parse=parse_size,
        metavar="SIZE",
        default="4M",
        about="Maximum size of a manifest.",
    ),
)


def fetching_options(command: _Function[_T]) -> _Function[_T]:
    """Give `command` the options of what is kept and how it is fetched, as one `fetching`."""

    @functools.wraps(command)
    def with_fetching(
        *,
        cache_dir: Path | None,
        cache_size: int,
        connections: int,
        manifest_limit: int,
        **others: object,
    ) -> _T:
        cache = CacheOptions(cache_dir or platformdirs.user_cache_path("epochfs"), cache_size)
        return command(fetching=Fetching(cache, connections, manifest_limit), **others)

    return _with_options(with_fetching, _FETCHING_OPTIONS)


def _with_options(command: _Function[_T], options: Sequence[_Decorator]) -> _Function[_T]:
    for option in reversed(options):
        command = option(command)
    return command


def _proxies() -> Proxies:
    """Return the proxies that the environment names, in either case of letters."""
    http, https, exempt = (
        os.environ.get(name) or os.environ.get(name.lower(), "")
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    )
    return Proxies(http, https, tuple(exempt.replace(",", " ").split()))


def _hosts_dir(directory: Path | None) -> Path | None:
    """Return where mirrors are looked up, if anywhere."""
    if directory is None:
        return hosts.DEFAULT_DIRECTORY if hosts.DEFAULT_DIRECTORY.is_dir() else None
    if not directory.is_dir():
        raise UsageError(f"--hosts-dir: '{printable(directory)}' is not a directory")
    return directory


def source(text: str | None) -> RegistryUrl | LayoutPath:
    """Parse what is to be mounted: `oci:DIRECTORY`, or the URL of a registry."""
    if text is not None and text.startswith(LAYOUT_SCHEME):
        return LayoutPath(_absolute(text.removeprefix(LAYOUT_SCHEME)))
    return registry_url(text)


def registry_url(text: str | None) -> RegistryUrl:
    """Parse a URL argument; without one, EPOCH_SERVER, and without that Epoch's default."""
    if text is not None:
        if text.startswith(LAYOUT_SCHEME):
            raise UsageError(f"'{printable(text)}' is no registry: only 'mount' takes a layout")
        return RegistryUrl.parse(text)
    try:
        return RegistryUrl.parse(os.environ.get("EPOCH_SERVER", ""))
    except UsageError as error:
        raise UsageError(f"EPOCH_SERVER: {error}") from None
