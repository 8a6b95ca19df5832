"""All the layers up to `vfs` in this process, over a registry by its URL."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epochfs.blobs.store import Blobs
from epochfs.cache.answers import AnswerStore
from epochfs.cache.blobs import BlobCache
from epochfs.cache.tag_history import TagHistory
from epochfs.client import RegistryClient
from epochfs.config import BlobOptions, CacheOptions, Credentials, ListingOptions, TransportOptions
from epochfs.layers.layer_store import Layers
from epochfs.layers.soci import SociSource
from epochfs.metadata.health import Health
from epochfs.metadata.listings import Listings
from epochfs.metadata.offline import RememberingClient
from epochfs.oci.names import Repository
from epochfs.oci.platforms import Platform
from epochfs.vfs.composed import Composer
from epochfs.vfs.filesystem import FileSystem
from epochfs.vfs.kernel_memory import KernelMemory
from epochfs.vfs.node import Context
from epochfs.vfs.tree import root
from epochfs.vfs.writing.publisher import Publisher
from epochfs.vfs.writing.writable import WritableFileSystem
from support.registries import EmbeddedRegistry


def stack_status() -> bytes:
    """Return what `status.json` shows of layers that are not mounted."""
    return b'{"version": "under test"}\n'


@dataclass(frozen=True)
class Stack:
    """The layers, each to be called directly."""

    client: RegistryClient
    listings: Listings
    blobs: Blobs
    filesystem: FileSystem


@contextlib.contextmanager
def stack(
    url: str,
    directory: Path,
    *,
    prefix: str = "",
    timeout: float = 20.0,
    retries: int = 1,
    cache_size: int = 1 << 30,
    verify_first: bool = False,
    unverified_layers: bool = False,
    credentials: Credentials | None = None,
    platform: Platform | None = None,
    writes: bool = False,
    deletes: bool = False,
    **listing: object,
) -> Iterator[Stack]:
    """Build the layers over a registry and a cache directory; `listing` are ListingOptions.

    The registry never counts as down: each request is tried, and what is remembered serves if that
    fails.
    """
    with contextlib.ExitStack() as closing:
        listing.setdefault("believe_empty_catalog", writes)
        options = ListingOptions(timeout=timeout, **listing)  # type: ignore[arg-type]
        transport = TransportOptions(timeout=timeout, connect_timeout=timeout, retries=retries)
        client = RegistryClient(
            url,
            credentials=credentials,
            options=transport,
            manifest_limit=options.manifest_limit,
        )
        closing.callback(client.close)
        cache = BlobCache(CacheOptions(directory, cache_size))
        history = TagHistory(cache.directory.private_file("tags.sqlite"), url)
        closing.callback(history.close)
        answers = AnswerStore(None, url, client.bearer_for)
        closing.callback(answers.close)
        max_age = options.metadata_ttl + options.stale_if_error
        remembering = RememberingClient(client, answers, Health(url, lambda: None), max_age)
        listings = Listings(remembering, options, history)
        closing.callback(listings.close)
        blobs = Blobs(client, cache, BlobOptions(timeout, verify_first=verify_first))
        closing.callback(blobs.close)
        composer = Composer(blobs, cache, timeout)
        closing.callback(composer.close)
        layers = Layers(blobs, cache, SociSource.of(listings), unverified=unverified_layers)
        closing.callback(layers.close)
        kernel = KernelMemory(None if writes else listings.kernel_ttl)
        tree = root(Repository.parse(prefix) if prefix else None)
        context = Context(
            listings,
            blobs,
            layers,
            composer,
            kernel,
            stack_status,
            timeout,
            platform or Platform.of_machine(),
        )
        filesystem = FileSystem(tree, context)
        if writes:
            publisher = Publisher(client, listings)
            filesystem = WritableFileSystem(
                tree,
                context,
                publisher,
                cache,
                manifest_limit=options.manifest_limit,
                deletes=deletes,
            )
            closing.callback(filesystem.close)
        yield Stack(client, listings, blobs, filesystem)


Open = Callable[..., Stack]


def stacking(tmp_path: Path) -> Iterator[Open]:
    """A fixture: builds the layers over a registry."""
    with contextlib.ExitStack() as closing:

        def build(registry: EmbeddedRegistry, **options: Any) -> Stack:
            return closing.enter_context(stack(registry.url, tmp_path, **options))

        yield build
