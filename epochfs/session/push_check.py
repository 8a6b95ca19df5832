"""Checks that a registry lets us write to it, before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from epochfs.client import RegistryClient
from epochfs.config import RegistryUrl
from epochfs.errors import Denied, EpochfsError, Unsupported
from epochfs.metadata.listings import Listings
from epochfs.oci.names import Digest, Repository, Tag
from epochfs.session import SessionSettings

_UNKNOWN_TAG = "epochfs-asks-whether-tags-can-be-deleted"


def check(
    settings: SessionSettings,
    client: RegistryClient,
    listings: Listings,
    warn: Callable[[str], None],
) -> None:
    """Return if the registry lets us write, as far as it can be told; `warn` of what it cannot do.

    Raises Denied or Unsupported, with what to do. An empty registry is not asked: nobody knows
    which repository will be written to.
    """
    assert isinstance(settings.url, RegistryUrl)
    catalog = listings.known_catalog()
    listed = catalog.first(()) if catalog is not None else None
    if settings.url.prefix is not None:
        below = catalog.first(settings.url.prefix.segments) if catalog is not None else None
        listed = below or settings.url.prefix
    repository = next(iter(settings.connection.repositories), listed)
    if repository is None:
        return
    try:
        check_push(client, repository)
        if settings.deletes and (lacking := undeletable(client, repository)):
            warn(f"{settings.url}: the registry does not delete {lacking}")
    except (Denied, Unsupported):
        raise
    except EpochfsError as error:
        warn(f"{settings.url}: whether it can be written to is not known: {error}")


def check_push(client: RegistryClient, repository: Repository) -> None:
    """Return if we may push to a repository, or it cannot be told; nothing is left behind.

    Raises Denied or Unsupported, with what to do.
    """
    try:
        client.check_push(repository)
    except Denied as error:
        raise Denied(
            f"the registry denies pushing to {repository}: {error}; log in with an account that "
            "may, or mount without -o rw"
        ) from None
    except Unsupported as error:
        raise Unsupported(
            f"the registry does not let anybody push to {repository}: {error}; mount without -o rw"
        ) from None


def undeletable(client: RegistryClient, repository: Repository) -> str:
    """Return what cannot be deleted from a repository, with why; "" if all can be.

    Asks for the deletion of a manifest and a tag that do not exist.
    """
    digest = Digest.of(os.urandom(32))
    attempts: Iterable[tuple[str, Callable[[], None]]] = (
        ("manifests and blobs", lambda: client.delete_manifest(repository, digest)),
        ("a tag by itself", lambda: client.delete_tag(repository, Tag(_UNKNOWN_TAG))),
    )
    lacking = []
    for subject, attempt in attempts:
        try:
            attempt()
        except (Denied, Unsupported) as error:
            lacking.append(f"{subject} ({error})")
    return ", nor ".join(lacking)
