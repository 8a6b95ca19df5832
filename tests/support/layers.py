"""Layers for tests: tar streams, and the two formats of a layer with a table of contents.

eStargz and zstd:chunked are written here as their specifications say, file by file.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import zstandard

from epochfs.demo.samples import CONFIG, LAYER, descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST
from support.builders import Content

DIRECTORY, LINK, HARD_LINK = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
FIFO, DEVICE = tarfile.FIFOTYPE, tarfile.CHRTYPE
MTIME = 1_700_000_000

_TYPES = {
    tarfile.REGTYPE: "reg",
    DIRECTORY: "dir",
    LINK: "symlink",
    HARD_LINK: "hardlink",
    FIFO: "fifo",
    DEVICE: "char",
}


@dataclass(frozen=True)
class File:
    """One entry of a layer; a regular file unless `type` says otherwise."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    link: str = ""
    mode: int = 0o644
    owner: tuple[int, int] = (0, 0)
    device: tuple[int, int] = (0, 0)
    mtime: str = str(MTIME)
    xattrs: Mapping[str, bytes] = field(default_factory=dict)

    def info(self) -> tarfile.TarInfo:
        info = tarfile.TarInfo(self.name)
        info.type, info.linkname, info.mode, info.size = (
            *(self.type, self.link, self.mode),
            len(self.data),
        )
        info.uid, info.gid = self.owner
        info.devmajor, info.devminor = self.device
        info.pax_headers = {"mtime": self.mtime} | {
            f"SCHILY.xattr.{name}": value.decode("utf-8", "surrogateescape")
            for name, value in self.xattrs.items()
        }
        return info

    def header(self) -> bytes:
        return self.info().tobuf(tarfile.PAX_FORMAT)

    def row(self) -> dict[str, Any]:
        """Return the entry in a table of contents, without what is said of its data."""
        return {
            "type": _TYPES[self.type],
            "name": self.name,
            "linkName": self.link,
            "mode": self.mode,
            "uid": self.owner[0],
            "gid": self.owner[1],
            "devMajor": self.device[0],
            "devMinor": self.device[1],
            "size": len(self.data),
            "modtime": "2023-11-14T22:13:20Z",
            "xattrs": {n: base64.b64encode(v).decode() for n, v in self.xattrs.items()},
        }


@dataclass(frozen=True)
class Layer:
    """A layer's blob, the annotations of its descriptor, and the digest of its tar stream."""

    blob: bytes
    annotations: Mapping[str, str] = field(default_factory=dict)
    media_type: str = LAYER
    diff_id: str = ""
    ztoc: bytes = b""
    """The table that the image's SOCI index has of it, if any."""


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def tar(*files: File) -> bytes:
    """Return the tar stream of some entries."""
    pieces = [file.header() + _padded(file.data) for file in files]
    return b"".join(pieces) + bytes(1024)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def gzipped(*files: File) -> Layer:
    stream = tar(*files)
    return Layer(gzip.compress(stream), media_type=f"{LAYER}+gzip", diff_id=sha256(stream))


def zstd(*files: File) -> Layer:
    return Layer(zstandard.ZstdCompressor().compress(tar(*files)), media_type=f"{LAYER}+zstd")


def estargz(*files: File, chunk_size: int = 4 << 20) -> Layer:
    """Return an eStargz layer: a gzip member for each header and chunk, the table, the footer."""
    blob, rows = bytearray(), []
    for file in files:
        blob += gzip.compress(file.header())
        rows += [{**file.row(), "digest": sha256(file.data)}]
        for start in range(0, len(file.data), chunk_size):
            chunk = file.data[start : start + chunk_size]
            about = {"offset": len(blob), "chunkOffset": start, "chunkSize": len(chunk)}
            about["chunkDigest"] = sha256(chunk)
            if start:
                rows.append({"name": file.name, "type": "chunk"})
            rows[-1] |= about
            padding = bytes(-len(file.data) % 512) if start + chunk_size >= len(file.data) else b""
            blob += gzip.compress(chunk + padding)
    table = json.dumps({"version": 1, "entries": rows}).encode()
    offset = len(blob)
    blob += gzip.compress(tar(File("stargz.index.json", table)))
    footer = gzip.compress(b"")[:3] + b"\4" + bytes(5) + b"\xff" + b"\x1a\0SG\x16\0"
    blob += footer + b"%016xSTARGZ" % offset + b"\1\0\0\xff\xff" + bytes(8)
    annotations = {"containerd.io/snapshot/stargz/toc.digest": sha256(table)}
    return Layer(bytes(blob), annotations, f"{LAYER}+gzip")


def zstd_chunked(*files: File, chunk_size: int = 1 << 20) -> Layer:
    """Return a zstd:chunked layer: a frame for each header and chunk, the table in a skippable."""
    pack = zstandard.ZstdCompressor().compress
    blob, rows = bytearray(), []
    for file in files:
        blob += pack(file.header())
        starts = range(0, len(file.data), chunk_size)
        rows.append({**file.row(), "digest": sha256(file.data), "offset": len(blob)})
        for start in starts:
            if start:
                rows.append({"name": file.name, "type": "chunk"})
            chunk = file.data[start : start + chunk_size]
            if len(starts) > 1:
                about = {"offset": len(blob), "chunkOffset": start, "chunkSize": len(chunk)}
                rows[-1] |= {**about, "chunkDigest": sha256(chunk)}
            blob += pack(chunk)
        rows[-len(starts) or -1]["endOffset"] = len(blob)
        blob += pack(bytes(-len(file.data) % 512))
    blob += pack(bytes(1024))
    table = json.dumps({"version": 1, "entries": rows}).encode()
    packed = pack(table)
    blob += b"\x50\x2a\x4d\x18" + len(packed).to_bytes(4, "little")
    prefix = "io.github.containers.zstd-chunked.manifest-"
    annotations = {
        f"{prefix}checksum": sha256(packed),
        f"{prefix}position": f"{len(blob)}:{len(packed)}:{len(table)}:1",
    }
    return Layer(bytes(blob + packed), annotations, f"{LAYER}+zstd")


def soci_index(*layers: Layer) -> Content:
    """Return a SOCI index: a manifest whose layers are the tables of an image's layers."""
    tables = [
        descriptor(
            one.ztoc,
            "application/octet-stream",
            annotations={
                "com.amazon.soci.image-layer-digest": sha256(one.blob),
                "com.amazon.soci.image-layer-mediaType": one.media_type,
            },
        )
        for one in layers
        if one.ztoc
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(b"{}", "application/vnd.amazon.soci.index.v2+json"),
        "layers": tables,
    }
    blobs = (b"{}", *(one.ztoc for one in layers if one.ztoc))
    return Content(encode(manifest), OCI_MANIFEST, blobs)


def container(*layers: Layer) -> Content:
    """Return an image of these layers, from the bottom up, with a SOCI index of their tables."""
    rootfs = {"type": "layers", "diff_ids": [one.diff_id or sha256(one.blob) for one in layers]}
    config = encode({"architecture": "amd64", "os": "linux", "rootfs": rootfs})
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(config, CONFIG),
        "layers": [
            descriptor(one.blob, one.media_type, annotations=dict(one.annotations))
            for one in layers
        ],
    }
    blobs = (config, *(one.blob for one in layers))
    if not any(one.ztoc for one in layers):
        return Content(encode(manifest), OCI_MANIFEST, blobs)
    index = soci_index(*layers)
    manifest["annotations"] = {"com.amazon.soci.index-digest": str(index.digest)}
    return Content(encode(manifest), OCI_MANIFEST, blobs, (index,))
