"""Tracks the programs that make directories, for as long as each is at it.

A program that has just made a directory takes it for empty, and fills it without looking: what
showed up there by itself would be in its way (EEXIST). So as long as it is at work, the directory
has nothing but what was made in it, for everybody. It is at work until it ends, lists the
directory or follows a link to it, another program changes it, or nothing was written for a
minute.

Locks: `Makers._lock` guards the table of programs; it is a leaf, and no I/O happens under it.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import threading
import time
from pathlib import Path

_PAUSE_SECONDS = 60.0

_THREAD_GROUP = re.compile(r"^Tgid:\s*(\d+)$", re.MULTILINE)


class Maker:
    """A running program that made directories, in one process or several (as rsync has them)."""

    def __init__(self, process: int, program: str, descriptor: int) -> None:
        """`program` is the path of its executable; `descriptor` a pidfd of its first process, which
        this closes when that has ended."""
        self.process = process
        self.program = program
        self._descriptor = descriptor
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)
        self.ended = False

    def look(self) -> None:
        """See whether the program has ended."""
        if not self.ended and self._poll.poll(0):
            self.ended = True
            os.close(self._descriptor)


class Makers:
    """The programs that are making directories. Any thread may call anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._makers: dict[int, Maker] = {}
        self._last = 0.0

    def of(self, thread: int) -> Maker | None:
        """Return the program that a thread belongs to, by its number; None where it is not seen."""
        process = _process_of(thread)
        if process is None:
            return None
        self.wrote()
        program = _program_of(process)
        with self._lock:
            self._drop_ended()
            maker = self._makers.get(process)
            if maker is None:
                try:
                    maker = Maker(process, program, os.pidfd_open(process))
                except OSError:
                    return None
                self._makers[process] = maker
        return maker

    def is_by(self, maker: Maker, thread: int) -> bool:
        """Whether a thread, by its number, belongs to a program."""
        process = _process_of(thread)
        if process is None or process == maker.process:
            return process is not None
        return bool(maker.program) and _program_of(process) == maker.program

    def wrote(self) -> None:
        """Note that somebody writes."""
        self._last = time.monotonic()

    def is_at_work(self, maker: Maker) -> bool:
        """Whether a program still makes what it began."""
        if time.monotonic() > self._last + _PAUSE_SECONDS:
            return False
        with self._lock:
            maker.look()
        return not maker.ended

    def _drop_ended(self) -> None:
        for process, maker in list(self._makers.items()):
            maker.look()
            if maker.ended:
                del self._makers[process]


def _process_of(thread: int) -> int | None:
    """Return the number of the process that a thread belongs to, if that can be seen."""
    if thread <= 0:
        return None  # it is in another namespace
    with contextlib.suppress(OSError):
        found = _THREAD_GROUP.search(Path(f"/proc/{thread}/status").read_text())
        if found is not None:
            return int(found[1])
    return None


def _program_of(process: int) -> str:
    """Return the path of the executable that a process runs; "" if that cannot be seen."""
    try:
        return str(Path(f"/proc/{process}/exe").readlink())
    except OSError:
        return ""
