"""The progress of a transfer: bytes, rate and time left as it runs, then a summary."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from epochfs.cli.progress import LiveLine
from epochfs.session.prefetcher import Progress

_RATE_SECONDS = 10.0
_LIVE_SECONDS = 0.1
_LINE_SECONDS = 10.0


class TransferView:
    """Shows a prefetch on a terminal's live line, or as a line on stderr every ten seconds."""

    def __init__(self, line: LiveLine, clock: Callable[[], float] = time.monotonic) -> None:
        self._line = line
        self._clock = clock
        self._samples: deque[tuple[float, int]] = deque()
        self._next = clock() + (0.0 if line.is_live else _LINE_SECONDS)

    def finding(self, progress: Progress) -> None:
        """Show that blobs are still being found."""
        self._show(f"finding: {progress.blobs} blobs, {shown_size(progress.size)}")

    def fetching(self, progress: Progress) -> None:
        """Show how far the transfer is; to be called more often than anybody looks."""
        now = self._clock()
        self._samples.append((now, progress.moved))
        while now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        since, moved = self._samples[0]
        rate = (progress.moved - moved) / (now - since) if now > since else 0.0
        done = progress.size - progress.left
        self._show(
            f"{_percent(done, progress.size)}  "
            f"{shown_size(done)} of {shown_size(progress.size)}  {shown_size(rate)}/s  "
            f"{_time_left(progress.left, rate)}  "
            f"{progress.fetched + progress.there + progress.failed}/{progress.blobs} blobs"
        )

    def _show(self, text: str) -> None:
        now = self._clock()
        if now < self._next:
            return
        if self._line.is_live:
            self._next = now + _LIVE_SECONDS
            self._line.show(text)
        else:
            self._next = now + _LINE_SECONDS
            self._line.say(text)


def summary(progress: Progress) -> str:
    """Return what became of all blobs, as one line."""
    return (
        f"{progress.blobs} blobs, {shown_size(progress.size)}: {progress.fetched} fetched, "
        f"{progress.there} were there, {progress.failed} failed"
    )


def shown_size(size: float) -> str:
    """Return a number of bytes as people read it, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def _percent(done: int, size: int) -> str:
    return f"{100 * done // size if size else 100} %"


def _time_left(left: int, rate: float) -> str:
    if not rate:
        return "-:-- left"
    minutes, seconds = divmod(round(left / rate), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02} left" if hours else f"{minutes}:{seconds:02} left"
