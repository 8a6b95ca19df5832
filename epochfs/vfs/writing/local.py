"""The local tree: what was written and is in no registry, in front of the tree that is read.

Temporary names, files that are being written, what waits, and names that were taken away. A
directory is here if it was made, or to hold what is here below a directory of the registry's.

Locks: `LocalTree._lock` guards the directories' tables; it is a leaf, and no I/O happens under it.
`LocalFile._lock` guards its count of holders, its version, and where its bytes are; it is a leaf,
too. `LocalFile.turn` is held while the file is sent to the registry: only those wait for it who
send the same file.
"""

from __future__ import annotations

import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Protocol

from epochfs.cache.written_file import WrittenFile
from epochfs.errors import Busy, EpochfsError, Exists, NotEmpty, NotFound
from epochfs.oci.names import Digest
from epochfs.vfs.node import CONSTANT_TIME_NS, Attr, Context, Node, Opened
from epochfs.vfs.writing.makers import Maker

_FILE = stat.S_IFREG | 0o644
_LINK = stat.S_IFLNK | 0o777
WRITABLE = 0o200
"""What the mode of a directory has besides, in a mount that can be written to."""


class Staged(Protocol):
    """The bytes of a local file, as `WrittenFile` documents them."""

    @property
    def size(self) -> int: ...

    @property
    def is_whole(self) -> bool: ...

    def read_into(self, view: memoryview, offset: int, /) -> int: ...

    def read_all(self, limit: int, /) -> bytes: ...

    def reader(self) -> BinaryIO: ...

    def digest(self, algorithm: str, /) -> Digest: ...

    def close(self) -> None: ...


class Local(Node):
    """Something in the local tree."""

    kind = 0
    """The file type; 0 for a name that is not listed."""


class LocalFile(Local):
    """A file that is being written, or waits.

    `path` is its name, which a rename changes, until it is `removed`; `is_final` if that name
    promises what its bytes are, which then are `proved` once they were found so. `version` counts
    the writes; `settled` is the version that was sent, or waits. `writers` counts the handles that
    may write. The bytes are kept as long as anybody `holds` the file: the local tree, and each
    handle.

    `failure` is why the file was refused when it was last tried to settle it; `lacking`, why some
    bytes could not be written.
    """

    kind = stat.S_IFREG

    def __init__(self, path: str, staged: Staged, *, is_final: bool) -> None:
        self.path = path
        self.staged = staged
        self.is_final = is_final
        self.version = 1
        self.settled = 0
        self.proved = False
        self.removed = False
        self.writers = 0
        self.failure: EpochfsError | None = None
        self.lacking: EpochfsError | None = None
        self.time_ns = time.time_ns()
        self.turn = threading.Lock()
        self._lock = threading.Lock()
        self._holders = 1

    @property
    def dirty(self) -> bool:
        """Whether something was written that was not settled."""
        return self.settled != self.version

    @property
    def is_accepted(self) -> bool:
        """Whether its bytes are what its name promises, and were sent, or wait to be."""
        return self.is_final and self.proved and not self.dirty

    def changed(self) -> None:
        """Note that bytes are being written, or were: what was settled meanwhile was not these."""
        with self._lock:
            self.version += 1
            self.proved = False

    @property
    def on_disk(self) -> WrittenFile:
        """The bytes, to be written to: a file that is open for writing is staged on disk."""
        assert isinstance(self.staged, WrittenFile)
        return self.staged

    def exchange(self, staged: Staged, other: Staged, *, if_unused: bool = False) -> bool:
        """Have the same bytes elsewhere, unless they are by now; return whether they are there.

        With `if_unused`, only if nobody holds them but the local tree.
        """
        with self._lock:
            if self.staged is not staged or (if_unused and self._holders != 1):
                return False
            self.staged = other
            return True

    def attr(self, context: Context) -> Attr:
        return Attr(_FILE, self.staged.size, self.time_ns)

    def open(self, context: Context) -> Opened:
        if self.is_final and self.dirty:
            raise Busy("it is still being written")
        self.hold()
        return Opened(LocalReader(self), direct_io=True)

    def hold(self) -> None:
        """Keep the bytes until `let_go`."""
        with self._lock:
            self._holders += 1

    def let_go(self) -> None:
        """Close the file, once nobody holds it any more."""
        with self._lock:
            self._holders -= 1
            unused = self._holders == 0
        if unused:
            self.staged.close()


