"""The directory of a manifest: its bytes, links to what it names, and the views of it.

A new view is a module in `views` and a row in `VIEWS`; nothing else knows of it.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass

from epochfs.errors import NotFound
from epochfs.oci.kinds import kind_of
from epochfs.oci.manifests import CREATED, Descriptor, Document, Manifest
from epochfs.oci.times import time_ns
from epochfs.vfs.kernel_memory import InMemory
from epochfs.vfs.node import (
    CONSTANT_TIME_NS,
    DIRECTORY,
    FILE,
    Attr,
    Context,
    Entries,
    ManifestLink,
    ManifestNode,
    ManifestView,
    Node,
    Opened,
    Xattrs,
    content_xattrs,
)
from epochfs.vfs.views.files import SPARSE, FilesNode
from epochfs.vfs.views.related import PlatformsDirectory, ReferrersDirectory
from epochfs.vfs.views.rootfs import RootfsNode
from epochfs.vfs.views.skopeo import SkopeoDirectory
from epochfs.vfs.views.snapshots import SparseNode
from epochfs.vfs.views.volume import VolumeNode

MANIFEST_FILE = "manifest.json"

VOLUME = "volume"

REFERRERS = "referrers"
"""The one view that does not depend on what the manifest says: every manifest has it."""

VIEWS: Mapping[str, type[ManifestView]] = {
    "dir": SkopeoDirectory,
    "files": FilesNode,
    "platforms": PlatformsDirectory,
    REFERRERS: ReferrersDirectory,
    "rootfs": RootfsNode,
    SPARSE: SparseNode,
    VOLUME: VolumeNode,
}

_MAX_TIME_NS = 2**63 - 1
_MAX_XATTR_NAME = 255


class _Described(ManifestNode):
    """A node whose extended attributes are what the manifest says of itself."""

    def content(self, context: Context) -> Descriptor:
        document = self.document(context)
        return Descriptor(document.own_type, self.digest, document.size)

    def xattrs(self, context: Context) -> Xattrs:
        document = self.document(context)
        if document.readable_view is None:
            return content_xattrs(self.digest, document.own_type, "")
        values = content_xattrs(self.digest, document.own_type, _artifact_type(document))
        values["user.epochfs.kind"] = kind_of(document)
        for key, value in document.view.annotations.items():
            name = f"user.oci.annotation.{key}"
            if name.isprintable() and len(name.encode()) <= _MAX_XATTR_NAME:
                values[name] = value
        return values


class ManifestDirectory(_Described):
    """`<repo>/manifests/<digest>`: the manifest, links to what it names, and views of it."""

    kind = stat.S_IFDIR

    def child(self, name: str) -> Node:
        if name not in _CHILDREN:
            raise NotFound(f"no {name} in a manifest")
        return _CHILDREN[name](self.repository, self.digest)

    def attr(self, context: Context) -> Attr:
        context.listings.asked_for_manifest(self.repository, self.digest)
        return self.known(context)

    def known(self, context: Context) -> Attr:
        """Return the attributes to who lists it among others, which is no sign of a walk."""
        return Attr(DIRECTORY, time_ns=_created(self.document(context)))

    def entries(self, context: Context) -> Entries:
        document = self.document(context)
        yield MANIFEST_FILE, stat.S_IFREG
        if document.readable_view is None:
            yield REFERRERS, stat.S_IFDIR
        view = document.view
        if isinstance(view, Manifest):
            if view.config is not None:
                yield "config", stat.S_IFLNK
            yield "layers", stat.S_IFDIR
        for name, shown in VIEWS.items():
            if shown(self.repository, self.digest).is_listed(context):
                yield name, stat.S_IFDIR

    def is_fixed(self, context: Context) -> bool:
        return self.is_known(context)

    def known_attr(self, name: str, context: Context) -> Attr | None:
        child = self.child(name)
        told_by_layers = child.foreign
        return child.attr(context) if self.is_known(context) and not told_by_layers else None


class ManifestFile(_Described):
    """`<repo>/manifests/<digest>/manifest.json`: the exact bytes."""

    def attr(self, context: Context) -> Attr:
        document = self.document(context)
        return Attr(FILE, document.size, _created(document))

    def open(self, context: Context) -> Opened:
        document = self.document(context)
        context.listings.asked_for_manifest(self.repository, self.digest)
        return Opened(InMemory(document.raw), keep_cache=True)


class ConfigLink(ManifestLink):
    """`<repo>/manifests/<digest>/config`: a link to the config blob."""

    def target(self, context: Context) -> str:
        config = self.image(context).config
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        return f"../../blobs/{config.digest}"


class LayersDirectory(ManifestNode):
    """`<repo>/manifests/<digest>/layers`: links to the layers, numbered from 00."""

    def child(self, name: str) -> Node:
        if not (name.isascii() and name.isdecimal() and 2 <= len(name) <= 9):
            raise NotFound(f"no layer {name}")
        return LayerLink(self.repository, self.digest, name)

    def attr(self, context: Context) -> Attr:
        self.image(context)
        return Attr(DIRECTORY)

    def entries(self, context: Context) -> Entries:
        count = len(self.image(context).layers)
        return ((_layer_name(index, count), stat.S_IFLNK) for index in range(count))

    def is_fixed(self, context: Context) -> bool:
        return self.is_known(context)

    def known_attr(self, name: str, context: Context) -> Attr | None:
        return self.child(name).attr(context) if self.is_known(context) else None


@dataclass(frozen=True)
class LayerLink(ManifestLink):
    """`<repo>/manifests/<digest>/layers/<NN>`: a link to a layer's blob."""

    name: str

    def target(self, context: Context) -> str:
        layers = self.image(context).layers
        index = int(self.name)
        if index >= len(layers) or _layer_name(index, len(layers)) != self.name:
            raise NotFound(f"no layer {self.name}")
        return f"../../../blobs/{layers[index].digest}"


_CHILDREN: Mapping[str, type[ManifestNode]] = {
    MANIFEST_FILE: ManifestFile,
    "config": ConfigLink,
    "layers": LayersDirectory,
    **VIEWS,
}


def _layer_name(index: int, count: int) -> str:
    return str(index).zfill(max(2, len(str(count - 1))))


def _artifact_type(document: Document) -> str:
    """Return the artifact type; for a referrer without one, its config's media type, as in a
    listing of referrers (OCI Distribution specification 1.1, "Listing Referrers").
    """
    view = document.view
    if view.artifact_type or view.subject is None or not isinstance(view, Manifest):
        return view.artifact_type
    return view.config.media_type if view.config is not None else ""


def _created(document: Document) -> int:
    """Return when an image was made, if it says so with a valid time (RFC 3339)."""
    view = document.readable_view
    text = view.annotations.get(CREATED, "") if view is not None else ""
    try:
        created = time_ns(text)
    except ValueError:
        return CONSTANT_TIME_NS
    return created if 0 < created <= _MAX_TIME_NS else CONSTANT_TIME_NS
