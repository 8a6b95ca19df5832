"""The context of one mount's nodes: one frozen value, handed to each of their methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from epochfs.blobs.store import BlobStore
from epochfs.layers.layer_store import Layers
from epochfs.metadata.listings import Listings
from epochfs.vfs.composed import Composer
from epochfs.vfs.kernel_memory import KernelMemory


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What the nodes of a mount answer from, and what the kernel remembers of their answers.

    `timeout` bounds how long one operation waits for layers, in seconds. `status` returns what
    `status.json` is at the moment.
    """

    listings: Listings
    blobs: BlobStore
    layers: Layers
    composer: Composer
    kernel: KernelMemory
    status: Callable[[], bytes]
    timeout: float

    def close(self) -> None:
        """End all downloads and background work; waiting readers get an error."""
        self.listings.close()
        self.layers.close()
        self.composer.close()
        self.blobs.close()
