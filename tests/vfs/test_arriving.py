"""`--unverified-layers`: files of a layer are opened before the rest of it is here."""

from __future__ import annotations

import errno
import gzip
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.arriving import FILES, LARGE, LAYER, SMALL, Slow, coming_slowly, gzipped, unverified
from support.builders import load
from support.layers import DIRECTORY, File, Layer, container, zstd
from support.registries import EmbeddedRegistry, Guarded
from support.roots import MIB, Make, Show, Shown, errno_of, plain, showing
from support.scripted import until
from support.stacks import stack
from support.views import VfsView, read

from epochfs.demo.registry import Request, Response
from epochfs.layers import arriving
from epochfs.layers.arriving import Arrival
from epochfs.layers.index import FORMAT
from epochfs.layers.layer_store import LoadingCache
from epochfs.oci.names import Digest

pytest.importorskip("indexed_gzip")

showing_all = pytest.fixture(showing)
show = pytest.fixture(unverified)
slow = pytest.fixture(coming_slowly)

every_stream = pytest.mark.parametrize("make", [plain, gzipped, zstd], ids=lambda m: m.__name__)


def change(root: Shown, respond: Callable[[Request, Response], Response]) -> Callable[[], None]:
    """Have `respond` change what the registry answers to GETs of blobs; return what ends that."""
    registry = root.registry

    def changed(request: Request) -> Response | None:
        is_blob = request.method == "GET" and "/blobs/" in request.path
        return respond(request, registry.honest(request)) if is_blob else None

    def end() -> None:
        registry.guard = Guarded.guard

    registry.guard = changed
    return end


@every_stream
def test_a_file_near_the_start_costs_a_small_part_of_the_layer(make: Make, show: Show) -> None:
    layer = make(*FILES, File("larger", LARGE))
    root = show(layer)
    assert root.view.stat(root / "etc").permissions == 0o711
    assert root.read("etc/first") == SMALL
    assert root.moved() < 0.05 * len(layer.blob)


def test_without_the_option_the_whole_layer_is_verified_first(showing_all: Show) -> None:
    root = showing_all(LAYER)
    assert root.read("etc/first") == SMALL
    assert root.moved() > len(LAYER.blob)


def test_a_layer_that_is_to_be_verified_first_is_not_shown_before(show: Show) -> None:
    root = show(LAYER, verify_first=True)
    assert root.read("etc/first") == SMALL
    assert root.moved() > len(LAYER.blob)


def test_the_root_of_an_image_is_there_before_any_layer(show: Show, tmp_path: Path) -> None:
    layer = gzipped(File("./", type=DIRECTORY, mode=0o700), *FILES)
    root = show(layer)
    assert root.view.stat(root.path).permissions == 0o755
    assert root.moved() < 10_000
    assert root.read("last") == b"the last"
    root.names()
    assert root.view.stat(root.path).permissions == 0o700
    again = show(layer)
    assert again.view.stat(again.path).permissions == 0o700
    shutil.rmtree(tmp_path / "cache/v1/layers")
    assert root.view.stat(root.path).permissions == 0o700


def test_a_cache_without_room_costs_no_reader_an_error(show: Show) -> None:
    root = show(LAYER, cache_size=4 * MIB)
    assert root.read("etc/first") == SMALL
    assert root.read("last") == b"the last"
    assert root.read("etc/first") == SMALL
    assert root.names() == ["etc", "large", "last"]


def test_what_nobody_waits_for_is_not_fetched_and_what_is_here_is_not_fetched_again(
    show: Show,
) -> None:
    root = show(LAYER)
    assert root.read("etc/first") == SMALL
    time.sleep(3)  # what was under way has come, and the pass is given up
    moved = root.moved()
    assert moved < 2 * MIB
    time.sleep(1)
    assert root.moved() == moved
    with root.view.opened(root / "etc/first") as file:
        assert file.pread(100, 50) == SMALL[50:150]
    assert root.moved() == moved


def test_a_file_in_the_middle_costs_little_more_than_what_is_before_it(show: Show) -> None:
    middle = File("middle", SMALL)
    root = show(gzipped(File("a", LARGE[: 8 * MIB]), middle, File("z", LARGE)))
    assert root.read("middle") == SMALL
    assert root.moved() < 12 * MIB


@every_stream
def test_a_large_file_is_read_from_where_it_is_wanted(make: Make, show: Show) -> None:
    root = show(make(*FILES))
    with root.view.opened(root / "large") as file:
        for offset in (20 * MIB - 9, 5, 31 * MIB + 1, 6 * MIB, 20 * MIB):
            assert file.pread(1000, offset) == LARGE[offset : offset + 1000]
    assert root.read("large") == LARGE
    assert root.names() == ["etc", "large", "last"]
    assert root.read("large") == LARGE


def test_the_members_of_a_gzip_file_are_one_stream(show: Show) -> None:
    stream = plain(*FILES).blob
    parts = [stream[start : start + 5 * MIB] for start in range(0, len(stream), 5 * MIB)]
    root = show(Layer(b"".join(gzip.compress(part, 1) for part in parts)))
    with root.view.opened(root / "large") as file:
        for offset in (30 * MIB - 9, 5, 17 * MIB, 29 * MIB):
            assert file.pread(1000, offset) == LARGE[offset : offset + 1000]
    assert root.read("last") == b"the last"


