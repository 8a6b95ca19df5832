"""Opens a registry or layout: checks that it can be used, and wires all layers over it."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from epochfs.blobs.layout_blobs import LayoutBlobs
from epochfs.blobs.store import Blobs, BlobStore
from epochfs.cache.answers import AnswerStore
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import CacheUser, announced
from epochfs.cache.tag_history import TagHistory
from epochfs.client import RegistryClient, hosts
from epochfs.client.causes import Cause
from epochfs.config import LayoutPath, ListingOptions, RegistryUrl
from epochfs.errors import (
    CacheFailure,
    CredentialsUnavailable,
    DeadlineExceeded,
    Denied,
    EpochfsError,
    NotFound,
    Unavailable,
    Unsupported,
    printable,
)
from epochfs.fuse.passthrough import Passthrough
from epochfs.layers.layer_store import Layers
from epochfs.layers.soci import SociSource
from epochfs.metadata.health import Health
from epochfs.metadata.layout_source import OciLayout
from epochfs.metadata.listings import Listings
from epochfs.metadata.offline import RememberingClient
from epochfs.oci.names import Digest, Reference, Repository, Tag
from epochfs.session import Connection, SessionSettings, push_check
from epochfs.session.status import Observer, StatusSource
from epochfs.vfs.composed import Composer
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.kernel_memory import KernelMemory
from epochfs.vfs.node import Context, Node
from epochfs.vfs.tree import ArtifactRoot, root

if TYPE_CHECKING:
    from epochfs.vfs.writing.writable import WritableFileSystem

log = logging.getLogger(__name__)

_CATALOG_SECONDS = 5.0
"""How long a mount waits for the catalog, to tell whether there is one."""


@dataclass(frozen=True)
class Session:
    """An open registry or layout: its tree, and its status for an operator.

    `shown` is what the tree shows: an artifact by its digest.
    """

    filesystem: FileSystem
    status: StatusSource
    shown: str


class NoApiRoot(NotFound):
    """The server lacks the `/v2/` of the specification, but may have what is below it."""


def connect(
    url: RegistryUrl, connection: Connection, manifest_limit: int = ListingOptions().manifest_limit
) -> RegistryClient:
    """Return a client of `url`; nothing is sent yet. `manifest_limit` is in bytes.

    Raises UsageError for an unusable `hosts.toml` or certificate.
    """
    return RegistryClient(
        url.base,
        credentials=dataclasses.replace(connection.credentials, prefix=str(url.prefix or "")),
        options=connection.transport,
        manifest_limit=manifest_limit,
        hosts=hosts.find(connection.hosts_dir, url),
    )


def check(client: RegistryClient, connection: Connection) -> None:
    """Return if the registry answers; else raise the error, with what to try.

    Raises NoApiRoot for a server that may be a registry all the same.
    """
    try:
        _ask(client, connection)
    except NoApiRoot:
        raise
    except EpochfsError as error:
        raise type(error)(_explain(client.base_url, error)) from None


def _ask(client: RegistryClient, connection: Connection) -> None:
    try:
        client.ping()
    except NotFound as error:
        raise NoApiRoot(
            f"{client.base_url} may not be a registry: {error}; names open by path all the same"
        ) from error
    except Denied:
        # Epoch's /v2/ says 401 where every other GET is anonymous: ask what the mount will ask.
        if not _lists_anything(client, connection):
            raise


def _lists_anything(client: RegistryClient, connection: Connection) -> bool:
    """Whether anything that a mount would list can be had; raises Denied if all is denied."""
    denied: Denied | None = None
    asked: list[Callable[[], object]]
    asked = [partial(client.list_tags, name) for name in connection.repositories]
    for ask in asked or [client.catalog]:
        try:
            ask()
            return True
        except Denied as error:
            denied = denied or error
        except (NotFound, Unsupported):
            pass
    if denied is not None:
        raise denied
    return False


def _explain(url: str, error: EpochfsError) -> str:
    """Return why a registry cannot be used, and what to try; `explained` errors say the latter."""
    if isinstance(error, CredentialsUnavailable):
        return f"no credentials for registry {url}: {error}"
    if isinstance(error, Denied):
        return f"registry {url} denies access: {error}"
    if error.explained:
        return f"registry {url} cannot be used: {error}"
    if isinstance(error, Unavailable | DeadlineExceeded):
        return f"registry {url} cannot be reached: {error}; {Cause.UNREACHED.told()}"
    return f"{url} does not answer as a registry does: {error}; {Cause.NO_REGISTRY.told()}"


@dataclass(frozen=True)
class _Registry:
    """A registry, and whether it answers."""

    client: RegistryClient
    health: Health


def open_session(
    settings: SessionSettings,
    closing: contextlib.ExitStack,
    mountpoint: str = "",
    passthrough: Passthrough | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Session:
    """Check the registry or layout, and the cache, and return a session over them.

    Whatever must be closed after it is pushed onto `closing`. `mountpoint` and `passthrough` are
    those of the mount, if it is for one; its status shows both. `warn` is called with a line for
    each thing that the user will miss.
    """
    source = _open_source(settings, closing, warn)
    try:
        return _assemble(settings, source, closing, mountpoint, passthrough, warn)
    except CacheFailure as error:
        raise CacheFailure(
            f"the cache '{printable(settings.cache.directory)}' cannot be used: {error}; "
            "choose another --cache-dir"
        ) from None


def _open_source(
    settings: SessionSettings, closing: contextlib.ExitStack, warn: Callable[[str], None]
) -> _Registry | OciLayout:
    """Return what is to be shown, once it answers; raises with what to try if it does not."""
    if isinstance(settings.url, RegistryUrl):
        return _open_registry(settings.url, settings, closing, warn)
    try:
        layout = OciLayout(settings.url.directory, settings.listings.manifest_limit)
    except EpochfsError as error:
        raise type(error)(f"{settings.url} is not a readable OCI image layout: {error}") from None
    closing.callback(layout.close)
    return layout


def _open_registry(
    url: RegistryUrl,
    settings: SessionSettings,
    closing: contextlib.ExitStack,
    warn: Callable[[str], None],
) -> _Registry:
    client = connect(url, settings.connection, manifest_limit=settings.listings.manifest_limit)
    closing.callback(client.close)
    ping, outage = client.ping, None
    try:
        check(client, settings.connection)
    except NoApiRoot as error:
        ping = partial(_ping_without_root, client)
        warn(str(error))
    except (Unavailable, DeadlineExceeded) as error:
        if not settings.offline_ok:
            raise
        outage = error
    else:
        if client.unused_login:
            warn(client.unused_login)
    health = Health(url.base, ping)
    if outage is not None:
        health.failed(outage, pinged=True)
    return _Registry(client, health)


def _ping_without_root(client: RegistryClient) -> None:
    """Ping a registry that is known to lack `/v2/`."""
    with contextlib.suppress(NotFound):
        client.ping()


def _assemble(
    settings: SessionSettings,
    source: _Registry | OciLayout,
    closing: contextlib.ExitStack,
    mountpoint: str,
    passthrough: Passthrough | None,
    warn: Callable[[str], None],
) -> Session:
    cache = BlobCache(settings.cache)
    user = CacheUser(os.getpid(), mountpoint, str(settings.url), settings.cache.size_limit)
    with cache.directory.short_reported():
        closing.enter_context(announced(cache.directory, user))
    history = TagHistory(
        cache.directory.private_file("tags.sqlite"),
        settings.url.base,
        report=cache.directory.report,
        make_room=cache.quota.evict_some,
    )
    closing.callback(history.close)
    remembering = None
    blobs: BlobStore
    if isinstance(source, OciLayout):
        listings = Listings(source, settings.listings, history)
        blobs = LayoutBlobs(source, settings.blobs)
    else:
        remembering = client = _remembering(settings, source, cache, closing)
        # A directory that is to be made must not be there before.
        options = dataclasses.replace(settings.listings, believe_empty_catalog=settings.writes)
        listings = Listings(client, options, history, client.facts)
        source.health.on_return = listings.clear
        blobs = Blobs(client, cache, settings.blobs, client.check_registry)
    closing.callback(listings.close)
    closing.callback(blobs.close)
    composer = Composer(blobs, cache, settings.blobs.timeout)
    closing.callback(composer.close)
    unverified = settings.blobs.unverified_layers
    layers = Layers(blobs, cache, SociSource.of(listings), unverified=unverified)
    closing.callback(layers.close)
    if isinstance(source, _Registry):
        # Before all those: a download that waits for an answer could not store what it has.
        closing.callback(source.client.close)
        # First of all: a request that fails because it was closed says nothing about the registry.
        closing.callback(source.health.close)
    down = isinstance(source, _Registry) and source.health.outage is not None
    artifact = _artifact(settings.url, source, listings)
    top: Node
    if artifact is None:
        shown, top = str(settings.url), root(settings.url.prefix)
        _settle(settings, listings, (lambda _: None) if down else warn)
        if settings.writes and isinstance(source, _Registry) and not down:
            push_check.check(settings, source.client, listings, warn)
    else:
        shown = _shown(settings.url, *artifact)
        top = ArtifactRoot(*artifact)
    observer = Observer(
        registry=shown,
        mountpoint=mountpoint,
        source=source.client if isinstance(source, _Registry) else source,
        remembering=remembering,
        cache=cache,
        blobs=blobs,
        passthrough=passthrough,
    )
    context = Context(
        listings,
        blobs,
        layers,
        composer,
        KernelMemory(None if settings.writes else listings.kernel_ttl),
        observer.status_json,
        settings.blobs.timeout,
        settings.platform,
    )
    if isinstance(top, ArtifactRoot):
        top.exists(context)
    if not (settings.writes and isinstance(source, _Registry)):
        return Session(FileSystem(top, context), observer.status, shown)
    writable = _writable(settings, source.client, top, context, cache)
    closing.callback(writable.close)
    observer.writing = writable.writing
    return Session(writable, observer.status, shown)


def _writable(
    settings: SessionSettings, client: RegistryClient, top: Node, context: Context, cache: BlobCache
) -> WritableFileSystem:
    # Imported only now: a mount that is read-only has none of it.
    from epochfs.vfs.writing.publisher import Publisher
    from epochfs.vfs.writing.writable import WritableFileSystem

    return WritableFileSystem(
        top,
        context,
        Publisher(client, context.listings),
        cache,
        manifest_limit=settings.listings.manifest_limit,
        deletes=settings.deletes,
    )


def _artifact(
    url: RegistryUrl | LayoutPath, source: _Registry | OciLayout, listings: Listings
) -> tuple[Repository, Digest] | None:
    """Return the one artifact that is meant, by the digest that its tag has now; None for all.

    Raises NotFound if there is none.
    """
    reference: Reference | None
    if isinstance(url, RegistryUrl):
        repository, reference = url.prefix, url.reference
    else:
        assert isinstance(source, OciLayout)
        repository, reference = source.own_repository, url.digest
        if url.name:
            repository, reference = source.located(url.name)
    if repository is None or reference is None:
        return None
    try:
        if isinstance(reference, Tag):
            return repository, listings.resolve(repository, reference).digest
        return repository, listings.manifest(repository, reference).digest
    except NotFound as error:
        raise NotFound(f"{url}: no such artifact: {error}") from None


def _shown(url: RegistryUrl | LayoutPath, repository: Repository, digest: Digest) -> str:
    """Return how an artifact is shown in mountinfo and in the status."""
    if isinstance(url, RegistryUrl):
        return str(dataclasses.replace(url, prefix=repository, reference=digest))
    return str(dataclasses.replace(url, name="", digest=digest))


def _settle(settings: SessionSettings, listings: Listings, warn: Callable[[str], None]) -> None:
    """Wait for the catalog, and check that the repository to be the root exists or can be made."""
    if unlisted := listings.settle(min(_CATALOG_SECONDS, settings.listings.timeout)):
        warn(f"{settings.url}: {unlisted}")
    if settings.url.prefix is not None and not settings.writes:
        try:
            listings.check(settings.url.prefix, or_parent=True)
        except NotFound:
            raise NotFound(
                f"{settings.url.prefix}: no such repository, and none below it: check the path of "
                f"'{printable(str(settings.url))}'"
            ) from None


def _remembering(
    settings: SessionSettings, registry: _Registry, cache: BlobCache, closing: contextlib.ExitStack
) -> RememberingClient:
    """Return a client that remembers the registry's answers in the cache."""
    answers = AnswerStore(
        cache.directory.private_file("answers.sqlite"),
        settings.url.base,
        registry.client.bearer_for,
        report=cache.directory.report,
        make_room=cache.quota.evict_some,
    )
    closing.callback(answers.close)
    max_age = settings.listings.metadata_ttl + settings.listings.stale_if_error
    return RememberingClient(registry.client, answers, registry.health, max_age)
