"""The decoders of layers' compressions, all of bounded memory.

gzip needs indexed_gzip, which can go on from any of the points in its index; rapidgzip can too, but
took 1.7 GiB of memory for 4 MiB of compressed zeros. zstd needs zstandard: indexed_zstd finds only
the beginnings of frames, and a layer is one frame, unless it is zstd:chunked (see `zstdchunked`).
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from typing import Any, Literal, TypeVar, cast

from epochfs.blobs.store import BlobHandle
from epochfs.errors import EpochfsError, ProtocolViolation, Unsupported, fresh, printable
from epochfs.layers.tar_stream import Source

try:
    import indexed_gzip
except ModuleNotFoundError:
    indexed_gzip = None
try:
    import zstandard
except ModuleNotFoundError:
    zstandard = None  # type: ignore[assignment]

Compression = Literal["none", "gzip", "zstd"]

NEEDED = "install indexed_gzip and zstandard beside epochfs (the extra 'rootfs')"
"""What to do where a decoder is missing. Not `pip install epochfs[...]`: it is on no index."""

GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"
_MAX_WINDOW = 128 << 20
_READ_BYTES = 256 << 10
_MEMBER_BYTES = 32 << 10
_GZIP = 16 + zlib.MAX_WBITS

_T = TypeVar("_T")


def missing() -> list[str]:
    """Return the packages that reading some layers would need, and that are not installed."""
    found = {"indexed_gzip": indexed_gzip, "zstandard": zstandard}
    return [name for name, module in found.items() if module is None]


class BlobFile(io.RawIOBase):
    """A blob as the file that a decoder reads.

    Not every decoder lets an exception pass through: `failure` keeps it.
    """

    def __init__(self, blob: BlobHandle) -> None:
        self._blob = blob
        self._position = 0
        self.failure: EpochfsError | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._blob.size}[whence]
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


def compression_of(blob: BlobHandle) -> Compression:
    """Tell by the first bytes, as containerd does: media types are often wrong."""
    magic = read_range(blob, 0, 4)
    if magic.startswith(GZIP_MAGIC):
        return "gzip"
    if magic == _ZSTD_MAGIC or magic[1:] == _ZSTD_SKIPPABLE:
        return "zstd"
    return "none"


class GuardedDecoder:
    """A decoder of another make, of which nothing but EpochfsErrors comes."""

    def __init__(self, file: File, decoder: Any) -> None:  # noqa: ANN401 - untyped
        self._file = file
        self._decoder = decoder

    def readinto(self, buffer: memoryview, /) -> int:
        return int(self._guarded(self._decoder.readinto, buffer))

    def seek(self, offset: int) -> None:
        self._guarded(self._decoder.seek, offset)

    def export_index(self) -> bytes:
        """Return the index of all that was read, of a gzip decoder."""
        exported = io.BytesIO()
        self._decoder.export_index(fileobj=exported)
        return exported.getvalue()

    def close(self) -> None:
        self._decoder.close()

    def _guarded(self, call: Callable[..., _T], *values: object) -> _T:
        try:
            return call(*values)
        except Exception as error:
            if isinstance(self._file, BlobFile) and self._file.failure is not None:
                raise fresh(self._file.failure) from error
            raise ProtocolViolation(
                f"a layer cannot be decompressed: {printable(error)}"
            ) from error


def gzip_decoder(file: BlobFile, spacing: int, index: bytes = b"") -> GuardedDecoder:
    """Decompress gzip. There is a point to go on from each `spacing` bytes, kept in `index`."""
    if indexed_gzip is None:
        raise Unsupported(f"a layer compressed with gzip cannot be read: {NEEDED}")
    decoder = indexed_gzip.IndexedGzipFile(
        fileobj=file, spacing=spacing, readbuf_size=_READ_BYTES, buffer_size=_READ_BYTES
    )
    if index:
        decoder.import_index(fileobj=io.BytesIO(index))
    return GuardedDecoder(file, decoder)


def zstd_decoder(file: File) -> GuardedDecoder:
    """Decompress zstd from where the file is, frame after frame."""
    if zstandard is None:
        raise Unsupported(f"a layer compressed with zstd cannot be read: {NEEDED}")
    decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
    reader = decompressor.stream_reader(
        cast("io.BytesIO", file), read_size=_READ_BYTES, read_across_frames=True
    )
    return GuardedDecoder(file, reader)


class GzipMember:
    """Decompresses one gzip member from where the file is; this needs no more than Python.

    What is read of the file goes beyond the member: the last `unused` bytes are not its own.
    """

    def __init__(self, file: File) -> None:
        self._file = file
        self._unpacker = zlib.decompressobj(_GZIP)
        self._packed = b""

    @property
    def is_whole(self) -> bool:
        """Whether the end of the member was reached."""
        return self._unpacker.eof

    @property
    def unused(self) -> int:
        return len(self._unpacker.unused_data)

    def readinto(self, buffer: memoryview, /) -> int:
        while not self._unpacker.eof:
            packed = self._packed or self._file.read(_MEMBER_BYTES)
            try:
                data = self._unpacker.decompress(packed or b"", len(buffer))
            except zlib.error as error:
                raise ProtocolViolation(f"a layer cannot be decompressed: {error}") from None
            self._packed = self._unpacker.unconsumed_tail
            buffer[: len(data)] = data
            if data or not packed:
                return len(data)
        return 0


def read_up_to(decoder: Source, count: int) -> bytes:
    """Return `count` decompressed bytes, fewer where the stream ends before."""
    data = bytearray(count)
    view = memoryview(data)
    while view and (got := decoder.readinto(view)):
        view = view[got:]
    return bytes(data[: count - len(view)])


def read_range(blob: BlobHandle, offset: int, count: int) -> bytes:
    """Return `count` bytes of a blob as they are, fewer at its end."""
    buffer = bytearray(count)
    return bytes(buffer[: blob.read_into(memoryview(buffer), offset)])
