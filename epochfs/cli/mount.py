"""`epochfs mount`: check what can be checked first, then serve in the background, or in front."""

from __future__ import annotations

import os
from pathlib import Path

import click

from epochfs.cli import logs, mountpoint, shutdown, system
from epochfs.cli.daemon import Daemon, Ready
from epochfs.cli.mount_words import MountCommand, kernel_words
from epochfs.cli.options import (
    completed_as,
    connection_options,
    fetching_options,
    file_option,
    source,
    value_option,
)
from epochfs.client import hosts
from epochfs.config import Address, BlobOptions, LayoutPath, ListingOptions, parse_seconds
from epochfs.errors import UsageError, printable
from epochfs.session.settings import Connection, Fetching, MountPlan

_START_SECONDS = 15.0
"""What starting may take beyond the registry's own time limit."""

_OWNER = click.IntRange(0, 2**32 - 2)


@click.command("mount", cls=MountCommand)
@click.argument(
    "where", nargs=-1, metavar="[URL|oci:DIR] MOUNTPOINT", shell_complete=completed_as("dir")
)
@connection_options
@fetching_options
@value_option(
    "--metadata-ttl",
    parse=parse_seconds,
    metavar="TIME",
    default="60",
    about="Maximum age of tags and listings.",
)
@value_option(
    "--stale-if-error",
    parse=parse_seconds,
    metavar="TIME",
    default="24h",
    about="How much longer they are served while the registry is down.",
)
@click.option(
    "--offline-ok",
    is_flag=True,
    help="Mount even while the registry is down, and show what is cached.",
)
@click.option(
    "--verify",
    type=click.Choice(["stream", "full"]),
    default="stream",
    show_default=True,
    help="Hash a blob as it is read, or all of it before its first byte is served.",
)
@click.option("--show-rootfs", is_flag=True, help="List rootfs/ where an image has one.")
@click.option("--allow-other", is_flag=True, help="Let other users see the mount.")
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
    type=click.Choice(logs.LEVELS),
    default="info",
    show_default=True,
    help="Log from this level up.",
)
@value_option(
    "--metrics",
    parse=Address.parse,
    metavar="ADDR",
    about="Serve metrics for Prometheus on PORT (of 127.0.0.1) or HOST:PORT.",
)
@click.option("-f", "--foreground", is_flag=True, help="Stay in front until unmounted.")
def command(
    where: tuple[str, ...],
    connection: Connection,
    fetching: Fetching,
    metadata_ttl: float,
    stale_if_error: float,
    offline_ok: bool,
    verify: str,
    show_rootfs: bool,
    allow_other: bool,
    uid: int | None,
    gid: int | None,
    words: tuple[str, ...],
    log_file: Path | None,
    log_level: str,
    metrics: Address | None,
    foreground: bool,
) -> None:
    """Mount a registry, or an OCI image layout, as a directory.

    URL is http(s)://host[:port], or host[:port] for https (http on loopback); a path behind it
    shows only the repositories below that prefix. Without URL it is EPOCH_SERVER, or else
    http://127.0.0.1:8080. oci:DIR is a layout on disk. Returns once the mount answers.
    """
    if not 1 <= len(where) <= 2:
        raise click.UsageError("give [URL] MOUNTPOINT")
    url = source(where[0] if len(where) == 2 else None)
    if not isinstance(url, LayoutPath):
        hosts.find(connection.hosts_dir, url)  # a mistake in a file is to be told here, and as one
    plan = MountPlan(
        url=url,
        path=mountpoint.resolve(where[-1]),
        connection=connection,
        cache=fetching.cache,
        listings=ListingOptions(
            timeout=connection.transport.timeout,
            metadata_ttl=metadata_ttl,
            stale_if_error=stale_if_error,
            manifest_limit=fetching.manifest_limit,
            repositories=connection.repositories,
            show_rootfs=show_rootfs,
        ),
        blobs=BlobOptions(
            timeout=connection.transport.timeout,
            verify_first=verify == "full",
            connections=fetching.connections,
        ),
        offline_ok=offline_ok,
        uid=os.getuid() if uid is None else uid,
        gid=os.getgid() if gid is None else gid,
        allow_other=allow_other,
        kernel_words=kernel_words(words),
        foreground=foreground,
        log_file=log_file,
        metrics=metrics,
    )
    _refuse_hidden(plan.path, "--cache-dir", plan.cache.directory)
    _refuse_hidden(plan.path, "--log-file", log_file)
    if isinstance(url, LayoutPath):
        _refuse_hidden(plan.path, "the layout", url.directory)
    mountpoint.prepare(plan.path)
    system.require_fuse(allow_other=allow_other)
    logs.configure(log_level, log_file, foreground=foreground)
    if foreground:
        _serve(plan, ready=lambda _: None)
    else:
        _serve_in_background(plan)


def _refuse_hidden(path: Path, option: str, file: Path | None) -> None:
    """Refuse a file of ours under the mount point: using it would wait for ourselves."""
    if file is not None and file.resolve().is_relative_to(path):
        raise UsageError(f"{option} must not be under the mount point: '{printable(file)}'")


def _serve_in_background(plan: MountPlan) -> None:
    """Return once a process of its own serves the mount and the mount answers."""
    before = plan.path.stat().st_dev
    try:
        with Daemon(lambda ready: _serve(plan, ready), plan.log_file) as daemon:
            limit = plan.connection.transport.timeout + _START_SECONDS
            for line in daemon.wait_until_ready(limit, waiting_for=str(plan.url)):
                click.echo(f"epochfs: warning: {printable(line, 1000)}", err=True)
            mountpoint.wait_for_mount(
                plan.path, before, limit=_START_SECONDS, server_is_alive=daemon.is_alive
            )
    except BaseException as error:
        mountpoint.clear_dead(plan.path)
        if isinstance(error, KeyboardInterrupt):
            click.echo("epochfs: interrupted: nothing is mounted", err=True)
            raise click.exceptions.Exit(shutdown.exit_code(error)) from None
        raise


def _serve(plan: MountPlan, ready: Ready) -> None:
    """Serve in this process, which belongs to the mount from here on."""
    signals = shutdown.Signals(plan.path, foreground=plan.foreground)
    # Imported only now: most of epochfs, which cannot be had without libfuse and takes its time.
    from epochfs.cli import serving

    serving.serve(plan, ready, signals)