class LocalReader:
    """A handle of a local file, which reads what was written so far."""

    def __init__(self, file: LocalFile) -> None:
        """`file` is held for this, and let go of when it is closed."""
        self.file = file

    def attr(self, context: Context) -> Attr:
        """Return the attributes as fstat(2) shows them."""
        return self.file.attr(context)

    def read_into(self, view: memoryview, offset: int) -> int:
        return self.file.staged.read_into(view, offset)

    def close(self) -> None:
        self.file.let_go()


@dataclass(eq=False)
class LocalLink(Local):
    """A link that was made and is not in the registry."""

    kind = stat.S_IFLNK

    to: str
    time_ns: int = field(default_factory=time.time_ns)

    def attr(self, context: Context) -> Attr:
        return Attr(_LINK, len(self.to.encode("utf-8", "surrogateescape")), self.time_ns)

    def target(self, context: Context) -> str:
        return self.to


@dataclass(eq=False)
class SentFile(Local):
    """What was written as a regular file and is in the registry, where the tree shows a link."""

    kind = stat.S_IFREG

    shown: Node

    def attr(self, context: Context) -> Attr:
        return self.shown.attr(context)

    def open(self, context: Context) -> Opened:
        return self.shown.open(context)


class Hidden(Local):
    """A name of the tree's that was taken away, here and only here."""

    def attr(self, context: Context) -> Attr:
        raise NotFound("it was removed")


@dataclass(eq=False)
class LocalDirectory(Local):
    """A directory that was `made`; or one of the tree's, with what is here below it."""

    kind = stat.S_IFDIR

    made: bool = False
    names: dict[str, Local] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    """Names that the registry was sent, with their file types: listed even without a tag."""

    maker: Maker | None = None
    """Who makes it; as long as somebody does, nothing is in it that was not made."""

    given: dict[str, int] = field(default_factory=dict)
    """Meanwhile, the names in it that were made and that the tree has, with their file types."""

    time_ns: int = field(default_factory=time.time_ns)


@dataclass(frozen=True, slots=True)
class BeingMade:
    """A directory that somebody makes, on the way to a path; `name` in it leads on, "" nowhere."""

    path: str
    directory: LocalDirectory
    maker: Maker
    name: str


