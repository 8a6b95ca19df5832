"""Files that are zstd frames, one after the other, each a blob.

All frames but the last come to one length, which nothing but a frame itself tells. How many there
are, and how long they are together, leaves little choice: so a guess says which frame a read needs,
and what this one comes to says whether that was right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from epochfs.errors import ContentMismatch, DeadlineExceeded, ProtocolViolation, fresh
from epochfs.oci.manifests import Descriptor
from epochfs.oci.names import Digest, Repository
from epochfs.vfs.assembly.lending import Lending
from epochfs.vfs.assembly.unpacking import Frame, FrameHandle, Unpacker

_MAX_IDLE = 2
_WHOLE_BYTES = 16 << 20
"""What frames of up to this length hold is shown once they are whole, and right."""

_REPEAT_SECONDS = 0.5
"""A read that begins so soon after one that failed is taken for its repetition by the kernel."""


@dataclass(frozen=True, slots=True)
class Frames:
    """A file of `size` bytes, at least one: what the frames in these blobs decompress to.

    `shortest` and `longest` is what any but the last can come to.
    """

    size: int
    blobs: tuple[Descriptor, ...]
    shortest: int
    longest: int

    @property
    def digests(self) -> Iterator[Digest]:
        """The blobs that it is made of."""
        return (blob.digest for blob in self.blobs)


def framed(size: int, blobs: tuple[Descriptor, ...]) -> Frames:
    """Return a file that is some frames. Raises ProtocolViolation if they cannot have its size."""
    count = len(blobs)
    shortest = -(-size // count)
    longest = size if count == 1 else (size - 1) // (count - 1)
    if not 0 < shortest <= longest:
        raise ProtocolViolation(f"a file of {size} bytes cannot be in {count} equal chunks")
    return Frames(size, blobs, shortest, longest)


class FramesHandle:
    """An open file of frames. Each read ends within `timeout` seconds."""

    def __init__(
        self, unpacker: Unpacker, repository: Repository, frames: Frames, timeout: float
    ) -> None:
        self.size = frames.size
        self._frames = frames
        self._timeout = timeout
        self._shows_whole = frames.longest <= _WHOLE_BYTES
        self._stride = frames.longest if frames.longest == frames.shortest else 0
        self._began = False
        self._failed: tuple[float, DeadlineExceeded] | None = None

        def opened(number: int) -> FrameHandle:
            blob = frames.blobs[number]
            return unpacker.open(repository, Frame(blob.digest, blob.size, frames.longest))

        self._opened = Lending(opened, _MAX_IDLE)

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that, or raise."""
        count = max(0, min(len(view), self.size - offset))
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
        """Let go of the frames that were opened; once."""
        self._opened.close()

    def _read_some(self, view: memoryview, offset: int, deadline: float) -> int:
        """Read up to the end of a frame, or of what is certainly in it; return how much."""
        if not (self._stride or self._shows_whole) and offset < self._frames.shortest:
            self._began = True
            piece = view[: self._frames.shortest - offset]
            with self._opened.lent(0) as frame:
                frame.read_into(piece, offset, deadline)
            return len(piece)
        stride = self._stride or self._find_stride(offset, deadline)
        number = offset // stride
        start, stop = number * stride, min((number + 1) * stride, self.size)
        piece = view[: stop - offset]
        with self._opened.lent(number) as frame:
            if self._shows_whole or offset + len(piece) == stop:
                length = frame.length(deadline)
                if length != stop - start:
                    raise ContentMismatch(
                        f"chunk {number} is {length} bytes, and should be {stop - start}"
                    )
            frame.read_into(piece, offset - start, deadline)
        return len(piece)

    def _find_stride(self, offset: int, deadline: float) -> int:
        """Return what all frames but the last come to, as the one says that seems to have `offset`.

        It is the first where that was read already, so that it is checked. Where it is not what was
        to be expected, another one has to say the same.
        """
        frames = self._frames
        expected = _roundest(frames.shortest, frames.longest)
        number = 0 if self._began else min(offset // expected, len(frames.blobs) - 1)
        stride = self._stride_by(number, deadline)
        if stride != expected and stride != self._stride_by(0 if number else 1, deadline):
            raise ContentMismatch("the chunks of a file are not of one length")
        self._stride = stride
        return stride

    def _stride_by(self, number: int, deadline: float) -> int:
        """Return what all frames but the last come to if one of them is right."""
        with self._opened.lent(number) as frame:
            length = frame.length(deadline)
        before = len(self._frames.blobs) - 1
        stride, rest = divmod(self.size - length, before) if number == before else (length, 0)
        if rest or not self._frames.shortest <= stride <= self._frames.longest:
            raise ContentMismatch(f"chunk {number} is {length} bytes, which does not fit the file")
        return stride


def _roundest(low: int, high: int) -> int:
    """Return the number in a range that ends in the most zero bits, as what people choose does."""
    for bits in range(high.bit_length() - 1, 0, -1):
        rounded = high >> bits << bits
        if rounded >= low:
            return rounded
    return high
