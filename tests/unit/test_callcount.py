"""The path of a read stays as short as it is: what `scripts/calls` counts does not grow."""

from __future__ import annotations

import re
import subprocess
import sys

from support import CHECKOUT

MOST = {
    "cold readlink of a tag": (18, 90),
    "first read of a blob of 10 KiB": (16, 90),
}
"""The most files and calls of the thread that asks."""


def test_no_read_goes_through_more_files_and_calls_than_it_needs() -> None:
    command = [sys.executable, "-m", "scripts.callcount"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True)
    found = re.findall(r"^(.+?): (\d+) files, (\d+) calls;", done.stdout, re.MULTILINE)
    assert [what for what, _, _ in found] == list(MOST)
    for what, files, calls in found:
        most_files, most_calls = MOST[what]
        assert int(files) <= most_files, what
        assert int(calls) <= most_calls, what
