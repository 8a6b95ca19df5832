"""Writes through a mount, and what the registry then has."""

from __future__ import annotations

import subprocess
import urllib.request

from epochfs.oci.names import Digest
from support.registries import EmbeddedRegistry


def blob(data: bytes) -> str:
    return f"blobs/{Digest.of(data)}"


def link(content_digest: Digest) -> str:
    return f"../manifests/{content_digest}"


def run(*command: object) -> None:
    """Run a program, which must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def stored(registry: EmbeddedRegistry, path: str) -> bytes:
    """Return what the registry has at a path below `team/app`."""
    with urllib.request.urlopen(f"{registry.url}/v2/team/app/{path}", timeout=20) as answer:
        content: bytes = answer.read()
    return content
