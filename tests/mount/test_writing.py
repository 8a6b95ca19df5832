"""A mount that can be written to: what can be written, what each system call says, what is left."""

from __future__ import annotations

import errno
import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import DockerRegistry, Skopeo, free_port, serve_docker_registry
from support.builders import load
from support.mountedwrites import LARGE, blob, mounted, mounted_app, reasons, run, stored
from support.mounts import Mount, Mounts, names_in, status
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.views import refusal
from support.writing import NEW, OLD, link_to, tags

from epochfs.oci.names import Digest

NOWHERE = f"../manifests/{Digest.of(b'nothing at all')}"


mount = pytest.fixture(mounted)
app = pytest.fixture(mounted_app)


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """A file of five megabytes."""
    path = tmp_path / "large"
    path.write_bytes(LARGE)
    return path


# --- tags -------------------------------------------------------------------------------------


def test_the_index_of_the_layout_has_a_tag_as_soon_as_it_is_made(app: Path) -> None:
    target = (app / "tags/old").readlink()
    index = app / "layout/index.json"
    for number in range(5):
        assert index.stat().st_size
        with index.open() as held:
            (app / f"tags/n{number}").symlink_to(target)
            assert f'"n{number}"' in index.read_text()
            assert f'"n{number}"' not in held.read()
        (app / f"tags/n{number}").unlink()
        assert f'"n{number}"' not in index.read_text()


def test_a_link_to_a_manifest_is_a_tag(embedded: EmbeddedRegistry, app: Path) -> None:
    (app / "tags/new").symlink_to(link_to(OLD))
    assert tags(embedded, "team/app")["new"] == str(OLD.digest)
    assert names_in(app / "tags") == {"old", "new"}
    assert str((app / "tags/new").readlink()) == link_to(OLD)


@pytest.mark.expects_log("symlink /team/app/tags/new: EINVAL")
def test_a_link_that_leads_to_no_manifest_is_refused(app: Path) -> None:
    assert refusal(lambda: (app / "tags/new").symlink_to(NOWHERE)) == errno.ENOENT
    assert refusal(lambda: (app / "tags/new").symlink_to("elsewhere")) == errno.EINVAL
    assert names_in(app / "tags") == {"old"}


@pytest.mark.parametrize("tool", ["ln", "mv"])
def test_a_link_over_a_tag_moves_it(embedded: EmbeddedRegistry, app: Path, tool: str) -> None:
    load(embedded, "team/app", "new", NEW)
    if tool == "ln":
        run("ln", "-sfT", link_to(NEW), app / "tags/old")
    else:
        (app / "tags/.new").symlink_to(link_to(NEW))
        run("mv", "-T", app / "tags/.new", app / "tags/old")
    assert tags(embedded, "team/app") == dict.fromkeys(("old", "new"), str(NEW.digest))
    assert str((app / "tags/old").readlink()) == link_to(NEW)


def test_a_tag_is_removed_and_its_sibling_stays(embedded: EmbeddedRegistry, app: Path) -> None:
    load(embedded, "team/app", "sibling", OLD)
    run("rm", app / "tags/old")
    assert tags(embedded, "team/app") == {"sibling": str(OLD.digest)}
    assert refusal((app / "tags/old").lstat) == errno.ENOENT


@pytest.mark.expects_log("unlink /removal/app/tags/one: EPERM: the registry cannot delete a tag")
def test_a_tag_that_cannot_be_deleted_by_itself_stays(
    docker_registry: DockerRegistry, skopeo: Skopeo, mounts: Mounts
) -> None:
    for tag in ("one", "sibling"):
        skopeo.push(OLD, docker_registry.host, "removal/app", tag)
    directory = mounts(docker_registry.url, "-o", "rw").path / "removal/app/tags"
    assert refusal((directory / "one").unlink) == errno.EPERM
    assert names_in(directory) == {"one", "sibling"}
    skopeo.pull(docker_registry.host, "removal/app", "sibling")


# --- blobs and manifests -----------------------------------------------------------------------


def test_a_blob_is_in_the_registry_once_cp_has_ended(
    embedded: EmbeddedRegistry, app: Path, large: Path
) -> None:
    run("cp", large, app / blob(LARGE))
    assert stored(embedded, blob(LARGE)) == LARGE
    assert (app / blob(LARGE)).read_bytes() == LARGE
    assert (app / blob(LARGE)).stat().st_size == len(LARGE)


