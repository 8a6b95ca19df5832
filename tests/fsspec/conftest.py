"""Fixtures for the fsspec front end: an artifact to read, and file systems that are closed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.builders import load
from support.fsspec_data import DATA, Maker
from support.registries import EmbeddedRegistry

from epochfs.fsspec import RegistryFileSystem, open_sessions


@pytest.fixture(autouse=True)
def _sessions_end_with_the_test() -> Iterator[None]:
    """Close what a test opened, so that nothing it left behind logs during the next."""
    yield
    open_sessions.close_idle()


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        load(registry, "team/data", "v1", DATA)
        yield registry


@pytest.fixture
def open_fs(registry: EmbeddedRegistry, tmp_path: Path) -> Maker:
    """Makes file systems of the registry, or of another `host`, with a cache of the test's own."""

    def make(host: str = "", **options: Any) -> RegistryFileSystem:
        given = {"cache_dir": str(tmp_path / "cache"), "timeout": 20, **options}
        return RegistryFileSystem(host or registry.host, skip_instance_cache=True, **given)

    return make


@pytest.fixture
def fs(open_fs: Maker) -> RegistryFileSystem:
    return open_fs()
