"""One file system, seen through `vfs` directly and through a real mount in another process."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.builders import image, load
from support.furnished import LARGE, LENIENT, MADE, NGINX, blob_path, furnished
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.scripted import until
from support.stacks import stack
from support.views import Opener, View, names, read, refusal, walk

from epochfs.client import RegistryClient
from epochfs.demo import samples
from epochfs.demo.registry import EPOCH
from epochfs.demo.samples import ARTIFACT
from epochfs.oci.manifests import CREATED, OCI_MANIFEST
from epochfs.oci.names import Digest

SECOND = 10**9
MADE_NS = int(datetime(2024, 2, 29, 12, tzinfo=UTC).timestamp()) * SECOND


@pytest.fixture
def registry() -> Iterator[EmbeddedRegistry]:
    """A registry of the samples, an image with a large layer, and names that need care."""
    with furnished(LENIENT) as registry:
        yield registry


@pytest.fixture
def view(registry: EmbeddedRegistry, through: Opener) -> Iterator[View]:
    with through(registry) as view:
        yield view


class TestNames:
    def test_directories_list_what_the_design_says(self, view: View) -> None:
        assert names(view, "/") == ["__private", "_tags", "demo", "library"]
        assert names(view, "/library") == ["hello", "nginx"]
        assert names(view, "/library/nginx/tags") == ["1.0", "latest"]
        assert names(view, "/library/nginx/manifests") == [str(NGINX.digest)]
        manifest = f"/library/nginx/manifests/{NGINX.digest}"
        assert names(view, manifest) == ["config", "layers", "manifest.json", "referrers"]
        assert names(view, f"{manifest}/layers") == ["00", "01"]

    def test_a_repository_may_be_the_parent_of_others(self, view: View) -> None:
        assert names(view, "/library/nginx") == ["blobs", "debug", "layout", "manifests", "tags"]
        assert names(view, "/library/nginx/debug/tags") == ["latest"]

    def test_a_parent_of_repositories_is_not_one_itself(self, view: View) -> None:
        assert names(view, "/demo") == ["artifact", "team"]
        assert refusal(lambda: view.entries("/demo/tags")) == errno.ENOENT

    def test_reserved_words_and_underscores_are_shown_with_one_more(self, view: View) -> None:
        assert names(view, "/_tags/_blobs/tags") == ["tags"]
        assert names(view, "/__private/__tags/tags") == ["_tag"]
        target = view.readlink("/_tags/_blobs/tags/tags")
        assert read(view, f"/_tags/_blobs/{target[3:]}/manifest.json")

    def test_an_index_of_two_platforms_lists_all_its_images_and_their_blobs(
        self, view: View
    ) -> None:
        manifests = names(view, "/demo/team/app/manifests")
        assert len(manifests) == 3
        shared = [names(view, f"/demo/team/app/manifests/{one}") for one in manifests]
        assert shared.count(["manifest.json", "platforms", "referrers"]) == 1
        assert len(names(view, "/demo/team/app/blobs")) == 5

    def test_what_nobody_has_is_not_there(self, view: View) -> None:
        paths = [
            "/nobody",
            "/library/nobody/tags",
            "/library/nginx/tags/nobody",
            f"/library/nginx/manifests/{Digest.of(b'nobody')}",
            f"/library/nginx/blobs/{Digest.of(b'nobody')}",
            "/library/nginx/blobs/sha256:short",
            f"/library/nginx/manifests/{NGINX.digest}/layers/02",
            "/.epochfs/nobody",
        ]
        refusals = {path: refusal(lambda path=path: view.stat(path)) for path in paths}
        assert refusals == dict.fromkeys(paths, errno.ENOENT)

    def test_a_prefix_is_the_root(self, registry: EmbeddedRegistry, through: Opener) -> None:
        with through(registry, prefix="library/nginx") as view:
            assert names(view, "/") == ["blobs", "debug", "layout", "manifests", "tags"]
            assert read(view, blob_path(NGINX, 2, "").replace("//", "/")) == b"small"


class TestAttributes:
    def test_everything_listed_can_be_seen_and_is_what_the_listing_says(self, view: View) -> None:
        seen = walk(view)
        kinds = {stat.S_IFDIR: 0o555, stat.S_IFREG: 0o444, stat.S_IFLNK: 0o777}
        assert all(one.stat.permissions == kinds[one.stat.kind] for one in seen.values())
        assert len({one.stat.inode for one in seen.values()}) == len(seen) > 60

    def test_every_link_leads_to_what_it_names(self, view: View) -> None:
        seen = walk(view)
        for path, one in seen.items():
            if isinstance(one.content, str):
                target = os.path.normpath(f"{path}/../{one.content}")
                directories = ("/tags/", "/platforms/")
                kind = stat.S_IFDIR if any(d in path for d in directories) else stat.S_IFREG
                assert seen[target].stat.kind == kind, path

    def test_a_remount_shows_the_same_to_the_nanosecond(
        self, registry: EmbeddedRegistry, through: Opener
    ) -> None:
        with through(registry) as view:
            before = walk(view)
        with through(registry) as view:
            after = walk(view)
        for path in before:
            before[path].xattrs.pop("user.epochfs.cached", None)
            after[path].xattrs.pop("user.epochfs.cached", None)
        assert before == after

    def test_times_are_constant_but_for_manifests_that_tell_one_and_tags(self, view: View) -> None:
        manifest = f"/library/nginx/manifests/{NGINX.digest}"
        assert view.stat(manifest).time_ns == MADE_NS
        assert view.stat(f"{manifest}/manifest.json").time_ns == MADE_NS
        constant = [
            "/",
            "/library",
            "/library/nginx",
            "/library/nginx/tags",
            "/library/nginx/blobs",
        ]
        constant += [f"{manifest}/layers", f"{manifest}/layers/00", f"{manifest}/config"]
        constant += [blob_path(NGINX, 1), "/.epochfs", "/.epochfs/status.json"]
        assert {view.stat(path).time_ns for path in constant} == {SECOND}
        seen = view.stat("/library/nginx/tags/latest").time_ns
        assert 0 < time.time_ns() - seen < 60 * SECOND

    def test_a_tag_that_moves_takes_its_link_and_its_time_with_it(
        self, registry: EmbeddedRegistry, through: Opener
    ) -> None:
        with through(registry, ttl=0) as view:
            path, other = "/library/nginx/tags/latest", "/library/nginx/tags/1.0"
            before, untouched = view.stat(path), view.stat(other)
            assert view.readlink(path) == f"../manifests/{NGINX.digest}"
            moved = image(b"the next version")
            load(registry, "library/nginx", "latest", moved)
            after = view.stat(path)
            assert view.readlink(path) == f"../manifests/{moved.digest}"
            assert after.time_ns > before.time_ns
            assert after.inode == before.inode
            assert view.stat(other) == untouched
            assert blob_path(moved, 1).rpartition("/")[2] in names(view, "/library/nginx/blobs")

    def test_content_carries_its_digest_and_types(self, view: View) -> None:
        [tag] = names(view, "/demo/artifact/tags")
        manifest = f"/demo/artifact/{view.readlink(f'/demo/artifact/tags/{tag}')[3:]}"
        expected = {
            "user.oci.digest": manifest.rpartition("/")[2],
            "user.oci.mediaType": OCI_MANIFEST,
            "user.oci.artifactType": ARTIFACT,
            "user.epochfs.kind": "artifact",
            f"user.oci.annotation.{CREATED}": MADE,
        }
        assert view.xattrs(manifest) == expected
        assert view.xattrs(f"{manifest}/manifest.json") == expected
        assert view.xattr(manifest, "user.oci.artifactType") == ARTIFACT
        names(view, "/library/nginx/blobs")  # from then on it is known what they are
        assert view.xattr(blob_path(NGINX, 1), "user.oci.mediaType") == samples.LAYER
        assert view.xattrs("/library/nginx/tags/latest") == view.xattrs("/library") == {}

    def test_an_attribute_that_is_not_set_is_told_so(self, view: View) -> None:
        expected = {"user.oci.subject": errno.ENODATA, "security.capability": errno.EOPNOTSUPP}
        for name, number in expected.items():
            refused = refusal(lambda name=name: view.xattr(blob_path(NGINX, 1), name))
            assert refused in (errno.ENOENT, number)

    def test_how_much_is_cached_is_told(self, view: View) -> None:
        path = blob_path(NGINX, 2)
        assert view.xattr(path, "user.epochfs.cached") == "0"
        read(view, path)
        until(lambda: view.xattr(path, "user.epochfs.cached") == "100")  # synced and kept

    def test_hostile_annotations_harm_nothing(self, through: Opener) -> None:
        hostile = {
            "": "no key",
            "newline\n": "x",
            "nul\0": "x",
            "surrogate\udcff": "x",
            "k" * 300: "long key",
            "good": "value with \x00 and \n and \ud800",
            "ünïcödé": "é" * 1000,
        }
        content = image(annotations=hostile, artifactType="a/b\ud800")
        with EmbeddedRegistry() as registry:
            load(registry, "team/app", "latest", content)
            with through(registry) as view:
                path = f"/team/app/manifests/{content.digest}"
                found = view.xattrs(path)
                assert read(view, f"{path}/manifest.json") == content.raw
        assert found["user.oci.annotation.ünïcödé"] == "é" * 1000
        assert found["user.oci.annotation.good"].startswith("value with \x00 and \n and ")
        assert not any("long" in value or "\n" in name for name, value in found.items())


class TestBytes:
    def test_manifests_are_the_exact_bytes(self, view: View) -> None:
        assert read(view, f"/library/nginx/manifests/{NGINX.digest}/manifest.json") == NGINX.raw

    def test_reads_anywhere_give_exactly_what_is_there(self, view: View) -> None:
        chance = random.Random(7)
        edges = [0, 1, 4095, 4096, 1 << 17, (1 << 20) - 1, 1 << 20, len(LARGE) - 1, len(LARGE)]
        with view.opened(blob_path(NGINX, 1)) as file:
            for _ in range(60):
                offset = chance.choice([chance.randrange(len(LARGE)), chance.choice(edges)])
                count = chance.choice([0, 1, 4096, 100_000, 1 << 20, 2 << 20])
                assert file.pread(count, offset) == LARGE[offset : offset + count]
            assert file.pread(10, len(LARGE) + 4096) == b""

    def test_a_registry_like_epoch_is_read_as_well(self, through: Opener) -> None:
        with furnished(EPOCH) as registry, through(registry) as view:
            with view.opened(blob_path(NGINX, 1)) as file:
                for offset in (len(LARGE) - 100, 5_000_000, 0, 1 << 20):
                    assert file.pread(4096, offset) == LARGE[offset : offset + 4096]
            assert walk(view)[blob_path(NGINX, 1)].content == LARGE
            assert registry.count("GET", f"/blobs/{Digest.of(LARGE)}") == 1

    def test_a_file_read_from_its_end_to_its_start_is_the_same(self, view: View) -> None:
        step = 700_000
        with view.opened(blob_path(NGINX, 1)) as file:
            for offset in reversed(range(0, len(LARGE), step)):
                assert file.pread(step, offset) == LARGE[offset : offset + step]

    def test_many_readers_at_once_get_the_same_bytes(
        self, view: View, registry: EmbeddedRegistry
    ) -> None:
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda _: read(view, blob_path(NGINX, 1)) == LARGE, range(8)))
        assert found == [True] * 8

    def test_a_blob_that_no_tag_leads_to_opens_but_is_not_listed(
        self, view: View, registry: EmbeddedRegistry
    ) -> None:
        orphan = registry.put_blob("library/nginx", b"an orphan")
        assert read(view, f"/library/nginx/blobs/{orphan}") == b"an orphan"
        assert str(orphan) not in names(view, "/library/nginx/blobs")

    def test_blobs_lists_what_tags_lead_to(self, view: View) -> None:
        expected = sorted(str(Digest.of(blob)) for blob in NGINX.blobs)
        assert names(view, "/library/nginx/blobs") == expected

    def test_an_empty_layer_is_an_empty_file(self, through: Opener) -> None:
        with EmbeddedRegistry() as registry:
            load(registry, "team/app", "latest", image(b""))
            with through(registry) as view:
                path = f"/team/app/blobs/{Digest.of(b'')}"
                assert view.stat(path).size == 0
                assert read(view, path) == b""

    def test_sha512_digests_name_blobs_too(self, through: Opener) -> None:
        digest = Digest.of(LARGE, "sha512")
        with EmbeddedRegistry() as registry:
            client = RegistryClient(registry.url)
            client.put_blob("team/app", digest, LARGE, len(LARGE))
            client.close()
            load(registry, "team/app", "latest", image())
            with through(registry) as view:
                assert read(view, f"/team/app/blobs/{digest}") == LARGE

    def test_the_cache_is_no_way_round_the_registry(self, through: Opener) -> None:
        secret = image(b"of one repository only")
        with EmbeddedRegistry() as registry:
            load(registry, "team/secret", "latest", secret)
            load(registry, "team/public", "latest", image())
            with through(registry) as view:
                assert read(view, blob_path(secret, 1, "team/secret"))
                public = blob_path(secret, 1, "team/public")
                assert refusal(lambda: view.stat(public)) == errno.ENOENT
                assert refusal(lambda: read(view, public)) == errno.ENOENT


class TestStatus:
    def test_it_opens_by_name_and_is_not_listed(self, view: View) -> None:
        assert ".epochfs" not in names(view, "/")
        assert names(view, "/.epochfs") == ["status.json"]
        assert json.loads(read(view, "/.epochfs/status.json"))["version"]

    def test_a_repository_of_that_name_is_shown_under_another(self, through: Opener) -> None:
        with EmbeddedRegistry(LENIENT) as registry:
            load(registry, ".epochfs", "latest", image())
            with through(registry) as view:
                assert names(view, "/") == ["_.epochfs"]
                assert names(view, "/_.epochfs/tags") == ["latest"]


WRITES: dict[str, Callable[[Path], object]] = {
    "create": lambda root: os.open(root / "new", os.O_CREAT | os.O_WRONLY),
    "open to write": lambda root: os.open(target(root), os.O_WRONLY),
    "open to read and write": lambda root: os.open(target(root), os.O_RDWR),
    "open to append": lambda root: os.open(target(root), os.O_WRONLY | os.O_APPEND),
    "open to truncate": lambda root: os.open(target(root), os.O_WRONLY | os.O_TRUNC),
    "truncate": lambda root: os.truncate(target(root), 0),
    "unlink": lambda root: target(root).unlink(),
    "unlink a tag": lambda root: (root / "library/nginx/tags/latest").unlink(),
    "rmdir": lambda root: (root / "library").rmdir(),
    "mkdir": lambda root: (root / "new").mkdir(),
    "mknod": lambda root: os.mkfifo(root / "new"),
    "rename": lambda root: target(root).rename(root / "new"),
    "link": lambda root: os.link(target(root), root / "new"),
    "symlink": lambda root: (root / "new").symlink_to("x"),
    "chmod": lambda root: target(root).chmod(0o777),
    "chown": lambda root: os.chown(target(root), 0, 0),
    "utime": lambda root: os.utime(target(root)),
    "setxattr": lambda root: os.setxattr(target(root), "user.x", b"x"),
    "removexattr": lambda root: os.removexattr(target(root), "user.oci.digest"),
}


def target(root: Path) -> Path:
    return root / f"library/nginx/manifests/{NGINX.digest}/manifest.json"


def test_the_kernel_keeps_pages_only_of_what_was_verified_before_they_were_read(
    registry: EmbeddedRegistry, tmp_path: Path
) -> None:
    path = blob_path(NGINX, 0)
    with stack(registry.url, tmp_path) as layers:
        filesystem = layers.filesystem

        def keeps_pages() -> bool:
            opened = filesystem.open(path)
            filesystem.read(opened.handle, 0, len(LARGE))
            filesystem.release(opened.handle)
            return opened.keep_cache

        assert not keeps_pages()
        until(lambda: layers.blobs.counters().downloads == 0)
        assert [keeps_pages() for _ in range(3)] == [False, True, True]


def test_memory_is_given_back_once_no_file_has_been_open_for_a_while(
    registry: EmbeddedRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_back: list[None] = []
    monkeypatch.setattr("epochfs.vfs.filesystem._REST_SECONDS", 0.2)
    monkeypatch.setattr("epochfs.vfs.filesystem.give_back", lambda: given_back.append(None))
    with stack(registry.url, tmp_path) as layers:
        filesystem = layers.filesystem
        one = filesystem.open(blob_path(NGINX, 0)).handle
        other = filesystem.open(blob_path(NGINX, 0)).handle
        filesystem.release(one)
        assert not filesystem._resting
        for handle in (other, filesystem.open(blob_path(NGINX, 0)).handle):
            filesystem.release(handle)
        assert filesystem._resting
        until(lambda: not filesystem._resting)
        until(lambda: bool(given_back))


class TestThroughTheKernelAlone:
    def test_every_kind_of_write_is_refused_as_read_only(
        self, registry: EmbeddedRegistry, mounts: Mounts
    ) -> None:
        root = mounts(registry.url).path
        refusals = {name: refusal(lambda act=act: act(root)) for name, act in WRITES.items()}
        assert refusals == dict.fromkeys(WRITES, errno.EROFS)

    def test_statfs_asks_the_registry_nothing(
        self, registry: EmbeddedRegistry, mounts: Mounts
    ) -> None:
        root = mounts(registry.url).path
        root.stat()
        registry.forget_requests()
        assert os.statvfs(root).f_namemax == 255
        assert registry.count() == 0

    def test_the_owner_can_be_chosen(self, registry: EmbeddedRegistry, mounts: Mounts) -> None:
        mine, theirs = mounts(registry.url).path, mounts(registry.url, "--uid=7", "--gid=8").path
        assert (mine.stat().st_uid, mine.stat().st_gid) == (os.getuid(), os.getgid())
        assert (theirs.stat().st_uid, theirs.stat().st_gid) == (7, 8)
