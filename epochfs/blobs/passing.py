"""Blobs that pass through: read from the registry as streams, because the cache cannot take them.

A full disk, one that became read-only, or a machine that is out of descriptors costs speed, and no
reader an error. Each open blob then has a stream of its own, goes on with it while reads follow
each other, and asks anew where they do not; from a server without Range that is from the start.

No wrong byte comes to a clean end here either. All pieces of a blob are hashed as they come, each
by itself and all in order; the read that would take the last byte waits until the digest has
matched, like that of a download. From then on the sums of the pieces are proof (`places`): a piece
that is fetched again, by whomever, is held against its own.

Locks: `PassedBlob._turn` makes one read of a blob at a time; it is held while a stream is opened
and read, and all wait for it with a time limit. The lock of `Places` may be taken under it.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Protocol

from epochfs.blobs.places import SUM_BYTES, Key, Places
from epochfs.client import BlobStream
from epochfs.errors import (
    ContentMismatch,
    DeadlineExceeded,
    EpochfsError,
    NotFound,
    Unavailable,
    Vanished,
    fresh,
)

log = logging.getLogger(__name__)

PIECE = 1 << 19
"""What is hashed by itself, and kept in memory for a moment, in bytes."""

_WINDOW = 8
"""How many pieces of a blob are in memory: the kernel's reads ahead come a little out of order."""

_NEAR = 8
"""How many pieces are read and passed over before it is better to ask the registry anew."""

_BREAKS = 4
_PAUSE_SECONDS = 0.2
_SEQUENTIAL_BYTES = 1 << 20


class Present(Protocol):
    """What of a blob is on disk all the same."""

    def read_present(self, view: memoryview, offset: int) -> bool:
        """Fill `view` with the bytes at `offset`, if all of them are there; return whether."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a blob comes from: `source` opens a stream of its bytes `[start, end)`.

    `distrust` is told that what came was wrong, and `spoiled` that a reader has been given of it.
    `ranged` is whether the server honours Range, None if that is not known.
    """

    source: Callable[[int, int | None], BlobStream]
    distrust: Callable[[], bool]
    spoiled: Callable[[], None]
    ranged: bool | None


