"""What libfuse returns, and what becomes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.mounts import require_fuse

from epochfs.errors import MountFailure


@pytest.fixture
def libfuse() -> Any:
    """The module, which cannot be imported without the library."""
    require_fuse()
    from epochfs.fuse import libfuse

    return libfuse


def ended_with(libfuse: Any, code: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve a mount that libfuse ends with a code."""

    def fuse(*_: object, **__: object) -> None:
        raise RuntimeError(code)

    monkeypatch.setattr(libfuse, "_Fuse", fuse)
    libfuse.serve(None, path, libfuse.FuseOptions("x", 1.0, 0, 0))


def test_a_connection_that_ends_with_the_mount_is_its_end(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended_with(libfuse, 8, tmp_path, monkeypatch)


def test_a_connection_that_ends_under_a_mount_is_an_error(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libfuse, "mounted_on", lambda _: object())
    with pytest.raises(MountFailure, match="the kernel ended the connection"):
        ended_with(libfuse, 8, tmp_path, monkeypatch)


def test_a_mount_that_cannot_be_made_is_an_error(
    libfuse: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MountFailure, match="could not mount"):
        ended_with(libfuse, 4, tmp_path, monkeypatch)
