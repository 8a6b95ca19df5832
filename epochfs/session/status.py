"""The status of a mount, as one tree of values: shown as `status.json`, and served to Prometheus.

No field holds a secret: credentials stay in `auth`, which also redacts error texts.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from epochfs import __version__
from epochfs.blobs.store import BlobCounters, BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.client import MirrorState, RegistryClient
from epochfs.config import Address
from epochfs.counters import counter, gauge, readings
from epochfs.errors import MountFailure
from epochfs.fuse.passthrough import Passthrough, PassthroughStatus
from epochfs.metadata.layout_source import OciLayout
from epochfs.metadata.offline import RememberingClient

if TYPE_CHECKING:
    from prometheus_client import Metric

    from epochfs.vfs.writing.writable import WritingStatus


@dataclass(frozen=True, slots=True)
class HealthStatus:
    """Whether the registry answers; `reason` is the error by which an outage was noticed."""

    up: bool = field(metadata=gauge("Whether the registry answers."))
    down_since: float | None = field(metadata=gauge("When the outage was noticed, as Unix time."))
    reason: str
    recalled: int = field(metadata=counter("Answers served in place of the registry's."))


@dataclass(frozen=True, slots=True)
class CacheStatus:
    """The blob cache; `held` is what it held when last surveyed, and what was added since."""

    directory: str
    held: int = field(metadata=gauge("Bytes that cached blobs take on disk."))
    limit: int = field(metadata=gauge("Bytes that they may take."))
    free: int = field(metadata=gauge("Bytes that the cache's disk has free."))


@dataclass(frozen=True, slots=True)
class Status:
    """A mount at one moment, or a process that reads without one: then `mountpoint` is empty.

    `cache` is None for a layout, whose blobs are not cached; `writing` is None where nothing can be
    written.
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
    writing: WritingStatus | None = None


StatusSource = Callable[[], Status]


def _no_writing() -> None:
    """Return the status of writing where nothing can be written."""


@dataclass
class Observer:
    """Collects the status of one mount on request; `remembering` is None for a layout.

    `writing` is set once there is a file system that can be written to.
    """

    registry: str
    mountpoint: str
    source: RegistryClient | OciLayout
    remembering: RememberingClient | None
    cache: BlobCache
    blobs: BlobStore
    passthrough: Passthrough | None
    started: float = field(default_factory=time.time)
    writing: Callable[[], WritingStatus | None] = _no_writing

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
            cache=self._cache() if self.remembering and not self.cache.directory.off else None,
            passthrough=self.passthrough.status() if self.passthrough else None,
            writing=self.writing(),
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
        outage = self.remembering.health.outage if self.remembering else None
        return HealthStatus(
            up=outage is None,
            down_since=outage.since if outage else None,
            reason=outage.reason if outage else "",
            recalled=self.remembering.recalled if self.remembering else 0,
        )


def _free(directory: Path) -> int:
    """Return how many bytes the directory's disk has free; 0 if unknown."""
    try:
        return shutil.disk_usage(directory).free
    except OSError:
        return 0


@dataclass(frozen=True)
class _Collector:
    """Turns a status into metrics at each scrape."""

    source: StatusSource

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; called by prometheus_client."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        families = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        status = self.source()
        names = ("version", "registry", "mountpoint")
        info = GaugeMetricFamily("epochfs_mount", "What is mounted, and where.", labels=names)
        info.add_metric([status.version, status.registry, status.mountpoint], 1)
        yield info
        for reading in readings(status):
            family = families[reading.kind](f"epochfs_{reading.name}", reading.about)
            family.add_metric([], reading.value)
            yield family


def serve_metrics(address: Address, source: StatusSource) -> str:
    """Serve the status to Prometheus over HTTP until the process ends; return the URL.

    prometheus_client, which is optional, answers from its own threads. Its default registry, with
    numbers of the process, is not used: exported is what `status.json` shows, and where the mount
    is. Raises MountFailure without it, and if it cannot listen on the address.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ModuleNotFoundError:
        raise MountFailure(
            "--metrics needs prometheus-client: install it beside epochfs (the extra 'metrics')"
        ) from None
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(source))
    try:
        server, _ = start_http_server(address.port, address.host, registry)
    except OSError as error:
        raise MountFailure(
            f"cannot serve metrics on {address}: {error.strerror}: choose another --metrics"
        ) from None
    return f"http://{Address(address.host, server.server_port)}/metrics"
