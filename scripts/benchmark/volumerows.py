"""Rows: models in `volume/`, read by the libraries that people read models with.

The programs are the same on both sides; `tensors` has them. What the registry sent is read from its
own access log.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from scripts.benchmark import tensors
from scripts.benchmark.content import MIB, Blob, numbered, push_model, random_file
from scripts.benchmark.lab import Lab
from scripts.benchmark.mounts import Mount
from scripts.benchmark.origins import Request
from scripts.benchmark.programs import Argument, Failed, Missing, need_modules, timed
from scripts.benchmark.rows import Sample, Samples, at_most, race, repeat, row, time_at_most

_REGISTRY = "docker-registry"
_PROCESSES = 4
_MANY_FILES = 1000
_ONE_TENSOR = tensors.tensor_name(30)
"""One in the middle of the file."""


def _model(lab: Lab) -> Blob:
    """Push a safetensors file of 512 MiB, the one file of a model."""
    file = lab.served / "model.safetensors"
    tensors.write_tensors(file, 512 * MIB)
    return push_model(lab.registry.url, "bench/model", [file])[0]


def _parts(lab: Lab) -> Blob:
    """Push a model of `_MANY_FILES` small files; return one."""
    directory = lab.make_directory("parts")
    files = [directory / name for name in numbered("part", _MANY_FILES)]
    for file in files:
        random_file(file, 1000)
    return push_model(lab.registry.url, "bench/parts", files)[0]


@row(
    "load-file",
    "safetensors load_file, 512 MiB cold",
    time_at_most(0.9),
    "curl -o, then load_file",
    (_REGISTRY, "curl"),
)
def _load_file(lab: Lab) -> Samples:
    need_modules("safetensors", "numpy")
    blob = lab.once(_model)

    def ours() -> float:
        with _mounted(lab) as mount:
            return _tensors("load", mount.volume(blob) / blob.file.name)

    return race(ours, lambda: _curl_and_load(lab))


@row(
    "load-file-passthrough",
    "safetensors load_file, 512 MiB cached, passthrough",
    time_at_most(0.8),
    "curl -o, then load_file",
    (_REGISTRY, "curl"),
)
def _load_file_passthrough(lab: Lab) -> Samples:
    """Load what another has loaded before; needs libfuse 3.17, see scripts/debian13."""
    need_modules("safetensors", "numpy")
    blob = lab.once(_model)

    def ours(cache: Path) -> float:
        with _mounted(lab, cache) as mount:
            mount.need_passthrough()
            return _tensors("load", mount.volume(blob) / blob.file.name)

    with lab.fresh_directory() as cache:
        ours(cache)
        yield from race(lambda: ours(cache), lambda: _curl_and_load(lab))


@row(
    "load-file-4",
    f"{_PROCESSES} processes load_file 512 MiB cold: bytes",
    at_most(1.05, "x the file"),
    needs=(_REGISTRY,),
)
def _load_file_at_once(lab: Lab) -> Samples:
    need_modules("safetensors", "numpy")
    blob = lab.once(_model)

    def load(mount: Mount) -> None:
        lines = [str(mount.volume(blob) / blob.file.name)] * _PROCESSES
        command = [sys.executable, tensors.__file__, "load"]
        timed("xargs", "-P", str(_PROCESSES), "-L", "1", *command, fed=lines)

    return repeat(lambda: _size(_fetched(lab, blob.repository, load)) / blob.size)


@row(
    "one-tensor",
    "one 8.5 MB tensor of 512 MiB cold, 1 s later: bytes",
    at_most(12, "MiB"),
    needs=(_REGISTRY,),
)
def _one_tensor(lab: Lab) -> Samples:
    need_modules("safetensors", "numpy")
    blob = lab.once(_model)

    def read_one(mount: Mount) -> None:
        _tensors("one", mount.volume(blob) / blob.file.name, _ONE_TENSOR)

    return repeat(lambda: _size(_fetched(lab, blob.repository, read_one)) / MIB)


@row("ls-volume", f"ls volume/, {_MANY_FILES} files, cold", at_most(0.5, "s"), needs=(_REGISTRY,))
def _ls_volume(lab: Lab) -> Samples:
    blob = lab.once(_parts)

    def ours() -> float:
        with _mounted(lab) as mount:
            return _listed("ls", mount.volume(blob))

    return repeat(ours)


@row(
    "ls-l-volume",
    f"ls, then ls -l volume/, {_MANY_FILES} files, cold: blobs",
    at_most(0, "requests"),
    needs=(_REGISTRY,),
)
def _ls_l_volume(lab: Lab) -> Samples:
    blob = lab.once(_parts)

    def look(mount: Mount) -> None:
        _listed("ls", mount.volume(blob))
        _listed("ls", mount.volume(blob), "-l")

    return repeat(lambda: len(_fetched(lab, blob.repository, look)))


@row("volume-memory", "resident memory, the most of any volume", at_most(120, "MiB"))
def _memory(lab: Lab) -> Samples:
    if not lab.volume_peaks:
        raise Missing("no row ran that watches it")
    yield Sample(max(lab.volume_peaks) / MIB)


def _curl_and_load(lab: Lab) -> float:
    """Download the model with curl and load it; return the seconds that took."""
    blob = lab.once(_model)
    with lab.fresh_directory() as directory:
        file = directory / blob.file.name
        seconds = timed("curl", "-sSf", "-o", file, blob.url(lab.registry.url))
        return seconds + _tensors("load", file)


def _tensors(*arguments: Argument) -> float:
    """Run the program of `tensors`; return the seconds that took, its imports included."""
    return timed(sys.executable, tensors.__file__, *arguments)


def _listed(program: str, volume: Path, *options: str) -> float:
    """List a volume, followed if it is a link; return the seconds that took."""
    seconds = timed(program, *options, f"{volume}/")
    if len(list(volume.iterdir())) != _MANY_FILES:
        raise Failed(f"{volume.name} does not have {_MANY_FILES} files")
    return seconds


@contextmanager
def _mounted(lab: Lab, cache: Path | None = None) -> Iterator[Mount]:
    """Mount the registry, and watch its memory as that of a volume; without a `cache` cold."""
    with lab.epochfs(lab.registry.url, cache=cache) as mount:
        yield mount
        lab.volume_peaks.append(mount.peak_memory)


def _fetched(lab: Lab, repository: str, read: Callable[[Mount], None]) -> list[Request]:
    """Let `read` read through a cold mount; return what was asked of blobs meanwhile."""
    mark = lab.registry.mark()
    with _mounted(lab) as mount:
        read(mount)
    below = f"/v2/{repository}/blobs/"
    return [one for one in lab.registry.requests_since(mark) if one.path.startswith(below)]


def _size(requests: list[Request]) -> int:
    return sum(request.size for request in requests if request.method == "GET")


ROWS = (
    _load_file,
    _load_file_passthrough,
    _load_file_at_once,
    _one_tensor,
    _ls_volume,
    _ls_l_volume,
    _memory,
)
