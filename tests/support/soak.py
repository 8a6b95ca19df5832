"""Read a mount with 64 readers for minutes, while one answer in a hundred is broken.

    python -m support.soak [MINUTES]

A proxy breaks answers of a real docker-registry; the cache is a twentieth of what is read, so that
blobs come and go. After a tenth of the time, and at the end, the readers pause, and what the
serving process then has (memory, threads, descriptors) is compared. A reader may get an errno, and
never a wrong byte. (Of a byte that was spoiled on its way, in a blob that was not yet all here, a
reader is told by an error later on; so that one byte is looked at in whole reads only.)
"""

from __future__ import annotations

import itertools
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from epochfs.oci.names import Digest
from support import faults
from support.builders import image, random_bytes
from support.faultproxy import BLOB, MANIFEST, FaultProxy
from support.faults import FLIPPED
from support.integrity import push, read
from support.mounts import Mount, Mounts
from support.standalone import own_registry

NAME = "soaked/app"
MIB = 1 << 20
APP = image(*(random_bytes(60_000 + 27_001 * number, number) for number in range(160)))
"""More blobs than readers: one that is being read cannot leave the cache."""

READERS = 64
SHARE = 0.01

_CACHE_SIZE = "16M"
_REST_SECONDS = 12.0
"""Longer than a download without readers goes on."""

_PAGE = 4096
_MEMORY_GROWTH = 1.25
_OTHER_GROWTH = 8
_CHANCE = random.Random(5)
_BROKEN = (
    faults.reset,
    faults.reset_every(512 << 10),
    faults.close_after(700 << 10),
    faults.flipped,
    faults.content_range(None),
    faults.status(500),
    faults.retry_after("1"),
    faults.silence_after(300 << 10),
    faults.redirect_loop,
)


@dataclass(frozen=True)
class Sample:
    """What a process has: resident memory in bytes, threads, descriptors.

    Without libfuse's threads and the pipe that each of them has: it keeps as many as were ever busy
    at once, up to 128, and their memory counts.
    """

    memory: int
    threads: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        status = Path(f"/proc/{pid}/status").read_text()
        found = {
            name: int(value) for name, value in re.findall(r"(VmRSS|Threads):\s+(\d+)", status)
        }
        descriptors = [_target(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
        pipes = sum(target.startswith("pipe:") for target in descriptors)
        return cls(found["VmRSS"] * 1024, found["Threads"] - pipes // 2, len(descriptors) - pipes)

    def has_grown_to(self, later: Sample) -> bool:
        return (
            later.memory > self.memory * _MEMORY_GROWTH
            or later.threads > self.threads + _OTHER_GROWTH
            or later.descriptors > self.descriptors + _OTHER_GROWTH
        )

    def __str__(self) -> str:
        return (
            f"{self.memory / MIB:.1f} MiB, {self.threads} threads, {self.descriptors} descriptors"
        )


@dataclass
class Load:
    """64 readers, who run for a time and then rest."""

    mount: Mount
    reads: int = 0
    bytes_read: int = 0
    wrong: int = 0
    errors: Counter[int] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _seeds: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, seconds: float) -> None:
        """Read for so long, and say once a minute how it goes."""
        end = time.monotonic() + seconds
        readers = [threading.Thread(target=self._read, args=(end,)) for _ in range(READERS)]
        for reader in readers:
            reader.start()
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(left, 60.0))
            print(f"under load: {Sample.of(self.mount.process.pid)}; {self}", flush=True)
        for reader in readers:
            reader.join()

    def _read(self, end: float) -> None:
        chance = random.Random(next(self._seeds))
        while time.monotonic() < end:
            blob = chance.choice(APP.blobs)
            path = self.mount.path / NAME / "blobs" / str(Digest.of(blob))
            try:
                if chance.random() < 0.3:
                    self._read_whole(path, blob)
                else:
                    self._read_here_and_there(path, blob, chance)
            except OSError as error:
                with self._lock:
                    self.errors[error.errno or -1] += 1

    def _read_whole(self, path: Path, blob: bytes) -> None:
        outcome = read(path, len(blob))
        vouched = len(blob) if outcome.code == 0 else FLIPPED
        self._count(path, outcome.data[:vouched], blob[: len(outcome.data)][:vouched], 0)
        if outcome.code:
            raise OSError(outcome.code, "not to the end")
        with path.open("rb") as file:
            _forget_pages(file)

    def _read_here_and_there(self, path: Path, blob: bytes, chance: random.Random) -> None:
        with path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for _ in range(5):
                offset = chance.randrange(len(blob))
                if not offset <= FLIPPED < offset + _PAGE:
                    found = os.pread(file.fileno(), _PAGE, offset)
                    self._count(path, found, blob[offset : offset + _PAGE], offset)
            _forget_pages(file)

    def _count(self, path: Path, found: bytes, right: bytes, offset: int) -> None:
        with self._lock:
            self.reads += 1
            self.bytes_read += len(found)
            self.wrong += found != right
        if found != right:
            pairs = zip(found, right, strict=False)
            wrong = [offset + at for at, (one, other) in enumerate(pairs) if one != other]
            said = f"{len(found)} bytes for {len(right)}, wrong at {wrong[:3]}"
            print(f"wrong: {path.name}: {said}", flush=True)

    def __str__(self) -> str:
        named = ", ".join(f"{count} {os.strerror(code)}" for code, count in self.errors.items())
        return (
            f"{self.reads} reads, {self.bytes_read / MIB:.0f} MiB, {self.wrong} wrong; "
            f"errors: {named or 'none'}"
        )


def _target(descriptor: Path) -> str:
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return ""  # closed meanwhile


def _forget_pages(file: IO[bytes]) -> None:
    """Have the kernel ask the mount again, in place of answering from its own memory for ever."""
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def run(proxy: FaultProxy, mounts: Mounts, minutes: float) -> bool:
    """Soak a mount of what the proxy stands for; return whether all was well."""
    mount = mounts(proxy.url, "--cache-size", _CACHE_SIZE, "--timeout", "5")
    load, pid, seconds = Load(mount), mount.process.pid, 60.0 * minutes
    for kind in (BLOB, MANIFEST):
        proxy.set(kind, faults.now_and_then(_CHANCE, SHARE, *_BROKEN))
    load.run(0.1 * seconds)
    time.sleep(_REST_SECONDS)
    first = Sample.of(pid)
    print(f"first, at rest: {first}", flush=True)
    load.run(0.9 * seconds)
    time.sleep(_REST_SECONDS)
    last = Sample.of(pid)
    print(f"last, at rest:  {last}")
    print(f"{minutes:g} minutes, {READERS} readers, {proxy.broken} answers broken; {load}")
    mount.unmount()
    return not load.wrong and not first.has_grown_to(last)


def main() -> int:
    """Soak for so many minutes; return 1 on a wrong byte or on growth."""
    minutes = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with (
        own_registry("soak") as (registry, directory),
        FaultProxy(registry.host) as proxy,
        closing(Mounts(directory)) as mounts,
    ):
        push(registry.url, NAME, "latest", APP)
        good = run(proxy, mounts, minutes)
    print("no wrong byte, no growth" if good else "NOT WELL")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
