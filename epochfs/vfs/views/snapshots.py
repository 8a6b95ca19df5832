"""`sparse/`: the files of a snapshot as the virtual machine had them, holes and all. Not listed.

Every question here needs the snapshot's config, which is a blob; so nothing that a walk of the tree
comes by asks one. Where layers and config do not fit one another, that is an error of that file
alone: no other bytes are shown under its name.
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
from epochfs.vfs.node import (
    DIRECTORY,
    FILE,
    LINK,
    Attr,
    ComposedFile,
    Context,
    Entries,
    ManifestNode,
    ManifestView,
    Node,
)
from epochfs.vfs.views.files import files_of

_CONFIG_TYPE = "application/vnd.cocoonstack.snapshot.config.v1+json"

_ZSTD = "+zstd"
_KNOWN_TYPES = frozenset(
    (
        "application/octet-stream",
        "application/vnd.cocoonstack.disk.qcow2",
        "application/vnd.cocoonstack.disk.raw",
        "application/vnd.cocoonstack.vm.cidata",
        "application/vnd.cocoonstack.vm.config+json",
        "application/vnd.cocoonstack.vm.memory",
        "application/vnd.cocoonstack.vm.state+json",
    )
)


class SparseDirectory(ManifestView):
    """`sparse`: opens by name, and `files/` leads here."""

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, name)

    def exists(self, context: Context) -> bool:
        document = self.document(context)
        return is_snapshot(document) and bool(files_of(document).files)

    def is_listed(self, context: Context) -> bool:
        return False

    def entries(self, context: Context) -> Entries:
        return _entries(self, "", context)


class SparseNode(ComposedFile):
    """`sparse/<title>`: a link to the blob that the file is, or a file put together."""

    def child(self, name: str) -> Node:
        return SparseNode(self.repository, self.digest, f"{self.path}/{name}")

    def attr(self, context: Context) -> Attr:
        if self.path in files_of(self.document(context)).directories:
            return Attr(DIRECTORY)
        found = self._stored(context)
        if isinstance(found, Descriptor):
            return Attr(LINK, len(self._target(found)))
        return Attr(FILE, found.size)

    def entries(self, context: Context) -> Entries:
        return _entries(self, self.path, context)

    def target(self, context: Context) -> str:
        found = self._stored(context)
        if not isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is no link")
        return self._target(found)

    def composed(self, context: Context) -> Composed:
        found = self._stored(context)
        if isinstance(found, Descriptor):
            raise NotFound(f"{self.path} is a link")
        return found

    def _target(self, layer: Descriptor) -> str:
        up = "../" * (3 + self.path.count("/"))
        return f"{up}blobs/{layer.digest}"

    def _stored(self, context: Context) -> Descriptor | Composed:
        document, config = self.document(context), self.image(context).config
        layer = files_of(document).find(self.path)
        if not isinstance(layer, Descriptor):
            raise NotFound(f"no file {self.path}")
        if config is None:
            raise NotFound(f"{self.digest} has no config")
        if config.size > MAX_CONFIG_BYTES:
            raise TooLarge(f"a snapshot's config is {config.size} bytes, over {MAX_CONFIG_BYTES}")
        parsed = context.listings.snapshot_config(self.repository, config.digest)
        return _content_of(document, layer, parsed)


def _entries(node: ManifestNode, path: str, context: Context) -> Entries:
    """List a directory of titles, with the types that these have here."""
    for name, kind in files_of(node.document(context)).listed(path).items():
        if kind != stat.S_IFDIR:
            below = SparseNode(node.repository, node.digest, f"{path}/{name}".lstrip("/"))
            kind = _kind(below, context)
        yield name, kind


def _kind(node: SparseNode, context: Context) -> int:
    """Return the type of a file; of one that does not fit, a guess, for stat(2) is the error."""
    try:
        return stat.S_IFMT(node.attr(context).mode)
    except ProtocolViolation:
        return stat.S_IFREG


def _content_of(
    document: Document, layer: Descriptor, config: SnapshotConfig
) -> Descriptor | Composed:
    """Return what a file is made of, or the layer that it is; `layer` is the first of its title.

    Raises ProtocolViolation where layers and config do not fit one another.
    """
    entry = config.file(title_of(layer))
    if not may_be_chunked(document):
        if entry.chunks or _is_packed(layer):
            raise ProtocolViolation(f"{layer.digest} is as no snapshot of the first version has it")
        if entry.holes is not None and entry.holes.size != entry.holes.stated:
            raise ProtocolViolation(
                f"a sparse map does not fit a file of {entry.holes.stated} bytes"
            )
        return _made((layer,), entry, packed=False)
    assert isinstance(document.view, Manifest)
    if document.view.config is None or document.view.config.media_type != _CONFIG_TYPE:
        raise ProtocolViolation("a snapshot whose config is of an unknown type")
    pieces = _pieces(_layers(document.view, title_of(layer)), entry)
    packed = _is_packed(pieces[0])
    if any(_is_packed(piece) != packed for piece in pieces):
        raise ProtocolViolation("a file of which only some chunks are compressed")
    if (entry.chunks or packed) and not entry.size:
        raise ProtocolViolation("a file in chunks, or compressed, of which no size is told")
    return _made(pieces, entry, packed=packed)


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
            raise ProtocolViolation(f"{layer.digest} is described in two ways")
    return found


def _pieces(layers: dict[str, Descriptor], entry: StoredFile) -> tuple[Descriptor, ...]:
    """Return the layers that a file is in, in order."""
    if not entry.chunks and len(layers) > 1:
        raise ProtocolViolation("a file in several layers whose order is not told")
    try:
        return tuple(layers[digest] for digest in entry.chunks or layers)
    except KeyError as error:
        raise ProtocolViolation(f"no layer of the file is its chunk {printable(error)}") from None


def _made(
    pieces: tuple[Descriptor, ...], entry: StoredFile, *, packed: bool
) -> Descriptor | Composed:
    length = entry.size if packed else checked_size(sum(piece.size for piece in pieces))
    if entry.size not in (0, length):
        raise ProtocolViolation(f"layers of {length} bytes for a file of {entry.size}")
    if entry.holes is not None and entry.holes.length != length:
        raise ProtocolViolation(
            f"a sparse map of {entry.holes.length} bytes does not fit layers of {length}"
        )
    if entry.holes is None and len(pieces) == 1 and not packed:
        return pieces[0]
    made = Frames(length, pieces) if packed else Joined(pieces)
    return made if entry.holes is None else Sparse(entry.holes, made)


def _is_packed(layer: Descriptor) -> bool:
    return layer.media_type.endswith(_ZSTD)
