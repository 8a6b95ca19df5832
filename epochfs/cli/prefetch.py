"""`epochfs prefetch`: download blobs into the cache before they are read."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path

import click
from click.core import ParameterSource

from epochfs.cli import mountpoint, output, process, system
from epochfs.cli.option_kinds import completed_as
from epochfs.cli.options import Fetching, fetching_options, registry_url, source_url
from epochfs.cli.output import ProgressBar, notify, shown_size
from epochfs.config import RegistryUrl
from epochfs.errors import CacheFailure, MountFailure, UsageError, printable
from epochfs.fuse.mountinfo import FILE_SYSTEM_TYPE, ours_on
from epochfs.oci.platforms import Platform
from epochfs.session import SessionSettings
from epochfs.session.opening import open_session
from epochfs.session.prefetcher import Failure, Prefetch, Progress, Selection
from epochfs.vfs.reader import DirectFiles, Files, MountedFiles

_BLOBS_AT_ONCE = 4
_FINDING = "{desc}{bar}"
_FETCHING = "{percentage:.0f} % |{bar}| {done} of {whole}, {speed}/s, {remaining} left{postfix}"


@click.command("prefetch")
@click.argument("source", metavar="MOUNTPOINT|URL", shell_complete=completed_as("dir"))
@click.argument("wanted", metavar="[REPO[:TAG|@DIGEST]]...", nargs=-1)
@fetching_options
@click.pass_context
def command(
    context: click.Context, source: str, wanted: tuple[str, ...], fetching: Fetching
) -> int:
    """Fill the cache before anything is read.

    Blobs are downloaded and verified. REPO stands for all its tags; without any, everything listed
    is downloaded, or what HOST/REPO:TAG as the URL names. What is cached already is skipped, and
    interrupted downloads are resumed.

    A MOUNTPOINT is read with the mount's own credentials and cache. For a URL, the options are
    those of 'mount': give the same. Exit code 1 if anything could not be downloaded.
    """
    selections = [Selection.parse(text) for text in wanted]
    output.configure_logging("warning", None, foreground=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, process.interrupt)
    with contextlib.ExitStack() as closing:
        path = _mount_point(source)
        if path is not None:
            _refuse_options(context)
            files: Files = MountedFiles(path)
        else:
            url = registry_url(source)
            if url.prefix is not None and url.reference is not None:
                if selections:
                    raise UsageError(f"'{url}' names an artifact already: give no REPO with it")
                selections = [Selection.of(url.prefix, url.reference)]
                url = RegistryUrl(url.base)
            files = _direct(url, fetching, closing)
        parallel = min(_BLOBS_AT_ONCE, fetching.blobs.connections)
        prefetch = closing.enter_context(contextlib.closing(Prefetch(files, parallel)))
        try:
            return _run(prefetch, selections)
        except KeyboardInterrupt as interruption:
            code = process.exit_code(interruption)
            notify("interrupted: what has arrived is kept, and the same command resumes")
            process.exit_within(process.GRACE, code)
            closing.close()
            # A thread that reads from a mount may be waiting for a registry that is silent.
            process.exit_now(code)


def _mount_point(source: str) -> Path | None:
    """Return where a mount of ours is; None if `source` is a URL."""
    path = mountpoint.resolve(source)
    mount = ours_on(path)
    if mount:
        if source_url(mount.source).names_artifact:
            raise UsageError(
                f"'{printable(path)}' shows one artifact: prefetch that by its name, "
                f"epochfs prefetch {printable(mount.source)}"
            )
        return path
    if source.startswith((".", "/")):
        raise MountFailure(
            f"no registry is mounted on '{printable(path)}': see 'findmnt -t {FILE_SYSTEM_TYPE}', "
            "or give a URL"
        )
    return None


def _refuse_options(context: click.Context) -> None:
    """Raise UsageError if an option was given that a running mount cannot take."""
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
        if given and isinstance(option, click.Option):
            raise UsageError(f"{option.opts[0]} is for a URL: a mount has its own")


def _direct(url: RegistryUrl, fetching: Fetching, closing: contextlib.ExitStack) -> Files:
    """Return the tree of a registry, opened in this process."""
    system.raise_open_files()
    settings = SessionSettings(
        url=url,
        connection=fetching.connection,
        cache=fetching.cache,
        listings=fetching.listings,
        blobs=fetching.blobs,
        offline_ok=False,
        platform=Platform.of_machine(),
    )
    return DirectFiles(open_session(settings, closing).filesystem)


def _run(prefetch: Prefetch, selections: list[Selection]) -> int:
    """Find the blobs, make sure there is space, download them, sum up; return the exit code."""
    lost = 0
    with ProgressBar(_FINDING) as bar:
        for failure in prefetch.find(selections):
            found = prefetch.progress
            bar.set_description_str(
                f"finding blobs: {found.blobs}, {shown_size(found.size)}", refresh=False
            )
            bar.update(0)
            lost += _reported(failure)
    _require_space(prefetch)
    failed = 0
    with transfer_bar(prefetch.progress) as bar:
        for failure in prefetch.fetch():
            show_transfer(bar, prefetch.progress)
            failed += _reported(failure)
    click.echo(summary(prefetch.progress) + (f"; failed names: {lost}" if lost else ""))
    return 1 if lost or failed else 0


def transfer_bar(start: Progress) -> ProgressBar:
    """Return the bar of a transfer; what is cached when it starts counts as done."""
    return ProgressBar(_FETCHING, total=start.size, initial=start.size - start.left)


def show_transfer(bar: ProgressBar, progress: Progress) -> None:
    """Show how far a transfer is: in bytes, with rate and time left, and in blobs."""
    ended = progress.fetched + progress.there + progress.failed
    bar.set_postfix_str(f"{ended}/{progress.blobs} blobs", refresh=False)
    bar.update(progress.size - progress.left - bar.n)


def _reported(failure: Failure | None) -> int:
    """Report a failure if there is one; return how many that is."""
    if failure is None:
        return 0
    notify(" ".join(str(failure).split()))
    return 1


def summary(progress: Progress) -> str:
    """Return what became of all blobs, as one line."""
    return (
        f"{progress.blobs} blobs, {shown_size(progress.size)}: {progress.fetched} fetched, "
        f"{progress.there} already cached, {progress.failed} failed"
    )


def _require_space(prefetch: Prefetch) -> None:
    """Raise CacheFailure if the cache is too small for the selection, and would evict it again."""
    space, progress = prefetch.space(), prefetch.progress
    if space is None:
        return
    limit, free = space
    if progress.size > limit:
        raise CacheFailure(
            f"the selection is {shown_size(progress.size)}, more than the maximum cache size of "
            f"{shown_size(limit)}: give a larger --cache-size, or select less"
        )
    if progress.left > free:
        notify(
            f"{shown_size(progress.left)} to be fetched, but the cache's disk has only "
            f"{shown_size(free)} free: other blobs will be evicted"
        )
