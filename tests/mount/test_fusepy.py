"""The operations run on plain fusepy with libfuse 2 as well."""

from __future__ import annotations

import ctypes
import errno
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.mounts import Mount, Mounts, names_in
from support.registries import EmbeddedRegistry

from epochfs.oci.names import Digest

LARGE = random_bytes(3_000_000, 7)
WITHOUT_MFUSEPY = (
    "import sys; sys.modules['mfusepy'] = None; import epochfs.cli; sys.exit(epochfs.cli.main())"
)


@pytest.fixture
def mount_with_fusepy(mounts: Mounts) -> Callable[..., Mount]:
    """Mounts with fusepy and libfuse 2."""
    if importlib.util.find_spec("fuse") is None:
        pytest.skip("fusepy is not installed")
    try:
        ctypes.CDLL("libfuse.so.2")
    except OSError:
        pytest.skip("libfuse 2 is not installed")

    def mount(url: str, *options: str) -> Mount:
        made = mounts(
            url,
            *options,
            command=(sys.executable, "-c", WITHOUT_MFUSEPY),
            environment={"FUSE_LIBRARY_PATH": "libfuse.so.2"},
        )
        mapped = Path(f"/proc/{made.process.pid}/maps").read_text()
        assert "libfuse.so.2" in mapped
        assert "libfuse3" not in mapped
        return made

    return mount


def test_a_registry_is_mounted_with_fusepy_and_libfuse_2(
    embedded: EmbeddedRegistry, mount_with_fusepy: Callable[..., Mount]
) -> None:
    content = image(LARGE)
    load(embedded, "library/app", "latest", content)
    mount = mount_with_fusepy(embedded.url)
    manifest = mount.path / "library/app/tags/latest/manifest.json"
    assert manifest.read_bytes() == content.raw
    assert (manifest.parent / "layers/00").read_bytes() == LARGE
    assert (mount.path / "library/app").stat().st_ino == (mount.path / "library/app").stat().st_ino
    with pytest.raises(OSError, match="Read-only") as refused:
        (mount.path / "new").write_text("x")
    assert refused.value.errno == errno.EROFS


def test_a_registry_is_written_to_with_fusepy_and_libfuse_2(
    embedded: EmbeddedRegistry, mount_with_fusepy: Callable[..., Mount]
) -> None:
    content, new = image(LARGE), image(b"new")
    load(embedded, "library/app", "latest", content)
    app = mount_with_fusepy(embedded.url, "-o", "rw").path / "library/app"
    for data in new.blobs:
        temporary = app / "blobs/.temporary"
        with temporary.open("wb", buffering=0) as file:
            file.write(b"?" * 2 * len(data))
            file.truncate(len(data))
            os.pwrite(file.fileno(), data, 0)
        os.utime(temporary, ns=(1, 10**18))
        temporary.chmod(0o600)
        assert temporary.stat().st_mtime_ns == 10**18
        temporary.rename(app / f"blobs/{Digest.of(data)}")
    directory = app / f"manifests/{new.digest}"
    directory.mkdir()
    (directory / "manifest.json").write_bytes(new.raw)
    (app / "tags/new").symlink_to(f"../manifests/{new.digest}")
    assert (app / "tags/new/layers/00").read_bytes() == b"new"
    (app / "tags/latest").unlink()
    assert names_in(app / "tags") == {"new"}
    with (app / ".removed").open("w+b", buffering=0) as file:
        (app / ".removed").unlink()
        file.write(b"0123")
        assert os.pread(file.fileno(), 9, 0) == b"0123"
    assert names_in(app) == {"blobs", "manifests", "tags", "layout"}
