"""The content that the tests of faults read: one image of small blobs, pushed under one name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from conftest import DockerRegistry

from epochfs.blobs.fetch_plan import CHUNK
from epochfs.oci.names import Digest
from support.builders import image, random_bytes
from support.faultproxy import FaultProxy
from support.integrity import push
from support.mounts import Mount

OK, EIO, EACCES, ETIMEDOUT = 0, errno.EIO, errno.EACCES, errno.ETIMEDOUT

KIB = 1 << 10
TIMEOUT = 2.5
SLACK = 1.0
"""Seconds that may pass over the time limit where the processors are busy."""

NAME = "faults/app"
LARGE = random_bytes(6 * CHUNK + 17, 40)
SMALL = random_bytes(64 * KIB, 41)
EMPTY = b""
APP = image(LARGE, SMALL, EMPTY)
BLOBS = {Digest.of(blob).encoded: blob for blob in APP.blobs}


def furnished(docker_registry: DockerRegistry) -> DockerRegistry:
    """A fixture: a registry that has the image."""
    push(docker_registry.url, NAME, "latest", APP)
    return docker_registry


def proxying(registry: DockerRegistry) -> Iterator[FaultProxy]:
    """A fixture: a proxy in front of the registry, which breaks nothing yet."""
    with FaultProxy(registry.host) as proxy:
        yield proxy


def blob_at(mount: Mount, blob: bytes) -> Path:
    return mount.path / NAME / "blobs" / str(Digest.of(blob))


def read_some(path: Path) -> None:
    """Read here and there in LARGE, so that two of its seven chunks are fetched."""
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        for offset in (2 * CHUNK, 4 * CHUNK):
            assert os.pread(file.fileno(), 9, offset) == LARGE[offset : offset + 9]


def forget_pages(path: Path) -> None:
    """Have the kernel drop what it keeps of a file, so that it asks the mount again."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
