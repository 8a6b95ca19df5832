"""The recipes for models (`epochfs help models`), run as they are written."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import DockerRegistry
from support.artifacts import artifact, raw
from support.backups import Administrator
from support.integrity import push
from support.mounts import require_fuse

from epochfs.help import Code, page, parse

numpy = pytest.importorskip("numpy")
save = pytest.importorskip("safetensors.numpy").save

RECIPES = ["\n".join(one.lines) for one in parse(page("models")).blocks if isinstance(one, Code)]
MIB = 1 << 20
SETTLING_SECONDS = 0.3

MOUNTED, PREFETCHED, ONE_TENSOR, BY_INDEX, ARRAY, AT_ONCE, GGUF = RECIPES
"""All there are; each has a test below."""

FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
VECTORS = numpy.arange(20_000 * 256, dtype="float32")


def made() -> dict[str, bytes]:
    """The files of a model, as Hugging Face lays them out."""
    random = numpy.random.default_rng(7)
    blocks = {f"blocks.{n}.weight": random.random((1024, 1024), "float32") for n in range(8)}
    head = {"lm_head.weight": random.random((512, 1024), "float32")}
    where = dict.fromkeys(blocks, FIRST) | dict.fromkeys(head, SECOND)
    return {
        "config.json": b'{"model_type": "tiny"}',
        "model.safetensors.index.json": json.dumps({"weight_map": where}).encode(),
        FIRST: save(blocks),
        SECOND: save(head),
        "vectors.f32": VECTORS.tobytes(),
    }


FILES = made()
MODEL = artifact(*(raw(path, data) for path, data in FILES.items()))
OLLAMA = artifact(
    ("application/vnd.ollama.image.model", b"GGUF\3\0\0\0" + bytes(1000), {}),
    ("application/vnd.ollama.image.license", b"MIT", {}),
    config_type="application/vnd.docker.container.image.v1+json",
)


@pytest.fixture(scope="module")
def administrator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Administrator]:
    """Who reads models; `/mnt` and `/mnt2` are unmounted at the end."""
    require_fuse()
    directory = tmp_path_factory.mktemp("models")
    administrator = Administrator(directory / "root", directory / "mnt")
    mountpoints = {"/mnt": administrator.mount, "/mnt2": administrator.directory / "mnt2"}
    for mountpoint in mountpoints.values():
        mountpoint.mkdir()
    python = administrator.directory / "bin/python3"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    yield administrator
    for name, mountpoint in mountpoints.items():
        if os.path.ismount(mountpoint):
            administrator.run(f"epochfs umount {name}")


@pytest.fixture(scope="module")
def registry(docker_registry: DockerRegistry) -> DockerRegistry:
    push(docker_registry.url, "team/model", "v1", MODEL)
    return docker_registry


@pytest.fixture(scope="module")
def listed(administrator: Administrator, registry: DockerRegistry) -> str:
    """What the model that is mounted for all of these tests has."""
    return administrator.run(MOUNTED, registry.host)


@pytest.fixture
def mounted(administrator: Administrator, listed: str) -> Administrator:
    return administrator


def received(administrator: Administrator) -> int:
    """How many bytes the mount has received in answers, once no more come."""
    status = administrator.mount / ".epochfs/status.json"
    last, now = -1, 0
    while last != now:
        time.sleep(SETTLING_SECONDS)
        last, now = now, int(json.loads(status.read_text())["bytes_received"])
    return now


def test_a_model_is_mounted(listed: str) -> None:
    assert listed.split() == [
        "config.json",
        FIRST,
        SECOND,
        "model.safetensors.index.json",
        "vectors.f32",
    ]


def test_a_model_is_fetched_before_anybody_waits(
    administrator: Administrator, registry: DockerRegistry, tmp_path: Path
) -> None:
    said = administrator.run(PREFETCHED, registry.host, HOME=str(tmp_path))
    assert said.startswith("6 blobs, ")
    assert said.endswith(" 0 failed\n")


def test_one_tensor_is_read_and_neither_the_rest_nor_another_file(mounted: Administrator) -> None:
    before = received(mounted)
    assert mounted.run(ONE_TENSOR) == "(1024, 1024)\n"
    assert 4 * MIB <= received(mounted) - before < 14 * MIB < len(FILES[FIRST])


def test_the_index_says_which_file_has_a_tensor(mounted: Administrator) -> None:
    before = received(mounted)
    assert mounted.run(BY_INDEX) == f"{SECOND} (512, 1024)\n"
    assert received(mounted) - before < len(FILES[SECOND]) + 2 * MIB


def test_an_array_is_mapped(mounted: Administrator) -> None:
    assert mounted.run(ARRAY) == f"{VECTORS.reshape(-1, 256)[12345][:4]}\n"


def test_four_processes_download_a_file_once(mounted: Administrator) -> None:
    before = received(mounted)
    said = re.findall(r"process (\d): 8 tensors", mounted.run(AT_ONCE))
    assert sorted(said) == ["1", "2", "3", "4"]
    assert received(mounted) - before <= 1.05 * len(FILES[FIRST])


def test_gguf_of_an_ollama_model_is_mapped(
    administrator: Administrator, registry: DockerRegistry
) -> None:
    push(registry.url, "library/tiny", "latest", OLLAMA)
    assert administrator.run(GGUF, registry.host) == "GGUF version 3\n"
