"""Random writes, to a mount and to a model of what must come of them; then the trees are equal."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import model
from support.builders import Content, image, index, load
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.stacks import stack
from support.views import VfsView, walk
from support.writing import make, tags, writable, write

from epochfs.demo.registry import Behaviour
from epochfs.errors import EpochfsError
from epochfs.fuse.errnos import errno_of
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
        with _as_os_errors():
            write(self._fs, path, data)

    def mkdir(self, path: str) -> None:
        with _as_os_errors():
            make(self._fs, path)

    def symlink(self, target: str, path: str) -> None:
        with _as_os_errors():
            self._fs.symlink(target, path)

    def rename(self, old: str, new: str) -> None:
        with _as_os_errors():
            self._fs.rename(old, new)

    def unlink(self, path: str) -> None:
        with _as_os_errors():
            self._fs.unlink(path)

    def names(self, path: str) -> set[str]:
        with _as_os_errors():
            return {entry.name for entry in self._fs.listdir(path)}


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
        return set(os.listdir(self._at(path)))  # noqa: PTH208


@contextlib.contextmanager
def _as_os_errors() -> Iterator[None]:
    try:
        yield
    except EpochfsError as error:
        raise OSError(errno_of(error), str(error)) from error


@dataclass
class Model:
    """What a registry has, and what waits in front of it, of one repository."""

    blobs: set[bytes] = field(default_factory=set)
    manifests: list[Content] = field(default_factory=list)
    tags: dict[str, Content] = field(default_factory=dict)
    waiting: list[Content] = field(default_factory=list)
    waiting_tags: dict[str, Content] = field(default_factory=dict)
    links: set[str] = field(default_factory=set)
    touched: bool = False

    def settle(self) -> None:
        """Have all arrive that waits for nothing more."""
        changed = True
        while changed:
            changed = False
            for one in self.waiting:
                if self._is_complete(one):
                    self.waiting.remove(one)
                    self.manifests.append(one)
                    changed = True
                    break
            for tag, one in list(self.waiting_tags.items()):
                if one in self.manifests:
                    self.tags[tag] = self.waiting_tags.pop(tag)
                    self.links.discard(tag)
                    changed = True

    def _is_complete(self, one: Content) -> bool:
        return self.blobs.issuperset(one.blobs) and all(
            child in self.manifests for child in one.children
        )

    def tag(self, tag: str, one: Content, *, over: bool) -> int:
        """Tag something, `over` a link that may be there; return the errno."""
        if not over and (tag in self.tags or tag in self.links):
            return errno.EEXIST
        if one not in self.manifests and not self.touched and self.tags:
            return errno.ENOENT
        self.touched = True
        self.waiting_tags[tag] = one
        if tag not in self.tags:
            self.links.add(tag)
        self.settle()
        return 0

    def untag(self, tag: str) -> int:
        """Delete a tag; return the errno."""
        if tag not in self.tags and tag not in self.links:
            return errno.ENOENT
        self.waiting_tags.pop(tag, None)
        if tag in self.links:
            self.links.discard(tag)
        else:
            del self.tags[tag]
        return 0

    def shown_tags(self) -> set[str]:
        return {*self.tags, *self.links}


repositories = st.sampled_from(REPOSITORIES)
contents = st.sampled_from(CONTENTS)
tag_names = st.sampled_from(TAGS)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("blob"), repositories, st.sampled_from([b"one", b"two", b"shared"])),
        st.tuples(st.just("config"), repositories, st.sampled_from([ONE, TWO])),
        st.tuples(st.just("manifest"), repositories, contents),
        st.tuples(st.just("wrong"), repositories, contents),
        st.tuples(st.just("tag"), repositories, contents, tag_names),
        st.tuples(st.just("retag"), repositories, contents, tag_names),
        st.tuples(st.just("untag"), repositories, tag_names),
    ),
    max_size=14,
)


def code_of(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


class Run:
    """Does steps to a writer and to the model, and compares."""

    def __init__(self, registry: EmbeddedRegistry, writer: Writer) -> None:
        self._registry = registry
        self._writer = writer
        self.models = {name: Model() for name in REPOSITORIES}
        old = self.models["old"]
        old.blobs = set(ONE.blobs)
        old.manifests = [ONE]
        old.tags = {"a": ONE}

    def step(self, kind: str, repository: str, *rest: object) -> None:
        writer, known = self._writer, self.models[repository]
        if kind in ("blob", "config"):
            (given,) = rest
            data = given if isinstance(given, bytes) else given.blobs[0]  # type: ignore[attr-defined]
            writer.mkdir(f"/{repository}/blobs")
            writer.write(f"/{repository}/blobs/{model.digest(data)}", data)
            known.blobs.add(data)
            known.touched = True
            known.settle()
            return
        if kind == "untag":
            (tag,) = rest
            assert isinstance(tag, str)
            expected = known.untag(tag)
            found = code_of(lambda: writer.unlink(f"/{repository}/tags/{tag}"))
            assert found == expected, (kind, repository, tag)
            return
        content = rest[0]
        assert isinstance(content, Content)
        if kind in ("manifest", "wrong"):
            path = f"/{repository}/manifests/{content.digest}"
            writer.mkdir(path)
            known.touched = True
            if kind == "wrong":
                if content in known.waiting:
                    return
                assert code_of(lambda: writer.write(f"{path}/manifest.json", b"{}")) == errno.EIO
                return
            writer.write(f"{path}/manifest.json", content.raw)
            if content not in known.manifests and content not in known.waiting:
                known.waiting.append(content)
            known.settle()
            return
        tag = rest[1]
        assert isinstance(tag, str)
        writer.mkdir(f"/{repository}/tags")
        known.touched = known.touched or repository != "old"
        target, path = f"../manifests/{content.digest}", f"/{repository}/tags/{tag}"
        expected = known.tag(tag, content, over=kind == "retag")
        if kind == "tag":
            assert code_of(lambda: writer.symlink(target, path)) == expected
            return
        temporary = f"/{repository}/tags/.{tag}.tmp"
        writer.symlink(target, temporary)
        found = code_of(lambda: writer.rename(temporary, path))
        if found:
            writer.unlink(temporary)
        assert found == expected

    def compare(self) -> None:
        """The registry has what is complete and nothing else; the mount shows what waits, too."""
        for repository, known in self.models.items():
            complete = {tag: str(one.digest) for tag, one in known.tags.items()}
            assert tags(self._registry, repository) == complete
            if known.touched or known.tags:
                shown: set[str] = set()
                with contextlib.suppress(FileNotFoundError):
                    shown = self._writer.names(f"/{repository}/tags")
                assert shown == known.shown_tags()

    def compare_trees(self, directory: str) -> None:
        """All that a new mount shows is what the model says."""
        world = {name: dict(known.tags) for name, known in self.models.items() if known.tags}
        expected = model.tree(world)
        with stack(self._registry.url, Path(directory)) as opened:
            view = VfsView(opened.filesystem)
            found = {path: one.content for path, one in walk(view).items()}
        tops = tuple(f"/{name}" for name in world)

        def below(tree: Mapping[str, object]) -> dict[str, object]:
            return {path: content for path, content in tree.items() if path.startswith(tops)}

        assert below(found) == below(expected)


def run(registry: EmbeddedRegistry, writer: Writer, todo: list[tuple[object, ...]]) -> None:
    done = Run(registry, writer)
    for one in todo:
        done.step(*one)  # type: ignore[arg-type]
        done.compare()
    with tempfile.TemporaryDirectory() as directory:
        done.compare_trees(directory)


LENIENT = pytest.mark.expects_log("was not written|unmounted, and not written|cannot be written")


@LENIENT
@settings(max_examples=60)
@given(steps)
def test_random_writes_without_a_kernel(todo: list[tuple[object, ...]]) -> None:
    with tempfile.TemporaryDirectory() as directory, EmbeddedRegistry(STRICT) as registry:
        load(registry, "old", "a", ONE)
        with writable(registry, Path(directory)) as fs:
            run(registry, ThroughVfs(fs), todo)


@LENIENT
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps)
def test_random_writes_through_the_kernel(mounts: Mounts, todo: list[tuple[object, ...]]) -> None:
    with EmbeddedRegistry(STRICT) as registry:
        load(registry, "old", "a", ONE)
        mount = mounts(registry.url, "-o", "rw")
        try:
            run(registry, ThroughKernel(mount.path), todo)
        finally:
            mount.unmount()
