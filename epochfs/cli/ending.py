"""How a serving process ends: by a signal or an unmount, and always within a few seconds.

libfuse sits in C on the main thread, where Python runs no signal handler, and its own handler
waits for readers that may be stalled on the registry. So the signals are blocked in every thread
and one thread waits for them: it unmounts, which ends the FUSE loop. Readers that keep the loop
from ending are cut off: closing /dev/fuse by exiting gives each of them an error at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import NoReturn

from epochfs import mountinfo
from epochfs.cli import mountpoint
from epochfs.errors import printable

GRACE = 3.0
"""Seconds that readers and the closing of the cache have before the process exits anyway."""

log = logging.getLogger(__name__)


def ending_signals(*, foreground: bool) -> set[signal.Signals]:
    """Return the signals that end the mount: a hangup only where there is a terminal to hang up."""
    signals = {signal.SIGINT, signal.SIGTERM}
    if foreground and sys.stdin is not None and sys.stdin.isatty():
        signals.add(signal.SIGHUP)
    return signals


def unmount_on(signals: AbstractSet[signal.Signals], path: Path) -> None:
    """From now on, unmount `path` and end this process when one of `signals` comes.

    To be called before any other thread exists: threads inherit what is blocked.
    """
    if signal.SIGHUP not in signals:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    threading.Thread(target=_wait, args=(signals, path), name="signals", daemon=True).start()


def _wait(signals: AbstractSet[signal.Signals], path: Path) -> None:
    received = signal.Signals(signal.sigwait(signals))
    mount = mountinfo.mounted_on(path)
    if mount is None or not mount.is_ours:
        log.info("%s before the mount was made: leaving", received.name)
        exit_now(1)
    log.info("%s: unmounting %s", received.name, printable(path))
    exit_within(GRACE, 0)
    problem = mountpoint.unmount(path)
    if problem:
        log.info("still in use, so detached: %s", problem)
        problem = mountpoint.unmount(path, lazy=True)
    if problem:
        log.warning("%s: cannot unmount: %s", printable(path), problem)


def exit_within(seconds: float, code: int) -> None:
    """End this process after `seconds` at the latest, whatever its threads are waiting for."""

    def cut_off() -> None:
        log.info("readers or downloads were still under way: cut off")
        exit_now(code)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()


def exit_now(code: int) -> NoReturn:
    """End this process, whatever its threads are waiting for."""
    logging.shutdown()
    os._exit(code)
