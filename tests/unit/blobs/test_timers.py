"""Actions at later times, in one thread."""

from __future__ import annotations

import threading

import pytest
from support.scripted import until

from epochfs.blobs.store import Timers


def test_actions_are_called_in_the_order_of_their_times_by_one_thread() -> None:
    timers = Timers()
    called: list[tuple[str, threading.Thread]] = []

    def in_time(seconds: float, name: str) -> None:
        timers.call(seconds, lambda: called.append((name, threading.current_thread())))

    in_time(0.3, "last")
    in_time(0.2, "second")
    in_time(0.1, "first")
    until(lambda: len(called) == 3)
    assert [name for name, _ in called] == ["first", "second", "last"]
    assert len({thread for _, thread in called}) == 1


def test_one_that_is_due_before_all_others_does_not_wait_for_them() -> None:
    timers, called = Timers(), threading.Event()
    timers.call(3600, lambda: None)
    timers.call(0.05, called.set)
    assert called.wait(10)


@pytest.mark.expects_log("unforeseen failure")
def test_one_that_fails_keeps_none_from_being_called() -> None:
    timers, called = Timers(), threading.Event()
    timers.call(0, lambda: 1 // 0)
    timers.call(0.05, called.set)
    assert called.wait(10)


def test_an_action_may_add_another_and_without_any_there_is_no_thread() -> None:
    timers = Timers()
    threads: list[threading.Thread] = []

    def note() -> None:
        threads.append(threading.current_thread())

    timers.call(0, lambda: timers.call(0.05, note))
    until(lambda: len(threads) == 1)
    until(lambda: not threads[0].is_alive())
    timers.call(0, note)
    until(lambda: len(threads) == 2)
    assert threads[1] is not threads[0]
