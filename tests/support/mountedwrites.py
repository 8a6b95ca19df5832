"""Writes through a mount, and what the registry then has."""

from __future__ import annotations

import subprocess
import urllib.request
from pathlib import Path

from epochfs.oci.names import Digest
from support.builders import load, random_bytes
from support.mounts import Mount, Mounts, status
from support.registries import EmbeddedRegistry
from support.writing import OLD

LARGE = random_bytes(5_000_000, 8)


def mounted(embedded: EmbeddedRegistry, mounts: Mounts) -> Mount:
    """A fixture: a mount, to be written to, of a registry that has `team/app:old`."""
    load(embedded, "team/app", "old", OLD)
    return mounts(embedded.url, "-o", "rw")


def mounted_app(mount: Mount) -> Path:
    """A fixture: `team/app` in the mount."""
    return mount.path / "team/app"


def reasons(mount: Mount) -> list[str]:
    """Why what was written is not in the registry."""
    found: list[str] = status(mount.path)["writing"]["reasons"]
    return found


def blob(data: bytes) -> str:
    return f"blobs/{Digest.of(data)}"


def run(*command: object) -> None:
    """Run a program, which must succeed."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def stored(registry: EmbeddedRegistry, path: str) -> bytes:
    """Return what the registry has at a path below `team/app`."""
    with urllib.request.urlopen(f"{registry.url}/v2/team/app/{path}", timeout=20) as answer:
        content: bytes = answer.read()
    return content
