"""The wiring of all the layers, from the client up to the filesystem without FUSE."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from epochfs import __version__
from epochfs.blobcache import BlobCache
from epochfs.blobs import Blobs
from epochfs.cacheusers import CacheUser, announce
from epochfs.cli import probe
from epochfs.cli.plan import FileSystemPlan
from epochfs.client import RegistryClient
from epochfs.errors import CacheFailure, printable
from epochfs.listings import Listings
from epochfs.taghistory import TagHistory
from epochfs.tree import Tree
from epochfs.vfs import FileSystem

Facts = Callable[[], Mapping[str, object]]
"""What a command knows of itself at a moment, for `status.json`."""


def open_filesystem(
    plan: FileSystemPlan, closing: contextlib.ExitStack, facts: Facts
) -> FileSystem:
    """Check the registry and the cache, and return the filesystem over both.

    `closing` is given what must be closed after it; `facts` go into its status.
    """
    client = probe.connect(plan.url, plan.connection, manifest_limit=plan.listings.manifest_limit)
    closing.callback(client.close)
    probe.check(client, plan.connection)
    try:
        return _assemble(plan, client, closing, facts)
    except CacheFailure as error:
        raise CacheFailure(
            f"the cache '{printable(plan.cache.directory)}' cannot be used: {error}; "
            "choose another --cache-dir"
        ) from None


def _assemble(
    plan: FileSystemPlan,
    client: RegistryClient,
    closing: contextlib.ExitStack,
    facts: Facts,
) -> FileSystem:
    cache = BlobCache(plan.cache)
    mountpoint = str(facts().get("mountpoint", ""))
    user = CacheUser(os.getpid(), mountpoint, str(plan.url), plan.cache.size_limit)
    closing.callback(os.close, announce(cache.directory, user))
    history = TagHistory(cache.directory.private_file("tags.sqlite"), plan.url.base)
    closing.callback(history.close)
    listings = Listings(client, plan.listings, history)
    closing.callback(listings.close)
    blobs = Blobs(client, cache, plan.blobs)
    closing.callback(blobs.close)
    # First of all: a download that waits for an answer could not put away what it has.
    closing.callback(client.close)

    def status() -> dict[str, object]:
        return {
            "version": __version__,
            "registry": str(plan.url),
            **facts(),
            "requests": client.stats.requests,
            "bytes_received": client.stats.bytes_received,
            "retries": client.stats.retries,
            "token_expires": client.token_expiry,
            "blobs": dataclasses.asdict(blobs.counters()),
            "mirrors": [dataclasses.asdict(mirror) for mirror in client.mirrors],
            "cache": {"limit": cache.room.size_limit, "free": _free(plan.cache.directory)},
        }

    return FileSystem(Tree(plan.url.prefix), listings, blobs, status)


def _free(directory: Path) -> int:
    """Return how many bytes the directory's disk has free; 0 where that cannot be told."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
