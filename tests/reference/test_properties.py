"""Random registries, and all of what a mount of them shows, compared with a reference model."""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support import model
from support.builders import Content, image, index, load
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import MountView, Seen, VfsView, View, walk

from epochfs.client import RegistryClient
from epochfs.demo.registry import EPOCH, Behaviour
from epochfs.oci.names import Tag

NAMES = Behaviour(validates=False)
PAGED = Behaviour(validates=False, page_size=2)
CREATED = "org.opencontainers.image.created"

odd = st.sampled_from(
    ["tags", "blobs", "manifests", "layout", "_tags", "_", "_a", ".epochfs", "...", "sha256:00"]
)
harmless = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1)
plain = st.sampled_from(["a", "b", "nginx", "library", "a b", "100%", "a?b=c#d", "ü"])
segments = st.one_of(plain, plain, odd, harmless.filter(lambda text: text not in (".", "..")))
repositories = st.lists(segments.map(lambda text: text[:60]), min_size=1, max_size=4).map("/".join)
tags = st.one_of(
    st.sampled_from(["latest", "1.0", "tags", "_x", "manifest.json"]),
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
)
layers = st.lists(st.sampled_from([b"shared", b"own", b"", b"x" * 5000, bytes(70_000)]), max_size=4)
annotations = st.sampled_from([{}, {CREATED: "2024-02-29T12:00:00Z"}, {"key": "value"}])


@st.composite
def images(draw: st.DrawFn) -> Content:
    return image(
        *draw(layers),
        architecture=draw(st.sampled_from(["amd64", "arm64"])),
        annotations=draw(annotations),
    )


contents = st.recursive(
    images(),
    lambda below: st.lists(below, min_size=1, max_size=3).map(lambda c: index(*c)),
    max_leaves=4,
)
worlds = st.dictionaries(
    repositories, st.dictionaries(tags, contents, min_size=1, max_size=4), max_size=5
)
changes = st.lists(
    st.tuples(st.integers(0), st.integers(0), st.one_of(st.none(), contents)), max_size=4
)


def furnish(registry: EmbeddedRegistry, world: model.World) -> None:
    for repository, held in world.items():
        for tag, content in held.items():
            load(registry, repository, tag, content)


def compare(view: View, world: model.World) -> dict[str, Seen]:
    """Assert that a view shows the world, all of it and nothing else."""
    seen, expected = walk(view), model.tree(world)
    assert {path: one.content for path, one in seen.items()} == expected
    for path, one in seen.items():
        content = expected[path]
        kind = {str: stat.S_IFLNK, bytes: stat.S_IFREG, type(None): stat.S_IFDIR}[type(content)]
        assert one.stat.kind == kind, path
        assert one.stat.size == len(content or ""), path
        assert model.time_ns(path, expected) in (None, one.stat.time_ns), path
    return seen


def changed(
    world: model.World, steps: list[tuple[int, int, Content | None]], client: RegistryClient
) -> dict[str, Mapping[str, Content]]:
    """Move and delete tags in the registry, and return the world that this makes of the other."""
    result = {repository: dict(held) for repository, held in world.items()}
    for repository_number, tag_number, content in steps:
        repository = sorted(result)[repository_number % len(result)]
        held = result[repository]
        if not held:
            continue
        tag = sorted(held)[tag_number % len(held)]
        if content is None:
            client.delete_manifest(repository, Tag(tag))
            del held[tag]
        else:
            for blob in content.every_blob():
                client.put_blob(repository, model.digest(blob), blob, len(blob))
            for manifest in content.every_manifest():
                reference = Tag(tag) if manifest is content else str(manifest.digest)
                client.put_manifest(repository, reference, manifest.raw, manifest.media_type)
            held[tag] = content
    return result


@settings(max_examples=20)
@pytest.mark.parametrize("behaviour", [NAMES, PAGED, EPOCH], ids=["whole", "paged", "epoch"])
@given(world=worlds)
def test_the_tree_is_what_the_model_says(behaviour: Behaviour, world: model.World) -> None:
    with tempfile.TemporaryDirectory() as directory, EmbeddedRegistry(behaviour) as registry:
        furnish(registry, world)
        with stack(registry.url, Path(directory)) as layers:
            compare(VfsView(layers.filesystem), world)


@settings(max_examples=12)
@given(world=worlds.filter(bool), steps=changes)
def test_what_changes_in_the_registry_changes_in_the_tree(
    world: model.World, steps: list[tuple[int, int, Content | None]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, EmbeddedRegistry(NAMES) as registry:
        furnish(registry, world)
        with stack(registry.url, Path(directory), metadata_ttl=0) as layers:
            before = compare(VfsView(layers.filesystem), world)
            later = changed(world, steps, layers.client)
            after = compare(VfsView(layers.filesystem), later)
    for path in before.keys() & after.keys():
        one, other = before[path], after[path]
        assert one.stat.inode == other.stat.inode
        if isinstance(one.content, str) and "/tags/" in path:
            assert (one.content == other.content) or (one.stat.time_ns < other.stat.time_ns), path


@settings(
    max_examples=4,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(world=worlds.filter(lambda world: len(world) > 2))
def test_a_real_mount_shows_what_the_model_says(mounts: Mounts, world: model.World) -> None:
    with EmbeddedRegistry(NAMES) as registry, tempfile.TemporaryDirectory() as cache:
        furnish(registry, world)
        mount = mounts(registry.url, cache=Path(cache))
        compare(MountView(mount.path), world)
        mount.unmount()
