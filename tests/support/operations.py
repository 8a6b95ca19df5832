"""What libfuse calls, for the tests that call it in the place of libfuse."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from epochfs.fuse.passthrough import Passthrough
from support.mounts import require_fuse

if TYPE_CHECKING:
    from epochfs.fuse.operations import EpochOperations


def operations_on(filesystem: Any) -> EpochOperations:
    """Return the operations of a file system that is not mounted; skip the test without libfuse."""
    require_fuse()
    from epochfs.fuse.libfuse import FuseOptions
    from epochfs.fuse.operations import EpochOperations

    options, passthrough = FuseOptions("x", 1.0, 0, 0), Passthrough(Path("/nowhere"), (2, 9))
    return EpochOperations(filesystem, Path("/nowhere"), options, passthrough, lambda: None)
