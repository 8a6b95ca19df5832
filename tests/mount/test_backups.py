"""Backups of a registry that changes: what changed is in the next one, and what is denied makes it
fail and leaves the last good one alone.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import Skopeo, serve_docker_registry
from support.backups import (
    TOOLS,
    Administrator,
    Tool,
    each_tool,
    fingerprint,
    push_world,
    recipe_line,
    require,
)
from support.builders import Content, image, load
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry

from epochfs.client import RegistryClient
from epochfs.oci.names import Tag

USER, FIRST, SECOND = "backup", "first", "second"

ONE, OTHER = image(b"one"), image(b"two", b"shared")


@dataclass(frozen=True)
class Guarded:
    """A docker-registry that wants a password, and where it is mounted with the first of two."""

    htpasswd: Path
    mount: Mount
    administrator: Administrator

    def change_password(self) -> None:
        """Let nobody in by the first password from now on, and have the mount ask again."""
        write_htpasswd(self.htpasswd, SECOND)
        time.sleep(2.5)


def write_htpasswd(path: Path, password: str) -> None:
    """Make the file of whom a registry lets in, whole at any moment."""
    command = ["htpasswd", "-Bbn", USER, password]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    fresh = path.with_suffix(".new")
    fresh.write_text(said)
    fresh.rename(path)


@pytest.fixture
def guarded(tmp_path: Path, skopeo: Skopeo, mounts: Mounts) -> Iterator[Guarded]:
    if shutil.which("htpasswd") is None:
        pytest.skip("htpasswd (apache2-utils) is not installed")
    storage, htpasswd, secret = tmp_path / "registry", tmp_path / "htpasswd", tmp_path / "secret"
    storage.mkdir()
    write_htpasswd(htpasswd, FIRST)
    secret.write_text(FIRST)
    secret.chmod(0o600)
    with serve_docker_registry(storage, htpasswd=htpasswd) as registry:
        push_world(registry, skopeo, f"{USER}:{FIRST}")
        options = ["--username", USER, "--password-file", str(secret), "--metadata-ttl", "1"]
        mount = mounts(registry.url, *options)
        yield Guarded(htpasswd, mount, Administrator(tmp_path / "root", mount.path))


@each_tool
@pytest.mark.expects_log("WARNING epochfs.fuse.operations: .* EACCES: GET .* 401")
def test_after_a_changed_password_a_backup_fails_and_the_last_good_one_is_whole(
    guarded: Guarded, tool: Tool
) -> None:
    require(tool)
    administrator = guarded.administrator
    administrator.run(tool.prepare)
    administrator.run(recipe_line(tool.line))
    good = administrator.run(tool.name).strip()
    shown = fingerprint(guarded.mount.path)
    guarded.change_password()
    assert administrator.try_to(tool.again, GOOD=good).returncode != 0
    administrator.run(tool.unpack, GOOD=good)
    assert fingerprint(administrator.backup / "restored") == shown


CHANGES: Mapping[str, Mapping[str, Content | None]] = {
    "two tags swap": {"one": OTHER, "other": ONE},
    "a tag is deleted": {"one": None},
    "the tag comes back": {"one": OTHER},
    "a tag is made": {"new": image(b"new")},
    "all are deleted": {"one": None, "other": None, "new": None},
}


def test_every_change_of_the_tags_is_in_the_next_backup(
    embedded: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    load(embedded, "team/app", "one", ONE)
    load(embedded, "team/app", "other", OTHER)
    client = RegistryClient(embedded.url)
    mount = mounts(embedded.url, "--metadata-ttl", "0.2")
    administrator = Administrator(tmp_path / "root", mount.path)
    tar, rsync = (recipe_line(TOOLS[name].line) for name in ("tar", "rsync"))
    administrator.run(f"{tar}\n{rsync}\nmkdir /backup/chain")
    unpack = "tar -xg /dev/null -f /backup/registry.0.tar -C /backup/chain"
    administrator.run(unpack)
    for level, (what, change) in enumerate(CHANGES.items(), 1):
        for tag, content in change.items():
            if content is None:
                client.delete_manifest("team/app", Tag(tag))
            else:
                load(embedded, "team/app", tag, content)
        time.sleep(0.5)
        administrator.run(
            "\n".join([rsync, *(one.replace(".0.", f".{level}.") for one in (tar, unpack))])
        )
        shown = fingerprint(mount.path)
        assert fingerprint(administrator.backup / "registry") == shown, what
        assert fingerprint(administrator.backup / "chain") == shown, what
