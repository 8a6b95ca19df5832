"""`epochfs mount`: check everything that can be checked first, then serve the mount.

Every long option is also a word of `-o`, as mount(8) passes them: `--cache-size 1G` is
`-o cache_size=1G`. The words are turned into long options before anything is parsed, so both have
one meaning and one error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from epochfs.cli import CALLED_BY_MOUNT_8, mountpoint, output, process, system, systemd
from epochfs.cli.option_kinds import TIME, Value, completed_as, file_option
from epochfs.cli.options import Fetching, fetching_options, source_url
from epochfs.client import hosts
from epochfs.config import Address, LayoutPath, RegistryUrl
from epochfs.errors import UsageError, printable
from epochfs.oci.platforms import Platform
from epochfs.session import SessionSettings

if TYPE_CHECKING:
    from epochfs.fuse.passthrough import Passthrough
    from epochfs.session.opening import Session

_OWNER = click.IntRange(0, 2**32 - 2)

_KERNEL_WORDS = frozenset({"nosuid", "nodev", "noexec", "noatime"})
"""Words of `-o` that are passed on to the kernel."""

_IGNORED_WORDS = frozenset(
    {"defaults", "dev", "suid", "exec", "atime", "relatime", "norelatime"}
    | {"auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
)
"""Words of `-o` that change nothing here, or are for mount(8) itself."""

_ACCESS_WORDS = {"rw": "--writable", "ro": "--read-only"}
"""Words of `-o` whose long option is called otherwise. mount(8) passes `rw` unasked, wherever it is
not told `ro`, so that means nothing from there: /etc/fstab has to say `writable`."""

_IGNORED_VALUES = re.compile(r"(?:[xX]-[^=]+|comment|user|owner|group)(?:=.*)?\Z", re.DOTALL)
"""The same with a value: `x-systemd.automount`, `comment=…`, and `user=NAME` for umount(8)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountSettings(SessionSettings):
    """How to mount a registry or layout; `kernel_words` are for mount(2)."""

    path: Path
    uid: int
    gid: int
    allow_other: bool
    kernel_words: tuple[str, ...]
    foreground: bool
    log_file: Path | None
    metrics: Address | None


