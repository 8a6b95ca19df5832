"""Read-through blobs: from the cache if it has them, else from one shared download per digest.

`Blobs.open` sends no request; the first read starts what is needed. The caller has made sure that
the repository may see the blob and knows its size. A blob that the cache cannot take is read past
the cache (`open_blob`, `passing`).

Locks: `Blobs._lock` guards `_downloads` and the counts in it, hits, misses and `_ended`; no I/O
happens under it. `_spoiled` only grows, one digest at a time, and takes no lock. `Timers._lock`
guards whether its thread runs; only the scheduler's own lock, a leaf, is taken under it, and
nothing is held while an action runs.
"""

from __future__ import annotations

import logging
import sched
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from epochfs.blobs.download import Download, DownloadContext
from epochfs.blobs.fetch_plan import Budget
from epochfs.blobs.open_blob import Backing, Local, OpenBlob
from epochfs.blobs.origin import Origin
from epochfs.blobs.passing import PassedBlob, Places
from epochfs.cache.blobs import BlobCache, CachedBlob, open_files_limit
from epochfs.config import BlobOptions
from epochfs.counters import counter, gauge
from epochfs.errors import ContentMismatch, EpochfsError
from epochfs.metadata.source import PullClient
from epochfs.oci.names import Digest, Repository

log = logging.getLogger(__name__)

REST_SECONDS = 0.4
"""How long a download without readers continues, unless half of it is here."""

LINGER_SECONDS = 5.0
"""How long a download without readers is kept, in case one comes back."""

LINGER_WHOLE_SECONDS = 30.0
"""The same for a server without Range, where giving up means starting again."""

_CLOSE_SECONDS = 3.0
_MOST_STREAMS = 32
_FEWEST_STREAMS = 4


