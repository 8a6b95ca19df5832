"""The end of a serving process: by a signal or an unmount, always within a few seconds.

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
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from epochfs.cli import mountpoint
from epochfs.errors import printable
from epochfs.fuse import mountinfo

GRACE = 3.0
"""Seconds that readers and the closing of the cache have before the process exits anyway."""

log = logging.getLogger(__name__)


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal as Python handles a Ctrl-C, and tell which it was (`exit_code`)."""
    raise KeyboardInterrupt(number)


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of a command that was interrupted: 130 after a Ctrl-C, as in shells."""
    return 128 + int(interruption.args[0] if interruption.args else signal.SIGINT)


def ending_signals(*, foreground: bool) -> set[signal.Signals]:
    """Return the signals that end the mount: a hangup only where there is a terminal to hang up."""
    signals = {signal.SIGINT, signal.SIGTERM}
    if foreground and sys.stdin is not None and sys.stdin.isatty():
        signals.add(signal.SIGHUP)
    return signals


class Signals:
    """The signals of the process that serves `path`, received by a thread from now on.

    Those that end the mount unmount it and end the process. A SIGHUP that is none of them is an
    operator's word to a daemon, and calls `on_hangup`. To be made before any other thread exists:
    threads inherit what is blocked.
    """

    def __init__(self, path: Path, *, foreground: bool) -> None:
        self.on_hangup: Callable[[], None] = lambda: None
        self._path = path
        self._device = ""
        self._ending = ending_signals(foreground=foreground)
        self._received = {*self._ending, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._received)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def mounted(self) -> None:
        """Take note of the mount: its path may change, as may that of any directory above it."""
        mount = mountinfo.mounted_on(self._path)
        self._device = mount.device if mount is not None and mount.is_ours else ""

    def _find(self) -> mountinfo.Mount | None:
        """Return our mount, also where a directory above it was renamed."""
        mount = mountinfo.mounted_on(self._path)
        if mount is not None and mount.is_ours and self._device in ("", mount.device):
            return mount
        return mountinfo.mounted_from(self._device) if self._device else None

    def _wait(self) -> None:
        while (received := signal.Signals(signal.sigwait(self._received))) not in self._ending:
            try:
                self.on_hangup()
            except Exception:
                log.exception("unforeseen failure upon %s", received.name)
        try:
            _unmount(received, self._find())
        except Exception:
            log.exception("cannot unmount %s", printable(self._path))
            exit_now(1)


def _unmount(received: signal.Signals, mount: mountinfo.Mount | None) -> None:
    """Unmount, and end the process soon after, whoever still reads."""
    if mount is None:
        log.info("%s before the mount was made: leaving", received.name)
        exit_now(1)
    path = mount.path
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
