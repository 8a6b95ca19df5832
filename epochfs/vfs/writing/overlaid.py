"""A directory that the tree and the local tree both have, or the latter alone, as it is shown."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping

from epochfs.errors import NotFound
from epochfs.vfs.node import Attr, Context, Entries, Node, Xattrs
from epochfs.vfs.writing.local import LocalDirectory

_DIRECTORY = stat.S_IFDIR | 0o755


class Overlaid(Node):
    """A directory as it is shown: what the tree has, and what is local."""

    kind = stat.S_IFDIR

    def __init__(self, local: LocalDirectory, tree: Node | None) -> None:
        """`local` is a copy, for this alone; `tree` is the node of the same path, if any."""
        self._local = local
        self._names = local.names
        self._tree = tree

    def attr(self, context: Context) -> Attr:
        if self._local.made or self._tree is None:
            return Attr(_DIRECTORY, time_ns=self._local.time_ns)
        try:
            return self._tree.attr(context)
        except NotFound:
            if not self._has_any():
                raise
            return Attr(_DIRECTORY, time_ns=self._local.time_ns)

    def xattrs(self, context: Context) -> Xattrs:
        return {} if self._local.made or self._tree is None else self._tree.xattrs(context)

    def xattr(self, name: str, context: Context) -> str | bytes:
        if self._local.made or self._tree is None:
            raise NotFound(f"no attribute {name}")
        return self._tree.xattr(name, context)

    def listed(self, context: Context) -> tuple[Entries, Mapping[str, str]]:
        entries: Entries = ()
        identities: Mapping[str, str] = {}
        if self._tree is not None:
            try:
                entries, identities = self._tree.listed(context)
            except NotImplementedError:
                pass  # rsync makes .~tmp~ even where only a tag could be
            except NotFound:
                if not self._has_any():
                    raise
        return self._together(entries), identities

    def _has_any(self) -> bool:
        """Whether there is something to list, whatever the registry says."""
        local = self._local
        return local.made or bool(local.sent) or any(one.kind for one in local.names.values())

    def _together(self, entries: Entries) -> Iterator[tuple[str, int]]:
        """Yield what is local, then what the tree lists besides."""
        for name, local in self._names.items():
            if local.kind:
                yield name, local.kind
        known = {**self._local.sent, **self._local.given}
        sent = {name: kind for name, kind in known.items() if name not in self._names}
        try:
            for name, mode in entries:
                if name not in self._names:
                    sent.pop(name, None)
                    yield name, mode
        except NotFound:
            if not self._has_any():
                raise
        yield from sent.items()
