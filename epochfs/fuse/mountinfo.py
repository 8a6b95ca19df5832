"""The mounts of /proc/self/mountinfo (proc(5)), which never waits for a file system."""

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

    @property
    def is_ours(self) -> bool:
        """Whether epochfs made it."""
        return self.file_system == FILE_SYSTEM_TYPE


def parse_mountinfo(text: str) -> Iterator[Mount]:
    """Yield the mounts of a mountinfo file in their order: the last one on a path is on top."""
    for line in text.split("\n"):  # and at nothing else: paths may hold what splitlines() cuts at
        before, separator, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(tail) >= 2:
            number, path = int(fields[0]), Path(_unescape(fields[4]))
            yield Mount(number, fields[2], path, tail[0], _unescape(tail[1]))


def _unescape(field: str) -> str:
    """Undo mountinfo's escapes: space, tab, newline and backslash are written in octal."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def mounted_on(path: Path) -> Mount | None:
    """Return the topmost mount whose root is exactly `path`, or None."""
    here = [mount for mount in _mounts() if mount.path == path]
    return here[-1] if here else None


def mounted_from(device: str) -> Mount | None:
    """Return our mount of a device, the first that was made, wherever it is by now; or None."""
    ours = (mount for mount in _mounts() if mount.is_ours)
    return next((mount for mount in ours if mount.device == device), None)


def file_system_of(path: Path) -> str:
    """Return the type of the file system that holds `path`; empty where that cannot be told.

    So it is with Btrfs, whose subvolumes show files another device than mountinfo does.
    """
    try:
        number = path.stat().st_dev
    except OSError:
        return ""
    device = f"{os.major(number)}:{os.minor(number)}"
    return next((mount.file_system for mount in _mounts() if mount.device == device), "")


def _mounts() -> Iterator[Mount]:
    # As bytes: the kernel writes a carriage return as it is, and text mode makes a newline of it.
    return parse_mountinfo(os.fsdecode(_MOUNTINFO.read_bytes()))
