"""Rows: walks through a registry of many repositories, and through a directory of very many files.

A warm walk finds in memory all that it asks for, on both sides; what the kernel was told of it is
no longer believed, so that each walk goes to the mount. rclone serves a local directory with the
same entries, as files in place of links, which it would not show.
"""

from __future__ import annotations

import time
from pathlib import Path

from scripts.benchmark.content import Blob, numbered, push_repositories
from scripts.benchmark.images import DIRECTORY, push_many_files
from scripts.benchmark.lab import Lab
from scripts.benchmark.origins import Registry
from scripts.benchmark.programs import Argument, Failed, need_modules, timed
from scripts.benchmark.rows import FEW_RUNS, Samples, at_most, race, repeat, row, time_at_most

_REGISTRY = "docker-registry"
_RCLONE = "rclone mount of as many entries"
_REPOSITORIES, _TAGS = 500, 5
_FAR_TAGS = 400
_FILES = 100_000

_WHAT = f"{_REPOSITORIES} x {_TAGS} tags"
_LONG_TTL = ("--metadata-ttl", "10m")
_REST_SECONDS = 6.0
"""After which neither mount's kernel believes what it was told."""

_LEAST_REQUESTS = 1 + _REPOSITORIES * (1 + _TAGS)
"""The catalog, the tags of each repository, and what each tag names."""

_LINK_RATE = 125_000_000
"""Bytes a second of a link that is not slow."""

_ROUND_TRIP = 0.020

_CAT_ALL = 'cat "$0"/*/manifest.json'


def _walked(lab: Lab) -> Registry:
    """Start a registry of `_REPOSITORIES` with `_TAGS` each."""
    running = lab.start_registry("walk")
    push_repositories(running.url, numbered("repo", _REPOSITORIES), numbered("v", _TAGS))
    return running


def _far_tags(lab: Lab) -> str:
    """Start a far registry whose one repository, `app`, has `_FAR_TAGS`; return its base URL."""
    running = lab.start_registry("far")
    push_repositories(running.url, ["app"], numbered("v", _FAR_TAGS))
    return lab.link("far-link", running, _LINK_RATE, _ROUND_TRIP)


def _wide_layer(lab: Lab) -> Blob:
    """Push an image of one gzip layer, whose one directory has `_FILES`."""
    return push_many_files(lab.registry.url, "bench/wide", lab.served / "wide", _FILES)


@row("find-warm", f"find, {_WHAT}, warm", time_at_most(0.5), _RCLONE, (_REGISTRY, "rclone"))
def _find_warm(lab: Lab) -> Samples:
    return _warm_walks(lab, "find")


@row("ls-lr-warm", f"ls -lR, {_WHAT}, warm", time_at_most(0.5), _RCLONE, (_REGISTRY, "rclone"))
def _ls_warm(lab: Lab) -> Samples:
    return _warm_walks(lab, "ls", "-lR")


def _warm_walks(lab: Lab, *command: str) -> Samples:
    registry = lab.once(_walked)
    with lab.fresh_directory() as directory, lab.epochfs(registry.url, *_LONG_TTL) as mount:
        _copy_names(mount.path, directory)
        with lab.rclone_of(directory, "--dir-cache-time", "1h", "--read-only") as theirs:
            if _entries(theirs) != _entries(mount.path):
                raise Failed("rclone does not show as many entries")
            yield from race(
                lambda: _rested(*command, mount.path), lambda: _rested(*command, theirs)
            )


def _copy_names(source: Path, target: Path) -> None:
    """Make a directory for each one in `source`, and an empty file for all else."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_dir() and not path.is_symlink():
            copy.mkdir()
        else:
            copy.touch()


def _entries(directory: Path) -> int:
    return sum(1 for _ in directory.rglob("*"))


def _rested(program: str, *arguments: Argument) -> float:
    time.sleep(_REST_SECONDS)
    return timed(program, *arguments)


@row(
    "find-cold",
    f"find, {_WHAT}, cold",
    at_most(_LEAST_REQUESTS + 10, "requests"),
    needs=(_REGISTRY,),
    runs=FEW_RUNS,
)
def _find_cold(lab: Lab) -> Samples:
    registry = lab.once(_walked)

    def ours() -> float:
        mark = registry.mark()
        with lab.epochfs(registry.url) as mount:
            timed("find", mount.path)
        return len(registry.requests_since(mark))

    return repeat(ours)


@row(
    "cat-tags",
    f"cat tags/*/manifest.json, {_FAR_TAGS} tags cold, 20 ms",
    time_at_most(1.2),
    "ls -l of the same tags",
    (_REGISTRY,),
)
def _cat_tags(lab: Lab) -> Samples:
    url = lab.once(_far_tags)

    def cat() -> float:
        with lab.epochfs(url) as mount:
            return timed("sh", "-c", _CAT_ALL, mount.path / "app" / "tags")

    def ls() -> float:
        with lab.epochfs(url) as mount:
            return timed("ls", "-l", mount.path / "app" / "tags")

    return race(cat, ls)


@row(
    "ls-rootfs",
    f"ls -l, {_FILES} files of a rootfs/, by digest, after ls",
    at_most(5, "s"),
    needs=(_REGISTRY,),
    runs=FEW_RUNS,
)
def _ls_rootfs(lab: Lab) -> Samples:
    """List what has been listed by name, so that the layer is here, and its index made.

    By the digest of the image: the kernel reads a tag anew for each file that is looked up by it.
    """
    need_modules("indexed_gzip")
    layer = lab.once(_wide_layer)

    def ours() -> float:
        with lab.epochfs(lab.registry.url) as mount:
            directory = mount.rootfs(layer).resolve() / DIRECTORY
            found = sum(1 for _ in directory.iterdir())
            if found != _FILES:
                raise Failed(f"{DIRECTORY} has {found} files in place of {_FILES}")
            return timed("ls", "-l", directory)

    return repeat(ours)


ROWS = (_find_warm, _ls_warm, _find_cold, _cat_tags, _ls_rootfs)
