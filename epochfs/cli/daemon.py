"""The background process: detached, but watched by its parent until the mount answers.

The fork comes before any thread, connection or session exists. The child writes to a pipe: once the
mount is made, what the user is to be warned of, a line each, and one byte; or else the line that
says why it could not be. Then it closes the pipe.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from epochfs.cli import shutdown
from epochfs.cli.progress import LiveLine
from epochfs.errors import EpochfsError, MountFailure, printable

Ready = Callable[[Sequence[str]], None]
"""What a serving process calls, with the lines to warn of, once its mount is made."""

_READY = b"\0"
_STOP_SECONDS = 5.5
_QUIET_SECONDS = 1.0
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger(__name__)


class Daemon:
    """A forked process that runs `serve(ready)`, as its parent sees it.

    A context manager: the child outlives the block only if that ends without an exception, and a
    Ctrl-C, SIGTERM or SIGHUP of the parent is one. Those signals are held back from the fork until
    `wait_until_ready`, so that none can come between the two.
    """

    def __init__(self, serve: Callable[[Ready], None], log_file: Path | None) -> None:
        """Fork; in the child this never returns. `serve` calls its argument once it is mounted."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._exit_code: int | None = None
        self._pipe, report = os.pipe()
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._pipe)
            _run(serve, os.fdopen(report, "wb", buffering=0), log_file)
        os.close(report)
        self._handlers = {
            number: signal.signal(number, shutdown.interrupt) for number in _INTERRUPTS
        }

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
        if kind is not None:
            self._stop()
        os.close(self._pipe)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def wait_until_ready(self, limit: float, waiting_for: str) -> list[str]:
        """Return what the child warns of once its mount is made; else raise MountFailure, in its
        words.

        `limit` is in seconds. After the first, a terminal is told what this is `waiting_for`.
        """
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        said = b""
        started = time.monotonic()
        waiting_for = f"waiting for {printable(waiting_for)}"
        with LiveLine() as line:
            while received := self._receive(waiting_for, started, limit, line):
                said += received
        if said.endswith(_READY):
            return said.removesuffix(_READY).decode("utf-8", "replace").splitlines()
        how_it_died = f"the mounting process died ({self._await_exit()}): try again with -f"
        raise MountFailure(said.decode("utf-8", "replace") or how_it_died)

    def _receive(self, waiting_for: str, started: float, limit: float, line: LiveLine) -> bytes:
        while not select.select([self._pipe], [], [], 0.2)[0]:
            passed = time.monotonic() - started
            if passed > limit:
                raise MountFailure(f"gave up {waiting_for} after {limit:.0f} s")
            if passed >= _QUIET_SECONDS:
                line.show(f"epochfs: {waiting_for}, {passed:.0f} s")
        return os.read(self._pipe, 4096)

    def is_alive(self) -> bool:
        """Whether the child still runs."""
        if self._exit_code is None:
            try:
                pid, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # who started us ignores SIGCHLD, so nobody kept its code
                pid, status = self._pid, 0
            self._exit_code = os.waitstatus_to_exitcode(status) if pid else None
        return self._exit_code is None

    def _await_exit(self) -> str:
        deadline = time.monotonic() + _STOP_SECONDS
        while self.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
        code = self._exit_code
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"

    def _stop(self) -> None:
        """End the child: asked first, and by force when it does not."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.is_alive():
                os.kill(self._pid, number)
                self._await_exit()


def _run(serve: Callable[[Ready], None], report: IO[bytes], log_file: Path | None) -> None:
    """Be the child: detach, serve, report, exit."""
    code = 1
    try:
        os.setsid()
        os.chdir("/")
        early = _hold_output()

        def ready(warnings: Sequence[str]) -> None:
            _send(report, "".join(f"{line}\n" for line in warnings).encode() + _READY)
            _send_output_to(log_file or Path(os.devnull))
            early.close()

        try:
            serve(ready)
            code = 0
        except EpochfsError as error:
            log.error("%s", error)
            _send(report, f"{error}{_last_words(early)}".encode())
        except Exception as error:
            log.exception("the mounting process failed")
            _send(report, f"{type(error).__name__}: {error}{_last_words(early)}".encode())
    finally:
        # No clean-up of the parent's may run here, and no thread may hold the exit up.
        logging.shutdown()
        os._exit(code)


def _send(report: IO[bytes], message: bytes) -> None:
    """Write and close, if that was not done before; the parent may have left meanwhile."""
    if not report.closed:
        with suppress(OSError), report:
            report.write(message)


def _hold_output() -> IO[bytes]:
    """Keep stdout and stderr in memory until the mount is made.

    libfuse and fusermount explain a failed mount on stderr and nowhere else.
    """
    early = os.fdopen(os.memfd_create("epochfs-output"), "r+b")
    _send_output_to(Path(f"/proc/self/fd/{early.fileno()}"))
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return early


def _send_output_to(file: Path) -> None:
    with file.open("ab", buffering=0) as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _last_words(early: IO[bytes]) -> str:
    """Return what FUSE said last about a mount that failed, as the tail of an error line."""
    if early.closed:
        return ""
    early.seek(0)
    said = early.read(64 * 1024).decode("utf-8", "replace").split("\n")
    lines = [line.strip() for line in said if line.strip()]
    return f" ({printable(lines[-1])})" if lines else ""
