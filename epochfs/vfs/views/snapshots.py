"""`sparse/`: the files of a snapshot as the virtual machine had them, holes included. Not listed.

Every question here needs the snapshot's config, which is a blob; so a walk of the tree must ask
none. If layers and config contradict one another, that is an error of that file alone: no other
bytes are shown under its name.
"""

from __future__ import annotations

import stat

from epochfs.errors import NotFound, ProtocolViolation, TooLarge, printable
from epochfs.oci.kinds import (
    MAX_CONFIG_BYTES,
    SnapshotConfig,
    StoredFile,
    is_snapshot,
    may_be_chunked,
    title_of,
)
from epochfs.oci.manifests import Descriptor, Document, Manifest, checked_size
from epochfs.vfs.composed import Composed, Frames, Joined, Sparse
from epochfs.vfs.node import Context, Entries
from epochfs.vfs.views.files import FilesNode

_CONFIG_TYPE = "application/vnd.cocoonstack.snapshot.config.v1+json"

_ZSTD = "+zstd"
_KNOWN_TYPES = (
    "application/octet-stream",
    "application/vnd.cocoonstack.disk.qcow2",
    "application/vnd.cocoonstack.disk.raw",
    "application/vnd.cocoonstack.vm.cidata",
    "application/vnd.cocoonstack.vm.config+json",
    "application/vnd.cocoonstack.vm.memory",
    "application/vnd.cocoonstack.vm.state+json",
)


class SparseNode(FilesNode):
    """`sparse`, and what is below it: links to the blobs that files are, or composed files."""

    def exists(self, context: Context) -> bool:
        return is_snapshot(self.document(context)) and super().exists(context)

    def is_listed(self, context: Context) -> bool:
        return False

    def entries(self, context: Context) -> Entries:
        for name, kind in super().entries(context):
            if kind != stat.S_IFDIR:
                try:
                    kind = stat.S_IFMT(self.child(name).attr(context).mode)
                except ProtocolViolation:
                    kind = stat.S_IFREG  # a guess, for stat(2) of it is the error
            yield name, kind

    def shown(self, context: Context) -> Descriptor | Composed:
        layer, config = super().shown(context), self.image(context).config
        if not isinstance(layer, Descriptor):
            raise NotFound(f"no file {self.path}")
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        if config.size > MAX_CONFIG_BYTES:
            raise TooLarge(f"a snapshot's config is {config.size} bytes, over {MAX_CONFIG_BYTES}")
        parsed = context.listings.snapshot_config(self.repository, config.digest)
        return _content_of(self.document(context), layer, parsed)

    def link(self, layer: Descriptor, context: Context) -> str:
        return f"{'../' * (3 + self.path.count('/'))}blobs/{layer.digest}"


def _content_of(
    document: Document, layer: Descriptor, config: SnapshotConfig
) -> Descriptor | Composed:
    """Return what a file is composed of, or the layer it is; `layer` is the first of its title.

    Raises ProtocolViolation if layers and config contradict one another.
    """
    entry = config.file(title_of(layer))
    if not may_be_chunked(document):
        if entry.chunks or _is_packed(layer):
            raise ProtocolViolation(
                f"{layer.digest} is chunked or compressed, in a snapshot of the first version"
            )
        if entry.holes is not None and entry.holes.size != entry.holes.stated:
            raise ProtocolViolation(
                f"a sparse map does not fit a file of {entry.holes.stated} bytes"
            )
        return _composed((layer,), entry, packed=False)
    assert isinstance(document.view, Manifest)
    if document.view.config is None or document.view.config.media_type != _CONFIG_TYPE:
        raise ProtocolViolation("the snapshot's config is of an unknown type")
    pieces = _pieces(_layers(document.view, title_of(layer)), entry)
    packed = _is_packed(pieces[0])
    if any(_is_packed(piece) != packed for piece in pieces):
        raise ProtocolViolation("only some chunks of the file are compressed")
    if (entry.chunks or packed) and not entry.size:
        raise ProtocolViolation("the config gives no size for a file that is chunked or compressed")
    return _composed(pieces, entry, packed=packed)


def _layers(view: Manifest, title: str) -> dict[str, Descriptor]:
    """Return the layers of a title by their digests."""
    found: dict[str, Descriptor] = {}
    for layer in view.layers:
        if title_of(layer) != title:
            continue
        if layer.media_type.removesuffix(_ZSTD) not in _KNOWN_TYPES:
            raise ProtocolViolation(
                f"{layer.digest} is of an unknown type: {printable(layer.media_type)}"
            )
        known = found.setdefault(str(layer.digest), layer)
        if (known.media_type, known.size) != (layer.media_type, layer.size):
            raise ProtocolViolation(f"{layer.digest} has conflicting descriptors")
    return found


def _pieces(layers: dict[str, Descriptor], entry: StoredFile) -> tuple[Descriptor, ...]:
    """Return the layers that a file is in, in order."""
    if not entry.chunks and len(layers) > 1:
        raise ProtocolViolation(
            "the file is in several layers, and the config does not tell their order"
        )
    try:
        return tuple(layers[digest] for digest in entry.chunks or layers)
    except KeyError as error:
        raise ProtocolViolation(f"the file has no layer for its chunk {printable(error)}") from None


def _composed(
    pieces: tuple[Descriptor, ...], entry: StoredFile, *, packed: bool
) -> Descriptor | Composed:
    length = entry.size if packed else checked_size(sum(piece.size for piece in pieces))
    if entry.size not in (0, length):
        raise ProtocolViolation(f"layers of {length} bytes do not fit a file of {entry.size}")
    if entry.holes is not None and entry.holes.length != length:
        raise ProtocolViolation(
            f"a sparse map of {entry.holes.length} bytes does not fit layers of {length}"
        )
    if entry.holes is None and len(pieces) == 1 and not packed:
        return pieces[0]
    stored = Frames(length, pieces) if packed else Joined(pieces)
    return stored if entry.holes is None else Sparse(entry.holes, stored)


def _is_packed(layer: Descriptor) -> bool:
    return layer.media_type.endswith(_ZSTD)
