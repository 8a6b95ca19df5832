"""`epochfs umount`: take a mount away, or say who still uses it."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path

import click

from epochfs.cli import mountpoint
from epochfs.cli.options import completed_as
from epochfs.errors import MountFailure, printable
from epochfs.fuse import mountinfo

_GONE_SECONDS = 10.0


@click.command("umount")
@click.argument("directory", metavar="MOUNTPOINT", shell_complete=completed_as("dir"))
def command(directory: str) -> None:
    """Unmount the registry that is mounted on MOUNTPOINT."""
    path = mountpoint.resolve(directory)
    os.chdir("/")  # `umount .`: we would keep the mount busy ourselves
    shown = f"'{printable(path)}'"
    mount = mountinfo.mounted_on(path)
    if mount is None:
        raise MountFailure(f"nothing is mounted on {shown}: see 'findmnt -t fuse.epochfs'")
    if not mount.is_ours:
        kind = printable(mount.file_system)
        raise MountFailure(f"{shown} is not an epochfs mount but {kind}: use umount(8)")
    problem = mountpoint.unmount(path)
    if problem:
        mountpoint.clear_dead(path)
    deadline = time.monotonic() + _GONE_SECONDS
    while mountinfo.mounted_on(path) == mount:
        if problem:
            raise MountFailure(_explain(path, problem, mountpoint.holders(path)))
        if time.monotonic() > deadline:
            raise MountFailure(f"{shown} is still mounted {_GONE_SECONDS:.0f} s after unmounting")
        time.sleep(0.02)


def _explain(path: Path, problem: str, holders: list[str]) -> str:
    shown, lsof = f"'{printable(path)}'", f"lsof +f -- {shlex.quote(str(path))}"
    if holders:
        return (
            f"{shown} is in use by {', '.join(holders)}: end them, or leave the directory, "
            f"and try again ('{lsof}' shows what they have open)"
        )
    return f"cannot unmount {shown}: {problem}; 'sudo {lsof}' shows who uses it"
