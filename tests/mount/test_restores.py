"""The recipes for backups and restores (`epochfs help backups`), run as they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support.backups import (
    PULLED,
    RECIPES,
    TOOLS,
    WORLD,
    Administrator,
    Tool,
    digests,
    each_tool,
    push_world,
    recipe,
    recipe_line,
    require,
)
from support.builders import image, index, load, signature
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry
from support.views import MountView, walk

from epochfs.client import RegistryClient

ALL = recipe("epochfs mount -o rw")
"""How rsync restores what it saved."""

OTHERS = recipe("restic -r /backup/restic restore")
"""How other tools do, which `test_restores_by_mount` runs."""

REPOSITORY = recipe("for tag in")
LAYOUT = recipe("epochfs mount oci:")
DIR = recipe("rsync -aL /mnt/team/app/tags/latest/dir/")
"""How a whole repository is restored, and one image in either way."""


@dataclass(frozen=True)
class Served:
    """A docker-registry with the world in it, and where it is mounted."""

    registry: DockerRegistry
    mount: Mount
    administrator: Administrator


@pytest.fixture
def served(tmp_path: Path, skopeo: Skopeo, mounts: Mounts) -> Iterator[Served]:
    with serve_docker_registry(_directory(tmp_path / "before")) as registry:
        push_world(registry, skopeo)
        mount = mounts(registry.url)
        administrator = Administrator(tmp_path / "root", mount.path)
        administrator.trust(registry.host)
        yield Served(registry, mount, administrator)


def _directory(path: Path) -> Path:
    path.mkdir()
    return path


@each_tool
def test_a_second_backup_transfers_nothing_and_the_first_brings_back_every_digest(
    served: Served, tmp_path: Path, mounts: Mounts, tool: Tool
) -> None:
    require(tool)
    run, port = served.administrator.run, int(served.registry.host.partition(":")[2])
    # Also walked before the first backup: tar takes what is first seen while it runs for newer.
    seen, known = walk(MountView(served.mount.path)), digests(served.registry.url)
    run(tool.prepare)
    run(recipe_line(tool.line))
    good = run(tool.name).strip()
    saved = run(tool.again, GOOD=good).splitlines()
    # borg always looks again into the newest file of the backup before.
    assert [line for line in saved if not (tool is TOOLS["borg"] and _is_index(line))] == []
    served.mount.unmount()
    served.registry.process.terminate()
    served.registry.process.wait(10)
    run(tool.unpack, GOOD=good)
    restore = REPOSITORY.replace("/backup/registry", "/backup/restored")
    with serve_docker_registry(_directory(tmp_path / "after"), port) as registry:
        for repository in WORLD:
            run(restore, registry.host, repository)
        assert digests(registry.url) == known
        mount = mounts(registry.url)
        assert walk(MountView(mount.path)) == seen
        mount.unmount()


def _is_index(line: str) -> bool:
    return line.endswith("/layout/index.json")


def test_a_layout_restores_an_image_and_can_be_looked_at_without_a_registry(
    served: Served, docker_registry: DockerRegistry
) -> None:
    administrator = served.administrator
    administrator.trust(docker_registry.host)
    mounted = administrator.directory / "mnt2"
    mounted.mkdir()
    try:
        administrator.run(LAYOUT, docker_registry.host, "team/app")
        links = {link.name: link.readlink().name for link in mounted.glob("backup/tags/*")}
    finally:
        administrator.run("epochfs umount /mnt2")
    restored = RegistryClient(docker_registry.url).resolve("team/app", "latest").digest
    assert restored == PULLED.digest
    tags = {tag: str(content.digest) for tag, content in WORLD["team/app"].items()}
    assert links.items() >= tags.items()


def test_a_dir_restores_an_image_of_any_kind(
    served: Served, docker_registry: DockerRegistry
) -> None:
    administrator = served.administrator
    administrator.trust(docker_registry.host)
    for tag, content in WORLD["team/app"].items():
        administrator.run(f"rm -rf image\n{DIR.replace('latest', tag)}", docker_registry.host)
        restored = RegistryClient(docker_registry.url).resolve("team/app", tag).digest
        assert restored == content.digest


def test_all_is_restored_by_the_tool_that_made_the_backup(served: Served, tmp_path: Path) -> None:
    administrator = served.administrator
    administrator.run(recipe_line("rsync -a --delete"))
    served.mount.unmount()
    with serve_docker_registry(_directory(tmp_path / "wiped")) as wiped:
        administrator.run(ALL.replace("https:", "http:"), wiped.host)
        assert digests(wiped.url) == digests(served.registry.url)


def test_every_recipe_of_the_page_is_run_by_a_test_here() -> None:
    lines = {line for block in RECIPES for line in block}
    run = {recipe_line(tool.line) for tool in TOOLS.values()}
    assert run.union(*(one.splitlines() for one in (ALL, OTHERS, REPOSITORY, LAYOUT, DIR))) == lines


def test_signatures_without_a_tag_come_back_where_the_registry_tells_of_them(
    tmp_path: Path, skopeo: Skopeo, mounts: Mounts
) -> None:
    signed = index(image(b"one"), image(b"other"))
    of_the_image = signature(signed.children[0])
    with EmbeddedRegistry() as registry, EmbeddedRegistry() as other:
        load(registry, "team/app", "latest", signed)
        for content in (of_the_image, signature(of_the_image, b"signed again")):
            load(registry, "team/app", "", content)
        mount = mounts(registry.url)
        administrator = Administrator(tmp_path / "root", mount.path)
        administrator.trust(other.host)
        administrator.run(recipe_line("rsync -a --delete"))
        administrator.run(REPOSITORY, other.host)
        known = digests(registry.url)
        assert digests(other.url) == known
        assert (
            sum(name.endswith(" referrers") and bool(found) for name, found in known.items()) == 2
        )
