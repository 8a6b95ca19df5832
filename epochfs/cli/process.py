"""The process that serves a mount: detached from the terminal, and ended within seconds.

A `Daemon` is forked before any thread, connection or session exists, and watched by its parent
until the mount answers. The child reports through a pipe: once mounted, its warnings, a line each,
and one byte; or else the line that says why it could not mount. Then it closes the pipe.

`Signals` ends a mount. libfuse runs C code on the main thread, where Python runs no signal handler,
and its own handler waits for readers that may be stalled on the registry. So all threads block the
signals and one thread waits for them: it unmounts, which ends the FUSE loop. Readers that keep the
loop from ending are cut off: exiting closes /dev/fuse, which fails their requests at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO, NoReturn

from epochfs.cli import mountpoint, systemd
from epochfs.cli.output import ProgressBar
from epochfs.errors import EpochfsError, MountFailure, printable
from epochfs.fuse import mountinfo

Ready = Callable[[Sequence[str]], None]
"""What a serving process calls once its mount is made, with its warnings."""

_READY = b"\0"
_STOP_SECONDS = 5.5
_QUIET_SECONDS = 1.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

GRACE = 3.0
"""How many seconds readers and the closing of the cache have before the process exits anyway."""

log = logging.getLogger(__name__)


class Daemon:
    """A forked process that runs `serve(ready)`, as its parent sees it.

    A context manager: the child outlives the block only if the block ends without an exception.
    Ctrl-C, SIGTERM and SIGHUP raise one in the parent; they are blocked from the fork until
    `wait_until_ready`, so that none can arrive in between.
    """

    def __init__(self, serve: Callable[[Ready], None], log_file: Path | None) -> None:
        """Fork; in the child this never returns. `serve` calls its argument once mounted."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._exit_code: int | None = None
        self._pipe, report = os.pipe()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._pipe)
            _run(serve, os.fdopen(report, "wb", buffering=0), log_file)
        os.close(report)
        self._handlers = {number: signal.signal(number, interrupt) for number in _INTERRUPTS}

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        if kind is not None:
            self._stop()
        os.close(self._pipe)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def wait_until_ready(self, limit: float, waiting_for: str) -> list[str]:
        """Return the child's warnings once its mount is made; raises MountFailure in its words.

        `limit` is in seconds. After the first, a terminal shows what this is `waiting_for`.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        said = b""
        deadline = time.monotonic() + limit
        waiting = f"waiting for {printable(waiting_for)}"
        with ProgressBar("{desc}, {elapsed_s:.0f} s{bar}", delay=_QUIET_SECONDS) as bar:
            bar.set_description_str(waiting, refresh=False)
            while True:
                if select.select([self._pipe], [], [], 0.2)[0]:
                    received = os.read(self._pipe, 4096)
                    if not received:
                        break
                    said += received
                elif time.monotonic() > deadline:
                    raise MountFailure(f"gave up {waiting} after {limit:.0f} s")
                bar.update(0)
        if said.endswith(_READY):
            return said.removesuffix(_READY).decode("utf-8", "replace").splitlines()
        how_it_died = f"the mounting process died ({self._await_exit()}): try again with -f"
        raise MountFailure(said.decode("utf-8", "replace") or how_it_died)

    def is_alive(self) -> bool:
        """Whether the child is still running."""
        if self._exit_code is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # our own parent ignores SIGCHLD, so its code was not kept
                pid, status = self.pid, 0
            self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_code is None

    def _await_exit(self) -> str:
        deadline = time.monotonic() + _STOP_SECONDS
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._exit_code
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        """Terminate the child, and kill it if that does not end it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.is_alive():
                os.kill(self.pid, number)
                self._await_exit()


