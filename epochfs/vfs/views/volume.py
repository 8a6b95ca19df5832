"""`volume/`: what an image volume of Kubernetes would mount (KEP-4639), as regular files.

That is the root filesystem of a container image; the files of a cloud image or snapshot, as the
machine had them; of any other artifact, each layer under its name (`oci.artifact_files`), a tar
unpacked, later layers over earlier ones; of an index, the volume of its manifest for the mount's
platform. What it shows has a path elsewhere, but a link to that would
be dead where a volume is bind-mounted alone. So it opens by name, and is not listed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache

from epochfs.errors import NotFound, ProtocolViolation
from epochfs.oci.artifact_files import artifact_files
from epochfs.oci.kinds import CLOUD_IMAGE, SNAPSHOT, is_snapshot, kind_of
from epochfs.oci.manifests import Descriptor, Document, Index, Manifest
from epochfs.oci.names import labels
from epochfs.oci.platforms import choose, platform_of
from epochfs.vfs.merge_layers import Layer, PlainFile, PlainFiles, TarLayer
from epochfs.vfs.merged import Merged, MergedNode
from epochfs.vfs.node import REMEMBERED, Context
from epochfs.vfs.views.files import files_of
from epochfs.vfs.views.rootfs import layers_of
from epochfs.vfs.views.snapshots import SparseNode

_MAX_DEPTH = 4
"""How deep an index may be in another."""


class VolumeNode(MergedNode):
    """`volume`, and every place below it."""

    def exists(self, context: Context) -> bool:
        self.merged(context)
        return True

    def is_listed(self, context: Context) -> bool:
        return False

    def merged(self, context: Context) -> Merged:
        document = self._for_platform(context)
        image = layers_of(document, believes_soci=context.listings.believes_soci)
        if image is not None:
            return Merged(context, self.repository, image)
        if kind_of(document) in (CLOUD_IMAGE, SNAPSHOT):
            layers: Sequence[Layer] = [PlainFiles(self._machine_files(document, context))]
        else:
            layers = _layers_of(document)
        return Merged(context, self.repository, layers, independent=True)

    def _machine_files(
        self, document: Document, context: Context
    ) -> Iterator[tuple[bytes, PlainFile]]:
        """Yield the files of a cloud image or snapshot: disks joined, holes in their places."""
        for path, file in files_of(document).files.items():
            found: PlainFile = file
            if is_snapshot(document):
                try:
                    found = SparseNode(self.repository, document.digest, path).shown(context)
                except ProtocolViolation as error:
                    found = error
            yield os.fsencode(path), found

    def _for_platform(self, context: Context) -> Document:
        """Return the manifest, or that of an index for the mount's platform."""
        document = self.document(context)
        for _ in range(_MAX_DEPTH):
            view = document.view
            if not isinstance(view, Index):
                return document
            chosen = choose(view, context.platform)
            if chosen is None:
                offered = (str(platform_of(one) or "an unnamed platform") for one in view.manifests)
                raise NotFound(
                    f"{document.digest} has nothing for {context.platform}, only for: "
                    f"{', '.join(dict.fromkeys(offered)) or 'none'}"
                )
            document = context.listings.manifest(self.repository, chosen.digest)
        raise NotFound(f"{self.digest} is an index of indexes of indexes")


@lru_cache(maxsize=REMEMBERED)
def _layers_of(document: Document) -> tuple[Layer, ...]:
    """Return the layers of an artifact: its tars, and between them what is plain files."""
    view = document.view
    layers: list[Layer] = []
    files: list[tuple[bytes, PlainFile]] = []
    for file in artifact_files(view) if isinstance(view, Manifest) else ():
        if file.unpack is None:
            files.append((_path(file.name, file.layer), file.layer))
            continue
        if files:
            layers.append(PlainFiles(files))
            files = []
        layers.append(TarLayer(file.layer, _path(file.unpack, file.layer) if file.unpack else b""))
    if files:
        layers.append(PlainFiles(files))
    return tuple(layers)


def _path(name: str, layer: Descriptor) -> bytes:
    """Return the path of a layer: its name, or its digest where that is no harmless path."""
    return os.fsencode(next(labels(name, layer.digest)))
