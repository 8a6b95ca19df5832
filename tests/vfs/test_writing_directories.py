"""Directories that a program makes and fills without looking: nothing shows up in its way."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.builders import image, layout, load
from support.registries import EmbeddedRegistry
from support.writing import (
    OLD,
    blob_path,
    exists,
    follow,
    link_to,
    listed,
    parts,
    rsync,
    steps,
    tags,
    writable,
    write,
    written_to,
)

from epochfs.errors import NotFound, NotPermitted
from epochfs.oci.names import Digest
from epochfs.vfs.writing import makers
from epochfs.vfs.writing.writable import WritableFileSystem

NEW = image(b"new")
TOP = f"/team/app/manifests/{NEW.digest}"
CONFIG, LAYER = (Digest.of(blob) for blob in NEW.blobs)

ME = os.getpid()


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    with EmbeddedRegistry() as registry:
        load(registry, "team/app", "old", OLD)
        yield registry


fs = pytest.fixture(written_to)


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A program that runs."""
    program = subprocess.Popen(["sleep", "60"])
    yield program
    program.kill()
    program.wait()


def write_manifest(fs: WritableFileSystem, thread: int) -> None:
    """Write a manifest with its blobs, by the program of a thread."""
    for blob in NEW.blobs:
        write(fs, blob_path(blob), blob)
    fs.mkdir(TOP, thread)
    write(fs, f"{TOP}/manifest.json", NEW.raw)


def test_a_directory_that_is_being_made_has_what_was_made_in_it(fs: WritableFileSystem) -> None:
    write_manifest(fs, ME)
    assert not exists(fs, f"{TOP}/config")
    assert not exists(fs, f"{TOP}/layers/00")
    assert listed(fs, TOP) == ["manifest.json"]
    fs.symlink(f"../../blobs/{CONFIG}", f"{TOP}/config")
    fs.mkdir(f"{TOP}/layers", ME)
    assert listed(fs, f"{TOP}/layers") == []
    fs.symlink(f"../../../blobs/{LAYER}", f"{TOP}/layers/00")
    assert listed(fs, TOP) == ["config", "layers", "manifest.json"]
    assert listed(fs, f"{TOP}/layers") == ["00"]


def test_it_shows_all_when_its_maker_has_ended(
    fs: WritableFileSystem, other: subprocess.Popen[bytes]
) -> None:
    write_manifest(fs, other.pid)
    assert not exists(fs, f"{TOP}/config")
    other.kill()
    other.wait()
    assert {"config", "layers", "manifest.json"} <= set(listed(fs, TOP))
    assert fs.readlink(f"{TOP}/config") == f"../../blobs/{CONFIG}"


def test_it_shows_all_when_its_maker_lists_it(
    fs: WritableFileSystem, other: subprocess.Popen[bytes]
) -> None:
    write_manifest(fs, ME)
    fs.listed_by(TOP, other.pid)
    assert not exists(fs, f"{TOP}/config")
    fs.listed_by(TOP, ME)
    assert exists(fs, f"{TOP}/config")


def test_it_shows_all_when_its_maker_follows_a_link_to_it(
    fs: WritableFileSystem, other: subprocess.Popen[bytes]
) -> None:
    write_manifest(fs, ME)
    tag = "/team/app/tags/new"
    fs.symlink(link_to(NEW), tag)
    fs.followed_by(tag, fs.readlink(tag), other.pid)
    assert not exists(fs, f"{TOP}/config")
    fs.followed_by(tag, fs.readlink(tag), ME)
    assert exists(fs, f"{TOP}/config")


def test_it_shows_all_when_another_program_changes_it(
    fs: WritableFileSystem, other: subprocess.Popen[bytes]
) -> None:
    write_manifest(fs, ME)
    fs.changed_by(f"{TOP}/x", ME)
    assert not exists(fs, f"{TOP}/config")
    fs.changed_by(f"{TOP}/x", other.pid)
    assert exists(fs, f"{TOP}/config")


def test_it_shows_all_when_nobody_writes_for_a_minute(
    fs: WritableFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_manifest(fs, ME)
    monkeypatch.setattr(makers, "_PAUSE_SECONDS", -1.0)
    assert exists(fs, f"{TOP}/config")


def test_a_maker_that_cannot_be_seen_makes_directories_at_once(fs: WritableFileSystem) -> None:
    write_manifest(fs, 0)
    assert exists(fs, f"{TOP}/config")


def test_threads_of_one_program_are_one_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=10)
    monkeypatch.setattr(makers, "_program_of", lambda _: str(both.wait()))
    programs = makers.Makers()
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(programs.of, (ME, ME))
    assert one is other is not None


