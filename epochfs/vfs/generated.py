"""Regular files whose bytes are written here, from what the registry says at the moment."""

from __future__ import annotations

from epochfs.vfs.context import Context
from epochfs.vfs.kernel_memory import Generated
from epochfs.vfs.node import FILE, Attr, Node, Opened


class GeneratedFile(Node):
    """A node that is such a file. It is its own key, so two of one path are equal."""

    __slots__ = ()

    def generated(self, context: Context) -> Generated:
        """Return the file as it is now; raises NotFound where there is none."""
        raise NotImplementedError

    def attr(self, context: Context) -> Attr:
        found = context.kernel.tell(self, self.generated(context))
        return Attr(FILE, len(found.data), found.time_ns)

    def open(self, context: Context) -> Opened:
        file = context.kernel.open(self, lambda: self.generated(context))
        return Opened(file, direct_io=file.direct_io)