@pytest.mark.expects_log("was not written: the .* bytes written hash to")
def test_wrong_bytes_are_an_error_of_close_and_nothing_is_left(app: Path) -> None:
    path = app / blob(b"other bytes")
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, b"these bytes")
    assert refusal(lambda: os.close(descriptor)) == errno.EIO
    assert refusal(path.stat) == errno.ENOENT
    assert path.name not in names_in(app / "blobs")


def test_a_shell_that_closes_a_copy_of_the_descriptor_first_loses_nothing(
    embedded: EmbeddedRegistry, app: Path
) -> None:
    data = b"one\ntwo\n"
    run("sh", "-c", f"exec 3> '{app / blob(data)}'; echo one >&3; echo two >&3; exec 3>&-")
    assert stored(embedded, blob(data)) == data


def write_manifest(app: Path) -> None:
    """Write the manifest of NEW as a copy of the tree would."""
    directory = app / "manifests" / str(NEW.digest)
    directory.mkdir(parents=True)
    (directory / "manifest.json").write_bytes(NEW.raw)


def test_a_manifest_and_its_tag_wait_for_the_blobs(
    embedded: EmbeddedRegistry, mount: Mount, app: Path
) -> None:
    write_manifest(app)
    (app / "tags/new").symlink_to(link_to(NEW))
    assert str((app / "tags/new").readlink()) == link_to(NEW)
    assert (app / "tags/new/manifest.json").read_bytes() == NEW.raw
    assert set(tags(embedded, "team/app")) == {"old"}
    assert status(mount.path)["writing"]["waiting"] == 2
    assert len(reasons(mount)) == 2
    for data in NEW.blobs:
        (app / blob(data)).write_bytes(data)
    assert tags(embedded, "team/app")["new"] == str(NEW.digest)
    assert reasons(mount) == []
    assert status(mount.path)["writing"]["waiting"] == 0


@pytest.mark.expects_log("EBUSY")
def test_fsync_says_whether_it_is_in_the_registry(app: Path) -> None:
    directory = app / "manifests" / str(NEW.digest)
    directory.mkdir()
    with (directory / "manifest.json").open("wb") as file:
        file.write(NEW.raw)
        file.flush()
        assert refusal(lambda: os.fsync(file.fileno())) == errno.EBUSY
        top = os.open(app, os.O_RDONLY)
        assert refusal(lambda: os.fsync(top)) == errno.EBUSY
        for data in NEW.blobs:
            (app / blob(data)).write_bytes(data)
        os.fsync(file.fileno())
        os.fsync(top)
        os.close(top)


@pytest.mark.expects_log("was not written")
def test_a_manifest_of_another_digest_is_refused(app: Path) -> None:
    directory = app / "manifests" / str(NEW.digest)
    directory.mkdir()
    file = (directory / "manifest.json").open("wb")
    file.write(OLD.raw)
    assert refusal(file.close) == errno.EIO
    assert refusal((directory / "manifest.json").stat) == errno.ENOENT


@pytest.mark.expects_log("EPERM")
def test_content_is_deleted_only_where_that_was_asked_for(
    embedded: EmbeddedRegistry, mount: Mount, mounts: Mounts
) -> None:
    config = blob(OLD.blobs[0])
    manifest = f"manifests/{OLD.digest}"
    app = mount.path / "team/app"
    assert refusal((app / config).unlink) == errno.EPERM
    assert refusal((app / manifest / "manifest.json").unlink) == errno.EPERM
    assert refusal((app / manifest).rmdir) == errno.ENOTEMPTY
    app = mounts(embedded.url, "-o", "rw,delete").path / "team/app"
    run("rm", "-r", app / manifest)
    run("rm", app / config)
    assert tags(embedded, "team/app") == {}
    for path in (config, manifest):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            stored(embedded, path)


def test_what_is_to_be_written_to_an_empty_registry_is_not_there_before(
    embedded: EmbeddedRegistry, mounts: Mounts
) -> None:
    """rsync makes a directory only where there is none, and all of them at first."""
    top = mounts(embedded.url, "-o", "rw").path
    for name in ("team/app/blobs", "team/other/blobs"):
        assert refusal((top / name).stat) == errno.ENOENT
        (top / name).mkdir(parents=True)
    write_manifest(top / "team/app")
    for repository in ("team/app", "team/other"):
        for data in NEW.blobs:
            (top / repository / blob(data)).write_bytes(data)
    assert names_in(top / "team/other/blobs") >= {str(Digest.of(data)) for data in NEW.blobs}
    assert (top / "team/app/manifests" / str(NEW.digest) / "manifest.json").exists()


