"""Logging: one line a record, with the time in UTC, to stderr or a file."""

from __future__ import annotations

import logging
import re
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

from epochfs.errors import MountFailure, printable

LEVELS = ("debug", "info", "warning", "error")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class _OneLine(logging.Formatter):
    """Keeps a record on its line: a traceback's lines are joined, control characters escaped."""

    def __init__(self) -> None:
        super().__init__(
            "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S"
        )
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        joined = super().format(record).replace("\n", " | ")
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], joined)


def configure(level: str, file: Path | None, *, foreground: bool) -> None:
    """Send epochfs's records from `level` up to `file`; raises MountFailure.

    Without a file they go to stderr in the foreground, and nowhere in the background.

    Other packages are heard from warnings up only: urllib3's finer lines show whole URLs, and those
    of redirects to storage hold signatures.
    """
    handler: logging.Handler
    try:
        if file is not None:
            handler = WatchedFileHandler(file)  # opened anew after logrotate has moved it away
        else:
            handler = logging.StreamHandler() if foreground else logging.NullHandler()
    except OSError as error:
        raise MountFailure(
            f"cannot write the log '{printable(file)}': {error.strerror}: choose another --log-file"
        ) from None
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("epochfs").setLevel(level.upper())
    logging.getLogger("urllib3").setLevel(logging.ERROR)
