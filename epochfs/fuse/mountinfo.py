"""The mounts in /proc/self/mountinfo (proc(5)), read without waiting for any file system."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_SYSTEM_TYPE = "fuse.epochfs"
"""What mountinfo calls our mounts: `fuse.` and the subtype given to FUSE."""

_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo.

    `device` is `major:minor`; `source` is the registry's URL where the mount is ours.
    """

    number: int
    device: str
    path: Path
    file_system: str
    source: str
    read_only: bool

    @property
    def is_ours(self) -> bool:
        """Whether epochfs made it."""
        return self.file_system == FILE_SYSTEM_TYPE


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """Yield the mounts of a mountinfo file in order: the last one on a path is on top."""
    for line in text.split("\n"):  # not splitlines(), which cuts at characters of paths too
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            number, path = int(fields[0]), Path(_unescape(fields[4]))
            read_only = "ro" in fields[5].split(",")
            yield Mount(number, fields[2], path, tail[0], _unescape(tail[1]), read_only)


def _unescape(field: str) -> str:
    """Undo mountinfo's escapes: space, tab, newline and backslash are written in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def mounted_on(path: Path) -> Mount | None:
    """Return the topmost mount whose root is exactly `path`, or None."""
    here = [mount for mount in _mounts() if mount.path == path]
    return here[-1] if here else None


def ours_on(path: Path) -> Mount | None:
    """Return the topmost mount on `path` if it is ours, or None."""
    mount = mounted_on(path)
    return mount if mount is not None and mount.is_ours else None


def mounted_from(device: str) -> Mount | None:
    """Return our first mount of a device, wherever it is by now, or None."""
    ours = (mount for mount in _mounts() if mount.is_ours)
    return next((mount for mount in ours if mount.device == device), None)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path`, "" if unknown.

    It is unknown on Btrfs, where files of subvolumes have another device than mountinfo shows.
    """
    try:
        number = path.stat().st_dev
    except OSError:
        return ""
    device = f"{os.major(number)}:{os.minor(number)}"
    return next((mount.file_system for mount in _mounts() if mount.device == device), "")


def _mounts() -> Iterator[Mount]:
    # As bytes: the kernel does not escape carriage returns, which text mode turns into newlines.
    return parse_mountinfo(os.fsdecode(_MOUNTINFO.read_bytes()))