def _run(serve: Callable[[Ready], None], report: IO[bytes], log_file: Path | None) -> None:
    """Run the child: detach, serve, report, exit."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        output = _hold_output()

        def ready(warnings: Sequence[str]) -> None:
            _send(report, "".join(f"{line}\n" for line in warnings).encode() + _READY)
            _send_output_to(log_file or Path(os.devnull))
            output.close()

        try:
            serve(ready)
            code = 0
        except EpochfsError as error:
            log.error("%s", error)
            _send(report, f"{error}{_last_line(output)}".encode())
        except Exception as error:
            log.exception("the mounting process failed")
            _send(report, f"{type(error).__name__}: {error}{_last_line(output)}".encode())
    finally:
        # None of the parent's clean-up may run here, and no thread may delay the exit.
        logging.shutdown()
        os._exit(code)


def _send(report: IO[bytes], message: bytes) -> None:
    """Write and close, unless already closed; the parent may have exited meanwhile."""
    if not report.closed:
        with suppress(OSError), report:
            report.write(message)


def _hold_output() -> IO[bytes]:
    """Redirect stdout and stderr to memory until the mount is made.

    libfuse and fusermount explain a failed mount on stderr and nowhere else.
    """
    output = os.fdopen(os.memfd_create("epochfs-output"), "r+b")
    _send_output_to(Path(f"/proc/self/fd/{output.fileno()}"))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return output


def _send_output_to(file: Path) -> None:
    with file.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _last_line(output: IO[bytes]) -> str:
    """Return the last line that FUSE wrote about a failed mount, to end an error line with."""
    if output.closed:
        return ""
    output.seek(0)
    said = output.read(64 * 1024).decode("utf-8", "replace").split("\n")
    lines = [line.strip() for line in said if line.strip()]
    return f" ({printable(lines[-1])})" if lines else ""


def interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Handle a signal as Python handles Ctrl-C, and remember which it was (`exit_code`)."""
    raise KeyboardInterrupt(number)


def exit_code(interruption: KeyboardInterrupt) -> int:
    """Return the exit code of an interrupted command: 130 after Ctrl-C, as in shells."""
    return 128 + int(interruption.args[0] if interruption.args else signal.SIGINT)


def terminating_signals(*, foreground: bool) -> set[signal.Signals]:
    """Return the signals that end a mount: SIGHUP only where there is a terminal to hang up."""
    signals = {signal.SIGINT, signal.SIGTERM}
    if foreground and sys.stdin is not None and sys.stdin.isatty():
        signals.add(signal.SIGHUP)
    return signals


class Signals:
    """The signals of the process that serves `path`, received by a thread from now on.

    Those that terminate the mount unmount it and end the process. Any other SIGHUP is an operator's
    message to a daemon, and calls `on_hangup`. Create this before any thread: threads inherit
    blocked signals.
    """

    def __init__(self, path: Path, *, foreground: bool) -> None:
        self.on_hangup: Callable[[], None] = lambda: None
        self._path = path
        self._device = ""
        self._is_mounted = False
        self._terminating = terminating_signals(foreground=foreground)
        self._received = {*self._terminating, signal.SIGHUP}
        signal.pthread_sigmask(signal.SIG_BLOCK, self._received)
        threading.Thread(target=self._wait, name="signals", daemon=True).start()

    def mounted(self) -> None:
        """Remember the mount's device: its path changes if a directory above it is renamed."""
        self._is_mounted = True
        mount = mountinfo.ours_on(self._path)
        self._device = mount.device if mount else ""

    def _find(self) -> mountinfo.Mount | None:
        """Return our mount, even if a directory above it was renamed."""
        mount = mountinfo.ours_on(self._path)
        if mount and self._device in ("", mount.device):
            return mount
        return mountinfo.mounted_from(self._device) if self._device else None

    def _wait(self) -> None:
        while (received := signal.Signals(signal.sigwait(self._received))) not in self._terminating:
            try:
                self.on_hangup()
            except Exception:
                log.exception("unforeseen failure on %s", received.name)
        try:
            mount = self._find()
            if mount is not None:
                _unmount(received, mount)
                return
            # Not yet mounted, not any more, or somebody else's mount is in its place.
            when = "" if self._is_mounted else " before the mount was made"
            log.info("%s%s: exiting", received.name, when)
            exit_now(0 if self._is_mounted else 1)
        except Exception:
            log.exception("cannot unmount %s", printable(self._path))
            exit_now(1)


def _unmount(received: signal.Signals, mount: mountinfo.Mount) -> None:
    """Unmount, and end the process soon after, even if there are still readers."""
    path = mount.path
    log.info("%s: unmounting %s", received.name, printable(path))
    exit_within(GRACE, 0)
    problem = mountpoint.unmount(path)
    if problem:
        log.info("still in use, so detaching: %s", problem)
        problem = mountpoint.unmount(path, lazy=True)
    if problem:
        log.warning("%s: cannot unmount: %s", printable(path), problem)


def exit_within(seconds: float, code: int) -> None:
    """End this process within `seconds`, whatever its threads are waiting for."""
    systemd.notify("STOPPING=1")

    def cut_off() -> None:
        log.info("cut off readers or downloads that were still in progress")
        exit_now(code)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()


def exit_now(code: int) -> NoReturn:
    """End this process now, whatever its threads are waiting for."""
    logging.shutdown()
    os._exit(code)
