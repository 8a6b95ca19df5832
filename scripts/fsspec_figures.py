"""Measures the fsspec front end on this machine, beside curl and skopeo: `scripts/fsspec-figures`.

Needs docker-registry, curl and skopeo. The link is the benchmarks' shaper: 20 ms there and back,
125 MB a second for each connection. Everything is in one scratch directory, removed at the end.
Each figure comes from processes of its own, so that none has what another one read.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from scripts.benchmark import origins
from scripts.benchmark.content import MIB
from scripts.benchmark.programs import timed

RATE, ROUND_TRIP = 125e6, 0.020
RANGES, LENGTH = 1000, 64 * 1024
TAGS = 1000


def say(what: str, found: str, wanted: str) -> None:
    """Print a figure beside what it should be."""
    sys.stdout.write(f"{what:58} {found:34} wanted: {wanted}\n")
    sys.stdout.flush()


# ---- what is measured in a process of its own --------------------------------------------------


def opened(host: str, cache: str) -> object:
    """Return a file system; without a cache if `cache` is empty."""
    from epochfs.fsspec import RegistryFileSystem

    return RegistryFileSystem(host, cache_dir=cache or None)


def measured(fs: object, act: Callable[[], object]) -> dict[str, float]:
    """Return seconds, requests, and the most memory of this process in MiB."""
    before = _requests(fs)
    began = time.monotonic()
    act()
    took = time.monotonic() - began
    return {
        "seconds": took,
        "requests": _requests(fs) - before,
        "received": _status(fs)["bytes_received"],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _status(fs: object) -> dict[str, int]:
    status: dict[str, int] = json.loads(fs.cat_file("/.epochfs/status.json"))  # type: ignore[attr-defined]
    return status


def _requests(fs: object) -> int:
    return _status(fs)["requests"]


def ranges(host: str, cache: str, path: str, size: str) -> dict[str, float]:
    """Read many ranges of one file."""
    fs = opened(host, cache)
    picked = random.Random(7)
    starts = [picked.randrange(int(size) - LENGTH) for _ in range(RANGES)]
    fs.info(path)  # type: ignore[attr-defined]
    return measured(
        fs,
        lambda: fs.cat_ranges(
            [path] * RANGES, starts, [s + LENGTH for s in starts], on_error="raise"
        ),  # type: ignore[attr-defined]
    )


def get(host: str, cache: str, path: str, target: str) -> dict[str, float]:
    """Copy a whole file to this machine."""
    fs = opened(host, cache)
    fs.info(path)  # type: ignore[attr-defined]
    return measured(fs, lambda: fs.get_file(path, target))  # type: ignore[attr-defined]


def ls(host: str, cache: str, path: str) -> dict[str, float]:
    """List tags with details, twice."""
    fs = opened(host, cache)
    fs.info("/")  # type: ignore[attr-defined]
    cold = measured(fs, lambda: fs.ls(path, detail=True))  # type: ignore[attr-defined]
    warm = measured(fs, lambda: fs.ls(path, detail=True))  # type: ignore[attr-defined]
    return {**cold, "warm": warm["requests"], "warm seconds": warm["seconds"]}


PARTS: dict[str, Callable[..., dict[str, float]]] = {"ranges": ranges, "get": get, "ls": ls}


def apart(name: str, *arguments: object) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, "-m", "scripts.fsspec_figures", name, *map(str, arguments)]
    result = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(result.stdout)
    return found


# ---- what it is measured with ------------------------------------------------------------------


def made(directory: Path) -> Path:
    """Make a directory and return it."""
    directory.mkdir()
    return directory


def host_of(url: str) -> str:
    """Return what a base URL has after its scheme."""
    return url.removeprefix("http://")


def push(host: str, name: str, size: int, scratch: Path) -> str:
    """Push an artifact of one file of random bytes; return the blob's digest."""
    from epochfs.client import RegistryClient
    from epochfs.oci.manifests import OCI_MANIFEST
    from epochfs.oci.names import Digest

    file = scratch / name
    hasher = Digest.of(b"").hasher()
    with file.open("wb") as out:
        for _ in range(size // MIB):
            piece = os.urandom(MIB)
            hasher.update(piece)
            out.write(piece)
    digest = f"sha256:{hasher.hexdigest()}"
    client = RegistryClient(f"http://{host}")
    empty = Digest.of(b"{}")
    client.put_blob(name, empty, b"{}", 2)
    with file.open("rb") as body:
        client.put_blob(name, digest, body, size)
    kind = "application/vnd.oci.empty.v1+json"
    title = {"org.opencontainers.image.title": "data.bin"}
    manifest = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": kind, "digest": str(empty), "size": 2},
        "layers": [
            {"mediaType": "application/octet-stream", "digest": digest, "size": size,
             "annotations": title}
        ],
    }  # fmt: skip
    client.put_manifest(name, "v1", json.dumps(manifest).encode(), OCI_MANIFEST)
    client.close()
    file.unlink()
    return digest


def imported() -> float:
    """Return the milliseconds that importing takes, beside those of Python's own start."""
    code = "import time; b = time.perf_counter(); import epochfs.fsspec; "
    code += "print((time.perf_counter() - b) * 1000)"
    runs = [float(subprocess.check_output([sys.executable, "-c", code])) for _ in range(7)]
    return median(runs)


