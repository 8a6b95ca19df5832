"""The wiring of all the layers, from the client up to the filesystem without FUSE."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from epochfs.blobs.layout_blobs import LayoutBlobs
from epochfs.blobs.store import Blobs, BlobStore
from epochfs.cache.answers import AnswerStore
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import CacheUser, announced, is_shortage
from epochfs.cache.tag_history import TagHistory
from epochfs.client import RegistryClient
from epochfs.config import RegistryUrl
from epochfs.errors import (
    CacheFailure,
    DeadlineExceeded,
    EpochfsError,
    NotFound,
    Unavailable,
    printable,
)
from epochfs.fuse.passthrough import Passthrough
from epochfs.layers.layer_store import Layers
from epochfs.metadata.layout_source import OciLayout
from epochfs.metadata.listings import Listings
from epochfs.metadata.offline import RememberingClient
from epochfs.metadata.registry_health import Health
from epochfs.session import probe
from epochfs.session.settings import FileSystemPlan
from epochfs.session.status import Observer, StatusSource
from epochfs.vfs.composed import Composer
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.kernel_memory import KernelMemory
from epochfs.vfs.node import Context
from epochfs.vfs.tree import root

log = logging.getLogger(__name__)

_SETTLING_SECONDS = 5.0
"""How long a mount waits for the catalog, to tell whether there is one."""


@dataclass(frozen=True)
class Session:
    """A registry or layout that was opened: its tree, and what an operator sees of it."""

    filesystem: FileSystem
    status: StatusSource


@dataclass(frozen=True)
class _Registry:
    """A registry to be shown, and whether it answers."""

    client: RegistryClient
    health: Health


def open_session(
    plan: FileSystemPlan,
    closing: contextlib.ExitStack,
    mountpoint: str = "",
    passthrough: Passthrough | None = None,
    warn: Callable[[str], None] = log.warning,
) -> Session:
    """Check the registry or layout, and the cache, and return the session over them.

    `closing` is given what must be closed after it. `mountpoint` is where it will be mounted, if it
    is, and `passthrough` is how then; its status shows both. `warn` is told, in a line each, what
    the user will miss.
    """
    source = _open_source(plan, closing, warn)
    try:
        return _assemble(plan, source, closing, mountpoint, passthrough, warn)
    except CacheFailure as error:
        raise CacheFailure(
            f"the cache '{printable(plan.cache.directory)}' cannot be used: {error}; "
            "choose another --cache-dir"
        ) from None


def _open_source(
    plan: FileSystemPlan, closing: contextlib.ExitStack, warn: Callable[[str], None]
) -> _Registry | OciLayout:
    """Return what a plan is to show, found to answer; raises with what to try if it does not."""
    limit = plan.listings.manifest_limit
    if isinstance(plan.url, RegistryUrl):
        client = probe.connect(plan.url, plan.connection, manifest_limit=limit)
        closing.callback(client.close)
        ping, outage = client.ping, None
        try:
            probe.check(client, plan.connection)
        except probe.NoApiRoot as error:
            ping = partial(probe.ping_without_root, client)
            warn(str(error))
        except (Unavailable, DeadlineExceeded) as error:
            if not plan.offline_ok:
                raise
            outage = error
        else:
            if client.unused_login:
                warn(client.unused_login)
        health = Health(plan.url.base, ping)
        if outage is not None:
            health.failed(outage, pinged=True)
        return _Registry(client, health)
    try:
        layout = OciLayout(plan.url.directory, limit)
    except EpochfsError as error:
        raise type(error)(f"{plan.url} is no OCI image layout that can be read: {error}") from None
    closing.callback(layout.close)
    return layout


def _assemble(
    plan: FileSystemPlan,
    source: _Registry | OciLayout,
    closing: contextlib.ExitStack,
    mountpoint: str,
    passthrough: Passthrough | None,
    warn: Callable[[str], None],
) -> Session:
    cache = BlobCache(plan.cache)
    user = CacheUser(os.getpid(), mountpoint, str(plan.url), plan.cache.size_limit)
    _announce(user, cache, closing)
    history = TagHistory(
        cache.directory.private_file_or_none("tags.sqlite"),
        plan.url.base,
        report=cache.directory.report,
        make_room=cache.quota.evict_some,
    )
    closing.callback(history.close)
    remembering = None
    blobs: BlobStore
    if isinstance(source, OciLayout):
        listings = Listings(source, plan.listings, history)
        blobs = LayoutBlobs(source, plan.blobs)
    else:
        remembering = client = _remembering(plan, source, cache, closing)
        # What is served while the registry is down, and for how long, is decided in one place.
        fresh = dataclasses.replace(plan.listings, stale_if_error=0.0)
        listings = Listings(client, fresh, history, lambda: client.recalled, client.facts)
        source.health.on_return = listings.clear
        blobs = Blobs(client, cache, plan.blobs, client.check_registry)
    closing.callback(listings.close)
    closing.callback(blobs.close)
    composer = Composer(blobs, cache, plan.blobs.timeout)
    closing.callback(composer.close)
    layers = Layers(blobs, cache)
    closing.callback(layers.close)
    if isinstance(source, _Registry):
        # Before all that: a download that waits for an answer could not put away what it has.
        closing.callback(source.client.close)
        # First of all: what fails because it was closed says nothing of the registry.
        closing.callback(source.health.close)
    observer = Observer(
        registry=str(plan.url),
        mountpoint=mountpoint,
        source=source.client if isinstance(source, _Registry) else source,
        remembering=remembering,
        cache=cache,
        blobs=blobs,
        passthrough=passthrough,
    )
    down = isinstance(source, _Registry) and source.health.is_down
    _settle(plan, listings, (lambda _: None) if down else warn)
    context = Context(
        listings,
        blobs,
        layers,
        composer,
        KernelMemory(listings.kernel_ttl),
        observer.status_json,
        plan.blobs.timeout,
    )
    return Session(FileSystem(root(plan.url.prefix), context), observer.status)


def _settle(plan: FileSystemPlan, listings: Listings, warn: Callable[[str], None]) -> None:
    """Find out what is listed, and that there is what is to be the root."""
    if unlisted := listings.settle(min(_SETTLING_SECONDS, plan.listings.timeout)):
        warn(f"{plan.url}: {unlisted}")
    if plan.url.prefix is not None:
        try:
            listings.check(plan.url.prefix, or_parent=True)
        except NotFound:
            raise NotFound(
                f"there is no repository {plan.url.prefix}, and none below it: check the path of "
                f"'{printable(str(plan.url))}'"
            ) from None


def _announce(user: CacheUser, cache: BlobCache, closing: contextlib.ExitStack) -> None:
    """Let `epochfs cache` see who uses the cache, where there is room to say so."""
    try:
        closing.enter_context(announced(cache.directory, user))
    except CacheFailure as error:
        if not is_shortage(error):
            raise
        cache.directory.report(error)


def _remembering(
    plan: FileSystemPlan, registry: _Registry, cache: BlobCache, closing: contextlib.ExitStack
) -> RememberingClient:
    """Return a client that remembers, in the cache, what the registry says."""
    answers = AnswerStore(
        cache.directory.private_file_or_none("answers.sqlite"),
        plan.url.base,
        registry.client.bearer_for,
        report=cache.directory.report,
        make_room=cache.quota.evict_some,
    )
    closing.callback(answers.close)
    max_age = plan.listings.metadata_ttl + plan.listings.stale_if_error
    return RememberingClient(registry.client, answers, registry.health, max_age)
