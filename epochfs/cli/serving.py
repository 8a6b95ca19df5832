"""The process that serves a mount: the filesystem, and FUSE before it.

Importing this imports the binding, which fails without libfuse: `system.require_fuse` comes first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time

from epochfs import operations
from epochfs.cli import ending, wiring
from epochfs.cli.daemon import Ready
from epochfs.cli.plan import MountPlan
from epochfs.errors import printable
from epochfs.passthrough import Passthrough

log = logging.getLogger(__name__)


def serve(plan: MountPlan, ready: Ready) -> None:
    """Check the registry, then mount it and serve it until it is unmounted.

    Calls `ready` once it is mounted. From the unmounting on, the process ends within seconds.
    """
    with contextlib.ExitStack() as closing:
        passthrough = Passthrough(plan.cache.directory, operations.library_version())
        started = time.time()

        def facts() -> dict[str, object]:
            return {
                "mountpoint": str(plan.path),
                "pid": os.getpid(),
                "started": started,
                "passthrough": dataclasses.asdict(passthrough.status()),
            }

        filesystem = wiring.open_filesystem(plan, closing, facts)

        def mounted() -> None:
            log.info("%s is mounted on %s", plan.url, printable(plan.path))
            ready()

        fuse = operations.FuseOptions(
            fsname=str(plan.url),
            kernel_ttl=plan.listings.kernel_ttl,
            uid=plan.uid,
            gid=plan.gid,
            allow_other=plan.allow_other,
            extra=plan.kernel_words,
        )
        exit_code = 1
        try:
            operations.serve(filesystem, plan.path, fuse, passthrough, on_ready=mounted)
            exit_code = 0
        finally:
            ending.exit_within(ending.GRACE, exit_code)
    log.info("%s is unmounted", printable(plan.path))