class BlobHandle(Protocol):
    """An open blob of `size` bytes."""

    size: int

    @property
    def verified(self) -> bool:
        """Whether every byte has been checked against the digest."""

    def fileno(self) -> int | None:
        """Return a descriptor of the blob's file, if it is in one: valid while the handle is open,
        and the blob's once it is `verified`."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""

    def close(self) -> None:
        """Close it; once."""


class BlobStore(Protocol):
    """Blobs to read: those of a registry, or of a layout on disk. Any thread may call anything."""

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> BlobHandle:
        """Open the blob of `size` bytes; raises ContentMismatch if none can be of that size.

        A `precise` reader knows what it needs, and nothing around or behind it is fetched for it.
        """

    def was_spoiled(self, digest: Digest) -> bool:
        """Whether wrong bytes of the blob were ever served, to readers who may still be reading.

        Such a reader must get an error, not an end that another reader's right bytes give it: bytes
        that are kept must not be shared between readers of this blob.
        """

    def cached_percent(self, digest: Digest, size: int) -> int:
        """Return how much of the blob is here, in percent, rounded down; 100 once it is kept."""

    def counters(self) -> BlobCounters:
        """Return what happened since the start, and what is under way."""

    def close(self) -> None:
        """Stop all work; no handle may be used any more."""


@dataclass(frozen=True, slots=True)
class BlobCounters:
    """What the read-through has done since the start, for `status.json`."""

    hits: int = field(metadata=counter("Blobs opened that were in the cache."))
    misses: int = field(metadata=counter("Blobs opened that were not."))
    downloads: int = field(metadata=gauge("Downloads under way."))
    bytes_present: int = field(metadata=gauge("Bytes that the downloads under way have."))
    connections: int = field(metadata=gauge("Connections at work on downloads."))


@dataclass(slots=True, eq=False)
class _Shared:
    """A download, how many handles read from it, and whether newcomers may still join.

    `lingers` while a timer is set to look at it, which had no readers for a moment.
    """

    download: Download
    readers: int = 1
    ended: bool = False
    lingers: bool = False
    unused_since: float = 0.0


class Blobs:
    """The blobs of one registry, a `BlobStore`. What a download has is kept when it is closed."""

    def __init__(
        self,
        client: PullClient,
        cache: BlobCache,
        options: BlobOptions,
        check_registry: Callable[[], None] = lambda: None,
    ) -> None:
        """`check_registry` raises if the registry is known to be down."""
        self._client = client
        self._check_registry = check_registry
        self._cache = cache
        self._directory = cache.directory
        self._context = DownloadContext(cache, options, Budget(options.connections))
        self._timers = Timers()
        self._lock = threading.Lock()
        self._downloads: dict[tuple[Digest, int], _Shared] = {}
        self._spoiled: set[Digest] = set()
        self._ended = 0
        self._hits = 0
        self._misses = 0
        self._ranged: bool | None = None
        self._places = Places(max(_FEWEST_STREAMS, min(_MOST_STREAMS, open_files_limit() // 8)))

    def open(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool = False
    ) -> BlobHandle:
        if size == 0 and not digest.matches(b""):
            raise ContentMismatch(f"{digest} is not the digest of an empty blob")
        local, release = self._open_local(repository, digest, size, precise=precise)

        def pass_through() -> PassedBlob:
            origin = self._origin(repository, digest, size)
            whole = self._context.options.verify_first
            return PassedBlob(origin, self._places, local.read_present, whole=whole)

        backing = Backing(local, release, pass_through, self._directory.report)
        blob = OpenBlob(size, backing, self._context.options.timeout, precise=precise)
        if not local.verified and self._directory.fails_now and self._places.proof((digest, size)):
            # It did not take this blob a moment ago, and what was proved of it then holds.
            blob.pass_through()
        return blob

    def _open_local(
        self, repository: Repository, digest: Digest, size: int, *, precise: bool
    ) -> tuple[Local, Callable[[], None]]:
        """Open a blob in the cache, join its download, or begin one; return how to release it."""
        key = (digest, size)
        while True:
            with self._lock:
                ended = self._ended
                shared = self._downloads.get(key)
                if shared is not None:
                    shared.readers += 1
                    self._misses += 1
                    return shared.download, partial(self._release, shared)
            blob = self._cache.open_blob(digest, size)
            if blob is None:
                try:
                    self._check_registry()
                except EpochfsError:
                    if not self._cache.cached_bytes(digest):  # to be read meanwhile
                        raise
            with self._lock:
                if blob is not None:
                    self._hits += 1
                    return _Cached(blob), blob.close
                # Not if one ended since the look into the cache: it may be there now.
                if ended == self._ended and key not in self._downloads:
                    self._misses += 1
                    origin = self._origin(repository, digest, size)
                    shared = self._downloads[key] = self._begin(origin, precise=precise)
                    return shared.download, partial(self._release, shared)

    def was_spoiled(self, digest: Digest) -> bool:
        return digest in self._spoiled

    def cached_percent(self, digest: Digest, size: int) -> int:
        with self._lock:
            shared = self._downloads.get((digest, size))
        if size == 0 or (shared is None and self._cache.is_complete(digest, size)):
            return 100
        present = shared.download.state.progress[0] if shared else self._cache.cached_bytes(digest)
        return min(99, 100 * present // size)

    def counters(self) -> BlobCounters:
        with self._lock:
            states = [shared.download.state for shared in self._downloads.values()]
            hits, misses = self._hits, self._misses
        progress = [state.progress for state in states]
        return BlobCounters(
            hits=hits,
            misses=misses,
            downloads=len(progress),
            bytes_present=sum(present for present, _ in progress),
            connections=sum(connections for _, connections in progress),
        )

    def close(self) -> None:
        with self._lock:
            downloads = [shared.download for shared in self._downloads.values()]
            self._downloads.clear()
        for download in downloads:
            download.close()
        self._places.close()
        for download in downloads:
            download.wait_until_idle(_CLOSE_SECONDS)

    def _origin(self, repository: Repository, digest: Digest, size: int) -> Origin:
        return Origin(
            digest,
            size,
            partial(self._client.get_blob, repository, digest),
            partial(self._client.distrust_mirrors, digest),
            partial(self._spoiled.add, digest),
            self._ranged,
        )

    def _begin(self, origin: Origin, *, precise: bool) -> _Shared:
        download = Download(origin, self._context, lambda: self._end(shared), precise=precise)
        shared = _Shared(download)
        return shared

    def _release(self, shared: _Shared) -> None:
        """Take back one reader of a download."""
        with self._lock:
            shared.readers -= 1
            if shared.readers:
                return
            shared.unused_since = time.monotonic()
            ended, lingers = shared.ended, shared.lingers
            shared.lingers = lingers or not ended
        if ended:
            shared.download.close()
            return
        shared.download.state.leave()
        if not lingers:
            self._linger(shared, REST_SECONDS)

    def _end(self, shared: _Shared) -> None:
        """Let the next open of the blob begin anew: it was kept, failed, or is not wanted."""
        download = shared.download
        with self._lock:
            if shared.ended:
                return
            shared.ended = True
            self._ended += 1
            self._downloads.pop((download.digest, download.size), None)
            self._ranged = self._ranged or download.state.plan.ranged or None
            unused = shared.readers == 0
        if unused:
            download.close()

    def _linger(self, shared: _Shared, seconds: float) -> None:
        self._timers.call(seconds, partial(self._look_after, shared))

    def _look_after(self, shared: _Shared) -> None:
        """Let a download without readers rest, and end it after a while; one that is near its end
        goes on to it."""
        with self._lock:
            if shared.readers or shared.ended:
                shared.lingers = False
                return
            unused_for = time.monotonic() - shared.unused_since
        download = shared.download
        present, connections = download.state.progress
        whole = download.state.plan.ranged is False
        patience = LINGER_WHOLE_SECONDS if whole else LINGER_SECONDS
        if connections and 2 * present >= download.size:
            self._linger(shared, LINGER_SECONDS)
        elif unused_for < REST_SECONDS:
            self._linger(shared, REST_SECONDS - unused_for)
        elif unused_for < patience:
            download.rest()
            self._linger(shared, patience - unused_for)
        else:
            self._end(shared)


class Timers:
    """Calls actions later, in one thread, which exists while there are any. For any thread.

    `threading.Timer` takes a thread for each: 64 readers of small blobs leave a hundred at a time.
    """

    def __init__(self) -> None:
        self._added = threading.Event()
        self._scheduler = sched.scheduler(time.monotonic, self._sleep)
        self._lock = threading.Lock()
        self._running = False

    def call(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` in `seconds`, or once those due before it have ended."""
        with self._lock:
            self._scheduler.enter(seconds, 0, action)
            self._added.set()
            if not self._running:
                try:
                    threading.Thread(target=self._run, name="timers", daemon=True).start()
                    self._running = True
                except RuntimeError as error:
                    log.warning("a delayed action waits for the next one: %s", error)

    def _sleep(self, seconds: float) -> None:
        """Wait until the next action is due, or another was added, maybe before it."""
        self._added.wait(seconds)
        self._added.clear()

    def _run(self) -> None:
        while True:
            try:
                self._scheduler.run()
            except Exception:
                log.exception("unforeseen failure of a delayed action")
            with self._lock:
                if self._scheduler.empty():
                    self._running = False
                    return


class _Cached:
    """A complete blob of the cache, as a handle reads it."""

    verified = True

    def __init__(self, blob: CachedBlob) -> None:
        self._blob = blob

    def fileno(self) -> int | None:
        return self._blob.fd

    def read_into(self, view: memoryview, offset: int, *, run: int, timeout: float) -> None:
        self._blob.read_into(view, offset)

    def locate(self, offset: int, count: int, *, run: int, timeout: float) -> int | None:
        return self._blob.fd

    def expect(self, *, ahead: bool) -> None:
        """Do nothing: all is here."""

    def read_present(self, view: memoryview, offset: int) -> bool:
        """Return False: it is asked for only after a read has failed."""
        return False
