"""Keeps the interpreter's state of the threads that libfuse makes.

ctypes makes a state for such a thread when it calls back, and deletes it when the callback returns.
That maps, touches and unmaps 16 KiB of memory for each request of the kernel's. So the first
callback of a thread takes its state once more, by which it stays until the interpreter ends, which
deletes the states of all other threads. Nothing deletes them before: only threads that are not
ended while the mount lasts may keep theirs.

Locks: none. Each thread touches its own state only.
"""

from __future__ import annotations

import ctypes
import threading


class ThreadStates(threading.local):
    """Whether the calling thread keeps its state; new for each new state."""

    _is_kept = False

    def keep(self) -> None:
        """Keep the state of the calling thread, from within a callback."""
        if not self._is_kept:
            self._is_kept = True
            ctypes.pythonapi.PyGILState_Ensure()
