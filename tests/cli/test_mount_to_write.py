"""Mounting to write, and unmounting what was written: options, refusals, what waits."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from support.commandline import (
    HELLO,
    environment,
    is_mounted,
    mount_point,
    one_line,
    run,
    with_samples,
)
from support.mounts import require_fuse
from support.registries import EmbeddedRegistry

from epochfs.demo import samples
from epochfs.demo.registry import Request, Response
from epochfs.fuse import mountinfo
from epochfs.oci.names import Digest

pytestmark = pytest.mark.fuse

_fuse = pytest.fixture(autouse=True)(require_fuse)
directory = pytest.fixture(mount_point)
registry = pytest.fixture(with_samples)


def mount(url: str, path: Path, *options: str) -> None:
    """Mount with a cache beside the mount point; it must succeed, and silently."""
    cache = f"--cache-dir={path.parent / 'cache'}"
    assert run("mount", cache, *options, url, path) == (0, "", "")


@pytest.mark.parametrize(
    ("options", "is_writable"),
    [
        (["-o", "rw"], True),
        (["--writable"], True),
        (["-o", "rw,delete"], True),
        (["-o", "ro,rw"], True),
        (["-o", "rw", "--writable", "--delete"], True),
        (["-o", "rw,ro"], False),
        (["-o", "rw", "-o", "ro"], False),
        (["-o", "rw", "--read-only"], False),
        (["-o", "writable,read_only"], False),
        (["-o", "defaults"], False),
        ([], False),
    ],
)
def test_a_mount_is_written_to_only_if_that_was_asked_for(
    registry: EmbeddedRegistry, directory: Path, options: list[str], is_writable: bool
) -> None:
    mount(registry.url, directory, *options)
    listed = mountinfo.mounted_on(directory)
    assert listed is not None
    assert listed.read_only is not is_writable
    link = directory / "library/hello/tags/new"
    if is_writable:
        link.symlink_to((link.parent / "latest").readlink())
        assert link.parent.joinpath("new/manifest.json").exists()
    else:
        with pytest.raises(OSError, match="Read-only file system"):
            link.symlink_to("any")
    assert run("umount", directory) == (0, "", "")


def test_what_writes_is_imported_only_where_something_is_to_be_written() -> None:
    program = (
        "import sys, epochfs.session.opening, epochfs.cli.mount, epochfs.fuse.operations; "
        "print({'epochfs.vfs.writing', 'epochfs.fuse.write_operations'} & sys.modules.keys())"
    )
    shown = subprocess.check_output([sys.executable, "-c", program], env=environment())
    assert shown == b"set()\n"


@pytest.mark.parametrize("words", ["delete", "ro,delete", "rw,ro,delete"])
def test_deletion_needs_writing(directory: Path, words: str) -> None:
    code, _, errors = run("mount", "-o", words, "http://127.0.0.1:9", directory)
    assert (code, "-o delete needs -o rw" in one_line(errors)) == (2, True)


@pytest.mark.parametrize("source", ["oci:{}", "127.0.0.1:9/team/app:1"])
def test_layouts_and_single_artifacts_are_not_written_to(directory: Path, source: str) -> None:
    code, _, errors = run("mount", "-o", "rw", source.format(directory.parent), directory)
    assert code == 2
    assert "is a layout" in errors if source.startswith("oci") else "is one artifact" in errors
    assert one_line(errors)


def test_umount_leaves_what_is_not_written_yet(registry: EmbeddedRegistry, directory: Path) -> None:
    mount(registry.url, directory, "-o", "rw")
    (directory / "library/hello/tags/.temporary").touch()
    raw = (directory / HELLO).read_bytes().replace(b"{", b"{ ", 1)
    manifest = directory / "new/app/manifests" / str(Digest.of(raw))
    manifest.mkdir(parents=True)
    (manifest / "manifest.json").write_bytes(raw)
    code, output, errors = run("umount", directory)
    assert (code, output) == (1, "")
    *reasons, last = errors.splitlines()
    assert [line for line in reasons if manifest.name in line and "waits for" in line]
    assert [line for line in reasons if "library/hello/tags/.temporary" in line]
    assert "stays mounted, as 2 of what was written to it are not in the registry" in last
    assert "umount --force" in last
    assert is_mounted(directory)
    assert run("umount", "--force", directory) == (0, "", "")
    assert not is_mounted(directory)


def test_umount_tries_once_more_to_write_what_waits(
    registry: EmbeddedRegistry, directory: Path
) -> None:
    """What is missing may have been pushed by somebody else."""
    mount(registry.url, directory, "-o", "rw")
    old = json.loads((directory / HELLO).read_bytes())
    raw = (directory / HELLO).read_bytes().replace(b"{", b"{ ", 1)
    manifest = directory / "new/app/manifests" / str(Digest.of(raw))
    manifest.mkdir(parents=True)
    (manifest / "manifest.json").write_bytes(raw)
    for one in (old["config"], *old["layers"]):
        blob = directory / f"library/hello/blobs/{one['digest']}"
        registry.put_blob("new/app", blob.read_bytes())
    assert run("umount", directory) == (0, "", "")
    with urllib.request.urlopen(f"{registry.url}/v2/new/app/manifests/{manifest.name}") as answer:
        assert answer.read() == raw


class ReadOnlyRegistry(EmbeddedRegistry):
    """Lets nobody push; `status` and `code` are what it says."""

    status, code = 405, "UNSUPPORTED"

    def respond(self, request: Request) -> Response:
        if request.method in ("GET", "HEAD"):
            return super().respond(request)
        return Response(self.status, {}, f'{{"errors":[{{"code":"{self.code}"}}]}}'.encode())


@pytest.mark.parametrize(("status", "code"), [(405, "UNSUPPORTED"), (403, "DENIED")])
def test_a_registry_that_lets_nobody_push_is_told_before_anything_is_written(
    directory: Path, status: int, code: str
) -> None:
    with ReadOnlyRegistry() as registry:
        registry.status, registry.code = status, code
        samples.load(registry)
        exit_code, _, errors = run("mount", "-o", "rw", registry.url, directory)
        assert exit_code == 1
        assert "without -o rw" in one_line(errors)
        assert not is_mounted(directory)


def test_a_registry_that_deletes_nothing_is_told(directory: Path) -> None:
    class Keeping(ReadOnlyRegistry):
        def respond(self, request: Request) -> Response:
            if request.method == "DELETE" and "/uploads/" not in request.path:
                return super().respond(request)
            return EmbeddedRegistry.respond(self, request)

    with Keeping() as registry:
        samples.load(registry)
        cache = f"--cache-dir={directory.parent / 'cache'}"
        code, _, errors = run("mount", cache, "-o", "rw,delete", registry.url, directory)
        assert code == 0
        assert "the registry does not delete manifests and blobs" in errors
        assert run("umount", directory) == (0, "", "")
