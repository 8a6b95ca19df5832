"""Files composed of blobs, and read at random.

::

    Joined   blobs end to end: the parts of a disk, the raw chunks of a snapshot's file
    Frames   zstd frames end to end, each a blob: its compressed chunks (`unpacking`)
    Sparse   either of them, with holes between the pieces

Locks: `_Pool._lock` guards which blobs of a file are open and how many reads use each; no I/O
happens under it.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, Protocol, TypeVar

from epochfs.blobs.buffers import clear
from epochfs.blobs.store import BlobHandle, BlobStore
from epochfs.cache.blobs import BlobCache
from epochfs.errors import ContentMismatch, DeadlineExceeded, ProtocolViolation, Vanished, fresh
from epochfs.oci.kinds import SparseMap
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Repository
from epochfs.vfs.unpacking import Frame, FrameHandle, Unpacker

_MAX_IDLE_BLOBS = 8
_MAX_IDLE_FRAMES = 2
"""How many stay open for the next read: each takes a file descriptor."""

_WHOLE_BYTES = 16 << 20
"""Frames of up to this length are shown only once they are whole and right."""

_REPEAT_SECONDS = 0.5
"""A read this soon after a failed one is taken for the kernel's repetition of it."""

_Handle = TypeVar("_Handle", BlobHandle, FrameHandle)


class Readable(Protocol):
    """An open file."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""

    def close(self) -> None:
        """Close the file; call it once."""


@dataclass(frozen=True, slots=True)
class Joined:
    """A file that is these blobs, end to end."""

    blobs: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return sum(blob.size for blob in self.blobs)


@dataclass(frozen=True, slots=True)
class Frames:
    """A file of `size` bytes that is what these blobs decompress to, end to end.

    All frames but the last decompress to one length. Raises ProtocolViolation if there is none.
    """

    size: int
    blobs: tuple[Descriptor, ...]

    def __post_init__(self) -> None:
        if not 0 < self.shortest <= self.longest:
            raise ProtocolViolation(
                f"a file of {self.size} bytes cannot be in {len(self.blobs)} equal chunks"
            )

    @property
    def shortest(self) -> int:
        """The least that a frame can decompress to, unless it is the last."""
        return -(-self.size // len(self.blobs))

    @property
    def longest(self) -> int:
        """The most that a frame can decompress to."""
        others = len(self.blobs) - 1
        return (self.size - 1) // others if others else self.size


@dataclass(frozen=True, slots=True, eq=False)
class Sparse:
    """A file with holes, and what its data are stored as: `holes.length` bytes."""

    holes: SparseMap
    stored: Joined | Frames

    @property
    def size(self) -> int:
        """The size of the file in bytes, holes included."""
        return self.holes.size

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The blobs that the data are in."""
        return self.stored.blobs


Composed = Joined | Frames | Sparse
"""What a file is composed of: its `size` in bytes, and its `blobs`."""


class Composer:
    """Opens composed files."""

    def __init__(self, blobs: BlobStore, cache: BlobCache, timeout: float) -> None:
        """`timeout` bounds each read of compressed data, in seconds."""
        self._blobs = blobs
        self._unpacker = Unpacker(blobs, cache)
        self._timeout = timeout

    def open(self, repository: Repository, composed: Composed) -> Readable:
        """Open a file composed of a repository's blobs; nothing is fetched before it is read."""
        if isinstance(composed, Sparse):
            return SparseFile(composed.holes, self.open(repository, composed.stored))
        if isinstance(composed, Frames):
            return FramesFile(self._unpacker, repository, composed, self._timeout)
        return JoinedFile(self._blobs, repository, composed)

    def close(self) -> None:
        """Stop decompressing; readers that wait for it get an error."""
        self._unpacker.close()


class _Pool(Generic[_Handle]):
    """The open blobs of a file, by their numbers: each is opened at the first read that needs it,
    and closed once nobody reads it and `max_idle` others were used since.
    """

    def __init__(self, open_one: Callable[[int], _Handle], max_idle: int) -> None:
        self._open_one: Callable[[int], _Handle] = open_one
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._opened: dict[int, _Handle] = {}
        self._reads: Counter[int] = Counter()
        self._closed = False

    @contextmanager
    def use(self, number: int) -> Iterator[_Handle]:
        """Keep one open for the time of a read. Raises Vanished once the pool is closed."""
        handle = self._take(number)
        try:
            yield handle
        finally:
            with self._lock:
                self._reads[number] -= 1
            self._close_idle()

    def close(self) -> None:
        """Close what is open, and what is being read after its last read."""
        with self._lock:
            self._closed = True
        self._close_idle()

    def _take(self, number: int) -> _Handle:
        with self._lock:
            if self._closed:
                raise Vanished("the file was closed")
            if number in self._opened:
                return self._begin_read(number, self._opened[number])
        mine = self._open_one(number)
        with self._lock:
            handle = self._begin_read(number, self._opened.get(number, mine))
        if handle is not mine:
            mine.close()
        return handle

    def _begin_read(self, number: int, handle: _Handle) -> _Handle:
        """Count a read, and make its blob the one used last. The lock is held."""
        self._reads[number] += 1
        self._opened.pop(number, None)
        self._opened[number] = handle
        return handle

    def _close_idle(self) -> None:
        with self._lock:
            idle = [number for number in self._opened if not self._reads[number]]
            kept = 0 if self._closed else self._max_idle
            surplus = [self._opened.pop(number) for number in idle[: max(0, len(idle) - kept)]]
        for handle in surplus:
            handle.close()


