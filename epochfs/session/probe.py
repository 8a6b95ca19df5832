"""The probe of a registry before a mount is made, and by `doctor`: can it be used at all?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from epochfs.client import RegistryClient, hosts
from epochfs.client.causes import Cause
from epochfs.config import ListingOptions, RegistryUrl
from epochfs.errors import (
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    Unavailable,
    Unsupported,
)
from epochfs.session.settings import Connection


class NoApiRoot(NotFound):
    """The server has no `/v2/`, as the specification wants it, but may have what is below."""


def connect(
    url: RegistryUrl,
    connection: Connection,
    manifest_limit: int = ListingOptions().manifest_limit,
) -> RegistryClient:
    """Return a client of `url`; nothing is sent yet. `manifest_limit` is in bytes.

    Raises UsageError for a `hosts.toml` or a certificate that cannot be used.
    """
    return RegistryClient(
        url.base,
        credentials=replace(connection.credentials, prefix=str(url.prefix or "")),
        options=connection.transport,
        manifest_limit=manifest_limit,
        hosts=hosts.find(connection.hosts_dir, url),
    )


def check(client: RegistryClient, connection: Connection) -> None:
    """Return if the registry answers us; else raise the fault, with what to try.

    Raises NoApiRoot for a server that may be a registry all the same.
    """
    try:
        _ask(client, connection)
    except NoApiRoot:
        raise
    except EpochfsError as error:
        raise type(error)(_told(client.base_url, error)) from None


def _told(url: str, error: EpochfsError) -> str:
    """Return what to tell of a registry that cannot be used; `explained` errors say the rest."""
    if isinstance(error, CredentialsUnavailable):
        return f"no credentials for registry {url}: {error}"
    if isinstance(error, Denied):
        return f"registry {url} denies access: {error}"
    if error.explained:
        return f"registry {url} cannot be used: {error}"
    if isinstance(error, Unavailable | DeadlineExceeded):
        return f"registry {url} cannot be reached: {error}; {Cause.UNREACHED.told()}"
    return f"{url} does not answer as a registry does: {error}; {Cause.NO_REGISTRY.told()}"


def ping_without_root(client: RegistryClient) -> None:
    """Ping a registry of which it is known that it has no `/v2/`."""
    with contextlib.suppress(NotFound):
        client.ping()


def _ask(client: RegistryClient, connection: Connection) -> None:
    try:
        client.ping()
    except NotFound as error:
        raise NoApiRoot(
            f"{client.base_url} may be no registry: {error}; names open by path all the same"
        ) from error
    except Denied:
        # Epoch's /v2/ says 401 where every other GET is anonymous: ask what the mount will ask.
        if not _lists(client, connection):
            raise


def _lists(client: RegistryClient, connection: Connection) -> bool:
    """Return whether anything that a mount will list can be had; raises Denied if none may."""
    denied: Denied | None = None
    asked: list[Callable[[], object]]
    asked = [partial(client.list_tags, name) for name in connection.repositories]
    for ask in asked or [client.catalog]:
        try:
            ask()
        except (NotFound, Unsupported):
            continue
        except Denied as error:
            denied = denied or error
        else:
            return True
    if denied is not None:
        raise denied
    return False