class _MountCommand(click.Command):
    """A command whose long options can also be given as words of its `-o` option."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(list(args))
        words = split_words(given.get("words") or ())
        # In front, so that an option on the command line itself comes later, and wins.
        return super().parse_args(ctx, [*self._long_options(ctx, words), *args])

    def _long_options(self, ctx: click.Context, words: Iterable[str]) -> Iterator[str]:
        options = {
            name.removeprefix("--"): option
            for option in self.params
            if isinstance(option, click.Option)
            for name in (*option.opts, *option.secondary_opts)
            if name.startswith("--")
        }
        if CALLED_BY_MOUNT_8 in ctx.meta:
            # Its `rw` or `ro` comes first, wherever it stood: `ro` is to win over `writable`.
            words = sorted((one for one in words if one != "rw"), key="ro".__eq__)
        for word in words:
            key, equals, _ = word.partition("=")
            name = key.replace("_", "-")
            if name in options:
                if not equals and not options[name].is_flag:
                    raise click.UsageError(f"-o {name} needs a value: -o {name}=…", ctx)
                yield f"--{name}{word[len(key) :]}"
            elif word in _ACCESS_WORDS:
                yield _ACCESS_WORDS[word]
            elif word not in _KERNEL_WORDS | _IGNORED_WORDS and not _IGNORED_VALUES.match(word):
                raise click.UsageError(f"no such mount option: -o {printable(word)}", ctx)


def split_words(options: Iterable[str]) -> list[str]:
    r"""Split the values of `-o` at their commas; `\,` is a comma within a word."""
    return [
        re.sub(r"\\(.)", r"\1", word)
        for option in options
        for word in re.findall(r"(?:\\.|[^,\\])+", option)
    ]


def kernel_words(options: Iterable[str]) -> tuple[str, ...]:
    """Return the words of `-o` that FUSE passes on to the kernel, each once."""
    return tuple(sorted(_KERNEL_WORDS.intersection(split_words(options))))


@click.command("mount", cls=_MountCommand)
@click.argument(
    "where", nargs=-1, metavar="[SOURCE] MOUNTPOINT", shell_complete=completed_as("dir")
)
@fetching_options
@click.option("--metadata-ttl", type=TIME, default="60", help="Maximum age of tags and listings.")
@click.option(
    "--stale-if-error",
    type=TIME,
    default="24h",
    help="How much longer to serve them while the registry is down.",
)
@click.option(
    "--offline-ok",
    is_flag=True,
    help="Mount even if the registry is down, and show what is cached.",
)
@click.option(
    "--verify",
    type=click.Choice(["stream", "full"]),
    default="stream",
    help="Hash a blob as it is read, or all of it before its first byte is served.",
)
@click.option("--show-rootfs", is_flag=True, help="List rootfs/ where an image has one.")
@click.option(
    "--soci-referrers",
    is_flag=True,
    help="Trust SOCI indexes that merely refer to an image, though its digest does not cover them.",
)
@click.option(
    "--unverified-layers",
    is_flag=True,
    help="Open files of a layer while it still arrives, before its digest is verified.",
)
@click.option(
    "--platform",
    type=Value("OS/ARCH", Platform.parse),
    help="Platform of volume/ where there is a choice.  [default: this machine's]",
)
@click.option(
    "--writable/--read-only",
    help="Allow writes to the registry (-o rw).  [default: read-only]",
)
@click.option("--delete", is_flag=True, help="Allow deleting blobs and manifests, too.")
@click.option("--allow-other", is_flag=True, help="Let other users access the mount.")
@click.option("--uid", type=_OWNER, metavar="ID", help="Owner of all files.  [default: you]")
@click.option("--gid", type=_OWNER, metavar="ID", help="Group of all files.  [default: yours]")
@click.option(
    "-o",
    "words",
    multiple=True,
    metavar="OPT,OPT",
    help="Options as mount(8) passes them, and any long option as NAME=VALUE.",
)
@file_option("--log-file", "Append the log to this file.  [default: none; stderr with -f]")
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    help="Log this level and above.",
)
@click.option(
    "--metrics",
    type=Value("ADDR", Address.parse),
    help="Serve Prometheus metrics on PORT (of 127.0.0.1) or HOST:PORT.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground until unmounted.")
def command(
    where: tuple[str, ...],
    fetching: Fetching,
    metadata_ttl: float,
    stale_if_error: float,
    offline_ok: bool,
    verify: str,
    show_rootfs: bool,
    soci_referrers: bool,
    unverified_layers: bool,
    platform: Platform | None,
    writable: bool,
    delete: bool,
    allow_other: bool,
    uid: int | None,
    gid: int | None,
    words: tuple[str, ...],
    log_file: Path | None,
    log_level: str,
    metrics: Address | None,
    foreground: bool,
) -> None:
    """Mount a registry, layout or artifact as a directory.

    SOURCE is http(s)://HOST[:PORT], or HOST[:PORT] for https (http on loopback). A path after it
    shows only the repositories below that prefix; HOST/REPO:TAG and HOST/REPO@DIGEST show the files
    of one artifact, of the digest that the tag has now. oci:DIR is a layout on disk, oci:DIR:TAG an
    artifact of it. Without SOURCE it is EPOCH_SERVER, or else http://127.0.0.1:8080. Returns once
    the mount answers. MOUNTPOINT may be /dev/fd/N, which somebody else has mounted; this then stays
    in the foreground.
    """
    if not 1 <= len(where) <= 2:
        raise click.UsageError("give [SOURCE] MOUNTPOINT")
    url = source_url(where[0] if len(where) == 2 else None)
    if not isinstance(url, LayoutPath):
        hosts.find(fetching.connection.hosts_dir, url)  # a mistake in a file is to be reported here
    if delete and not writable:
        raise UsageError("-o delete needs -o rw (in /etc/fstab: writable)")
    if writable:
        _require_registry(url)
    path = mountpoint.resolve(where[-1])
    by_descriptor = mountpoint.descriptor(path) is not None
    settings = MountSettings(
        url=url,
        path=path,
        connection=fetching.connection,
        cache=fetching.cache,
        listings=replace(
            fetching.listings,
            metadata_ttl=metadata_ttl,
            stale_if_error=stale_if_error,
            show_rootfs=show_rootfs,
            soci_referrers=soci_referrers,
        ),
        blobs=replace(
            fetching.blobs, verify_first=verify == "full", unverified_layers=unverified_layers
        ),
        offline_ok=offline_ok,
        platform=platform or Platform.of_machine(),
        writes=writable,
        deletes=delete,
        uid=os.getuid() if uid is None else uid,
        gid=os.getgid() if gid is None else gid,
        allow_other=allow_other,
        kernel_words=kernel_words(words),
        foreground=foreground or by_descriptor,
        log_file=log_file,
        metrics=metrics,
    )
    _refuse_hidden(settings.path, "--cache-dir", fetching.cache.directory)
    _refuse_hidden(settings.path, "--log-file", log_file)
    if isinstance(url, LayoutPath):
        _refuse_hidden(settings.path, "the layout", url.directory)
    mountpoint.prepare(settings.path)
    if by_descriptor:
        system.require_descriptor_support()
    else:
        system.require_fuse(allow_other=allow_other)
    output.configure_logging(log_level, log_file, foreground=settings.foreground)
    if settings.foreground:
        _serve(settings, ready=lambda _: systemd.notify("READY=1", _status(settings)))
    else:
        _serve_in_background(settings)


def _require_registry(url: RegistryUrl | LayoutPath) -> None:
    """Refuse to write to what is no registry, or a part of it with no names to write to."""
    if isinstance(url, LayoutPath):
        raise UsageError(f"{url} is a layout, which cannot be written to: leave out -o rw")
    if url.names_artifact:
        raise UsageError(
            f"{url} is one artifact, which never changes: mount its registry to write to it"
        )


def _refuse_hidden(path: Path, option: str, file: Path | None) -> None:
    """Refuse a file of ours below the mount point: using it would wait for ourselves."""
    if file is not None and file.resolve().is_relative_to(path):
        raise UsageError(f"{option} must not be under the mount point: '{printable(file)}'")


def _serve_in_background(settings: MountSettings) -> None:
    """Return once a process of its own serves the mount and the mount answers."""
    before = settings.path.stat().st_dev
    try:
        with process.Daemon(lambda ready: _serve(settings, ready), settings.log_file) as daemon:
            limit = settings.connection.transport.timeout + mountpoint.START_SECONDS
            for line in daemon.wait_until_ready(limit, waiting_for=str(settings.url)):
                click.echo(f"epochfs: warning: {printable(line, 1000)}", err=True)
            mountpoint.wait_for_mount(settings.path, before, daemon.is_alive)
            systemd.notify(f"MAINPID={daemon.pid}", "READY=1", _status(settings))
    except BaseException as error:
        mountpoint.clear_dead(settings.path)
        if isinstance(error, KeyboardInterrupt):
            click.echo("epochfs: interrupted: nothing is mounted", err=True)
            raise click.exceptions.Exit(process.exit_code(error)) from None
        raise


def _status(settings: MountSettings) -> str:
    """Return what `systemctl status` is to show."""
    return f"STATUS={printable(settings.url)} is mounted on {printable(settings.path)}"


def _serve(settings: MountSettings, ready: process.Ready) -> None:
    """Check the registry, then mount it and serve it until it is unmounted.

    This process belongs to the mount from here on, and ends within seconds of the unmount. Calls
    `ready` once it is mounted; SIGHUP then drops cached listings.
    """
    signals = process.Signals(settings.path, foreground=settings.foreground)
    # Imported only now: this is most of epochfs, fails without libfuse, and takes its time.
    from epochfs.blobs.buffers import share_one_heap
    from epochfs.fuse import libfuse
    from epochfs.fuse.passthrough import Passthrough
    from epochfs.session.opening import open_session
    from epochfs.session.status import serve_metrics

    system.raise_open_files()
    share_one_heap()
    with contextlib.ExitStack() as closing:
        url = settings.url
        blobs = url.directory if isinstance(url, LayoutPath) else settings.cache.directory
        passthrough = Passthrough(blobs, libfuse.library_version())
        warnings: list[str] = []

        def warn(line: str) -> None:
            log.warning("%s", line)
            warnings.append(line)

        session = open_session(settings, closing, str(settings.path), passthrough, warn)
        if settings.metrics is not None:
            log.info("metrics are served on %s", serve_metrics(settings.metrics, session.status))

        def mounted() -> None:
            signals.mounted()
            log.info("%s is mounted on %s", session.shown, printable(settings.path))
            signals.on_hangup = drop_listings
            ready(warnings)

        def drop_listings() -> None:
            log.info("SIGHUP: dropping cached listings")
            session.filesystem.drop_listings()

        exit_code = 1
        try:
            _run_fuse(settings, session, passthrough, mounted)
            exit_code = 0
        finally:
            process.exit_within(process.GRACE, exit_code)
    log.info("%s is unmounted", printable(settings.path))


def _run_fuse(
    settings: MountSettings,
    session: Session,
    passthrough: Passthrough,
    on_ready: Callable[[], None],
) -> None:
    """Mount, and answer the kernel until unmounted."""
    from epochfs.fuse import libfuse
    from epochfs.fuse.operations import EpochOperations

    options = libfuse.FuseOptions(
        fsname=session.shown,
        kernel_ttl=settings.listings.kernel_ttl,
        uid=settings.uid,
        gid=settings.gid,
        allow_other=settings.allow_other,
        extra=settings.kernel_words,
        writable=settings.writes,
    )
    shown, how = session.filesystem, (settings.path, options, passthrough, on_ready)
    if settings.writes:
        from epochfs.fuse.write_operations import WritableOperations
        from epochfs.vfs.writing.writable import WritableFileSystem

        assert isinstance(shown, WritableFileSystem)
        operations: EpochOperations = WritableOperations(shown, *how)
    else:
        operations = EpochOperations(shown, *how)
    libfuse.serve(operations, settings.path, options)
