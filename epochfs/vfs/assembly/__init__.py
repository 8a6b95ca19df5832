"""Regular files that are put together from blobs, and read at random.

::

    assembler   opens what a file is made of
    joined      blobs one after the other: the parts of a disk, the raw chunks of a snapshot's file
    frames      zstd frames one after the other: its compressed chunks
    holes       either of them, with holes between the pieces
    unpacking   frames decompressed, each once for all who read it; `unzstd` does one
    streaming   frames decompressed as they are read, where the disk has no room for that
    lending     what is opened at a read, and closed when others were used since
"""

from epochfs.vfs.assembly.assembler import Assembler, Made
from epochfs.vfs.assembly.frames import Frames, framed
from epochfs.vfs.assembly.holes import Readable, Sparse
from epochfs.vfs.assembly.joined import AssembledHandle, Assembly, Extent, joined

__all__ = [
    "AssembledHandle",
    "Assembler",
    "Assembly",
    "Extent",
    "Frames",
    "Made",
    "Readable",
    "Sparse",
    "framed",
    "joined",
]
