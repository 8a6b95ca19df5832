"""The process that serves a mount: the filesystem, and FUSE before it.

Importing this imports the binding, which fails without libfuse: `system.require_fuse` comes first.
"""

from __future__ import annotations

import contextlib
import logging

from epochfs.blobs.buffers import share_one_heap
from epochfs.cli import shutdown, system
from epochfs.cli.daemon import Ready
from epochfs.config import Address, LayoutPath
from epochfs.errors import MountFailure, printable
from epochfs.fuse import libfuse
from epochfs.fuse.operations import EpochOperations
from epochfs.fuse.passthrough import Passthrough
from epochfs.session import opening
from epochfs.session.settings import MountPlan
from epochfs.session.status import StatusSource

log = logging.getLogger(__name__)


def serve(plan: MountPlan, ready: Ready, signals: shutdown.Signals) -> None:
    """Check the registry, then mount it and serve it until it is unmounted.

    Calls `ready` once it is mounted; a hangup among `signals` then drops cached listings. From the
    unmounting on, the process ends within seconds.
    """
    system.raise_open_files()
    share_one_heap()
    with contextlib.ExitStack() as closing:
        layout = plan.url if isinstance(plan.url, LayoutPath) else None
        blobs_are_in = layout.directory if layout else plan.cache.directory
        passthrough = Passthrough(blobs_are_in, libfuse.library_version())
        warnings: list[str] = []

        def warn(line: str) -> None:
            log.warning("%s", line)
            warnings.append(line)

        session = opening.open_session(plan, closing, str(plan.path), passthrough, warn)
        filesystem = session.filesystem
        if plan.metrics is not None:
            log.info("metrics are served on %s", _serve_metrics(plan.metrics, session.status))

        def mounted() -> None:
            log.info("%s is mounted on %s", plan.url, printable(plan.path))
            signals.mounted()
            signals.on_hangup = drop_listings
            ready(warnings)

        def drop_listings() -> None:
            log.info("SIGHUP: cached listings are dropped")
            filesystem.drop_listings()

        fuse = libfuse.FuseOptions(
            fsname=str(plan.url),
            kernel_ttl=plan.listings.kernel_ttl,
            uid=plan.uid,
            gid=plan.gid,
            allow_other=plan.allow_other,
            extra=plan.kernel_words,
        )
        exit_code = 1
        try:
            operations = EpochOperations(filesystem, plan.path, fuse, passthrough, mounted)
            libfuse.serve(operations, plan.path, fuse)
            exit_code = 0
        finally:
            shutdown.exit_within(shutdown.GRACE, exit_code)
    log.info("%s is unmounted", printable(plan.path))


def _serve_metrics(address: Address, source: StatusSource) -> str:
    """Serve metrics; return their URL."""
    try:
        from epochfs.session import metrics
    except ModuleNotFoundError:
        raise MountFailure(
            "--metrics needs prometheus-client: install it beside epochfs (the extra 'metrics')"
        ) from None
    return metrics.serve(address, source)
