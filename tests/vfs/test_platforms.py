"""`platforms/`: an index by its platforms, whatever a registry says these are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.builders import image, index, load, random_bytes
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import VfsView, names

from epochfs.demo.registry import Behaviour
from epochfs.demo.samples import descriptor
from epochfs.oci.manifests import OCI_MANIFEST

AMD64 = {"os": "linux", "architecture": "amd64"}
ATTESTATION = {"vnd.docker.reference.type": "attestation-manifest"}

Shown = dict[str, str]
Show = Callable[..., Shown]


@pytest.fixture
def show(tmp_path: Path) -> Iterator[Show]:
    """Returns what is under `platforms/` of an index of these platforms: paths, and where each
    leads, as the number of the manifest in the index."""
    with ExitStack() as closing:

        def shown(*platforms: object, annotations: dict[str, str] | None = None) -> Shown:
            children = [image(random_bytes(10, seed)) for seed in range(len(platforms))]
            manifests = [
                descriptor(child.raw, OCI_MANIFEST, platform=one, annotations=annotations or {})
                for child, one in zip(children, platforms, strict=True)
            ]
            content = index(*children, manifests=manifests)
            registry = closing.enter_context(EmbeddedRegistry(Behaviour(validates=False)))
            load(registry, "app", "latest", content)
            layers = closing.enter_context(stack(registry.url, tmp_path))
            view = VfsView(layers.filesystem)
            numbers = {str(child.digest): str(number) for number, child in enumerate(children)}
            return _links(view, f"/app/manifests/{content.digest}", numbers)

        yield shown


def _links(view: VfsView, manifest: str, numbers: dict[str, str]) -> Shown:
    found = {}
    for name in names(view, f"{manifest}/platforms"):
        below = [name] if name != "unknown" else names(view, f"{manifest}/platforms/unknown")
        for last in below:
            path = f"{manifest}/platforms/{name}" + (f"/{last}" if name == "unknown" else "")
            target = os.path.normpath(f"{path}/../{view.readlink(path)}")
            assert os.path.dirname(target) == os.path.dirname(manifest)  # noqa: PTH120
            assert view.stat(path).size == len(view.readlink(path))
            number = numbers[target.rpartition("/")[2]]
            shown = path.removeprefix(f"{manifest}/platforms/")
            for digest, one in numbers.items():
                shown = shown.replace(digest, f"<{one}>")
            found[shown] = number
    return found


def test_each_platform_is_a_link_to_its_manifest(show: Show) -> None:
    arm = {"os": "linux", "architecture": "arm", "variant": "v7"}
    assert show(AMD64, arm) == {"linux-amd64": "0", "linux-arm-v7": "1"}


def test_two_of_one_platform_have_the_digest_appended_but_the_first(show: Show) -> None:
    windows = [
        {"os": "windows", "architecture": "amd64", "os.version": version}
        for version in ("10.0.20348", "10.0.26100")
    ]
    assert show(*windows) == {"windows-amd64": "0", "windows-amd64@<1>": "1"}


def test_attestations_are_found_by_digest_under_unknown(show: Show) -> None:
    unknown = {"os": "unknown", "architecture": "unknown"}
    assert show(unknown) == {"unknown/<0>": "0"}
    assert show(AMD64, annotations=ATTESTATION) == {"unknown/<0>": "0"}


@pytest.mark.parametrize(
    "platform",
    [
        {},
        {"os": "linux"},
        {"os": "", "architecture": "amd64"},
        {"os": 7, "architecture": ["amd64"]},
        {"os": "..", "architecture": "/../../etc/passwd"},
        {"os": "a/b", "architecture": "c"},
        {"os": "linux\n", "architecture": "amd64"},
        {"os": "linux", "architecture": "\x1b[31m"},
        {"os": "linux", "architecture": "a" * 300},
        {"os": "linux", "architecture": "\ud800"},
    ],
    ids=lambda platform: ascii(platform)[:40],
)
def test_a_platform_that_could_be_no_name_is_shown_by_digest(
    show: Show, platform: dict[str, Any]
) -> None:
    assert show(AMD64, platform) == {"linux-amd64": "0", "unknown/<1>": "1"}


def test_an_index_of_nothing_has_no_platforms(show: Show) -> None:
    assert show() == {}
