"""The layers of the design: imports point down only, and each foreign thing has one home.

The modules are read, not imported, so that nothing here depends on what is installed.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "epochfs"

RANKS = {
    "errors": 0,
    "help": 0,
    "names": 1,
    "config": 1,
    "auth": 1,
    "batches": 1,
    "buffers": 1,
    "hosts": 1,
    "ranges": 1,
    "readings": 1,
    "window": 1,
    "mountinfo": 1,
    "catalogue": 2,
    "manifests": 2,
    "artifacts": 2,
    "transport": 2,
    "cachedir": 2,
    "passthrough": 2,
    "blobcache": 2,
    "cacheusers": 2,
    "cachecare": 3,
    "database": 2,
    "taghistory": 2,
    "proofs": 1,
    "answers": 3,
    "facts": 3,
    "health": 3,
    "ttlcache": 2,
    "fetchplan": 2,
    "reachable": 3,
    "snapshotconfig": 3,
    "verifier": 3,
    "source": 3,
    "ocilayout": 3,
    "client": 3,
    "remembering": 3,
    "registry": 3,
    "lookahead": 3,
    "tagtables": 3,
    "documents": 4,
    "referrers": 4,
    "repositories": 4,
    "listings": 4,
    "staging": 4,
    "timers": 1,
    "downloads": 4,
    "places": 2,
    "passing": 4,
    "openblob": 4,
    "blobs": 4,
    "layoutblobs": 4,
    "samples": 4,
    "assembly": 5,
    "node": 5,
    "generated": 5,
    "views": 5,
    "rootfs": 5,
    "manifestnodes": 5,
    "nodes": 5,
    "tree": 5,
    "status": 5,
    "metrics": 6,
    "vfs": 6,
    "files": 7,
    "prefetch": 7,
    "operations": 7,
    "cli": 8,
    "__main__": 9,
}
"""The rank of every top-level module or subpackage: `a` may import `b` if b's rank is not higher.
Within one rank, and within a subpackage, imports are free so long as they form no cycle."""

HOMES = {
    "requests": {"transport"},
    "urllib3": {"transport"},
    "mfusepy": {"operations"},
    "fuse": {"operations"},
    "errno": {"operations", "cachedir", "blobcache"},
    "os.environ": {"cli"},
    "os.getenv": {"cli"},
    "click": {"cli"},
    "subprocess": {"auth", "cli"},
    "prometheus_client": {"metrics"},
}
"""What only these modules may touch."""


@dataclass(frozen=True)
class Module:
    """A module of the package: `name` is relative to it, as in `registry.server`."""

    name: str
    tree: ast.Module

    @property
    def part(self) -> str:
        """The top-level module or subpackage it belongs to."""
        return self.name.partition(".")[0]


def modules() -> Iterator[Module]:
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield Module(name, ast.parse(path.read_bytes(), str(path)))


MODULES = list(modules())
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


def test_every_module_has_a_rank() -> None:
    assert {module.part for module in MODULES} - RANKS.keys() == set()


@each_module
def test_imports_point_down(module: Module) -> None:
    parts = {inner(name).partition(".")[0] for name in imported(module.tree)} & RANKS.keys()
    assert {part for part in parts if RANKS[part] > RANKS.get(module.part, -1)} == set()


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
        if (name == foreign or name.startswith(f"{foreign}.")) and module.part not in homes
    }
    assert strays == set()


@pytest.mark.parametrize("part", ["registry", "samples", "errors", "names", "config", "manifests"])
def test_the_ground_stands_on_the_standard_library_alone(part: str) -> None:
    outside = {
        name
        for module in MODULES
        if module.part == part
        for name in imported(module.tree)
        if name.partition(".")[0] not in {*sys.stdlib_module_names, "epochfs"}
    }
    assert outside == set()
