"""Blobs that pass through: read from the registry as streams, because the cache cannot take them.

A full disk, one that became read-only, or a machine that is out of descriptors costs speed, and no
reader an error. Each open blob then has a stream of its own, goes on with it while reads follow
each other, and asks anew where they do not; from a server without Range that is from the start. A
stream takes a connection, a descriptor and a few MiB of memory, and a program may have thousands of
files open: `Places` lets a few blobs have one at a time, those that are being read.

No wrong byte comes to a clean end here either. All pieces of a blob are hashed as they come, each
by itself and all in order; the read that would take the last byte waits until the digest has
matched, like that of a download. From then on the sums of the pieces are proof: a piece that is
fetched again, for any reader, is held against its own.

Locks: `PassedBlob.turn` makes one read of a blob at a time; it is held while a stream is opened
and read, and all wait for it with a time limit. `Seats._lock` guards which have a seat, and in
`Places` the proofs; it may be taken under a turn, and no I/O happens under it, but that the stream
that loses its seat is closed.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Protocol

from cachetools import LRUCache

from epochfs.blobs.origin import PIECE, Origin, PieceStream
from epochfs.errors import ContentMismatch, DeadlineExceeded, EpochfsError, Unavailable, fresh
from epochfs.oci.names import Digest

log = logging.getLogger(__name__)

_WINDOW = 8
"""How many pieces of a blob are in memory: the kernel's reads ahead come a little out of order."""

_SUM_BYTES = hashlib.sha256().digest_size
_PROOF_BYTES = 64 << 20
_IDLE_SECONDS = 0.5
_BUSY = float("inf")

Key = tuple[Digest, int]
"""A blob, and its size in bytes."""


