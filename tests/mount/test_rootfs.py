"""`rootfs/` through the kernel, beside what umoci makes of the same image."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo
from support.builders import load, random_bytes, write_layout
from support.layers import (
    DEVICE,
    DIRECTORY,
    FIFO,
    HARD_LINK,
    LINK,
    File,
    Layer,
    container,
    gzipped,
    tar,
)
from support.mounts import Mounts, names_in, status
from support.registries import EmbeddedRegistry

pytest.importorskip("indexed_gzip")

BELOW = gzipped(
    File("./", type=DIRECTORY, mode=0o755),
    File("d/", type=DIRECTORY, mode=0o2750, owner=(7, 8)),
    File("d/gone"),
    File("d/first", b"two names", mode=0o4755, owner=(1, 2), mtime="1600000000.123456789"),
    File("d/second", type=HARD_LINK, link="d/first"),
    File("opaque/", type=DIRECTORY, mode=0o755),
    File("opaque/hidden"),
    File("new\nline", b"odd", xattrs={"user.a": b"\0\xff", "trusted.b": b"c"}),
    File("bad\udcff", b"odd too"),
    File("link", type=LINK, link="/d/\udcfe", mode=0o777),
    File("fifo", type=FIFO, mode=0o600),
    File("tty", type=DEVICE, device=(5, 1), mode=0o620),
    File("usr/", type=DIRECTORY, mode=0o755),
    File("usr/lib/", type=DIRECTORY, mode=0o755),
    File("lib", type=LINK, link="usr/lib", mode=0o777),
    File("lib/one", b"below a link"),
    File("usr/up", type=LINK, link="/../../lib", mode=0o777),
    File("usr/up/two", type=HARD_LINK, link="lib/one"),
)
ABOVE = gzipped(
    File("d/.wh.gone"),
    File("opaque/", type=DIRECTORY, mode=0o711),
    File("opaque/.wh..wh..opq"),
    File("opaque/seen", b"seen"),
)

Seen = tuple[object, ...]


def everything(root: Path) -> dict[bytes, Seen]:
    """See all there is below a directory, less what tells one file system from another."""
    top = os.fsencode(root)
    return {b"": _seen(top)} | {
        os.path.relpath(place, top): _seen(place)
        for directory, directories, files in os.walk(top)
        for name in (*directories, *files)
        for place in [os.path.join(directory, name)]  # noqa: PTH118 - of bytes
    }


def _seen(place: bytes) -> Seen:
    found = os.lstat(place)
    is_directory, is_file = stat.S_ISDIR(found.st_mode), stat.S_ISREG(found.st_mode)
    content: bytes = b""
    if is_file:
        with open(place, "rb") as file:  # noqa: PTH123 - of bytes
            content = file.read()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(place)  # noqa: PTH115 - of bytes
    names = os.listxattr(place, follow_symlinks=False)
    return (
        *(oct(found.st_mode), found.st_uid, found.st_gid, found.st_mtime_ns, found.st_rdev),
        *(() if is_directory else (found.st_nlink, found.st_size)),
        content,
        {name: os.getxattr(place, name, follow_symlinks=False) for name in names},
    )


def test_it_is_what_umoci_unpacks(
    mounts: Mounts, embedded: EmbeddedRegistry, tmp_path: Path
) -> None:
    if shutil.which("umoci") is None or os.geteuid() != 0:
        pytest.skip("umoci is not installed, or may not make devices here")
    content = container(BELOW, ABOVE)
    load(embedded, "app", "latest", content)
    write_layout(tmp_path / "layout", "latest", content)
    command = ["umoci", "raw", "unpack", "--image", f"{tmp_path}/layout:latest", "unpacked"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60)
    mount = mounts(embedded.url)
    assert everything(mount.path / "app/tags/latest/rootfs") == everything(tmp_path / "unpacked")


def test_the_names_of_a_file_have_one_inode(mounts: Mounts, embedded: EmbeddedRegistry) -> None:
    load(embedded, "app", "latest", container(BELOW, ABOVE))
    directory = mounts(embedded.url).path / "app/tags/latest/rootfs/d"
    first, second = (directory / name for name in ("first", "second"))
    assert first.samefile(second)
    with os.scandir(directory) as found:
        assert {entry.inode() for entry in found} == {first.stat().st_ino}


def test_a_device_is_shown_and_not_opened(mounts: Mounts, embedded: EmbeddedRegistry) -> None:
    load(embedded, "app", "latest", container(BELOW))
    with pytest.raises(PermissionError):
        (mounts(embedded.url).path / "app/tags/latest/rootfs/tty").open("rb")


def test_what_skopeo_compresses_as_zstd_chunked_moves_little(
    mounts: Mounts, docker_registry: DockerRegistry, skopeo: Skopeo, tmp_path: Path
) -> None:
    files = [File(f"usr/{n}", random_bytes(4 << 20, n)) for n in range(4)]
    layer = Layer(tar(*files, File("etc/os-release", b"ID=debian\n")))
    write_layout(tmp_path / "layout", "latest", container(layer))
    target = f"{docker_registry.host}/chunked"
    command = ["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false"]
    command += ["--dest-compress-format", "zstd:chunked"]
    command += [f"oci:{tmp_path}/layout:latest", f"docker://{target}:latest"]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    mount = mounts(docker_registry.url)
    root = mount.path / "chunked/tags/latest/rootfs"
    assert (root / "etc/os-release").read_bytes() == b"ID=debian\n"
    assert status(mount.path)["bytes_received"] < 2 << 20
    assert (root / "usr/3").read_bytes() == files[3].data


def test_a_layer_is_shown_while_it_arrives_if_that_is_asked_for(
    mounts: Mounts, docker_registry: DockerRegistry, skopeo: Skopeo
) -> None:
    large, first = random_bytes(32 << 20), random_bytes(10 << 10, 1)
    files = [File("etc/", type=DIRECTORY, mode=0o755), File("etc/first", first)]
    layer = Layer(gzip.compress(tar(*files, File("large", large)), 1))
    skopeo.push(container(layer), docker_registry.host, "app")
    mount = mounts(docker_registry.url, "--unverified-layers")
    root = mount.path / "app/tags/latest/rootfs"
    assert (root / "etc/first").read_bytes() == first
    assert status(mount.path)["bytes_received"] < 0.05 * len(large)
    assert names_in(root) == {"etc", "large"}
    assert (root / "large").read_bytes() == large
