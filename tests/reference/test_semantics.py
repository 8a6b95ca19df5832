"""Promises of the semantics page, executed with real tools, a real registry and a real mount."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support.builders import image, index, load, random_bytes
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry
from support.scripted import until

APP = image(random_bytes(300_000, 1), b"shared")
PLATFORMS = index(image(b"shared"), image(random_bytes(5000, 2), architecture="arm64"))


@dataclass(frozen=True)
class Mounted:
    """A docker-registry with two images that skopeo pushed, and where it is mounted."""

    registry: DockerRegistry
    mount: Mount


@pytest.fixture
def mounted(tmp_path: Path, skopeo: Skopeo, mounts: Mounts) -> Iterator[Mounted]:
    directory = tmp_path / "registry"
    directory.mkdir()
    with serve_docker_registry(directory) as registry:
        skopeo.push(APP, registry.host, "library/app")
        skopeo.push(APP, registry.host, "library/app", "1.0")
        skopeo.push(PLATFORMS, registry.host, "team/a/b", "multi")
        yield Mounted(registry, mounts(registry.url))


def run(*command: str | Path, directory: Path | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def walk(mount: Mount) -> list[str]:
    """Return all that find and sha256sum can tell of a mount."""
    shown = run("find", ".", "-printf", "%p %i %m %s %T@ %l %u %n\n", directory=mount.path)
    sums = run("find", ".", "-type", "f", "-exec", "sha256sum", "{}", "+", directory=mount.path)
    return sorted([*shown.splitlines(), *sums.splitlines()])


def test_every_blob_and_manifest_has_the_digest_it_is_named_by(mounted: Mounted) -> None:
    blobs = list(mounted.mount.path.glob("**/blobs/*:*"))
    manifests = list(mounted.mount.path.glob("**/manifests/*/manifest.json"))
    assert (len(blobs), len(manifests)) == (3 + 4, 1 + 3)
    for blob in blobs:
        assert f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}" == blob.name
    for manifest in manifests:
        digest = hashlib.sha256(manifest.read_bytes()).hexdigest()
        assert f"sha256:{digest}" == manifest.parent.name


def test_a_remount_shows_the_same_in_every_respect(mounted: Mounted, mounts: Mounts) -> None:
    before = walk(mounted.mount)
    mounted.mount.unmount()
    assert walk(mounts(mounted.registry.url, path=mounted.mount.path)) == before


def test_tar_compares_clean(mounted: Mounted, tmp_path: Path) -> None:
    run("tar", "cf", tmp_path / "all.tar", "-C", mounted.mount.path, ".")
    assert run("tar", "df", tmp_path / "all.tar", "-C", mounted.mount.path) == ""


@pytest.mark.parametrize("moved", [False, True], ids=["unchanged", "moved tag"])
def test_a_second_rsync_transfers_what_changed(
    mounted: Mounted, mounts: Mounts, skopeo: Skopeo, tmp_path: Path, moved: bool
) -> None:
    source, copy = f"{mounted.mount.path}/", tmp_path / "copy"
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    run("rsync", "-a", source, copy)
    if moved:
        skopeo.push(image(b"shared"), mounted.registry.host, "library/app")
        mounted.mount.unmount()
        mounts(mounted.registry.url, path=mounted.mount.path)
    changes = run("rsync", "-a", "--itemize-changes", source, copy).splitlines()
    links = [line.split()[1] for line in changes if line.split()[0][1] == "L"]
    tags = [link for link in links if "/tags/" in link]
    assert tags == (["library/app/tags/latest"] if moved else [])
    assert moved or not changes


def test_a_moved_tag_is_seen_within_the_ttl(
    mounted: Mounted, mounts: Mounts, skopeo: Skopeo
) -> None:
    mount = mounts(mounted.registry.url, "--metadata-ttl", "1")
    link = mount.path / "library/app/tags/latest"
    before, time_before = link.readlink(), link.lstat().st_mtime_ns
    skopeo.push(image(b"other"), mounted.registry.host, "library/app")
    # Where it points is asked for, its time the kernel may keep a moment longer: both meet the TTL.
    until(lambda: link.readlink() != before and link.lstat().st_mtime_ns > time_before, 1.5)


def test_a_walk_again_within_the_ttl_asks_nothing(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    for number in range(20):
        load(embedded, f"many/r{number}", "latest", APP)
    mount = mounts(embedded.url)
    run("find", mount.path, "-ls")
    embedded.forget_requests()
    run("find", mount.path, "-ls")
    assert embedded.requests == []


@pytest.mark.expects_log("WARNING epochfs.metadata.health: registry .* is down")
def test_what_is_cached_is_served_while_the_registry_is_down_and_it_heals(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(embedded, "library/app", "latest", APP)
    mount = mounts(embedded.url, "--metadata-ttl", "0.3", "--timeout", "5")
    blobs = mount.path / "library/app/blobs"
    first, second = sorted(blobs.iterdir())[:2]
    content = first.read_bytes()
    embedded.stop()
    time.sleep(0.4)
    assert first.read_bytes() == content
    assert (mount.path / "library/app/tags/latest/manifest.json").read_bytes() == APP.raw
    embedded.start()
    assert f"sha256:{hashlib.sha256(second.read_bytes()).hexdigest()}" == second.name


def test_a_plain_listing_resolves_no_tag_and_the_long_one_resolves_all(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    for number in range(50):
        load(embedded, "library/app", f"v{number}", APP)
    mount = mounts(embedded.url)
    embedded.forget_requests()
    assert len(os.listdir(mount.path / "library/app/tags")) == 50  # noqa: PTH208 - readdir alone
    assert embedded.count("HEAD") == 0
    run("ls", "-l", mount.path / "library/app/tags")
    assert embedded.count("HEAD", "/manifests/") == 50
