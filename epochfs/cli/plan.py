"""What a command line and its environment amount to: frozen values, complete and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from epochfs.config import (
    BlobOptions,
    CacheOptions,
    Credentials,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
)
from epochfs.names import Repository


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a registry; `repositories` are those named with --repo."""

    transport: TransportOptions
    credentials: Credentials
    repositories: tuple[Repository, ...]


@dataclass(frozen=True, slots=True)
class MountPlan:
    """Everything a mount is made from. All paths are absolute; `kernel_words` are for mount(2)."""

    url: RegistryUrl
    path: Path
    connection: Connection
    cache: CacheOptions
    listings: ListingOptions
    blobs: BlobOptions
    uid: int
    gid: int
    allow_other: bool
    kernel_words: tuple[str, ...]
    foreground: bool
    log_file: Path | None
