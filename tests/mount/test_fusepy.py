"""The operations run on plain fusepy with libfuse 2 as well."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import sys
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.mounts import Mounts
from support.registries import EmbeddedRegistry

LARGE = random_bytes(3_000_000, 7)
WITHOUT_MFUSEPY = (
    "import sys; sys.modules['mfusepy'] = None; import epochfs.cli; sys.exit(epochfs.cli.main())"
)


def test_a_registry_is_mounted_with_fusepy_and_libfuse_2(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    if importlib.util.find_spec("fuse") is None:
        pytest.skip("fusepy is not installed")
    try:
        ctypes.CDLL("libfuse.so.2")
    except OSError:
        pytest.skip("libfuse 2 is not installed")
    content = image(LARGE)
    load(embedded, "library/app", "latest", content)
    mount = mounts(
        embedded.url,
        command=(sys.executable, "-c", WITHOUT_MFUSEPY),
        environment={"FUSE_LIBRARY_PATH": "libfuse.so.2"},
    )
    mapped = Path(f"/proc/{mount.process.pid}/maps").read_text()
    assert "libfuse.so.2" in mapped
    assert "libfuse3" not in mapped
    manifest = mount.path / "library/app/tags/latest/manifest.json"
    assert manifest.read_bytes() == content.raw
    assert (manifest.parent / "layers/00").read_bytes() == LARGE
    assert (mount.path / "library/app").stat().st_ino == (mount.path / "library/app").stat().st_ino
    with pytest.raises(OSError, match="Read-only") as refused:
        (mount.path / "new").write_text("x")
    assert refused.value.errno == errno.EROFS
