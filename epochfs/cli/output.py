"""The output of commands beside their results: log records, progress bars, sizes in words."""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
import time
from collections.abc import MutableMapping
from contextlib import suppress
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO

from tqdm import tqdm

from epochfs.errors import MountFailure, printable

_USUAL_WIDTH, _USUAL_HEIGHT = 80, 24
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

if TYPE_CHECKING:
    _Bar = tqdm[NoReturn]  # generic to its stubs alone
else:
    _Bar = tqdm

tqdm.monitor_interval = 0  # no thread of its own: `mount` forks
tqdm.set_lock(threading.RLock())  # its default is shared by processes, and may start one


class ProgressBar(_Bar):
    """A line on a terminal's stderr that is rewritten as something goes on, and wiped at the end.

    Without a terminal there is none. `layout` may use tqdm's fields, and our own sizes: `done`,
    `whole` and `speed` (a second).
    """

    def __init__(
        self, layout: str, *, total: int | None = None, initial: int = 0, delay: float = 0.0
    ) -> None:
        """`total` and `initial` are in bytes; `delay` is in seconds."""
        super().__init__(
            bar_format=f"epochfs: {layout}",
            total=total,
            initial=initial,
            delay=delay,
            file=sys.stderr,
            disable=None,  # where stderr is no terminal
            leave=False,
            miniters=1 if total else 0,  # with 1, time without a byte counts in the rate
            ncols=_USUAL_WIDTH,  # given, as without a size a terminal would be shown nothing
            nrows=_USUAL_HEIGHT,
        )

    @property
    def format_dict(self) -> MutableMapping[str, Any]:
        """The fields of a layout."""
        fields = super().format_dict
        with suppress(OSError):
            fields["ncols"] = os.get_terminal_size(self.fp.fileno()).columns or _USUAL_WIDTH
        elapsed = fields["elapsed"]
        rate = fields["rate"] or ((self.n - self.initial) / elapsed if elapsed else 0)
        sizes = {"done": self.n, "whole": self.total or 0, "speed": rate}
        return {**fields, **{name: shown_size(size) for name, size in sizes.items()}}


def notify(text: str) -> None:
    """Write a line to stderr, above any progress bar."""
    tqdm.write(f"epochfs: {text}", file=sys.stderr)


def shown_size(size: float) -> str:
    """Return a number of bytes for people to read, in powers of 1024: `1.3 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if size >= 100 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class _OneLine(logging.Formatter):
    """Keeps a record on one line: joins a traceback's lines, escapes control characters."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        joined = super().format(record).replace("\n", " | ")
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], joined)


class AboveBars(logging.StreamHandler[TextIO]):
    """Writes to stderr, above any progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(file=self.stream):
            super().emit(record)


def configure_logging(level: str, file: Path | None, *, foreground: bool) -> None:
    """Log to `file`, one line per record with the time in UTC; raises MountFailure.

    Without a file, log to stderr in the foreground, and nowhere in the background. `level` is that
    of epochfs; other packages log warnings only: urllib3's finer lines show whole URLs, and those
    of redirects to storage contain signatures.
    """
    handler: logging.Handler
    try:
        if file is not None:
            handler = WatchedFileHandler(file)  # reopened after logrotate has moved it away
        else:
            handler = AboveBars(sys.stderr) if foreground else logging.NullHandler()
    except OSError as error:
        raise MountFailure(
            f"cannot write the log '{printable(file)}': {error.strerror}: choose another --log-file"
        ) from None
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("epochfs").setLevel(level.upper())
    logging.getLogger("urllib3").setLevel(logging.ERROR)
