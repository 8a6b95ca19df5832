"""Whether a registry can be used at all: asked before a mount is made, and by `doctor`."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from epochfs.client import RegistryClient, hosts
from epochfs.client.auth import ANONYMOUS
from epochfs.config import ListingOptions, RegistryUrl
from epochfs.errors import (
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    TlsFailure,
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
    except Denied as error:
        raise Denied(
            f"registry {client.base_url} denies access: {error}; {_cure(client.account)}"
        ) from None
    except TlsFailure as error:
        raise TlsFailure(f"registry {client.base_url} cannot be used: {error}") from None
    except (Unavailable, DeadlineExceeded) as error:
        raise type(error)(
            f"registry {client.base_url} cannot be reached: {error}; "
            "check the URL, and that it is running"
        ) from None
    except EpochfsError as error:
        raise type(error)(
            f"{client.base_url} does not answer as a registry does: {error}; check the URL"
        ) from None


def ping_without_root(client: RegistryClient) -> None:
    """Ping a registry of which it is known that it has no `/v2/`."""
    with contextlib.suppress(NotFound):
        client.ping()


def _cure(account: str) -> str:
    if account == ANONYMOUS:
        return "give --username and --password-file, or use docker, podman or skopeo login"
    return f"check the credentials ({account})"


def _ask(client: RegistryClient, connection: Connection) -> None:
    try:
        client.ping()
    except NotFound as error:
        raise NoApiRoot(
            f"{client.base_url} may be no registry: {error}; names open by path all the same"
        ) from error
    except Denied:
        # Epoch's /v2/ says 401 where every other GET is anonymous: ask what the mount will ask.
        try:
            if connection.repositories:
                client.list_tags(connection.repositories[0])
            else:
                client.catalog()
            return
        except (NotFound, Unsupported):
            pass
        raise
