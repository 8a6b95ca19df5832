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
can change is a link. The kinds of nodes, and the naming rules, are in `nodes`.
"""

from __future__ import annotations

from epochfs.errors import NotFound
from epochfs.oci.names import Repository
from epochfs.vfs.node import Node
from epochfs.vfs.repository_nodes import CONTROL, ControlDirectory, Namespace


class Tree:
    """The tree of one registry, or of the repositories below `prefix` in it."""

    def __init__(self, prefix: Repository | None = None) -> None:
        self._root = Namespace(prefix.segments if prefix is not None else ())

    def node(self, path: str) -> Node:
        """Return the node an absolute, normal path means; raises NotFound where none can be."""
        names = path.split("/")[1:] if path != "/" else []
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
