"""Prefetches blobs into the cache: finds those of a selection, then reads them all.

A blob is read through the tree as by any reader, so its download is shared, resumed and verified
alike. It counts as fetched once it is in the cache. Both steps, `find` and `fetch`, work in
parallel and yield as they progress.

Locks: `Prefetch._lock` guards `_blobs` and the replacing of `progress`; no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TypeVar

from epochfs.errors import CacheFailure, EpochfsError, NotFound, Unavailable
from epochfs.metadata.parallel import in_turn
from epochfs.oci.closure import Fetched, Step, Walk
from epochfs.oci.manifests import Document
from epochfs.oci.names import Digest, Reference, Repository, Tag
from epochfs.vfs.manifest_directory import MANIFEST_FILE, REFERRERS
from epochfs.vfs.reader import Files
from epochfs.vfs.tree import CONTROL, RESERVED, STATUS_FILE, shown_segment

TICK_SECONDS = 0.2
"""How often `find` and `fetch` yield at least."""

_KEEPING_SECONDS = 60.0
_KEEPING_POLL = 0.02

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Selection:
    """What to prefetch of the repository at `path` in the tree: one reference, or all tags."""

    path: str
    reference: Reference | None = None

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Parse `REPO`, `REPO:TAG` or `REPO@DIGEST`; raises InvalidName.

        In `REPO:TAG@DIGEST` the digest wins, as it does in other tools.
        """
        name, at, digest = text.partition("@")
        head, colon, tag = name.rpartition(":")
        tagged = bool(colon) and "/" not in tag
        repository = Repository.parse(head if tagged else name)
        if at:
            return cls.of(repository, Digest.parse(digest))
        return cls.of(repository, Tag.parse(tag) if tagged else None)

    @classmethod
    def of(cls, repository: Repository, reference: Reference | None = None) -> Selection:
        """Return the selection of a repository, or of one artifact in it."""
        path = "".join(f"/{shown_segment(segment)}" for segment in repository.segments)
        return cls(path, reference)

    def __str__(self) -> str:
        mark = "@" if isinstance(self.reference, Digest) else ":"
        return self.path.strip("/") + (f"{mark}{self.reference}" if self.reference else "")


@dataclass(frozen=True, slots=True)
class Blob:
    """A selected blob, and how many of its `size` bytes were cached (`here`) when it was found."""

    path: str
    size: int
    here: int

    @property
    def complete(self) -> bool:
        """Whether it was completely cached already."""
        return self.here == self.size

    def __str__(self) -> str:
        return self.path.strip("/")


@dataclass(frozen=True, slots=True)
class Failure:
    """What could not be found or fetched, and why."""

    subject: str
    error: EpochfsError

    def __str__(self) -> str:
        return f"{self.subject}: {self.error}"


@dataclass(frozen=True, slots=True)
class Progress:
    """How many blobs were found, of what `size` in all, and what became of them so far.

    In bytes: `left` remain. In blobs: `fetched`, `there` before, `failed`.
    """

    blobs: int = 0
    size: int = 0
    left: int = 0
    fetched: int = 0
    there: int = 0
    failed: int = 0