# ---- the figures -------------------------------------------------------------------------------


def main() -> None:
    """Print the figures, or be the process in which one of them is measured."""
    if len(sys.argv) > 2:
        sys.stdout.write(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
        return
    chosen = sys.argv[1] if len(sys.argv) > 1 else "all"
    with ExitStack() as closing:
        scratch = Path(tempfile.mkdtemp(prefix="epochfs-fsspec-"))
        closing.callback(shutil.rmtree, scratch, ignore_errors=True)
        registry = closing.enter_context(origins.registry(made(scratch / "registry")))
        shaper = origins.link(made(scratch / "link"), registry.port, RATE, ROUND_TRIP)
        host, link = host_of(registry.url), host_of(closing.enter_context(shaper))
        if chosen in ("all", "import"):
            say("import of epochfs.fsspec", f"{imported():.0f} ms", "at most 150 ms")
        if chosen in ("all", "ranges"):
            show_ranges(link, host, scratch)
        if chosen in ("all", "get"):
            show_get(host, scratch)
        if chosen in ("all", "share"):
            show_share(host, scratch)
        if chosen in ("all", "ls"):
            show_ls(scratch, closing)


def show_ranges(link: str, host: str, scratch: Path) -> None:
    """Show the ranges, beside one curl of the blob over the same link."""
    size = 256 * MIB
    digest = push(host, "ranges", size, scratch)
    url = f"http://{link}/v2/ranges/blobs/{digest}"
    curl = median([timed("curl", "-sSf", "-o", "/dev/null", url) for _ in range(3)])
    for cache in ("cache", ""):
        runs = []
        for number in range(3):
            directory = str(scratch / f"{cache}{number}") if cache else ""
            runs.append(apart("ranges", link, directory, "/ranges:v1/data.bin", size))
        best = sorted(runs, key=lambda run: run["seconds"])[1]
        say(
            f"1,000 ranges of 64 KiB in 256 MiB, {'with' if cache else 'without'} a cache",
            f"{best['seconds']:.2f} s, {best['seconds'] / curl:.2f} x curl's {curl:.2f} s",
            "at most 1.5 x",
        )
        came = best["received"] / MIB
        say(
            "  requests, peak memory, bytes that came",
            f"{best['requests']:.0f}, {best['peak']:.0f} MiB, {came:.0f} MiB",
            "at most 40, 150 MiB",
        )


def show_get(host: str, scratch: Path) -> None:
    """Show whole files, beside skopeo."""
    push(host, "whole", 1024 * MIB, scratch)
    times, runs = [], {"cache": [], "": []}  # type: ignore[var-annotated]
    for number in range(3):
        target = scratch / f"dir{number}"
        source = "docker://" + f"{host}/whole:v1"
        times.append(
            timed("skopeo", "copy", "-q", "--src-tls-verify=false", source, f"dir:{target}")
        )
        shutil.rmtree(target)
        for cache, found in runs.items():
            directory = scratch / f"whole{number}"
            file = scratch / "got"
            found.append(apart("get", host, directory if cache else "", "/whole:v1/data.bin", file))
            assert file.stat().st_size == 1024 * MIB
            file.unlink()
            shutil.rmtree(directory, ignore_errors=True)
    skopeo = median(times)
    for cache, found in runs.items():
        one = sorted(found, key=lambda run: run["seconds"])[1]
        say(
            f"get of 1 GiB, {'with' if cache else 'without'} a cache",
            f"{one['seconds']:.2f} s, {skopeo / one['seconds']:.2f} x as fast as {skopeo:.2f} s",
            "at least 2.5 x as fast as skopeo",
        )
        say("  peak memory", f"{one['peak']:.0f} MiB", "at most 150 MiB")


def show_share(host: str, scratch: Path) -> None:
    """Show how often four processes with one cache download a file that all want at once."""
    size = 256 * MIB
    push(host, "share", size, scratch)
    for name in ("get", "ranges"):
        cache = scratch / f"share-{name}"
        last = [str(scratch / "got")] if name == "get" else [str(size)]
        command = [sys.executable, "-m", "scripts.fsspec_figures", name, host, str(cache)]
        workers = []
        for number in range(4):
            end = [f"{last[0]}{number}"] if name == "get" else last
            arguments = [*command, "/share:v1/data.bin", *end]
            workers.append(subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True))
        came = [json.loads(worker.communicate()[0])["received"] for worker in workers]
        say(
            f"four processes at once, {name} of 256 MiB",
            f"{sum(came) / size:.2f} x the blob came",
            "once",
        )


def show_ls(scratch: Path, closing: ExitStack) -> None:
    """Show the listing of a thousand tags."""
    names = origins.names(made(scratch / "tags"), 1, TAGS)
    host = host_of(closing.enter_context(names))
    urllib.request.urlopen(f"http://{host}/v2/").close()
    found = apart("ls", host, scratch / "names", "/app0/tags")
    say(
        "ls of 1,000 tags with detail",
        f"{found['requests']:.0f} requests, {found['seconds']:.2f} s",
        "at most one a tag, and the list",
    )
    say("  again", f"{found['warm']:.0f} requests, {found['warm seconds']:.2f} s", "none")


if __name__ == "__main__":
    main()
