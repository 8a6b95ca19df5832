"""The content that the tests of the fsspec front end read: plain files, and a tar."""

from __future__ import annotations

from collections.abc import Callable

from epochfs.fsspec import RegistryFileSystem
from support.artifacts import artifact, packed, raw
from support.builders import random_bytes
from support.layers import LINK, File

TABLE = b"name,size\nsmall,1\n" * 400
LARGE = random_bytes(9 << 20, seed=14)
DATA = artifact(
    raw("train.csv", TABLE, {"mode": 0o640, "mtime": "2024-01-02T03:04:05Z"}),
    raw("deep/er/large.bin", LARGE),
    packed(
        File("notes/first.txt", b"first"),
        File("notes/second.txt", b"second"),
        File("notes/latest", type=LINK, link="second.txt"),
        File("notes/absolute", type=LINK, link="/notes/first.txt"),
        File("notes/circle", type=LINK, link="circle"),
    ),
)
VOLUME = "/team/data:v1"

Maker = Callable[..., RegistryFileSystem]
