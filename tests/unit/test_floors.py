"""The floors of the house: imports point down only, and each foreign thing has one home.

The modules are read, not imported, so that nothing here depends on what is installed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import CHECKOUT

PACKAGE = CHECKOUT / "epochfs"

FLOORS = (
    "errors",
    "counters",
    "oci",
    "config",
    "client",
    "cache",
    "metadata",
    "blobs",
    "layers",
    "vfs",
    "fuse",
    "session",
    "fsspec",
    "demo",
    "help",
    "cli",
    "__main__",
)
"""The package's own files and folders, from the ground up: each imports only what stands before it.
Within a folder imports are free so long as they form no cycle."""

HOMES = {
    "requests": {"client.transport"},
    "urllib3": {"client.transport"},
    "mfusepy": {"fuse.libfuse"},
    "fuse": {"fuse.libfuse"},
    "ctypes": {
        "fuse.libfuse",
        "fuse.memory",
        "fuse.thread_states",
        "blobs.buffers",
        "cache.staged_blob",
        "cli.system",
    },
    "errno": {"fuse.errnos", "cache"},
    "os.environ": {"cli", "session.environment"},
    "os.getenv": {"cli"},
    "click": {"cli"},
    "fsspec": {"fsspec"},
    "subprocess": {"client.auth", "cli"},
    "prometheus_client": {"session.status"},
    "tqdm": {"cli.output"},
}
"""What only these modules, and those below them, may touch."""


@dataclass(frozen=True)
class Module:
    """A module of the package: `name` is relative to it, as in `registry.server`."""

    name: str
    tree: ast.Module

    @property
    def floor(self) -> str:
        """The folder it is in, or the module itself at the package's root."""
        return self.name.partition(".")[0]

    def is_in(self, homes: set[str]) -> bool:
        return any(self.name == home or self.name.startswith(f"{home}.") for home in homes)


def modules() -> Iterator[Module]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield Module(name, ast.parse(path.read_bytes(), str(path)))


MODULES = list(modules())
FOLDERS = sorted({path.parent for path in PACKAGE.glob("*/*.py")})
each_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every dotted name that the code imports, wherever the statement stands.

    `from a import b` yields both `a` and `a.b`, for `b` may be a module.
    """
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are written in full"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def inner(name: str) -> str:
    """Return a name of the package relative to it, and "" for any other name."""
    first, _, rest = name.partition(".")
    return rest if first == "epochfs" else ""


def test_the_package_has_these_floors_and_no_other() -> None:
    assert {module.floor for module in MODULES} == set(FLOORS)


@each_module
def test_imports_point_down(module: Module) -> None:
    floors = {inner(name).partition(".")[0] for name in imported(module.tree)} & set(FLOORS)
    above = FLOORS[FLOORS.index(module.floor) + 1 :]
    assert floors & set(above) == set()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_says_what_it_holds_and_who_uses_it(folder: Path) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_bytes()))
    assert text is not None
    assert "Used by" in text
    assert len(text.splitlines()) >= 3


def test_no_module_imports_itself_by_a_detour() -> None:
    names = {module.name for module in MODULES}
    arrows = {
        module.name: {inner(name) for name in imported(module.tree)} & names - {module.name}
        for module in MODULES
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join((*path, name))
        if name not in done:
            for target in sorted(arrows[name]):
                visit(target, (*path, name))
            done.add(name)

    for name in sorted(names):
        visit(name, ())


@each_module
def test_what_is_foreign_is_touched_at_home(module: Module) -> None:
    touched = set(imported(module.tree)) | {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    strays = {
        name
        for name in touched
        for foreign, homes in HOMES.items()
        if (name == foreign or name.startswith(f"{foreign}.")) and not module.is_in(homes)
    }
    assert strays == set()


def test_the_file_system_and_fuse_know_no_kind_of_node() -> None:
    kinds = {"vfs.manifest_directory", "vfs.tree", "vfs.views"}
    knowing = {
        module.name
        for module in MODULES
        if module.name == "vfs.filesystem" or module.floor == "fuse"
        for name in imported(module.tree)
        if any(f"{inner(name)}.".startswith(f"{kind}.") for kind in kinds)
    }
    assert knowing == set()


@pytest.mark.parametrize("floor", ["errors", "oci", "config", "demo"])
def test_the_ground_stands_on_the_standard_library_alone(floor: str) -> None:
    outside = {
        name
        for module in MODULES
        if module.floor == floor
        for name in imported(module.tree)
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "epochfs"}
    }
    assert outside == set()
