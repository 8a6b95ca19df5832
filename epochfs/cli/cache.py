"""`epochfs cache`: look at the local cache and look after it, also while mounts use it."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import click
import platformdirs

from epochfs.cache import maintenance
from epochfs.cache.blobs import BlobCache
from epochfs.cache.directory import FORMAT, CacheUser
from epochfs.cache.maintenance import Removal
from epochfs.cache.quota import BLOBS, Tally
from epochfs.cli.options import file_option, value_option
from epochfs.cli.progress import LiveLine
from epochfs.config import CacheOptions, parse_seconds, parse_size
from epochfs.errors import CacheFailure, printable

_REPORT_SECONDS = 0.2

_cache_dir = file_option("--cache-dir", "Where the cache is.  [default: ~/.cache/epochfs]")


@click.group("cache", no_args_is_help=False)
def command() -> None:
    """Look after the local cache, which mounts may be using."""


@command.command("info")
@_cache_dir
def info(cache_dir: Path | None) -> None:
    """Show where the cache is, what it holds, and which mounts use it."""
    directory, cache = _opened(cache_dir)
    click.echo(f"cache     {printable(directory)}")
    if cache is None:
        click.echo("empty     nothing was cached here yet")
        return
    found = maintenance.survey(cache)
    click.echo(f"complete  {_counted(found.complete)}")
    click.echo(f"partial   {_counted(found.partial)}")
    click.echo(f"names     {_size(found.databases.size)}")
    click.echo(f"layers    {_size(found.indexes.size)}")
    if found.oldest is not None:
        oldest = datetime.fromtimestamp(found.oldest, UTC)
        click.echo(f"oldest    used {oldest:%Y-%m-%d %H:%M:%S} UTC")
    for user in found.users:
        click.echo(f"{_named(user)}, limit {_size(user.size_limit)}")


@command.command("verify")
@_cache_dir
def verify(cache_dir: Path | None) -> int:
    """Hash every complete blob again, and remove the bad ones.

    Exit code 1 if there were any. A mount that needs such a blob fetches it again.
    """
    _, cache = _opened(cache_dir)
    entries = [entry for entry in cache.quota.entries() if entry.kind == BLOBS] if cache else []
    bad = 0
    with LiveLine() as line:
        progress = _Progress(sum(entry.size for entry in entries), line)
        if cache is not None:
            for blob in maintenance.verify(cache, entries, progress):
                progress.wipe()
                click.echo(f"bad       {blob.digest} {blob.problem}: removed")
                bad += 1
    click.echo(f"verified  {_counted(Tally(len(entries), progress.done))}, {bad} bad")
    return int(bad > 0)


@command.command("prune")
@_cache_dir
@value_option(
    "--cache-size",
    parse=parse_size,
    metavar="SIZE",
    about="Also remove what was used longest ago, until no more than this is left.",
)
@value_option(
    "--partial-age",
    parse=parse_seconds,
    metavar="TIME",
    default="7d",
    about="Remove partial blobs that nobody has written to for this long.",
)
def prune(cache_dir: Path | None, cache_size: int | None, partial_age: float) -> None:
    """Remove abandoned partial blobs; with --cache-size, shrink to it.

    Exit code 1 if something could not be removed, or if all that should have been is in use.
    """
    directory, cache = _opened(cache_dir)
    removal = maintenance.prune(cache, cache_size, partial_age) if cache else Removal()
    _report(directory, removal)
    if removal.lacking and not removal.removed.count:
        raise CacheFailure(
            f"nothing was removed from the cache '{printable(directory)}', which is "
            f"{_size(removal.lacking)} too large: all of it is in use; try again when mounts have "
            "closed it"
        )


@command.command("clear")
@_cache_dir
def clear(cache_dir: Path | None) -> None:
    """Remove everything that no mount uses, and say what is in use.

    Without any mount, also the names for offline use, the times of tags and the indexes of layers
    go.
    """
    directory, cache = _opened(cache_dir)
    _report(directory, maintenance.clear(cache) if cache else Removal())


def _opened(cache_dir: Path | None) -> tuple[Path, BlobCache | None]:
    """Return the directory, and the cache in it if there is one: nothing is made here."""
    directory = cache_dir or platformdirs.user_cache_path("epochfs")
    if not (directory / FORMAT).is_dir():
        return directory, None
    try:
        return directory, BlobCache(CacheOptions(directory))
    except CacheFailure as error:
        shown = printable(directory)
        raise CacheFailure(f"the cache '{shown}' cannot be used: {error}") from None


def _report(directory: Path, removal: Removal) -> None:
    """Say what was removed; raises CacheFailure where something could not be."""
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
    return f"{tally.count} {'blob' if tally.count == 1 else 'blobs'}, {_size(tally.size)}"


def _size(size: float) -> str:
    """Return bytes as `--cache-size` would read them: 512.0M."""
    for unit in " KMG":
        if size < 1024:
            return f"{size:.1f}{unit}" if unit.strip() else f"{size:.0f}"
        size /= 1024
    return f"{size:.1f}T"


def _named(user: CacheUser) -> str:
    """Return a line that says who uses the cache: a mount, or a prefetch without one."""
    process = f"(pid {user.pid}) of {printable(user.registry)}"
    if not user.mountpoint:
        return f"prefetch  {process}"
    return f"mount     {printable(user.mountpoint)} {process}"


class _Progress:
    """The share of bytes that were hashed, on a live line.

    Called from many threads; `_lock` guards the count and the line.
    """

    def __init__(self, total: int, line: LiveLine) -> None:
        self.done = 0
        self._total = total
        self._lock = threading.Lock()
        self._line = line
        self._next = time.monotonic() + _REPORT_SECONDS

    def __call__(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() >= self._next:
                self._next = time.monotonic() + _REPORT_SECONDS
                self._line.show(f"epochfs: verified {_size(self.done)} of {_size(self._total)}")

    def wipe(self) -> None:
        """Clear the line for another."""
        with self._lock:
            self._line.wipe()