def test_tags_of_a_layout_can_be_made_once_more_as_links(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    """As borg and restic do: the index of the layout comes before the tags."""
    for path in ("/new", "/new/layout", "/new/layout/blobs", "/new/layout/blobs/sha256"):
        fs.mkdir(path, ME)
    for data in (*NEW.blobs, NEW.raw):
        write(fs, f"/new/layout/blobs/sha256/{Digest.of(data).encoded}", data)
    write(fs, "/new/layout/index.json", layout(("1.0", NEW))["index.json"])
    fs.mkdir("/new/tags", ME)
    assert tags(registry, "new") == {"1.0": str(NEW.digest)}
    assert not exists(fs, "/new/tags/1.0")
    fs.symlink(link_to(NEW), "/new/tags/1.0")
    assert listed(fs, "/new/tags") == ["1.0"]
    assert tags(registry, "new") == {"1.0": str(NEW.digest)}


def test_a_tag_that_waits_as_a_link_and_in_a_layout_is_no_longer_kept_when_it_is_there(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    for path in ("/new", "/new/tags", "/new/layout"):
        fs.mkdir(path)
    fs.symlink(link_to(NEW), "/new/tags/1.0")
    write(fs, "/new/layout/index.json", layout(("1.0", NEW))["index.json"])
    follow(fs, steps("new", "other", NEW))
    assert fs.writing().waiting == 0
    load(registry, "new", "1.0", OLD)  # by somebody else
    load(registry, "new", "other", OLD)
    fs.unlink("/new/tags/1.0")
    assert "1.0" not in tags(registry, "new")


def test_a_link_that_tar_holds_a_place_for_replaces_it(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    """tar makes links that lead upwards last, and until then an empty file without permissions."""
    follow(fs, parts("team/app", NEW))
    links = {
        "/team/app/tags/new": link_to(NEW),
        f"/team/app/layout/blobs/sha256/{CONFIG.encoded}": f"../../../blobs/{CONFIG}",
        f"{TOP}/config": f"../../blobs/{CONFIG}",
    }
    for path, target in links.items():
        if exists(fs, path):
            fs.unlink(path)
        handle = fs.create(path, placeholder=True).handle
        fs.flush(handle)
        fs.release(handle)
        assert fs.getattr(path).size == 0
        fs.unlink(path)
        assert not exists(fs, path)
        fs.symlink(target, path)
        assert fs.readlink(path) == target
    assert tags(registry, "team/app")["new"] == str(NEW.digest)
    assert fs.writing().local == 0


def test_a_manifest_is_renamed_into_its_directory_without_a_word(fs: WritableFileSystem) -> None:
    for blob in NEW.blobs:
        rsync(fs, blob_path(blob), blob)
    fs.mkdir(TOP)
    rsync(fs, f"{TOP}/manifest.json", NEW.raw)
    assert exists(fs, f"{TOP}/config")


def test_a_link_of_a_layout_costs_no_request_and_a_new_blob_three(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    data = b"a blob that comes after its link"
    digest = Digest.of(data)
    for path in ("/new", "/new/blobs", "/new/layout", "/new/layout/blobs"):
        fs.mkdir(path, ME)
    fs.mkdir("/new/layout/blobs/sha256", ME)
    link = f"/new/layout/blobs/sha256/{digest.encoded}"
    registry.forget_requests()
    with pytest.raises(NotPermitted):
        fs.symlink("../../../blobs/elsewhere", link)
    fs.symlink(f"../../../blobs/{digest}", link)
    assert fs.readlink(link) == f"../../../blobs/{digest}"
    assert registry.count(containing=digest.encoded) == 0
    write(fs, f"/new/blobs/{digest}", data)
    sent = [one.method for one in registry.requests if "/blobs/" in one.path]
    assert "GET" not in sent
    assert len(sent) <= 4  # two of them find out that it cannot be stored in one request
    assert fs.readlink(link) == f"../../../blobs/{digest}"


def test_in_an_empty_registry_no_repository_is_there_before_it_is_made(tmp_path: Path) -> None:
    with EmbeddedRegistry() as registry, writable(registry, tmp_path) as fs:
        assert listed(fs, "/") == []
        assert not exists(fs, "/team/app")
        with pytest.raises(NotFound):
            fs.create(f"/team/app/blobs/{CONFIG}")
        follow(fs, steps("other", "1.0", OLD))
        follow(fs, steps("team/app", "1.0", NEW))
        assert listed(fs, "/") == ["other", "team"]


def test_a_mount_of_a_prefix_that_has_nothing_yet_has_a_root(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    with writable(registry, tmp_path, prefix="prefix") as fs:
        assert listed(fs, "/") == []
        follow(fs, steps("app", "1.0", NEW))
        assert listed(fs, "/") == ["app"]
    assert set(tags(registry, "prefix/app")) == {"1.0"}
