"""Backups restored by the tool that made them, through a mount that can be written to."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, serve_docker_registry
from support.backups import TOOLS, Administrator, digests, fingerprint, recipe_line
from support.builders import image, index, random_bytes, write_layout
from support.mounts import Mount, Mounts, names_in, require_fuse, status
from support.registries import EmbeddedRegistry
from support.restoring import REGISTRY, push_all
from support.scripted import until
from support.writing import tags

from epochfs.demo.registry import EPOCH

PASSWORD = "registry-token"


@dataclass(frozen=True)
class Way:
    """How a tool saves and restores a mount: by lines of the page, but for cp."""

    save: str
    restore: str


WAYS: Mapping[str, Way] = {
    "rsync": Way(recipe_line(TOOLS["rsync"].line), recipe_line("rsync -a /backup")),
    "cp": Way("cp -a /mnt/. /backup/copied", "cp -a /backup/copied/. /mnt/"),
    "tar": Way(recipe_line(TOOLS["tar"].line), recipe_line("tar -x")),
    "restic": Way(
        f"{TOOLS['restic'].prepare}\n{recipe_line(TOOLS['restic'].line)}",
        recipe_line("restic -r /backup/restic restore"),
    ),
    "borg": Way(
        f"{TOOLS['borg'].prepare}\n{recipe_line(TOOLS['borg'].line)}",
        recipe_line("cd / && borg extract"),
    ),
}

each_way = pytest.mark.parametrize("tool", WAYS)


@dataclass(frozen=True)
class Saved:
    """A registry that was backed up by each tool, from a mount that its administrator knows."""

    administrator: Administrator
    known: Mapping[str, object]
    shown: Mapping[str, str]

    @property
    def backup(self) -> Path:
        return self.administrator.backup

    def restore(self, tool: str) -> None:
        """Restore the backup of a tool to where it was made from; the tool must succeed."""
        self.administrator.run(WAYS[tool].restore)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Saved]:
    require_fuse()
    for tool in WAYS:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    directory = tmp_path_factory.mktemp("saved")
    (directory / "registry").mkdir()
    administrator = Administrator(directory / "root", directory / "mnt")
    mounts = Mounts(directory)
    with serve_docker_registry(directory / "registry") as registry:
        push_all(registry.url)
        mount = mounts(registry.url, path=directory / "mnt")
        for way in WAYS.values():
            administrator.run(way.save)
        known, shown = digests(registry.url), fingerprint(mount.path)
        assert mounts.close() == []
    yield Saved(administrator, known, shown)
    shutil.rmtree(directory)


MountOf = Callable[..., Mount]
Open = Callable[[str], contextlib.AbstractContextManager[str]]


@pytest.fixture
def empty(tmp_path: Path) -> Open:
    """Opens an empty registry of a kind; the URL of it."""

    @contextlib.contextmanager
    def opened(kind: str) -> Iterator[str]:
        if kind == "docker":
            directory = tmp_path / "registry"
            directory.mkdir()
            with serve_docker_registry(directory) as docker:
                yield docker.url
        elif kind == "epoch":
            with EmbeddedRegistry(EPOCH, username="me", password=PASSWORD) as registry:
                yield registry.url
        else:
            with EmbeddedRegistry() as registry:
                yield registry.url

    return opened


@pytest.fixture
def writable(tmp_path: Path, mounts: Mounts, saved: Saved) -> MountOf:
    """Mounts a registry, to be written to, where the backups were made."""
    secret = tmp_path / "secret"
    secret.write_text(PASSWORD)
    secret.chmod(0o600)
    login = ("--username", "me", "--password-file", str(secret))

    def mount(url: str, kind: str = "epoch") -> Mount:
        options = login if kind == "epoch" else ()
        return mounts(url, "-o", "rw", *options, path=saved.administrator.mount)

    return mount


def nothing_waits(mount: Mount) -> bool:
    writing = status(mount.path)["writing"]
    return (writing["waiting"], writing["local"], writing["reasons"]) == (0, 0, [])


def all_tags(registry: Mapping[str, object]) -> dict[str, object]:
    """Return the digest of each tag."""
    return {name: found for name, found in registry.items() if "@" not in name}


@pytest.mark.registry
@pytest.mark.parametrize("kind", ["docker", "epoch"])
@each_way
def test_a_registry_is_restored_by_the_tool_that_saved_it(
    saved: Saved, empty: Open, writable: MountOf, kind: str, tool: str
) -> None:
    with empty(kind) as url:
        mount = writable(url, kind)
        saved.restore(tool)
        assert nothing_waits(mount)
        assert digests(url) == saved.known
        assert len(all_tags(saved.known)) == sum(map(len, REGISTRY.values())) == 40
        if tool == "rsync":
            assert fingerprint(mount.path) == saved.shown
        mount.unmount()


def test_referrers_are_restored_where_the_registry_lists_them(
    saved: Saved, empty: Open, writable: MountOf
) -> None:
    with empty("specification") as url:
        mount = writable(url, "specification")
        saved.restore("rsync")
        found = digests(url)
        assert all_tags(found) == all_tags(saved.known)
        lists = [one for name, one in found.items() if name.endswith(" referrers") and one]
        assert len(lists) == 3
        mount.unmount()


AGAIN = {
    "rsync": "rsync -ai /backup/registry/ /mnt/ | grep '^[<>ch]' | grep -v index.json || true",
    "cp": recipe_line("cp -au"),
    "tar": WAYS["tar"].restore,
}
"""What restores once more, over all that is there, and what it tells of what it transferred."""


@pytest.mark.registry
def test_what_is_there_is_not_sent_again(saved: Saved, empty: Open, writable: MountOf) -> None:
    with empty("docker") as url:
        mount = writable(url, "docker")
        saved.restore("rsync")
        sent = status(mount.path)["writing"]["sent"]
        for line in AGAIN.values():
            assert saved.administrator.run(line) == ""
        assert status(mount.path)["writing"]["sent"] == sent
        assert digests(url) == saved.known
        mount.unmount()


@pytest.mark.expects_log("/team0/signed/.*: EPERM: .* can be deleted with -o rw,delete only")
def test_a_copy_over_what_is_there_replaces_its_links(
    saved: Saved, empty: Open, writable: MountOf
) -> None:
    with empty("epoch") as url:
        mount = writable(url)
        saved.restore("rsync")
        saved.restore("cp")
        assert digests(url) == saved.known
        mount.unmount()


@pytest.mark.parametrize("victim", ["the tool", "the mount"])
def test_a_restore_that_was_killed_is_repeated(
    saved: Saved, writable: MountOf, victim: str
) -> None:
    with EmbeddedRegistry(EPOCH, username="me", password=PASSWORD) as registry:
        mount = writable(registry.url)
        tool = subprocess.Popen(
            ["rsync", "-a", f"{saved.backup}/registry/", f"{mount.path}/"],
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(lambda: registry.count("PUT") >= 60, seconds=30)
        if victim == "the mount":
            mount.kill()
            tool.wait(20)
            mount = writable(registry.url)
        else:
            kill(tool)
            remove_leftovers(mount)
        found = all_tags(digests(registry.url))  # what they lead to is all there
        assert found.items() < all_tags(saved.known).items()
        saved.restore("rsync")
        assert digests(registry.url) == saved.known
        assert nothing_waits(mount)
        mount.unmount()


def remove_leftovers(mount: Mount) -> None:
    """Remove the temporary file that a killed rsync may have been writing, as anywhere else."""
    for line in status(mount.path)["writing"]["reasons"]:
        if line.endswith(" is in no registry"):
            path = mount.path / line.removesuffix(" is in no registry").lstrip("/")
            assert path.name.startswith(".")
            path.unlink()


def kill(tool: subprocess.Popen[bytes]) -> None:
    """Kill a tool and its helpers, which are of one process group; what they began ends first."""
    os.killpg(tool.pid, signal.SIGKILL)
    tool.wait(20)
    # A helper that waits for the mount lives on until that has answered.
    until(lambda: not is_running(tool.pid), seconds=20)


def is_running(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in ("Z", "X"):
                return True
    return False


@pytest.mark.registry
def test_what_is_missing_in_a_registry_is_restored(
    saved: Saved, empty: Open, writable: MountOf
) -> None:
    with empty("docker") as url:
        mount = writable(url, "docker")
        saved.administrator.run(
            "cd /backup/registry\n"
            "mkdir -p /mnt/team0/signed /mnt/team1/app1\n"
            "rsync -a team0/signed/blobs team0/signed/tags /mnt/team0/signed/\n"
            "rsync -a team1/app1/manifests team1/app1/tags /mnt/team1/app1/\n"
        )
        assert not nothing_waits(mount)
        saved.restore("tar")
        assert nothing_waits(mount)
        assert digests(url) == saved.known
        mount.unmount()


def test_tags_that_come_first_wait_for_the_rest(
    saved: Saved, empty: Open, writable: MountOf
) -> None:
    with empty("epoch") as url:
        mount = writable(url)
        saved.administrator.run(
            "cd /backup/registry\n"
            "find . -type d -name tags | tar -cf ../tags.tar -T -\n"
            "tar -cf ../rest.tar --exclude=tags --exclude=layout .\n"
            "tar -xf ../tags.tar -C /mnt"
        )
        assert status(mount.path)["writing"]["waiting"] == 40
        assert all_tags(digests(url)) == {}
        saved.administrator.run("tar -xf /backup/rest.tar -C /mnt")
        assert nothing_waits(mount)
        assert digests(url) == saved.known
        mount.unmount()


OTHERS = {
    "rclone": recipe_line("rclone copy"),
    "rsync that delays updates": "rsync -aHAX --delay-updates /backup/registry/ /mnt/",
    "rsync in place": "rsync -a --inplace /backup/registry/ /mnt/",
    "rsync with a directory of parts": "rsync -aP --partial-dir=.parts --fsync"
    " /backup/registry/ /mnt/",
    "shutil": "python3 -c \"import shutil; shutil.copytree('/backup/registry', '/mnt',"
    ' symlinks=True, dirs_exist_ok=True)"',
    "tar to tar": "tar -cC /backup/registry . | tar -xC /mnt",
    "cp of one repository after the other": "cd /backup/registry\n"
    "for repository in team*/*; do mkdir -p /mnt/$repository; cp -r --preserve=links -P"
    " $repository/* /mnt/$repository/; done",
}


@pytest.mark.parametrize("line", OTHERS.values(), ids=OTHERS)
def test_a_directory_is_copied_into_the_mount(
    saved: Saved, empty: Open, writable: MountOf, line: str
) -> None:
    if line == OTHERS["rclone"] and shutil.which("rclone") is None:
        pytest.skip("rclone is not installed")
    with empty("epoch") as url:
        mount = writable(url)
        saved.administrator.run(
            "mkdir -p /backup/part && cp -au /backup/registry/team1 /backup/part/"
        )
        saved.administrator.run(line.replace("/backup/registry", "/backup/part"))
        assert nothing_waits(mount)
        part = {name: one for name, one in saved.known.items() if name.startswith("team1/")}
        assert digests(url) == part
        mount.unmount()


def test_the_page_says_how_to_mount_and_what_to_wait_for(saved: Saved, empty: Open) -> None:
    run, root = saved.administrator.run, saved.administrator.mount
    with empty("specification") as url:
        run(
            recipe_line("epochfs mount -o rw").replace("https:", "http:"),
            url.removeprefix("http://"),
        )
        try:
            run("cd /backup/registry && cp -a --parents team1/app1/tags /mnt/")
            done = saved.administrator.try_to(recipe_line("epochfs umount /mnt"))
            assert (done.returncode, "waits for" in done.stderr) == (1, True)
            saved.restore("rsync")
            run(recipe_line("epochfs umount /mnt"))
        finally:
            subprocess.run(["umount", "-l", root], check=False, capture_output=True)
        assert not os.path.ismount(root)
        assert all_tags(digests(url)) == all_tags(saved.known)


# --- layouts ----------------------------------------------------------------------------------

PUSHED = index(image(random_bytes(50_000, 3)), image(b"other"))


@pytest.mark.registry
def test_skopeo_copies_into_a_layout_of_the_mount(
    docker_registry: DockerRegistry, skopeo: Skopeo, mounts: Mounts
) -> None:
    skopeo.push(PUSHED, docker_registry.host, "from/app", "1.0")
    with EmbeddedRegistry() as registry:
        mount = mounts(registry.url, "-o", "rw")
        (mount.path / "team/app").mkdir(parents=True)
        source = f"docker://{docker_registry.host}/from/app:1.0"
        for tag in ("1.0", "latest"):
            target = f"oci:{mount.path}/team/app/layout:{tag}"
            skopeo.copy("--src-tls-verify=false", source, target)
        assert tags(registry, "team/app") == dict.fromkeys(("1.0", "latest"), str(PUSHED.digest))
        assert names_in(mount.path / "team/app/tags") == {"1.0", "latest"}
        assert nothing_waits(mount)


@pytest.mark.registry
@pytest.mark.parametrize("tool", ["rsync -a", "cp -rT"])
def test_a_layout_is_copied_into_a_mount_of_a_prefix(
    docker_registry: DockerRegistry, mounts: Mounts, tmp_path: Path, tool: str
) -> None:
    write_layout(tmp_path / "layout", "1.0", PUSHED)
    name = tool.replace(" -", "-").lower()
    mount = mounts(f"{docker_registry.url}/prefix", "-o", "rw")
    (mount.path / name).mkdir()
    command = [*tool.split(), f"{tmp_path}/layout/", f"{mount.path}/{name}/layout"]
    subprocess.run(command, check=True)
    assert (mount.path / name / "tags/1.0").readlink().name == str(PUSHED.digest)
    assert nothing_waits(mount)
    assert tags(docker_registry, f"prefix/{name}") == {"1.0": str(PUSHED.digest)}
