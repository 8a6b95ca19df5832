"""The status of a mount, as one tree of values: for `status.json` and `metrics`.

No field holds a secret: credentials stay in `auth`, and what is said of errors was redacted there.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from epochfs import __version__
from epochfs.blobs.store import BlobCounters, BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.client import MirrorState, RegistryClient
from epochfs.counters import counter, gauge
from epochfs.fuse.passthrough import Passthrough, PassthroughStatus
from epochfs.metadata.layout_source import OciLayout
from epochfs.metadata.offline import RememberingClient


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """Whether the registry answers; `reason` is what was said when it was found not to."""

    up: bool = field(metadata=gauge("Whether the registry answers."))
    down_since: float | None = field(metadata=gauge("When the outage was noticed, as Unix time."))
    reason: str
    recalled: int = field(metadata=counter("Answers served in place of the registry's."))


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The blob cache: what it held when it was last looked at, with what came since."""

    directory: str
    held: int = field(metadata=gauge("Bytes that cached blobs take on disk."))
    limit: int = field(metadata=gauge("Bytes that they may take."))
    free: int = field(metadata=gauge("Bytes that the cache's disk has free."))


@dataclass(frozen=True, slots=True)
class Status:
    """A mount at one moment, or a process that reads without one: then `mountpoint` is empty.

    `cache` is None where a layout is shown, whose blobs need no room.
    """

    version: str
    registry: str
    mountpoint: str
    pid: int
    started: float = field(metadata=gauge("When the mount was made, as Unix time."))
    requests: int = field(metadata=counter("Requests sent."))
    bytes_received: int = field(metadata=counter("Bytes received in answers."))
    retries: int = field(metadata=counter("Requests sent again after a failure."))
    token_expires: float | None = field(
        metadata=gauge("When the last of the registry's tokens expires, as Unix time.")
    )
    health: HealthStatus
    mirrors: tuple[MirrorState, ...]
    blobs: BlobCounters
    cache: CacheStatus | None
    passthrough: PassthroughStatus | None


StatusSource = Callable[[], Status]


@dataclass(frozen=True)
class Observer:
    """Looks at the parts of one mount when it is asked.

    What a layout says is not remembered: there `remembering` is None.
    """

    registry: str
    mountpoint: str
    source: RegistryClient | OciLayout
    remembering: RememberingClient | None
    cache: BlobCache
    blobs: BlobStore
    passthrough: Passthrough | None
    started: float = field(default_factory=time.time)

    def status(self) -> Status:
        """Return the state of the mount now."""
        stats = self.source.stats
        return Status(
            version=__version__,
            registry=self.registry,
            mountpoint=self.mountpoint,
            pid=os.getpid(),
            started=self.started,
            requests=stats.requests,
            bytes_received=stats.bytes_received,
            retries=stats.retries,
            token_expires=self.source.token_expiry,
            health=self._health(),
            mirrors=self.source.mirrors,
            blobs=self.blobs.counters(),
            cache=self._cache() if self.remembering else None,
            passthrough=self.passthrough.status() if self.passthrough else None,
        )

    def status_json(self) -> bytes:
        """Return the state of the mount now, as `/.epochfs/status.json` shows it."""
        return f"{json.dumps(dataclasses.asdict(self.status()), indent=2)}\n".encode()

    def _cache(self) -> CacheStatus:
        return CacheStatus(
            directory=str(self.cache.directory.path),
            held=self.cache.quota.held(),
            limit=self.cache.quota.size_limit,
            free=_free(self.cache.directory.path),
        )

    def _health(self) -> HealthStatus:
        if self.remembering is None:
            return HealthStatus(up=True, down_since=None, reason="", recalled=0)
        outage = self.remembering.health.outage
        return HealthStatus(
            up=outage is None,
            down_since=outage.since if outage else None,
            reason=outage.reason if outage else "",
            recalled=self.remembering.recalled,
        )


def _free(directory: Path) -> int:
    """Return how many bytes the directory's disk has free; 0 where that cannot be told."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0
