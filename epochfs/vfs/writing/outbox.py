"""Sends things once the registry has what they need: in order, once, and again after failures.

Locks: `_Turn.lock` is held while something is sent, so that it is sent once, and a tag's last
digest last. No other turn is taken under one, and nobody waits for it who does not send the same.
`Outbox._lock` guards which item is whose, and is a leaf; no I/O happens under it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

from epochfs.blobs.store import Timers
from epochfs.errors import DeadlineExceeded, EpochfsError, Unavailable, fresh
from epochfs.vfs.writing.waiting import Content, ContentKind, Waiter, Waiting

log = logging.getLogger(__name__)

_RETRY_SECONDS = 5.0
"""How long after the registry failed it is tried again to send what waits for nothing else."""

_LOOK_SECONDS = 5.0
"""For how long whoever writes something waits until all that it needs has been looked for."""

_PASSING = (Unavailable, DeadlineExceeded)
"""How sending fails that may succeed later, and that nothing else is tried after."""


@dataclass(eq=False)
class _Turn:
    """Whose turn it is to be sent, of all items of one name; `last` is the number of the last."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    last: int = 0


@dataclass(eq=False)
class _Item:
    """What waits: how it is sent, what happens then, and why it could not be when it was tried.

    What it replaced is over when it is sent: `sent` is of all that asked for the name. It is
    `ended` once nobody wants it to be sent any more.
    """

    send: Callable[[], None]
    sent: list[Callable[[], None]]
    number: int
    turn: _Turn
    error: EpochfsError | None = None
    ended: bool = False


