"""A registry or layout opened, mounted or not: settings, opening, status, prefetch.

Uses every folder below it and knows no command line, so that another front end can open one: with
`SessionSettings`, by `opening.open_session`.
Used by `cli` and `fsspec`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from epochfs.config import (
    BlobOptions,
    CacheOptions,
    Credentials,
    LayoutPath,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
)
from epochfs.oci.names import Repository
from epochfs.oci.platforms import Platform


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a registry; `repositories` are listed even where it has no catalog.

    `hosts_dir` is where its mirrors are looked up, if anywhere.
    """

    transport: TransportOptions
    credentials: Credentials
    repositories: tuple[Repository, ...]
    hosts_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How to open a registry or layout, to mount it or not. All paths are absolute.

    `platform` chooses among the images of an index. `writes` is for a registry as a whole, or all
    below a prefix; `deletes` is for blobs and manifests, and needs it.
    """

    url: RegistryUrl | LayoutPath
    connection: Connection
    cache: CacheOptions
    listings: ListingOptions
    blobs: BlobOptions
    offline_ok: bool
    platform: Platform
    writes: bool = field(default=False, kw_only=True)
    deletes: bool = field(default=False, kw_only=True)
