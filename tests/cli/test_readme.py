"""The README: its commands are run as they are written, but for the names of places in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support import CHECKOUT
from support.artifacts import artifact, raw
from support.backups import PULLED, Administrator, push_world
from support.builders import image, load
from support.integrity import push
from support.mounts import require_fuse
from support.registries import EmbeddedRegistry

from epochfs.client import RegistryClient
from epochfs.demo import samples
from epochfs.demo.registry import Behaviour
from epochfs.help import TOPICS, Code, page, parse

ROOT = CHECKOUT
README = (ROOT / "README.md").read_text()
DATE = re.compile(r"(?<=[\d] )[A-Z][a-z]{2} [\d ]\d [\d ]\d[\d:]\d+(?= )")


def blocks(section: str) -> list[str]:
    """Return the command blocks of a section."""
    text = README.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^ {4}.*\n)+", text, re.MULTILINE)
    return [re.sub("^    ", "", block, flags=re.MULTILINE) for block in found]


COMMANDS = blocks("Two commands")
FOR_ONESELF, FOR_ALL = blocks("Install")
WALK = "\n".join(blocks("A walk"))
[TREE] = blocks("The tree")
MOUNTED, LISTED, BACKED_UP, WARMED, ONE_ARTIFACT = blocks("Recipes")
"""All the blocks there are; each has a test below."""


@pytest.fixture
def administrator(tmp_path: Path) -> Iterator[Administrator]:
    """Who does what the README says; `/mnt` is an empty directory, unmounted at the end."""
    require_fuse()
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    administrator = Administrator(tmp_path / "root", mountpoint)
    yield administrator
    while os.path.ismount(mountpoint):
        administrator.run("epochfs umount --force /mnt")


@contextmanager
def mounted(administrator: Administrator, url: str) -> Iterator[Path]:
    """What a URL or layout shows, where the README mounts things."""
    administrator.run(f"epochfs mount {url} /mnt")
    yield administrator.mount
    administrator.run("epochfs umount /mnt")


@pytest.fixture
def served(
    tmp_path: Path, skopeo: Skopeo, administrator: Administrator
) -> Iterator[DockerRegistry]:
    directory = tmp_path / "registry"
    directory.mkdir()
    with serve_docker_registry(directory) as registry:
        push_world(registry, skopeo)
        administrator.trust(registry.host)
        yield registry


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_its_links_lead_to_files_and_to_every_topic() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert [link for link in links if "://" not in link and not (ROOT / link).is_file()] == []
    assert {f"epochfs/help/{topic}.md" for topic in TOPICS} <= set(links)


def test_its_tree_is_that_of_the_topic() -> None:
    [tree] = [block for block in parse(page("tree")).blocks if isinstance(block, Code)]
    assert TREE.splitlines() == list(tree.lines)


def test_its_figures_are_those_of_the_topic() -> None:
    rows = [line for line in README.splitlines() if line.startswith("|")]
    assert len(rows) > 4
    assert set(rows) <= set(page("performance").splitlines())


def test_its_two_commands_are_scripts() -> None:
    """They install packages and run this suite: what they do is not done here."""
    names = [line.split()[0] for line in COMMANDS[0].splitlines()]
    assert len(names) == 2
    for name in names:
        assert os.access(ROOT / name, os.X_OK)
        subprocess.run(["bash", "-n", ROOT / name], check=True)


# --- the walk ---------------------------------------------------------------------------------


def test_the_walk_shows_what_it_says(administrator: Administrator) -> None:
    steps = [step.partition("\n") for step in re.split(r"^\$ ", WALK, flags=re.MULTILINE)[1:]]
    assert len(steps) == 7
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        for command, _, output in steps:
            said = administrator.run(command.replace("http://127.0.0.1:5000", registry.url))
            shown = said.replace(str(administrator.mount), "/mnt").strip()
            assert as_anybody(shown) == as_anybody(output.strip()), command


def as_anybody(listing: str) -> str:
    """A listing of whoever makes it, at any time."""
    dated = DATE.sub("DATE", listing)
    return re.sub(r"^(l\S+ 1) \S+ \S+ ", r"\1 ME OURS ", dated, flags=re.MULTILINE)


# --- the recipes ------------------------------------------------------------------------------


def without_tls(recipe: str) -> str:
    """A recipe for a registry of ours, which speaks plain http."""
    return recipe.replace("https://", "http://")


def test_a_registry_is_mounted_and_looked_into(
    administrator: Administrator, served: DockerRegistry
) -> None:
    said = administrator.run(without_tls(MOUNTED), served.host)
    assert (administrator.mount / "team/app/tags/latest").readlink().name == str(PULLED.digest)
    assert f"ok    registry     http://{served.host} answers" in said


def test_repositories_are_listed_where_there_is_no_catalog(administrator: Administrator) -> None:
    with EmbeddedRegistry(Behaviour(catalog=False)) as registry:
        load(registry, "library/debian", "12", image(b"debian"))
        load(registry, "library/other", "1", image(b"other"))
        administrator.run(LISTED.replace("https://registry-1.docker.io", registry.url))
        assert [path.name for path in (administrator.mount / "library").iterdir()] == ["debian"]
        assert [tag.name for tag in (administrator.mount / "library/debian/tags").iterdir()] == [
            "12"
        ]


def test_a_registry_is_backed_up_and_restored(
    administrator: Administrator, served: DockerRegistry, tmp_path: Path
) -> None:
    backup, restore = BACKED_UP.split("\n", 1)
    with mounted(administrator, served.url):
        administrator.run(backup)
    directory = tmp_path / "empty"
    directory.mkdir()
    with serve_docker_registry(directory) as empty:
        administrator.run(restore.replace("https:", "http:"), empty.host)
        old, new = RegistryClient(served.url), RegistryClient(empty.url)
        assert new.catalog() == old.catalog()
        for name in old.catalog():
            assert new.list_tags(name) == old.list_tags(name)
            for tag in old.list_tags(name):
                assert new.resolve(name, tag).digest == old.resolve(name, tag).digest


def test_a_node_is_warmed(administrator: Administrator) -> None:
    with EmbeddedRegistry() as registry:
        samples.load(registry)
        with mounted(administrator, registry.url):
            assert administrator.run(WARMED).endswith(" 0 failed\n")
            registry.forget_requests()
            assert administrator.run(WARMED).startswith(
                "7 blobs, 40.7 KiB: 0 fetched, 7 already cached"
            )
            assert registry.count("GET", "/blobs/") == 0


def test_one_artifact_is_mounted(
    administrator: Administrator, docker_registry: DockerRegistry
) -> None:
    push(docker_registry.url, "team/app", "latest", artifact(raw("docs/model.bin", b"weights")))
    administrator.run(ONE_ARTIFACT, docker_registry.host)
    assert (administrator.mount / "docs/model.bin").read_bytes() == b"weights"
    assert not (administrator.mount / "docs/model.bin").is_symlink()


# --- the installation -------------------------------------------------------------------------


def install(recipe: str, directory: Path, places: dict[str, str], **variables: str) -> None:
    """Run a recipe in this checkout, but for what apt installs."""
    programs = directory / "programs"
    programs.mkdir()
    (programs / "python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (programs / "python3").chmod(0o755)
    lines = [line for line in recipe.splitlines() if " apt " not in f" {line} "]
    script = "\n".join(lines)
    for place, other in places.items():
        script = script.replace(place, other)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", **variables}
    environment.pop("PIP_QUIET", None)  # pipx asks pip for a list, and a quiet pip gives none
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if "No matching distribution found" in done.stderr:
        pytest.skip("no package index to be had")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"


@pytest.mark.timeout(300)
def test_it_is_installed_for_all_users(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    places = {"/opt/epochfs": f"{tmp_path}/epochfs", "/usr/local/bin": f"{tmp_path}/bin"}
    install(FOR_ALL, tmp_path, places)
    command = [tmp_path / "bin/epochfs", "help", "tree"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert "symbolic link" in shown
    manual = tmp_path / "epochfs/share/man"
    assert len(list(manual.glob("man7/epochfs-*.7"))) == len(TOPICS)
    assert (manual / "man1/epochfs.1").is_file()


@pytest.mark.timeout(300)
def test_it_is_installed_for_oneself(tmp_path: Path) -> None:
    if shutil.which("pipx") is None:
        pytest.skip("pipx is not installed")
    variables = {"HOME": str(tmp_path), "PIPX_HOME": f"{tmp_path}/pipx"}
    install(FOR_ONESELF, tmp_path, {}, PIPX_BIN_DIR=f"{tmp_path}/bin", **variables)
    command = [tmp_path / "bin/epochfs", "--version"]
    subprocess.run(command, capture_output=True, check=True, cwd=tmp_path)
