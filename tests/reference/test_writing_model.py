"""Random writes, to a mount and to a model of what must come of them; then the trees are equal."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import model
from support.builders import Content, image, index, load
from support.mounts import Mounts, names_in
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import AsOsError, VfsView, refusal, walk
from support.writing import (
    blob_path,
    link_to,
    listed,
    make,
    manifest_path,
    tags,
    writable,
    write,
)

from epochfs.demo.registry import Behaviour
from epochfs.vfs.writing.writable import WritableFileSystem

ONE = image(b"one", b"shared")
TWO = image(b"two", b"shared")
BOTH = index(ONE, TWO)
CONTENTS = (ONE, TWO, BOTH)
REPOSITORIES = ("old", "team/new")
TAGS = ("a", "b")
STRICT = Behaviour(sparse="")


class Writer(Protocol):
    """What programs do to a mount; raises OSError."""

    def write(self, path: str, data: bytes) -> None: ...

    def mkdir(self, path: str) -> None: ...

    def symlink(self, target: str, path: str) -> None: ...

    def rename(self, old: str, new: str) -> None: ...

    def unlink(self, path: str) -> None: ...

    def names(self, path: str) -> set[str]: ...


class ThroughVfs:
    """Writes without a kernel."""

    def __init__(self, fs: WritableFileSystem) -> None:
        self._fs = fs

    def write(self, path: str, data: bytes) -> None:
        with AsOsError():
            write(self._fs, path, data)

    def mkdir(self, path: str) -> None:
        with AsOsError():
            make(self._fs, path)

    def symlink(self, target: str, path: str) -> None:
        with AsOsError():
            self._fs.symlink(target, path)

    def rename(self, old: str, new: str) -> None:
        with AsOsError():
            self._fs.rename(old, new)

    def unlink(self, path: str) -> None:
        with AsOsError():
            self._fs.unlink(path)

    def names(self, path: str) -> set[str]:
        with AsOsError():
            return set(listed(self._fs, path))


class ThroughKernel:
    """Writes to a mount."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def _at(self, path: str) -> Path:
        return self._root / path.lstrip("/")

    def write(self, path: str, data: bytes) -> None:
        self._at(path).write_bytes(data)

    def mkdir(self, path: str) -> None:
        self._at(path).mkdir(parents=True, exist_ok=True)

    def symlink(self, target: str, path: str) -> None:
        self._at(path).symlink_to(target)

    def rename(self, old: str, new: str) -> None:
        self._at(old).rename(self._at(new))

    def unlink(self, path: str) -> None:
        self._at(path).unlink()

    def names(self, path: str) -> set[str]:
        return names_in(self._at(path))


@dataclass
class Model:
    """What a registry has, and what waits in front of it, of one repository."""

    blobs: set[bytes] = field(default_factory=set)
    manifests: list[Content] = field(default_factory=list)
    tags: dict[str, Content] = field(default_factory=dict)
    waiting: list[Content] = field(default_factory=list)
    waiting_tags: dict[str, Content] = field(default_factory=dict)
    touched: bool = False

    def add_blob(self, data: bytes) -> None:
        self.touched = True
        self.blobs.add(data)
        self._settle()

    def add_manifest(self, one: Content) -> None:
        if one not in self.manifests and one not in self.waiting:
            self.waiting.append(one)
        self._settle()

    def tag(self, tag: str, one: Content, *, over: bool) -> int | None:
        """Tag something, `over` a link that may be there; return the errno, if any."""
        if not over and tag in self.shown_tags():
            return errno.EEXIST
        if one not in self.manifests and not self.touched and self.tags:
            return errno.ENOENT
        self.touched = True
        self.waiting_tags[tag] = one
        self._settle()
        return None

    def untag(self, tag: str) -> int | None:
        """Delete a tag; return the errno, if any."""
        if tag not in self.shown_tags():
            return errno.ENOENT
        self.waiting_tags.pop(tag, None)
        self.tags.pop(tag, None)
        return None

    def shown_tags(self) -> set[str]:
        return {*self.tags, *self.waiting_tags}

    def _settle(self) -> None:
        """Have all arrive that waits for nothing more."""
        while ready := [one for one in self.waiting if self._is_complete(one)]:
            self.waiting = [one for one in self.waiting if one not in ready]
            self.manifests += ready
        for tag, one in list(self.waiting_tags.items()):
            if one in self.manifests:
                self.tags[tag] = self.waiting_tags.pop(tag)

    def _is_complete(self, one: Content) -> bool:
        return self.blobs.issuperset(one.blobs) and all(
            child in self.manifests for child in one.children
        )


