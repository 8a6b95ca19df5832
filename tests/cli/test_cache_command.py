"""`epochfs cache`: what its commands say and do, beside real mounts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.builders import random_bytes
from support.commandline import run
from support.diskcache import (
    DATA,
    DIGEST,
    content,
    held,
    keep,
    not_yet_there,
    opened,
    place,
    read_only,
)
from support.mounts import Mounts
from support.registries import EmbeddedRegistry

from epochfs.oci.names import Digest

directory = pytest.fixture(not_yet_there)


def cache(command: str, directory: Path, *options: str) -> tuple[int, str]:
    """Run `epochfs cache`; return its exit code and output. It never complains here."""
    code, output, errors = run("cache", command, f"--cache-dir={directory}", *options)
    assert errors == ""
    return code, output


@pytest.mark.parametrize("command", ["info", "verify", "prune", "clear"])
def test_a_directory_without_a_cache_stays_as_it_is(command: str, directory: Path) -> None:
    assert cache(command, directory)[0] == 0
    assert not directory.exists()
    directory.mkdir()
    (directory / "holiday.jpg").write_bytes(b"mine")
    assert cache(command, directory)[0] == 0
    assert [path.name for path in directory.iterdir()] == ["holiday.jpg"]


def test_the_default_is_the_cache_of_mount(tmp_path: Path) -> None:
    keep(opened(tmp_path / "epochfs"))
    code, output, _ = run("cache", "info", XDG_CACHE_HOME=str(tmp_path))
    assert code == 0
    assert output.startswith(f"cache     {tmp_path}/epochfs\ncomplete  1 blob, 12.0 KiB\n")


def test_a_cache_that_others_may_write_to_is_one_line(directory: Path) -> None:
    keep(opened(directory))
    directory.chmod(0o777)
    code, output, errors = run("cache", "clear", f"--cache-dir={directory}")
    assert (code, output, errors.count("\n")) == (1, "", 1)
    assert f"the cache '{directory}' cannot be used: " in errors
    assert "others can write to it: chmod go-w it" in errors


@pytest.mark.parametrize("command", ["verify", "prune"])
def test_verify_says_so_with_its_exit_code(command: str, directory: Path) -> None:
    keep(opened(directory))
    place(directory, "blobs").write_bytes(b"wrong")
    code, output = cache(command, directory)
    if command == "prune":
        assert (code, output) == (0, "removed   0 blobs, 0 B\n")
        return
    assert code == 1
    found = Digest.of(b"wrong")
    bad, verified = output.splitlines()
    assert bad == f"bad {DIGEST}: its bytes hash to {found}; removed"
    assert verified == "verified  1 blob, 5 B, 1 bad"
    assert cache(command, directory) == (0, "verified  0 blobs, 0 B, 0 bad\n")


def test_prune_goes_down_to_a_size_only_if_it_is_told_one(directory: Path) -> None:
    keep(opened(directory))
    assert cache("prune", directory) == (0, "removed   0 blobs, 0 B\n")
    assert content(opened(directory)) == DATA
    assert cache("prune", directory, "--cache-size=8K") == (0, "removed   1 blob, 12.0 KiB\n")
    assert held(opened(directory)) == set()


def test_prune_that_finds_all_in_use_says_so(directory: Path) -> None:
    keep(opened(directory))
    fd = opened(directory).open(DIGEST, len(DATA))
    assert fd is not None
    code, output, errors = run("cache", "prune", f"--cache-dir={directory}", "--cache-size=1K")
    os.close(fd)
    assert (code, output) == (1, "removed   0 blobs, 0 B\nin use    1 blob, 12.0 KiB\n")
    assert "nothing was removed" in errors
    assert "11.0 KiB too large: all of it is in use" in errors


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
@pytest.mark.parametrize("command", [["prune", "--cache-size=1K"], ["clear"]])
def test_what_cannot_be_removed_is_an_error_that_says_why(
    command: list[str], directory: Path
) -> None:
    keep(opened(directory))
    with read_only(directory):
        code, output, errors = run("cache", *command, f"--cache-dir={directory}")
        assert code == 1
        assert errors.startswith("epochfs: ")
        assert errors.endswith("Read-only file system\n")
        if command[0] == "prune":
            assert output == "removed   0 blobs, 0 B\n"
            assert f"1 blob, 12.0 KiB cannot be removed from the cache '{directory}'" in errors
    assert held(opened(directory)) == {DIGEST}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount read-only")
def test_info_writes_nothing(directory: Path) -> None:
    keep(opened(directory))
    with read_only(directory):
        assert "complete  1 blob, 12.0 KiB\n" in cache("info", directory)[1]
        assert cache("verify", directory) == (0, "verified  1 blob, 12.0 KiB, 0 bad\n")


def test_mounts_are_named_and_keep_what_they_use(
    mounts: Mounts, embedded: EmbeddedRegistry, directory: Path
) -> None:
    big, small = random_bytes(1 << 20, 1), random_bytes(4096, 2)
    for data in (big, small):
        embedded.put_blob("team/app", data)
    mount = mounts(embedded.url, "--cache-size=1G", cache=directory)
    blobs = mount.path / "team/app/blobs"
    assert (blobs / str(Digest.of(small))).read_bytes() == small
    with (blobs / str(Digest.of(big))).open("rb") as file:
        assert file.read(1 << 20) == big
        named = f"mount     {mount.path} (pid {mount.process.pid}) of {embedded.url}"
        assert f"{named}, limit 1.0 GiB\n" in cache("info", directory)[1]
        code, output = cache("clear", directory)
        assert (code, output.splitlines()) == (
            0,
            ["removed   1 blob, 4.0 KiB", "in use    1 blob, 1.0 MiB", named],
        )
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        assert file.read(1 << 20) == big
    assert (blobs / str(Digest.of(small))).read_bytes() == small
    mount.unmount()
    assert "mount  " not in cache("info", directory)[1]
    assert cache("clear", directory)[1] == "removed   2 blobs, 1.0 MiB\n"
    left = [path for path in directory.rglob("*") if path.is_file()]
    assert left == []
