"""Paths to nodes and back: where the tree begins, and how a path is walked. Pure.

::

    /<repo>/tags/<tag>                          -> ../manifests/<digest>
    /<repo>/manifests/<digest>/manifest.json
    /<repo>/manifests/<digest>/config           -> ../../blobs/<digest>
    /<repo>/manifests/<digest>/layers/<NN>      -> ../../../blobs/<digest>
    /<repo>/manifests/<digest>/<view>/          see `views`
    /<repo>/blobs/<digest>
    /<repo>/layout/                             see `views.layout`
    /.epochfs/status.json

What is named by a digest is immutable: a regular file (or a directory) with exactly one path. What
can change is a link. The kinds of nodes, and the naming rules, are in
`repository_nodes`.
"""

from __future__ import annotations

from epochfs.errors import NameTooLong, NotFound
from epochfs.oci.names import NAME_MAX, Repository
from epochfs.vfs.node import Node
from epochfs.vfs.repository_nodes import CONTROL, ControlDirectory, Namespace

_MOST_BYTES = 4
"""How many bytes a character takes at most."""


class Tree:
    """The tree of one registry, or of the repositories below `prefix` in it."""

    def __init__(self, prefix: Repository | None = None) -> None:
        self._root = Namespace(prefix.segments if prefix is not None else ())

    def node(self, path: str) -> Node:
        """Return the node an absolute, normal path means.

        Raises NotFound where there can be none, NameTooLong for a name that none can have.
        """
        names = path.split("/")[1:] if path != "/" else []
        if len(path) * _MOST_BYTES > NAME_MAX:
            _check_lengths(names)
        if names[:1] == [CONTROL]:
            node: Node = ControlDirectory()
            names = names[1:]
        else:
            node = self._root
        for name in names:
            if not node.foreign and not name.isprintable():
                raise NotFound("a name with control characters")
            node = node.child(name)
        return node


def _check_lengths(names: list[str]) -> None:
    for name in names:
        length = len(name.encode("utf-8", "surrogateescape"))
        if length > NAME_MAX:
            raise NameTooLong(f"a name of {length} bytes")
