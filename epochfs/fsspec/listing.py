"""Paths and directories described as fsspec's dictionaries, and the key of their content."""

from __future__ import annotations

import posixpath
import stat
from functools import partial
from typing import TYPE_CHECKING, Any

from fsspec.utils import tokenize

from epochfs.errors import EpochfsError, InvalidName, NotFound
from epochfs.fsspec.links import Place, followed, leads_to
from epochfs.oci.names import Digest

if TYPE_CHECKING:
    from epochfs.vfs.directories import DirectoryEntry
    from epochfs.vfs.filesystem import FileSystem

Info = dict[str, Any]
"""fsspec's: `name`, `size` in bytes, `type`; and ours, see `RegistryFileSystem.info`."""

_TYPES = {stat.S_IFDIR: "directory", stat.S_IFREG: "file", stat.S_IFLNK: "link"}


def info(filesystem: FileSystem, path: str) -> Info:
    """Describe what a path leads to. Raises EpochfsError, or OSError (ELOOP)."""
    place = followed(filesystem, path)
    found = _described(filesystem, path, place)
    if place.path != path:
        with_link = unfollowed(filesystem, path)
        found["islink"] = stat.S_ISLNK(with_link.attr.mode)
        if found["islink"]:
            found["destination"] = filesystem.readlink(with_link.path)
    return found


def unfollowed(filesystem: FileSystem, path: str) -> Place:
    """Return what is at a path, be it a link; links above it are followed."""
    try:
        return Place(path, filesystem.getattr(path))
    except NotFound:
        above = followed(filesystem, posixpath.dirname(path)).path
        real = posixpath.join(above, posixpath.basename(path))
        if real == path:
            raise
        return Place(real, filesystem.getattr(real))


def ls(filesystem: FileSystem, path: str, *, detail: bool) -> list[Any]:
    """List a directory, or one file, by the names it has below `path`; with `detail`, described.

    Raises EpochfsError, also where a listing is incomplete.
    """
    place = followed(filesystem, path)
    if not stat.S_ISDIR(place.attr.mode):
        return [info(filesystem, path) if detail else path]
    entries = list(filesystem.listdir(place.path))
    names = [posixpath.join(path, entry.name) for entry in entries]
    if not detail:
        return names
    described = partial(_entry, filesystem, place.path)
    return list(map(described, entries, names))


def sorted_out(path: str, found: list[Info]) -> tuple[dict[str, Info], dict[str, Info]]:
    """Return what a listing of a path has, by name: directories, and everything else.

    A file that is listed by its own path has the name "", as fsspec wants.
    """
    dirs: dict[str, Info] = {}
    files: dict[str, Info] = {}
    for one in found:
        if one["name"] == path:
            files[""] = one
        else:
            kind = dirs if one["type"] == "directory" else files
            kind[posixpath.basename(one["name"])] = one
    return dirs, files


def unique_key(filesystem: FileSystem, path: str, platform: str) -> str:
    """Return what stays the same as long as the bytes at a path do, and no longer."""
    place = followed(filesystem, path)
    content = filesystem.content(place.path)
    if content is not None:
        return str(content.digest)
    if any(_digest(name) for name in place.path.split("/")):
        return str(tokenize(place.path, platform))
    return str(tokenize(info(filesystem, path)))


def _entry(filesystem: FileSystem, directory: str, entry: DirectoryEntry, name: str) -> Info:
    """Describe an entry of a directory. Directories are not looked into, and tags only resolved."""
    real = posixpath.join(directory, entry.name)
    if stat.S_ISDIR(entry.mode):
        return _directory(name)
    if not stat.S_ISLNK(entry.mode):
        return _described(filesystem, name, Place(real, filesystem.getattr(real)))
    try:
        target = filesystem.readlink(real)
        there = leads_to(real, target)
        if _kind(filesystem, there) == stat.S_IFDIR:
            found = _directory(name)
            digest = _digest(posixpath.basename(there))
            if digest is not None:
                found["digest"] = str(digest)
        else:
            found = _described(filesystem, name, followed(filesystem, there))
    except (EpochfsError, OSError):
        return {"name": name, "size": 0, "type": "link", "islink": True}
    return {**found, "islink": True, "destination": target}


def _kind(filesystem: FileSystem, path: str) -> int:
    try:
        return filesystem.kind(path)
    except NotFound:
        return 0


def _directory(name: str) -> Info:
    return {"name": name, "size": 0, "type": "directory", "islink": False}


def _described(filesystem: FileSystem, name: str, place: Place) -> Info:
    """Describe a place that is no link, under a name."""
    attr = place.attr
    kind = stat.S_IFMT(attr.mode)
    found: Info = {
        "name": name,
        "size": attr.size if kind == stat.S_IFREG else 0,
        "type": _TYPES.get(kind, "other"),
        "islink": False,
        "mode": attr.mode,
        "mtime": attr.time_ns / 1e9,
    }
    content = filesystem.content(place.path)
    if content is not None:
        found["digest"] = str(content.digest)
        if content.media_type:
            found["mediaType"] = content.media_type
    return found


def _digest(name: str) -> Digest | None:
    try:
        return Digest.parse(name)
    except InvalidName:
        return None
