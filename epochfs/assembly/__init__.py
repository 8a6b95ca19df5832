"""Regular files that are put together from blobs, and read at random.

::

    joined      blobs one after the other: the parts of a disk, the pieces of a sparse file
    lending     what is opened at a read, and closed when others were used since
"""

from epochfs.assembly.joined import AssembledHandle, Assembly, Extent, joined

__all__ = ["AssembledHandle", "Assembly", "Extent", "joined"]