class LocalTree:
    """What is local, by path. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # A mount has a root, even of a prefix that nothing is below yet.
        self._root = LocalDirectory(made=True, time_ns=CONSTANT_TIME_NS)

    def get(self, path: str) -> Local | None:
        """Return what is here at an absolute path; None if nothing is."""
        with self._lock:
            return self._get(path)

    def directory(self, local: LocalDirectory) -> LocalDirectory:
        """Return a copy of a directory."""
        with self._lock:
            names, sent, given = dict(local.names), dict(local.sent), dict(local.given)
            return replace(local, names=names, sent=sent, given=given)

    def note_sent(self, path: str, kind: int) -> None:
        """List a name from now on, of the file type `kind`: the registry has it."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            self._made(parent).sent[name] = kind

    def note_removed(self, path: str) -> None:
        """List a name no more, unless the tree does."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            directory = self._get(parent or "/")
            if isinstance(directory, LocalDirectory):
                directory.sent.pop(name, None)
                directory.given.pop(name, None)

    def give(self, path: str, local: Local) -> None:
        """Leave a name to the tree, which now has what is `local`; if that is there, remove it."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            directory = self._get(parent or "/")
            if isinstance(directory, LocalDirectory) and directory.maker is not None:
                directory.given[name] = local.kind
        self.remove(path, local)

    def being_made(self, path: str) -> list[BeingMade]:
        """Return the directories on the way to a path that are being made, itself included."""
        found = []
        segments = path.split("/")[1:] if path != "/" else []
        with self._lock:
            local: Local | None = self._root
            for depth, name in enumerate([*segments, ""]):
                if not isinstance(local, LocalDirectory):
                    break
                if local.maker is not None:
                    way = "/" + "/".join(segments[:depth])
                    found.append(BeingMade(way, local, local.maker, name))
                local = local.names.get(name)
        return found

    def has(self, directory: LocalDirectory, name: str) -> bool:
        """Whether a name was made in a directory, be it here or in the registry by now."""
        with self._lock:
            return any(
                name in names for names in (directory.names, directory.sent, directory.given)
            )

    def made(self, directory: LocalDirectory) -> None:
        """Have a directory show from now on what the tree has in it, too."""
        with self._lock:
            directory.maker = None
            directory.given.clear()

    def put(self, path: str, local: Local, *, replace: bool = True) -> None:
        """Set what is at a path. Raises Exists if something is and is not to be replaced."""
        parent, _, name = path.rpartition("/")
        with self._lock:
            directory = self._made(parent)
            there = directory.names.get(name)
            if not replace and there is not None and not isinstance(there, Hidden):
                raise Exists(f"{name} exists")
            directory.names[name] = local
        if isinstance(there, LocalFile):
            there.let_go()

    def remove(self, path: str, local: Local | None = None) -> None:
        """Remove what is at a path, and let go of it; only if it is `local`, if that is given."""
        with self._lock:
            removed = self._remove(path, local)
        if isinstance(removed, LocalFile):
            removed.let_go()

    def remove_directory(self, path: str) -> None:
        """Remove a directory that was made; raises NotEmpty."""
        with self._lock:
            found = self._get(path)
            if isinstance(found, LocalDirectory):
                if any(one.kind for one in found.names.values()):
                    raise NotEmpty("there is something in it")
                self._remove(path, found)

    def prune(self, path: str) -> None:
        """Remove the directories below a path, itself included, that hold nothing."""
        with self._lock:
            found = self._get(path)
            if isinstance(found, LocalDirectory) and _prune(found):
                self._remove(path, found)

    def move(self, local: LocalFile | LocalLink, old: str, new: str) -> None:
        """Rename a file or link."""
        with self._lock:
            self._remove(old, local)
        self.put(new, local)

    def below(self, path: str) -> list[tuple[str, Local]]:
        """Return what is below a path, files and links and names taken away."""
        with self._lock:
            found = self._get(path)
            return list(_walk(found, path.rstrip("/"))) if isinstance(found, LocalDirectory) else []

    def _get(self, path: str) -> Local | None:
        found: Local | None = self._root
        for segment in path.split("/")[1:] if path != "/" else ():
            found = found.names.get(segment) if isinstance(found, LocalDirectory) else None
        return found

    def _made(self, path: str) -> LocalDirectory:
        """Return the directory at a path, which now is here at least to hold something."""
        directory = self._root
        for segment in path.split("/")[1:]:
            below = directory.names.get(segment)
            if not isinstance(below, LocalDirectory):
                below = directory.names[segment] = LocalDirectory()
            directory = below
        return directory

    def _remove(self, path: str, local: Local | None) -> Local | None:
        parent, _, name = path.rpartition("/")
        directory = self._get(parent or "/")
        there = directory.names.get(name) if isinstance(directory, LocalDirectory) else None
        if not isinstance(directory, LocalDirectory) or there is None:
            return None
        if local is not None and there is not local:
            return None
        del directory.names[name]
        if parent and not directory.made and not (directory.names or directory.sent):
            self._remove(parent, directory)
        return there


def _walk(directory: LocalDirectory, path: str) -> Iterator[tuple[str, Local]]:
    for name, local in directory.names.items():
        if isinstance(local, LocalDirectory):
            yield from _walk(local, f"{path}/{name}")
        else:
            yield f"{path}/{name}", local


def _prune(directory: LocalDirectory) -> bool:
    """Remove the directories in this one that hold nothing; return whether it then does."""
    for name, local in list(directory.names.items()):
        if isinstance(local, LocalDirectory) and _prune(local):
            del directory.names[name]
    return not (directory.names or directory.sent or directory.maker is not None)


def with_write_bit(attr: Attr) -> Attr:
    """Return the attributes of a node as a mount shows them that can be written to."""
    return replace(attr, mode=attr.mode | WRITABLE) if stat.S_ISDIR(attr.mode) else attr
