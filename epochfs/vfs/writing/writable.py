"""The filesystem of a mount that can be written to: `-o rw`.

What is read comes from the tree, but for what is local. What is written is local, until its name
and its bytes are what a registry takes: then it is sent, and the call that completed it returns
when the registry has it.

Locks: `WritableFileSystem._lock` guards the count of writers of each file, and is a leaf.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from epochfs.cache.blobs import BlobCache
from epochfs.counters import counter, gauge
from epochfs.errors import (
    Busy,
    ContentMismatch,
    EpochfsError,
    NotPermitted,
    Unsupported,
    fresh,
    printable,
)
from epochfs.vfs.filesystem import XATTR_PREFIX, Basis, FileSystem, OpenFile, Paths
from epochfs.vfs.node import Attr, Context, Node
from epochfs.vfs.writing.contents import Contents, waiter_of
from epochfs.vfs.writing.handles import Writer
from epochfs.vfs.writing.idle import Idle
from epochfs.vfs.writing.keeping import Keeper
from epochfs.vfs.writing.local import (
    LocalDirectory,
    LocalFile,
    LocalLink,
    LocalReader,
    LocalTree,
    with_write_bit,
)
from epochfs.vfs.writing.makers import Makers
from epochfs.vfs.writing.naming import Naming
from epochfs.vfs.writing.places import place_of
from epochfs.vfs.writing.publisher import Publisher

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WritingStatus:
    """What was written and is not in the registry; `reasons` has a line for each."""

    waiting: int = field(metadata=gauge("Manifests and tags that wait for what they name."))
    local: int = field(metadata=gauge("Files whose name or content no registry takes."))
    sent: int = field(metadata=counter("Files and tags written to the registry."))
    reasons: tuple[str, ...] = ()


class WritableFileSystem(FileSystem):
    """One mounted registry that can be written to. Any thread may call anything."""

    def __init__(
        self,
        root: Node,
        context: Context,
        publisher: Publisher,
        cache: BlobCache,
        *,
        manifest_limit: int,
        deletes: bool = False,
    ) -> None:
        """`deletes`: blobs and manifests may be deleted, too. `manifest_limit` is in bytes."""
        super().__init__(root, context)
        self._tree = Paths(root).node
        self._publisher = publisher
        self._cache = cache
        self._local = LocalTree()
        self._idle = Idle(cache.new_file)
        self._makers = Makers()
        self._keeper = Keeper()
        self._contents = Contents(
            self._tree, context, self._local, publisher, self._keeper, manifest_limit
        )
        self._names = Naming(
            self._tree,
            context,
            self._local,
            self._contents,
            publisher,
            self._makers,
            deletes=deletes,
        )
        self._node = self._names.node
        # Handed on as they are.
        self.listed_by = self._names.listed_by
        self.changed_by = self._names.changed_by
        self.followed_by = self._names.followed_by
        self.mkdir = self._names.mkdir
        self.symlink = self._names.symlink
        self.rmdir = self._names.rmdir
        self.unlink = self._names.unlink

    # ---- what is shown -----------------------------------------------------------------------

    def getattr(self, path: str) -> Attr:
        return with_write_bit(super().getattr(path))

    def basis(self, path: str) -> Basis | None:
        """Return nothing: what is written may change any directory."""
        return None

    def is_fixed(self, path: str) -> bool:
        """Whether a directory cannot change: what is written may change any."""
        return False

    def known_attrs(self, path: str, names: Sequence[str]) -> dict[str, Attr]:
        """Return nothing: what is asked for later is told as it is then."""
        return {}

    def getattr_open(self, handle: int) -> Attr | None:
        """Return the attributes of an open local file; None for a handle of any other."""
        file = self._files.get(handle)
        return file.attr(self._context) if isinstance(file, LocalReader) else None

    def room(self) -> tuple[int, int]:
        """Return how many bytes the disk takes that files are staged on, and how many are free."""
        return self._cache.room()

    # ---- files -------------------------------------------------------------------------------

    def create(self, path: str, *, placeholder: bool = False) -> OpenFile:
        """Create a file and open it for writing.

        A `placeholder` is local, whatever its name, until something else takes its place.
        """
        place = None if placeholder else place_of(self._tree, path)
        if self._names.exists(path):
            return self.open_to_write(path, truncate=True)
        self._names.require_parent(path)
        if place is not None:
            self._contents.check_file(place)
        file = LocalFile(path, self._cache.new_file(), is_final=place is not None)
        try:
            self._local.put(path, file, replace=False)
        except BaseException:
            file.let_go()
            raise
        return self._opened(file, None)

    def open_to_write(self, path: str, *, truncate: bool = False) -> OpenFile:
        """Open a file for writing, as it is or empty.

        One that the registry has stays as it is, and readable, whatever is written.
        """
        local = self._local.get(path)
        if isinstance(local, LocalFile):
            opened = self._opened(local, None)
            if truncate:
                self.truncate(opened.handle, 0)
            return opened
        node = self._node(path)
        if not stat.S_ISREG(node.attr(self._context).mode):
            raise NotPermitted(f"{path} is no regular file")
        place = place_of(self._tree, path)
        if place is None:
            raise NotPermitted(f"{path} cannot be written to")
        file = LocalFile(path, self._cache.new_file(), is_final=True)
        if not truncate:
            file.settled = file.version
        try:
            return self._opened(file, None if truncate else node)
        finally:
            file.let_go()

    def _opened(self, file: LocalFile, base: Node | None) -> OpenFile:
        file.hold()
        try:
            self._idle.wake(file)
            writer = Writer(file, base, self._context)
        except BaseException:
            file.let_go()
            raise
        with self._lock:
            file.writers += 1
            handle = next(self._handles)
            self._files[handle] = writer
        return OpenFile(handle, direct_io=True)

    def write(self, handle: int, view: memoryview, offset: int) -> None:
        """Write all of `view` at a byte offset of a file that is open for writing."""
        writer = self._writer(handle)
        writer.take_over()
        file = writer.file
        file.changed()
        self._makers.wrote()
        try:
            file.on_disk.write(view, offset)
        except EpochfsError as error:
            file.failure = file.lacking = error
            raise
        finally:
            file.changed()

    def truncate(self, handle: int, size: int) -> None:
        """Set the size of a file that is open for writing, in bytes."""
        writer = self._writer(handle)
        if size:
            writer.take_over()
        else:
            writer.start_empty()
        file = writer.file
        file.changed()
        try:
            file.on_disk.truncate(size)
        finally:
            file.changed()
        if not size:
            file.lacking = None

    def truncate_path(self, path: str, size: int) -> None:
        """Set the size of a file, in bytes."""
        opened = self.open_to_write(path)
        try:
            self.truncate(opened.handle, size)
            self.flush(opened.handle)
        finally:
            self.release(opened.handle)

    def reserve(self, handle: int, stop: int, *, extend: bool = False) -> None:
        """Note that a file will be `stop` bytes long: it is not whole before they are written.

        With `extend`, it is at least that long at once, with zeros in it (posix_fallocate(3)).
        """
        writer = self._writer(handle)
        writer.take_over()
        writer.file.on_disk.reserve(stop)
        if extend and writer.file.on_disk.size < stop:
            self.truncate(handle, stop)

    def _writer(self, handle: int) -> Writer:
        writer = self._files.get(handle)
        if not isinstance(writer, Writer):
            raise NotPermitted("the file is not open for writing")
        return writer

    def flush(self, handle: int) -> None:
        """Settle a file as far as it is written: called for each close(2) of its descriptors."""
        writer = self._files.get(handle)
        if isinstance(writer, Writer):
            self._settle(writer.file)

    def fsync(self, handle: int) -> None:
        """Return once the registry has what is in a file; local names are not in question."""
        writer = self._files.get(handle)
        if not isinstance(writer, LocalReader):
            return
        file = writer.file
        self._settle(file)
        waiter = waiter_of(place_of(self._tree, file.path))
        if waiter is not None and self._publisher.waits(waiter):
            self._publisher.insist(waiter, self._context.timeout)
            if self._publisher.waits(waiter):
                raise Busy(next(iter(self._publisher.reasons()), "it waits"))
        elif file.is_final and file.dirty:
            raise Busy(f"{file.path} is not whole yet")

    def release(self, handle: int) -> None:
        """Close a file; throw away what was refused under its final name."""
        writer = self._files.get(handle)
        if isinstance(writer, Writer):
            with self._lock:
                writer.file.writers -= 1
                is_last = writer.file.writers == 0
            if is_last and writer.file.is_final:
                self._end(writer.file)
        super().release(handle)
        if isinstance(writer, LocalReader):
            self._idle.add(writer.file)

    def _end(self, file: LocalFile) -> None:
        """Let go of a final name that nobody writes to any more, unless it waits for more."""
        if not file.dirty or file.removed:
            return
        if file.failure is not None or file.staged.is_whole:
            reason = file.failure or "it was not closed properly"
            log.warning("%s was not written: %s", printable(file.path), reason)
            self._local.remove(file.path, file)

    def _settle(self, file: LocalFile) -> None:
        """Send a file that is whole, if it has a final name and was written to."""
        with file.turn:
            place = place_of(self._tree, file.path) if file.is_final else None
            if place is None or file.removed or not file.dirty or not file.staged.is_whole:
                return
            file.failure = None
            version = file.version
            try:
                kept = self._contents.settle_file(place, file, file.path)
            except ContentMismatch as error:
                # What could not be written explains it better, such as a full disk.
                file.failure = error if file.lacking is None else fresh(file.lacking)
                raise file.failure from None
            except EpochfsError as error:
                file.failure = error
                raise
            file.settled, file.lacking = version, None
        if not kept:
            self._local.give(file.path, file)

    # ---- names -------------------------------------------------------------------------------

    def rename(self, old: str, new: str, *, replace: bool = True) -> None:
        """Rename a file or link (see `Naming.rename`)."""
        self._names.rename(old, new, replace=replace)
        self._makers.wrote()

    def set_time(self, path: str, time_ns: int) -> None:
        """Set the time of what is local, in epoch nanoseconds; ignored for what is not."""
        local = self._local.get(path)
        if isinstance(local, LocalFile | LocalLink | LocalDirectory):
            local.time_ns = time_ns
        else:
            self.check_settable(path)

    def check_settable(self, path: str) -> None:
        """Return if there is something whose mode and owner can be set, which is ignored."""
        self._node(path).attr(self._context)

    def set_xattr(self, path: str, name: str) -> None:
        """Return if an extended attribute can be set or removed, which is ignored.

        Raises Unsupported for those that change what a file means or does.
        """
        if not name.startswith(XATTR_PREFIX):
            raise Unsupported(f"attribute {name} cannot be kept")
        self.check_settable(path)

    def fsyncdir(self, path: str) -> None:
        """Return if nothing below a directory waits, after one more try to send it; raises Busy."""
        self._publisher.retry(self._context.timeout)
        for found, local in self._local.below(path):
            waiter = waiter_of(place_of(self._tree, found))
            is_file = isinstance(local, LocalFile) and local.is_final and not local.is_accepted
            if is_file or (waiter is not None and self._publisher.waits(waiter)):
                raise Busy(f"{found} waits for what the registry does not have")

    # ---- what is not in the registry ----------------------------------------------------------

    def writing(self) -> WritingStatus:
        """Return what waits, and what is only here."""
        waits = self._publisher.reasons()
        local = [
            f"{path} is in no registry"
            for path, one in self._local.below("/")
            if isinstance(one, LocalFile) and not one.is_accepted
        ]
        return WritingStatus(len(waits), len(local), self._publisher.sent, (*waits, *sorted(local)))

    def close(self) -> None:
        """Log what is lost, and end the work in the background."""
        self._publisher.close()
        for reason in self.writing().reasons:
            log.warning("unmounted, and not written: %s", printable(reason))
        self._keeper.close()