class PassedBlob:
    """An open blob that passes through. Any thread may call anything.

    `present` has bytes that need not be fetched. With `whole`, all is verified before the first
    byte is read.
    """

    def __init__(
        self, places: Places, key: Key, origin: Origin, present: Present, *, whole: bool
    ) -> None:
        self._places = places
        self._key = key
        self._digest, self._size = key
        self._count = -(-self._size // PIECE)
        self._origin = origin
        self._present = present
        self._ranged = origin.ranged
        self._whole = whole
        self._turn = threading.Lock()
        self._stream: BlobStream | None = None
        self._end = self._position = self._filled = 0
        self._buffer = bytearray()
        self._pieces: OrderedDict[int, bytearray] = OrderedDict()
        self._proof: bytes | None = None
        self._served = self._refetched = False
        self._failure: EpochfsError | None = None
        self._closed = False
        self._run_end = self._run_bytes = 0
        self._begin()

    @property
    def verified(self) -> bool:
        """Whether all that is read from now on is held against the digest."""
        return self._proof is not None or self._places.proof(self._key) is not None

    def read_into(self, view: memoryview, offset: int, *, timeout: float) -> None:
        """Fill `view` with the bytes at `offset`, inside the blob, within `timeout` seconds.

        A read that takes longer goes on, and the next one finds what it has fetched.
        """
        deadline = time.monotonic() + timeout
        late = DeadlineExceeded(f"{self._digest} did not arrive so far in time")
        if not self._turn.acquire(timeout=max(0.0, timeout)):
            raise late
        try:
            self._places.seat(self, deadline)
            reading = self._places.begin(lambda: self._read(offset, offset + len(view), deadline))
        except BaseException:
            self._turn.release()
            raise
        reading.add_done_callback(self._done)
        try:
            view[:] = reading.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise late from None
        except CancelledError:
            raise Unavailable("the mount is shutting down") from None
        except EpochfsError as error:
            raise fresh(error) from error

    def _done(self, _reading: Future[bytes]) -> None:
        self._places.rest(self)
        self._turn.release()

    def suspend(self) -> bool:
        """Give up the stream and what is in memory, unless somebody reads; return whether."""
        if not self._turn.acquire(blocking=False):
            return False
        try:
            self._drop()
        finally:
            self._turn.release()
        return True

    def close(self) -> None:
        """End the stream; once, when nobody reads any more."""
        self._closed = True
        self._places.leave(self)
        stream = self._stream
        if stream is not None:
            stream.close()

    # ---- all below is for the thread that has the turn ---------------------------------------

    def _begin(self) -> None:
        """Take nothing that has come for right."""
        self._hasher = self._digest.hasher()
        self._hashed = 0
        self._sums: dict[int, bytes] = {}
        self._pieces.clear()

    def _drop(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._filled = 0
        self._pieces.clear()

    def _read(self, start: int, stop: int, deadline: float) -> bytes:
        """Return the bytes `[start, stop)`; at the end of the blob, once the digest has matched."""
        if self._failure is not None:
            raise self._failure
        self._follow(start, stop)
        try:
            found = self._read_once(start, stop, deadline)
        except ContentMismatch as error:
            self._origin.distrust()
            self._drop()
            if self._served:
                self._failure = error
                self._origin.spoiled()
            if self._served or self._refetched:
                raise
            log.warning("the bytes sent for %s are wrong, fetching again: %s", self._digest, error)
            self._refetched = True
            self._begin()
            found = self._read_once(start, stop, deadline)
        self._served = True
        return found

    def _read_once(self, start: int, stop: int, deadline: float) -> bytes:
        self._adopt_proof()
        if self._whole:
            self._verify(deadline)
        found = bytearray()
        last = (stop - 1) // PIECE
        for number in range(start // PIECE, last + 1):
            piece = memoryview(self._piece(number, last, deadline))
            found += piece[max(0, start - number * PIECE) : stop - number * PIECE]
        if stop == self._size and self._is_read_whole():
            self._verify(deadline)
        return bytes(found)

    def _follow(self, start: int, stop: int) -> None:
        """Take note of where the reader is."""
        near = abs(start - self._run_end) <= _NEAR * PIECE
        self._run_bytes = (self._run_bytes if near else 0) + stop - start
        self._run_end = max(self._run_end, stop) if near else stop

    def _is_read_whole(self) -> bool:
        """Whether this reader is one that comes to the end, and not one who wants the end alone."""
        return self._run_bytes > _SEQUENTIAL_BYTES or 2 * len(self._sums) >= self._count

    def _verify(self, deadline: float) -> None:
        """Hash all that has not been, fetching what is not here. Raises ContentMismatch."""
        while self._proof is None:
            self._piece(self._hashed, self._count - 1, deadline)
            self._adopt_proof()

    def _adopt_proof(self) -> None:
        """Where another reader has verified the blob, hold what this one was given against that."""
        proof = self._places.proof(self._key) if self._proof is None else None
        if proof is not None:
            for number, found in self._sums.items():
                if found != _sum_at(proof, number):
                    raise self._mismatch()
            self._proof = proof

    def _mismatch(self) -> ContentMismatch:
        return ContentMismatch(f"the bytes sent for {self._digest} have another digest")

    def _piece(self, number: int, last: int, deadline: float) -> bytearray:
        """Return a piece; those up to the `last` are wanted after it."""
        if number not in self._pieces:
            piece = bytearray(self._length(number))
            if self._present.read_present(memoryview(piece), number * PIECE):
                self._take(number, piece)
            else:
                self._receive(number, last, deadline)
        found = self._pieces[number]
        self._hash_on()
        return found

    def _length(self, number: int) -> int:
        return min(PIECE, self._size - number * PIECE)

    def _take(self, number: int, piece: bytearray) -> None:
        """Hold a piece against what is known of it, and keep it for a moment."""
        found = hashlib.sha256(piece).digest()
        proof = self._proof
        known = _sum_at(proof, number) if proof else self._sums.setdefault(number, found)
        if found != known:
            raise self._mismatch()
        self._pieces[number] = piece
        self._pieces.move_to_end(number)
        self._hash_on()
        while len(self._pieces) > _WINDOW:
            self._pieces.popitem(last=False)

    def _hash_on(self) -> None:
        """Hash what is next, if it is here; at the end, the digest must match."""
        while self._proof is None and self._hashed in self._pieces:
            self._hasher.update(self._pieces[self._hashed])
            self._hashed += 1
            if self._hashed == self._count:
                if self._hasher.hexdigest() != self._digest.encoded:
                    raise self._mismatch()
                self._proof = b"".join(self._sums[number] for number in range(self._count))
                self._places.prove(self._key, self._proof)

    # ---- the stream --------------------------------------------------------------------------

    def _receive(self, number: int, last: int, deadline: float) -> None:
        """Read from the stream, one that is opened if need be, until a piece has come."""
        breaks = 0
        while number not in self._pieces:
            if not self._leads_to(number):
                self._open(number, last)
            before = self._position
            try:
                self._read_on(number, deadline)
            except Unavailable as error:
                breaks = 0 if self._position > before else breaks + 1
                if breaks > _BREAKS:
                    raise
                log.debug("the stream of %s broke, resuming: %s", self._digest, error)
                time.sleep(_PAUSE_SECONDS * breaks)
            if time.monotonic() > deadline and number not in self._pieces:
                raise DeadlineExceeded(f"{self._digest} did not arrive so far in time")

    def _leads_to(self, number: int) -> bool:
        """Whether the stream will come to a piece, and soon."""
        at = self._position // PIECE
        if self._stream is None or at > number or number * PIECE >= self._end:
            return False
        return self._ranged is False or number - at <= _NEAR

    def _open(self, number: int, last: int) -> None:
        """Ask for the blob from a piece on: to its end, unless the reader jumps about."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        start = number * PIECE
        if self._filled and self._position - self._filled == start and self._ranged:
            start = self._position  # what had come of the piece when a stream broke is here
        else:
            self._filled = 0
        goes_on = self._run_bytes > _SEQUENTIAL_BYTES or number == 0
        end = self._size if goes_on else min((last + 1) * PIECE, self._size)
        if self._ranged is False:
            start, end = 0, self._size
        if self._closed:
            raise Vanished("the file was closed")
        try:
            stream = self._origin.source(start, None if end == self._size else end)
        except NotFound as error:
            raise Vanished(str(error)) from error
        self._stream, self._ranged = stream, stream.ranged
        self._position, self._end = start, end
        if not stream.ranged:
            self._position, self._end, self._filled = 0, self._size, 0
        if stream.total is not None and stream.total != self._size:
            raise ContentMismatch(
                f"{self._digest} has {stream.total} bytes, its descriptor says {self._size}"
            )

    def _read_on(self, number: int, deadline: float) -> None:
        """Read pieces until one has come, or time is up. A stream that breaks is given up."""
        stream = self._stream
        assert stream is not None
        try:
            while number not in self._pieces and time.monotonic() <= deadline:
                at = self._position // PIECE
                if not self._filled:
                    self._buffer = bytearray(self._length(at))
                count = stream.read_into(memoryview(self._buffer)[self._filled :])
                if not count:
                    raise Unavailable(f"the stream of {self._digest} ended early")
                self._position += count
                self._filled += count
                if self._filled == len(self._buffer):
                    self._filled = 0
                    self._take(at, self._buffer)
        except EpochfsError:
            self._stream = None
            stream.close()
            raise
        if self._position >= self._end:
            self._stream = None
            stream.close()


def _sum_at(proof: bytes, number: int) -> bytes:
    return proof[number * SUM_BYTES : (number + 1) * SUM_BYTES]
