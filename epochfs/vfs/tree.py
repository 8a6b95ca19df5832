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

from functools import lru_cache

from epochfs.errors import NameTooLong, NotFound
from epochfs.oci.names import NAME_MAX, Repository
from epochfs.vfs.node import Node
from epochfs.vfs.repository_nodes import CONTROL, ControlDirectory, Namespace

_MOST_BYTES = 4
"""How many bytes a character takes at most."""

_MAX_DIRECTORIES = 1024
"""Of how many directories the nodes are kept: what is next asked for is mostly in the same ones."""


class Tree:
    """The tree of one registry, or of the repositories below `prefix` in it."""

    def __init__(self, prefix: Repository | None = None) -> None:
        self._root = Namespace(prefix.segments if prefix is not None else ())
        self._directory = lru_cache(_MAX_DIRECTORIES)(self._walk)

    def node(self, path: str) -> Node:
        """Return the node an absolute, normal path means.

        Raises NotFound where there can be none, NameTooLong for a name that none can have.
        """
        if path == "/":
            return self._root
        directory, _, name = path.rpartition("/")
        return self._child(self._directory(directory), name)

    def _walk(self, path: str) -> Node:
        """Return the node of a path without a slash at its end, "" being the root's."""
        node: Node = self._root
        for name in path.split("/")[1:]:
            node = self._child(node, name)
        return node

    def _child(self, node: Node, name: str) -> Node:
        if len(name) * _MOST_BYTES > NAME_MAX:
            _check_length(name)
        if node is self._root and name == CONTROL:
            return ControlDirectory()
        if not node.foreign and not name.isprintable():
            raise NotFound("a name with control characters")
        return node.child(name)


def _check_length(name: str) -> None:
    length = len(name.encode("utf-8", "surrogateescape"))
    if length > NAME_MAX:
        raise NameTooLong(f"a name of {length} bytes")
