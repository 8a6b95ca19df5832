"""Keeps the interpreter's state of threads that it has not made, such as libfuse's.

ctypes makes a state for such a thread when it calls back, and deletes it when the callback returns.
That maps, touches and unmaps 16 KiB of memory for each call of the kernel's, and interrupts the
other processors. So the first callback of a thread takes its state once more, by which it stays.
What threads leave behind that have ended is deleted when more have come: libfuse ends those that it
does not need.

Locks: none. The interpreter's own lock is held throughout, and no Python runs while a state is
deleted.
"""

from __future__ import annotations

import ctypes
import os
import threading
from pathlib import Path

_MOST = 160
"""How many states are kept before those of threads that have ended are looked for. More threads
than this are not served at once (`libfuse`)."""

_THREADS = Path("/proc/self/task")


class _Local(threading.local):
    """What is known of the calling thread; new for each new state."""

    kept = False


class ThreadStates:
    """The states of the threads that call back."""

    def __init__(self) -> None:
        self._local = _Local()
        self._states: dict[int, int] = {}
        api = ctypes.pythonapi
        for name in ("PyThreadState_Clear", "PyThreadState_Delete"):
            getattr(api, name).argtypes = [ctypes.c_void_p]
            getattr(api, name).restype = None
        api.PyThreadState_Get.restype = ctypes.c_void_p

    def keep(self) -> None:
        """Keep the state of the calling thread; called in every callback, it acts in the first."""
        if self._local.kept:
            return
        self._local.kept = True
        thread = threading.get_native_id()
        ended = [self._states.pop(thread)] if thread in self._states else []
        if len(self._states) >= _MOST:
            alive = {int(one) for one in os.listdir(_THREADS)}  # noqa: PTH208 - names alone
            ended += [self._states.pop(one) for one in [*self._states] if one not in alive]
        for state in ended:
            ctypes.pythonapi.PyThreadState_Clear(state)
            ctypes.pythonapi.PyThreadState_Delete(state)
        ctypes.pythonapi.PyGILState_Ensure()
        self._states[thread] = ctypes.pythonapi.PyThreadState_Get()

    def __len__(self) -> int:
        return len(self._states)
