"""An open file: fsspec's buffered file, whose bytes come through the tree's own handles."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from fsspec.spec import AbstractBufferedFile

from epochfs.errors import Vanished
from epochfs.fsspec.links import Place
from epochfs.fsspec.os_errors import translated
from epochfs.fuse import errnos

if TYPE_CHECKING:
    from epochfs.fsspec.open_sessions import OpenSession

PIECE = 1 << 20
"""How much is asked for at once: each such read has the whole time limit."""

_SEQUENTIAL_READS = 4
"""Who reads so often without a jump is taken to read on."""

_WORTH_A_TURN = 4 << 20
"""A smaller blob is downloaded by each process that wants it at the same moment."""


class Handle:
    """A place opened for reading in a session. Any thread may read; close it once."""

    def __init__(self, session: OpenSession, place: Place) -> None:
        """Raises EpochfsError, or IsADirectoryError."""
        self._session = session
        self._lock = threading.Lock()
        self._readers, self._closed = 0, False
        with session.in_use() as filesystem:
            if stat.S_ISDIR(place.attr.mode):
                raise OSError(errnos.IS_DIRECTORY, "is a directory", place.path)
            opened = filesystem.open(place.path)
            self._handle = opened.handle
            self.backing = opened.backing
        # The size of some is said to be 0, as in /proc.
        self.size = place.attr.size or self.read_into(memoryview(bytearray(PIECE)), 0)

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it."""
        return self._session.is_ours

    def read_into(self, view: memoryview, offset: int) -> int:
        """Read exactly `min(len(view), size - offset)` bytes; return that. Raises EpochfsError."""
        done = 0
        with self._reading(), self._session.in_use() as filesystem:
            while done < len(view):
                piece = view[done : done + PIECE]
                count = filesystem.read_into(self._handle, piece, offset + done)
                done += count
                if count < len(piece):
                    break
        return done

    def expect(self, start: int, stop: int) -> None:
        """Say that these bytes will be read in their order, so that fewer requests are sent."""
        self._session.filesystem.expect(self._handle, start, stop)

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes `[start, stop)`, as far as there are. Raises EpochfsError."""
        buffer = bytearray(max(0, min(stop, self.size) - start))
        return bytes(memoryview(buffer)[: self.read_into(memoryview(buffer), start)])

    def close(self) -> None:
        """Close it; who reads it now ends first, as fsspec's background reader may."""
        with self._lock:
            self._closed = True
            idle = not self._readers
        if idle:
            self._release()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with self._lock:
            if self._closed:
                raise Vanished("the file was closed")
            self._readers += 1
        try:
            yield
        finally:
            with self._lock:
                self._readers -= 1
                last = self._closed and not self._readers
            if last:
                self._release()

    def _release(self) -> None:
        if self.is_ours:
            self._session.filesystem.release(self._handle)


@contextlib.contextmanager
def opened_in_turn(session: OpenSession, place: Place, wanted: int) -> Iterator[Handle]:
    """Open a place of which `wanted` bytes will be read.

    If that is most of a blob, it is downloaded once, however many processes of this machine want
    it: they take turns (`cache.turns`). Raises EpochfsError, or IsADirectoryError.
    """
    from epochfs.cache.blobs import BlobCache
    from epochfs.cache.turns import turn

    cache, timeout = session.settings.cache, session.settings.blobs.timeout
    with contextlib.ExitStack() as closing:
        if wanted > _WORTH_A_TURN and 2 * wanted > place.attr.size and not cache.off:
            with session.in_use() as filesystem:
                content = filesystem.content(place.path)
            if content is not None:
                mine = turn(BlobCache(cache), content.digest, content.size, timeout)
                closing.enter_context(mine)
        yield closing.enter_context(contextlib.closing(Handle(session, place)))


class Opener(Protocol):
    """A file system that opens its places; see `RegistryFileSystem`."""

    def followed(self, path: str) -> Place: ...

    def opened(self, place: Place) -> Handle: ...


class RegistryFile(AbstractBufferedFile):  # type: ignore[misc]
    """A file of a registry, open in "rb". A pickle of it opens the same bytes again."""

    DEFAULT_BLOCK_SIZE = 256 * 1024
    """What is read ahead; a download reads further ahead by itself, once reads are sequential."""

    fs: Opener

    def __init__(self, fs: Opener, path: str, mode: str = "rb", **options: Any) -> None:  # noqa: ANN401
        place = fs.followed(path)
        self._handle: Handle | None = fs.opened(place)
        self._handle.expect(0, 0)
        self._next = self._reads = 0
        self._real = place.path
        options["size"] = self._handle.size
        super().__init__(fs, path, mode, **options)

    def _current(self) -> Handle:
        """Return the handle, opened again in a forked child."""
        handle = self._handle
        if handle is None:
            raise Vanished("the file was closed")
        if not handle.is_ours:
            handle = self._handle = self.fs.opened(self.fs.followed(self._real))
        return handle

    def _fetch_range(self, start: int, end: int) -> bytes:
        self._follow(start, end)
        with translated(self.path):
            return self._current().read(start, end)

    def _follow(self, start: int, end: int) -> None:
        """Note a read, and say so once it looks as if all that follows will be read.

        Before, what is read is all that is fetched: the readers of Parquet and its kin jump about.
        """
        follows = start == self._next
        self._reads = self._reads + 1 if follows else 1
        self._next = end
        if self._reads == _SEQUENTIAL_READS:
            with translated(self.path):
                self._current().expect(start, self.size)

    def readinto(self, b: Any) -> int:  # noqa: ANN401
        """Read into a buffer; a large one is not copied through the file's own."""
        view = memoryview(b).cast("B")
        if len(view) < self.blocksize or self.closed:
            count: int = super().readinto(view)
            return count
        self._follow(self.loc, min(self.size, self.loc + len(view)))
        with translated(self.path):
            read = self._current().read_into(view[: max(0, self.size - self.loc)], self.loc)
        self.loc += read
        return read

    def close(self) -> None:
        handle, self._handle = getattr(self, "_handle", None), None
        if handle is not None:
            handle.close()
        super().close()

    def __reduce__(self) -> tuple[Any, ...]:
        function, (fs, _, *rest) = super().__reduce__()
        return function, (fs, self._real, *rest)
