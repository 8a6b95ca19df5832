"""What libfuse returns, and what becomes of it."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.mounts import require_fuse
from support.operations import operations_on
from support.scripted import until

from epochfs.errors import MountFailure
from epochfs.vfs.directories import Listing
from epochfs.vfs.node import Attr


@pytest.fixture
def libfuse() -> Any:
    """The module, which cannot be imported without the library."""
    require_fuse()
    from epochfs.fuse import libfuse

    return libfuse


def ended_with(libfuse: Any, code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a mount that libfuse ends with a code."""

    def fuse(*_: object, **__: object) -> None:
        raise RuntimeError(code)

    monkeypatch.setattr(libfuse, "_Fuse", fuse)
    libfuse.serve(None, path, libfuse.FuseOptions("x", 1.0, 0, 0))


def test_a_connection_that_ends_with_the_mount_is_its_end(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_with(libfuse, 8, tmp_path, monkeypatch)


def test_a_connection_that_ends_under_a_mount_is_an_error(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libfuse, "mounted_on", lambda _: object())
    with pytest.raises(MountFailure, match="the kernel ended the connection"):
        ended_with(libfuse, 8, tmp_path, monkeypatch)


def test_a_mount_that_cannot_be_made_is_an_error(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MountFailure, match="could not mount"):
        ended_with(libfuse, 4, tmp_path, monkeypatch)


def how_served(
    libfuse: Any,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: tuple[int, int],
    *,
    writable: bool = False,
) -> tuple[bool, int | None]:
    """Return whether threads keep their states, and how many may idle, with a libfuse."""
    asked: list[tuple[bool, int | None]] = []

    def fuse(_: object, __: object, states: object, **options: Any) -> None:
        asked.append((states is not None, options.get("max_idle_threads")))

    monkeypatch.setattr(libfuse, "_Fuse", fuse)
    monkeypatch.setattr(libfuse, "library_version", lambda: version)
    libfuse.serve(None, path, libfuse.FuseOptions("x", 1.0, 0, 0, writable=writable))
    return asked[0]


def test_threads_keep_their_states_only_where_none_ends_before_the_mount(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = partial(how_served, libfuse, tmp_path, monkeypatch)
    assert served((3, 12)) == (True, 128)
    assert served((3, 12), writable=True) == (False, 16)
    assert served((3, 11)) == (False, None)
    assert served((2, 9)) == (False, None)


_TOO_OLD = 77
_SERVES = f"""
import collections, gc, logging, pathlib, sys, threading, time
from epochfs.cli.system import library

library()

from epochfs.fuse import libfuse
from epochfs.fuse.stat import Stat

if libfuse.library_version() < (3, 12):
    sys.exit({_TOO_OLD})

states, local = collections.Counter(), threading.local()

class Slow(libfuse.Operations):
    use_ns = True

    def init(self, path):
        pass

    def init_with_config(self, connection, config):
        connection.max_read = libfuse.MAX_READ

    def getattr(self, path, fi=None):
        logging.getLogger().warning("asked for by a thread that has a name then")
        if not hasattr(local, "seen"):
            local.seen = True
            states[threading.get_native_id()] += 1
        time.sleep(0.01)
        return Stat(0o40555, hash(path) & 0xffffff | 1, 1)

options = libfuse.FuseOptions("x", 0.0, 0, 0)
libfuse.serve(Slow(), pathlib.Path(sys.argv[1]), options)
gc.collect()
sys._current_frames()
print(len(states), max(states.values()))
"""


@pytest.mark.parametrize("end", ["fusermount", "lazily", "TERM", "INT"])
def test_a_process_whose_threads_kept_their_states_ends_well(tmp_path: Path, end: str) -> None:
    require_fuse()
    command = [sys.executable, "-c", _SERVES, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True) as process:
        until(lambda: os.path.ismount(tmp_path) or process.poll() is not None, 20)
        if process.returncode == _TOO_OLD:
            pytest.skip("this libfuse ends threads that idle")
        with ThreadPoolExecutor(32) as pool:
            for _ in pool.map(lambda number: (tmp_path / f"{number}").stat(), range(64)):
                pass
        if end in {"TERM", "INT"}:
            process.send_signal(getattr(signal, f"SIG{end}"))
        else:
            how = ["umount", "-l"] if end == "lazily" else ["fusermount3", "-u"]
            subprocess.run([*how, tmp_path], check=True)
        told, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    threads, most = map(int, told.split())
    assert threads > 1
    assert most == 1, "a thread had more than one state"


class _Known:
    """A directory of files all of whose attributes are known."""

    def __init__(self, names: list[str]) -> None:
        self._listing = Listing("/d", [(name, stat.S_IFREG) for name in names], {})

    def readdir(self, path: str, handle: int, *, anew: bool) -> Listing:
        return self._listing

    def read_to_end(self, reader: int) -> None:
        pass

    def basis(self, path: str) -> None:
        return None

    def known_attrs(self, path: str, names: list[str]) -> dict[str, Attr]:
        return {name: Attr(stat.S_IFREG | 0o444) for name in names}


def test_an_answer_with_attributes_is_never_cut_off(libfuse: Any) -> None:
    """What libfuse cuts off it counts as remembered by the kernel, which never forgets it."""
    names = [f"{number:04}{'é' * (number % 120)}" for number in range(1000)]
    operations = operations_on(_Known(names))
    seen: list[str] = []
    offset = 0
    while True:
        answer = [*operations.readdir_with_offset("/d", offset, 1, libfuse.READDIR_PLUS)]
        if not answer:
            break
        assert sum(152 + -(-len(name.encode()) // 8) * 8 for name, _, _ in answer) <= 4096
        assert all(known.links for name, known, _ in answer if name not in {".", ".."})
        seen += [name for name, _, _ in answer]
        offset = answer[-1][2]
    assert seen == [".", "..", *names]
