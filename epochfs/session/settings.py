"""The settings that a command line and its environment give: frozen, complete and checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from epochfs.config import (
    Address,
    BlobOptions,
    CacheOptions,
    Credentials,
    LayoutPath,
    ListingOptions,
    RegistryUrl,
    TransportOptions,
)
from epochfs.oci.names import Repository


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a registry; `repositories` are those named with --repo.

    `hosts_dir` is where its mirrors are looked up, if anywhere.
    """

    transport: TransportOptions
    credentials: Credentials
    repositories: tuple[Repository, ...]
    hosts_dir: Path | None = None


@dataclass(frozen=True, slots=True)
class Fetching:
    """What is kept of a registry, and how it is fetched; `manifest_limit` is in bytes."""

    cache: CacheOptions
    connections: int
    manifest_limit: int


@dataclass(frozen=True, slots=True)
class FileSystemPlan:
    """Everything a file system is made from, mounted or not. All paths are absolute."""

    url: RegistryUrl | LayoutPath
    connection: Connection
    cache: CacheOptions
    listings: ListingOptions
    blobs: BlobOptions
    offline_ok: bool


@dataclass(frozen=True, slots=True)
class MountPlan(FileSystemPlan):
    """Everything a mount is made from; `kernel_words` are for mount(2)."""

    path: Path
    uid: int
    gid: int
    allow_other: bool
    kernel_words: tuple[str, ...]
    foreground: bool
    log_file: Path | None
    metrics: Address | None
