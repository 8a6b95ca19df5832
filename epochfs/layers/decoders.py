"""The decoders of gzip and zstd, in bounded memory; a blob that was cut short is an error.

gzip is read with zlib, from the points that indexed_gzip finds, where decompression can be resumed.
rapidgzip finds them too, but took 1.7 GiB of memory for 4 MiB of compressed zeros. indexed_gzip can
also read, but begins each read anew at the point before it: 40 s of processor for a layer of 1 GiB.
zstd needs zstandard: indexed_zstd only finds where frames begin, and a layer is one frame unless it
is zstd:chunked (see `toc`).

These libraries return what is there and then the end, as if that were all. A missing rest must be
noticed here, for the blob may match its digest: the layer may have been cut short before the push.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Any, cast

from epochfs.blobs.buffers import page_aligned
from epochfs.blobs.store import BlobHandle
from epochfs.errors import (
    ContentMismatch,
    EpochfsError,
    ProtocolViolation,
    Unsupported,
    fresh,
    printable,
)

try:
    import indexed_gzip
except ModuleNotFoundError:
    indexed_gzip = None
try:
    import zstandard
except ModuleNotFoundError:
    zstandard = None  # type: ignore[assignment]

NEEDED = "install indexed_gzip and zstandard beside epochfs (the extra 'rootfs')"
"""How to get a missing decoder. Not `pip install epochfs[...]`: it is on no index."""

PIECE_BYTES = 1 << 20

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_MAX_WINDOW = 128 << 20
_READ_BYTES = 256 << 10
_MEMBER_BYTES = 32 << 10
_GZIP = 16 + zlib.MAX_WBITS
_SPACING = 4 << 20
_MAX_SPACING = 48 << 20
_FEW_POINTS = 512
_MAX_POINTS = 4096
_FREE_BYTES = 2 << 30
_MAX_RATIO = 100

_END = b"epochfs: the end"
_END_FRAME = b"\x28\xb5\x2f\xfd\x20\x10\x81\x00\x00" + _END
"""A frame of one raw block (RFC 8878, §3.1.1) that is read after the blob's own. The decoder does
not tell whether a frame was complete; but only after a complete one does it decode this one."""


def missing() -> list[str]:
    """Return the packages that are not installed and that some layers need."""
    found = {"indexed_gzip": indexed_gzip, "zstandard": zstandard}
    return [name for name, module in found.items() if module is None]


def size_limit(blob_size: int) -> int:
    """Return the maximum decompressed size of a blob: 100 times its own, and at least 2 GiB."""
    return max(_FREE_BYTES, _MAX_RATIO * blob_size)


class BlobFile(io.RawIOBase):
    """A blob as the file that a decoder reads.

    `failure` keeps a read's error, as not every decoder lets it through.
    """

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob
        self._position = 0
        self.size = blob.size
        self.failure: EpochfsError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has the buffer protocol
        try:
            count = self._blob.read_into(memoryview(buffer).cast("B"), self._position)
        except EpochfsError as error:
            self.failure = error
            raise
        self._position += count
        return count


File = BlobFile | io.BytesIO


def compression_of(blob: BlobHandle) -> str:
    """Detect a blob's compression by its magic, as containerd does: media types are often wrong."""
    magic = read_range(blob, 0, 4)
    if magic.startswith(_GZIP_MAGIC):
        return "gzip"
    if magic == _ZSTD_MAGIC or magic[1:] == _ZSTD_SKIPPABLE:
        return "zstd"
    return "none"


class GuardedDecoder:
    """A library's decoder that raises nothing but EpochfsErrors."""

    def __init__(self, file: File, decoder: Any) -> None:  # noqa: ANN401 - untyped
        self._file = file
        self._decoder = decoder

    def readinto(self, buffer: memoryview, /) -> int:
        return int(self._guarded(self._decoder.readinto, buffer))

    def seek(self, offset: int) -> None:
        self._guarded(self._decoder.seek, offset)

    def export_index(self) -> memoryview:
        """Have a gzip decoder read all, and return its index."""
        exported = io.BytesIO()
        self._guarded(lambda _: self._decoder.build_full_index(), None)
        self._decoder.export_index(fileobj=exported)
        return exported.getbuffer()

    def close(self) -> None:
        self._decoder.close()

    def _guarded(self, call: Callable[[Any], Any], value: object) -> Any:  # noqa: ANN401 - untyped
        try:
            return call(value)
        except Exception as error:
            if isinstance(self._file, BlobFile) and self._file.failure is not None:
                raise fresh(self._file.failure) from error
            raise ProtocolViolation(
                f"a layer cannot be decompressed: {printable(error)}"
            ) from error


def need_gzip() -> None:
    """Raise Unsupported if gzip cannot be decompressed at random here."""
    if indexed_gzip is None:
        raise Unsupported(f"a layer compressed with gzip cannot be read: {NEEDED}")


def gzip_decoder(file: BlobFile, points: bytes) -> GuardedDecoder:
    """Decompress gzip, resuming at the points that `gzip_points` found."""
    need_gzip()
    decoder = indexed_gzip.IndexedGzipFile(
        fileobj=file, readbuf_size=_READ_BYTES, buffer_size=_READ_BYTES
    )
    decoder.import_index(fileobj=io.BytesIO(points))
    return GuardedDecoder(file, decoder)


