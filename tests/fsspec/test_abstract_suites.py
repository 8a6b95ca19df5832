"""fsspec's own suites for any file system, on docker-registry: what they hold for one that reads.

Their fixtures write what is to be read. Here an artifact of the same files was pushed before; the
one test of opening writes, and is to be refused.
"""

from __future__ import annotations

import errno
import io
from collections.abc import Callable
from hashlib import md5
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests
from fsspec.tests.abstract.open import AbstractOpenTests
from support.artifacts import artifact, packed
from support.layers import File

from epochfs.client import RegistryClient
from epochfs.fsspec import RegistryFileSystem
from epochfs.oci.names import Digest

if TYPE_CHECKING:
    from conftest import DockerRegistry

SUBDIR = ("subfile1", "subfile2", "nesteddir/nestedfile")
SCENARIOS = {
    "scenario-0": {"file1", "file2", *(f"subdir/{name}" for name in SUBDIR)},
    "glob-edge-cases": {
        *("file1", "file2"),
        *(f"subdir{number}/{name}" for number in range(2) for name in SUBDIR),
    },
    "same-prefix": {"subdir.txt", "subdir/subfile.txt"},
}
HASHED = {f"{md5(str(n).encode()).hexdigest()}.txt": str(n).encode() for n in range(10)}


@pytest.fixture(scope="module")
def published(docker_registry: DockerRegistry) -> str:
    """Push all of it, and return the registry's host."""
    contents = {
        name: {f"source/{file}": b"" for file in files} for name, files in SCENARIOS.items()
    }
    contents["hashed"] = {f"source/{name}": data for name, data in HASHED.items()}
    contents["recursive"] = {"src/file": b""}
    client = RegistryClient(docker_registry.url)
    for name, files in contents.items():
        packed_files = packed(*(File(path, data) for path, data in files.items()))
        content = artifact(packed_files)
        for blob in content.blobs:
            client.put_blob(f"fsspec/{name}", Digest.of(blob), io.BytesIO(blob), len(blob))
        client.put_manifest(f"fsspec/{name}", "latest", content.raw, content.media_type)
    client.close()
    return docker_registry.host


class _Fixtures(AbstractFixtures):
    """What fsspec's tests read, published as artifacts."""

    @pytest.fixture
    def fs(self, published: str, tmp_path: Path) -> RegistryFileSystem:
        cache = str(tmp_path / "cache")
        return RegistryFileSystem(published, cache_dir=cache, skip_instance_cache=True)

    @pytest.fixture
    def fs_path(self) -> str:
        return "/fsspec"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, fs: RegistryFileSystem) -> str:
        return "/fsspec/scenario-0:latest/source"

    @pytest.fixture
    def fs_glob_edge_cases_files(self, fs: RegistryFileSystem) -> str:
        return "/fsspec/glob-edge-cases:latest/source"

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, fs: RegistryFileSystem) -> str:
        return "/fsspec/same-prefix:latest/source"

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, fs: RegistryFileSystem) -> str:
        return "/fsspec/hashed:latest/source"

    @pytest.fixture
    def fs_target(self) -> str:
        return "/fsspec/scenario-0:latest/target"

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        return str(tmp_path)

    @pytest.fixture
    def local_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)


class TestGet(_Fixtures, AbstractGetTests):
    """All that fsspec's own suite asks of `get`."""

    def test_get_directory_recursive(
        self,
        fs: RegistryFileSystem,
        fs_join: Any,
        local_fs: Any,
        local_join: Any,
        local_target: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        # It makes `src/file` itself; here that is there already.
        for name in ("mkdir", "touch"):
            monkeypatch.setattr(fs, name, lambda path: None)
        super().test_get_directory_recursive(
            fs, fs_join, "/fsspec/recursive:latest", local_fs, local_join, local_target
        )


class TestOpen(_Fixtures, AbstractOpenTests):
    """fsspec's own suite of `open`, which begins with a write."""

    def test_open_exclusive(self, fs: RegistryFileSystem, fs_target: str) -> None:
        with pytest.raises(OSError, match="read-only") as caught:
            super().test_open_exclusive(fs, fs_target)
        assert caught.value.errno == errno.EROFS
