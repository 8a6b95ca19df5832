"""The mount point: checked before a mount, cleaned of dead mounts, and unmounted.

What is mounted is read from `mountinfo`, which never waits for a file system. A `stat` of a mount
whose server hangs would wait for ever, so calls of that kind have a time limit here.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import click

from epochfs.cli.option_kinds import completed_as
from epochfs.errors import MountFailure, printable
from epochfs.fuse.mountinfo import FILE_SYSTEM_TYPE, mounted_on, ours_on

_PROC = Path("/proc")
_FUSE_DEVICE = os.makedev(10, 229)
"""The device number of /dev/fuse (the kernel's devices.txt)."""

START_SECONDS = 15.0
"""How long starting may take beyond the registry's own time limit."""

_POLL = 0.01
_ANSWER_SECONDS = 5.0
_GONE_SECONDS = 10.0
_WRITE_SECONDS = 120.0
_MOST_REASONS = 5
_T = TypeVar("_T")


def descriptor(path: Path) -> int | None:
    """Return N for /dev/fd/N: somebody else has mounted, and handed on what serves the mount."""
    found = re.fullmatch(r"/dev/fd/([0-9]+)", str(path))
    return int(found[1]) if found else None


def resolve(text: str | Path) -> Path:
    """Return the absolute path, without links, that mountinfo shows for a directory.

    The last component is resolved only if nothing is mounted there: a dead or hanging mount must
    still have a name, so that it can be cleaned up.
    """
    if descriptor(Path(text)) is not None:
        return Path(text)
    try:
        absolute = Path(text).absolute()
        path = absolute.parent.resolve() / absolute.name if absolute.name != ".." else absolute
        return path if mounted_on(path) else path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise MountFailure(f"mount point '{printable(text)}': {printable(error)}") from None


def prepare(path: Path) -> None:
    """Make sure `path` can be mounted on, and remove what a killed process left mounted there.

    Raises MountFailure, which says what is wrong and what to do.
    """
    number = descriptor(path)
    if number is not None:
        _require_fuse_device(path, number)
        return
    clear_dead(path)
    mount = ours_on(path)
    shown = f"mount point '{printable(path)}'"
    if mount:
        raise MountFailure(
            f"{shown} is already mounted: it shows {printable(mount.source)}; "
            f"unmount that first (epochfs umount {shlex.quote(str(path))}) or choose another"
        )
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            raise MountFailure(f"{shown} is not a directory: choose an empty directory")
        first = next(path.iterdir(), None)
    except FileNotFoundError:
        raise MountFailure(
            f"{shown} does not exist: create it (mkdir -p {shlex.quote(str(path))})"
        ) from None
    except OSError as error:
        raise MountFailure(f"{shown}: {error.strerror}: choose a directory of yours") from None
    if first is not None:
        raise MountFailure(
            f"{shown} is not empty (it has '{printable(first.name)}'): choose an empty directory"
        )
    if not _is_permitted(path, status):
        raise MountFailure(
            f"{shown} is not yours: mount on a directory that you own and can write to, or as root"
        )


def _require_fuse_device(path: Path, number: int) -> None:
    """Raise MountFailure unless a descriptor is of /dev/fuse."""
    try:
        found = os.fstat(number)
    except OSError:
        found = None
    if found is None or not stat.S_ISCHR(found.st_mode) or found.st_rdev != _FUSE_DEVICE:
        raise MountFailure(
            f"{path} is no open descriptor of /dev/fuse: whoever starts this must open /dev/fuse, "
            "mount with fd=N, and let this process inherit the descriptor"
        )


def _is_permitted(path: Path, status: os.stat_result) -> bool:
    """Whether fusermount lets this user mount here: writable, and owned if sticky."""
    if os.geteuid() == 0:
        return True
    if status.st_mode & stat.S_ISVTX and status.st_uid != os.geteuid():
        return False
    return os.access(path, os.W_OK | os.X_OK)


def clear_dead(path: Path) -> None:
    """Unmount what killed epochfs processes left on `path`, but no mount that answers."""
    while ours_on(path) and not _answers(path):
        problem = unmount(path, lazy=True)
        if problem and mounted_on(path):
            raise MountFailure(
                f"'{printable(path)}' holds a dead mount that cannot be removed: {problem}; "
                f"try as its owner or as root: umount -l {shlex.quote(str(path))}"
            )


def _answers(path: Path) -> bool:
    """Whether the mount on `path` has a live server; raises MountFailure if it hangs.

    Calls statvfs: the kernel answers stat from its cache for seconds after the server has died.
    """
    try:
        _within(_ANSWER_SECONDS, path, lambda: os.statvfs(path))
    except OSError:
        return False
    return True


def _within(limit: float, path: Path, ask: Callable[[], _T]) -> _T:
    """Return the result of `ask`; raises its OSError, or MountFailure after `limit` seconds."""
    answers: list[_T] = []
    errors: list[OSError] = []

    def run() -> None:
        try:
            answers.append(ask())
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(limit)
    if errors:
        raise errors[0]
    if not answers:
        raise MountFailure(
            f"'{printable(path)}' holds a mount that does not answer: stop its process, "
            f"or unmount it (fusermount3 -uz {shlex.quote(str(path))})"
        )
    return answers[0]


def wait_for_mount(
    path: Path, before: int, server_is_alive: Callable[[], bool], limit: float = START_SECONDS
) -> None:
    """Return once `path` is on another device than `before`; raises MountFailure on failure."""
    deadline = time.monotonic() + limit
    while server_is_alive() and time.monotonic() < deadline:
        with suppress(OSError):
            if _within(limit, path, lambda: path.stat().st_dev) != before and _answers(path):
                return
        time.sleep(_POLL)
    reason = "does not answer" if server_is_alive() else "ended at once"
    raise MountFailure(f"the mount on '{printable(path)}' {reason}: see its log (--log-file)")


def unmount(path: Path, *, lazy: bool = False) -> str:
    """Unmount the topmost mount on `path`; return "", or what the tool said was wrong.

    `lazy` also detaches a mount that is in use, or whose server is dead.
    """
    fusermount = shutil.which("fusermount3") or shutil.which("fusermount")
    command = [fusermount, "-u"] if fusermount else ["umount"]
    if lazy:
        command.append("-z" if fusermount else "-l")
    try:
        done = subprocess.run(
            [*command, str(path)],
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return printable(error)
    said = done.stderr.decode("utf-8", "replace").strip() or f"exit code {done.returncode}"
    return printable(said) if done.returncode else ""


def holders(path: Path) -> list[str]:
    """Return who keeps a mount busy, as `name (pid N)`, as far as this user may know."""
    found = []
    for process in _PROC.iterdir():
        is_other = process.name.isdigit() and int(process.name) != os.getpid()
        if is_other and any(link.is_relative_to(path) for link in _links(process)):
            with suppress(OSError):
                name = (process / "comm").read_text(errors="replace").strip()
                found.append(f"{printable(name, 40)} (pid {process.name})")
    return found


def _links(process: Path) -> Iterator[Path]:
    """Yield the files that a process has open, runs or works in, without touching them."""
    links = [process / "cwd", process / "root", process / "exe"]
    with suppress(OSError):
        links += (process / "fd").iterdir()
    for link in links:
        with suppress(OSError):
            yield link.readlink()


@click.command("umount")
@click.argument("directory", metavar="MOUNTPOINT", shell_complete=completed_as("dir"))
@click.option("--force", is_flag=True, help="Unmount even if data that is not written yet is lost.")
def umount_command(directory: str, force: bool) -> None:
    """Unmount the registry that is mounted on MOUNTPOINT.

    Where something was written and is not in the registry, that is tried once more; if it cannot
    be, this says why and leaves the mount as it is.
    """
    path = resolve(directory)
    os.chdir("/")  # for `umount .`, where we would keep the mount busy ourselves
    shown = f"'{printable(path)}'"
    mount = mounted_on(path)
    if mount is None:
        raise MountFailure(f"nothing is mounted on {shown}: see 'findmnt -t {FILE_SYSTEM_TYPE}'")
    if not mount.is_ours:
        kind = printable(mount.file_system)
        raise MountFailure(f"{shown} is not an epochfs mount but {kind}: use umount(8)")
    if not (mount.read_only or force):
        _require_written(path)
    problem = unmount(path)
    if problem:
        clear_dead(path)
    deadline = time.monotonic() + _GONE_SECONDS
    while mounted_on(path) == mount:
        if problem:
            raise MountFailure(_explain_use(path, problem))
        if time.monotonic() > deadline:
            raise MountFailure(f"{shown} is still mounted {_GONE_SECONDS:.0f} s after unmounting")
        time.sleep(0.02)


def _require_written(path: Path) -> None:
    """Raise MountFailure if a mount holds what is not in the registry; a dead one does not."""
    try:
        reasons = _within(_WRITE_SECONDS, path, lambda: _unwritten(path))
    except OSError:
        return
    if not reasons:
        return
    for reason in reasons[:_MOST_REASONS]:
        click.echo(f"epochfs: {printable(reason, 1000)}", err=True)
    raise MountFailure(
        f"'{printable(path)}' stays mounted, as {len(reasons)} of what was written to it "
        f"{'is' if len(reasons) == 1 else 'are'} not in the registry: write what is missing, "
        f"or lose it (epochfs umount --force {shlex.quote(str(path))})"
    )


def _unwritten(path: Path) -> list[str]:
    """Return why what is not in the registry is not there, after one more try to write it."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):  # EBUSY if something waits even then
        os.fsync(directory)
    os.close(directory)
    status = json.loads((path / ".epochfs/status.json").read_bytes())
    reasons: list[str] = status["writing"]["reasons"]
    return reasons


def _explain_use(path: Path, problem: str) -> str:
    shown, lsof = f"'{printable(path)}'", f"lsof +f -- {shlex.quote(str(path))}"
    if found := holders(path):
        return (
            f"{shown} is in use by {', '.join(found)}: end them, or leave the directory, "
            f"and try again ('{lsof}' shows what they have open)"
        )
    return f"cannot unmount {shown}: {problem}; 'sudo {lsof}' shows who uses it"