def gzip_points(file: BlobFile, size: int) -> memoryview:
    """Return the points at which decompression of a blob, of `size` bytes then, can be resumed.

    A point takes 32 KiB, and there is one every 4 MiB, or more if they would take over 16 MiB.
    """
    need_gzip()
    spacing = max(_SPACING, min(size // _FEW_POINTS, _MAX_SPACING), size // _MAX_POINTS)
    decoder = indexed_gzip.IndexedGzipFile(
        fileobj=file, spacing=spacing, readbuf_size=_READ_BYTES, buffer_size=_READ_BYTES
    )
    guarded = GuardedDecoder(file, decoder)
    try:
        return guarded.export_index()
    finally:
        guarded.close()


def zstd_decoder(file: File) -> GuardedDecoder:
    """Decompress zstd from the file's position, frame after frame."""
    if zstandard is None:
        raise Unsupported(f"a layer compressed with zstd cannot be read: {NEEDED}")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(
        cast("io.BytesIO", file), read_size=_READ_BYTES, read_across_frames=True
    )
    return GuardedDecoder(file, reader)


class GzipMember:
    """Decompresses one gzip member from the file's position, with the standard library alone.

    It reads beyond the member: `unpacker.unused_data` is not the member's. `packed` are bytes of it
    that were read before, from in front of the file's position.
    """

    def __init__(self, file: File, packed: bytes = b"") -> None:
        self.file = file
        self.unpacker = zlib.decompressobj(_GZIP)
        self._packed = packed

    def copy(self, file: File) -> GzipMember:
        """Return one that goes on from here, reading from a file at the same position."""
        copy = GzipMember(file, self._packed)
        copy.unpacker = self.unpacker.copy()
        return copy

    def readinto(self, buffer: memoryview, /) -> int:
        while not self.unpacker.eof:
            packed = self._packed or self.file.read(_MEMBER_BYTES)
            try:
                data = self.unpacker.decompress(packed or b"", len(buffer))
            except zlib.error as error:
                raise ProtocolViolation(f"a layer cannot be decompressed: {error}") from None
            self._packed = self.unpacker.unconsumed_tail
            buffer[: len(data)] = data
            if data or not packed:
                return len(data)
        return 0


def gzip_content(
    file: File,
    note: Callable[[int, GzipMember], None] | None = None,
    position: int = 0,
    member: GzipMember | None = None,
) -> Iterator[memoryview]:
    """Yield all that a file's gzip members have, in pieces that are each valid until the next.

    What follows the last member is left out. Raises ProtocolViolation if the file ends within one.
    Behind each piece, `note` is told the position in what came out, and the member that goes on
    from there. It can be resumed so: with a copy of that member, and the file where it was.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    packed = b"" if member else file.read(_MEMBER_BYTES) or b""
    while member or packed.startswith(_GZIP_MAGIC):
        member = member or GzipMember(file, packed)
        while count := member.readinto(buffer):
            position += count
            if note is not None:
                note(position, member)
            yield buffer[:count]
        if not member.unpacker.eof:
            raise ProtocolViolation("a layer ends within a gzip member")
        packed = member.unpacker.unused_data
        if len(packed) < len(_GZIP_MAGIC):
            packed += file.read(_MEMBER_BYTES) or b""
        member = None


Source = BlobFile | GuardedDecoder | GzipMember
"""A decoder, or a file that needs none."""


class _WithEndFrame(BlobFile):
    """A blob with `_END_FRAME` after it."""

    def __init__(self, blob: BlobHandle) -> None:
        super().__init__(blob)
        self._rest = memoryview(_END_FRAME)

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - whatever has the buffer protocol
        count = super().readinto(buffer)
        if count:
            return count
        view = memoryview(buffer).cast("B")
        piece, self._rest = self._rest[: len(view)], self._rest[len(view) :]
        view[: len(piece)] = piece
        return len(piece)


def zstd_content(blob: BlobHandle, limit: int) -> Iterator[memoryview]:
    """Yield a whole blob decompressed, in pieces that are each valid until the next.

    At its end raises ProtocolViolation if a frame is incomplete, and ContentMismatch if the blob is
    not verified; also ContentMismatch as soon as more than `limit` bytes come out.
    """
    file = _WithEndFrame(blob)
    decoder, buffer = zstd_decoder(file), page_aligned(PIECE_BYTES + len(_END))
    kept = position = 0
    while count := decoder.readinto(buffer[kept:]):
        # The last bytes may be the end frame's, and are kept back.
        stop = kept + count
        ready = max(0, stop - len(_END))
        position += ready
        if position > limit:
            raise ContentMismatch(f"a blob decompresses to more than {limit} bytes")
        if ready:
            yield buffer[:ready]
        kept = stop - ready
        buffer[:kept] = bytes(buffer[ready:stop])
    if buffer[:kept] != _END:
        raise ProtocolViolation("a blob ends within a zstd frame")
    read_to_end(blob, file.tell())


def read_to_end(blob: BlobHandle, offset: int) -> None:
    """Read on from an offset: only at its end is a blob verified, and an empty one when opened."""
    view = memoryview(bytearray(PIECE_BYTES))
    while count := blob.read_into(view, offset):
        offset += count
    if blob.size and not blob.verified:
        raise ContentMismatch("a layer was read to its end without being verified")


def pieces_of(source: Source) -> Iterator[memoryview]:
    """Yield all that a source has, in pieces that are each valid until the next."""
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := source.readinto(buffer):
        yield buffer[:count]


def read_up_to(decoder: Source, count: int) -> bytes:
    """Return `count` decompressed bytes, fewer at the end of the stream."""
    data = bytearray(count)
    view = memoryview(data)
    while view and (got := decoder.readinto(view)):
        view = view[got:]
    return bytes(data[: count - len(view)])


def read_range(blob: BlobHandle, offset: int, count: int) -> bytes:
    """Return `count` bytes of a blob as they are, fewer at its end."""
    buffer = bytearray(count)
    found = blob.read_into(memoryview(buffer), offset)
    return bytes(memoryview(buffer)[:found])
