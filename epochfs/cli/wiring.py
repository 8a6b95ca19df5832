"""The wiring of all the layers, from the client up to the filesystem without FUSE."""

from __future__ import annotations

import contextlib
import dataclasses
import os

from epochfs.answers import AnswerStore
from epochfs.blobcache import BlobCache
from epochfs.blobs import Blobs
from epochfs.cacheusers import CacheUser, announce
from epochfs.cli import probe
from epochfs.cli.plan import FileSystemPlan
from epochfs.client import RegistryClient
from epochfs.errors import CacheFailure, DeadlineExceeded, Unavailable, printable
from epochfs.health import Health
from epochfs.listings import Listings
from epochfs.passthrough import Passthrough
from epochfs.remembering import RememberingClient
from epochfs.status import Observer
from epochfs.taghistory import TagHistory
from epochfs.tree import Tree
from epochfs.vfs import FileSystem


def open_filesystem(
    plan: FileSystemPlan,
    closing: contextlib.ExitStack,
    mountpoint: str = "",
    passthrough: Passthrough | None = None,
) -> FileSystem:
    """Check the registry and the cache, and return the filesystem over both.

    `closing` is given what must be closed after it. `mountpoint` is where it will be mounted, if it
    is, and `passthrough` is how then; its status shows both.
    """
    client = probe.connect(plan.url, plan.connection, manifest_limit=plan.listings.manifest_limit)
    closing.callback(client.close)
    health = Health(plan.url.base, client.ping)
    try:
        probe.check(client, plan.connection)
    except (Unavailable, DeadlineExceeded) as error:
        if not plan.offline_ok:
            raise
        health.failed(error, pinged=True)
    try:
        return _assemble(plan, client, health, closing, mountpoint, passthrough)
    except CacheFailure as error:
        raise CacheFailure(
            f"the cache '{printable(plan.cache.directory)}' cannot be used: {error}; "
            "choose another --cache-dir"
        ) from None


def _assemble(
    plan: FileSystemPlan,
    client: RegistryClient,
    health: Health,
    closing: contextlib.ExitStack,
    mountpoint: str,
    passthrough: Passthrough | None,
) -> FileSystem:
    cache = BlobCache(plan.cache)
    user = CacheUser(os.getpid(), mountpoint, str(plan.url), plan.cache.size_limit)
    closing.callback(os.close, announce(cache.directory, user))
    answers = AnswerStore(
        cache.directory.private_file("answers.sqlite"), plan.url.base, client.fingerprint
    )
    closing.callback(answers.close)
    max_age = plan.listings.metadata_ttl + plan.listings.stale_if_error
    remembering = RememberingClient(client, answers, health, max_age)
    history = TagHistory(cache.directory.private_file("tags.sqlite"), plan.url.base)
    closing.callback(history.close)
    # What is served while the registry is down, and for how long, is decided in one place.
    fresh = dataclasses.replace(plan.listings, stale_if_error=0.0)
    listings = Listings(remembering, fresh, history)
    closing.callback(listings.close)
    health.on_return = listings.clear
    blobs = Blobs(remembering, cache, plan.blobs)
    closing.callback(blobs.close)
    # Before all that: a download that waits for an answer could not put away what it has.
    closing.callback(client.close)
    # First of all: what fails because it was closed says nothing of the registry.
    closing.callback(health.close)
    observer = Observer(
        registry=str(plan.url),
        mountpoint=mountpoint,
        client=client,
        remembering=remembering,
        health=health,
        cache=cache,
        blobs=blobs,
        passthrough=passthrough,
    )
    return FileSystem(Tree(plan.url.prefix), listings, blobs, observer.status)
