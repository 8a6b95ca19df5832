"""`files/` and `sparse/` of snapshots: every file is what the virtual machine had."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.builders import load, random_bytes
from support.mounts import Mounts
from support.registries import EmbeddedRegistry
from support.snapshots import (
    FILES,
    FIRST,
    PACKED,
    PLAIN,
    RAW,
    SNAPSHOT,
    SNAPSHOT_2,
    STRIDE,
    Draft,
    File,
    Open,
    Opened,
    snapshot,
)
from support.stacks import stack
from support.views import Opener, VfsView, names, read

from epochfs.oci.names import Digest

both_versions = pytest.mark.parametrize(
    ("version", "files"),
    [(SNAPSHOT, FIRST), (SNAPSHOT_2, FILES)],
    ids=["first-version", "second-version"],
)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    with ExitStack() as closing:
        yield Open(tmp_path, closing)


@both_versions
def test_every_file_is_what_the_virtual_machine_had(
    through: Opener, version: str, files: list[File]
) -> None:
    content = snapshot(*files, version=version)
    with EmbeddedRegistry() as registry:
        load(registry, "app", "latest", content)
        with through(registry) as view:
            directory = f"/app/manifests/{content.digest}"
            assert "sparse" not in names(view, directory)
            for file in files:
                whole, path = file.whole(), f"{directory}/sparse/{file.title}"
                if view.stat(path).kind == stat.S_IFLNK:
                    assert file.pieces is None
                    path = f"/app/blobs/{Digest.of(whole)}"
                assert view.stat(path).size == len(whole)
                assert read(view, path) == whole, file.title
                with view.opened(path) as handle:
                    for start in (0, 99_999, STRIDE - 1, 500_000, len(whole) - 10, len(whole)):
                        assert handle.pread(20, max(0, start)) == whole[max(0, start) :][:20]


@both_versions
def test_through_a_mount_the_names_in_files_open_as_files(
    embedded: EmbeddedRegistry, mounts: Mounts, version: str, files: list[File]
) -> None:
    load(embedded, "app", "latest", snapshot(*files, version=version))
    shown = mounts(embedded.url).path / "app/tags/latest/files"
    for file in files:
        assert (shown / file.title).stat().st_size == len(file.whole())
        assert (shown / file.title).read_bytes() == file.whole()


def test_the_chunks_of_a_file_are_one_name(embedded: EmbeddedRegistry, tmp_path: Path) -> None:
    content = snapshot(*FILES)
    load(embedded, "app", "latest", content)
    with stack(embedded.url, tmp_path) as layers:
        view, directory = VfsView(layers.filesystem), f"/app/manifests/{content.digest}"
        expected = sorted({file.title.partition("/")[0] for file in FILES})
        assert names(view, f"{directory}/files") == expected
        assert names(view, f"{directory}/sparse") == expected
        assert names(view, f"{directory}/files/sub") == ["zeros"]


@both_versions
def test_a_walk_fetches_no_blob(
    embedded: EmbeddedRegistry, tmp_path: Path, version: str, files: list[File]
) -> None:
    load(embedded, "app", "latest", snapshot(*files, version=version))
    with stack(embedded.url, tmp_path) as layers:
        view = VfsView(layers.filesystem)
        pending = ["/"]
        while pending:
            path = pending.pop()
            if view.stat(path).kind == stat.S_IFDIR:
                pending += [f"{path.rstrip('/')}/{name}" for name in names(view, path)]
    assert embedded.count("GET", "/blobs/") == 0


def test_stat_fetches_nothing_but_the_config_and_that_once(opened: Open) -> None:
    shown = opened(*FILES)
    for file in FILES:
        shown.view.stat(f"{shown.path}/sparse/{file.title}")
    assert shown.registry.count("GET", "/blobs/") == 1


@pytest.mark.parametrize("file", [RAW, PACKED], ids=["raw", "compressed"])
@pytest.mark.parametrize("number", range(5))
def test_a_random_read_fetches_one_chunk(opened: Open, file: File, number: int) -> None:
    shown = opened(PLAIN, file)
    offset = number * STRIDE + 5000
    with shown.view.opened(f"{shown.path}/sparse/{file.title}") as handle:
        assert handle.pread(100, offset) == file.data[offset : offset + 100]
    chunk = f"/blobs/{Digest.of(file.blobs()[number])}"
    assert shown.registry.count("GET", chunk) > 0
    assert shown.registry.count("GET", "/blobs/") == shown.registry.count("GET", chunk) + 1


@pytest.mark.parametrize("stride", [1000, 4999, 5000, 9999, 10_000])
def test_a_length_that_no_one_would_choose_is_found_as_well(opened: Open, stride: int) -> None:
    file = File("odd", random_bytes(10_000, 4), stride=stride, packs=True)
    shown = opened(file)
    for offset in range(9990, 0, -777):
        with shown.view.opened(f"{shown.path}/sparse/odd") as handle:
            assert handle.pread(50, offset) == file.data[offset : offset + 50]
    assert shown.read("odd") == file.data


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_random_reads_agree_with_the_whole(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    length = data.draw(st.integers(1, 5000))
    lengths = data.draw(st.lists(st.integers(1, 900), max_size=12))
    gaps = data.draw(st.lists(st.integers(0, 900), min_size=14, max_size=14))
    cuts = [min(sum(lengths[:n]), length) for n in range(len(lengths) + 1)] + [length]
    pieces, end = [], 0
    for number, (start, stop) in enumerate(pairwise(cuts)):
        pieces.append((end + gaps[number], stop - start))
        end += gaps[number] + stop - start
    holes = data.draw(st.booleans())
    file = File(
        "any",
        random_bytes(length, length),
        stride=data.draw(st.integers(0, length)),
        packs=data.draw(st.booleans()),
        pieces=pieces if holes else None,
        size=end + gaps[-1],
    )
    file.stride = max(file.stride, length // 50)
    whole = file.whole()
    with ExitStack() as closing:
        shown = Opened(snapshot(PLAIN, file), tmp_path_factory.mktemp("any"), closing)
        if shown.view.stat(f"{shown.path}/sparse/any").kind == stat.S_IFLNK:
            return
        with shown.view.opened(f"{shown.path}/sparse/any") as handle:
            for _ in range(5):
                start = data.draw(st.integers(0, len(whole) + 10))
                count = data.draw(st.integers(0, len(whole) + 10))
                assert handle.pread(count, start) == whole[start : start + count]


def test_a_config_of_64_mib_is_parsed_once(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []

    def counting(raw: bytes) -> object:
        parsed.append(len(raw))
        return parse(raw)

    from epochfs.metadata.content import parse_config as parse

    monkeypatch.setattr("epochfs.metadata.content.parse_config", counting)
    count = 2_000_000
    file = File("many", bytes(count), pieces=[(8192 * n, 1) for n in range(count)], size=2**40)
    shown = opened(file, RAW)
    for title in ("many", "raw") * 3:
        shown.view.stat(f"{shown.path}/sparse/{title}")
    assert len(parsed) == 1
    assert parsed[0] > 50 << 20
    assert shown.registry.count("GET", "/blobs/") == 1
    with shown.view.opened(f"{shown.path}/sparse/many") as handle:
        assert handle.pread(10_000, 8192 * 1_500_000) == bytes(10_000)


@pytest.mark.parametrize("end", [None, [1]], ids=["well-formed", "malformed"])
def test_the_config_is_parsed_once_for_many_files(
    opened: Open, monkeypatch: pytest.MonkeyPatch, end: object
) -> None:
    from epochfs.metadata.content import parse_config as parse

    parsed: list[bytes] = []

    def counting(raw: bytes) -> object:
        parsed.append(raw)
        return parse(raw)

    monkeypatch.setattr("epochfs.metadata.content.parse_config", counting)

    def change(draft: Draft) -> None:
        draft.config["files"] = end or draft.config["files"]

    shown = opened(*(File(f"f{n}", b"%d" % n) for n in range(50)), change=change)
    for n in range(50):
        if end is None:
            assert shown.read(f"f{n}") == b"%d" % n
        else:
            assert shown.errno_of(f"f{n}") == errno.EIO
    assert len(parsed) == 1


def test_without_zstandard_the_log_names_what_to_install(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("epochfs.layers.decoders.zstandard", None)
    shown = opened(PLAIN, RAW, PACKED)
    assert shown.view.stat(f"{shown.path}/sparse/packed").size == len(PACKED.data)
    with pytest.raises(OSError, match="install indexed_gzip and zstandard") as caught:
        shown.read("packed")
    assert caught.value.errno == errno.EIO
    assert shown.read("raw") == RAW.data
