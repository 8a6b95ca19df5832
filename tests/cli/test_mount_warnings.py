"""What a mount warns of at its start: one line on stderr, and it stands all the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.builders import image, load
from support.commandline import run
from support.mounts import NO_MIRRORS, require_fuse
from support.registries import Answering, EmbeddedRegistry
from support.scripted import at_most

CONTENT = image(b"content")
MANIFEST = "team/app/tags/latest/manifest.json"


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    require_fuse()
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    run("umount", path)


def mounted(
    registry: EmbeddedRegistry, directory: Path, *options: str, below: str = ""
) -> tuple[int, str]:
    """Mount a registry that has an image; return the exit code, and what is on stderr."""
    with registry:
        load(registry, "team/app", "latest", CONTENT)
        cache = f"--cache-dir={directory.parent / 'cache'}"
        url = f"{registry.url}{below}"
        code, _, said = run("mount", *NO_MIRRORS, cache, *options, url, directory)
        if code == 0:
            assert (directory / MANIFEST).read_bytes() == CONTENT.raw
    return code, said


@pytest.mark.parametrize(
    ("registry", "warning"),
    [
        (
            Answering({"/v2/_catalog": 404}),
            "nothing is listed, as .* no catalog",
        ),
        (
            Answering({"/v2/_catalog": 403}),
            "nothing is listed, as .* no catalog",
        ),
        (Answering({"/v2/_catalog": 400}), "the catalog cannot be read: .*: 400"),
        (Answering({"/v2/": 404, "/v2": 404}), "may not be a registry: GET .*: 404"),
    ],
    ids=["absent", "denied", "broken", "no root"],
)
def test_a_mount_in_which_something_will_be_missed_says_so(
    registry: EmbeddedRegistry, warning: str, directory: Path
) -> None:
    code, said = mounted(registry, directory)
    assert code == 0
    assert said.startswith("epochfs: warning: ")
    assert said.count("\n") == 1
    assert re.search(warning, said)


def test_with_repositories_named_a_missing_catalog_is_nothing_to_warn_of(directory: Path) -> None:
    registry = Answering({"/v2/_catalog": 404})
    assert mounted(registry, directory, "--repo", "team/app") == (0, "")


def test_a_mount_of_a_registry_that_lists_itself_is_silent(directory: Path) -> None:
    assert mounted(EmbeddedRegistry(), directory) == (0, "")


@pytest.mark.parametrize("below", ["/nobody", "/v2", "/team/app:nothing"])
def test_a_prefix_that_nothing_lies_below_is_told_at_once(directory: Path, below: str) -> None:
    with at_most(10):
        code, said = mounted(EmbeddedRegistry(), directory, below=below)
    assert code == 1
    assert "no such repository" in said or "no such artifact" in said
    assert said.count("\n") == 1
