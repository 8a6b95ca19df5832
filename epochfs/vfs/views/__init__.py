"""Views: directories that show once more, and as people want it, what is in a registry.

One rule holds in all of them: a link where the bytes already have a path, a regular file only
where they do not. A view of a manifest, below `<repo>/manifests/<digest>/`, has a module here and
a row in `VIEWS`, and nothing else knows of it. `layout` is the one view of a whole repository.
"""

from __future__ import annotations

from collections.abc import Mapping

from epochfs.vfs.views.files import SPARSE, FilesDirectory
from epochfs.vfs.views.platforms import PlatformsDirectory
from epochfs.vfs.views.referrers import ReferrersDirectory
from epochfs.vfs.views.rootfs import RootfsNode
from epochfs.vfs.views.skopeo import SkopeoDirectory
from epochfs.vfs.views.snapshots import SparseDirectory
from epochfs.vfs.views.view import ManifestView

REFERRERS = "referrers"
"""The one view that tells nothing of a manifest itself, so that each manifest has it."""

VIEWS: Mapping[str, type[ManifestView]] = {
    "dir": SkopeoDirectory,
    "files": FilesDirectory,
    "platforms": PlatformsDirectory,
    REFERRERS: ReferrersDirectory,
    "rootfs": RootfsNode,
    SPARSE: SparseDirectory,
}
"""The views of a manifest, by their names."""
