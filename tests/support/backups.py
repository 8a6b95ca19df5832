"""Backups of a mounted docker-registry by the tools that people use, as `epochfs help` has them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo

from epochfs.client import RegistryClient
from epochfs.errors import Unsupported
from epochfs.help import Code, page, parse
from epochfs.oci.manifests import Index
from epochfs.oci.names import Digest, Tag, referrers_tag
from support import CHECKOUT
from support.builders import (
    Content,
    docker_image,
    docker_list,
    image,
    index,
    random_bytes,
    referrers_index,
    signature,
)

RECIPES = [block.lines for block in parse(page("backups")).blocks if isinstance(block, Code)]
"""The recipes of the page about backups, each as its lines."""

HOST = "registry.example.com"
"""The registry of the recipes."""

_PLACES = re.compile(r"/mnt2?\b|/backup\b|registry\.example\.com|team/app\b")

PULLED = image(random_bytes(300_000, 1), b"shared")
PUSHED = docker_image(random_bytes(200_000, 2), b"shared")
LIST = docker_list(docker_image(b"for amd64"), docker_image(b"for arm64", b"shared"))
SIGNATURE = signature(PUSHED)

WORLD: Mapping[str, Mapping[str, Content]] = {
    "team/app": {
        "latest": PULLED,
        "pushed": PUSHED,
        "1.0": PUSHED,
        "list": LIST,
        "index": index(image(b"one"), image(b"other", b"shared")),
    },
    "team/app/below": {"latest": image(b"below")},
}
"""What is backed up: Docker's images and OCI's, in a repository and in one below it."""


def push_world(registry: DockerRegistry, skopeo: Skopeo, credentials: str = "") -> None:
    """Push the world, with a signature that has no tag of its own: docker-registry 2.8 does not
    tell what refers to a manifest, so that clients keep an index of it under a tag.
    """
    for name, tags in WORLD.items():
        for tag, content in tags.items():
            skopeo.push(content, registry.host, name, tag, credentials)
    tag = str(referrers_tag(PUSHED.digest))
    skopeo.push(referrers_index(SIGNATURE), registry.host, "team/app", tag, credentials)


def digests(url: str) -> dict[str, bytes | tuple[Digest, ...]]:
    """Return all that a registry has, through tags: the bytes of each manifest and what refers to
    it, the digest of each tag, that each blob is there.
    """
    client = RegistryClient(url)
    found: dict[str, bytes | tuple[Digest, ...]] = {}
    for name in client.catalog():
        for tag in client.list_tags(name):
            digest = client.resolve(name, Tag(tag)).digest
            found[f"{name}:{tag}"] = (digest,)
            _follow(client, name, digest, found)
    return found


def _follow(
    client: RegistryClient,
    name: str,
    digest: Digest,
    found: dict[str, bytes | tuple[Digest, ...]],
) -> None:
    document = client.get_manifest(name, digest)
    found[f"{name}@{digest}"] = document.raw
    try:
        referrers = tuple(sorted(one.digest for one in client.referrers(name, digest)))
    except Unsupported:
        referrers = ()
    found[f"{name}@{digest} referrers"] = referrers
    view = document.view
    children = [one.digest for one in view.manifests] if isinstance(view, Index) else []
    for child in (*children, *referrers):
        if f"{name}@{child}" not in found:
            _follow(client, name, child, found)
    if not isinstance(view, Index):
        for layer in view.layers:
            assert client.blob_size(name, layer.digest) == layer.size


def fingerprint(directory: Path) -> dict[str, str]:
    """Return what is in a directory, byte for byte, by relative path."""
    found = {}
    for path in sorted(directory.rglob("*")):
        name = str(path.relative_to(directory))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[name] = "directory"
    return found


@dataclass
class Administrator:
    """Runs recipes, in a directory that stands for `/`."""

    directory: Path
    mount: Path
    variables: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backup.mkdir(parents=True)
        containers = self.directory / "home/.config/containers"
        containers.mkdir(parents=True)
        # What skopeo asks of a user: whom to trust, and that the registry is a plain http one.
        policy = '{"default": [{"type": "insecureAcceptAnything"}]}'
        (containers / "policy.json").write_text(policy)
        programs = self.directory / "bin"
        programs.mkdir()
        (programs / "epochfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m epochfs "$@"\n')
        (programs / "epochfs").chmod(0o755)
        self.variables |= {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": str(CHECKOUT),
            "HOME": str(self.directory / "home"),
            "RESTIC_PASSWORD": "secret",
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
        }

    @property
    def backup(self) -> Path:
        """What the recipes call `/backup`."""
        return self.directory / "backup"

    def trust(self, host: str) -> None:
        """Let skopeo speak to a registry without TLS."""
        file = self.directory / "home/.config/containers/registries.conf"
        file.write_text(f'[[registry]]\nlocation = "{host}"\ninsecure = true\n')

    def try_to(
        self, script: str, host: str = "", repository: str = "team/app", **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a recipe as it stands, but for the names of places in it."""
        places = {
            "/mnt2": f"{self.directory}/mnt2",
            "/mnt": str(self.mount),
            "/backup": str(self.backup),
            HOST: host,
            "team/app": repository,
        }
        return subprocess.run(
            ["bash", "-euo", "pipefail", "-c", _PLACES.sub(lambda found: places[found[0]], script)],
            cwd=self.directory,
            env={**os.environ, **self.variables, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def run(
        self, script: str, host: str = "", repository: str = "team/app", **variables: str
    ) -> str:
        """Run a recipe that has to end well; return what it wrote."""
        done = self.try_to(script, host, repository, **variables)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr


@dataclass(frozen=True)
class Tool:
    """A tool that makes backups: the line of the page for it, and what people know of it.

    `again` runs it once more and tells what it saved. `unpack` puts the backup called `$GOOD`, as
    `name` told when it was the only one, into `/backup/restored`.
    """

    line: str
    again: str
    name: str
    unpack: str
    prepare: str = ":"


TOOLS = {
    "rsync": Tool(
        "rsync -a --delete",
        "rsync -a --delete -i /mnt/ /backup/registry/",
        "echo registry",
        "cp -a /backup/$GOOD /backup/restored",
    ),
    "tar": Tool(
        "tar -cg",
        "tar -cg /backup/registry.snar -f /backup/registry.1.tar -C /mnt .\n"
        "tar -tf /backup/registry.1.tar | grep -v '/$' || true",
        "echo registry.0.tar",
        "mkdir /backup/restored && tar -xf /backup/$GOOD -C /backup/restored",
    ),
    "restic": Tool(
        "restic -r /backup/restic backup",
        "restic -r /backup/restic backup /mnt >/dev/null\n"
        "restic -r /backup/restic diff --metadata $GOOD"
        " $(restic -r /backup/restic list snapshots | grep -v $GOOD) | grep ' /mnt' || true",
        "restic -r /backup/restic list snapshots",
        "restic -r /backup/restic restore $GOOD --target /backup/out"
        " && mv /backup/out/mnt /backup/restored",
        "restic -r /backup/restic init",
    ),
    "rclone": Tool(
        "rclone sync",
        "rclone sync --links --create-empty-src-dirs /mnt /backup/registry"
        " -v --log-file /backup/rclone.log\n"
        "grep -E ': (Copied|Deleted)' /backup/rclone.log || true",
        "echo registry",
        "cp -a /backup/$GOOD /backup/restored",
    ),
    "borg": Tool(
        "borg create",
        "borg create --list --filter AMCE /backup/borg::again /mnt",
        "borg list --short /backup/borg",
        "mkdir /backup/out && cd /backup/out && borg extract /backup/borg::$GOOD"
        " && mv /backup/out/mnt /backup/restored",
        "borg init -e none /backup/borg",
    ),
}

each_tool = pytest.mark.parametrize("tool", TOOLS.values(), ids=TOOLS)


def require(tool: Tool) -> None:
    """Skip the test where a tool is not installed."""
    program = tool.line.split()[0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def recipe_line(start: str) -> str:
    """Return the one line of the recipes for backups that starts so."""
    [line] = [line for block in RECIPES for line in block if line.startswith(start)]
    return line


def recipe(start: str) -> str:
    """Return the one recipe for backups that has a line which starts so."""
    [block] = [block for block in RECIPES if any(line.startswith(start) for line in block)]
    return "\n".join(block)
