"""`epochfs demo`: a registry in memory with sample images, mounted by a process of its own."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

import click

from epochfs.cli import mountpoint, process, system
from epochfs.cli.option_kinds import completed_as
from epochfs.demo import samples
from epochfs.demo.registry import EmbeddedRegistry
from epochfs.errors import MountFailure, printable
from epochfs.fuse import mountinfo

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@click.command("demo")
@click.argument(
    "directory", metavar="[MOUNTPOINT]", required=False, shell_complete=completed_as("dir")
)
def command(directory: str | None) -> None:
    """Mount a small sample registry.

    MOUNTPOINT defaults to a new temporary directory. Runs until Ctrl-C, then unmounts and leaves
    nothing behind.
    """
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="epochfs-demo-")))
        path = mountpoint.resolve(directory or scratch / "mnt")
        if directory is None:
            path.mkdir()
        mountpoint.prepare(path)
        system.require_fuse(allow_other=False)
        # Blocked until `_stay` takes them, so that Ctrl-C leaves nothing half made.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        registry = stack.enter_context(EmbeddedRegistry())
        samples.load(registry)
        _serve(registry.url, path, scratch)


def _serve(url: str, path: Path, scratch: Path) -> None:
    before = path.stat().st_dev
    command = [sys.executable, "-m", "epochfs", "mount", "--foreground", "--log-level", "warning"]
    command += ["--cache-dir", str(scratch / "cache"), "--hosts-dir", str(scratch)]
    # The user's own server, token and certificates do not concern the demo.
    environment = {name: os.environ[name] for name in os.environ if not name.startswith("EPOCH_")}
    # In a session of its own, Ctrl-C reaches it only through us.
    child = subprocess.Popen(
        [*command, url, str(path)],
        stdin=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    )
    try:
        mountpoint.wait_for_mount(path, before, lambda: child.poll() is None)
        shown = shlex.quote(str(path))
        click.echo(
            f"registry  {url}\n"
            f"mounted   {path}\n"
            f"try       ls {shown}/library/hello/tags\n"
            f"          cat {shown}/library/hello/tags/latest/manifest.json\n"
            "Ctrl-C unmounts it."
        )
        _stay(child)
    finally:
        _stop(child, path)


def _stay(child: subprocess.Popen[bytes]) -> None:
    """Return on a signal, or once the mount has been unmounted."""
    while signal.sigtimedwait(_SIGNALS, 0.2) is None:
        if child.poll() is not None:
            if child.returncode != 0:
                raise MountFailure(f"the mount's process died (exit code {child.returncode})")
            return


def _stop(child: subprocess.Popen[bytes], path: Path) -> None:
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(process.GRACE + 1)
    child.kill()
    child.wait()
    mountpoint.clear_dead(path)
    if mountinfo.ours_on(path):
        raise MountFailure(f"'{printable(path)}' is still mounted: see 'epochfs umount'")
