"""Random access to a gzip stream that still arrives, from points that are noted as it passes.

A point is a copy of zlib's state, which resumes at any byte; so what is decoded never waits for
what comes behind it. `indexed_gzip` reads on to the point after.

Locks: `GzipPoints._lock` guards its points; no I/O happens under it.
"""

from __future__ import annotations

import io
import threading
from typing import NamedTuple

from epochfs.layers.decoders import BlobFile, GzipMember, gzip_content

_SPACING = 4 << 20
_MAX_POINTS = 128
"""Each takes up to 72 KiB; when there are more, every second one goes."""

_NO_FILE = io.BytesIO()
"""A point outlives the file that was read when it was noted."""


class GzipPoint(NamedTuple):
    """Where decompression can be resumed: at `position` of the stream, `packed` of the blob."""

    position: int
    packed: int
    member: GzipMember


class GzipPoints:
    """The points of one blob, noted by all who decompress it. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._points: list[GzipPoint] = []
        self._spacing = _SPACING

    def note(self, position: int, member: GzipMember) -> None:
        """Note where a member has come to, if that is far enough behind the last point."""
        with self._lock:
            last = self._points[-1].position if self._points else 0
            if position < last + self._spacing:
                return
            self._points.append(GzipPoint(position, member.file.tell(), member.copy(_NO_FILE)))
            if len(self._points) > _MAX_POINTS:
                self._points = self._points[1::2]
                self._spacing *= 2

    def before(self, position: int) -> GzipPoint | None:
        """Return the last point up to a position; None if that is the start."""
        with self._lock:
            return next((one for one in reversed(self._points) if one.position <= position), None)


class GzipReader:
    """Decompresses a blob's gzip from wherever its `points` let it begin."""

    def __init__(self, file: BlobFile, points: GzipPoints) -> None:
        self._file = file
        self._points = points
        self._resume(None)

    def seek(self, offset: int) -> None:
        """Go to an offset of the stream, or to its end."""
        point = self._points.before(offset)
        if offset < self._position or (point and point.position > self._position):
            self._resume(point)
        while self._position < offset and (self._piece or self._advance()):
            self._skip(min(offset - self._position, len(self._piece)))

    def readinto(self, buffer: memoryview, /) -> int:
        if not self._piece and not self._advance():
            return 0
        count = min(len(buffer), len(self._piece))
        buffer[:count] = self._piece[:count]
        self._skip(count)
        return count

    def close(self) -> None:
        """Nothing to close: the blob is the archive's."""

    def _resume(self, point: GzipPoint | None) -> None:
        self._position, packed = (point.position, point.packed) if point else (0, 0)
        member = point.member.copy(self._file) if point else None
        self._file.seek(packed)
        self._piece = memoryview(b"")
        self._content = gzip_content(self._file, self._points.note, self._position, member)

    def _advance(self) -> bool:
        self._piece = next(self._content, memoryview(b""))
        return bool(self._piece)

    def _skip(self, count: int) -> None:
        self._piece = self._piece[count:]
        self._position += count