class Prefetch:
    """One run: `find`, then `fetch`, then `close`, all called by one thread.

    Any thread may look at its `progress`.
    """

    def __init__(self, files: Files, parallel: int) -> None:
        """`parallel` is how many blobs are fetched at a time."""
        self._files = files
        self._pool = ThreadPoolExecutor(parallel, thread_name_prefix="prefetch")
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._blobs: dict[Digest, Blob] = {}
        self.progress = Progress()

    def find(self, selections: Sequence[Selection]) -> Iterator[Failure | None]:
        """Find the blobs of the selections; without any, those of every listed repository.

        Yields each failure as it occurs, and None every now and then.
        """
        wanted = list(selections)
        if not wanted:
            yield from self._find_repositories(wanted)
        if not wanted:
            error = NotFound("none are listed: name what to prefetch, as REPO[:TAG|@DIGEST]")
            yield Failure("repositories", error)
        yield from self._each(self._find_blobs, wanted)

    def fetch(self) -> Iterator[Failure | None]:
        """Download the blobs that were found into the cache; yields as `find` does.

        Cached ones are marked as used first, so that none is evicted for another. The largest of
        the others start first, so that no large one is left to the end alone.
        """
        blobs = sorted(self._blobs.values(), key=lambda blob: (not blob.complete, -blob.size))
        yield from self._each(self._fetch_blob, blobs)

    def space(self) -> tuple[int, int] | None:
        """Return the maximum size of the cache, and how much its disk has free, in bytes.

        None if the status does not say.
        """
        cache = json.loads(self._content(f"/{CONTROL}/{STATUS_FILE}")).get("cache")
        return (int(cache["limit"]), int(cache["free"])) if cache else None

    def close(self) -> None:
        """Stop what is in progress at its next piece; what has arrived is kept."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _each(self, work: Callable[[_T], None], items: Iterable[_T]) -> Iterator[Failure | None]:
        """Call `work` for all items in parallel; a failure does not stop the others."""

        def attempt(item: _T) -> Failure | None:
            try:
                work(item)
            except EpochfsError as error:
                return Failure(str(item), error)
            return None

        ended: queue.SimpleQueue[Future[Failure | None]] = queue.SimpleQueue()
        remaining = 0
        for item in items:
            self._pool.submit(attempt, item).add_done_callback(ended.put)
            remaining += 1
        while remaining:
            try:
                failure = ended.get(timeout=TICK_SECONDS).result()
                remaining -= 1
            except queue.Empty:
                failure = None
            yield failure

    def _count(self, **more: int) -> None:
        with self._lock:
            was = self.progress
            self.progress = replace(
                was, **{name: getattr(was, name) + count for name, count in more.items()}
            )

    # ---- finding -----------------------------------------------------------------------------

    def _find_repositories(self, found: list[Selection]) -> Iterator[Failure | None]:
        """Add all repositories of the tree to `found`, level by level."""
        level = ["/"]
        while level:
            below: list[str] = []

            def enter(path: str, below: list[str] = below) -> None:
                parent = path.rstrip("/")
                for name in self._files.names(path):
                    if name == "blobs":
                        found.append(Selection(parent))
                    elif name not in RESERVED:
                        below.append(f"{parent}/{name}")

            yield from self._each(enter, level)
            level = below

    def _find_blobs(self, selection: Selection) -> None:
        for digest in self._digests(selection):
            with self._lock:
                if digest in self._blobs:
                    continue
            path = f"{selection.path}/blobs/{digest}"
            size = self._files.size(path)
            blob = Blob(path, size, size * self._files.cached_percent(path) // 100)
            with self._lock:
                is_new = self._blobs.setdefault(digest, blob) is blob
            if is_new:
                self._count(blobs=1, size=blob.size, left=blob.size - blob.here)

    def _digests(self, selection: Selection) -> Iterator[Digest]:
        """Yield the blobs of a selection, then raise the error that hid others."""
        if selection.reference is None:
            try:
                yield from map(Digest.parse, self._files.names(f"{selection.path}/blobs"))
            except NotFound:
                raise NotFound("no such repository") from None
            return
        if isinstance(selection.reference, Digest):
            start = selection.reference
        else:
            link = f"{selection.path}/tags/{selection.reference}"
            start = Digest.parse(PurePosixPath(self._files.target(link)).name)
        manifests = f"{selection.path}/manifests"

        def fetched(step: Step) -> Fetched:
            try:
                return self._fetched(manifests, step.digest)
            except NotFound as error:
                return Fetched(error=error) if step.digest == start else Fetched()
            except EpochfsError as error:
                return Fetched(error=error)

        walk = Walk()
        in_turn(fetched, walk.begin([start], required=False), walk.take)
        found = walk.end()
        yield from found.blobs
        found.complete()

    def _fetched(self, manifests: str, digest: Digest) -> Fetched:
        """Fetch a manifest and its referrers, as far as possible; raises NotFound."""
        document = Document(digest, "", self._content(f"{manifests}/{digest}/{MANIFEST_FILE}"))
        referrers: list[Digest] = []
        missing: EpochfsError | None = None
        try:
            document.view  # noqa: B018 - a malformed one raises here
            listed = self._files.names(f"{manifests}/{digest}/{REFERRERS}")
            referrers.extend(map(Digest.parse, listed))
        except EpochfsError as error:
            missing = error
        return Fetched(document, tuple(referrers), missing)

    def _content(self, path: str) -> bytes:
        return b"".join(bytes(piece) for piece in self._files.pieces(path))

    # ---- fetching ----------------------------------------------------------------------------

    def _fetch_blob(self, blob: Blob) -> None:
        left = blob.size - blob.here
        try:
            if blob.complete and self._use(blob):
                self._count(there=1)
                return
            position = 0
            with contextlib.closing(self._files.pieces(blob.path)) as pieces:
                for piece in pieces:
                    if self._closing.is_set():
                        raise Unavailable("interrupted")
                    # Bytes of an earlier run count as a prefix, wherever in the blob they are.
                    position += len(piece)
                    moved = max(0, left - (blob.size - position))
                    self._count(left=-moved)
                    left -= moved
            self._wait_until_kept(blob)
            self._count(fetched=1)
        except EpochfsError:
            self._count(failed=1, left=-left)
            raise

    def _use(self, blob: Blob) -> bool:
        """Mark a cached blob as used now; return False if it was evicted meanwhile."""
        if self._files.cached_percent(blob.path) != 100:
            return False
        with contextlib.closing(self._files.pieces(blob.path)) as pieces:
            next(pieces, None)
        return True

    def _wait_until_kept(self, blob: Blob) -> None:
        """Return once a blob that was read to its end is in the cache, which may take a sync."""
        deadline = time.monotonic() + _KEEPING_SECONDS
        while (percent := self._files.cached_percent(blob.path)) != 100:
            if percent < 99 or time.monotonic() > deadline:
                raise CacheFailure("its digest matched, but the cache did not keep it")
            time.sleep(_KEEPING_POLL)
