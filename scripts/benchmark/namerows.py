"""Rows: listings, tags, and getting a mount at all. Limits, not races: nobody else offers these.

Requests are counted in the registry's own access log.
"""

from __future__ import annotations

import sys
from pathlib import Path

from scripts.benchmark import mounts, origins
from scripts.benchmark.content import numbered, push_repositories
from scripts.benchmark.lab import Lab
from scripts.benchmark.mounts import Mount
from scripts.benchmark.origins import Registry, Request
from scripts.benchmark.programs import Failed, timed
from scripts.benchmark.rows import Sample, Samples, at_most, repeat, row

_REGISTRY = "docker-registry"
_LISTINGS = ("/v2/_catalog", "/v2/app/tags/list")
_LONG_TTL = ("--metadata-ttl", "10m")
"""So that no slow machine reaches the end of the TTL between the first time and the second."""

_MANY = 1000
_TREE_REPOSITORIES, _TREE_TAGS = 200, 10
_HUGE_TAGS = 200_000


def _repositories(lab: Lab) -> Registry:
    """Start a registry of `_MANY` repositories, each with one tag."""
    running = lab.start_registry("repositories")
    push_repositories(running.url, numbered("app", _MANY), ["latest"])
    return running


def _app_of_many_tags(lab: Lab) -> Registry:
    """Start a registry whose one repository, `app`, has `_MANY` tags."""
    running = lab.start_registry("tags")
    push_repositories(running.url, ["app"], numbered("v", _MANY))
    return running


def _tree(lab: Lab) -> Registry:
    """Start a registry of `_TREE_REPOSITORIES` with `_TREE_TAGS` each."""
    running = lab.start_registry("tree")
    push_repositories(running.url, numbered("app", _TREE_REPOSITORIES), numbered("v", _TREE_TAGS))
    return running


@row("ls-root", f"ls, {_MANY} repositories, cold", at_most(1, "s"), needs=(_REGISTRY,))
def _ls_root(lab: Lab) -> Samples:
    registry = lab.once(_repositories)

    def ours() -> float:
        with lab.epochfs(registry.url) as mount:
            return _timed_listing(mount.path, _MANY, "ls")

    return repeat(ours)


@row(
    "ls-tags",
    f"ls | cat, {_MANY} tags, cold: beside listings",
    at_most(0, "requests"),
    needs=(_REGISTRY,),
)
def _ls_tags(lab: Lab) -> Samples:
    registry = lab.once(_app_of_many_tags)

    def ours() -> float:
        with lab.epochfs(registry.url) as mount:
            asked = _asked_by(registry, "sh", "-c", 'ls "$0" | cat', _tags(mount))
        return sum(request.path.partition("?")[0] not in _LISTINGS for request in asked)

    return repeat(ours)


@row("ls-l-tags", f"ls -l, {_MANY} tags, cold", at_most(3, "s"), needs=(_REGISTRY,))
def _ls_l_tags(lab: Lab) -> Samples:
    registry = lab.once(_app_of_many_tags)

    def ours() -> float:
        with lab.epochfs(registry.url) as mount:
            return _timed_listing(_tags(mount), _MANY, "ls", "-l")

    return repeat(ours)


@row(
    "ls-l-tags-again",
    f"ls -l, {_MANY} tags, again",
    at_most(0, "requests"),
    needs=(_REGISTRY,),
)
def _ls_l_tags_again(lab: Lab) -> Samples:
    registry = lab.once(_app_of_many_tags)

    def ours() -> float:
        with lab.epochfs(registry.url, *_LONG_TTL) as mount:
            timed("ls", "-l", _tags(mount))
            return len(_asked_by(registry, "ls", "-l", _tags(mount)))

    return repeat(ours)


@row(
    "find-again",
    f"find, {_TREE_REPOSITORIES} x {_TREE_TAGS} tags, again",
    at_most(0, "requests"),
    needs=(_REGISTRY,),
)
def _find_again(lab: Lab) -> Samples:
    registry = lab.once(_tree)

    def ours() -> float:
        with lab.epochfs(registry.url, *_LONG_TTL) as mount:
            timed("find", mount.path)
            return len(_asked_by(registry, "find", mount.path))

    return repeat(ours)


@row("tags-memory", f"ls -l, {_HUGE_TAGS} tags: beside their names", at_most(400, "B/tag"))
def _tags_memory(lab: Lab) -> Samples:
    """All that the process grows by at its peak, libfuse's own node of each link counted in.

    Measured once, whatever the number of runs: it takes minutes, and does not vary.
    """
    names = sum(map(sys.getsizeof, numbered("v", _HUGE_TAGS)))
    url = lab.keep(origins.names(lab.make_directory("huge"), 1, _HUGE_TAGS))
    with lab.epochfs(url, "--metadata-ttl", "60m") as mount:
        timed("ls", mount.path)
        before = mount.peak_memory
        timed("ls", "-l", mount.path / "app0" / "tags")
        grown = mount.peak_memory - before
    yield Sample((grown - names) // _HUGE_TAGS)


@row("mount", "epochfs mount until ls answers", at_most(1, "s"), needs=(_REGISTRY,))
def _mount(lab: Lab) -> Samples:
    registry = lab.registry

    def ours() -> float:
        with lab.fresh_directory() as directory:
            path = directory / "mount"
            path.mkdir()
            return mounts.use_once(path, directory / "cache", registry.url)

    return repeat(ours)


@row("version", "epochfs --version", at_most(0.3, "s"))
def _version(lab: Lab) -> Samples:
    return repeat(lambda: timed("epochfs", "--version"))


def _tags(mount: Mount) -> Path:
    return mount.path / "app" / "tags"


def _timed_listing(directory: Path, count: int, *command: str) -> float:
    """Return the seconds a command takes to list a directory, which must have `count` entries."""
    seconds = timed(*command, directory)
    found = sum(1 for _ in directory.iterdir())
    if found != count:
        raise Failed(f"{directory.name} has {found} entries in place of {count}")
    return seconds


def _asked_by(registry: Registry, program: str, *arguments: str | Path) -> list[Request]:
    """Return what the registry was asked while a command ran, and shortly after."""
    mark = registry.mark()
    timed(program, *arguments)
    return registry.requests_since(mark)


ROWS = (
    _ls_root,
    _ls_tags,
    _ls_l_tags,
    _ls_l_tags_again,
    _find_again,
    _tags_memory,
    _mount,
    _version,
)
