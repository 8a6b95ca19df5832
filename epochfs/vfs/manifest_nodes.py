"""The nodes of one manifest: its directory, its bytes, and links to what it names."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from datetime import UTC, datetime

from epochfs.errors import NotFound
from epochfs.oci.kinds import kind_of
from epochfs.oci.manifests import CREATED, Document, Manifest
from epochfs.vfs.context import Context
from epochfs.vfs.node import (
    CONSTANT_TIME_NS,
    DIRECTORY,
    FILE,
    Attr,
    Entries,
    InMemory,
    Node,
    Opened,
    Xattrs,
    content_xattrs,
)
from epochfs.vfs.views import REFERRERS, VIEWS
from epochfs.vfs.views.view import ManifestLink, ManifestNode

MANIFEST_FILE = "manifest.json"

_MAX_TIME_NS = 2**63 - 1
_MAX_XATTR_NAME = 255
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class _Described(ManifestNode):
    """A node that has what the manifest says of itself as extended attributes."""

    __slots__ = ()

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

    __slots__ = ()

    def child(self, name: str) -> Node:
        if name == MANIFEST_FILE:
            return ManifestFile(self.repository, self.digest)
        if name == "config":
            return ConfigLink(self.repository, self.digest)
        if name == "layers":
            return LayersDirectory(self.repository, self.digest)
        if name in VIEWS:
            return VIEWS[name](self.repository, self.digest)
        raise NotFound(f"no {name} in a manifest")

    def attr(self, context: Context) -> Attr:
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


class ManifestFile(_Described):
    """`<repo>/manifests/<digest>/manifest.json`: the exact bytes."""

    __slots__ = ()

    def attr(self, context: Context) -> Attr:
        document = self.document(context)
        return Attr(FILE, document.size, _created(document))

    def open(self, context: Context) -> Opened:
        return Opened(InMemory(self.document(context).raw), keep_cache=True)


class ConfigLink(ManifestLink):
    """`<repo>/manifests/<digest>/config`: a link to the config blob."""

    __slots__ = ()

    def target(self, context: Context) -> str:
        config = self.image(context).config
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        return f"../../blobs/{config.digest}"


class LayersDirectory(ManifestNode):
    """`<repo>/manifests/<digest>/layers`: links to the layers, numbered from 00."""

    __slots__ = ()

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


@dataclass(frozen=True, slots=True)
class LayerLink(ManifestLink):
    """`<repo>/manifests/<digest>/layers/<NN>`: a link to a layer's blob."""

    name: str

    def target(self, context: Context) -> str:
        layers = self.image(context).layers
        index = int(self.name)
        if index >= len(layers) or _layer_name(index, len(layers)) != self.name:
            raise NotFound(f"no layer {self.name}")
        return f"../../../blobs/{layers[index].digest}"


def _layer_name(index: int, count: int) -> str:
    return str(index).zfill(max(2, len(str(count - 1))))


def _artifact_type(document: Document) -> str:
    """Return the artifact type; of a referrer without one it is the config's media type, as in a
    listing of referrers (OCI Distribution specification 1.1, "Listing Referrers").
    """
    view = document.view
    if view.artifact_type or view.subject is None or not isinstance(view, Manifest):
        return view.artifact_type
    return view.config.media_type if view.config is not None else ""


def _created(document: Document) -> int:
    """Return when an image was made, where it says so in a way that can be a time (RFC 3339)."""
    view = document.readable_view
    text = view.annotations.get(CREATED, "") if view is not None else ""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return CONSTANT_TIME_NS
    if moment.tzinfo is None:
        return CONSTANT_TIME_NS
    elapsed = moment - _EPOCH
    time_ns = (elapsed.days * 86400 + elapsed.seconds) * 10**9 + elapsed.microseconds * 1000
    return time_ns if 0 < time_ns <= _MAX_TIME_NS else CONSTANT_TIME_NS
