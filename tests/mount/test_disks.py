"""A disk that Epoch's builders split, read from `files/` of a real mount with qemu's own tools."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry
from support.builders import random_bytes
from support.mounts import Mounts, status

from epochfs.client import RegistryClient
from epochfs.demo.samples import EMPTY, descriptor, encode
from epochfs.oci.manifests import OCI_MANIFEST, TITLE
from epochfs.oci.names import Digest

MIB = 1 << 20
PART = "application/vnd.cocoonstack.windows.disk.qcow2.part"
WINDOWS_IMAGE = "application/vnd.cocoonstack.windows-image.v1+json"


def run(*command: str | Path) -> str:
    result = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@dataclass(frozen=True)
class Disk:
    """The whole disk, and the raw content it holds, as files; the parts are in a registry."""

    whole: Path
    raw: Path


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, docker_registry: DockerRegistry) -> Disk:
    """A qcow2 of 40 MiB of data in a disk of 1 GiB, pushed in five parts as `disks/win:11`."""
    if shutil.which("qemu-img") is None:
        pytest.skip("qemu-img is not installed")
    directory = tmp_path_factory.mktemp("disk")
    raw, whole = directory / "disk.raw", directory / "disk.qcow2"
    with raw.open("wb") as file:
        for number in range(5):
            file.seek(number * 200 * MIB)
            file.write(random_bytes(8 * MIB, number))
        file.truncate(1 << 30)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, whole)
    data = whole.read_bytes()
    step = -(-len(data) // 5)
    parts = [data[start : start + step] for start in range(0, len(data), step)]
    layers = [
        descriptor(part, PART, annotations={TITLE: f"win11.qcow2.{number:02}.qcow2.part"})
        for number, part in enumerate(parts)
    ]
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": WINDOWS_IMAGE,
        "config": descriptor(b"{}", EMPTY),
        "layers": layers[::-1],
    }
    client = RegistryClient(docker_registry.url)
    for blob in (b"{}", *parts):
        client.put_blob("disks/win", Digest.of(blob), blob, len(blob))
    client.put_manifest("disks/win", "11", encode(manifest), OCI_MANIFEST)
    client.close()
    return Disk(whole, raw)


@pytest.fixture
def joined(disk: Disk, docker_registry: DockerRegistry, mounts: Mounts) -> Path:
    """The disk as a fresh mount shows it."""
    mount = mounts(f"{docker_registry.url}/disks")
    return mount.path / "win/tags/11/files/win11.qcow2"


def received(joined: Path) -> int:
    """Return how many bytes have come from the registry."""
    count = status(joined.parents[4])["bytes_received"]
    assert isinstance(count, int)
    return count


def test_info_moves_little_of_the_disk(joined: Path, disk: Disk) -> None:
    before = received(joined)
    found, expected = (
        json.loads(run("qemu-img", "info", "--output=json", path)) for path in (joined, disk.whole)
    )
    assert received(joined) - before < 4 * MIB
    for of_file in ("filename", "actual-size", "children"):
        found.pop(of_file, None)
        expected.pop(of_file, None)
    assert found == expected


def test_the_joined_parts_are_the_whole(joined: Path, disk: Disk, tmp_path: Path) -> None:
    assert "No errors were found" in run("qemu-img", "check", joined)
    run("qemu-img", "convert", "-O", "raw", joined, tmp_path / "raw")
    run("cmp", tmp_path / "raw", disk.raw)
    run("cmp", joined, disk.whole)
