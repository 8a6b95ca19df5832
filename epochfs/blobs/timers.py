"""A timer: one thread for all that is due later, which exists while anything is.

`threading.Timer` takes a thread for each, and 64 readers of small blobs leave a hundred at a time.

Locks: `Timers._lock` guards whether the thread runs; only the scheduler's own lock, a leaf, is
taken under it. Nothing is held while an action runs.
"""

from __future__ import annotations

import logging
import sched
import threading
import time
from collections.abc import Callable

log = logging.getLogger(__name__)


class Timers:
    """Calls actions at later times. Any thread may call anything."""

    def __init__(self) -> None:
        self._added = threading.Event()
        self._scheduler = sched.scheduler(time.monotonic, self._sleep)
        self._lock = threading.Lock()
        self._running = False

    def call(self, seconds: float, action: Callable[[], None]) -> None:
        """Call `action` in `seconds`, or once those before it have ended."""

        def logged() -> None:
            try:
                action()
            except Exception:
                log.exception("unforeseen failure of what was put off")

        with self._lock:
            self._scheduler.enter(seconds, 0, logged)
            self._added.set()
            if not self._running:
                try:
                    threading.Thread(target=self._run, name="timers", daemon=True).start()
                    self._running = True
                except RuntimeError as error:
                    log.warning("what was put off waits for the next of its kind: %s", error)

    def _sleep(self, seconds: float) -> None:
        """Wait for the next action's time, or until another has been added, maybe before it."""
        self._added.wait(seconds)
        self._added.clear()

    def _run(self) -> None:
        while True:
            self._scheduler.run()
            with self._lock:
                if self._scheduler.empty():
                    self._running = False
                    return
