"""What each system call does to names and files of a mount that can be written to."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support.builders import load
from support.mountedwrites import LARGE, blob, mounted, mounted_app, reasons, stored
from support.mounts import Mount, Mounts, names_in
from support.registries import EmbeddedRegistry
from support.views import refusal
from support.writing import OLD, link_to, tags

from epochfs.oci.names import Digest

NOBODY = 65534
_LIBC = ctypes.CDLL(None, use_errno=True)
_NO_REPLACE, _EXCHANGE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 0x01, 0x02 | 0x01


mount = pytest.fixture(mounted)
app = pytest.fixture(mounted_app)


def renamed(old: Path, new: Path, flags: int) -> int:
    """Call renameat2(2); return its errno, 0 for success."""
    done = _LIBC.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags)
    return ctypes.get_errno() if done else 0


# --- names ------------------------------------------------------------------------------------


def test_a_temporary_name_is_local_until_it_is_renamed(
    embedded: EmbeddedRegistry, mount: Mount, app: Path
) -> None:
    temporary = app / f"blobs/.{Digest.of(LARGE)}.Xy12"
    temporary.write_bytes(LARGE)
    assert temporary.read_bytes() == LARGE
    with pytest.raises(urllib.error.HTTPError, match="404"):
        stored(embedded, blob(LARGE))
    assert len(reasons(mount)) == 1
    temporary.rename(app / blob(LARGE))
    assert stored(embedded, blob(LARGE)) == LARGE
    assert refusal(temporary.stat) == errno.ENOENT
    assert reasons(mount) == []


@pytest.mark.expects_log("rename /team/app/blobs/.*: EIO")
def test_a_rename_that_cannot_be_leaves_the_temporary_name(app: Path) -> None:
    temporary = app / "blobs/.tmp"
    temporary.write_bytes(LARGE)
    assert refusal(lambda: temporary.rename(app / blob(b"other"))) == errno.EIO
    assert temporary.read_bytes() == LARGE
    temporary.unlink()


@pytest.mark.expects_log("names cannot be exchanged")
def test_the_flags_of_a_rename_count(app: Path) -> None:
    one, other = app / ".one", app / ".other"
    one.write_text("one")
    other.write_text("other")
    assert renamed(one, other, _NO_REPLACE) == errno.EEXIST
    assert renamed(one, other, _EXCHANGE) == errno.EINVAL
    assert (one.read_text(), other.read_text()) == ("one", "other")
    assert renamed(one, app / ".third", _NO_REPLACE) == 0
    for name in (".third", ".other"):
        (app / name).unlink()


@pytest.mark.expects_log("EPERM|EINVAL")
def test_what_a_registry_has_no_way_to_keep_is_refused(mount: Mount, app: Path) -> None:
    (app / ".file").touch()
    assert refusal(lambda: os.link(app / ".file", app / ".link")) == errno.EPERM
    assert refusal(lambda: os.mkfifo(app / ".pipe")) == errno.EPERM
    assert refusal(lambda: app.rename(mount.path / "elsewhere")) == errno.EXDEV
    assert refusal((mount.path / ".epochfs/file").touch) == errno.EPERM
    assert refusal((app / "blobs/md5:1").touch) == errno.EINVAL
    assert refusal(lambda: (app / "tags/-x").symlink_to(link_to(OLD))) == errno.EINVAL
    (app / ".file").unlink()


def test_a_file_is_made_by_mknod_as_well(app: Path) -> None:
    os.mknod(app / ".file", stat.S_IFREG | 0o600)
    assert (app / ".file").read_bytes() == b""
    (app / ".file").unlink()


def test_directories_are_made_and_removed(mount: Mount) -> None:
    new = mount.path / "new/app/blobs"
    assert not (mount.path / "new").exists()
    new.mkdir(parents=True)
    assert names_in(mount.path) == {"team", "new"}
    (new / ".tmp").touch()
    assert refusal(new.rmdir) == errno.ENOTEMPTY
    assert refusal(new.mkdir) == errno.EEXIST
    (new / ".tmp").unlink()
    for path in (new, new.parent, new.parent.parent):
        path.rmdir()
    assert names_in(mount.path) == {"team"}


# --- files ------------------------------------------------------------------------------------


def test_a_local_file_is_written_as_any_other(app: Path) -> None:
    path = app / ".file"
    path.write_bytes(b"0123456789")
    with path.open("ab") as file:
        file.write(b"ab")
    assert path.read_bytes() == b"0123456789ab"
    os.truncate(path, 4)
    assert path.read_bytes() == b"0123"
    with path.open("r+b", buffering=0) as file:
        file.seek(6)
        file.write(b"X")
        file.seek(0)
        assert file.read() == b"0123\0\0X"
        assert os.fstat(file.fileno()).st_size == 7
        file.truncate(2)
        assert os.fstat(file.fileno()).st_size == 2
    path.write_bytes(b"shorter")
    assert path.read_bytes() == b"shorter"
    path.unlink()


def test_a_file_that_was_removed_while_open_goes_on_being_written(app: Path) -> None:
    with (app / ".file").open("w+b", buffering=0) as file:
        (app / ".file").unlink()
        assert names_in(app) == {"blobs", "manifests", "tags", "layout"}
        file.write(b"0123")
        file.truncate(3)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10, 0) == b"012"
        assert refusal(lambda: os.fstat(file.fileno())) == errno.ESTALE


def test_a_blob_may_be_written_out_of_order_into_room_that_was_reserved(
    embedded: EmbeddedRegistry, app: Path
) -> None:
    with (app / blob(LARGE)).open("wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, len(LARGE))
        assert os.fstat(file.fileno()).st_size == len(LARGE)
        os.close(os.dup(file.fileno()))
        half = len(LARGE) // 2
        os.pwrite(file.fileno(), LARGE[half:], half)
        os.pwrite(file.fileno(), LARGE[:half], 0)
    assert stored(embedded, blob(LARGE)) == LARGE


def test_room_is_reserved_and_holes_are_not_punched(app: Path) -> None:
    with (app / ".file").open("wb", buffering=0) as file:
        for mode, expected in ((0, 0), (_KEEP_SIZE, 0), (_PUNCH_HOLE, errno.EOPNOTSUPP)):
            done = _LIBC.fallocate(file.fileno(), mode, ctypes.c_int64(0), ctypes.c_int64(4096))
            assert (ctypes.get_errno() if done else 0) == expected
    (app / ".file").unlink()


def test_attributes_are_accepted_and_not_kept(app: Path) -> None:
    (app / ".file").touch()
    os.utime(app / ".file", ns=(1, 10**18))
    assert (app / ".file").stat().st_mtime_ns == 10**18
    for path in (app / ".file", app / blob(OLD.blobs[0]), app / "tags/old/manifest.json"):
        before = path.stat()
        path.chmod(0o600)
        os.chown(path, 7, 7)
        os.setxattr(path, "user.any", b"value")
        assert refusal(lambda path=path: os.setxattr(path, "trusted.any", b"1")) == errno.ENOTSUP
        assert path.stat()[:6] == before[:6]
    os.utime(app / blob(OLD.blobs[0]))
    assert (app / blob(OLD.blobs[0])).stat().st_mtime == 1
    os.utime(app / ".file")
    assert abs((app / ".file").stat().st_mtime - time.time()) < 60
    assert refusal(lambda: (app / ".none").chmod(0o600)) == errno.ENOENT
    (app / ".file").unlink()


def test_the_room_is_that_of_the_caches_disk(mount: Mount, tmp_path: Path) -> None:
    shown, cache = os.statvfs(mount.path), os.statvfs(tmp_path)
    assert shown.f_blocks * shown.f_frsize == cache.f_blocks * cache.f_frsize
    assert 0 < shown.f_bavail * shown.f_frsize <= shown.f_blocks * shown.f_frsize


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_others_may_look_and_not_write(
    embedded: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    load(embedded, "team/app", "old", OLD)
    path = Path(tempfile.mkdtemp(prefix="epochfs-"))
    try:
        path.chmod(0o755)
        mount = mounts(embedded.url, "-o", "rw,allow_other", path=path / "mount")
        script = "cat tags/old/manifest.json >/dev/null && ! rm tags/old && ! touch .file"
        as_nobody = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "sh", "-c", script]
        run_in = mount.path / "team/app"
        done = subprocess.run(as_nobody, cwd=run_in, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "Permission denied" in done.stderr
        assert tags(embedded, "team/app") == {"old": str(OLD.digest)}
        mount.unmount()
    finally:
        shutil.rmtree(path)
