"""Threads that the interpreter has not made keep their states, and leave none behind."""

from __future__ import annotations

import ctypes
import threading

from epochfs.fuse.thread_states import ThreadStates

_THREADS = 400

_Start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)


def run_in_a_foreign_thread(call: object) -> None:
    """Call back from a thread of the C library's, and wait for its end."""
    libc, thread = ctypes.CDLL(None), ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(thread), None, call, None) == 0
    assert libc.pthread_join(thread, None) == 0


def test_states_of_threads_that_have_ended_do_not_pile_up() -> None:
    states = ThreadStates()
    seen = set()

    @_Start
    def begin(_: object) -> None:
        states.keep()
        states.keep()
        seen.add(threading.get_native_id())

    most = 0
    for _ in range(_THREADS):
        run_in_a_foreign_thread(begin)
        most = max(most, len(states))
    assert len(seen) > 1
    assert 1 <= most <= 161