class PassedBlob:
    """An open blob that passes through. Any thread may call anything.

    `read_present` fills a buffer with the bytes at an offset, if all of them are on disk after all,
    and returns whether. With `whole`, all is verified before the first byte is read.
    """

    def __init__(
        self,
        origin: Origin,
        places: Places,
        read_present: Callable[[memoryview, int], bool],
        *,
        whole: bool,
    ) -> None:
        self._places = places
        self._key = (origin.digest, origin.size)
        self._digest, self._size = self._key
        self._count = -(-self._size // PIECE)
        self._origin = origin
        self._read_present = read_present
        self._whole = whole
        self.turn = threading.Lock()
        self._stream = PieceStream(origin)
        self._pieces: OrderedDict[int, bytearray] = OrderedDict()
        self._proof: bytes | None = None
        self._served = self._refetched = False
        self._failure: EpochfsError | None = None
        self._run = 0
        self._begin()

    @property
    def verified(self) -> bool:
        """Whether all that is read from now on is held against the digest."""
        return self._proof is not None or self._places.proof(self._key) is not None

    def read_into(self, view: memoryview, offset: int, *, run: int, timeout: float) -> None:
        """Fill `view` with the bytes at `offset`, inside the blob, within `timeout` seconds.

        A read that takes longer goes on, and the next one finds what it has fetched. `run` is how
        many bytes a reader that looks set to read on has read in sequence, else 0.
        """
        deadline = time.monotonic() + timeout
        late = DeadlineExceeded(f"{self._digest} did not arrive so far in time")
        if not self.turn.acquire(timeout=max(0.0, timeout)):
            raise late
        try:
            self._places.seat(self, deadline)
            self._run = run
            reading = self._places.begin(lambda: self._read(offset, offset + len(view), deadline))
        except BaseException:
            self.turn.release()
            raise
        reading.add_done_callback(self._end_turn)
        try:
            view[:] = reading.result(max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            raise late from None
        except CancelledError:
            raise Unavailable("the mount is shutting down") from None
        except EpochfsError as error:
            raise fresh(error) from error

    def _end_turn(self, _reading: Future[bytes]) -> None:
        self._places.rest(self)
        self.turn.release()

    def close(self) -> None:
        """End the stream; once, when nobody reads any more."""
        self._places.leave(self)
        self._stream.close()

    # ---- all below is for the thread that has the turn ---------------------------------------

    def _begin(self) -> None:
        """Trust nothing that has come so far."""
        self._hasher = self._digest.hasher()
        self._hashed = 0
        self._sums: dict[int, bytes] = {}
        self._pieces.clear()

    def drop(self) -> None:
        self._stream.drop()
        self._pieces.clear()

    def _read(self, start: int, stop: int, deadline: float) -> bytes:
        """Return the bytes `[start, stop)`; at the end of the blob, once the digest has matched."""
        if self._failure is not None:
            raise self._failure
        try:
            found = self._read_once(start, stop, deadline)
        except ContentMismatch as error:
            self._origin.distrust()
            self.drop()
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
        # Its reader came through the blob, and does not want its end alone.
        if stop == self._size and (self._run or 2 * len(self._sums) >= self._count):
            self._verify(deadline)
        return bytes(found)

    def _verify(self, deadline: float) -> None:
        """Hash all that has not been, fetching what is not here. Raises ContentMismatch."""
        while self._proof is None:
            self._piece(self._hashed, self._count - 1, deadline)
            self._adopt_proof()

    def _adopt_proof(self) -> None:
        """If another reader has verified the blob, check against that what this one was given."""
        proof = self._places.proof(self._key) if self._proof is None else None
        if proof is not None:
            for number, found in self._sums.items():
                if found != _sum_at(proof, number):
                    raise self._mismatch()
            self._proof = proof

    def _mismatch(self) -> ContentMismatch:
        return ContentMismatch(f"the bytes sent for {self._digest} have another digest")

    def _piece(self, number: int, last: int, deadline: float) -> bytearray:
        """Return a piece; those up to the `last` will be wanted next."""
        if number not in self._pieces:
            piece = bytearray(min(PIECE, self._size - number * PIECE))
            if self._read_present(memoryview(piece), number * PIECE):
                self._take(number, piece)
            else:
                goes_on = self._run > 0 or number == 0
                for at, piece in self._stream.pieces(number, last, deadline, goes_on=goes_on):
                    self._take(at, piece)
        return self._pieces[number]

    def _take(self, number: int, piece: bytearray) -> None:
        """Check a piece against what is known of it, and keep it for a moment."""
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


def _sum_at(proof: bytes, number: int) -> bytes:
    return proof[number * _SUM_BYTES : (number + 1) * _SUM_BYTES]


class Seated(Protocol):
    """What has one of the `Seats`."""

    turn: threading.Lock
    """Held by the thread that reads it."""

    def drop(self) -> None:
        """Give up the stream, and what it has in memory. The turn is held."""


class Seats:
    """Lets at most `most` streams be open at a time.

    A newcomer takes the seat of the one that has not been read for longest, and for `idle` seconds;
    that begins anew when it is next read. `late` is what is said if no seat becomes free in time.
    """

    def __init__(self, most: int, idle: float, late: str) -> None:
        self._most = most
        self._idle = idle
        self._late = late
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._seated: OrderedDict[Seated, float] = OrderedDict()

    def seat(self, stream: Seated, deadline: float) -> None:
        """Give a stream a seat; raises DeadlineExceeded if none becomes free in time."""
        with self._freed:
            while stream not in self._seated and len(self._seated) >= self._most:
                if not self._evict():
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise DeadlineExceeded(self._late)
                    self._freed.wait(min(left, _IDLE_SECONDS))
            self._seated[stream] = _BUSY

    def rest(self, stream: Seated) -> None:
        """Note that a stream is not being read any more."""
        with self._freed:
            if stream in self._seated:
                self._seated[stream] = time.monotonic()
                self._seated.move_to_end(stream)
                self._freed.notify()

    def leave(self, stream: Seated) -> None:
        """Give the seat of a stream to others."""
        with self._freed:
            self._seated.pop(stream, None)
            self._freed.notify()

    def _evict(self) -> bool:
        """Take the seat of the stream that was read longest ago. The lock is held."""
        limit = time.monotonic() - self._idle
        for stream, since in self._seated.items():
            if since <= limit and stream.turn.acquire(blocking=False):
                try:
                    stream.drop()
                finally:
                    stream.turn.release()
                del self._seated[stream]
                return True
        return False


class Places(Seats):
    """Seats for blobs that pass through, a thread for the reads of each, and what they proved."""

    def __init__(self, most: int) -> None:
        super().__init__(most, _IDLE_SECONDS, "too many blobs are read past the cache at once")
        self._pool = ThreadPoolExecutor(most, thread_name_prefix="passing")
        self._proofs: LRUCache[Key, bytes] = LRUCache(_PROOF_BYTES, len)

    def proof(self, key: Key) -> bytes | None:
        """Return the sums of a blob's pieces, one after the other, if it has been verified."""
        with self._lock:
            return self._proofs.get(key)

    def prove(self, key: Key, sums: bytes) -> None:
        """Keep the sums of a blob whose digest has matched."""
        with self._lock:
            if len(sums) <= _PROOF_BYTES:
                self._proofs[key] = sums

    def begin(self, read: Callable[[], bytes]) -> Future[bytes]:
        """Read in a thread; raises Unavailable after `close`."""
        try:
            return self._pool.submit(read)
        except RuntimeError:
            raise Unavailable("the mount is shutting down") from None

    def close(self) -> None:
        """Begin no read any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)
