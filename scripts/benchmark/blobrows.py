"""Rows: one whole blob from a registry that is as fast as this machine, cold and warm.

"Warm" is a blob that is in the mount's own disk cache, while the mount has no page of it: it is
unmounted and mounted again between repetitions, with the same cache directory. The pages of the
cache's file stay where they are, in the kernel's page cache: dropping those as well would measure
the disk, which is the same for everyone.
"""

from __future__ import annotations

from pathlib import Path

from scripts.benchmark import mounts
from scripts.benchmark.lab import Lab
from scripts.benchmark.programs import Failed, timed
from scripts.benchmark.rows import (
    FEW_RUNS,
    Sample,
    Samples,
    at_most,
    race,
    row,
    speed_at_least,
    time_at_most,
)

_REGISTRY = "docker-registry"
_RCLONE = "rclone mount, vfs full"


@row("cold-curl", "1 GiB cold", time_at_most(1.0), "curl -o", (_REGISTRY, "curl"))
def _cold_curl(lab: Lab) -> Samples:
    blob, url = lab.big, lab.registry.url
    return race(lambda: lab.cold_cat(url, blob), lambda: lab.curl(url, blob))


@row(
    "cold-skopeo",
    "1 GiB cold",
    speed_at_least(2.5),
    "skopeo copy dir:",
    (_REGISTRY, "skopeo"),
    FEW_RUNS,
)
def _cold_skopeo(lab: Lab) -> Samples:
    blob, registry = lab.big, lab.registry

    def skopeo() -> float:
        image = f"docker://127.0.0.1:{registry.port}/{blob.repository}:latest"
        options = ["--insecure-policy", "copy", "--src-tls-verify=false"]
        with lab.fresh_directory() as directory:
            return timed("skopeo", *options, image, f"dir:{directory}")

    return race(lambda: lab.cold_cat(registry.url, blob), skopeo)


@row("cold-rclone", "1 GiB cold", speed_at_least(3.0), _RCLONE, (_REGISTRY, "nginx", "rclone"))
def _cold_rclone(lab: Lab) -> Samples:
    blob, url = lab.big, lab.registry.url

    def rclone() -> float:
        with lab.rclone() as mount:
            return timed("cat", mount / blob.file.name)

    return race(lambda: lab.cold_cat(url, blob), rclone)


@row("warm-rclone", "1 GiB warm", speed_at_least(2.5), _RCLONE, (_REGISTRY, "nginx", "rclone"))
def _warm_rclone(lab: Lab) -> Samples:
    blob, url = lab.big, lab.registry.url

    def ours(cache: Path) -> float:
        with lab.epochfs(url, cache=cache) as mount:
            return timed("cat", mount.blob(blob))

    def theirs(cache: Path) -> float:
        with lab.rclone(cache=cache) as mount:
            return timed("cat", mount / blob.file.name)

    with lab.fresh_directory() as our_cache, lab.fresh_directory() as their_cache:
        ours(our_cache)
        theirs(their_cache)
        yield from race(lambda: ours(our_cache), lambda: theirs(their_cache))


@row("warm-passthrough", "1 GiB warm, passthrough", speed_at_least(0.95), "dd", (_REGISTRY,))
def _warm_passthrough(lab: Lab) -> Samples:
    """Race against `dd` of the cache's own file; needs libfuse 3.17, see scripts/debian13.

    Held against each other are the rates of reading: the blob's path has been looked up before,
    which takes a new mount some requests to the registry.
    """
    blob, url = lab.big, lab.registry.url

    def ours(cache: Path) -> float:
        with lab.epochfs(url, cache=cache) as mount:
            mount.need_passthrough()
            mount.blob(blob).stat()
            return _dd(mount.blob(blob))

    with lab.fresh_directory() as cache:
        ours(cache)
        file = mounts.cached(cache, blob)
        yield from race(lambda: ours(cache), lambda: _dd(file))


def _dd(file: Path) -> float:
    return timed("dd", f"if={file}", "of=/dev/null", "bs=1M")


@row("reread", "256 MiB again: READs", at_most(0, "reads"), needs=(_REGISTRY, "strace"))
def _reread(lab: Lab) -> Samples:
    """Count the reads of the cache's file that the daemon makes while the kernel has all pages.

    The first reading of a remounted file is counted in the same way, and must show some.
    """
    blob, url = lab.medium, lab.registry.url
    with lab.fresh_directory() as cache:
        with lab.epochfs(url, cache=cache) as mount:
            timed("cat", mount.blob(blob))
        while True:
            with lab.epochfs(url, cache=cache) as mount:
                if _reads_of_daemon(mount, mount.blob(blob), cache) == 0:
                    raise Failed("strace shows no read of a file that was read for the first time")
                yield Sample(_reads_of_daemon(mount, mount.blob(blob), cache))


def _reads_of_daemon(mount: mounts.Mount, file: Path, scratch: Path) -> int:
    """Return how many reads the mount's process makes of any file while `file` is read whole."""
    log = scratch / "strace.log"
    with mounts.counting_reads(mount, log):
        timed("cat", file)
    return mounts.reads_counted(log)


ROWS = (_cold_curl, _cold_skopeo, _cold_rclone, _warm_rclone, _warm_passthrough, _reread)