class JoinedFile:
    """An open file of blobs."""

    def __init__(self, blobs: BlobStore, repository: Repository, joined: Joined) -> None:
        self._parts = parts = joined.blobs
        self._starts = list(accumulate((part.size for part in parts), initial=0))
        self._pool: _Pool[BlobHandle] = _Pool(
            lambda number: blobs.open(repository, parts[number].digest, parts[number].size),
            _MAX_IDLE_BLOBS,
        )

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self._starts[-1] - offset))
        number, done = bisect_right(self._starts, offset) - 1, 0
        while done < count:
            position = offset + done
            piece = view[done : min(count, self._starts[number + 1] - offset)]
            if piece:
                with self._pool.use(number) as blob:
                    got = blob.read_into(piece, position - self._starts[number])
                if got != len(piece):
                    digest = self._parts[number].digest
                    raise ProtocolViolation(f"{digest} ends within the file it is a part of")
            number, done = number + 1, done + len(piece)
        return count

    def close(self) -> None:
        self._pool.close()


class SparseFile:
    """An open file with holes."""

    def __init__(self, holes: SparseMap, stored: Readable) -> None:
        self._holes = holes
        self._stored = stored

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self._holes.size - offset))
        place = view[:count]
        pieces = list(self._holes.touched(offset, offset + count))
        clear(place)
        if len(pieces) == 1:
            start, stop, stored = pieces[0]
            self._stored.read_into(place[start - offset : stop - offset], stored)
        elif pieces:
            # Their data are stored end to end: one read, then each piece is put in its place.
            data = memoryview(bytearray(sum(stop - start for start, stop, _ in pieces)))
            first = pieces[0][2]
            self._stored.read_into(data, first)
            for start, stop, stored in pieces:
                place[start - offset : stop - offset] = data[stored - first :][: stop - start]
        return count

    def close(self) -> None:
        self._stored.close()


class FramesFile:
    """An open file of frames. Each read ends within `timeout` seconds.

    Only a frame itself tells the length that all but the last decompress to. How many there are,
    and how long they are together, leaves little choice: so a guess says which frame a read needs,
    and that frame's length says whether the guess was right.
    """

    def __init__(
        self, unpacker: Unpacker, repository: Repository, frames: Frames, timeout: float
    ) -> None:
        self._frames = frames
        self._timeout = timeout
        self._shortest, self._longest = shortest, longest = frames.shortest, frames.longest
        self._shows_whole = longest <= _WHOLE_BYTES
        self._stride = longest if longest == shortest else 0
        self._began = False
        self._failed: tuple[float, DeadlineExceeded] | None = None

        def opened(number: int) -> FrameHandle:
            blob = frames.blobs[number]
            return unpacker.open(repository, Frame(blob.digest, blob.size, longest))

        self._pool: _Pool[FrameHandle] = _Pool(opened, _MAX_IDLE_FRAMES)

    def read_into(self, view: memoryview, offset: int) -> int:
        count = max(0, min(len(view), self._frames.size - offset))
        failed = self._failed
        if failed and time.monotonic() - failed[0] < _REPEAT_SECONDS:
            self._failed = None
            raise fresh(failed[1])
        deadline = time.monotonic() + self._timeout
        try:
            done = 0
            while done < count:
                done += self._read_some(view[done:count], offset + done, deadline)
        except DeadlineExceeded as error:
            self._failed = time.monotonic(), error
            raise
        return count

    def close(self) -> None:
        self._pool.close()

    def _read_some(self, view: memoryview, offset: int, deadline: float) -> int:
        """Read up to the end of a frame, or of what is certainly in it; return how much."""
        if not (self._stride or self._shows_whole) and offset < self._shortest:
            self._began = True
            piece = view[: self._shortest - offset]
            with self._pool.use(0) as frame:
                frame.read_into(piece, offset, deadline)
            return len(piece)
        stride = self._stride or self._find_stride(offset, deadline)
        number = offset // stride
        start, stop = number * stride, min((number + 1) * stride, self._frames.size)
        piece = view[: stop - offset]
        with self._pool.use(number) as frame:
            if self._shows_whole or offset + len(piece) == stop:
                length = frame.length(deadline)
                if length != stop - start:
                    raise ContentMismatch(
                        f"chunk {number} is {length} bytes, and should be {stop - start}"
                    )
            frame.read_into(piece, offset - start, deadline)
        return len(piece)

    def _find_stride(self, offset: int, deadline: float) -> int:
        """Return the length of all frames but the last, by the one that seems to have `offset`.

        If the first was read already, it is asked, and so checked. If the length is not the
        expected one, a second frame has to confirm it.
        """
        expected = _roundest(self._shortest, self._longest)
        last = len(self._frames.blobs) - 1
        number = 0 if self._began else min(offset // expected, last)
        stride = self._stride_by(number, deadline)
        if stride != expected and stride != self._stride_by(0 if number else 1, deadline):
            raise ContentMismatch("the chunks of a file differ in length")
        self._stride = stride
        return stride

    def _stride_by(self, number: int, deadline: float) -> int:
        """Return the length of all frames but the last if the one of a number is right."""
        with self._pool.use(number) as frame:
            length = frame.length(deadline)
        before = len(self._frames.blobs) - 1
        stride, rest = length, 0
        if number == before:
            stride, rest = divmod(self._frames.size - length, before)
        if rest or not self._shortest <= stride <= self._longest:
            raise ContentMismatch(f"chunk {number} is {length} bytes, which does not fit the file")
        return stride


def _roundest(low: int, high: int) -> int:
    """Return the number in a range that ends in the most zero bits, as what people choose does."""
    for bits in range(high.bit_length() - 1, 0, -1):
        rounded = high >> bits << bits
        if rounded >= low:
            return rounded
    return high
