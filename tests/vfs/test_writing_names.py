"""Manifests, layouts and names of a mount that can be written to, without a kernel."""

from __future__ import annotations

import json
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import Content, image, layout
from support.registries import EmbeddedRegistry
from support.writing import (
    BOTH,
    NEW,
    OLD,
    blob_path,
    exists,
    follow,
    listed,
    make,
    manifest_path,
    parts,
    read,
    rsync,
    steps,
    strict_registry,
    tags,
    writable,
    write,
    written_to,
)

from epochfs.demo.samples import LAYER, descriptor, encode
from epochfs.errors import (
    ContentMismatch,
    CrossDevice,
    EpochfsError,
    Exists,
    NotEmpty,
    NotFound,
    NotPermitted,
    TooLarge,
    Unsupported,
    UsageError,
)
from epochfs.oci.names import Digest
from epochfs.vfs.writing.writable import WritableFileSystem

registry = pytest.fixture(strict_registry)
fs = pytest.fixture(written_to)


class TestManifests:
    @pytest.mark.expects_log("was not written")
    def test_wrong_bytes_and_too_many_are_refused(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        with writable(registry, tmp_path, manifest_limit=1000) as fs:
            make(fs, f"/team/app/manifests/{NEW.digest}")
            with pytest.raises(ContentMismatch):
                write(fs, manifest_path(NEW), NEW.raw[:-1])
            with pytest.raises(TooLarge):
                write(fs, manifest_path(NEW), bytes(1001))
            assert listed(fs, f"/team/app/manifests/{NEW.digest}") == []

    @pytest.mark.expects_log("was not written")
    def test_what_is_no_manifest_is_refused(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        for raw in (b"no JSON", b"{}", b"[]", b'{"mediaType": "x/y", "config": 3}'):
            path = f"/team/app/manifests/{Digest.of(raw)}"
            make(fs, path)
            with pytest.raises(EpochfsError):
                write(fs, f"{path}/manifest.json", raw)
            assert listed(fs, path) == []
        assert registry.count("PUT") == 0

    def test_what_is_derived_is_accepted_before_and_after_it_is_shown(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        top = f"/team/app/manifests/{NEW.digest}"
        make(fs, f"{top}/layers")
        config = f"../../blobs/{Digest.of(NEW.blobs[0])}"
        fs.symlink(config, f"{top}/config")
        fs.symlink(f"../../../blobs/{Digest.of(NEW.blobs[1])}", f"{top}/layers/00")
        follow(fs, steps("team/app", "new", NEW))
        assert fs.writing().reasons == ()
        assert fs.readlink(f"{top}/config") == config
        assert "01" in listed(fs, f"{top}/layers")
        fs.unlink(f"{top}/config")
        assert not exists(fs, f"{top}/config")
        fs.symlink(config, f"{top}/config")
        assert fs.readlink(f"{top}/config") == config
        fs.unlink(f"{top}/config")
        with pytest.raises(NotPermitted):
            fs.symlink("elsewhere", f"{top}/config")

    def test_nothing_is_deleted_without_the_option(self, fs: WritableFileSystem) -> None:
        with pytest.raises(NotPermitted):
            fs.unlink(manifest_path(OLD))
        with pytest.raises(NotPermitted):
            fs.unlink(blob_path(b"old"))
        with pytest.raises(NotEmpty):
            fs.rmdir(f"/team/app/manifests/{OLD.digest}")

    def test_with_the_option_content_is_deleted_by_digest(
        self, registry: EmbeddedRegistry, tmp_path: Path
    ) -> None:
        with writable(registry, tmp_path, deletes=True) as fs:
            top = f"/team/app/manifests/{OLD.digest}"
            remove_tree(fs, top)
            assert not exists(fs, top)
            assert tags(registry, "team/app") == {}
            fs.unlink(blob_path(b"old"))
            assert not exists(fs, blob_path(b"old"))


def remove_tree(fs: WritableFileSystem, path: str) -> None:
    """Remove a directory with all that is in it, as `rm -r` does."""
    for entry in list(fs.listdir(path)):
        below = f"{path}/{entry.name}"
        if stat.S_ISDIR(entry.mode):
            remove_tree(fs, below)
        else:
            fs.unlink(below)
    fs.rmdir(path)


class TestLayout:
    @pytest.mark.parametrize("seed", range(6))
    @pytest.mark.parametrize("by", [write, rsync])
    def test_a_layout_is_written_in_any_order(
        self,
        by: Callable[[WritableFileSystem, str, bytes], None],
        seed: int,
        registry: EmbeddedRegistry,
        fs: WritableFileSystem,
    ) -> None:
        files = list(layout(("a", NEW), ("b", BOTH)).items())
        random.Random(seed).shuffle(files)
        make(fs, "/team/new/layout/blobs/sha256")
        for name, data in files:
            by(fs, f"/team/new/layout/{name}", data)
        assert fs.writing().reasons == ()
        assert tags(registry, "team/new") == {"a": str(NEW.digest), "b": str(BOTH.digest)}
        for name, data in files:
            if name.startswith("blobs"):
                assert read(fs, f"/team/new/layout/{name}") == data

    def test_an_index_adds_and_moves_tags_and_deletes_none(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        for name, data in layout(("new", NEW)).items():
            rsync(fs, f"/team/app/layout/{name}", data)
        assert tags(registry, "team/app") == {"new": str(NEW.digest), "old": str(OLD.digest)}
        shown = json.loads(read(fs, "/team/app/layout/index.json"))
        assert len(shown["manifests"]) == 2
        registry.forget_requests()
        rsync(fs, "/team/app/layout/index.json", read(fs, "/team/app/layout/index.json"))
        assert registry.count("PUT") == 0

    def test_a_blob_may_look_like_a_manifest(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        inner = image(b"inner")
        outer = image(inner.raw)
        make(fs, "/team/new/layout/blobs/sha256")
        for name, data in layout(("a", outer)).items():
            write(fs, f"/team/new/layout/{name}", data)
        assert tags(registry, "team/new") == {"a": str(outer.digest)}

    @pytest.mark.parametrize("raw", [b"", b"{}", b"[1]", NEW.raw])
    @pytest.mark.parametrize("name", ["index.json", "oci-layout"])
    @pytest.mark.expects_log("was not written")
    def test_what_is_no_document_of_a_layout_is_refused(
        self, name: str, raw: bytes, fs: WritableFileSystem
    ) -> None:
        with pytest.raises(UsageError):
            write(fs, f"/team/app/layout/{name}", raw)


class TestLocalNames:
    def test_they_are_only_here_and_are_told(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        write(fs, "/team/app/.notes", b"hello")
        assert read(fs, "/team/app/.notes") == b"hello"
        fs.rename("/team/app/.notes", "/team/app/.other")
        assert listed(fs, "/team/app") == [".other", "blobs", "layout", "manifests", "tags"]
        assert fs.writing().reasons == ("/team/app/.other is in no registry",)
        fs.unlink("/team/app/.other")
        assert fs.writing().reasons == ()
        assert registry.count("PUT") == 0

    def test_directories_are_made_and_removed_where_they_are(self, fs: WritableFileSystem) -> None:
        with pytest.raises(Exists):
            fs.mkdir("/team")
        with pytest.raises(NotFound):
            fs.mkdir("/nowhere/below")
        fs.mkdir("/team/.tmp")
        fs.mkdir("/team/.tmp/below")
        with pytest.raises(NotEmpty):
            fs.rmdir("/team/.tmp")
        with pytest.raises(CrossDevice):
            fs.rename("/team/.tmp", "/team/.other")
        fs.rmdir("/team/.tmp/below")
        fs.rmdir("/team/.tmp")
        assert not exists(fs, "/team/.tmp")
        with pytest.raises(NotPermitted):
            fs.mkdir("/.epochfs/x")
        with pytest.raises((NotPermitted, NotEmpty)):
            fs.rmdir("/team/app/tags")

    def test_a_rename_that_may_not_replace_is_refused(self, fs: WritableFileSystem) -> None:
        write(fs, "/team/.a", b"a")
        write(fs, "/team/.b", b"b")
        with pytest.raises(Exists):
            fs.rename("/team/.a", "/team/.b", replace=False)
        fs.rename("/team/.a", "/team/.b")
        assert read(fs, "/team/.b") == b"a"
        fs.unlink("/team/.b")

    def test_attributes_are_accepted_where_a_copy_would_fail(self, fs: WritableFileSystem) -> None:
        fs.set_xattr(blob_path(b"old"), "user.oci.digest")
        fs.check_settable(blob_path(b"old"))
        fs.set_time(blob_path(b"old"), 5)
        with pytest.raises(Unsupported):
            fs.set_xattr(blob_path(b"old"), "security.selinux")
        with pytest.raises(NotFound):
            fs.set_time(blob_path(b"absent"), 5)

    def test_a_file_cannot_be_a_tag_nor_a_link_content(self, fs: WritableFileSystem) -> None:
        with pytest.raises(NotPermitted):
            fs.create("/team/app/tags/file")
        with pytest.raises(NotPermitted):
            fs.symlink("x", blob_path(b"link"))


def test_referrers_are_shown_once_they_are_written(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    signature = image(b"sig", subject=descriptor(OLD.raw, OLD.media_type))
    shown = f"/team/app/manifests/{OLD.digest}/referrers"
    assert listed(fs, shown) == []
    follow(fs, parts("team/app", signature))
    assert listed(fs, shown) == [str(signature.digest)]


def test_layers_that_come_from_elsewhere_are_not_waited_for(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    config = b'{"os": "windows"}'
    foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    manifest = {
        "schemaVersion": 2,
        "mediaType": OLD.media_type,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [{**descriptor(b"elsewhere", LAYER), "mediaType": foreign}],
    }
    content = Content(encode(manifest), OLD.media_type, (config,))
    follow(fs, steps("team/app", "windows", content))
    assert tags(registry, "team/app")["windows"] == str(content.digest)


def test_nothing_can_be_added_to_what_a_manifest_says(fs: WritableFileSystem) -> None:
    top = f"/team/app/manifests/{OLD.digest}"
    for below in ("files", "rootfs", "volume"):
        with pytest.raises(EpochfsError):
            fs.create(f"{top}/{below}/new")
    for path in (f"/team/app/tags/{OLD.digest.encoded}", blob_path(b"directory")):
        with pytest.raises(NotPermitted):
            fs.mkdir(path)


def test_a_file_that_was_removed_while_it_was_written_is_not_sent(
    registry: EmbeddedRegistry, fs: WritableFileSystem
) -> None:
    handle = fs.create(blob_path(b"gone")).handle
    fs.write(handle, memoryview(b"gone"), 0)
    fs.unlink(blob_path(b"gone"))
    fs.flush(handle)
    fs.release(handle)
    assert registry.count("PUT") == 0
