"""The requirements of FUSE: the device, the library, the helper for ordinary users.

Each function returns what it found, for `doctor` to show, or raises MountFailure with the cure.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import shutil
import stat
from pathlib import Path

from epochfs.errors import MountFailure
from epochfs.fuse.mountinfo import FILE_SYSTEM_TYPE

_DEVICE = Path("/dev/fuse")
_FUSE_CONF = Path("/etc/fuse.conf")
_UPDATEDB_CONF = Path("/etc/updatedb.conf")
_LIBRARIES = ("libfuse3.so.4", "libfuse3.so.3", "libfuse.so.2")
_INSTALL = "install it (Debian, Ubuntu: apt-get install fuse3)"


def require_fuse(*, allow_other: bool) -> None:
    """Raise MountFailure unless this user can mount with FUSE, and choose the library."""
    device()
    library()
    if os.geteuid() != 0:
        helper()
    if allow_other:
        user_allow_other()


def require_descriptor_support() -> None:
    """Raise MountFailure unless libfuse can serve a mount of somebody else's, and choose it."""
    library()
    if library_version() < (3, 3):
        raise MountFailure(f"/dev/fd/N as mount point needs libfuse 3.3 or later: {_INSTALL}")


def raise_open_files() -> None:
    """Raise the limit of open files to the hard one: the usual 1024 is only for select(2).

    Each open blob takes a descriptor, and so does each connection.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def spared_by_updatedb() -> str:
    """Return why updatedb(8), which walks all file systems at night, leaves mounts alone."""
    if shutil.which("updatedb") is None:
        return "not installed"
    try:
        text = _UPDATEDB_CONF.read_text(errors="replace")
    except OSError:
        text = ""
    pruned = re.findall(r'^\s*PRUNEFS\s*=\s*"([^"]*)"', text, re.MULTILINE)
    if any(FILE_SYSTEM_TYPE in words.lower().split() for words in pruned):
        return f"leaves {FILE_SYSTEM_TYPE} alone"
    raise MountFailure(
        "walks every mount at night, which costs requests to the registry: "
        f"add {FILE_SYSTEM_TYPE} to PRUNEFS in {_UPDATEDB_CONF}"
    )


def device() -> str:
    """Return /dev/fuse if it can be opened."""
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise MountFailure(
            f"{_DEVICE} does not exist: load the kernel module (modprobe fuse), or give the "
            f"container the device (--device {_DEVICE} --cap-add SYS_ADMIN), or serve /dev/fd/N, "
            "which another process has mounted: see 'epochfs help kubernetes'"
        ) from None
    except OSError as error:
        raise MountFailure(
            f"{_DEVICE} cannot be opened ({error.strerror}): run as root, make it accessible "
            f"(chmod 666 {_DEVICE}), or give the container --device {_DEVICE} --cap-add SYS_ADMIN; "
            "or serve /dev/fd/N, which another process has mounted: see 'epochfs help kubernetes'"
        ) from None
    return str(_DEVICE)


def library() -> str:
    """Choose the newest libfuse and return its name and version.

    By itself the binding prefers libfuse 2 where both are installed. It honours FUSE_LIBRARY_PATH,
    which is set here unless the user has set it.
    """
    name, (major, minor) = _library()
    os.environ["FUSE_LIBRARY_PATH"] = name
    return f"{name}, version {major}.{minor}"


def library_version() -> tuple[int, int]:
    """Return the version of the libfuse that `library` chooses."""
    return _library()[1]


def _library() -> tuple[str, tuple[int, int]]:
    chosen = os.environ.get("FUSE_LIBRARY_PATH")
    for name in [chosen] if chosen else _LIBRARIES:
        try:
            loaded = ctypes.CDLL(name)
        except OSError:
            continue
        # 29 is version 2.9, and 317 is 3.17.
        number = int(loaded.fuse_version())
        return name, divmod(number, 10 if number < 100 else 100)
    if chosen:
        raise MountFailure(f"libfuse cannot be loaded from FUSE_LIBRARY_PATH={chosen}: unset it")
    raise MountFailure(f"libfuse is not installed: {_INSTALL}")


def helper() -> str:
    """Return the path of fusermount3, with which ordinary users mount and unmount."""
    path = shutil.which("fusermount3") or shutil.which("fusermount")
    if path is None:
        raise MountFailure(f"fusermount3 is not installed: {_INSTALL}")
    if os.geteuid() != 0 and not Path(path).stat().st_mode & stat.S_ISUID:
        raise MountFailure(f"{path} is not setuid root: reinstall fuse3, or run as root")
    return path


def user_allow_other() -> str:
    """Return why --allow-other may be used: root may always, others if fuse.conf allows it."""
    if os.geteuid() == 0:
        return "root needs no permission for --allow-other"
    try:
        lines = _FUSE_CONF.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    if "user_allow_other" not in (line.strip() for line in lines):
        raise MountFailure(
            f"--allow-other is not permitted: as root, add the line user_allow_other to "
            f"{_FUSE_CONF}, or mount as root"
        )
    return f"user_allow_other is set in {_FUSE_CONF}"
