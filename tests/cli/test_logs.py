"""Log lines, and the signals that end a mount."""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from epochfs.cli import output, process
from epochfs.errors import MountFailure


@pytest.fixture
def _restored_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("epochfs", "urllib3")}
    yield
    root.handlers[:], root.level = handlers, level
    for name, value in levels.items():
        logging.getLogger(name).setLevel(value)


@pytest.mark.usefixtures("_restored_logging")
def test_a_record_is_one_line_with_its_time_in_utc(tmp_path: Path) -> None:
    file = tmp_path / "log"
    output.configure_logging("info", file, foreground=False)
    logger = logging.getLogger("epochfs.test")
    logger.debug("not this")
    logger.info("a\x1b[31m\nb")
    try:
        raise ValueError("what")
    except ValueError:
        logger.info("failed", exc_info=True)
    logging.getLogger("urllib3.connectionpool").warning("not /signed?url")
    first, second = file.read_text().splitlines()
    stamp, level, name, message = first.split(" ", 3)
    moment = time.strptime(stamp, f"%Y-%m-%dT%H:%M:%S.{stamp[20:23]}Z")
    assert abs(time.mktime(moment) - time.mktime(time.gmtime())) < 10
    assert (level, name, message) == ("INFO", "epochfs.test:", "a\\x1b[31m | b")
    assert "failed | Traceback" in second
    assert second.endswith("ValueError: what")


def test_a_log_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(MountFailure, match=r"cannot write the log .*--log-file"):
        output.configure_logging("info", tmp_path / "none" / "log", foreground=False)


def test_a_hangup_ends_only_a_mount_that_has_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    both = {signal.SIGINT, signal.SIGTERM}
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert process.terminating_signals(foreground=True) == both | {signal.SIGHUP}
    assert process.terminating_signals(foreground=False) == both
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert process.terminating_signals(foreground=True) == both
