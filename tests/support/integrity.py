"""Pushes content, reads a file of a mount, and finds the defects of a cache directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from epochfs.client import RegistryClient
from epochfs.oci.names import Digest, Tag
from support.builders import Content

STEP = 128 << 10


def push(url: str, name: str, tag: str, content: Content) -> None:
    """Store content in a registry."""
    with closing(RegistryClient(url)) as client:
        push_by(client, name, tag, content)


def push_by(client: RegistryClient, name: str, tag: str, content: Content) -> None:
    """Push content with a client, blobs before the manifests that name them."""
    for blob in content.every_blob():
        client.put_blob(name, Digest.of(blob), blob, len(blob))
    for manifest in content.every_manifest():
        reference = Tag(tag) if manifest is content else manifest.digest
        client.put_manifest(name, reference, manifest.raw, manifest.media_type)


@dataclass(frozen=True)
class Outcome:
    """What came of reading a file: the bytes, the errno or 0, and the slowest call in seconds."""

    data: bytes
    code: int
    slowest: float


def read(path: Path, size: int) -> Outcome:
    """Read a file of `size` bytes from start to end, or to the first error."""
    found = bytearray()
    slowest, code, fd = 0.0, 0, -1
    while len(found) < size or fd < 0:
        began = time.monotonic()
        try:
            if fd < 0:
                fd = os.open(path, os.O_RDONLY)
            else:
                piece = os.pread(fd, STEP, len(found))
                assert piece, f"the end of the file after {len(found)} of {size} bytes"
                found += piece
        except OSError as error:
            code = error.errno or -1
            break
        finally:
            slowest = max(slowest, time.monotonic() - began)
    if fd >= 0:
        os.close(fd)
    return Outcome(bytes(found), code, slowest)


def defects(cache: Path, blobs: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what is wrong in a cache directory, whose blobs may be these, by encoded digest.

    A complete blob must have its digest; the bytes a map names must be the blob's. A map vouches
    for nothing beside a file that is not there (its blob has just become complete) or not of the
    blob's size: whoever stages that blob begins with none.
    """
    for file in (cache / "v1" / "blobs").rglob("*"):
        if file.is_file() and Digest.of(file.read_bytes()).encoded != file.name:
            yield f"{file.name} has another digest"
    for table in (cache / "v1" / "partial").rglob("*.map"):
        file = table.with_suffix("")
        staged = file.read_bytes() if file.exists() else b""
        if len(staged) != len(blobs[table.stem]):
            continue
        for start, stop in json.loads(table.read_text())["ranges"]:
            if staged[start:stop] != blobs[table.stem][start:stop]:
                yield f"the map of {table.stem} claims {start}-{stop}, wrongly"
