"""The process that serves a mount: the wiring of all the layers, from the client up to FUSE.

Importing this imports the binding, which fails without libfuse: `system.require_fuse` comes first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time

from epochfs import __version__, operations
from epochfs.blobcache import BlobCache
from epochfs.blobs import Blobs
from epochfs.cli import ending, probe
from epochfs.cli.daemon import Ready
from epochfs.cli.plan import MountPlan
from epochfs.client import RegistryClient
from epochfs.errors import CacheFailure, printable
from epochfs.listings import Listings
from epochfs.passthrough import Passthrough
from epochfs.taghistory import TagHistory
from epochfs.tree import Tree
from epochfs.vfs import FileSystem

log = logging.getLogger(__name__)


def serve(plan: MountPlan, ready: Ready) -> None:
    """Check the registry, then mount it and serve it until it is unmounted.

    Calls `ready` once it is mounted. From the unmounting on, the process ends within seconds.
    """
    with contextlib.ExitStack() as closing:
        client = probe.connect(
            plan.url, plan.connection, manifest_limit=plan.listings.manifest_limit
        )
        closing.callback(client.close)
        probe.check(client, plan.connection)
        passthrough = Passthrough(plan.cache.directory, operations.library_version())
        try:
            filesystem = assemble(plan, client, passthrough, closing)
        except CacheFailure as error:
            raise CacheFailure(
                f"the cache '{printable(plan.cache.directory)}' cannot be used: {error}; "
                "choose another --cache-dir"
            ) from None

        def mounted() -> None:
            log.info("%s is mounted on %s", plan.url, printable(plan.path))
            ready()

        fuse = operations.FuseOptions(
            fsname=str(plan.url),
            kernel_ttl=plan.listings.kernel_ttl,
            uid=plan.uid,
            gid=plan.gid,
            allow_other=plan.allow_other,
            extra=plan.kernel_words,
        )
        exit_code = 1
        try:
            operations.serve(filesystem, plan.path, fuse, passthrough, on_ready=mounted)
            exit_code = 0
        finally:
            ending.exit_within(ending.GRACE, exit_code)
    log.info("%s is unmounted", printable(plan.path))


def assemble(
    plan: MountPlan,
    client: RegistryClient,
    passthrough: Passthrough,
    closing: contextlib.ExitStack,
) -> FileSystem:
    """Return the filesystem of a plan; `closing` is given what must be closed after it."""
    cache = BlobCache(plan.cache)
    history = TagHistory(plan.cache.directory / "tags.sqlite", plan.url.base)
    closing.callback(history.close)
    listings = Listings(client, plan.listings, history)
    closing.callback(listings.close)
    blobs = Blobs(client, cache, plan.blobs)
    closing.callback(blobs.close)
    started = time.time()

    def status() -> dict[str, object]:
        return {
            "version": __version__,
            "registry": str(plan.url),
            "mountpoint": str(plan.path),
            "pid": os.getpid(),
            "started": started,
            "requests": client.stats.requests,
            "bytes_received": client.stats.bytes_received,
            "retries": client.stats.retries,
            "blobs": dataclasses.asdict(blobs.counters()),
            "passthrough": dataclasses.asdict(passthrough.status()),
        }

    return FileSystem(Tree(plan.url.prefix), listings, blobs, status)
