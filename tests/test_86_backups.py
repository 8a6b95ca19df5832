"""A backup of a registry that denies what it gave before fails, and leaves the good one alone."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from backups import (
    Administrator,
    Tool,
    each_tool,
    fingerprint,
    push_world,
    readme_line,
    require,
)
from conftest import Skopeo, serve_docker_registry
from mounts import Mount, Mounts

USER, FIRST, SECOND = "backup", "first", "second"


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
        root = tmp_path / "root"
        root.mkdir()
        yield Guarded(htpasswd, mount, Administrator(root, mount.path))


@each_tool
@pytest.mark.expects_log("WARNING epochfs.operations: .* EACCES: GET .* 401")
def test_after_a_changed_password_a_backup_fails_and_the_last_good_one_is_whole(
    guarded: Guarded, tool: Tool
) -> None:
    require(tool)
    administrator = guarded.administrator
    administrator.run(tool.prepare)
    administrator.run(readme_line(tool.line))
    good = administrator.run(tool.name).strip()
    shown = fingerprint(guarded.mount.path)
    guarded.change_password()
    assert administrator.try_to(tool.again, GOOD=good).returncode != 0
    administrator.run(tool.unpack, GOOD=good)
    assert fingerprint(administrator.backup / "restored") == shown
