"""Names that are made, moved and removed: directories, links, and files as wholes."""

from __future__ import annotations

import stat
from collections.abc import Callable
from posixpath import dirname, join, normpath

from epochfs.errors import (
    CrossDevice,
    EpochfsError,
    Exists,
    NotEmpty,
    NotFound,
    NotPermitted,
)
from epochfs.vfs.manifest_directory import ManifestDirectory, ManifestFile
from epochfs.vfs.node import Context, ManifestNode, Node, RepositoryNode
from epochfs.vfs.tree import BlobFile, TagLink
from epochfs.vfs.views.layout import ContentLink, IndexFile, LayoutFile
from epochfs.vfs.writing.contents import Contents, is_derived, waiter_of
from epochfs.vfs.writing.local import (
    BeingMade,
    Hidden,
    LocalDirectory,
    LocalFile,
    LocalLink,
    LocalTree,
    SentFile,
)
from epochfs.vfs.writing.makers import Makers
from epochfs.vfs.writing.overlaid import Overlaid
from epochfs.vfs.writing.places import Place, place_of
from epochfs.vfs.writing.publisher import Publisher


class Naming:
    """What mkdir, symlink, rename, unlink and rmdir do. Any thread may call anything."""

    def __init__(
        self,
        tree: Callable[[str], Node],
        context: Context,
        local: LocalTree,
        contents: Contents,
        publisher: Publisher,
        makers: Makers,
        *,
        deletes: bool,
    ) -> None:
        """`tree` returns the node of a path that is read; `deletes`: content may be deleted."""
        self._tree = tree
        self._context = context
        self._local = local
        self._contents = contents
        self._publisher = publisher
        self._makers = makers
        self._deletes = deletes

    # ---- what is there -----------------------------------------------------------------------

    def node(self, path: str) -> Node:
        """Return the node of a path: a local one, the tree's, or a directory that is both."""
        is_being_made = self._check_made(path)
        local = self._local.get(path)
        if local is None:
            return self._tree(path)
        if not isinstance(local, LocalDirectory):
            return local
        try:
            tree = self._tree(path)
        except NotFound:
            tree = None
        return Overlaid(self._local.directory(local), None if is_being_made else tree)

    def _check_made(self, path: str) -> bool:
        """Whether a directory is being made; raises NotFound for a name that was not made in one.

        One that nobody makes any more shows from now on what the tree has, too.
        """
        is_being_made = False
        for one in self._local.being_made(path):
            if not self._makers.is_at_work(one.maker):
                self._made(one)
            elif not one.name:
                is_being_made = True
            elif not self._local.has(one.directory, one.name):
                raise NotFound(f"nobody made {one.name}, and {one.path} is being made")
        return is_being_made

    def _made(self, one: BeingMade) -> None:
        self._local.made(one.directory)
        place = place_of(self._tree, one.path)
        if isinstance(place, ManifestNode) and self._contents.is_shown(place):
            self._local.prune(one.path)

    def listed_by(self, path: str, thread: int) -> None:
        """Note that a thread lists a directory: if its program makes that, it is made."""
        for one in self._local.being_made(path):
            if not one.name and self._makers.is_by(one.maker, thread):
                self._made(one)

    def followed_by(self, path: str, target: str, thread: int) -> None:
        """Note that a thread reads a link: where that leads to, its program now looks for all."""
        self.listed_by(normpath(join(dirname(path), target)), thread)

    def changed_by(self, path: str, thread: int) -> None:
        """Note that a thread makes something: where another program makes directories, it has made
        those on the way.
        """
        for one in self._local.being_made(path):
            if one.name and not self._makers.is_by(one.maker, thread):
                self._made(one)

    def exists(self, path: str) -> bool:
        """Whether there is something at a path."""
        try:
            self.node(path).attr(self._context)
        except NotFound:
            return False
        return True

    def require_parent(self, path: str) -> None:
        """Raise NotFound unless something can be made at a path: its directory exists."""
        parent = self.node(path.rpartition("/")[0] or "/")
        if not stat.S_ISDIR(parent.attr(self._context).mode):
            raise NotFound(f"{path} is not in a directory")

    # ---- making ------------------------------------------------------------------------------

    def mkdir(self, path: str, thread: int = 0) -> None:
        """Make a directory, here: a registry has none.

        `thread` is the number of the one that makes it; 0 if nobody is known to.
        """
        place = place_of(self._tree, path)
        if self.exists(path):
            raise Exists(f"{path} exists")
        self.require_parent(path)
        if place is not None:
            if not isinstance(place, ManifestDirectory) and not is_derived(place):
                raise NotPermitted(f"{path} cannot be a directory")
            self._contents.check_file(place)
        directory = LocalDirectory(made=True, maker=self._makers.of(thread))
        self._local.put(path, directory, replace=False)
        try:
            node = self._tree(path)
        except NotFound:
            return
        if isinstance(node, RepositoryNode):
            self._publisher.touch(node.repository)

    def symlink(self, target: str, path: str) -> None:
        """Make a link: a tag, or what is derived from a manifest; else it is local."""
        place = place_of(self._tree, path)
        if self.exists(path):
            raise Exists(f"{path} exists")
        self.require_parent(path)
        link = LocalLink(target)
        self._local.put(path, link, replace=False)
        if place is not None:
            try:
                kept = self._contents.settle_link(place, link, path)
            except BaseException:
                self._local.remove(path, link)
                raise
            if not kept:
                self._local.give(path, link)

    # ---- moving ------------------------------------------------------------------------------

    def rename(self, old: str, new: str, *, replace: bool = True) -> None:
        """Rename a file or link; under its final name it is sent, and else stays as it was.

        Raises CrossDevice for what can only be copied: directories, and what the registry has, but
        for tags.
        """
        place = place_of(self._tree, new)
        if not replace and self.exists(new):
            raise Exists(f"{new} exists")
        self.require_parent(new)
        local = self._local.get(old)
        if isinstance(local, LocalFile):
            self._move_file(local, place, old, new)
        elif isinstance(local, LocalLink):
            self._move_link(local, place, old, new)
        elif local is None:
            self._move_tag(old, place, new)
        else:
            raise CrossDevice(f"{old} can only be copied")

    def _move_file(self, file: LocalFile, place: Place | None, old: str, new: str) -> None:
        if old == new:
            return
        with file.turn:
            if place is None:
                self._require_local(new)
                self._forget(old)
                self._local.move(file, old, new)
                file.is_final, file.path = False, new
                return
            version = file.version
            file.hold()
            try:
                kept = self._contents.settle_file(place, file, new)
            finally:
                file.let_go()
            file.settled, file.is_final, file.path = version, True, new
        self._forget(old)
        self._moved(file, place, old, new, kept=kept)

    def _move_link(self, link: LocalLink, place: Place | None, old: str, new: str) -> None:
        if old == new:
            return
        if place is None:
            self._require_local(new)
            self._forget(old)
            self._local.move(link, old, new)
            return
        kept = self._contents.settle_link(place, link, new)
        self._forget(old)
        self._moved(link, place, old, new, kept=kept)

    def _moved(
        self, local: LocalFile | LocalLink, place: Place, old: str, new: str, *, kept: bool
    ) -> None:
        """Have something under its new name, if it is kept; it may be sent at any moment."""
        if not kept:
            self._local.remove(old, local)
            self._local.give(new, local)
            return
        self._local.move(local, old, new)
        waiter = waiter_of(place)
        if waiter is not None and not self._publisher.waits(waiter):
            self._local.give(new, local)

    def _move_tag(self, old: str, place: Place | None, new: str) -> None:
        """Have another tag name what one names, and delete that one."""
        node = self._tree(old)
        node.attr(self._context)
        if not (
            isinstance(node, TagLink)
            and isinstance(place, TagLink)
            and node.repository == place.repository
        ):
            raise CrossDevice(f"{old} can only be copied")
        if node.tag == place.tag:
            return
        link = LocalLink(node.target(self._context))
        self._contents.settle_link(place, link, new)
        self._publisher.remove_tag(node.repository, node.tag)

    def _require_local(self, path: str) -> None:
        """Raise NotPermitted where the tree has something that nothing local can replace."""
        there = self._local.get(path)
        if isinstance(there, LocalFile | LocalLink | Hidden) or not self.exists(path):
            return
        raise NotPermitted(f"{path} cannot be replaced")

    # ---- removing ----------------------------------------------------------------------------

    def unlink(self, path: str) -> None:
        """Remove a file or link: what is local, a tag, or a blob where that may be.

        What is derived from a manifest is taken away here alone, until it is written again.
        """
        local = self._local.get(path)
        if isinstance(local, LocalFile | LocalLink | SentFile):
            self._forget(path)
            self._local.remove(path, local)
            if isinstance(local, LocalFile):
                local.removed = True
            self._hide_derived(path)
            return
        node = self.node(path)
        if stat.S_ISDIR(node.attr(self._context).mode):
            raise NotPermitted(f"{path} is a directory")
        if isinstance(node, TagLink):
            self._forget(path)
            self._publisher.remove_tag(node.repository, node.tag)
        elif isinstance(node, BlobFile):
            self._require_deletes(path)
            self._publisher.remove_blob(node.repository, node.digest)
            self._local.note_removed(path)
        elif isinstance(node, ManifestFile):
            self._require_deletes(path)
            self._local.put(path, Hidden())
        elif isinstance(node, ManifestNode | ContentLink | IndexFile | LayoutFile):
            self._local.put(path, Hidden())
        else:
            raise NotPermitted(f"{path} cannot be removed")

    def _named_place(self, path: str) -> Place | None:
        """Return the place of a path; None, too, for a name that nothing can be sent under."""
        try:
            return place_of(self._tree, path)
        except EpochfsError:
            return None

    def _hide_derived(self, path: str) -> None:
        """Hide what the tree derives under a name, where something in its place was taken away."""
        place = self._named_place(path)
        is_made_of_others = isinstance(place, ContentLink | IndexFile | LayoutFile)
        if (is_made_of_others or is_derived(place)) and self.exists(path):
            self._local.put(path, Hidden())

    def rmdir(self, path: str) -> None:
        """Remove a directory that is empty: a local one, or a manifest's where that may be."""
        node = self.node(path)
        if not stat.S_ISDIR(node.attr(self._context).mode):
            raise NotFound(f"{path} is no directory")
        if self._lists_anything(node):
            raise NotEmpty(f"{path} is not empty")
        try:
            tree: Node | None = self._tree(path)
            if tree is not None and not self._contents.is_shown(tree):
                tree = None
        except NotFound:
            tree = None
        if isinstance(tree, ManifestDirectory):
            self._require_deletes(path)
            self._publisher.remove_manifest(tree.repository, tree.digest)
            self._local.remove(path)
            self._local.note_removed(path)
        elif isinstance(tree, ManifestNode):
            self._local.put(path, Hidden())
        elif tree is None:
            self._local.remove_directory(path)
        else:
            raise NotPermitted(f"{path} is there as long as the registry has the repository")

    def _lists_anything(self, node: Node) -> bool:
        entries, _ = node.listed(self._context)
        return next(iter(entries), None) is not None

    def _require_deletes(self, path: str) -> None:
        if not self._deletes:
            raise NotPermitted(f"{path} can be deleted with -o rw,delete only")

    def _forget(self, path: str) -> None:
        """Have nothing wait any more under a name that is taken away."""
        place = self._named_place(path)
        waiter = waiter_of(place)
        if waiter is not None:
            self._publisher.forget(waiter)
        if isinstance(place, ContentLink):
            self._publisher.spare(place.repository, place.digest, None)
