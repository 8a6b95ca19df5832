"""epochfs and rclone, mounted until the context ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.content import Blob
from scripts.benchmark.programs import Argument, Failed, Missing, Server, find, timed, wait_until

_PEAK = re.compile(r"^VmHWM:\s+(\d+) kB$", re.MULTILINE)
_STOP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Mount:
    """A mount of epochfs at `path`, served by the process `pid`."""

    path: Path
    pid: int

    def blob(self, blob: Blob) -> Path:
        """Return where a blob is."""
        return self.path / blob.repository / "blobs" / str(blob.digest)

    def volume(self, blob: Blob) -> Path:
        """Return the volume of the artifact that a blob is of."""
        return self.path / f"{blob.repository}:latest"

    def rootfs(self, blob: Blob, tag: str = "latest") -> Path:
        """Return the root filesystem of the image that a layer is of."""
        return self.path / blob.repository / "tags" / tag / "rootfs"

    def need_passthrough(self) -> None:
        """Raise Missing unless the kernel reads by itself what is cached."""
        status = json.loads((self.path / ".epochfs" / "status.json").read_text())
        if reason := status["passthrough"]["reason"]:
            raise Missing(f"no passthrough: {reason}")

    @property
    def peak_memory(self) -> int:
        """The most its process has had resident so far, in bytes; 0 if it is gone.

        See proc(5), VmHWM.
        """
        with suppress(OSError):
            if found := _PEAK.search(Path(f"/proc/{self.pid}/status").read_text()):
                return int(found[1]) * 1024
        return 0


def cached(cache: Path, blob: Blob) -> Path:
    """Return the file that holds a blob in a cache directory."""
    return cache / "v1" / "blobs" / blob.digest.algorithm / blob.digest.encoded


@contextmanager
def epochfs(path: Path, cache: Path, url: str, *options: Argument) -> Iterator[Mount]:
    """Mount the registry at `url` on `path`, which is an empty directory.

    It stays in front, as a child of ours, so that its end can be waited for: until then it may
    still write to its cache.
    """
    command = ["epochfs", "mount", "-f", "--log-level", "warning"]
    places: list[Argument] = ["--cache-dir", cache, url, path]
    with Server(path.with_suffix(".log"), [*command, *options, *places]) as server:
        server.wait_until(lambda: os.path.ismount(path))
        try:
            yield Mount(path, server.pid)
        finally:
            _unmount(path, server)


@contextmanager
def rclone(path: Path, cache: Path, *remote: Argument) -> Iterator[Path]:
    """Mount a remote on `path`, which is an empty directory, with a full VFS cache.

    The remote is what rclone calls so, such as a directory, and options that are for it.
    """
    config = path.with_suffix(".conf")
    config.touch()
    source, *options = remote
    command: list[Argument] = ["rclone", "mount", source, path, *options]
    command += ["--config", config, "--vfs-cache-mode", "full", "--cache-dir", cache]
    with Server(path.with_suffix(".log"), command) as server:
        server.wait_until(lambda: os.path.ismount(path))
        try:
            yield path
        finally:
            _unmount(path, server)


def _unmount(path: Path, server: Server) -> None:
    """Unmount, and wait for the process behind it; force what does not come by itself."""
    fusermount = find("fusermount3")
    subprocess.run([fusermount, "-u", path], stderr=subprocess.DEVNULL, check=False)
    server.ends_within(_STOP_SECONDS)
    if os.path.ismount(path):
        subprocess.run([fusermount, "-uz", path], stderr=subprocess.DEVNULL, check=False)


@contextmanager
def counting_reads(mount: Mount, log: Path) -> Iterator[None]:
    """Let strace write to `log` every read that the mount's process makes of a file at an offset.

    Read the number with `reads_counted` when the context has ended. Raises Missing, Failed.
    """
    command: list[Argument] = ["strace", "-f", "-s", "0", "-e", "trace=pread64,preadv,preadv2"]
    command += ["-o", log, "-p", str(mount.pid)]
    with Server(log.with_suffix(".stderr"), command) as strace:
        strace.wait_until(lambda: b"attached" in strace.log.read_bytes())
        yield
        strace.interrupt()
        if not strace.ends_within(_STOP_SECONDS):
            raise Failed("strace did not end")


def reads_counted(log: Path) -> int:
    """Return how many reads strace has written down; one that was interrupted has two lines."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return sum("pread" in line and "resumed>" not in line for line in lines)


def use_once(path: Path, cache: Path, url: str) -> float:
    """Mount as a user does, in the background, and list the root; return the seconds until then."""
    seconds = timed("epochfs", "mount", "--cache-dir", cache, url, path)
    try:
        seconds += timed("ls", path)
        pid = json.loads((path / ".epochfs" / "status.json").read_text())["pid"]
    finally:
        timed("epochfs", "umount", path)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "end of epochfs", _STOP_SECONDS)
    return seconds