@pytest.mark.expects_log("EIO|was not written|is down|cannot be reached|ETIMEDOUT")
def test_a_mount_made_in_an_outage_is_written_to_once_the_registry_is_back(
    mounts: Mounts, tmp_path: Path
) -> None:
    port = free_port()
    options = ("--offline-ok", "--timeout", "5", "-o", "rw")
    top = mounts(f"http://127.0.0.1:{port}", *options).path / "team/app"
    path = top / blob(b"data")
    path.parent.mkdir(parents=True, exist_ok=True)
    assert refusal(lambda: path.write_bytes(b"data")) in (errno.EIO, errno.ETIMEDOUT)
    directory = tmp_path / "registry"
    directory.mkdir()
    with serve_docker_registry(directory, port) as registry:
        until(lambda: wrote(path, b"data"), seconds=20)
        url = f"{registry.url}/v2/team/app/{blob(b'data')}"
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert answer.read() == b"data"


def wrote(path: Path, data: bytes) -> bool:
    """Whether a file could be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError:
        return False
    return True


# --- beside each other ------------------------------------------------------------------------


def test_another_mount_sees_what_was_written(
    embedded: EmbeddedRegistry, app: Path, mounts: Mounts, tmp_path: Path
) -> None:
    for data in NEW.blobs:
        (app / blob(data)).write_bytes(data)
    write_manifest(app)
    (app / "tags/new").symlink_to(link_to(NEW))
    other = mounts(embedded.url, cache=tmp_path / "other").path / "team/app"
    assert (other / "tags/new/manifest.json").read_bytes() == NEW.raw
    assert (other / "tags/new/layers/00").read_bytes() == NEW.blobs[1]


def test_two_mounts_that_move_one_tag_leave_it_where_the_later_put_it(
    embedded: EmbeddedRegistry, app: Path, mounts: Mounts, tmp_path: Path
) -> None:
    load(embedded, "team/app", "new", NEW)
    other = mounts(embedded.url, "-o", "rw", cache=tmp_path / "other").path / "team/app"
    contents = (OLD, NEW)

    def move(directory: Path) -> None:
        for number in range(20):
            temporary = directory / "tags/.moved"
            temporary.symlink_to(link_to(contents[number % 2]))
            temporary.rename(directory / "tags/moved")
            assert tags(embedded, "team/app")["moved"] in {str(one.digest) for one in contents}

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(move, (app, other)))
    for directory, one in ((app, OLD), (other, NEW), (app, OLD)):
        run("ln", "-sfT", link_to(one), directory / "tags/moved")
        assert tags(embedded, "team/app")["moved"] == str(one.digest)
        assert str((directory / "tags/moved").readlink()) == link_to(one)


def test_a_killed_mount_leaves_what_was_acknowledged_and_nothing_else(
    embedded: EmbeddedRegistry, mount: Mount, app: Path, mounts: Mounts
) -> None:
    first, second = NEW.blobs[0], NEW.blobs[1]
    (app / blob(first)).write_bytes(first)
    write_manifest(app)
    (app / "tags/new").symlink_to(link_to(NEW))
    (app / "blobs/.temporary").write_bytes(LARGE)
    descriptor = os.open(app / blob(second), os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, second[:100_000])
    mount.kill()
    assert refusal(lambda: os.close(descriptor)) == errno.ENOTCONN
    assert stored(embedded, blob(first)) == first
    assert set(tags(embedded, "team/app")) == {"old"}
    again = mounts(embedded.url, "-o", "rw").path / "team/app"
    assert names_in(again / "tags") == {"old"}
    assert refusal((again / "manifests" / str(NEW.digest)).stat) == errno.ENOENT
    assert refusal((again / blob(second)).stat) == errno.ENOENT
    assert refusal((again / "blobs/.temporary").stat) == errno.ENOENT


@pytest.mark.expects_log("unmounted, and not written")
def test_a_mount_that_is_ended_says_what_is_lost(mount: Mount, app: Path) -> None:
    write_manifest(app)
    (app / ".file").touch()
    mount.unmount()
    lost = [line for line in mount.log.read_text().splitlines() if "not written" in line]
    assert any(str(NEW.digest) in line for line in lost)
    assert any("/team/app/.file" in line for line in lost)
