"""The stored form of a snapshot's file, by its layers and by the snapshot's config.

Whatever does not fit is an error of that file alone: no other bytes are shown under its name.
"""

from __future__ import annotations

from epochfs.errors import ProtocolViolation, printable
from epochfs.oci.kinds import SnapshotConfig, StoredFile, may_be_chunked, title_of
from epochfs.oci.manifests import Descriptor, Document, Manifest, checked_size
from epochfs.vfs.composed import Composed, Frames, Joined, Sparse

CONFIG_TYPE = "application/vnd.cocoonstack.snapshot.config.v1+json"

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


def stored(document: Document, layer: Descriptor, config: SnapshotConfig) -> Descriptor | Composed:
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
    if document.view.config is None or document.view.config.media_type != CONFIG_TYPE:
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
