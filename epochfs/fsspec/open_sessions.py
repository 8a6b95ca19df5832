"""Sessions of this process: one for all file systems of the same settings, whatever the thread.

fsspec keeps an instance for each thread; connections, downloads and answers are shared here.

A forked child begins with none. What it inherited is neither used nor ended in it, as its threads
do not exist there and its sockets are the parent's; only the descriptors that hold the cache's
locks are closed, for a lock lasts until all its copies are.

Locks: `_lock` guards the table of sessions, and each `Session` how many calls are in it; nothing is
opened or closed under either. `_Slot.turn` makes one session of the same settings at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from epochfs.errors import EpochfsError
from epochfs.session import SessionSettings

if TYPE_CHECKING:
    from epochfs.vfs.filesystem import FileSystem

log = logging.getLogger(__name__)

_LOCKED = ("partial/", "blobs/", "mounts/", "turns")
"""What of a cache is locked while it is open: directories of files, and a file."""

_DESCRIPTORS = Path("/proc/self/fd")


class OpenSession:
    """An open session, in the process that opened it."""

    def __init__(self, settings: SessionSettings) -> None:
        from epochfs.session.opening import open_session

        self.pid = os.getpid()
        self.settings = settings
        with contextlib.ExitStack() as closing:
            self.filesystem: FileSystem = open_session(settings, closing).filesystem
            self._closing = closing.pop_all()
        self._lock = threading.Lock()
        self._calls = 0
        self._closed = False
        self._end = weakref.finalize(self, _end, self._closing, self.pid)

    @property
    def is_ours(self) -> bool:
        """Whether this process opened it, and has not closed it."""
        return self.pid == os.getpid() and not self._closed

    @contextlib.contextmanager
    def in_use(self) -> Iterator[FileSystem]:
        """Keep it open at the interpreter's exit while somebody reads whom that waits for."""
        counted = not threading.current_thread().daemon
        with self._lock:
            self._calls += counted
        try:
            yield self.filesystem
        finally:
            with self._lock:
                self._calls -= counted

    def close_if_idle(self) -> None:
        with self._lock:
            self._closed = self._closed or not self._calls
        if self._closed and self._end.detach():
            _close(self._closing)


def _end(closing: contextlib.ExitStack, pid: int) -> None:
    """Close a session that nobody has any more, or at exit.

    The collector may run in a thread of the session itself, which must not wait for itself.
    """
    if pid != os.getpid():
        return
    try:
        threading.Thread(target=_close, args=(closing,), name="closing", daemon=True).start()
    except RuntimeError:  # the interpreter is at its end
        _close(closing)


def _close(closing: contextlib.ExitStack) -> None:
    try:
        closing.close()
    except (EpochfsError, OSError) as error:
        log.debug("closing a session: %s", error)


@dataclass(eq=False)
class _Slot:
    """The session of some settings; `turn` is held while it is opened."""

    turn: threading.Lock = field(default_factory=threading.Lock)
    session: Callable[[], OpenSession | None] = lambda: None


_lock = threading.Lock()
_slots: dict[SessionSettings, _Slot] = {}
_inherited: list[object] = []
"""What a forked child must not end: kept for ever."""


def opened(settings: SessionSettings) -> OpenSession:
    """Return the session of these settings, opened if need be; it ends when nobody has it.

    Raises EpochfsError.
    """
    with _lock:
        slot = _slots.setdefault(settings, _Slot())
    with slot.turn:
        session = slot.session()
        if session is None or not session.is_ours:
            _close_at_exit()
            session = OpenSession(settings)
            slot.session = weakref.ref(session)
        return session


def keep_inherited(session: OpenSession) -> None:
    """Never end a session that a parent opened."""
    _inherited.append(session)


def close_idle() -> None:
    """Close the sessions in which nobody reads; who reads later opens another."""
    with _lock:
        slots = list(_slots.values())
    for slot in slots:
        if session := slot.session():
            session.close_if_idle()


@functools.cache
def _close_at_exit() -> None:
    """Have sessions closed before the interpreter waits for their threads.

    It does so before `atexit`, and a thread may wait for a silent registry until its deadline.
    """
    import concurrent.futures.thread  # noqa: F401 - whose own turn at the exit is after ours

    register = getattr(threading, "_register_atexit", atexit.register)
    with contextlib.suppress(RuntimeError):  # the interpreter is at its end
        register(close_idle)


def _after_fork() -> None:
    """Forget, in a child, what the parent has open, and leave the locks of its cache to it."""
    global _lock, _slots
    sessions = [session for slot in _slots.values() if (session := slot.session()) is not None]
    _inherited.extend((_slots, sessions))
    _lock = threading.Lock()
    _slots = {}
    caches = [session.settings.cache for session in sessions]
    for directory in {cache.directory for cache in caches if not cache.off}:
        _close_locked(directory)


def _close_locked(cache: Path) -> None:
    """Close the descriptors that hold locks of a cache."""
    from epochfs.cache.directory import FORMAT

    begins = tuple(f"{os.path.realpath(cache / FORMAT)}/{name}" for name in _LOCKED)
    with contextlib.suppress(OSError):
        for link in list(_DESCRIPTORS.iterdir()):
            with contextlib.suppress(OSError):
                if str(link.readlink()).startswith(begins):
                    os.close(int(link.name))


os.register_at_fork(after_in_child=_after_fork)
