"""The mount point: mountinfo is read right, and what cannot be mounted on is told why."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from epochfs.cli import mountpoint
from epochfs.errors import MountFailure
from epochfs.fuse import mountinfo
from epochfs.fuse.mountinfo import Mount, parse_mountinfo

MOUNTINFO = r"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
42 22 0:39 / /mnt/a\040b\011c\134d ro,nosuid - fuse.epochfs http://127.0.0.1:5000 ro,user_id=0
43 22 0:40 / /mnt/shared rw shared:7 master:1 - fuse.sshfs me@host:/x rw
44 43 0:41 / /mnt/shared ro - fuse.epochfs https://h/team ro
this line is not one
"""


def show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    file = tmp_path / "mountinfo"
    file.write_text(text)
    monkeypatch.setattr(mountinfo, "_MOUNTINFO", file)


def test_mountinfo_is_parsed_with_its_escapes() -> None:
    assert list(parse_mountinfo(MOUNTINFO)) == [
        Mount(22, "254:0", Path("/"), "ext4", "/dev/vda", False),
        Mount(42, "0:39", Path("/mnt/a b\tc\\d"), "fuse.epochfs", "http://127.0.0.1:5000", True),
        Mount(43, "0:40", Path("/mnt/shared"), "fuse.sshfs", "me@host:/x", False),
        Mount(44, "0:41", Path("/mnt/shared"), "fuse.epochfs", "https://h/team", True),
    ]


def test_a_line_of_mountinfo_ends_with_a_newline_and_with_nothing_else() -> None:
    line = "42 22 0:39 / /mnt/a\x0cb\u2028c ro - fuse.epochfs https://h ro\n"
    assert [mount.path for mount in parse_mountinfo(line)] == [Path("/mnt/a\x0cb\u2028c")]


def test_the_topmost_mount_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    show(monkeypatch, tmp_path, MOUNTINFO)
    top = mountinfo.mounted_on(Path("/mnt/shared"))
    assert top is not None
    assert (top.number, top.is_ours) == (44, True)
    assert mountinfo.mounted_on(Path("/mnt")) is None


def test_the_real_mountinfo_shows_what_is_mounted() -> None:
    proc = mountinfo.mounted_on(Path("/proc"))
    assert proc is not None
    assert (proc.file_system, proc.is_ours) == ("proc", False)


def test_a_path_is_found_in_the_file_system_that_holds_it() -> None:
    assert mountinfo.file_system_of(Path("/proc/self")) == "proc"
    assert mountinfo.file_system_of(Path("/sys/kernel")) == "sysfs"
    assert mountinfo.file_system_of(Path("/proc/self/none")) == ""


def test_a_path_is_resolved_as_mountinfo_shows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/mnt")
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)
    for text in ("real/mnt", "link", "./real/../link/", str(tmp_path / "real" / "mnt")):
        assert mountpoint.resolve(text) == tmp_path / "real" / "mnt"
    assert mountpoint.resolve(".") == tmp_path
    assert mountpoint.resolve("real/mnt/..") == tmp_path / "real"
    assert mountpoint.resolve("/") == Path("/")
    with pytest.raises(MountFailure):
        mountpoint.prepare(mountpoint.resolve("loop"))


def test_an_empty_directory_of_ours_will_do(tmp_path: Path) -> None:
    mountpoint.prepare(tmp_path)


def test_a_missing_mount_point_is_told_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(MountFailure, match=r"does not exist: create it \(mkdir -p "):
        mountpoint.prepare(tmp_path / "none")


def test_a_file_is_no_mount_point(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MountFailure, match="is not a directory"):
        mountpoint.prepare(tmp_path / "file")


def test_a_directory_that_is_not_empty_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious\x1b").touch()
    with pytest.raises(MountFailure, match=r"is not empty \(it has 'precious\\x1b'\)"):
        mountpoint.prepare(tmp_path)


@pytest.mark.parametrize("mode", [0o555, 0o1777])
def test_somebody_elses_directory_is_refused_to_ordinary_users(
    mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() == 0:
        monkeypatch.setattr(os, "access", lambda path, wanted: mode == 0o1777)
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    tmp_path.chmod(mode)
    with pytest.raises(MountFailure, match="is not yours"):
        mountpoint.prepare(tmp_path)


def mount_is_listed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, answers: bool | None
) -> tuple[Path, list[bool]]:
    """A mount of ours as listed on a directory; unmounting is recorded as lazy or not.

    It `answers`, or is dead, or (None) hangs.
    """
    directory = tmp_path / "mnt"
    directory.mkdir()
    line = f"42 22 0:39 / {directory} ro - fuse.epochfs http://h ro\n"
    show(monkeypatch, tmp_path, line)
    unmounted: list[bool] = []

    def unmount(path: Path, *, lazy: bool = False) -> str:
        unmounted.append(lazy)
        show(monkeypatch, tmp_path, "")
        return ""

    def statvfs(path: Path) -> None:
        if answers is None:
            time.sleep(1)
        if not answers:
            raise OSError("Transport endpoint is not connected")

    monkeypatch.setattr(mountpoint, "unmount", unmount)
    monkeypatch.setattr(os, "statvfs", statvfs)
    return directory, unmounted


def test_a_mount_that_answers_is_not_mounted_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, unmounted = mount_is_listed(monkeypatch, tmp_path, answers=True)
    with pytest.raises(MountFailure, match=r"already mounted: it shows http://h; .*epochfs umount"):
        mountpoint.prepare(directory)
    assert unmounted == []


def test_a_dead_mount_is_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory, unmounted = mount_is_listed(monkeypatch, tmp_path, answers=False)
    mountpoint.prepare(directory)
    assert unmounted == [True]


def test_a_mount_that_hangs_is_told_within_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, unmounted = mount_is_listed(monkeypatch, tmp_path, answers=None)
    monkeypatch.setattr(mountpoint, "_ANSWER_SECONDS", 0.05)
    with pytest.raises(MountFailure, match=r"does not answer: .*fusermount3 -uz"):
        mountpoint.prepare(directory)
    assert unmounted == []


def test_a_dead_mount_that_cannot_be_removed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = mount_is_listed(monkeypatch, tmp_path, answers=False)
    monkeypatch.setattr(mountpoint, "unmount", lambda path, *, lazy: "not permitted")
    with pytest.raises(MountFailure, match=r"dead mount .*: not permitted; .*umount -l"):
        mountpoint.prepare(directory)


def test_waiting_for_a_mount_ends_when_its_process_does(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    with pytest.raises(MountFailure, match="ended at once"):
        mountpoint.wait_for_mount(tmp_path, device, lambda: False)
    with pytest.raises(MountFailure, match="does not answer"):
        mountpoint.wait_for_mount(tmp_path, device, lambda: True, limit=0.05)


def test_unmounting_what_is_not_mounted_is_a_problem_in_words(tmp_path: Path) -> None:
    assert mountpoint.unmount(tmp_path) != ""


def test_those_who_use_a_directory_are_named_but_not_who_asks(tmp_path: Path) -> None:
    beside = Path(f"{tmp_path}x")
    with (tmp_path / "file").open("w") as file:
        with subprocess.Popen(["sleep", "60"], stdout=file) as other:
            try:
                assert mountpoint.holders(tmp_path) == [f"sleep (pid {other.pid})"]
                assert mountpoint.holders(beside) == []
            finally:
                other.kill()
        assert mountpoint.holders(tmp_path) == []
