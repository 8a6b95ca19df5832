"""Kill a mount at a random moment, again and again, and look at what is left.

    python -m support.killcycles [CYCLES]

Each cycle mounts a real docker-registry, over a way slow enough to be killed on, with the cache
that the last one left; reads its blobs from start to end and here and there; and kills the mount
(SIGKILL) in the midst. The next mount must show right bytes only; the cache must hold no file under
a digest that is not its own, and no range map that vouches for other bytes than the blob's. Now and
then all is read to the end.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from epochfs.oci.names import Digest
from support.builders import image, random_bytes
from support.faultproxy import BLOB, FaultProxy
from support.faults import paced
from support.integrity import defects, push, read
from support.mounts import Mount, Mounts
from support.standalone import run_cycles

NAME = "killed/app"
MIB = 1 << 20
APP = image(*(random_bytes(size, size) for size in (64 << 10, 3 * MIB, 9 * MIB + 1, 24 * MIB)))
BLOBS = {Digest.of(blob).encoded: blob for blob in APP.blobs}

_CYCLES_TO_THE_END = 10
_LONGEST_SECONDS = 0.6
_PAUSE_SECONDS = 0.002
_PAGE = 4096

_SAVES_OFTEN = """
import epochfs.blobs.staged_file
from epochfs.cli import main
epochfs.blobs.staged_file._SAVE_SECONDS = 0.05
main()
"""
"""The command, but for range maps that are written 200 times as often, to be killed while at it."""


@dataclass
class Tally:
    """What was seen in all cycles."""

    kills: int = 0
    bytes_read: int = 0
    wrong: int = 0
    kept: int = 0
    partial: int = 0
    defects: int = 0
    blobs_to_the_end: int = 0

    @property
    def clean(self) -> bool:
        return not self.wrong and not self.defects

    def __str__(self) -> str:
        return (
            f"{self.kills} kills; {self.bytes_read / MIB:.0f} MiB read, {self.wrong} wrong reads; "
            f"caches left: {self.kept} complete blobs, {self.partial} range maps, "
            f"{self.defects} defects; {self.blobs_to_the_end} blobs read to the end after"
        )


class _Readers:
    """Threads that read a mount until it is gone; each right byte and each wrong read counts."""

    def __init__(self, mount: Mount, tally: Tally, seed: int) -> None:
        self._mount = mount
        self._tally = tally
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._run, args=(random.Random(seed * 10 + number),))
            for number in range(4)
        ]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, chance: random.Random) -> None:
        blobs = list(BLOBS.values())
        for _ in range(20):
            blob = chance.choice(blobs)
            whole = chance.random() < 0.5
            try:
                self._read_whole(blob) if whole else self._read_here_and_there(blob, chance)
            except OSError:
                return

    def _read_whole(self, blob: bytes) -> None:
        outcome = read(_path(self._mount, blob), len(blob))
        self._count(outcome.data, blob[: len(outcome.data)])
        if outcome.code:
            raise OSError(outcome.code, "the mount is gone")

    def _read_here_and_there(self, blob: bytes, chance: random.Random) -> None:
        with _path(self._mount, blob).open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(5):
                offset = chance.randrange(len(blob))
                self._count(os.pread(file.fileno(), _PAGE, offset), blob[offset : offset + _PAGE])

    def _count(self, found: bytes, right: bytes) -> None:
        with self._lock:
            self._tally.bytes_read += len(found)
            self._tally.wrong += found != right


def _path(mount: Mount, blob: bytes) -> Path:
    return mount.path / NAME / "blobs" / str(Digest.of(blob))


def _look_at(cache: Path, tally: Tally) -> None:
    tally.kept += sum(file.is_file() for file in (cache / "v1" / "blobs").rglob("*"))
    tally.partial += len(list((cache / "v1" / "partial").rglob("*.map")))
    tally.defects += len(list(defects(cache, BLOBS)))


def _read_to_the_end(mounts: Mounts, url: str, cache: Path, tally: Tally) -> None:
    mount = mounts(url, cache=cache)
    for blob in BLOBS.values():
        outcome = read(_path(mount, blob), len(blob))
        tally.wrong += outcome.data != blob
        tally.blobs_to_the_end += 1
    mount.unmount()
    _look_at(cache, tally)


def run(host: str, directory: Path, cycles: int, seed: int = 1) -> Tally:
    """Kill mounts of the registry at `host`, to which `APP` is pushed as `NAME`."""
    push(f"http://{host}", NAME, "latest", APP)
    with FaultProxy(host) as proxy, closing(Mounts(directory)) as mounts:
        proxy.set(BLOB, paced(_PAUSE_SECONDS))
        return _run(proxy.url, directory, mounts, cycles, random.Random(seed))


def _run(url: str, directory: Path, mounts: Mounts, cycles: int, chance: random.Random) -> Tally:
    tally = Tally()
    caches = (directory / f"cache{number}" for number in itertools.count())
    cache = next(caches)
    for cycle in range(1, cycles + 1):
        mount = mounts(url, cache=cache, command=(sys.executable, "-c", _SAVES_OFTEN))
        readers = _Readers(mount, tally, cycle)
        threading.Event().wait(chance.uniform(0.0, _LONGEST_SECONDS))
        if chance.random() < 0.3:
            # In its last moments of an orderly end it saves what it has.
            mount.process.terminate()
            threading.Event().wait(chance.uniform(0.0, 0.1))
        mount.kill()
        readers.join()
        tally.kills += 1
        _look_at(cache, tally)
        if cycle % _CYCLES_TO_THE_END == 0 or cycle == cycles:
            _read_to_the_end(mounts, url, cache, tally)
            shutil.rmtree(cache)
            cache = next(caches)
            print(f"after cycle {cycle}: {tally}", flush=True)
    return tally


if __name__ == "__main__":
    sys.exit(run_cycles("kill-cycles", run))
