"""`epochfs cache`: inspect and maintain the local cache, even while mounts use it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from pathlib import Path

import click

from epochfs.cache import maintenance
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import FORMAT, CacheUser
from epochfs.cache.maintenance import Removal
from epochfs.cache.quota import BLOBS, Tally
from epochfs.cli.option_kinds import SIZE, TIME, cache_dir_option
from epochfs.cli.output import ProgressBar, shown_size
from epochfs.config import CacheOptions
from epochfs.errors import CacheFailure, printable

_VERIFYING = "verifying |{bar}| {done} of {whole}, {speed}/s, {remaining} left"


@click.group("cache", no_args_is_help=False)
def command() -> None:
    """Inspect and maintain the local cache."""


@command.command("info")
@cache_dir_option
def info(cache_dir: Path) -> None:
    """Show where the cache is, what it holds, and which mounts use it."""
    cache = _opened(cache_dir)
    click.echo(f"cache     {printable(cache_dir)}")
    if cache is None:
        click.echo("empty     nothing has been cached here yet")
        return
    found = maintenance.survey(cache)
    click.echo(f"complete  {_counted(found.complete)}")
    click.echo(f"partial   {_counted(found.partial)}")
    click.echo(f"names     {shown_size(found.databases.size)}")
    click.echo(f"layers    {shown_size(found.indexes.size)}")
    if found.oldest is not None:
        oldest = datetime.fromtimestamp(found.oldest, UTC)
        click.echo(f"oldest    used {oldest:%Y-%m-%d %H:%M:%S} UTC")
    for user in found.users:
        click.echo(f"{_named(user)}, limit {shown_size(user.size_limit)}")


@command.command("verify")
@cache_dir_option
def verify(cache_dir: Path) -> int:
    """Hash all complete blobs, and remove bad ones.

    Exit code 1 if there were any. A mount that needs such a blob downloads it again.
    """
    cache = _opened(cache_dir)
    entries = [entry for entry in cache.quota.entries() if entry.kind == BLOBS] if cache else []
    bad = hashed = 0
    lock = threading.Lock()  # guards `hashed` and the bar: many threads hash

    with ProgressBar(_VERIFYING, total=sum(entry.size for entry in entries)) as bar:

        def progress(count: int) -> None:
            nonlocal hashed
            with lock:
                hashed += count
                bar.update(count)

        for blob in maintenance.verify(cache, entries, progress) if cache else ():
            bar.write(f"bad {blob.digest}: {blob.problem}; removed")
            bad += 1
    click.echo(f"verified  {_counted(Tally(len(entries), hashed))}, {bad} bad")
    return int(bad > 0)


@command.command("prune")
@cache_dir_option
@click.option(
    "--cache-size",
    type=SIZE,
    help="Also remove the least recently used blobs, until the cache is this small.",
)
@click.option(
    "--partial-age",
    type=TIME,
    default="7d",
    help="Remove partial blobs that have not been written to for this long.",
)
def prune(cache_dir: Path, cache_size: int | None, partial_age: float) -> None:
    """Remove abandoned partial blobs, and shrink the cache.

    It is shrunk to --cache-size if that is given. Exit code 1 if something could not be removed, or
    if everything to be removed is in use.
    """
    cache = _opened(cache_dir)
    removal = maintenance.prune(cache, cache_size, partial_age) if cache else Removal()
    _report(cache_dir, removal)
    if removal.lacking and not removal.removed.count:
        raise CacheFailure(
            f"nothing was removed from the cache '{printable(cache_dir)}', which is "
            f"{shown_size(removal.lacking)} too large: all of it is in use; try again "
            "once mounts have closed it"
        )


@command.command("clear")
@cache_dir_option
def clear(cache_dir: Path) -> None:
    """Remove everything that is not in use.

    If no mount uses the cache, this includes names for offline use, times of tags and indexes of
    layers.
    """
    cache = _opened(cache_dir)
    _report(cache_dir, maintenance.clear(cache) if cache else Removal())


def _opened(directory: Path) -> BlobCache | None:
    """Return the cache in a directory, if there is one: nothing is created here."""
    if not (directory / FORMAT).is_dir():
        return None
    try:
        return BlobCache(CacheOptions(directory))
    except CacheFailure as error:
        raise CacheFailure(f"the cache '{printable(directory)}' cannot be used: {error}") from None


def _report(directory: Path, removal: Removal) -> None:
    """Print what was removed; raises CacheFailure if something could not be."""
    click.echo(f"removed   {_counted(removal.removed)}")
    if removal.in_use.count:
        click.echo(f"in use    {_counted(removal.in_use)}")
    for user in removal.users:
        click.echo(_named(user))
    if removal.failed.count:
        raise CacheFailure(
            f"{_counted(removal.failed)} cannot be removed from the cache "
            f"'{printable(directory)}': {removal.problem}"
        )


def _counted(tally: Tally) -> str:
    return f"{tally.count} {'blob' if tally.count == 1 else 'blobs'}, {shown_size(tally.size)}"


def _named(user: CacheUser) -> str:
    """Return a line that names a user of the cache: a mount, or a prefetch without one."""
    who = f"mount     {printable(user.mountpoint)}" if user.mountpoint else "prefetch "
    return f"{who} (pid {user.pid}) of {printable(user.registry)}"
