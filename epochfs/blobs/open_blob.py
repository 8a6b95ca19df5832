"""An open blob of a registry: read from the cache, from a download, or past both of them.

If the cache fails, the handle continues as a stream (`passing`): no reader gets an error because
the disk is full.

Locks: `OpenBlob._lock` lets the change to a stream be made once; nothing is read under it. What is
remembered of the reads is changed without a lock: a lost update only delays the guess that the
reader is sequential, or gives a read that is repeated its full time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from epochfs.blobs.fetch_plan import LONG_RUN
from epochfs.blobs.passing import PassedBlob
from epochfs.cache.blobs import check_size
from epochfs.errors import CacheFailure, DeadlineExceeded, EpochfsError, fresh

_Answer = TypeVar("_Answer")

_SEQUENTIAL_BYTES = 1 << 20
_SEQUENTIAL_SLACK = 3 << 20

_REPEAT_SECONDS = 0.5
"""A read that begins so soon after one that failed is taken for a repetition of it."""


class Local(Protocol):
    """A blob that is in the cache, or on its way there. Raises CacheFailure if that fails."""

    @property
    def verified(self) -> bool:
        """Whether every byte has been checked against the digest."""

    def fileno(self) -> int | None:
        """Return a descriptor of its file, if it is verified and in one."""

    def read_into(self, view: memoryview, offset: int, *, run: int, timeout: float) -> None:
        """Fill `view` with the bytes at `offset`, inside the blob, within `timeout` seconds.

        `run` is how many bytes a reader that looks set to read on has read in sequence, else 0.
        """

    def locate(self, offset: int, count: int, *, run: int, timeout: float) -> int | None:
        """Wait as `read_into` does; return a descriptor of the file that has these bytes at the
        same offset, or None if there is none to be kept open.
        """

    def expect(self, *, ahead: bool) -> None:
        """Note that the reader will read on, and requests may be large; or that it will jump."""

    def read_present(self, view: memoryview, offset: int) -> bool:
        """Fill `view` with the bytes at `offset`, if all of them are there; return whether."""


@dataclass(frozen=True, slots=True)
class Backing:
    """What an open blob reads from: `local`, to be released, or if that fails, which is reported,
    what `pass_through` makes."""

    local: Local
    release: Callable[[], None]
    pass_through: Callable[[], PassedBlob]
    report: Callable[[object], None]


@dataclass(frozen=True, slots=True)
class _Failure:
    """When a read failed, how many seconds it had taken, and of what."""

    ended: float
    took: float
    error: EpochfsError


class OpenBlob:
    """A `BlobHandle` of `size` bytes. A read ends within `timeout` seconds.

    A `precise` reader knows what it needs, and nothing around or behind it is fetched for it.
    """

    def __init__(self, size: int, backing: Backing, timeout: float, *, precise: bool) -> None:
        self.size = size
        self._backing = backing
        self._local = backing.local
        self._timeout = timeout
        self._precise = precise
        self._lock = threading.Lock()
        self._passed: PassedBlob | None = None
        self._run_end = 0
        self._run_bytes = 0
        self._proof = _SEQUENTIAL_BYTES
        self._failed: _Failure | None = None

    @property
    def verified(self) -> bool:
        passed = self._passed
        return self._local.verified if passed is None else passed.verified

    def fileno(self) -> int | None:
        return self._local.fileno() if self._passed is None else None

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self.size - offset))
        if count:
            self._in_time(partial(self._read, view[:count], offset), offset, count)
        return count

    def locate(self, offset: int, size: int) -> tuple[int, int] | None:
        """Wait as `read_into` does for `size` bytes, or as many as there are, and raise what it
        raises; return a descriptor of a file that has them at the same offset, valid until this is
        closed, and their number. None if they are to be read.
        """
        count = max(0, min(size, self.size - offset))
        if count == 0 or self._passed is not None:
            return None
        fd = self._in_time(partial(self._find, offset, count), offset, count)
        return None if fd is None else (fd, count)

    def _in_time(self, read: Callable[..., _Answer], offset: int, count: int) -> _Answer:
        """Have a range read by a `read` that takes how far the reader has `run`, and `until` when
        it has time.
        """
        run = self._follow(offset, count)
        began = time.monotonic()
        earlier = self._failed_just_before(began)
        timeout = self._timeout - (earlier.took if earlier else 0.0)
        try:
            return read(run=0 if self._precise else run, until=began + timeout)
        except EpochfsError as error:
            ended = time.monotonic()
            self._failed = None if earlier else _Failure(ended, ended - began, error)
            if earlier and isinstance(error, DeadlineExceeded):
                raise fresh(earlier.error) from error
            raise

    def expect(self, start: int, stop: int) -> None:
        """Take a reader for sequential before it has read in sequence: it says that it will.

        One that expects no bytes will jump about, and nothing is fetched ahead of it.
        """
        self._precise = stop <= start
        self._local.expect(ahead=not self._precise)
        if stop - start > _SEQUENTIAL_BYTES:
            self._run_end, self._run_bytes = start, stop - start
            self._proof = _SEQUENTIAL_BYTES

    def pass_through(self) -> PassedBlob:
        """Read past the cache from now on."""
        with self._lock:
            if self._passed is None:
                self._passed = self._backing.pass_through()
            return self._passed

    def close(self) -> None:
        if self._passed is not None:
            self._passed.close()
        self._backing.release()

    def _follow(self, offset: int, count: int) -> int:
        """Note a read; return how many bytes were read in sequence, once that is no chance.

        A reader that has jumped to where it is may well jump again, and must prove more. One that
        comes to the blob's end is held to less: the last byte waits for the digest.
        """
        # The kernel reads ahead with several requests at once, so neighbours count as sequence.
        if abs(offset - self._run_end) <= _SEQUENTIAL_SLACK:
            self._run_end = max(self._run_end, offset + count)
            self._run_bytes += count
        else:
            self._run_end, self._run_bytes = offset + count, count
            self._proof = LONG_RUN
        proof = self._proof if offset + count < self.size else _SEQUENTIAL_BYTES
        return self._run_bytes if self._run_bytes > proof else 0

    def _read(self, view: memoryview, offset: int, *, run: int, until: float) -> None:
        passed = self._passed
        if passed is None:
            left = until - time.monotonic()
            try:
                self._local.read_into(view, offset, run=run, timeout=left)
                return
            except CacheFailure as error:
                self._backing.report(error)
                passed = self.pass_through()
        passed.read_into(view, offset, run=run, timeout=until - time.monotonic())

    def _find(self, offset: int, count: int, *, run: int, until: float) -> int | None:
        try:
            left = until - time.monotonic()
            fd = self._local.locate(offset, count, run=run, timeout=left)
            if fd is not None:
                # Who passes it on would take what is lacking for the end of the blob.
                check_size(fd, offset + count)
        except CacheFailure as error:
            self._backing.report(error)
            self.pass_through()
            return None
        return fd

    def _failed_just_before(self, now: float) -> _Failure | None:
        """Return the failed read that one beginning now repeats.

        When its read-ahead fails, the kernel asks again page by page, up to the first that fails
        too, before it gives the program an error. To the program all of it is one read, which must
        end in time; what comes after a repetition that failed is another.
        """
        failed = self._failed
        return failed if failed and now - failed.ended < _REPEAT_SECONDS else None
