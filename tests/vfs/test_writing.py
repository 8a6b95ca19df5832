"""What each write does, without a kernel: to the registry, and to what the tree shows."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.builders import load, random_bytes
from support.registries import EmbeddedRegistry, Guarded
from support.scripted import until
from support.writing import (
    BOTH,
    NEW,
    OLD,
    blob_path,
    exists,
    follow,
    link_to,
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

from epochfs.demo.registry import Behaviour, Request
from epochfs.errors import (
    Busy,
    ContentMismatch,
    NotFound,
    NotPermitted,
    UsageError,
)
from epochfs.oci.names import Digest
from epochfs.vfs.tree import CACHED_XATTR
from epochfs.vfs.writing.writable import WritableFileSystem

NOTHING = Digest.of(b"nothing at all")

registry = pytest.fixture(strict_registry)
fs = pytest.fixture(written_to)


class TestBlobs:
    @pytest.mark.parametrize("by", [write, rsync])
    def test_a_blob_is_in_the_registry_when_its_file_is_closed(
        self,
        by: Callable[[WritableFileSystem, str, bytes], None],
        registry: EmbeddedRegistry,
        fs: WritableFileSystem,
    ) -> None:
        data = random_bytes(400_000, 3)
        by(fs, blob_path(data), data)
        assert registry.count("PUT", "/blobs/uploads/") == 1
        assert read(fs, blob_path(data)) == data
        assert str(Digest.of(data)) in listed(fs, "/team/app/blobs")

    @pytest.mark.parametrize("by", [write, rsync])
    @pytest.mark.parametrize("wrong", [b"", b"trunc", b"another"])
    @pytest.mark.expects_log("was not written")
    def test_wrong_bytes_are_refused_and_nothing_is_left(
        self,
        by: Callable[[WritableFileSystem, str, bytes], None],
        wrong: bytes,
        registry: EmbeddedRegistry,
        fs: WritableFileSystem,
    ) -> None:
        with pytest.raises(ContentMismatch):
            by(fs, blob_path(b"truncated"), wrong)
        assert registry.count("PUT") == registry.count("POST") == 0
        assert not exists(fs, blob_path(b"truncated"))
        assert fs.writing().reasons == ()

    @pytest.mark.parametrize("by", [write, rsync])
    def test_a_blob_that_was_sent_is_kept_in_the_cache(
        self, by: Callable[[WritableFileSystem, str, bytes], None], fs: WritableFileSystem
    ) -> None:
        data = random_bytes(100_000, 8)
        by(fs, blob_path(data), data)
        until(lambda: fs.xattr(blob_path(data), CACHED_XATTR) == "100")

    @pytest.mark.expects_log("was not written")
    def test_what_is_written_after_a_rename_is_of_the_new_name(
        self, fs: WritableFileSystem
    ) -> None:
        temporary = "/team/app/blobs/.abc"
        handle = fs.create(temporary).handle
        fs.write(handle, memoryview(b"abc"), 0)
        fs.rename(temporary, blob_path(b"abc"))
        fs.write(handle, memoryview(b"d"), 3)
        with pytest.raises(ContentMismatch):
            fs.flush(handle)
        fs.release(handle)
        assert read(fs, blob_path(b"abc")) == b"abc"

    def test_what_is_there_already_is_not_sent_again(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        write(fs, blob_path(b"old"), b"old")
        rsync(fs, blob_path(b"old"), b"old")
        assert registry.count("PUT") == registry.count("POST") == 0

    @pytest.mark.expects_log("was not written")
    def test_wrong_bytes_for_what_is_there_leave_it_readable(self, fs: WritableFileSystem) -> None:
        handle = fs.open_to_write(blob_path(b"old"), truncate=True).handle
        fs.write(handle, memoryview(b"bad"), 0)
        assert read(fs, blob_path(b"old")) == b"old"
        with pytest.raises(ContentMismatch):
            fs.flush(handle)
        fs.release(handle)
        assert read(fs, blob_path(b"old")) == b"old"

    def test_a_blob_of_another_repository_is_mounted(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        data = random_bytes(100_000, 4)
        write(fs, blob_path(data), data)
        registry.forget_requests()
        make(fs, "/other/blobs")
        write(fs, blob_path(data, "other"), data)
        assert registry.count("PUT") == 0
        assert read(fs, blob_path(data, "other")) == data

    def test_bytes_may_come_in_any_order_and_twice(self, fs: WritableFileSystem) -> None:
        data = random_bytes(100_000, 5)
        handle = fs.create(blob_path(data)).handle
        for start in (50_000, 0, 30_000, 60_000, 0):
            fs.write(handle, memoryview(data)[start : start + 40_000], start)
        fs.flush(handle)
        fs.release(handle)
        assert read(fs, blob_path(data)) == data

    def test_an_early_close_of_a_duplicate_loses_nothing(self, fs: WritableFileSystem) -> None:
        data = b"what a shell redirects"
        handle = fs.create(blob_path(data)).handle
        with pytest.raises(ContentMismatch):
            fs.flush(handle)
        fs.write(handle, memoryview(data), 0)
        fs.flush(handle)
        fs.release(handle)
        assert read(fs, blob_path(data)) == data

    def test_a_preallocated_file_may_be_closed_before_it_is_whole(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        """As restic writes: piece by piece, in any order, each with an open and a close."""
        data = random_bytes(90_000, 6)
        for number, start in enumerate((60_000, 0, 30_000)):
            opened = fs.open_to_write(blob_path(data)) if number else fs.create(blob_path(data))
            if not number:
                fs.reserve(opened.handle, len(data))
            fs.write(opened.handle, memoryview(data)[start : start + 30_000], start)
            fs.flush(opened.handle)
            fs.release(opened.handle)
            assert (registry.count("PUT", "/blobs/uploads/") == 1) == (number == 2)
        assert read(fs, blob_path(data)) == data

    def test_a_blob_that_is_being_written_cannot_be_read(self, fs: WritableFileSystem) -> None:
        handle = fs.create(blob_path(b"abc")).handle
        fs.write(handle, memoryview(b"ab"), 0)
        with pytest.raises(Busy):
            fs.open(blob_path(b"abc"))
        fs.write(handle, memoryview(b"c"), 2)
        fs.flush(handle)
        fs.release(handle)

    def test_a_file_that_is_opened_to_be_changed_shows_what_is_there(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        handle = fs.open_to_write(blob_path(b"old")).handle
        attr = fs.getattr_open(handle)
        assert attr is not None
        assert (attr.size, fs.read(handle, 0, 10)) == (3, b"old")
        fs.flush(handle)
        fs.write(handle, memoryview(b"O"), 0)
        assert fs.read(handle, 0, 10) == b"Old"
        fs.write(handle, memoryview(b"o"), 0)
        fs.flush(handle)
        fs.release(handle)
        assert registry.count("PUT") == 0

    @pytest.mark.expects_log("was not written")
    def test_what_is_written_while_the_file_is_sent_is_not_taken_for_sent(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        handle = fs.create(blob_path(b"abc")).handle
        fs.write(handle, memoryview(b"abc"), 0)

        def write_more(request: Request) -> None:
            if request.method == "PUT":
                fs.write(handle, memoryview(b"d"), 3)

        registry.guard = write_more
        fs.flush(handle)
        with pytest.raises(ContentMismatch):
            fs.flush(handle)
        fs.release(handle)
        assert read(fs, blob_path(b"abc")) == b"abc"

    @pytest.mark.parametrize("name", ["md5:d41d8cd98f00b204e9800998ecf8427e", "sha256:short"])
    def test_a_digest_that_no_registry_knows_is_refused_at_once(
        self, name: str, fs: WritableFileSystem
    ) -> None:
        for directory in ("blobs", "manifests"):
            with pytest.raises(UsageError):
                fs.create(f"/team/app/{directory}/{name}")


class TestOrder:
    """A manifest waits for what it names, an index for its manifests, a tag for its manifest."""

    @pytest.mark.parametrize("seed", range(12))
    def test_any_order_ends_with_the_same(
        self, seed: int, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        todo = [*steps("team/new", "a", NEW), *steps("team/new", "b", BOTH)]
        random.Random(seed).shuffle(todo)
        follow(fs, todo)
        assert fs.writing().reasons == ()
        assert tags(registry, "team/new") == {"a": str(NEW.digest), "b": str(BOTH.digest)}
        assert listed(fs, "/team/new/tags") == ["a", "b"]
        assert fs.readlink("/team/new/tags/b") == link_to(BOTH)

    def test_nothing_half_pushed_is_visible(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        todo = list(reversed(steps("team/new", "a", NEW)))
        for one, rest in itertools.pairwise(todo):
            follow(fs, [one])
            assert tags(registry, "team/new") == {}
            assert fs.writing().waiting > 0
            assert registry.count("PUT", "/manifests/") == 0, rest
        follow(fs, todo[-1:])
        assert tags(registry, "team/new") == {"a": str(NEW.digest)}

    @pytest.mark.expects_log("unmounted, and not written")
    def test_what_waits_is_told_with_what_it_waits_for(self, fs: WritableFileSystem) -> None:
        make(fs, f"/team/app/manifests/{NEW.digest}")
        write(fs, manifest_path(NEW), NEW.raw)
        fs.symlink(link_to(NEW), "/team/app/tags/new")
        reasons = fs.writing().reasons
        assert len(reasons) == 2
        assert f"manifest {NEW.digest} of team/app waits for blob" in reasons[0]
        assert reasons[1] == f"tag new of team/app waits for manifest {NEW.digest} of team/app"
        with pytest.raises(Busy):
            fs.fsyncdir("/")

    @pytest.mark.expects_log("unmounted, and not written")
    def test_a_waiting_manifest_can_be_read_but_not_synced(self, fs: WritableFileSystem) -> None:
        make(fs, f"/team/app/manifests/{NEW.digest}")
        handle = fs.create(manifest_path(NEW)).handle
        fs.write(handle, memoryview(NEW.raw), 0)
        fs.flush(handle)
        with pytest.raises(Busy):
            fs.fsync(handle)
        fs.release(handle)
        assert read(fs, manifest_path(NEW)) == NEW.raw

    def test_what_somebody_else_pushed_is_found_when_asked_again(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        make(fs, f"/team/app/manifests/{NEW.digest}")
        write(fs, manifest_path(NEW), NEW.raw)
        load(registry, "team/app", "elsewhere", NEW)
        fs.fsyncdir("/")
        assert fs.writing().reasons == ()

    def test_a_link_to_what_is_not_there_is_refused_in_a_repository_that_is_complete(
        self, fs: WritableFileSystem
    ) -> None:
        with pytest.raises(NotFound):
            fs.symlink(f"../manifests/{NOTHING}", "/team/app/tags/x")
        assert not exists(fs, "/team/app/tags/x")

    def test_an_index_without_its_manifests_is_for_the_registry_to_refuse(
        self, tmp_path: Path
    ) -> None:
        with (
            EmbeddedRegistry(Behaviour(sparse="indexes")) as registry,
            writable(registry, tmp_path) as fs,
        ):
            make(fs, f"/team/app/manifests/{BOTH.digest}")
            handle = fs.create(manifest_path(BOTH)).handle
            fs.write(handle, memoryview(BOTH.raw), 0)
            fs.flush(handle)
            assert fs.writing().waiting == 1
            fs.fsync(handle)
            fs.release(handle)
            assert fs.writing().waiting == 0
            assert registry.count("PUT", "/manifests/") == 1


class TestTags:
    def test_a_link_is_a_tag(self, registry: EmbeddedRegistry, fs: WritableFileSystem) -> None:
        fs.symlink(link_to(OLD), "/team/app/tags/v1")
        assert tags(registry, "team/app") == dict.fromkeys(("old", "v1"), str(OLD.digest))
        assert listed(fs, "/team/app/tags") == ["old", "v1"]

    @pytest.mark.parametrize("temporary", ["CuAb3x9Z", ".old.Xy12Ab", "~old"])
    def test_a_link_that_is_renamed_over_a_tag_moves_it_with_one_put(
        self, temporary: str, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        load(registry, "team/app", "new", NEW)
        registry.forget_requests()
        fs.symlink(link_to(NEW), f"/team/app/tags/{temporary}")
        assert registry.count("PUT") == 0
        fs.set_time(f"/team/app/tags/{temporary}", 1)
        fs.rename(f"/team/app/tags/{temporary}", "/team/app/tags/old")
        assert registry.count("PUT") == 1
        assert registry.count("DELETE") == 0
        assert tags(registry, "team/app")["old"] == str(NEW.digest)
        assert fs.readlink("/team/app/tags/old") == link_to(NEW)
        assert not exists(fs, f"/team/app/tags/{temporary}")

    @pytest.mark.parametrize(
        "target", ["x", "/etc/passwd", "../blobs/x", f"../../manifests/{OLD.digest}", "", ".."]
    )
    def test_any_other_target_is_refused(self, target: str, fs: WritableFileSystem) -> None:
        with pytest.raises(UsageError):
            fs.symlink(target, "/team/app/tags/x")
        assert not exists(fs, "/team/app/tags/x")

    @pytest.mark.parametrize("name", ["-x", "a b", "x" * 129, "ä", "a:b"])
    def test_a_name_that_cannot_be_a_tag_is_refused(
        self, name: str, fs: WritableFileSystem
    ) -> None:
        with pytest.raises(UsageError):
            fs.symlink(link_to(OLD), f"/team/app/tags/{name}")

    def test_a_tag_is_renamed(self, registry: EmbeddedRegistry, fs: WritableFileSystem) -> None:
        fs.rename("/team/app/tags/old", "/team/app/tags/older")
        assert tags(registry, "team/app") == {"older": str(OLD.digest)}
        assert listed(fs, "/team/app/tags") == ["older"]

    def test_a_removed_tag_leaves_its_sibling(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        fs.symlink(link_to(OLD), "/team/app/tags/v1")
        fs.unlink("/team/app/tags/old")
        assert tags(registry, "team/app") == {"v1": str(OLD.digest)}
        assert not exists(fs, "/team/app/tags/old")
        assert listed(fs, "/team/app/tags") == ["v1"]

    def test_a_tag_that_cannot_be_deleted_alone_stays(self, tmp_path: Path) -> None:
        with EmbeddedRegistry(Behaviour(tag_deletes=False)) as registry:
            load(registry, "team/app", "old", OLD)
            with writable(registry, tmp_path) as fs:
                with pytest.raises(NotPermitted):
                    fs.unlink("/team/app/tags/old")
                assert listed(fs, "/team/app/tags") == ["old"]

    def test_a_waiting_tag_does_not_hide_the_one_that_is_there(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        make(fs, f"/team/app/manifests/{NEW.digest}")
        fs.symlink(link_to(NEW), "/team/app/tags/.old.Xy12Ab")
        fs.rename("/team/app/tags/.old.Xy12Ab", "/team/app/tags/old")
        assert fs.readlink("/team/app/tags/old") == link_to(OLD)
        follow(fs, parts("team/app", NEW))
        assert fs.readlink("/team/app/tags/old") == link_to(NEW)
        assert tags(registry, "team/app") == {"old": str(NEW.digest)}

    def test_the_last_of_two_that_wait_is_the_tags(
        self, registry: EmbeddedRegistry, fs: WritableFileSystem
    ) -> None:
        make(fs, "/team/new/tags")
        fs.symlink(link_to(BOTH), "/team/new/tags/x")
        fs.unlink("/team/new/tags/x")
        fs.symlink(link_to(NEW), "/team/new/tags/x")
        follow(fs, parts("team/new", BOTH))
        follow(fs, parts("team/new", NEW))
        assert tags(registry, "team/new") == {"x": str(NEW.digest)}
