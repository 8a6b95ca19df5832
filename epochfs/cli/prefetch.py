"""`epochfs prefetch`: fill the cache before anybody reads."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.core import ParameterSource

from epochfs.cli import logs, mountpoint, shutdown, system
from epochfs.cli.options import completed_as, connection_options, fetching_options, registry_url
from epochfs.cli.progress import LiveLine
from epochfs.cli.transfer import TransferView, shown_size, summary
from epochfs.config import BlobOptions, ListingOptions
from epochfs.errors import CacheFailure, MountFailure, UsageError, printable
from epochfs.fuse.mountinfo import mounted_on
from epochfs.session import opening
from epochfs.session.prefetcher import Failure, Prefetch, Selection
from epochfs.session.settings import Connection, Fetching, FileSystemPlan
from epochfs.vfs.reader import DirectFiles, Files, MountedFiles

_BLOBS_AT_ONCE = 4


@click.command("prefetch")
@click.argument("source", metavar="MOUNTPOINT|URL", shell_complete=completed_as("dir"))
@click.argument("wanted", metavar="[REPO[:TAG|@DIGEST]]...", nargs=-1)
@connection_options
@fetching_options
@click.pass_context
def command(
    context: click.Context,
    source: str,
    wanted: tuple[str, ...],
    connection: Connection,
    fetching: Fetching,
) -> int:
    """Fill the cache before anybody reads.

    Blobs are fetched and verified. REPO stands for all its tags; without any, everything listed is
    fetched. What is there already is skipped, and what an interrupted run has left is completed.

    Through a MOUNTPOINT, the mount's own credentials and cache are used. For a URL, the options
    say what they do in 'mount': give the same. Exit code 1 if anything could not be fetched.
    """
    selections = [Selection.parse(text) for text in wanted]
    logs.configure("warning", None, foreground=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, shutdown.interrupt)
    with contextlib.ExitStack() as closing:
        path = _mount_point(source)
        if path is not None:
            _refuse_options(context)
            files: Files = MountedFiles(path)
        else:
            files = _direct(source, connection, fetching, closing)
        parallel = min(_BLOBS_AT_ONCE, fetching.connections)
        prefetch = closing.enter_context(contextlib.closing(Prefetch(files, parallel)))
        line = closing.enter_context(LiveLine())
        try:
            return _run(prefetch, selections, line)
        except KeyboardInterrupt as interruption:
            code = shutdown.exit_code(interruption)
            line.say("interrupted: what has arrived is kept, the same command goes on from there")
            shutdown.exit_within(shutdown.GRACE, code)
            closing.close()
            # A thread that reads from a mount may wait for a registry that is silent.
            shutdown.exit_now(code)


def _mount_point(source: str) -> Path | None:
    """Return where a mount of ours is; None if `source` is a URL."""
    path = mountpoint.resolve(source)
    mount = mounted_on(path)
    if mount is not None and mount.is_ours:
        return path
    if source.startswith((".", "/")):
        raise MountFailure(
            f"no registry is mounted on '{printable(path)}': see 'findmnt -t fuse.epochfs', "
            "or give a URL"
        )
    return None


def _refuse_options(context: click.Context) -> None:
    """Raise UsageError if an option was given that a mount cannot take any more."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and isinstance(option, click.Option):
            raise UsageError(f"{option.opts[0]} is for a URL: a mount has its own")


def _direct(
    source: str, connection: Connection, fetching: Fetching, closing: contextlib.ExitStack
) -> Files:
    """Return the tree of a registry, read in this process."""
    system.raise_open_files()
    plan = FileSystemPlan(
        url=registry_url(source),
        connection=connection,
        cache=fetching.cache,
        listings=ListingOptions(
            timeout=connection.transport.timeout,
            manifest_limit=fetching.manifest_limit,
            repositories=connection.repositories,
        ),
        blobs=BlobOptions(connection.transport.timeout, connections=fetching.connections),
        offline_ok=False,
    )
    return DirectFiles(opening.open_session(plan, closing).filesystem)


def _run(prefetch: Prefetch, selections: list[Selection], line: LiveLine) -> int:
    """Find the blobs, make sure there is room, fetch them, sum up; return the exit code."""
    view = TransferView(line)
    lost = _follow(prefetch.find(selections), lambda: view.finding(prefetch.progress), line)
    _require_room(prefetch, line)
    failed = _follow(prefetch.fetch(), lambda: view.fetching(prefetch.progress), line)
    click.echo(summary(prefetch.progress) + (f"; failed names: {lost}" if lost else ""))
    return 1 if lost or failed else 0


def _follow(steps: Iterable[Failure | None], show: Callable[[], None], line: LiveLine) -> int:
    """Show what goes on and say what fails; return how much did."""
    failures = 0
    for failure in steps:
        show()
        if failure is not None:
            failures += 1
            line.say(" ".join(str(failure).split()))
    return failures


def _require_room(prefetch: Prefetch, line: LiveLine) -> None:
    """Raise CacheFailure if the cache cannot hold the selection, which it would evict again."""
    room, progress = prefetch.room(), prefetch.progress
    if room is None:
        return
    if progress.size > room.limit:
        raise CacheFailure(
            f"{shown_size(progress.size)} are selected, the cache keeps {shown_size(room.limit)} "
            "at most: give it a larger --cache-size, or select less"
        )
    if progress.left > room.free:
        line.say(
            f"{shown_size(progress.left)} are to be fetched, the cache's disk has "
            f"{shown_size(room.free)} free: something will have to go"
        )
