"""Images whose layers are gzip: one of large files with a SOCI index, one of very many files."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from epochfs.demo.samples import LAYER
from epochfs.oci.manifests import OCI_MANIFEST
from epochfs.oci.names import Digest
from scripts.benchmark import soci
from scripts.benchmark.content import MIB, Blob, client_of, push_file, put_image

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

SMALL_FILE = "etc/small"
SMALL_BYTES = 10 << 10
DIRECTORY = "directory"
PLAIN = "plain"

_MEDIA_TYPE = f"{LAYER}+gzip"
_SOCI_INDEX = "com.amazon.soci.index-digest"
_FILE_BYTES = 48 * MIB
"""Random bytes in each large file, a third longer as the text that it has; gzip undoes that."""


class _Layer(io.RawIOBase):
    """The tar stream of a layer as it is written, compressed, to a file."""

    def __init__(self, compressed: gzip.GzipFile) -> None:
        self._compressed = compressed
        self._hasher = hashlib.sha256()

    @property
    def diff_id(self) -> str:
        return f"sha256:{self._hasher.hexdigest()}"

    def write(self, data: ReadableBuffer) -> int:
        self._hasher.update(data)
        return self._compressed.write(data)


def push_indexed_image(url: str, repository: str, file: Path, size: int) -> Blob:
    """Push an image of one gzip layer of about `size` bytes, whose manifest names a SOCI index.

    `PLAIN` is a tag of the same without an index. Near the start of the layer is `SMALL_FILE`.
    Return the layer; `file` holds it.
    """
    source = random.Random(file.name)
    files: list[soci.File] = []
    with _layer(file) as (layer, archive):
        small = source.randbytes(SMALL_BYTES)
        while file.stat().st_size < size - _FILE_BYTES or not files:
            data = small if not files else base64.b64encode(source.randbytes(_FILE_BYTES))
            member = tarfile.TarInfo(f"large/{len(files)}" if files else SMALL_FILE)
            member.size = len(data)
            files.append(soci.File(member.name, archive.offset + tarfile.BLOCKSIZE, len(data)))
            archive.addfile(member, io.BytesIO(data))
    client = client_of(url)
    blob = push_file(client, repository, file)
    table = soci.table(file, files)
    manifest = soci.index(blob, _MEDIA_TYPE, table)
    for data in (b"{}", table):
        client.put_blob(repository, Digest.of(data), data, len(data))
    digest = Digest.of(manifest)
    client.put_manifest(repository, str(digest), manifest, OCI_MANIFEST)
    named = {_SOCI_INDEX: str(digest)}
    put_image(client, blob, "latest", _MEDIA_TYPE, layer.diff_id, named)
    put_image(client, blob, PLAIN, _MEDIA_TYPE, layer.diff_id)
    client.close()
    return blob


def push_many_files(url: str, repository: str, file: Path, count: int) -> Blob:
    """Push an image of one gzip layer: `count` empty files in `DIRECTORY`. Return the layer."""
    with _layer(file) as (layer, archive):
        for number in range(count):
            archive.addfile(tarfile.TarInfo(f"{DIRECTORY}/file{number:06}"))
    client = client_of(url)
    blob = push_file(client, repository, file)
    put_image(client, blob, "latest", _MEDIA_TYPE, layer.diff_id)
    client.close()
    return blob


@contextmanager
def _layer(file: Path) -> Iterator[tuple[_Layer, tarfile.TarFile]]:
    """Write a gzip layer to a file: yield it, and the archive to put files into."""
    with gzip.open(file, "wb", compresslevel=1) as compressed:
        layer = _Layer(compressed)
        with tarfile.open(fileobj=layer, mode="w|", format=tarfile.USTAR_FORMAT) as archive:
            yield layer, archive
