"""Large reads through a mount: libfuse hands the pages of a file to the kernel."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support.builders import image, load, random_bytes
from support.mounts import Mount, Mounts
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.oci.names import Digest

MIB = 1 << 20
BLOB = random_bytes(24 * MIB + 4321, 71)


@pytest.fixture
def mount(embedded: EmbeddedRegistry, mounts: Mounts) -> Mount:
    load(embedded, "team/app", "latest", image(BLOB))
    return mounts(embedded.url)


def blob(mount: Mount) -> Path:
    return mount.path / "team/app/blobs" / str(Digest.of(BLOB))


def kept(mount: Mount) -> Path:
    """Return the file that the cache keeps of it, once it does."""
    (cache,) = mount.path.parent.glob("**/v1/blobs/sha256")
    file = cache / Digest.of(BLOB).encoded
    until(file.exists)
    return file


def test_a_cold_blob_is_not_copied_into_the_memory_of_the_mount(
    mount: Mount, tmp_path: Path
) -> None:
    if "libfuse3" not in Path(f"/proc/{mount.process.pid}/maps").read_text():
        pytest.skip("libfuse 2 copies")
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    log = tmp_path / "strace.log"
    calls = "trace=splice,preadv,preadv2,pread64"
    command = ["strace", "-f", "-e", calls, "-o", log, "-p", str(mount.process.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as strace:
        assert strace.stderr is not None
        assert b"attached" in strace.stderr.readline()
        assert blob(mount).read_bytes() == BLOB
        strace.send_signal(signal.SIGINT)
    spliced = sum("splice(" in line for line in log.read_text().splitlines())
    assert spliced >= 2 * (len(BLOB) // MIB)


def test_reads_of_any_size_and_place_are_right(mount: Mount) -> None:
    with blob(mount).open("rb", buffering=0) as file:
        for size in (1, 4097, 128 * 1024, MIB, 3 * MIB):
            for offset in (0, 4095, 7 * MIB + 1, len(BLOB) - 2 * MIB, len(BLOB) - 1, len(BLOB)):
                assert os.pread(file.fileno(), size, offset) == BLOB[offset : offset + size]


def test_direct_reads_are_right(mount: Mount) -> None:
    descriptor = os.open(blob(mount), os.O_RDONLY | os.O_DIRECT)
    try:
        for offset in (0, 5 * MIB, len(BLOB) - MIB):
            assert os.pread(descriptor, 2 * MIB, offset) == BLOB[offset : offset + 2 * MIB]
    finally:
        os.close(descriptor)


@pytest.mark.expects_log("shorter than it was")
def test_a_cached_file_that_was_cut_short_ends_no_read(mount: Mount) -> None:
    # Opened again, it might be read by the kernel itself, in passthrough.
    with blob(mount).open("rb", buffering=0) as reader:
        assert reader.read(len(BLOB)) == BLOB
        file = kept(mount)
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        os.truncate(file, 9 * MIB + 5)
        assert os.pread(reader.fileno(), len(BLOB), 0) == BLOB
