"""Volumes as containers use them: one artifact as the mount, bound alone, served without rights."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from support.artifacts import TAR_GZIP, artifact, on, packed, platform_index, raw
from support.builders import Content, load, random_bytes, write_layout
from support.commandline import environment, run
from support.layers import DIRECTORY, File, Layer, container
from support.mounts import NO_MIRRORS, PATIENCE, Mounts, require_fuse
from support.registries import EmbeddedRegistry
from support.scripted import until

from epochfs.fuse import mountinfo
from epochfs.oci.artifact_files import UNPACK
from epochfs.oci.manifests import TITLE

pytest.importorskip("indexed_gzip")

WEIGHTS = random_bytes(3 << 20, 7)
NOBODY = 65534
ROOT = Path(__file__).parents[2]


def model() -> Content:
    return artifact(
        raw("model.safetensors", WEIGHTS),
        raw("config/config.json", b"{}"),
        packed(File("src/", type=DIRECTORY), File("src/run.py", b"print()")),
    )


MODEL = {
    "model.safetensors": WEIGHTS,
    "config/config.json": b"{}",
    "src/run.py": b"print()",
}


def files_in(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        load(registry, "team/model", "v1", model())
        yield registry


# ---- one artifact as the mount -------------------------------------------------------------------


def test_an_artifact_is_mounted_by_its_tag_and_stays_what_it_was(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    mount = mounts(f"{registry.url}/team/model:v1", "--metadata-ttl=1")
    assert files_in(mount.path) == MODEL
    assert {path.name for path in mount.path.iterdir()} == {"config", "model.safetensors", "src"}
    shown = f"{registry.url}/team/model@{model().digest}"
    listed = mountinfo.mounted_on(mount.path)
    assert listed is not None
    assert listed.source == shown
    status = json.loads((mount.path / ".epochfs/status.json").read_text())
    assert status["registry"] == shown
    load(registry, "team/model", "v1", artifact(raw("other", b"other")))
    time.sleep(1.2)
    assert files_in(mount.path) == MODEL


def test_an_artifact_is_mounted_by_its_digest(registry: EmbeddedRegistry, mounts: Mounts) -> None:
    for name in ("team/model", "team/model:gone"):
        mount = mounts(f"{registry.url}/{name}@{model().digest}")
        assert files_in(mount.path) == MODEL


def test_an_artifact_of_a_layout_is_mounted(mounts: Mounts, tmp_path: Path) -> None:
    write_layout(tmp_path / "layout", "v1", model())
    mount = mounts(f"oci:{tmp_path}/layout:v1")
    assert files_in(mount.path) == MODEL
    listed = mountinfo.mounted_on(mount.path)
    assert listed is not None
    assert listed.source == f"oci:{tmp_path}/layout@{model().digest}"
    assert files_in(mounts(f"oci:{tmp_path}/layout@{model().digest}").path) == MODEL


def test_a_mount_of_an_image_reads_no_layer_before_it_is_looked_into(
    registry: EmbeddedRegistry, mounts: Mounts
) -> None:
    load(registry, "image", "latest", container(Layer(b"no tar at all")))
    mount = mounts(f"{registry.url}/image:latest")
    assert mount.path.stat().st_mode & 0o777 == 0o555
    assert registry.count("GET", "/blobs/") == 0


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("team/model:gone", "team/model:gone: no such artifact: "),
        (f"team/model@sha256:{'0' * 64}", "no such artifact: "),
        ("team/other:v1", "team/other:v1: no such artifact: "),
        ("index:latest", "has nothing for linux/riscv64, only for: linux/amd64, linux/arm64"),
    ],
)
def test_what_is_not_there_is_told_at_once(
    registry: EmbeddedRegistry, tmp_path: Path, name: str, said: str
) -> None:
    load(registry, "index", "latest", platform_index(on("amd64"), on("arm64")))
    (tmp_path / "mounted").mkdir()
    began = time.monotonic()
    code, output, errors = run(
        "mount",
        f"--cache-dir={tmp_path / 'cache'}",
        "--platform=linux/riscv64",
        f"{registry.url}/{name}",
        tmp_path / "mounted",
    )
    assert (code, output) == (1, "")
    assert said in errors
    assert errors.count("\n") == 1
    assert time.monotonic() - began < 5


def test_a_path_that_can_mean_two_layouts_is_an_error_that_names_both(tmp_path: Path) -> None:
    write_layout(tmp_path / "a", "b", model())
    write_layout(tmp_path / "a:b", "c", model())
    code, _, errors = run("mount", f"oci:{tmp_path}/a:b", tmp_path)
    assert code == 2
    assert f"the directory '{tmp_path}/a:b' and 'b' in '{tmp_path}/a'" in errors


def test_prefetch_of_the_same_words(registry: EmbeddedRegistry, tmp_path: Path) -> None:
    load(registry, "team/model", "other", artifact(raw("other", random_bytes(1000, 3))))
    cache = f"--cache-dir={tmp_path}"
    for name in ("team/model:v1", f"team/model@{model().digest}"):
        code, output, _ = run("prefetch", cache, f"{registry.url}/{name}")
        assert code == 0
        assert output.startswith("3 blobs, 3.0 MiB: ")
    code, _, errors = run("prefetch", cache, f"{registry.url}/team/model:v1", "team/model:other")
    assert code == 2
    assert "names an artifact already" in errors


def test_prefetch_of_a_mount_tells_one_artifact_from_a_directory_with_an_at_sign(
    mounts: Mounts, registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    write_layout(tmp_path / "a@b", "v1", model())
    code, output, _ = run("prefetch", mounts(f"oci:{tmp_path}/a@b").path)
    assert (code, output) == (0, "3 blobs, 3.0 MiB: 0 fetched, 3 already cached, 0 failed\n")
    code, _, errors = run("prefetch", mounts(f"{registry.url}/team/model:v1").path)
    assert code == 2
    assert f"epochfs prefetch {registry.url}/team/model@{model().digest}" in errors


# ---- as containers use it ------------------------------------------------------------------------


def in_namespace(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a shell script in a mount namespace of its own; `$1` and so on are the arguments.

    In a chroot, as `scripts/debian13` makes one, the root is no mount that could be made private.
    """
    table = Path("/proc/self/mountinfo").read_text().splitlines()
    kept = [] if any(line.split()[4] == "/" for line in table) else ["--propagation", "unchanged"]
    command = ["unshare", "-m", *kept, "sh", "-euc", script, "sh", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_volume_bound_alone_is_whole_when_the_mount_is_gone(
    registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    mount = mounts(registry.url)
    alone = tmp_path / "alone"
    alone.mkdir()
    done = in_namespace(
        'mount --bind "$1/team/model:v1" "$2"; umount -l "$1"; ! test -e "$1/team"; '
        'cd "$2"; find . -type f | xargs sha256sum',
        mount.path,
        alone,
    )
    assert done.returncode == 0, done.stderr
    found = {name: digest for digest, name in map(str.split, done.stdout.splitlines())}
    assert found == {f"./{name}": hashlib.sha256(data).hexdigest() for name, data in MODEL.items()}


def program(path: str) -> list[File]:
    """Return a program of this machine at a path, and the libraries that it needs."""
    source = shutil.which("echo") or "/bin/echo"
    needed = subprocess.run(["ldd", source], capture_output=True, text=True, check=True).stdout
    libraries = {word for word in needed.split() if word.startswith("/")}
    files = [File(path, Path(source).read_bytes(), mode=0o755)]
    return files + [
        File(one.lstrip("/"), Path(one).read_bytes(), mode=0o755) for one in sorted(libraries)
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount")
def test_a_program_of_a_volume_runs_in_a_chroot_and_above_an_overlay(
    registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    pieces = program("bin/said")
    load(registry, "image", "v1", container(Layer(packed(*pieces)[1])))
    mount = mounts(registry.url)
    volume = mount.path / "image:v1"
    done = in_namespace('chroot "$1" /bin/said in a chroot', volume)
    assert (done.stdout, done.stderr) == ("in a chroot\n", "")
    for name in ("lower", "upper", "root"):
        (tmp_path / name).mkdir()
    done = in_namespace(
        'mount --bind "$1" "$2/lower"; '
        'mount -t tmpfs tmpfs "$2/upper"; mkdir "$2/upper/u" "$2/upper/w"; '
        "mount -t overlay overlay -o "
        '"lowerdir=$2/lower,upperdir=$2/upper/u,workdir=$2/upper/w" "$2/root"; '
        'echo new > "$2/root/bin/new"; chroot "$2/root" /bin/said over a volume',
        volume,
        tmp_path,
    )
    assert (done.stdout, done.stderr) == ("over a volume\n", "")


def test_a_packed_directory_is_what_tar_makes_of_it(
    registry: EmbeddedRegistry, mounts: Mounts, tmp_path: Path
) -> None:
    source = tmp_path / "source/site"
    (source / "css").mkdir(parents=True)
    (source / "index.html").write_text("<p>")
    (source / "css/site.css").write_text("p {}")
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    os.utime(source / "index.html", ns=(0, 1_600_000_000_000_000_000))
    (source / "link").symlink_to("css/site.css")
    packed_file = tmp_path / "site.tar.gz"
    with tarfile.open(packed_file, "w:gz") as archive:
        archive.add(source, "site")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    subprocess.run(["tar", "-xzpf", packed_file, "-C", unpacked], check=True)
    notes = {TITLE: "site", UNPACK: "true"}
    load(registry, "site", "v1", artifact((TAR_GZIP, packed_file.read_bytes(), notes)))
    shown = mounts(f"{registry.url}/site:v1").path
    command = ["diff", "-r", "--no-dereference", unpacked, shown]
    assert subprocess.run(command, capture_output=True, check=False).stdout == b""
    for path in sorted(unpacked.rglob("*")):
        one, other = path.lstat(), (shown / path.relative_to(unpacked)).lstat()
        for field in ("st_mode", "st_uid", "st_gid", "st_mtime_ns"):
            if field != "st_mtime_ns" or not path.is_symlink():
                assert (
                    getattr(one, field) // 10**9 * 10**9 == getattr(other, field) // (10**9) * 10**9
                ), path
        assert path.is_dir() or one.st_size == other.st_size


def test_kubernetes_own_example(registry: EmbeddedRegistry, mounts: Mounts) -> None:
    """KEP-4639: `dir/file` of the first layer and `file` of the second, in one directory."""
    first = packed(File("dir/", type=DIRECTORY), File("dir/file", b"layer 0\n"))
    second = packed(File("file", b"layer 1\n"))
    load(registry, "kep", "v1", container(Layer(first[1]), Layer(second[1])))
    mount = mounts(f"{registry.url}/kep:v1")
    assert files_in(mount.path) == {"dir/file": b"layer 0\n", "file": b"layer 1\n"}


# ---- without privileges --------------------------------------------------------------------------


def python_of_nobody() -> tuple[str, dict[str, str]]:
    """Return a Python that any user can run, and the environment in which it finds epochfs."""
    found = [str(Path(path)) for path in ("", *sys.path) if "site-packages" in str(path)]
    for python in (sys.executable, "/usr/bin/python3"):
        variables = (
            {} if python == sys.executable else {"PYTHONPATH": ":".join([str(ROOT), *found])}
        )
        command = [python, "-c", "import epochfs.cli.mount, mfusepy, zstandard"]
        with suppress(OSError):
            done = subprocess.run(
                command,
                env={**os.environ, **variables},
                cwd=ROOT,
                user=NOBODY,
                group=NOBODY,
                extra_groups=[],
                capture_output=True,
                check=False,
            )
            if done.returncode == 0:
                return python, variables
    pytest.skip("no Python here that another user can run")


@pytest.fixture
def open_to_all(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory, and a home, that any user may enter.

    Those of pytest are closed to others again whenever another pytest starts.
    """
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o711)
        for variable in ("HOME", "XDG_RUNTIME_DIR"):
            monkeypatch.setenv(variable, name)
        yield Path(name)


@contextmanager
def served_by_nobody(source: str, directory: Path, *options: str) -> Iterator[Path]:
    """Mount as root, and serve as a user without any right, who cannot open /dev/fuse."""
    require_fuse()
    if os.geteuid() != 0:
        pytest.skip("needs the right to mount")
    path, cache = directory / "mounted", directory / "nobodys"
    cache.mkdir(parents=True)
    os.chown(cache, NOBODY, NOBODY)
    python, variables = python_of_nobody()
    command = [python, "-m", "epochfs", "mount", *NO_MIRRORS, *options]
    command += [f"--log-file={cache}/log", f"--cache-dir={cache}", source, "{}"]
    mounter = [sys.executable, ROOT / "scripts/fdmount", "--uid", str(NOBODY), path, *command]
    with subprocess.Popen(mounter, env=environment(**variables)) as process:
        try:
            until(lambda: os.access(path / ".epochfs/status.json", os.F_OK), PATIENCE)
            yield path
        finally:
            process.terminate()
            assert process.wait(PATIENCE) == 0
    assert mountinfo.mounted_on(path) is None
    assert "WARNING" not in (cache / "log").read_text()


def test_a_process_without_rights_serves_what_another_has_mounted(
    registry: EmbeddedRegistry, open_to_all: Path
) -> None:
    with served_by_nobody(f"{registry.url}/team/model:v1", open_to_all) as path:
        assert files_in(path) == MODEL
        status = json.loads((path / ".epochfs/status.json").read_text())
        assert Path(f"/proc/{status['pid']}").stat().st_uid == NOBODY
        capabilities = Path(f"/proc/{status['pid']}/status").read_text()
        assert "CapEff:\t0000000000000000" in capabilities
        assert "NoNewPrivs:\t1" in capabilities
    with served_by_nobody(registry.url, open_to_all / "again") as path:
        assert files_in(path / "team/model:v1") == MODEL
        assert os.getxattr(path / "team/model/tags/v1/manifest.json", "user.epochfs.kind")


def test_what_a_killed_mounter_has_left_is_unmounted_by_the_next(
    registry: EmbeddedRegistry, open_to_all: Path
) -> None:
    require_fuse()
    path = open_to_all / "mounted"
    path.mkdir()
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mount = ctypes.CDLL(None).mount
    assert mount(b"none", os.fsencode(path), b"fuse.epochfs", 0, options.encode()) == 0
    os.close(device)
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(path)
    with served_by_nobody(f"{registry.url}/team/model:v1", open_to_all) as path:
        assert files_in(path) == MODEL


@pytest.mark.parametrize("number", [0, 999])
def test_a_descriptor_that_is_not_of_fuse_is_refused(number: int) -> None:
    code, _, errors = run("mount", "http://127.0.0.1:1", f"/dev/fd/{number}")
    assert code == 1
    assert f"/dev/fd/{number} is no open descriptor of /dev/fuse" in errors