class Run:
    """Does steps to a writer and to the model, and compares: a public method is a kind of step."""

    def __init__(self, registry: EmbeddedRegistry, writer: Writer) -> None:
        self._registry = registry
        self._writer = writer
        self._models = {name: Model() for name in REPOSITORIES}
        old = self._models["old"]
        old.blobs = set(ONE.blobs)
        old.manifests = [ONE]
        old.tags = {"a": ONE}

    def blob(self, repository: str, data: bytes) -> None:
        self._writer.mkdir(f"/{repository}/blobs")
        self._writer.write(blob_path(data, repository), data)
        self._models[repository].add_blob(data)

    def manifest(self, repository: str, one: Content) -> None:
        self._make_directory_of(repository, one)
        self._writer.write(manifest_path(one, repository), one.raw)
        self._models[repository].add_manifest(one)

    def wrong_manifest(self, repository: str, one: Content) -> None:
        """Write other bytes as a manifest, but not over those that wait."""
        self._make_directory_of(repository, one)
        if one not in self._models[repository].waiting:
            path = manifest_path(one, repository)
            assert refusal(lambda: self._writer.write(path, b"{}")) == errno.EIO

    def _make_directory_of(self, repository: str, one: Content) -> None:
        self._writer.mkdir(f"/{repository}/manifests/{one.digest}")
        self._models[repository].touched = True

    def tag(self, repository: str, one: Content, tag: str) -> None:
        expected = self._expect_tag(repository, one, tag, over=False)
        path = f"/{repository}/tags/{tag}"
        assert refusal(lambda: self._writer.symlink(link_to(one), path)) == expected

    def retag(self, repository: str, one: Content, tag: str) -> None:
        """Rename a link over a tag."""
        expected = self._expect_tag(repository, one, tag, over=True)
        path, temporary = f"/{repository}/tags/{tag}", f"/{repository}/tags/.{tag}.tmp"
        self._writer.symlink(link_to(one), temporary)
        found = refusal(lambda: self._writer.rename(temporary, path))
        if found:
            self._writer.unlink(temporary)
        assert found == expected

    def _expect_tag(self, repository: str, one: Content, tag: str, *, over: bool) -> int | None:
        """Make the directory of the tags, and return the errno that tagging must end with."""
        self._writer.mkdir(f"/{repository}/tags")
        known = self._models[repository]
        known.touched = known.touched or repository != "old"
        return known.tag(tag, one, over=over)

    def untag(self, repository: str, tag: str) -> None:
        expected = self._models[repository].untag(tag)
        assert refusal(lambda: self._writer.unlink(f"/{repository}/tags/{tag}")) == expected

    def compare(self) -> None:
        """The registry has what is complete and nothing else; the mount shows what waits, too."""
        for repository, known in self._models.items():
            complete = {tag: str(one.digest) for tag, one in known.tags.items()}
            assert tags(self._registry, repository) == complete
            if known.touched or known.tags:
                shown: set[str] = set()
                with contextlib.suppress(FileNotFoundError):
                    shown = self._writer.names(f"/{repository}/tags")
                assert shown == known.shown_tags()

    def compare_trees(self, directory: str) -> None:
        """All that a new mount shows is what the model says."""
        world = {name: dict(known.tags) for name, known in self._models.items() if known.tags}
        expected = model.tree(world)
        with stack(self._registry.url, Path(directory)) as opened:
            view = VfsView(opened.filesystem)
            found = {path: one.content for path, one in walk(view).items()}
        tops = tuple(f"/{name}" for name in world)

        def below(tree: Mapping[str, object]) -> dict[str, object]:
            return {path: content for path, content in tree.items() if path.startswith(tops)}

        assert below(found) == below(expected)


Step = tuple[Callable[..., None], *tuple[object, ...]]
"""A method of Run, and its arguments."""

repositories = st.sampled_from(REPOSITORIES)
contents = st.sampled_from(CONTENTS)
tag_names = st.sampled_from(TAGS)
layers = st.sampled_from([b"one", b"two", b"shared"])
configs = st.sampled_from([ONE.blobs[0], TWO.blobs[0]])
steps: st.SearchStrategy[list[Step]] = st.lists(
    st.one_of(
        st.tuples(st.just(Run.blob), repositories, layers),
        st.tuples(st.just(Run.blob), repositories, configs),
        st.tuples(st.just(Run.manifest), repositories, contents),
        st.tuples(st.just(Run.wrong_manifest), repositories, contents),
        st.tuples(st.just(Run.tag), repositories, contents, tag_names),
        st.tuples(st.just(Run.retag), repositories, contents, tag_names),
        st.tuples(st.just(Run.untag), repositories, tag_names),
    ),
    max_size=14,
)


def run(registry: EmbeddedRegistry, writer: Writer, todo: list[Step]) -> None:
    done = Run(registry, writer)
    for act, *arguments in todo:
        act(done, *arguments)
        done.compare()
    with tempfile.TemporaryDirectory() as directory:
        done.compare_trees(directory)


LENIENT = pytest.mark.expects_log("was not written|unmounted, and not written|cannot be written")


@LENIENT
@settings(max_examples=60)
@given(steps)
def test_random_writes_without_a_kernel_come_to_what_the_model_says(todo: list[Step]) -> None:
    with tempfile.TemporaryDirectory() as directory, EmbeddedRegistry(STRICT) as registry:
        load(registry, "old", "a", ONE)
        with writable(registry, Path(directory)) as fs:
            run(registry, ThroughVfs(fs), todo)


@LENIENT
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_random_writes_through_the_kernel_come_to_what_the_model_says(
    mounts: Mounts, todo: list[Step]
) -> None:
    with EmbeddedRegistry(STRICT) as registry:
        load(registry, "old", "a", ONE)
        mount = mounts(registry.url, "-o", "rw")
        try:
            run(registry, ThroughKernel(mount.path), todo)
        finally:
            mount.unmount()