class Outbox:
    """What is to be sent to one registry. Any thread may call anything."""

    def __init__(self, ask: Callable[[Content], bool]) -> None:
        """`ask` returns whether the registry has something, or takes it now."""
        self._ask = ask
        self._waiting = Waiting()
        self._lock = threading.Lock()
        self._items: dict[Waiter, _Item] = {}
        self._numbers = itertools.count(1)
        self._timers = Timers()
        self._retrying = self._closed = False
        self.count = 0
        """How many were sent."""
        # Handed on as they are.
        self.waits = self._waiting.waits
        self.is_needed = self._waiting.is_needed
        self.is_present = self._waiting.is_present
        self.removed = self._waiting.removed

    def begin(
        self,
        one: Waiter,
        needs: Iterable[Content],
        send: Callable[[], None],
        sent: Callable[[], None],
    ) -> bool:
        """Send something now if the registry has what it needs; return whether it was sent.

        It replaces what waited in its place, and is sent after that if that is being sent just now.
        """
        with self._lock:
            before = self._items.get(one)
            turn = _Turn() if before is None else before.turn
            earlier = [] if before is None else before.sent
            item = _Item(send, [*earlier, sent], next(self._numbers), turn)
            self._items[one] = item
        try:
            lacking, until = False, time.monotonic() + _LOOK_SECONDS
            for need in self._waiting.add(one, needs):
                if time.monotonic() > until:
                    self._timers.call(0, partial(self._look_on, one))
                    return False
                if self._has(need):
                    self.arrived(need, besides=one)
                else:
                    lacking = True
            if lacking and (self._items.get(one) is not item or self._waiting.missing(one)):
                return False
            self._finish(one, item)
        except BaseException:
            self._end(one, item)
            raise
        if isinstance(one, Content):
            self.arrived(one)
        return True

    def _has(self, need: Content) -> bool:
        return self._waiting.is_present(need) or self._ask(need)

    def arrived(self, content: Content, besides: Waiter | None = None) -> None:
        """Send what waited for something that the registry now has, and what waited for that.

        What cannot be sent goes on waiting, with the reason: who wrote it was told that it waits.
        """
        arrivals = deque([content])
        failed: EpochfsError | None = None
        while arrivals:
            for waiter in self._waiting.arrived(arrivals.popleft()):
                if waiter == besides:
                    continue
                failed = self._try(waiter, failed)
                if failed is None and isinstance(waiter, Content) and not self.waits(waiter):
                    arrivals.append(waiter)

    def _try(self, waiter: Waiter, failed: EpochfsError | None = None) -> EpochfsError | None:
        """Send something that waits for nothing more, unless the registry has `failed` just now.

        Return how the registry fails, if it does: nobody is to wait for it once more.
        """
        item = self._items.get(waiter)
        if item is None:
            return failed
        try:
            if failed is None:
                self._finish(waiter, item)
            else:
                item.error = failed
        except EpochfsError as error:
            log.warning("%s cannot be written: %s", waiter, error)
            failed = error if isinstance(error, _PASSING) else None
        if failed is not None:
            self._retry_later()
        return failed

    def _finish(self, waiter: Waiter, item: _Item) -> None:
        """Send something, unless it was sent meanwhile, or what came after it."""
        with item.turn.lock:
            if item.ended or item.number <= item.turn.last:
                return
            try:
                item.send()
            except EpochfsError as error:
                item.error = error
                raise
            item.turn.last = item.number
            self._end(waiter, item)
        self.count += 1
        for sent in item.sent:
            sent()

    def _retry_later(self) -> None:
        with self._lock:
            if self._retrying or self._closed:
                return
            self._retrying = True
        self._timers.call(_RETRY_SECONDS, self._retry_failed)

    def _retry_failed(self) -> None:
        """Send what could not be sent because the registry failed."""
        with self._lock:
            self._retrying = False
            failed = [one for one, item in self._items.items() if isinstance(item.error, _PASSING)]
        for one in failed:
            if self._closed or (not self._waiting.missing(one) and self._resend(one) is not None):
                return

    def _resend(self, waiter: Waiter) -> EpochfsError | None:
        """Send something that waits for nothing more, and what waits for it, as `_try` does."""
        failed = self._try(waiter)
        self._arrived_after(waiter)
        return failed

    def _arrived_after(self, waiter: Waiter) -> None:
        """Send what waited for something, if it was sent."""
        if isinstance(waiter, Content) and not self.waits(waiter):
            self.arrived(waiter)

    def _look_on(self, waiter: Waiter) -> None:
        """Look for what something needs, if nobody had the time to."""
        try:
            self.retry(float("inf"), waiter)
        except EpochfsError as error:
            log.warning("%s cannot be written: %s", waiter, error)

    def retry(self, seconds: float, waiter: Waiter | None = None) -> None:
        """Look once more for what is waited for, by `waiter` or by all, and send what can be.

        Raises how the registry fails, and DeadlineExceeded if there is more to do after `seconds`.
        """
        until = time.monotonic() + seconds
        waiting = [(one, needs) for one, needs in self._waiting.all() if waiter in (None, one)]
        for need in dict.fromkeys(need for _, needs in waiting for need in needs):
            if time.monotonic() > until:
                raise DeadlineExceeded(f"{need} and others were not looked for once more")
            if self._has(need):
                self.arrived(need)
        for one, _ in waiting:
            if time.monotonic() > until:
                raise DeadlineExceeded(f"{one} and others were not sent")
            if self.waits(one) and not self._waiting.missing(one):
                failed = self._resend(one)
                if failed is not None:
                    raise fresh(failed)

    def close(self) -> None:
        """Try nothing by itself any more."""
        with self._lock:
            self._closed = True

    def insist(self, waiter: Waiter, seconds: float) -> None:
        """Send something now, or raise why it cannot be.

        An index is sent even if manifests that it names are missing: whether it may be is for the
        registry to say (OCI Distribution specification 1.1, "Pushing Manifests").
        """
        self.retry(seconds, waiter)
        missing = self._waiting.missing(waiter)
        is_index = isinstance(waiter, Content) and all(
            need.kind is ContentKind.MANIFEST for need in missing
        )
        item = self._items.get(waiter)
        if item is not None and (is_index or not missing):
            self._finish(waiter, item)
            self._arrived_after(waiter)

    def forget(self, waiter: Waiter) -> None:
        """Have something wait no more, sent or not."""
        item = self._items.get(waiter)
        if item is not None:
            self._end(waiter, item)

    def _end(self, waiter: Waiter, item: _Item) -> None:
        """Have an item wait no more; what has replaced it goes on waiting."""
        with self._lock:
            item.ended = True
            if self._items.get(waiter) is item:
                del self._items[waiter]
                self._waiting.ended(waiter)

    def reasons(self) -> list[str]:
        """Return a line for all that waits: what, and for what."""
        lines = []
        for waiter, missing in self._waiting.all():
            if self._is_a_blob(waiter):
                continue
            item = self._items.get(waiter)
            if missing:
                more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
                lines.append(f"{waiter} waits for {missing[0]}{more}")
            elif item is not None:
                lines.append(f"{waiter} could not be sent: {item.error or 'it is being sent'}")
        return sorted(lines)

    def _is_a_blob(self, waiter: Waiter) -> bool:
        """Whether what looks like a manifest was sent as a blob, and nothing needs it as one."""
        if not isinstance(waiter, Content) or self._waiting.is_needed(waiter):
            return False
        return self._waiting.is_present(Content(waiter.repository, waiter.digest, ContentKind.BLOB))
