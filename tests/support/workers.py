"""Python processes that read a registry through fsspec, and begin when they are told."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from support import CHECKOUT

READ_ALL = """
import sys
from epochfs.fsspec import RegistryFileSystem
fs = RegistryFileSystem(sys.argv[1], cache_dir=sys.argv[2], timeout=20)
fs.info(sys.argv[3])
print("ready", flush=True); sys.stdin.readline()
fs.get_file(sys.argv[3], sys.argv[4])
"""
"""Arguments: a host, a cache directory, a path in the tree, and where to copy it to."""


def worker(*arguments: object, code: str = READ_ALL) -> subprocess.Popen[str]:
    """Start one; `code` says "ready" and waits for a line if it is to be begun."""
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(workers: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until all are ready, and let them go."""
    for one in workers:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in workers:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
