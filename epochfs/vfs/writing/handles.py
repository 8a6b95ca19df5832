"""Handles of local files: those that read, and those that may write."""

from __future__ import annotations

from epochfs.vfs.composed import Readable
from epochfs.vfs.node import Attr, Context, Node
from epochfs.vfs.writing.local import LocalFile, LocalReader

_PIECE = 1 << 20


class Writer(LocalReader):
    """A handle that may write: until it does, it shows what is there under the file's name.

    Used by one program at a time, as far as it reads and writes one file with one descriptor.
    """

    def __init__(self, file: LocalFile, base: Node | None, context: Context) -> None:
        """`base` is what the file is to be changed from; None for one that starts empty."""
        super().__init__(file)
        self._base: Readable | None = None
        self._size = 0
        if base is not None:
            self._size = base.attr(context).size
            self._base = base.open(context).file

    def attr(self, context: Context) -> Attr:
        """Return the attributes as fstat(2) shows them."""
        attr = self.file.attr(context)
        return attr if self._base is None else Attr(attr.mode, self._size, attr.time_ns)

    def read_into(self, view: memoryview, offset: int) -> int:
        base = self._base
        return super().read_into(view, offset) if base is None else base.read_into(view, offset)

    def take_over(self) -> None:
        """Copy what is there, which is to be changed in part."""
        base, self._base = self._base, None
        if base is not None:
            try:
                for offset in range(0, self._size, _PIECE):
                    view = memoryview(bytearray(min(_PIECE, self._size - offset)))
                    base.read_into(view, offset)
                    self.file.on_disk.write(view, offset)
            finally:
                base.close()

    def start_empty(self) -> None:
        """Forget what is there."""
        base, self._base = self._base, None
        if base is not None:
            base.close()

    def close(self) -> None:
        self.start_empty()
        super().close()