def test_what_has_passed_is_shown_while_others_wait_for_the_rest(slow: Slow) -> None:
    root, gate = slow(LAYER)
    with ThreadPoolExecutor(4) as pool:
        last = pool.submit(root.read, "last")
        absent = pool.submit(errno_of, root, "absent")
        for _ in range(3):
            readers = [pool.submit(root.read, "etc/first") for _ in range(2)]
            assert [reader.result(10) for reader in readers] == [SMALL, SMALL]
        assert not last.done()
        assert not absent.done()
        gate.open()
        assert last.result(20) == b"the last"
        assert absent.result(20) == errno.ENOENT
    assert root.names() == ["etc", "large", "last"]


def test_what_does_not_come_in_time_goes_on_coming(slow: Slow) -> None:
    root, gate = slow(LAYER, timeout=1.0)
    assert errno_of(root, "last") == errno.ETIMEDOUT
    assert root.read("etc/first") == SMALL
    gate.open()
    deadline = time.monotonic() + 20
    while root.moved() < len(LAYER.blob):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def own(others: list[threading.Thread]) -> list[threading.Thread]:
    """Return the threads that run now, but for others."""
    return [one for one in threading.enumerate() if one not in others]


def test_a_mount_that_ends_leaves_no_pass_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "_REST_SECONDS", 60.0)
    others = threading.enumerate()
    with EmbeddedRegistry() as registry:
        load(registry, "app", "latest", container(LAYER))
        with stack(registry.url, tmp_path / "cache", unverified_layers=True) as opened:
            path = f"/app/manifests/{container(LAYER).digest}/rootfs/etc/first"
            assert read(VfsView(opened.filesystem), path) == SMALL
        until(lambda: not any(one.name.startswith("layer_") for one in own(others)), 10)


def test_whoever_asks_while_a_pass_is_given_up_has_another(
    show: Show, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, want_all = LoadingCache.begin, Arrival.want_all
    delays, wanted = [0.5], [False, False]

    def slow_begin(*arguments: Any) -> Any:
        found = begin(*arguments)
        time.sleep(delays.pop() if delays else 0)
        return found

    def late(arrival: Arrival) -> None:
        if not wanted or wanted.pop():
            want_all(arrival)

    monkeypatch.setattr(arriving, "_REST_SECONDS", 0.1)
    monkeypatch.setattr(LoadingCache, "begin", slow_begin)
    monkeypatch.setattr(Arrival, "want_all", late)
    root = show(LAYER)
    assert root.read("etc/first") == SMALL
    time.sleep(0.5)
    assert root.names() == ["etc", "large", "last"]
    assert not delays
    assert not wanted


def test_the_index_is_kept_as_of_any_layer(show: Show) -> None:
    root = show(LAYER)
    assert root.read("etc/first") == SMALL
    assert root.names() == ["etc", "large", "last"]
    again = show(LAYER)
    assert again.names() == ["etc", "large", "last"]
    assert again.read("last") == b"the last"
    assert again.moved() < MIB


def test_a_small_layer_is_indexed_to_its_end_by_one_look(show: Show, tmp_path: Path) -> None:
    root = show(gzipped(File("a", SMALL), File("b", SMALL)))
    assert root.read("a") == SMALL
    indexes = tmp_path / "cache/v1/layers/sha256"
    deadline = time.monotonic() + 20
    while not any(one.suffix == f".{FORMAT}" for one in indexes.iterdir()):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("later", [False, True], ids=["at once", "by a later pass"])
@pytest.mark.expects_log(r"files of sha256:\S+ were shown, and it is wrong")
def test_once_the_digest_is_wrong_nothing_more_is_shown(
    later: bool, show: Show, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = show(LAYER)
    digest = str(Digest.of(LAYER.blob))

    def spoil(request: Request, answer: Response) -> Response:
        if digest not in request.path or answer.status != 206:
            return answer
        first = int(answer.headers["Content-Range"].split()[1].partition("-")[0])
        where = 25 * MIB - first
        if not 0 <= where < len(answer.body):
            return answer
        body = bytearray(answer.body)
        body[where] ^= 1
        return replace(answer, body=bytes(body))

    honest = change(root, spoil)
    if later:
        monkeypatch.setattr(arriving, "_REST_SECONDS", 0.3)
    with root.view.opened(root / "etc/first") as file:
        assert file.pread(100, 0) == SMALL[:100]
        if later:
            time.sleep(1)  # its pass is given up
        with pytest.raises(OSError) as raised:
            root.names()
        assert raised.value.errno == errno.EIO
        with pytest.raises(OSError) as raised:
            file.pread(100, 100)
        assert raised.value.errno == errno.EIO
    with pytest.raises(OSError) as raised:
        root.read("etc/first")
    assert raised.value.errno == errno.EIO
    assert f"files of {digest} were shown" in caplog.text
    honest()
    assert root.read("etc/first") == SMALL
    assert root.names() == ["etc", "large", "last"]


@pytest.mark.expects_log("503|EIO")
def test_when_the_registry_dies_what_is_here_is_shown_and_the_rest_comes_later(show: Show) -> None:
    root = show(LAYER)
    assert root.read("etc/first") == SMALL
    back = change(root, lambda *_: Response(503))
    assert errno_of(root, "last") == errno.EIO
    assert root.read("etc/first") == SMALL
    time.sleep(3)  # the pass is given up
    assert root.read("etc/first") == SMALL
    assert errno_of(root, "absent") == errno.EIO
    back()
    assert root.read("last") == b"the last"
    assert errno_of(root, "absent") == errno.ENOENT


@pytest.mark.expects_log("EIO|tar stream")
def test_of_a_layer_that_is_cut_short_what_has_passed_is_shown(show: Show) -> None:
    root = show(Layer(gzip.compress(plain(*FILES).blob[: 20 * MIB], 1)))
    assert root.read("etc/first") == SMALL
    assert errno_of(root, "last") == errno.EIO
    with pytest.raises(OSError):
        root.names()
