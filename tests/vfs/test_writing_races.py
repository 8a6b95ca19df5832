"""What several writers do to one mount at once, and a registry that fails to what waits."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.builders import Content, image, index, load, random_bytes
from support.registries import Guarded
from support.scripted import at_most, until
from support.writing import (
    blob_path,
    follow,
    link_to,
    make,
    manifest_path,
    read,
    steps,
    tags,
    writable,
    write,
    written_to,
)

from epochfs.demo.registry import Behaviour, Request, Response
from epochfs.errors import EpochfsError
from epochfs.vfs.writing import outbox
from epochfs.vfs.writing.writable import WritableFileSystem

ONE = image(b"one")
TWO = image(b"two")
NAME = "team/app"
TAG = f"/{NAME}/tags/latest"


@pytest.fixture
def registry() -> Iterator[Guarded]:
    with Guarded(Behaviour(sparse="")) as registry:
        load(registry, NAME, "one", ONE)
        load(registry, NAME, "two", TWO)
        yield registry


fs = pytest.fixture(written_to)


def retag(fs: WritableFileSystem, content: Content, temporary: str) -> None:
    """Move the tag as rsync does."""
    fs.symlink(link_to(content), f"/{NAME}/tags/{temporary}")
    fs.rename(f"/{NAME}/tags/{temporary}", TAG)


class Held:
    """Holds the first request that `picks` chooses until it is `free`."""

    def __init__(self, registry: Guarded, picks: Callable[[Request], bool]) -> None:
        self.reached, self.free = threading.Event(), threading.Event()

        def guard(request: Request) -> None:
            if picks(request) and not self.reached.is_set():
                self.reached.set()
                assert self.free.wait(10)

        registry.guard = guard


def is_tagging(request: Request) -> bool:
    return request.method == "PUT" and request.path.endswith("/manifests/latest")


class TestRaces:
    def test_of_two_retags_the_later_stays(self, registry: Guarded, fs: WritableFileSystem) -> None:
        held = Held(registry, is_tagging)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(retag, fs, ONE, ".a")
            assert held.reached.wait(10)
            second = pool.submit(retag, fs, TWO, ".b")
            until(lambda: registry.count("HEAD", str(TWO.digest)) > 0)
            held.free.set()
            first.result()
            second.result()
        assert tags(registry, NAME)["latest"] == str(TWO.digest)
        assert fs.readlink(TAG) == link_to(TWO)

    def test_a_retag_is_not_lost_to_a_later_one_that_fails(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        held = Held(registry, lambda request: request.path.endswith(str(ONE.digest)))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(retag, fs, ONE, ".a")
            assert held.reached.wait(10)
            registry.guard = lambda one: (
                Response(403) if is_tagging(one) and one.body == TWO.raw else None
            )
            second = pool.submit(retag, fs, TWO, ".b")
            assert isinstance(second.exception(), EpochfsError)
            held.free.set()
            first.result()
        assert tags(registry, NAME)["latest"] == str(ONE.digest)

    @pytest.mark.expects_log("unmounted, and not written: /team/app/blobs/.abc")
    def test_bytes_that_are_right_and_could_not_be_sent_are_told_to_be_in_no_registry(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        temporary, path = f"/{NAME}/blobs/.abc", blob_path(b"abc")
        write(fs, temporary, b"abc")
        registry.guard = lambda one: Response(403) if one.method == "POST" else None
        with pytest.raises(EpochfsError):
            fs.rename(temporary, path)
        assert fs.writing().reasons == (f"{temporary} is in no registry",)

    def test_a_tag_of_a_manifest_that_was_sent_is_not_looked_for_before(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        new = image(b"new")
        todo = steps(NAME, "new", new)
        follow(fs, todo[:-1])
        registry.forget_requests()
        follow(fs, todo[-1:])
        assert registry.count("HEAD", str(new.digest)) == 0
        assert tags(registry, NAME)["new"] == str(new.digest)

    def test_a_manifest_that_somebody_else_pushed_waits_no_more(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        new = image(b"from elsewhere")
        make(fs, manifest_path(new).rpartition("/")[0])
        write(fs, manifest_path(new), new.raw)
        assert fs.writing().waiting == 1
        load(registry, NAME, "", new)
        write(fs, manifest_path(new), new.raw)
        assert fs.writing().reasons == ()

    def test_a_deep_index_is_sent_when_its_leaf_arrives(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        leaf = image(b"leaf")
        chain = [leaf]
        for _ in range(180):
            chain.append(index(chain[-1]))
        for one in reversed(chain):
            make(fs, manifest_path(one).rpartition("/")[0])
            write(fs, manifest_path(one), one.raw)
        fs.symlink(link_to(chain[-1]), TAG)
        assert fs.writing().waiting == len(chain) + 1
        for blob in leaf.every_blob():
            write(fs, blob_path(blob), blob)
        assert fs.writing().reasons == ()
        assert tags(registry, NAME)["latest"] == str(chain[-1].digest)

    @pytest.mark.parametrize("seed", range(4))
    def test_many_writers_in_any_order_end_with_the_same(
        self, seed: int, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        chance = random.Random(seed)
        shared = random_bytes(2000, seed)
        wanted = {f"t{n}": index(image(shared, b"%d" % n), image(shared)) for n in range(8)}
        todo = [step for tag, one in wanted.items() for step in steps("all", tag, one)]
        todo = list(dict.fromkeys(todo))
        chance.shuffle(todo)
        make(fs, "/all/tags", "/all/blobs", "/all/manifests")
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(lambda step: follow(fs, [step]), todo))
        assert fs.writing().reasons == ()
        assert tags(registry, "all") == {tag: str(one.digest) for tag, one in wanted.items()}
        for path, data in todo:
            if isinstance(data, bytes):
                assert read(fs, path) == data


class TestFailures:
    """What was told that it waits is sent once the registry can take it."""

    @pytest.fixture(autouse=True)
    def soon(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(outbox, "_RETRY_SECONDS", 0.1)

    def wait_for_a_blob(self, fs: WritableFileSystem, content: Content, count: int) -> None:
        make(fs, manifest_path(content).rpartition("/")[0])
        write(fs, manifest_path(content), content.raw)
        for number in range(count):
            fs.symlink(link_to(content), f"/{NAME}/tags/n{number}")
        for blob in list(content.every_blob())[1:]:
            write(fs, blob_path(blob), blob)

    def last(self, fs: WritableFileSystem, content: Content) -> None:
        blob = next(iter(content.every_blob()))
        write(fs, blob_path(blob), blob)

    @pytest.mark.expects_log("cannot be written")
    def test_what_waited_is_sent_by_itself_once_the_registry_is_back(
        self, registry: Guarded, fs: WritableFileSystem
    ) -> None:
        new = image(b"new")
        self.wait_for_a_blob(fs, new, 3)
        broken = threading.Event()
        broken.set()
        registry.guard = lambda one: (
            Response(503)
            if broken.is_set() and one.method == "PUT" and "/manifests/" in one.path
            else None
        )
        self.last(fs, new)
        assert fs.writing().waiting == 4
        assert "503" in "".join(fs.writing().reasons)
        broken.clear()
        until(lambda: not fs.writing().reasons)
        assert len(tags(registry, NAME)) == 5

    @pytest.mark.expects_log("cannot be written")
    def test_many_tags_do_not_each_wait_for_a_registry_that_is_silent(
        self, registry: Guarded, tmp_path: Path
    ) -> None:
        new = image(b"new")
        with writable(registry, tmp_path / "other", timeout=1.0) as fs:
            self.wait_for_a_blob(fs, new, 20)
            free = threading.Event()

            def guard(request: Request) -> None:
                if request.method == "PUT" and "/manifests/n" in request.path:
                    free.wait(30)

            registry.guard = guard
            with at_most(5):
                self.last(fs, new)
            free.set()
            until(lambda: not fs.writing().reasons, 20)

    @pytest.mark.expects_log("cannot be written|not all that waits|unmounted, and not written")
    def test_a_mount_ends_in_time_whatever_waits_when_the_registry_is_gone(
        self, registry: Guarded, tmp_path: Path
    ) -> None:
        new = image(b"new")
        with writable(registry, tmp_path / "other", timeout=1.0) as fs:
            self.wait_for_a_blob(fs, new, 20)
            registry.stop()
            with pytest.raises(EpochfsError):
                fs.fsyncdir("/")
            with at_most(5):
                fs.close()


class TestTwoMounts:
    """Two mounts write to one registry."""

    def test_a_tag_ends_at_what_the_later_of_two_wrote(
        self, registry: Guarded, fs: WritableFileSystem, tmp_path: Path
    ) -> None:
        with writable(registry, tmp_path / "other") as other, ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                mine = pool.submit(retag, fs, ONE, ".a")
                theirs = pool.submit(retag, other, TWO, ".b")
                mine.result()
                theirs.result()
                puts = [one for one in registry.requests if is_tagging(one)]
                assert len(puts) <= 2
                assert tags(registry, NAME)["latest"] in {str(ONE.digest), str(TWO.digest)}
                registry.forget_requests()
            retag(fs, ONE, ".a")
            retag(other, TWO, ".b")
            assert tags(registry, NAME)["latest"] == str(TWO.digest)

    def test_the_same_restored_by_both_at_once_is_there_once(
        self, registry: Guarded, fs: WritableFileSystem, tmp_path: Path
    ) -> None:
        new = index(image(b"first", b"shared"), image(b"second", b"shared"))
        *todo, (tag, to) = steps("both", "v1", new)
        # By a rename, as rsync does: a link that the other mount has made by then exists.
        temporary = "/both/tags/.v1"

        def restore(into: WritableFileSystem) -> None:
            make(into, "/both/tags")
            follow(into, [*todo, (temporary, to)])
            into.rename(temporary, tag)

        with writable(registry, tmp_path / "other") as other, ThreadPoolExecutor(2) as pool:
            for one in [pool.submit(restore, into) for into in (fs, other)]:
                one.result()
            assert fs.writing().reasons == other.writing().reasons == ()
        assert tags(registry, "both") == {"v1": str(new.digest)}
